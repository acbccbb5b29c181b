"""Runs a suite of benchmarks: `python benchmarks/run.py SUITE [--quick]`, from a bare checkout.

Each suite is imported only when it is asked for, so that it needs its own dependencies and no others
(kernels: torch and triton). Results go to benchmarks/results/ as JSON, tables to the terminal.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SUITES: dict[str, tuple[str, ...]] = {
    "kernels": ("benchmarks.kernels.label_kl", "benchmarks.kernels.matcher"),
    "serving": ("benchmarks.serving.colours",),
    "export": ("benchmarks.export.categorize",),
    "quality": (
        "benchmarks.quality.labels",
        "benchmarks.quality.neighbours",
        "benchmarks.quality.shapes",
        "benchmarks.quality.colours",
    ),
}
"""Suite -> modules with a function main(quick, output)."""


def main() -> None:
    """Parse the command line and run the suite's modules in order."""
    parser = argparse.ArgumentParser(prog="python benchmarks/run.py", description=__doc__)
    parser.add_argument("suite", choices=sorted(SUITES))
    parser.add_argument("--quick", action="store_true", help="fewer sizes and repetitions: minutes, not tens of them")
    parser.add_argument(
        "--output", type=Path, default=ROOT / "benchmarks" / "results", help="folder for the JSON files"
    )
    arguments = parser.parse_args()
    sys.path.insert(0, str(ROOT))
    for module in SUITES[arguments.suite]:
        importlib.import_module(module).main(quick=arguments.quick, output=arguments.output)


if __name__ == "__main__":
    main()
