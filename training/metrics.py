"""Streaming metrics of the categorizer: accuracy, how near the answers are to the truth, and calibration.

Notable: the whole state is one int64 vector of sums (top-1 probabilities enter as multiples of 2⁻³²), so any split
into batches or processes gives bit-identical results, and merging processes is one all-reduce of `counts`. Near means
two things: among the true label's nearest labels by name (`training/labels.py`), and low in the taxonomy (height of
the lowest common ancestor). Sources: the neighbour metrics of semantic-label categorization at Walmart; mistake
severity as in Bertinetto et al., CVPR 2020; expected calibration error, Guo et al., ICML 2017.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

TOP = 5
CALIBRATION_BINS = 15
FIXED_POINT = 2**32

# Places in the vector of sums; after them three runs of CALIBRATION_BINS: rows, right answers and probabilities of
# each bin.
ROWS, TOP_1, TOP_5, NEAR, NEAR_COUNTED, ALL_NEAR, ALL_NEAR_COUNTED, MISTAKE_HEIGHT, BINS = range(9)
STATE_SIZE = BINS + 3 * CALIBRATION_BINS


@dataclass(frozen=True, slots=True)
class CategoryReport:
    """What the metrics found over all rows; shares are between 0 and 1.

    `near_in_top_5` and `all_top_5_near` do not count the label itself as near, the two `…_or_label` do.
    `mistake_height` is the mean taxonomy distance of the wrong top-1 answers; None without a taxonomy or without
    mistakes.
    """

    rows: int
    mistakes: int
    top_1: float
    top_5: float
    near_in_top_5: float
    near_or_label_in_top_5: float
    all_top_5_near: float
    all_top_5_near_or_label: float
    mistake_height: float | None
    calibration_error: float


@dataclass(frozen=True, eq=False, slots=True)
class TaxonomyTable:
    """The tree above some classes as numbers, for distances on the device of the predictions.

    Attributes:
        ancestors: [C, levels] int64; column 0 the root, column l the node above class c at level l, the last one used
            the class itself; −1 beyond. Nodes are the same when name and all parents are.
        heights: [C, levels] int64, edges on the longest way down from that node to a class.
    """

    ancestors: Tensor
    heights: Tensor

    def distance(self, classes_a: Tensor, classes_b: Tensor) -> Tensor:
        """Height of the lowest common ancestor of each pair of classes [B]; [B] int64, 0 for the same class.

        The same number as `catalogue.taxonomy.Taxonomy.height_of_lca`.
        """
        nodes = self.ancestors[classes_a]
        levels_shared = ((nodes == self.ancestors[classes_b]) & (nodes >= 0)).sum(dim=1, keepdim=True)
        height = self.heights[classes_a].gather(1, levels_shared - 1).squeeze(1)
        return torch.where(classes_a == classes_b, 0, height)

    def to(self, device: torch.device | str) -> TaxonomyTable:
        """The same table on another device."""
        return TaxonomyTable(self.ancestors.to(device), self.heights.to(device))


class CategoryMetrics:
    """Running sums over batches of predictions; exact, whatever the batches.

    Args:
        neighbour_ids: [C, K] int, the K nearest labels of every label, the label itself not among them
            (`NeighbourTable.ids[:, 1:]`).
        taxonomy: from `taxonomy_table` of the classes' paths, or None to leave the taxonomy distance out.
        device: where predictions and labels live.

    Attributes:
        counts: the state, [53] int64; sums of two states are the state of all their rows together, so that
            `torch.distributed.all_reduce(metrics.counts)` or `accelerator.reduce(metrics.counts)` merges processes.

    Raises:
        ValueError: on a table of the wrong shape, or one that lists a label as its own neighbour; the message names
            the label.
    """

    def __init__(
        self,
        neighbour_ids: Tensor,
        taxonomy: TaxonomyTable | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        if neighbour_ids.ndim != 2:
            raise ValueError(f"neighbour_ids must be [C, K]; got {tuple(neighbour_ids.shape)}")
        self.classes = neighbour_ids.shape[0]
        self.neighbour_ids = neighbour_ids.to(device=device, dtype=torch.int64)
        beyond = ((self.neighbour_ids < 0) | (self.neighbour_ids >= self.classes)).nonzero()
        if beyond.numel():
            label, value = int(beyond[0, 0]), int(self.neighbour_ids[tuple(beyond[0])])
            raise ValueError(f"neighbour {value} of label {label} is out of range: there are {self.classes} classes")
        own = torch.arange(self.classes, device=device).unsqueeze(1)
        itself = (self.neighbour_ids == own).any(dim=1).nonzero()
        if itself.numel():
            raise ValueError(
                f"label {int(itself[0])} is listed among its own neighbours; leave slot 0 of the table out"
            )
        if taxonomy is not None and taxonomy.ancestors.shape[0] != self.classes:
            raise ValueError(f"the taxonomy has {taxonomy.ancestors.shape[0]} classes, the neighbours {self.classes}")
        self.taxonomy = None if taxonomy is None else taxonomy.to(device)
        self.counts = torch.zeros(STATE_SIZE, dtype=torch.int64, device=device)

    def update(self, logits: Tensor, labels: Tensor) -> None:
        """Add a batch of logits [B, C] with their true labels [B] int64.

        Raises:
            ValueError: on wrong shapes, logits that are not finite (names the row) or a label out of range.
        """
        if logits.ndim != 2 or logits.shape[1] != self.classes:
            raise ValueError(f"logits must be [B, {self.classes}]; got {tuple(logits.shape)}")
        bad = (~torch.isfinite(logits).all(dim=1)).nonzero()
        if bad.numel():
            raise ValueError(f"logits of row {int(bad[0])} are not finite")
        top = logits.topk(min(TOP, self.classes), dim=1)
        wide = logits.double() if logits.dtype == torch.float64 else logits.float()
        probability = torch.exp(top.values[:, 0].to(wide) - wide.logsumexp(dim=1))
        self.update_top(top.indices, probability, labels)

    def update_top(self, top_ids: Tensor, probability: Tensor, labels: Tensor) -> None:
        """Add a batch of ranked answers, as a server returns them.

        Args:
            top_ids: [B, ≥ min(5, C)] int, the classes most probable first; columns beyond the fifth are not read.
            probability: [B] of the first class.
            labels: [B] int64, the true classes.

        Raises:
            ValueError: on wrong shapes, or a label, class or probability out of range; the message names it.
        """
        width = min(TOP, self.classes)
        if top_ids.ndim != 2 or top_ids.shape[1] < width:
            raise ValueError(f"top_ids must be [B, {width}] or wider; got {tuple(top_ids.shape)}")
        rows = top_ids.shape[0]
        if labels.shape != (rows,) or probability.shape != (rows,):
            raise ValueError(
                f"top_ids has {rows} rows, labels are {tuple(labels.shape)}, probability is {tuple(probability.shape)}"
            )
        for name, ids in (("label", labels), ("predicted class", top_ids)):
            wrong = ((ids < 0) | (ids >= self.classes)).nonzero()
            if wrong.numel():
                value = int(ids[tuple(wrong[0])])
                raise ValueError(
                    f"{name} {value} in row {int(wrong[0, 0])} is out of range: there are {self.classes} classes"
                )
        wrong = (~((probability >= 0) & (probability <= 1 + 1e-6))).nonzero()
        if wrong.numel():
            row = int(wrong[0])
            raise ValueError(f"probability {float(probability[row])} in row {row} is not between 0 and 1")

        top_ids = top_ids[:, :width].to(torch.int64)
        labels = labels.to(torch.int64)
        is_label = top_ids == labels.unsqueeze(1)
        is_near = (top_ids.unsqueeze(2) == self.neighbour_ids[labels].unsqueeze(1)).any(dim=2)
        right = is_label[:, 0]

        counts = self.counts
        counts[ROWS] += rows
        counts[TOP_1] += right.sum()
        counts[TOP_5] += is_label.any(dim=1).sum()
        counts[NEAR] += is_near.sum()
        counts[NEAR_COUNTED] += (is_near | is_label).sum()
        counts[ALL_NEAR] += is_near.all(dim=1).sum()
        counts[ALL_NEAR_COUNTED] += (is_near | is_label).all(dim=1).sum()
        if self.taxonomy is not None:
            counts[MISTAKE_HEIGHT] += self.taxonomy.distance(top_ids[:, 0], labels).sum()

        confidence = probability.to(torch.float64)
        bins = (torch.ceil(confidence * CALIBRATION_BINS).to(torch.int64) - 1).clamp(0, CALIBRATION_BINS - 1)
        in_bins = counts[BINS:].view(3, CALIBRATION_BINS)
        in_bins[0].scatter_add_(0, bins, torch.ones_like(bins))
        in_bins[1].scatter_add_(0, bins, right.to(torch.int64))
        in_bins[2].scatter_add_(0, bins, torch.round(confidence * FIXED_POINT).to(torch.int64))

    def merge(self, other: CategoryMetrics) -> None:
        """Add the rows of another process's metrics over the same classes."""
        if other.classes != self.classes:
            raise ValueError(f"metrics of {other.classes} classes cannot be merged into metrics of {self.classes}")
        self.counts += other.counts.to(self.counts.device)

    def report(self) -> CategoryReport:
        """The metrics of all rows so far.

        Raises:
            ValueError: when there were none.
        """
        counts = self.counts.cpu()
        rows = int(counts[ROWS])
        if rows == 0:
            raise ValueError("no rows: the metrics were never updated")
        mistakes = rows - int(counts[TOP_1])
        in_bins = counts[BINS:].view(3, CALIBRATION_BINS).to(torch.float64)
        gaps = (in_bins[1] - in_bins[2] / FIXED_POINT).abs()
        return CategoryReport(
            rows=rows,
            mistakes=mistakes,
            top_1=int(counts[TOP_1]) / rows,
            top_5=int(counts[TOP_5]) / rows,
            near_in_top_5=int(counts[NEAR]) / rows,
            near_or_label_in_top_5=int(counts[NEAR_COUNTED]) / rows,
            all_top_5_near=int(counts[ALL_NEAR]) / rows,
            all_top_5_near_or_label=int(counts[ALL_NEAR_COUNTED]) / rows,
            mistake_height=int(counts[MISTAKE_HEIGHT]) / mistakes if self.taxonomy is not None and mistakes else None,
            calibration_error=float(gaps.sum()) / rows,
        )


def taxonomy_table(paths: Sequence[tuple[str, ...]]) -> TaxonomyTable:
    """The table of some classes, in the order of their paths.

    Raises:
        ValueError: when there is no path or one is empty; the message names the class.
    """
    if not paths:
        raise ValueError("a taxonomy needs at least one path")
    nodes: dict[tuple[str, ...], int] = {}
    height: dict[tuple[str, ...], int] = {}
    for c, path in enumerate(paths):
        if not path:
            raise ValueError(f"the path of class {c} is empty")
        for level in range(len(path) + 1):
            node = path[:level]
            nodes.setdefault(node, len(nodes))
            height[node] = max(height.get(node, 0), len(path) - level)
    shape = (len(paths), max(map(len, paths)) + 1)
    ancestors = torch.full(shape, -1, dtype=torch.int64)
    heights = torch.zeros(shape, dtype=torch.int64)
    for c, path in enumerate(paths):
        for level in range(len(path) + 1):
            ancestors[c, level] = nodes[path[:level]]
            heights[c, level] = height[path[:level]]
    return TaxonomyTable(ancestors, heights)
