"""Runs benchmarks: `python benchmarks/run.py SUITE [--quick] [--out DIR]`, from a bare checkout.

Each suite is imported only when it is asked for, so that it needs its own dependencies and no others (kernels: torch
and triton). Results go to --out as JSON, tables to the terminal. `compare A B` sets two runs side by side, `tables`
brings the READMEs up to date.
"""

from __future__ import annotations

import argparse
import importlib
import sys
import time
import traceback
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SUITES: dict[str, tuple[str, ...]] = {
    "kernels": ("benchmarks.kernels.label_kl", "benchmarks.kernels.matcher", "benchmarks.kernels.label_kl_cpu"),
    "serving": ("benchmarks.serving.suite", "benchmarks.serving.colours"),
    "export": ("benchmarks.export.categorize", "benchmarks.export.match_colours", "benchmarks.export.speed"),
    "training": ("benchmarks.training.throughput", "benchmarks.growth.growth"),
    "index": ("benchmarks.index.search",),
    "bulk": ("benchmarks.bulk.suite",),
    "quality": (
        "benchmarks.quality.labels",
        "benchmarks.quality.neighbours",
        "benchmarks.quality.shapes",
        "benchmarks.quality.colours",
        "benchmarks.quality.fashionbert",
        "benchmarks.quality.answers",
        "benchmarks.quality.colour_folds",
        "benchmarks.quality.retrieval",
        "benchmarks.quality.kagl",
    ),
}
"""Suite -> modules with a function main(quick, output)."""
INSTALL = "pip install -c constraints.txt -e '.[dev]'"
INSTALL_KERNELS = "pip install torch triton"


def run_suite(suite: str, only: str | None, *, quick: bool, output: Path) -> list[str]:
    """Runs the modules of a suite, or the one that is called `only`. Returns what went wrong, a sentence a module."""
    modules = [module for module in SUITES[suite] if only in (None, module.rpartition(".")[2])]
    failures = []
    for module in modules:
        print(f"== {suite}: {module}", flush=True)
        begin = time.perf_counter()
        try:
            importlib.import_module(module).main(quick=quick, output=output)
        except ImportError as error:
            how = INSTALL_KERNELS if suite == "kernels" else INSTALL
            failures.append(f"{module} needs {error.name or error}, which is not installed: {how}")
        except Exception as error:  # one suite that fails must not cost the others
            traceback.print_exc()
            failures.append(f"{module} failed: {type(error).__name__}: {error}")
        print(f"== {suite}: {module} took {time.perf_counter() - begin:.0f} s", flush=True)
    return failures


def main() -> None:
    """Parse the command line and do what it asks."""
    parser = argparse.ArgumentParser(prog="python benchmarks/run.py", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="SUITE")
    for suite in (*SUITES, "all"):
        modules = ", ".join(module.rpartition(".")[2] for module in SUITES.get(suite, ())) or "every suite"
        command = commands.add_parser(suite, help=modules)
        command.add_argument("--quick", action="store_true", help="fewer sizes and repetitions: minutes, not tens")
        command.add_argument(
            "--out", type=Path, default=ROOT / "benchmarks" / "results", metavar="DIR", help="folder for the results"
        )
        command.add_argument("--suite", dest="only", metavar="NAME", help="only the module of this name")
    comparison = commands.add_parser("compare", help="ratios of two runs, changes beyond their noise flagged")
    comparison.add_argument("before", type=Path, help="a JSON file of results, or a folder of them")
    comparison.add_argument("after", type=Path)
    commands.add_parser("tables", help="write the tables of the READMEs from benchmarks/results")
    arguments = parser.parse_args()
    sys.path.insert(0, str(ROOT))

    if arguments.command == "compare":
        from benchmarks.compare import compare

        try:
            sys.exit(1 if compare(arguments.before, arguments.after) else 0)
        except (ValueError, OSError) as error:
            sys.exit(str(error))
    if arguments.command == "tables":
        from benchmarks.tables import write_pages

        write_pages()
        return
    suites = SUITES if arguments.command == "all" else (arguments.command,)
    names = [module.rpartition(".")[2] for suite in suites for module in SUITES[suite]]
    if arguments.only not in (None, *names):
        parser.error(f"{arguments.command} has no module {arguments.only!r}; it has {', '.join(names)}")
    failures = [
        failure
        for suite in suites
        for failure in run_suite(suite, arguments.only, quick=arguments.quick, output=arguments.out)
    ]
    if failures:
        sys.exit("\n".join(failures))


if __name__ == "__main__":
    main()
