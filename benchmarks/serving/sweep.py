"""Which scheduling suits this machine: model instances × intra-op threads × longest queue delay, each on a server.

Each pair of instances and threads is also run under Triton's rate limiter with one resource that every model wants:
the steps take turns, each with all cores, and what arrives meanwhile makes the next batch. Only combinations with
instances × threads ≤ cores are tried: more threads than cores is the commonest way to make Triton slow on a CPU. The
recommendation is the highest throughput at concurrency 8 among the settings whose median at concurrency 1 is within a
tenth of the best, written as the fragment to put into categorizer/config.pbtxt.
"""

from __future__ import annotations

import itertools
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from google.protobuf import text_format
from tritonclient.grpc.model_config_pb2 import ModelConfig

from benchmarks.serving.load import closed_loop
from benchmarks.serving.subjects import Subject
from benchmarks.serving.targets import GrpcTarget
from repository.configs import is_ensemble
from repository.release import RELEASE_FILE
from serving.server import TritonServer

MODEL = "categorizer"
DELAYS_MICROSECONDS = (0, 2000)
LATENCY_SLACK = 1.10
RATE_LIMIT = "--rate-limit=execution_count"


@dataclass(frozen=True)
class Setting:
    """Of the model that computes."""

    instances: int
    threads: int
    delay_microseconds: int
    in_turns: bool = False

    def apply(self, config: ModelConfig) -> None:
        """Write the setting into the model's configuration."""
        del config.instance_group[:]
        config.instance_group.add(count=self.instances)
        if self.in_turns:
            take_turns(config)
        config.parameters["intra_op_thread_count"].string_value = str(self.threads)
        config.dynamic_batching.max_queue_delay_microseconds = self.delay_microseconds

    def fragment(self) -> str:
        """The setting as text protobuf."""
        config = ModelConfig()
        self.apply(config)
        text = text_format.MessageToString(config)
        text = text if self.delay_microseconds else text.replace("  max_queue_delay_microseconds: 0\n", "")
        if self.in_turns:
            text = f"# The rate limiter in every model; serve with --triton-option={RATE_LIMIT}\n{text}"
        return text


def take_turns(config: ModelConfig) -> None:
    """Let a model's instances run only while no other model that takes turns does, under --rate-limit."""
    for group in config.instance_group:
        resource = group.rate_limiter.resources.add(name="turn", count=1)
        setattr(resource, "global", True)  # a word of Python's


def settings(quick: bool) -> list[Setting]:
    """What is tried on this machine's cores."""
    cores = len(os.sched_getaffinity(0))
    counts = sorted({1, cores})
    pairs = [(instances, threads) for instances, threads in itertools.product(counts, counts)]
    fitting = [pair for pair in pairs if pair[0] * pair[1] <= cores]
    delays = DELAYS_MICROSECONDS[:1] if quick else DELAYS_MICROSECONDS
    free = [Setting(*pair, delay) for pair in fitting for delay in delays]
    # In turns a second instance never has anything to do.
    return free + [Setting(*pair, 0, in_turns=True) for pair in fitting if pair[0] == 1]


def measure(subject: Subject, seconds: float, quick: bool) -> Iterator[dict[str, Any]]:
    """A row a setting, then the recommendation."""
    images = [product.images[0] for product in subject.products]
    titles = [product.title for product in subject.products]
    rows: list[dict[str, Any]] = []
    for setting in settings(quick):
        row: dict[str, Any] = {"measured": "sweep", "subject": subject.name, **vars(setting)}
        try:
            row |= _measure_setting(subject, setting, images, titles, seconds)
            rows.append(row)
        except Exception as error:  # this setting's server failed, the others are still of interest
            row["error"] = str(error)
        yield row
    if rows:
        yield recommendation(subject, rows)


def recommendation(subject: Subject, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The setting to use here, as a row with its fragment of configuration."""
    quickest = min(row["p50_at_1_ms"] for row in rows)
    quick_ones = [row for row in rows if row["p50_at_1_ms"] <= LATENCY_SLACK * quickest]
    best = max(quick_ones, key=lambda row: row["products_per_second_at_8"])
    setting = Setting(best["instances"], best["threads"], best["delay_microseconds"], best["in_turns"])
    return {
        "measured": "sweep, recommended",
        "subject": subject.name,
        **vars(setting),
        "fragment": setting.fragment(),
    }


def _measure_setting(
    subject: Subject, setting: Setting, images: list[bytes], titles: list[str], seconds: float
) -> dict[str, float]:
    with tempfile.TemporaryDirectory(prefix="sweep-") as folder:
        repository = Path(folder) / "model_repository"
        shutil.copytree(subject.repository, repository, ignore=shutil.ignore_patterns(RELEASE_FILE))  # to be changed
        path = repository / MODEL / "config.pbtxt"
        config = text_format.Parse(path.read_text(), ModelConfig())
        setting.apply(config)
        path.write_text(text_format.MessageToString(config))
        options: list[str] = []
        if setting.in_turns:
            options = [RATE_LIMIT]
            for path in repository.glob("*/config.pbtxt"):
                config = text_format.Parse(path.read_text(), ModelConfig())
                if path.parent.name != MODEL and not is_ensemble(config):
                    take_turns(config)
                    path.write_text(text_format.MessageToString(config))
        log = Path(folder) / "triton.log"
        with TritonServer(repository, grpc_port=0, metrics_port=0, log_file=log, triton_options=options) as server:
            assert server.process is not None
            target = GrpcTarget("triton", server.url, server.process.pid)
            requests = [target.prepare([image], [title]) for image, title in zip(images, titles, strict=True)]
            closed_loop(target, requests, 1, 8, seconds / 2)
            alone = closed_loop(target, requests, 1, 1, seconds).figures()
            together = closed_loop(target, requests, 1, 8, seconds).figures()
    return {
        "p50_at_1_ms": float(alone["p50_ms"]),
        "p50_at_8_ms": float(together["p50_ms"]),
        "products_per_second_at_8": float(together["products_per_second"]),
    }
