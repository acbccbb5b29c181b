"""A stream of items through one call: several requests in flight, every item its own answer or its own error.

Reads ahead no further than what is in flight and one batch more. A batch that the server refuses is asked about row by
row, so that a broken image costs its own answer only. What would go on failing ends the stream instead: after so many
requests in a row that found no server, or at the deadline of the stream.
"""

from __future__ import annotations

import logging
import time
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    AsyncIterator,
    Callable,
    Iterable,
    Iterator,
    MutableMapping,
    Sequence,
)
from dataclasses import dataclass
from itertools import islice
from typing import Any, Generic, Self, TypedDict

from .call import Answer, Call, Row
from .engine import Deadline, Engine, checked_seconds
from .errors import DeadlineExceeded, InvalidInput, ServerError, ServerUnavailable, ShelfwiseError
from .runtime import Task, finish

logger = logging.getLogger(__name__)

MAX_REQUEST_BYTES = 32 * 2**20
"""A batch is sent in several requests rather than one above this size, to bound memory on both sides."""


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a stream is: items answered, how many of them with an error, and seconds since it began."""

    answered: int
    failed: int
    seconds: float


class StreamOptions(TypedDict, total=False):
    """Options of every `*_many`.

    Attributes:
        timeout: seconds for each request with its retries, from when it is sent; else the client's.
        batch_size: rows a request (8); keep it within the max_batch_size of the served model.
        in_flight: requests at a time (4).
        deadline: seconds for the whole stream, which then raises DeadlineExceeded; else it has none.
        give_up_after: requests in a row that found no server, after which the stream raises ServerUnavailable (8).
        progress: called after every request.
    """

    timeout: float | None
    batch_size: int
    in_flight: int
    deadline: float | None
    give_up_after: int
    progress: Callable[[Progress], None] | None


@dataclass(frozen=True, slots=True)
class Flow:
    """`StreamOptions`, complete and checked."""

    timeout: float | None = None
    batch_size: int = 8
    in_flight: int = 4
    deadline: float | None = None
    give_up_after: int = 8
    progress: Callable[[Progress], None] | None = None

    def __post_init__(self) -> None:
        for name in ("batch_size", "in_flight", "give_up_after"):
            number = getattr(self, name)
            if isinstance(number, bool) or not isinstance(number, int) or number < 1:
                raise ValueError(f"{name} must be a whole number and at least 1, not {number!r}")
        for name in ("timeout", "deadline"):
            if getattr(self, name) is not None:
                checked_seconds(getattr(self, name), name)


Numbered = tuple[int, Answer | ShelfwiseError]


class _Answers(Generic[Answer]):
    def __init__(self, engine: Engine, call: Call[Answer], items: Any, options: StreamOptions) -> None:
        self._started: AsyncGenerator[Numbered[Answer], None] | None = None
        self._engine = engine
        self._call = call
        self._items = items
        self._flow = Flow(**options)

    def _begun(self, *, in_order: bool) -> AsyncGenerator[Numbered[Answer], None]:
        if self._started is None:
            self._started = stream(self._engine, self._call, self._items, self._flow, in_order=in_order)
        return self._started


class Stream(_Answers[Answer]):
    """Answers or errors, one for each item, in order; see `ShelfwiseClient.categorize_many`."""

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Answer | ShelfwiseError:
        return self._next(in_order=True)[1]

    def as_completed(self) -> Iterator[Numbered[Answer]]:
        """The same as they come, each with the number of its item, from 0; call it before the first answer."""
        return iter(lambda: self._next(in_order=False), None)

    def close(self) -> None:
        """Cancels what is in flight."""
        if self._started is not None:
            finish(self._started.aclose())

    def _next(self, *, in_order: bool) -> Numbered[Answer]:
        try:
            return finish(anext(self._begun(in_order=in_order)))  # type: ignore[no-any-return]
        except StopAsyncIteration:
            raise StopIteration from None

    __del__ = close


class AsyncStream(_Answers[Answer]):
    """`Stream` for asyncio."""

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Answer | ShelfwiseError:
        return (await anext(self._begun(in_order=True)))[1]

    def as_completed(self) -> AsyncIterator[Numbered[Answer]]:
        """The same as they come, each with the number of its item, from 0; call it before the first answer."""
        return self._begun(in_order=False)

    async def aclose(self) -> None:
        """Cancels what is in flight."""
        if self._started is not None:
            await self._started.aclose()


async def stream(
    engine: Engine, call: Call[Answer], items: Iterable[Any] | AsyncIterable[Any], flow: Flow, *, in_order: bool
) -> AsyncGenerator[Numbered[Answer], None]:
    """Yields the number of an item and its answer, in the order of the items or as they come.

    Raises:
        DeadlineExceeded: the stream's own deadline has passed.
        ServerUnavailable: too many requests in a row found no server.
        InvalidInput: the caller wants more than this server returns.
    """
    source = aiter(items) if isinstance(items, AsyncIterable) else iter(items)
    deadline = None if flow.deadline is None else Deadline(flow.deadline)
    started = time.monotonic()
    pending: dict[Task, int] = {}  # -> number of its first item
    answers: list[Answer | ShelfwiseError] = []
    first = read = answered = failed = lost = 0
    try:
        while True:
            given_up = lost >= flow.give_up_after
            while not given_up and len(pending) < flow.in_flight and (batch := await _take(source, flow.batch_size)):
                pending[engine.runtime.start(_answer_batch(engine, call, batch, flow.timeout))] = read
                read += len(batch)
            for number, answer in enumerate(answers, first):  # while the next requests are on their way
                yield number, answer
            if given_up:
                raise ServerUnavailable(f"{lost} requests in a row found no server, the last: {answers[-1]}")
            if not pending:
                return
            awaited = [next(iter(pending))] if in_order else list(pending)
            await engine.runtime.wait(awaited, None if deadline is None else deadline.remaining())
            done = next((task for task in awaited if task.done()), None)
            if done is None:
                raise DeadlineExceeded(f"{answered} items were answered within the stream's {flow.deadline:g} s")
            first, answers = pending.pop(done), done.result()
            lost = lost + 1 if all(map(_is_lost, answers)) else 0
            answered += len(answers)
            failed += sum(isinstance(answer, ShelfwiseError) for answer in answers)
            if flow.progress is not None:
                flow.progress(Progress(answered, failed, time.monotonic() - started))
    finally:
        await engine.runtime.end(pending)


def _is_lost(answer: Any) -> bool:
    return isinstance(answer, (ServerUnavailable, DeadlineExceeded))


async def _take(source: Any, count: int) -> list[Any]:
    if isinstance(source, AsyncIterator):
        batch: list[Any] = []
        while len(batch) < count:
            try:
                batch.append(await anext(source))
            except StopAsyncIteration:
                break
        return batch
    return list(islice(source, count))


async def _answer_batch(engine: Engine, call: Call[Any], items: Sequence[Any], timeout: float | None) -> list[Any]:
    answers: dict[int, Any] = {}
    requests = _requests(call, items, answers)
    while request := await engine.runtime.blocking(next, requests, None):
        numbers, rows = request
        answers.update(zip(numbers, await _answer_rows(engine, call, rows, timeout), strict=True))
    return [answers[number] for number in range(len(items))]


async def _answer_rows(engine: Engine, call: Call[Any], rows: list[Row], timeout: float | None) -> list[Any]:
    """Asks about all rows at once and, when the request is refused for what is in it, about each alone."""
    try:
        return [*await engine.infer(call, rows, engine.deadline(timeout))]
    except (InvalidInput, ServerError) as error:
        if error.status is None:  # not refused by the server: its answer is not what was asked for
            raise
        if len(rows) == 1:
            return [error]
        refusal = error
    except ShelfwiseError as error:
        return [error] * len(rows)
    answers: list[Any] = []
    for row in rows:
        lost = bool(answers) and _is_lost(answers[-1])
        answers += answers[-1:] if lost else await _answer_rows(engine, call, [row], timeout)
    if not any(isinstance(answer, ShelfwiseError) for answer in answers):
        logger.warning("a batch of %d rows was refused, its rows are answered singly: %s", len(rows), refusal)
    return answers


def _requests(
    call: Call[Any], items: Sequence[Any], errors: MutableMapping[int, Any]
) -> Iterator[tuple[list[int], list[Row]]]:
    """Encodes items one after the other; yields rows of equal lengths and bounded size with the items' numbers.

    What cannot be encoded goes into `errors` under its number instead.
    """
    groups: dict[tuple[int, ...], tuple[list[int], list[Row]]] = {}
    sizes: dict[tuple[int, ...], int] = {}
    for number, item in enumerate(items):
        try:
            row = call.encode(item)
        except ShelfwiseError as error:
            errors[number] = error
            continue
        lengths = tuple(map(len, row))
        size = sum(len(element) for elements in row for element in elements)
        if lengths in groups and sizes[lengths] + size > MAX_REQUEST_BYTES:
            yield groups.pop(lengths)
        if lengths not in groups:
            groups[lengths], sizes[lengths] = ([], []), 0
        groups[lengths][0].append(number)
        groups[lengths][1].append(row)
        sizes[lengths] += size
    yield from groups.values()
