"""`ShelfwiseClient`: the ensembles as Python calls, `categorize` also for a stream of items.

The work per call is one protobuf message each way and a handful of small objects; everything slow is the server's.
A stream keeps several requests in flight, gives answers in the order of its items, and turns the failure of a batch
into the failure of the rows that caused it, by asking about its rows one by one.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Mapping, MutableMapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from types import TracebackType
from typing import Any, Self

from tritonclient.grpc import service_pb2

from . import colours
from .errors import (
    DeadlineExceeded,
    InvalidInput,
    ModelNotFound,
    ServerError,
    ServerUnavailable,
    ShelfwiseError,
)
from .images import Image, encode_image
from .results import PATH_SEPARATOR, Categorization, Category, ColourMatch, Item, ServerMetadata
from .tensors import bytes_tensor, output
from .transport import TLS, Cancellation, Deadline, Transport, checked_timeout

logger = logging.getLogger(__name__)

MODEL = "categorize"
OUTPUTS = ("category", "category_id", "probability", "neighbour_kl")
MAX_REQUEST_BYTES = 32 * 2**20
"""A stream sends a batch in several requests rather than one above this size, to bound memory on both sides."""

_Row = tuple[bytes, bytes]  # image file, title in UTF-8; empty stands for absent
_Answer = Categorization | ShelfwiseError


class ShelfwiseClient:
    """A connection to one Shelfwise server.

    Connects with the first call, and again by itself when the connection is lost. All methods may be called from
    several threads at once; the connection is shared and requests overlap on it. Create it after a fork, not before.

    Args:
        url: "host:port" of the server's gRPC endpoint.
        timeout: seconds that a call may take from start to end, retries included, unless it is given its own.
        tls: encrypts the connection; None sends in the clear.
        headers: sent with every request, for example {"authorization": "Bearer …"}.

    Raises:
        ValueError: a URL with a scheme or without a port, a timeout that is not positive, or TLS files that do not
            belong together.
        OSError: a TLS file cannot be read.
    """

    def __init__(
        self,
        url: str,
        *,
        timeout: float = 10.0,
        tls: TLS | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        self._timeout = checked_timeout(timeout)
        self._transport = Transport(url, tls, headers or {})

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Closes the connection; calls in flight in other threads end with RequestCancelled."""
        self._transport.close()

    def categorize(
        self, image: Image | None = None, title: str | None = None, *, k: int = 5, timeout: float | None = None
    ) -> Categorization:
        """The k most probable categories of one product.

        Args:
            image: path, bytes of an image file, uint8 array [H, W, 3] (RGB) or [H, W], or Pillow image; None or
                empty bytes when there is none.
            title: product title; None or blank when there is none.
            k: how many categories, at most what the server returns (the smaller of 20 and its number of classes).
            timeout: seconds for the whole call; None takes the client's.

        Raises:
            InvalidInput: neither image nor title, an image that is too large or cannot be decoded, k out of range.
            ShelfwiseError: see its subclasses for the faults of server and network.
        """
        deadline = self._deadline(timeout)
        rows = [_encode(Item(image, title))]
        _check_k(k)
        return _parse(self._transport.call(self._transport.stub.ModelInfer, _request(rows), deadline), rows, k)[0]

    def categorize_many(
        self,
        items: Iterable[Item | tuple[Image | None, str | None]],
        *,
        k: int = 5,
        timeout: float | None = None,
        batch_size: int = 8,
        in_flight: int = 4,
    ) -> Generator[Categorization | ShelfwiseError, None, None]:
        """Categorizes a sequence or an endless stream, yielding one answer or one error for each item, in order.

        At most batch_size × (in_flight + 1) items are read ahead of the answer that is yielded next. An item that is
        wrong costs its own answer only: when the server refuses a batch, its rows are asked about one by one. Images
        are read and encoded in the threads that send them. Closing the iterator, or leaving it to the garbage
        collector, cancels what is in flight.

        Args:
            items: `Item`s or plain (image, title) pairs; fields as in `categorize`.
            k: as in `categorize`.
            timeout: seconds for each request with its retries, counted from when it is sent; None takes the client's.
            batch_size: rows a request; keep it within the max_batch_size of the served model.
            in_flight: requests at a time.

        Yields:
            A Categorization, or the ShelfwiseError that `categorize` would have raised for this item.

        Raises:
            InvalidInput: k is not positive or, once the first answer is there, larger than what the server returns.
            ServerError: the server's answers are not those of a Shelfwise server.
            ValueError: batch_size, in_flight or timeout is not positive.
        """
        if batch_size < 1 or in_flight < 1:
            raise ValueError(f"batch_size and in_flight must be positive, not {batch_size} and {in_flight}")
        _check_k(k)
        seconds = self._timeout if timeout is None else checked_timeout(timeout)
        return self._stream(iter(items), k, seconds, batch_size, in_flight)

    def match_colours(
        self,
        images: Sequence[Image],
        labels: Sequence[str],
        *,
        one_to_one: bool = False,
        timeout: float | None = None,
    ) -> tuple[ColourMatch, ...]:
        """The colour label of every photo of one product.

        Args:
            images: [n] photos, 1 ≤ n ≤ 128, each as in `categorize`.
            labels: [m] labels as the seller writes them, in any language, n ≤ m ≤ 256.
            one_to_one: no label is given twice: the assignment that is most probable as a whole. Else each photo gets
                its own most probable label.
            timeout: seconds for the whole call; None takes the client's.

        Returns:
            [n] matches, in the order of the photos.

        Raises:
            InvalidInput: no image, fewer labels than images, too many of either, or an image or label that cannot be
                read; the message names its place.
            ShelfwiseError: see its subclasses for the faults of server and network.
        """
        deadline = self._deadline(timeout)
        request = colours.request(images, labels)
        response = self._transport.call(self._transport.stub.ModelInfer, request, deadline)
        return colours.parse(response, len(images), labels, one_to_one=one_to_one)

    def is_ready(self, model: str = MODEL, *, timeout: float | None = None) -> bool:
        """Whether the server says that a model, "categorize" or "match_colours", is ready; False without an answer.

        Asks once, without retries.

        Raises:
            AccessDenied: the server is there but wants a header.
        """
        request = service_pb2.ModelReadyRequest(name=model)
        try:
            answer = self._transport.call(
                self._transport.stub.ModelReady, request, self._deadline(timeout), retry=False
            )
        except (ServerUnavailable, DeadlineExceeded, ModelNotFound):
            return False
        return bool(answer.ready)

    def server_metadata(self, model: str = MODEL, *, timeout: float | None = None) -> ServerMetadata:
        """Name and version of the server, and the versions of a model that it serves.

        Raises:
            ModelNotFound: the server does not serve the model.
            ShelfwiseError: as in `categorize`.
        """
        deadline = self._deadline(timeout)
        stub = self._transport.stub
        server = self._transport.call(stub.ServerMetadata, service_pb2.ServerMetadataRequest(), deadline)
        served = self._transport.call(stub.ModelMetadata, service_pb2.ModelMetadataRequest(name=model), deadline)
        return ServerMetadata(server.name, server.version, tuple(served.versions))

    def _deadline(self, timeout: float | None) -> Deadline:
        return Deadline(self._timeout if timeout is None else timeout)

    def _stream(
        self, items: Iterator[Any], k: int, timeout: float, batch_size: int, in_flight: int
    ) -> Generator[_Answer, None, None]:
        cancellation = Cancellation()
        senders = ThreadPoolExecutor(in_flight, thread_name_prefix="shelfwise-client")
        pending: deque[Future[list[_Answer]]] = deque()
        answers: list[_Answer] = []
        try:
            while True:
                while len(pending) < in_flight and (batch := list(islice(items, batch_size))):
                    pending.append(senders.submit(self._answer_batch, batch, k, timeout, cancellation))
                yield from answers  # while the next request is on its way
                if not pending:
                    return
                answers = pending.popleft().result()
        finally:
            cancellation.cancel()
            senders.shutdown(cancel_futures=True)

    def _answer_batch(self, items: Sequence[Any], k: int, timeout: float, cancellation: Cancellation) -> list[_Answer]:
        """One answer or error for each item of a batch, in order."""
        answers: dict[int, _Answer] = {}
        for indices, rows in _requests(items, answers):
            answers.update(zip(indices, self._answer_rows(rows, k, timeout, cancellation), strict=True))
        return [answers[index] for index in range(len(items))]

    def _answer_rows(self, rows: Sequence[_Row], k: int, timeout: float, cancellation: Cancellation) -> list[_Answer]:
        """Asks about all rows at once and, when the request is refused for what is in it, about each alone."""
        try:
            response = self._transport.call(
                self._transport.stub.ModelInfer, _request(rows), Deadline(timeout), cancellation=cancellation
            )
        except (InvalidInput, ServerError) as error:
            if len(rows) == 1:
                return [error]
            answers = [self._answer_rows([row], k, timeout, cancellation)[0] for row in rows]
            if not any(isinstance(answer, ShelfwiseError) for answer in answers):
                logger.warning("a batch of %d rows was refused, its rows are answered singly: %s", len(rows), error)
            return answers
        except ShelfwiseError as error:
            return [error] * len(rows)
        return [*_parse(response, rows, k)]


def _check_k(k: int) -> None:
    if k < 1:
        raise InvalidInput(f"k must be at least 1, not {k}")


def _requests(items: Sequence[Any], errors: MutableMapping[int, _Answer]) -> Iterator[tuple[list[int], list[_Row]]]:
    """Encodes items one after the other and groups them into requests of bounded size, as (indices, rows).

    What cannot be encoded goes into `errors` under its index instead.
    """
    indices: list[int] = []
    rows: list[_Row] = []
    size = 0
    for index, item in enumerate(items):
        try:
            row = _encode(Item(*item))
        except ShelfwiseError as error:
            errors[index] = error
            continue
        row_size = sum(map(len, row))
        if rows and size + row_size > MAX_REQUEST_BYTES:
            yield indices, rows
            indices, rows, size = [], [], 0
        indices.append(index)
        rows.append(row)
        size += row_size
    if rows:
        yield indices, rows


def _encode(item: Item) -> _Row:
    image = b"" if item.image is None else encode_image(item.image)
    title = "" if item.title is None else item.title
    if not isinstance(title, str):
        raise InvalidInput(f"title must be text, not {type(title).__name__}")
    if not image and not title.strip():
        raise InvalidInput("image and title are both empty: at least one of them is needed")
    try:
        return image, title.encode()
    except UnicodeEncodeError as failure:
        raise InvalidInput(f"title is not valid Unicode: {failure.reason} at character {failure.start}") from failure


def _request(rows: Sequence[_Row]) -> service_pb2.ModelInferRequest:
    tensor = service_pb2.ModelInferRequest.InferInputTensor
    requested = service_pb2.ModelInferRequest.InferRequestedOutputTensor
    shape = (len(rows), 1)
    return service_pb2.ModelInferRequest(
        model_name=MODEL,
        inputs=[
            tensor(name="image", datatype="BYTES", shape=shape),
            tensor(name="title", datatype="BYTES", shape=shape),
        ],
        outputs=[requested(name=name) for name in OUTPUTS],  # else the server sends all categories' probabilities, too
        raw_input_contents=[bytes_tensor(image for image, _ in rows), bytes_tensor(title for _, title in rows)],
    )


def _parse(response: service_pb2.ModelInferResponse, rows: Sequence[_Row], k: int) -> list[Categorization]:
    """The answers of a response whose outputs are [rows, returned] and, for neighbour_kl, [rows, 1].

    Raises:
        InvalidInput: k is larger than what the server returns.
        ServerError: an output is missing or has another number of rows: this is no Shelfwise server.
    """
    labels, ids, probabilities, neighbour_kl = (output(response, MODEL, name, (len(rows), None)) for name in OUTPUTS)
    returned = labels.shape[1]
    if k > returned:
        raise InvalidInput(f"k is {k}, but this server returns {returned} categories")
    answers = []
    for row in range(len(rows)):
        best = slice(row * returned, row * returned + k)
        categories = []
        for label, number, probability in zip(
            labels.values[best], ids.values[best], probabilities.values[best], strict=True
        ):
            text = label.decode()
            categories.append(Category(text, tuple(text.split(PATH_SEPARATOR)), number, probability))
        answers.append(Categorization(tuple(categories), neighbour_kl.values[row]))
    return answers
