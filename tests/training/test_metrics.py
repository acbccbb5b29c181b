"""Metrics of the categorizer against a brute-force count, row by row in plain Python."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from catalogue.taxonomy import Taxonomy
from training.metrics import CategoryMetrics, taxonomy_table

PATHS = [
    ("Apparel", "Topwear", "Tshirts"),
    ("Apparel", "Topwear", "Shirts"),
    ("Apparel", "Bottomwear", "Jeans"),
    ("Apparel", "Sarees"),
    ("Footwear", "Shoes", "Flats"),
    ("Footwear", "Shoes", "Heels"),
    ("Footwear", "Sandals"),
    ("Home",),
    ("Accessories", "Shoes", "Laces"),
]
CLASSES = len(PATHS)


def neighbours_for(classes: int, width: int, seed: int) -> torch.Tensor:
    generator = np.random.default_rng(seed)
    rows = [generator.permutation([j for j in range(classes) if j != c])[:width] for c in range(classes)]
    return torch.from_numpy(np.array(rows, dtype=np.int32))


def brute_force(logits: np.ndarray, labels: np.ndarray, neighbours: np.ndarray) -> dict[str, float | None]:
    logits = logits.astype(np.float64)
    sums = dict.fromkeys(
        ("top_1", "top_5", "near_in_top_5", "near_or_label_in_top_5", "all_top_5_near", "all_top_5_near_or_label"), 0.0
    )
    heights: list[int] = []
    bins: list[list[tuple[float, bool]]] = [[] for _ in range(15)]
    for row, label in zip(logits, labels, strict=True):
        top = sorted(range(len(row)), key=lambda j: -row[j])[:5]
        near = set(neighbours[label].tolist())
        sums["top_1"] += top[0] == label
        sums["top_5"] += label in top
        sums["near_in_top_5"] += len([j for j in top if j in near])
        sums["near_or_label_in_top_5"] += len([j for j in top if j in near or j == label])
        sums["all_top_5_near"] += all(j in near for j in top)
        sums["all_top_5_near_or_label"] += all(j in near or j == label for j in top)
        if top[0] != label:
            heights.append(Taxonomy(PATHS).height_of_lca(PATHS[top[0]], PATHS[label]))
        probability = float(np.exp(row[top[0]] - row.max()) / np.exp(row - row.max()).sum())
        for b in range(15):
            if b / 15 < probability <= (b + 1) / 15 or (b == 14 and probability > 1):
                bins[b].append((probability, top[0] == label))
    count = len(labels)
    error = sum(len(b) / count * abs(np.mean([p for p, _ in b]) - np.mean([r for _, r in b])) for b in bins if b)
    result: dict[str, float | None] = {name: value / count for name, value in sums.items()}
    result["mistake_height"] = float(np.mean(heights)) if heights else None
    result["calibration_error"] = float(error)
    return result


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(1, 40), width=st.integers(1, CLASSES - 1), scale=st.floats(0.1, 8.0), seed=st.integers(0, 10**6)
)
def test_report_equals_a_brute_force_count(rows: int, width: int, scale: float, seed: int) -> None:
    generator = np.random.default_rng(seed)
    logits = generator.normal(scale=scale, size=(rows, CLASSES))
    labels = generator.integers(0, CLASSES, size=rows)
    neighbours = neighbours_for(CLASSES, width, seed)

    metrics = CategoryMetrics(neighbours, taxonomy_table(PATHS))
    metrics.update(torch.from_numpy(logits), torch.from_numpy(labels))

    report = metrics.report()
    assert report.rows == rows
    for name, expected in brute_force(logits, labels, neighbours.numpy()).items():
        found = getattr(report, name)
        assert found == expected or math.isclose(found, expected, abs_tol=2e-9), name


@settings(max_examples=30, deadline=None)
@given(cuts=st.lists(st.integers(0, 64), max_size=5), seed=st.integers(0, 10**6))
def test_any_split_into_batches_and_processes_gives_the_same_bits(cuts: list[int], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(64, CLASSES, generator=generator) * 3
    labels = torch.randint(0, CLASSES, (64,), generator=generator)
    neighbours = neighbours_for(CLASSES, 3, seed)
    at_once = CategoryMetrics(neighbours, taxonomy_table(PATHS))
    at_once.update(logits, labels)

    bounds = [0, *sorted(cuts), 64]
    processes = [CategoryMetrics(neighbours, taxonomy_table(PATHS)) for _ in range(2)]
    for part, (start, stop) in enumerate(itertools.pairwise(bounds)):
        processes[part % 2].update(logits[start:stop], labels[start:stop])
    processes[1].merge(processes[0])

    assert torch.equal(processes[1].counts, at_once.counts)
    assert processes[1].report() == at_once.report()


def test_ranked_answers_of_a_server_count_like_logits() -> None:
    logits = torch.randn(200, CLASSES, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(200) % CLASSES
    from_logits, from_answers = (
        CategoryMetrics(neighbours_for(CLASSES, 4, 0), taxonomy_table(PATHS)) for _ in range(2)
    )
    from_logits.update(logits, labels)
    probability = logits.softmax(dim=1)
    ranked = probability.topk(7, dim=1)
    from_answers.update_top(ranked.indices.to(torch.int32), ranked.values[:, 0], labels)
    assert from_answers.report().near_in_top_5 == from_logits.report().near_in_top_5
    assert from_answers.report().calibration_error == pytest.approx(from_logits.report().calibration_error, abs=1e-7)


def test_fewer_than_five_classes_rank_all_of_them() -> None:
    metrics = CategoryMetrics(torch.tensor([[1], [0], [1]]))
    metrics.update(torch.tensor([[3.0, 2.0, 1.0], [3.0, 2.0, 1.0]]), torch.tensor([0, 2]))
    report = metrics.report()
    assert report.top_5 == 1.0
    assert report.near_or_label_in_top_5 == 2.0
    assert report.all_top_5_near_or_label == 0.0
    assert report.mistake_height is None


def test_calibration_error_of_a_network_that_is_always_sure_is_its_error_rate() -> None:
    metrics = CategoryMetrics(neighbours_for(CLASSES, 2, 0))
    logits = torch.zeros(10, CLASSES)
    logits[:, 0] = 200.0
    metrics.update(logits, torch.tensor([0] * 7 + [1] * 3))
    assert metrics.report().calibration_error == pytest.approx(0.3, abs=1e-12)


def test_half_precision_logits_are_scored_in_float32() -> None:
    logits = (torch.randn(50, CLASSES, generator=torch.Generator().manual_seed(1)) * 4).bfloat16()
    labels = torch.arange(50) % CLASSES
    half, full = (CategoryMetrics(neighbours_for(CLASSES, 4, 0)) for _ in range(2))
    half.update(logits, labels)
    full.update(logits.float(), labels)
    assert torch.equal(half.counts, full.counts)


def test_a_name_under_two_parents_is_two_nodes() -> None:
    flats, laces = PATHS.index(("Footwear", "Shoes", "Flats")), PATHS.index(("Accessories", "Shoes", "Laces"))
    assert taxonomy_table(PATHS).distance(torch.tensor([flats]), torch.tensor([laces])).tolist() == [3]


@settings(max_examples=60, deadline=None)
@given(st.sets(st.lists(st.sampled_from("ABC"), min_size=1, max_size=4).map(tuple), min_size=1, max_size=25))
def test_distance_is_that_of_the_catalogue(paths: set[tuple[str, ...]]) -> None:
    taxonomy = Taxonomy(paths)
    table = taxonomy_table(taxonomy.paths)
    every = torch.arange(len(taxonomy))
    for c, path in enumerate(taxonomy.paths):
        expected = [taxonomy.height_of_lca(path, other) for other in taxonomy.paths]
        assert table.distance(every.new_full((len(taxonomy),), c), every).tolist() == expected


@pytest.mark.parametrize(
    ("logits", "labels", "said"),
    [
        (torch.zeros(2, CLASSES), torch.tensor([0, CLASSES]), f"label {CLASSES} in row 1"),
        (torch.zeros(2, CLASSES), torch.tensor([-1, 0]), "label -1 in row 0"),
        (torch.full((2, CLASSES), float("nan")), torch.tensor([0, 0]), "row 0"),
        (torch.zeros(2, CLASSES + 1), torch.tensor([0, 0]), rf"\[B, {CLASSES}\]"),
        (torch.zeros(2, CLASSES), torch.tensor([0]), "2 rows"),
    ],
)
def test_bad_input_is_named(logits: torch.Tensor, labels: torch.Tensor, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        CategoryMetrics(neighbours_for(CLASSES, 2, 0)).update(logits, labels)


def test_bad_answers_and_tables_are_named() -> None:
    metrics = CategoryMetrics(neighbours_for(CLASSES, 2, 0))
    top = torch.arange(5).unsqueeze(0)
    with pytest.raises(ValueError, match=r"probability 1\.5 in row 0"):
        metrics.update_top(top, torch.tensor([1.5]), torch.tensor([0]))
    with pytest.raises(ValueError, match="predicted class 9 in row 0"):
        metrics.update_top(top + 8, torch.tensor([0.5]), torch.tensor([0]))
    with pytest.raises(ValueError, match="label 2 is listed among its own neighbours"):
        CategoryMetrics(torch.tensor([[1], [0], [2]]))
    with pytest.raises(ValueError, match="neighbour 3 of label 1 is out of range"):
        CategoryMetrics(torch.tensor([[1], [3], [1]]))
    with pytest.raises(ValueError, match="no rows"):
        metrics.report()
