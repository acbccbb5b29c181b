"""The same job on Ray Data: read and hash, decode, compute are stages of their own; the same parts, the same bytes.

One task reads the feed, on the driver's node, and hands on whole requests, so that a request holds the same rows as
without Ray; actors decode its images to pixels of the model's size, others, which load the model once, answer. Requests
come back in order, and the driver makes parts of them as `job.py` does: what is known, kept and asked again is decided
there, not by Ray. An error travels as what a stage returns, since Ray would give it a stack trace for a sentence.
Source: https://docs.ray.io/en/latest/data, "Custom datasources", "Stateful transforms".
"""

from __future__ import annotations

import importlib
import io
import json
import logging
import pickle
import warnings
from collections.abc import Iterable, Iterator
from itertools import groupby, islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import ray
from PIL import Image
from ray.data import ActorPoolStrategy, DataContext
from ray.data.block import BlockMetadata
from ray.data.datasource import Datasource, ReadTask
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from client import ShelfwiseClient, ShelfwiseError, StreamOptions
from repository.configs import DIGEST, newest_version, read_config, step_names

from .in_process import InProcessConnection, import_path
from .job import Job, Progress, Questions, Show, finish, plan
from .parts import BulkError, Earlier, Row
from .systems import BulkSystem, system_named

REQUESTS_A_BLOCK = 8
COLUMN = "request"


def run_on_ray(
    job: Job, release: Path, show: Show, *, address: str | None, workers: int | None, batch_size: int
) -> Progress:
    """Does a job with a release on a cluster, or on this machine.

    Args:
        release: folder of a release, at the same path on every node.
        show: called after every block.
        address: of a cluster that runs; None starts one here.
        workers: actors that decode, and as many that compute; a core for two of them. None: one for every core.
        batch_size: rows a request.

    Raises:
        BulkError, ShelfwiseError, FeedError, OSError: as `run_with_client`.
    """
    system = system_named(job.system)
    model = read_config(system.ensemble, release).parameters[DIGEST].string_value
    if not model:
        raise BulkError(f"{release} was made before releases had a digest: export it again")
    if not ray.is_initialized():
        local: dict[str, Any] = {"include_dashboard": False, "num_cpus": workers} if address is None else {}
        ray.init(address=address or "local", log_to_driver=False, logging_level=logging.ERROR, **local)
    actors = ActorPoolStrategy(size=workers or max(1, int(ray.cluster_resources()["CPU"])))
    context = DataContext.get_current()
    context.execution_options.preserve_order = True
    context.enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    # One task reads, on purpose.
    warnings.filterwarnings("ignore", "The minimum number of concurrent actors", UserWarning)
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    done = Progress()
    with job.results(model) as results:
        feed = FeedRequests(job, system, model, batch_size, results.earlier)
        requests = (
            ray.data.read_datasource(feed, override_num_blocks=1, num_cpus=0, scheduling_strategy=here)
            .map(Decode, fn_constructor_args=(release, system.ensemble), compute=actors, num_cpus=0.5)
            .map(Answer, fn_constructor_args=(release, job, batch_size), compute=actors, num_cpus=0.5)
        )
        finish(job.feed, results, _blocks(requests.iter_rows()), done, show)
    return done


def _blocks(requests: Iterable[dict[str, bytes]]) -> Iterator[list[Row]]:
    rows = (row for request in requests for row in _received(request))
    for _, block in groupby(rows, key=lambda row: row.block):
        yield list(block)


def _received(request: dict[str, bytes]) -> list[Row]:
    """The rows of a request; raises what a stage found."""
    received = pickle.loads(request[COLUMN])
    if isinstance(received, Exception):
        raise received
    return received  # type: ignore[no-any-return]


class FeedRequests(Datasource):
    """The plan of a job, a row of Ray's a request of its rows, read by one task."""

    def __init__(self, job: Job, system: BulkSystem, model: str, batch_size: int, earlier: Earlier) -> None:
        self._arguments = (job.feed, job.system, model, job.part_rows, earlier)
        self._batch_size = batch_size

    def estimate_inmemory_data_size(self) -> int | None:
        return None

    def get_read_tasks(self, parallelism: int, *more: Any, **named: Any) -> list[ReadTask]:
        unknown = BlockMetadata(num_rows=None, size_bytes=None, input_files=None, exec_stats=None)
        return [ReadTask(self._read, unknown)]

    def _read(self) -> Iterator[pa.Table]:
        requests = self._requests()
        while some := list(islice(requests, REQUESTS_A_BLOCK)):
            yield pa.table({COLUMN: pa.array([pickle.dumps(request) for request in some], pa.large_binary())})

    def _requests(self) -> Iterator[list[Row] | Exception]:
        feed, system, model, part_rows, earlier = self._arguments
        try:
            rows = plan(feed, system_named(system), model, part_rows, earlier)
            for _, block in groupby(rows, key=lambda row: row.block):
                request: list[Row] = []
                asked = 0
                for row in block:
                    request.append(row)
                    asked += row.item is not None
                    if asked == self._batch_size:
                        yield request
                        request, asked = [], 0
                yield request
        except (ValueError, OSError) as error:
            yield error


class Decode:
    """Image files to files that hold the pixels that the model wants; those that cannot be read stay as they are."""

    def __init__(self, release: Path, ensemble: str) -> None:
        folder = newest_version(release / step_names(read_config(ensemble, release))[0])
        assert folder is not None
        sizes = json.loads((folder / "preprocessing.json").read_text())
        self._size = sizes["height"], sizes["width"]
        with import_path(folder):
            self._images: Any = importlib.import_module("images")

    def __call__(self, request: dict[str, bytes]) -> dict[str, bytes]:
        rows = pickle.loads(request[COLUMN])
        for row in rows if isinstance(rows, list) else ():
            if row.item is not None:
                row.item = tuple(self._decoded(part) if isinstance(part, bytes) else part for part in row.item)
        return {COLUMN: pickle.dumps(rows)}

    def _decoded(self, image: bytes) -> bytes:
        try:
            pixels = self._images.decode_image(image, *self._size)
        except self._images.ImageError:
            return image
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "BMP")
        return file.getvalue()


class Answer:
    """An actor with the model."""

    def __init__(self, release: Path, job: Job, batch_size: int) -> None:
        self._system = system_named(job.system)
        self._k = job.k
        self._client = ShelfwiseClient(InProcessConnection(release, self._system.ensemble))
        self._options = StreamOptions(batch_size=batch_size, in_flight=1)

    def __call__(self, request: dict[str, bytes]) -> dict[str, bytes]:
        try:
            questions = Questions(_received(request), self._system, self._client, self._k, self._options)
            return {COLUMN: pickle.dumps(questions.answers())}
        except (ShelfwiseError, ValueError, OSError) as error:
            return {COLUMN: pickle.dumps(error)}
