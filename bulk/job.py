"""The way of a row from the feed to the result: known, asked about, or rejected with its reason.

Answers are kept under a hash of what was asked, the model and its preprocessing, so that no row is asked about twice
and no two models are mixed. The feed is read in blocks, in order, in memory that does not grow with it; a block whose
rows are all answered becomes a part (parts.py) and is never lost again. What the server could not answer for reasons
of its own is no answer: it ends the job, and the next run goes on behind the last whole block.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any, Unpack

from catalogue.feed import BadRow, Feed
from client import InvalidInput, ShelfwiseClient, ShelfwiseError, StreamOptions
from client.tensors import bytes_tensor
from index.snapshot import content_key

from .parts import BulkError, Earlier, Identity, Part, Results, Row
from .systems import BulkSystem, system_named

REFUSED = "refused"


@dataclass(frozen=True)
class Job:
    """What is to be done, wherever the model runs.

    Attributes:
        feed: bad rows of which become rejects.
        system: one of `SYSTEMS`.
        out: RESULT.parquet.
        k: candidates of an answer.
        part_rows: rows that are finished, and kept, together.
        anew: forget what an earlier run left.
        only_changed: keep the answers of an earlier run about rows that are as they were, wherever they stand now.
    """

    feed: Feed
    system: str
    out: Path
    k: int = 1
    part_rows: int = 4096
    anew: bool = False
    only_changed: bool = False

    def results(self, model: str) -> Results:
        """The result that is to be opened, of answers by a model.

        Raises:
            BulkError: it would be part of the feed.
        """
        files = [Path(path) for path, _, _ in self.feed.file_states()]
        out = self.out.resolve()
        if out in files or (self.feed.path.is_dir() and out.parent == self.feed.path.resolve()):
            raise BulkError(f"{self.out} is part of the feed; give --out another place")
        identity = Identity(self.system, self.k, model, self.part_rows)
        columns = system_named(self.system).columns
        return Results(self.out, identity, columns, anew=self.anew, only_changed=self.only_changed)


@dataclass
class Progress:
    """How far a job is.

    Attributes:
        rows: of the feed, in parts.
        asked: of them, asked about in this run.
        rejected: of them, without an answer.
        under_way: answers of the next part.
    """

    rows: int = 0
    asked: int = 0
    rejected: int = 0
    under_way: int = 0


Show = Callable[[Progress], None]


def run_with_client(
    job: Job, client: ShelfwiseClient, show: Show = lambda _: None, **options: Unpack[StreamOptions]
) -> Progress:
    """Does a job by a client.

    Args:
        client: of servers that all serve the same model, or of a release in this process.
        show: called after every request.
        options: of the stream of requests, see `client.StreamOptions`.

    Raises:
        BulkError: see `Results`; the feed or the model has changed.
        ShelfwiseError: a server is gone or late, or fails on its own side. What is done is kept.
        FeedError, OSError: the feed cannot be read, or the result not be written. What is done is kept.
    """
    system = system_named(job.system)
    model = model_of(client, system.ensemble)
    done = Progress()
    options["progress"] = lambda request: show(replace(done, under_way=request.answered))
    with job.results(model) as results:
        rows = plan(job.feed, system, model, job.part_rows, results.earlier)
        blocks = answered(rows, system, client, job.k, options)
        finish(job.feed, results, _while_served(blocks, client, system.ensemble, model), done, show)
    return done


def _while_served(
    blocks: Iterable[list[Row]], client: ShelfwiseClient, ensemble: str, model: str
) -> Iterator[list[Row]]:
    """Blocks that were answered by this model and no other."""
    for block in blocks:
        if (now := model_of(client, ensemble)) != model:
            raise BulkError(
                f"model {now[:12]} answers since this run began with {model[:12]}; what the first answered is kept: "
                "have the first served again, or --anew asks the second about all"
            )
        yield block


def finish(feed: Feed, results: Results, blocks: Iterable[list[Row]], done: Progress, show: Show) -> None:
    """Makes parts of blocks, whole ones in order, and of the parts the result; raises BulkError and OSError."""
    before = feed.file_states()
    for block in blocks:
        _check_feed(feed, before)
        results.commit(block)
        done.rows += len(block)
        done.asked += sum(row.values is not None or row.reason == REFUSED for row in block)
        done.rejected = sum(part.rejected for part in results.parts)
        show(done)
    _check_feed(feed, before)
    results.finish()


def plan(feed: Feed, system: BulkSystem, model: str, part_rows: int, earlier: Earlier) -> Iterator[Row]:
    """The rows of a feed in order: which are known, what to ask about the others, which cannot be asked about.

    Raises:
        FeedError: a file of the feed is damaged.
        BulkError: a row is not what it was in an earlier run, which only looks in its place.
    """
    ids: list[str | None] = []
    keys: list[bytes] = []
    number = last = -1
    part: Part | None = None
    for number, entry in enumerate(feed.entries()):
        block, place = divmod(number, part_rows)
        if place == 0:
            part = earlier.part(block)
            ids, keys = earlier.rows(part.file) if part else ([], [])
        last = block
        row = _row(entry, system, model, block)
        if place < len(keys) and keys[place] == row.key and ids[place] == row.id:
            assert part is not None
            row.known = part.file, place
        elif earlier.anywhere:
            row.known = earlier.find(row.key)
        elif place < len(keys):
            raise _changed(f"row {number + 1} (id {row.id}) is not the one that it was")
        if row.known:
            row.item = row.reason = row.error = None
        yield row
    part = earlier.part(last)
    shorter = part is not None and part.rows > number % part_rows + 1
    if not earlier.anywhere and (shorter or any(part.block > last for part in earlier.parts)):
        raise _changed(f"it ends after {number + 1} rows")


def answered(
    rows: Iterator[Row], system: BulkSystem, client: ShelfwiseClient, k: int, options: StreamOptions
) -> Iterator[list[Row]]:
    """The blocks of a plan, with an answer or a reason for every row; raises ShelfwiseError.

    Requests hold rows of one block, so that an answer is the same to the last bit whichever block a run begins with.
    The next block is asked about while the last answers of one are on their way.
    """
    before: Questions | None = None
    for _, block in groupby(rows, key=lambda row: row.block):
        questions = Questions(block, system, client, k, options)
        questions.begin()
        if before is not None:
            yield before.answers()
        questions.ask_all()
        before = questions
    if before is not None:
        yield before.answers()


class Questions:
    """Rows of which those that have something to ask are asked about."""

    def __init__(
        self, rows: Iterable[Row], system: BulkSystem, client: ShelfwiseClient, k: int, options: StreamOptions
    ) -> None:
        self._rows: list[Row] = []
        self._asked: deque[Row] = deque()
        self._all_asked = False
        self._system = system
        self._stream = iter(system.ask(client, self._items(rows), k, options))

    def begin(self) -> None:
        """Returns with the first answer, others on their way."""
        self._take()

    def ask_all(self) -> None:
        """Returns when all rows are read; the last answers are not there yet."""
        while not self._all_asked and self._take():
            pass

    def answers(self) -> list[Row]:
        """All rows, answered."""
        while self._take():
            pass
        return self._rows

    def _items(self, rows: Iterable[Row]) -> Iterator[Any]:
        for row in rows:
            self._rows.append(row)
            if row.item is not None:
                self._asked.append(row)
                item, row.item = row.item, None  # memory is not to grow with a block's images
                yield item
        self._all_asked = True

    def _take(self) -> bool:
        answer = next(self._stream, None)
        if answer is None:
            return False
        row = self._asked.popleft()
        if isinstance(answer, InvalidInput):
            row.reason, row.error = REFUSED, str(answer)
        elif isinstance(answer, ShelfwiseError):
            raise type(answer)(f"product {row.id}: {answer}; the same command goes on from here", status=answer.status)
        else:
            row.values = self._system.row(answer)
        return True


def _row(entry: Any, system: BulkSystem, model: str, block: int) -> Row:
    if isinstance(entry, BadRow):
        return Row(block, None, content_key(str(entry).encode()), reason=entry.fault.reason, error=str(entry))
    item = system.item(entry)
    elements = [part.encode() if isinstance(part, str) else part or b"" for part in item]
    return Row(block, entry.id, content_key(bytes_tensor([model.encode(), *elements])), item)


def model_of(client: ShelfwiseClient, ensemble: str) -> str:
    """The hash of the model and its preprocessing that answers.

    Raises:
        BulkError: several servers answer by different ones, or a release was made without a hash.
        ShelfwiseError: no server can be asked.
    """
    found = client.model_digests(ensemble)
    if "" in found:
        raise BulkError(f"the release of {ensemble} was made before releases had a digest: export it again")
    if len(found) > 1:
        raise BulkError(f"the servers answer by different models: {', '.join(sorted(each[:12] for each in found))}")
    return found.pop()


def _check_feed(feed: Feed, before: list[tuple[str, int, int]]) -> None:
    if feed.file_states() != before:
        raise BulkError(f"{feed.path} changed while it was read; what was answered is kept: run the command again")


def _changed(what: str) -> BulkError:
    return BulkError(
        f"the feed has changed since the last run: {what}. --only-changed keeps the answers about rows that are as "
        "they were and asks about the others; --anew asks about all"
    )
