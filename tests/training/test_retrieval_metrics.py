"""Retrieval figures against a float64 reference that ranks in every order in which ties can be broken."""

from itertools import permutations

import numpy as np
import pytest

from training import retrieval_metrics
from training.retrieval_metrics import retrieval_report, sampled_report, sum_of_recalls


def reference(scores: np.ndarray, relevant: list[list[int]]) -> dict[str, float]:
    """Means over queries and over all orders of the documents."""
    figures = []
    for row, found in zip(scores, relevant, strict=True):
        if not found:
            continue
        for order in permutations(range(len(row))):
            ranking = [order[place] for place in np.argsort(-row[list(order)], kind="stable")]
            ranks = sorted(ranking.index(document) + 1 for document in found)
            hits = np.array([sum(rank <= k for rank in ranks) for k in (1, 5, 10)])
            figures.append(np.concatenate([hits / len(found), hits / (1, 5, 10), [1 / ranks[0]]]))
    names = ("r1", "r5", "r10", "p1", "p5", "p10", "mrr")
    return dict(zip(names, np.mean(figures, axis=0), strict=True))


def unit(generator: np.random.Generator, rows: int, width: int) -> np.ndarray:
    vectors = generator.standard_normal((rows, width)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def flat(report: retrieval_metrics.RetrievalReport) -> dict[str, float]:
    return {
        **{f"r{k}": value for k, value in report.recall.items()},
        **{f"p{k}": value for k, value in report.precision.items()},
        "mrr": report.mrr,
    }


@pytest.mark.parametrize("seed", range(6))
def test_figures_are_the_means_over_all_ways_to_break_ties(seed: int) -> None:
    generator = np.random.default_rng(seed)
    # Few values in one dimension: most scores are tied.
    queries = generator.integers(1, 3, (5, 1)).astype(np.float32)
    documents = generator.integers(0, 3, (7, 1)).astype(np.float32)
    relevant = [sorted(generator.choice(7, size, replace=False).tolist()) for size in (1, 2, 3, 0, 5)]
    expected = reference(queries.astype(np.float64) @ documents.T.astype(np.float64), relevant)
    actual = retrieval_report(queries, documents, relevant)
    assert actual.queries == 4
    assert flat(actual) == pytest.approx(expected)


def test_embeddings_that_are_all_equal_score_like_a_guess() -> None:
    same = np.ones((40, 8), np.float32)
    report = retrieval_report(same, same, [[row] for row in range(40)])
    assert report.recall[1] == pytest.approx(1 / 40)
    assert report.recall[10] == pytest.approx(10 / 40)
    assert report.mrr == pytest.approx(sum(1 / rank for rank in range(1, 41)) / 40)


def test_figures_do_not_depend_on_the_block(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(0)
    queries, documents = unit(generator, 50, 16), unit(generator, 80, 16)
    relevant = [[row, (7 * row) % 80] if row % 9 else [row] for row in range(50)]
    whole = retrieval_report(queries, documents, relevant)
    monkeypatch.setattr(retrieval_metrics, "BLOCK_SCORES", 3 * 80)
    assert flat(retrieval_report(queries, documents, relevant)) == pytest.approx(flat(whole))


def test_equal_rows_are_ties_in_float32_too() -> None:
    generator = np.random.default_rng(1)
    documents = unit(generator, 1, 256).repeat(1001, 0)  # the last ones fall into other tiles
    queries = unit(generator, 33, 256)
    assert retrieval_report(queries, documents, [[1000]] * 33).recall[1] == pytest.approx(1 / 1001)


def test_sampled_candidates_are_of_the_same_group() -> None:
    # 150 rows of two groups; a query agrees with all rows of the other group better than with its own.
    groups = ["a"] * 120 + ["b"] * 130
    documents = np.eye(250)
    other = np.array([[group != own for group in groups] for own in groups], np.float32)
    sampled = sampled_report(np.eye(250) + 2 * other, documents, groups)
    assert sampled["recall_at_1"].mean == 1.0
    full = retrieval_report(np.eye(250) + 2 * other, documents, [[row] for row in range(250)])
    assert full.recall[10] == 0.0


def test_sampled_figures_approach_those_of_a_hundred_and_one_candidates() -> None:
    same = np.ones((400, 4), np.float32)
    sampled = sampled_report(same, same, ["x"] * 400, draws=3)
    assert sampled["recall_at_10"].mean == pytest.approx(10 / 101)
    assert sampled["recall_at_10"].deviation == pytest.approx(0)


def test_a_small_group_is_filled_from_all_rows() -> None:
    sampled = sampled_report(np.eye(150), np.eye(150), ["rare"] * 3 + ["common"] * 147)
    assert sampled["recall_at_1"].mean == 1.0
    with pytest.raises(ValueError, match="100 rows"):
        sampled_report(np.eye(100), np.eye(100), ["x"] * 100)


def test_sum_of_recalls_adds_both_directions_in_percent() -> None:
    report = retrieval_report(np.eye(20), np.eye(20), [[row] for row in range(20)])
    assert sum_of_recalls([report, report]) == pytest.approx(600)


def test_bad_input_is_refused() -> None:
    good = np.eye(4)
    with pytest.raises(ValueError, match="documents are not finite"):
        retrieval_report(good, good * np.nan, [[0]] * 4)
    with pytest.raises(ValueError, match="document 4 is relevant, but there are only 4"):
        retrieval_report(good, good, [[4]] * 4)
    with pytest.raises(ValueError, match="no query has a relevant document"):
        retrieval_report(good, good, [[]] * 4)
    with pytest.raises(ValueError, match=r"queries \(4, 4\) and documents \(3, 3\)"):
        retrieval_report(good, np.eye(3), [[0]] * 4)
