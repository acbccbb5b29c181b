"""Publishes releases without end, to be killed: `python linear_releases.py REPOSITORY`."""

from __future__ import annotations

import itertools
import sys
from pathlib import Path

from repository.configs import RepositoryError
from repository.publish import publish, rollback, staging

ENSEMBLE = """
platform: "ensemble"
ensemble_scheduling {
  step { model_name: "shared" model_version: -1 }
  step { model_name: "own_%s" model_version: -1 }
}
"""


def publish_marked(repository: Path, ensemble: str, mark: str, *, shared: str = "same") -> int:
    """The next release, with an ensemble whose own step, labels and readiness requests bear a mark; its number."""
    with staging(repository) as staged:
        for model, files in (
            ("shared", {"config.pbtxt": "", "1/model.onnx": shared}),
            (f"own_{ensemble}", {"config.pbtxt": "max_batch_size: 1", "1/model.onnx": mark * 1000}),
            (ensemble, {"config.pbtxt": ENSEMBLE % ensemble, "1/.gitkeep": "", "labels.txt": mark}),
        ):
            for name, content in files.items():
                path = staged / model / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(content)
        return publish(repository, staged, {ensemble: {"mark": mark}}).number


def publish_without_end(repository: Path) -> None:
    for count in itertools.count():
        publish_marked(repository, "ab"[count % 2], f"{count}.")
        if count % 5 == 4:
            try:
                rollback(repository)
            except RepositoryError as error:  # a killed command may have left a release with nothing before it
                print(error, file=sys.stderr)


if __name__ == "__main__":
    publish_without_end(Path(sys.argv[1]))
