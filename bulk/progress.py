"""One line on a terminal that says how far a job is, how fast, and when it will be done; nothing anywhere else."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from catalogue.feed import Feed

from .job import Progress, Show


@contextmanager
def shown(feed: Feed) -> Iterator[Show]:
    """A function that shows a job's progress. The rows of the feed are counted for it, on a terminal alone."""
    if not sys.stderr.isatty():
        yield lambda _: None
        return
    figures = TextColumn("{task.fields[rate]}  {task.fields[rejected]} rejected  ETA")
    columns = (MofNCompleteColumn(), BarColumn(), figures, TimeRemainingColumn())
    with Bar(*columns, console=Console(stderr=True), speed_estimate_period=60) as bar:
        task = bar.add_task("rows", total=feed.row_count(), rate="", rejected=0)

        def show(done: Progress) -> None:
            reached = max(int(bar.tasks[0].completed), done.rows + done.under_way)
            bar.update(task, completed=reached, rejected=done.rejected)
            speed = bar.tasks[0].speed
            bar.update(task, rate="" if speed is None else f"{speed:,.0f}/s")

        yield show
