"""A partition for large indexes: cells of near vectors, of which a search looks at the promising ones only.

An inverted file of 8-bit codes (faiss IVF, SQ8), whose candidates are then compared exactly (search.py). How many rows
have to be scanned is measured, not hoped for: the smallest number that finds 99.5 % of the true first ten for queries
of the kind that will be asked. Texts: they lie off the distribution of the photos. Under a filter that keeps the share
s of the rows, √s as many kept rows are scanned, in as many cells as it takes to meet them (the neighbours wanted lie
farther out, but fewer rows lie between); measured in the same way. The cells need no repair after updates: all rows are
put into them anew. Beside HNSW, RaBitQ and PQ codes: benchmarks/README.md.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import faiss
import numpy as np

from .snapshot import CANDIDATES, PartitionRecord

EXACT_NUMBERS = 2**24
"""Up to so many numbers (65,536 rows of 256) an exact search takes two milliseconds, and nothing else is built."""

RECALL = 0.995
"""Wanted when it is measured; other queries may do a little worse."""
CALIBRATION_QUERIES = 100
CALIBRATION_SHARES = (1.0, 0.5, 0.1, 0.02)
TRAINING_ROWS_A_LIST = 40
FEWEST_CELLS_SCANNED = 16
SCAN_MORE = 1.4
RETRAIN = 1.5


class KeptRows:
    """The rows that a filter keeps, as a partition needs them.

    Args:
        photos: [N] bool.
        cells: [N] the cell of each row.
        lists: how many cells there are.
    """

    def __init__(self, photos: np.ndarray, cells: np.ndarray, lists: int) -> None:
        self.in_cells = np.bincount(cells[photos], minlength=lists)
        self.share = max(int(self.in_cells.sum()), 1) / max(len(photos), 1)
        self._bitmap = np.packbits(photos, bitorder="little")  # faiss keeps a pointer
        self.selector = faiss.IDSelectorBitmap(self._bitmap)


@dataclass(frozen=True)
class Partition:
    """A trained inverted file with all rows in it.

    Attributes:
        index: inverted file; its labels are rows.
        centroids: [L, D] float32.
        cells: [N] int32, the cell of each row.
        sizes: [L] rows in each cell.
        scanned: rows that an unfiltered search scans.
    """

    index: faiss.IndexIVF
    centroids: np.ndarray
    cells: np.ndarray
    sizes: np.ndarray
    scanned: int

    def kept(self, photos: np.ndarray) -> KeptRows:
        """What a search needs to know of a filter: [N] bool, which rows it keeps."""
        return KeptRows(photos, self.cells, len(self.centroids))

    def candidates(self, query: np.ndarray, count: int, kept: KeptRows | None = None, effort: int = 1) -> np.ndarray:
        """Rows that are probably the nearest, in no particular order.

        Args:
            query: [D] float32.
            count: rows wanted at most.
            kept: which rows are allowed; None for all.
            effort: how many times the usual number of rows is scanned.
        """
        in_cells, share = (self.sizes, 1.0) if kept is None else (kept.in_cells, kept.share)
        order = np.argsort(-(self.centroids @ query))
        cells = np.searchsorted(in_cells[order].cumsum(), effort * self.scanned * share**0.5) + 1
        parameters = faiss.SearchParametersIVF(
            nprobe=int(min(cells, len(order))), sel=None if kept is None else kept.selector
        )
        rows = self.index.search(query[None], count, params=parameters)[1][0]
        return rows[rows >= 0]


def build_partition(
    vectors: np.ndarray, queries: np.ndarray, before: Path | None, record_before: PartitionRecord | None
) -> tuple[Partition, PartitionRecord]:
    """Puts rows into cells and measures how many have to be scanned.

    Args:
        vectors: [N, D] float32, unit length.
        queries: [Q, D] float32 of the kind that will be asked.
        before: the file of an earlier partition of the same encoder, whose cells are kept while they serve.
        record_before: what was recorded of it.
    """
    if before is not None and record_before is not None:
        index = faiss.read_index(str(before))
        index.reset()
        _add(index, vectors)
        partition, recall = _calibrated(index, vectors, queries)
        if partition.scanned <= RETRAIN * record_before.trained_scanned and recall >= RECALL:
            return partition, _record(partition, recall, queries, record_before.trained_scanned)
    lists = 2 ** round(np.log2(4 * len(vectors) ** 0.5))
    width, metric = vectors.shape[1], faiss.METRIC_INNER_PRODUCT
    codes = faiss.ScalarQuantizer.QT_8bit
    index = faiss.IndexIVFScalarQuantizer(faiss.IndexFlat(width, metric), width, lists, codes, metric)
    generator = np.random.default_rng(0)
    sample = min(len(vectors), TRAINING_ROWS_A_LIST * lists)
    index.train(vectors[np.sort(generator.choice(len(vectors), sample, replace=False))])
    _add(index, vectors)
    partition, recall = _calibrated(index, vectors, queries)
    return partition, _record(partition, recall, queries, partition.scanned)


def open_partition(path: Path, record: PartitionRecord) -> Partition:
    """Reads a partition that was written with `faiss.write_index`."""
    return _partition(faiss.read_index(str(path)), record.scanned)


def _record(partition: Partition, recall: float, queries: np.ndarray, trained: int) -> PartitionRecord:
    measured = min(len(queries), CALIBRATION_QUERIES)
    return PartitionRecord(partition.index.nlist, partition.scanned, round(recall, 4), measured, trained)


def _partition(index: faiss.IndexIVF, scanned: int) -> Partition:
    cells = np.empty(index.ntotal, np.int32)
    for cell in range(index.nlist):
        size = index.invlists.list_size(cell)
        if size:
            cells[faiss.rev_swig_ptr(index.invlists.get_ids(cell), size)] = cell
    centroids = index.quantizer.reconstruct_n(0, index.nlist)
    return Partition(index, centroids, cells, np.bincount(cells, minlength=index.nlist), scanned)


def _add(index: faiss.IndexIVF, vectors: np.ndarray) -> None:
    for start in range(0, len(vectors), 65_536):
        index.add(np.ascontiguousarray(vectors[start : start + 65_536]))


def _calibrated(index: faiss.IndexIVF, vectors: np.ndarray, queries: np.ndarray) -> tuple[Partition, float]:
    """The least scanning that finds enough, in every case; and the recall of the worst case."""
    generator = np.random.default_rng(1)
    asked = queries[np.sort(generator.permutation(len(queries))[:CALIBRATION_QUERIES])]
    masks = [generator.random(len(vectors)) < share for share in CALIBRATION_SHARES]
    partition = _partition(index, FEWEST_CELLS_SCANNED * -(-len(vectors) // index.nlist))
    worst = 1.0
    for photos, truth in zip(masks, _first_ten(asked, vectors, masks), strict=True):
        kept = None if photos.all() else partition.kept(photos)
        while (recall := _recall(partition, asked, kept, truth)) < RECALL and partition.scanned < len(vectors):
            partition = replace(partition, scanned=min(int(SCAN_MORE * partition.scanned), len(vectors)))
        worst = min(worst, recall)
    return partition, worst


def _first_ten(queries: np.ndarray, vectors: np.ndarray, masks: list[np.ndarray]) -> np.ndarray:
    """[masks, Q, 10] rows, by looking at all that each mask keeps."""
    found = np.empty((len(masks), len(queries), 10), np.int64)
    for start in range(0, len(queries), 20):  # the scores of a million rows take 80 MB
        block = slice(start, start + 20)
        scores = queries[block] @ vectors.T
        for mask, photos in enumerate(masks):
            rows = np.flatnonzero(photos)
            near = np.argpartition(scores[:, rows], len(rows) - 10, axis=1)[:, -10:]
            found[mask, block] = rows[near]
    return found


def _recall(partition: Partition, queries: np.ndarray, kept: KeptRows | None, truth: np.ndarray) -> float:
    """Share of the true rows among the candidates, which a search puts in exact order."""
    found = [
        np.isin(rows, partition.candidates(query, CANDIDATES, kept)).mean()
        for query, rows in zip(queries, truth, strict=True)
    ]
    return float(np.mean(found))
