"""A rival under the loads that Triton gets, in the same rounds."""

from __future__ import annotations

from dataclasses import dataclass, field

from benchmarks.serving.correctness import mistake
from benchmarks.serving.pipeline import Answers, Embeddings
from benchmarks.serving.rival_servers import Rival, running
from benchmarks.serving.rounds import Load, Row
from benchmarks.serving.traffic import Traffic


@dataclass
class RivalLoads:
    """A rival under its loads. It runs only while it is measured, once a round, so that its rounds lie as far apart as
    Triton's and a slow minute of the machine hits both.
    """

    rival: Rival
    traffic: Traffic
    expected: Answers | Embeddings
    loads: list[Load] = field(default_factory=list)
    error: str = ""

    def measure(self) -> None:
        """One round; its answers are checked in the first. After a failure the rival is left alone."""
        if self.error:
            return
        try:
            with running(self.rival, self.traffic.subject) as target:
                if not self.loads and (found := mistake(target, self.traffic.products, self.expected)):
                    self.error = f"wrong: {found}"
                    return
                again = [
                    self.traffic.closed(target, concurrency) for concurrency in self.traffic.plan.rival_concurrencies
                ]
                self.loads = self.loads or again
                for load, now in zip(self.loads, again, strict=True):
                    load.run = now.run  # the process is another one
                    load.measure()
        except Exception as error:  # not installed, did not start, died
            self.error = str(error)

    def rows(self) -> list[Row]:
        """A row a load, or one that says why there are none."""
        if self.error:
            subject, server = self.traffic.subject.name, self.rival.name
            return [{"measured": "load", "subject": subject, "server": server, "error": self.error}]
        return [load.row() for load in self.loads]
