"""What is particular to an ensemble, as a value: its name, its tensors, and how a row is encoded and decoded.

A `Call` reads like its line in the table of served models. Sending, retrying, streaming, sync and asyncio are the same
for every call and live elsewhere (`engine.py`). A row is the BYTES elements of every input; rows of one request have
equally many. Lengths that a server chooses or a row brings along are symbols, which must agree within an answer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeAlias, TypeVar

from tritonclient.grpc import service_pb2

from .errors import InvalidInput
from .tensors import bytes_tensor, output

Row: TypeAlias = tuple[Sequence[bytes], ...]
"""For every input of a call, in order, its elements: encoded image files, text in UTF-8, or packed numbers."""

Answer = TypeVar("Answer")
Length: TypeAlias = int | str
Inputs: TypeAlias = Mapping[str, Length]
Outputs: TypeAlias = Mapping[str, tuple[Length, ...]]


@dataclass(frozen=True, slots=True)
class Call(Generic[Answer]):
    """One served ensemble. Its answers are functions of its inputs alone, so that a request may be repeated.

    Attributes:
        name: of the ensemble.
        inputs: name and length of every input; all are BYTES but the numbers.
        outputs: name and shape of every output, a row.
        encode: makes a row of what the caller gives; raises InvalidInput.
        decode: makes an answer of a row and its outputs, each as flat values in row-major order.
        numbers: inputs that are INT32, from `int32`.
    """

    name: str
    inputs: Inputs
    outputs: Outputs
    encode: Callable[[Any], Row]
    decode: Callable[[Row, Mapping[str, Sequence[Any]]], Answer]
    numbers: frozenset[str] = frozenset()

    def request(self, rows: Sequence[Row]) -> service_pb2.ModelInferRequest:
        """The message that asks about rows of equal lengths."""
        message = service_pb2.ModelInferRequest
        columns = list(zip(*rows, strict=True))
        return message(
            model_name=self.name,
            inputs=[
                message.InferInputTensor(
                    name=name,
                    datatype="INT32" if name in self.numbers else "BYTES",
                    shape=(len(rows), len(column[0])),
                )
                for name, column in zip(self.inputs, columns, strict=True)
            ],
            # Else the server sends what else it has, too: the probabilities of all categories, for example.
            outputs=[message.InferRequestedOutputTensor(name=name) for name in self.outputs],
            raw_input_contents=[
                (b"".join if name in self.numbers else bytes_tensor)(element for row in column for element in row)
                for name, column in zip(self.inputs, columns, strict=True)
            ],
        )

    def answers(self, response: service_pb2.ModelInferResponse, rows: Sequence[Row]) -> list[Answer]:
        """The answer of every row.

        Raises:
            InvalidInput: the caller wants more than this server returns.
            ServerError: an output is missing or has another shape: this is no Shelfwise server.
        """
        lengths = {
            name: len(given) for name, given in zip(self.inputs.values(), rows[0], strict=True) if isinstance(name, str)
        }
        columns: dict[str, list[Sequence[Any]]] = {}
        for name, shape in self.outputs.items():
            wanted = [lengths.get(length) if isinstance(length, str) else length for length in shape]
            tensor = output(response, self.name, name, (len(rows), *wanted))
            lengths |= {symbol: n for symbol, n in zip(shape, tensor.shape[1:], strict=True) if isinstance(symbol, str)}
            size = len(tensor.values) // len(rows)
            columns[name] = [tensor.values[row * size : (row + 1) * size] for row in range(len(rows))]
        return [
            self.decode(row, {name: column[number] for name, column in columns.items()})
            for number, row in enumerate(rows)
        ]


def utf8(text: str | None, what: str) -> bytes:
    """A text as an element; none is empty.

    Raises:
        InvalidInput: it is no text, or not valid Unicode.
    """
    if text is None:
        return b""
    if not isinstance(text, str):
        raise InvalidInput(f"{what} must be text, not {type(text).__name__}")
    try:
        return text.encode()
    except UnicodeEncodeError as failure:
        reason = f"{failure.reason} at character {failure.start}"
        raise InvalidInput(f"{what} is not valid Unicode: {reason}") from failure


def int32(number: int) -> bytes:
    """A number as an element."""
    return number.to_bytes(4, "little", signed=True)
