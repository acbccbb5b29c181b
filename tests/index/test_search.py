"""Answers beside a reference that looks at every product in float64."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest

from index import partition, search
from index.publish import IndexedProduct
from index.search import Searcher
from index.snapshot import SnapshotError, open_snapshot

from .conftest import COLUMNS, ENCODER, Publish, product, unit, vector_of


def reference(
    products: Sequence[IndexedProduct], query: np.ndarray, k: int, wanted: Mapping[str, Sequence[str]]
) -> list[tuple[str, float]]:
    """The k best products by their best photo."""
    scored = []
    for p in products:
        kept = all(
            any(
                p.attributes[attribute].lower() == value.lower()
                or (attribute == "category" and p.attributes[attribute].lower().startswith(value.lower() + " > "))
                for value in values
            )
            for attribute, values in wanted.items()
        )
        if kept:
            scored.append((p.id, max(float(vector_of(int(i)).astype(np.float64) @ query) for i in p.images)))
    return sorted(scored, key=lambda found: -found[1])[:k]


def assert_same(
    searcher: Searcher, products: Sequence[IndexedProduct], queries: np.ndarray, k: int, **wanted: list[str]
) -> None:
    snapshot = searcher.snapshot
    for query, hits in zip(queries, searcher.search(queries, k, wanted), strict=True):
        expected = reference(products, query, k, wanted)
        assert [snapshot.id_of(int(p)) for p in hits.products] == [name for name, _ in expected]
        np.testing.assert_allclose(hits.scores, [score for _, score in expected], atol=1e-5)
        assert (snapshot.product[hits.rows] == hits.products).all()
        np.testing.assert_allclose(np.einsum("hd,d->h", snapshot.vectors[hits.rows], query), hits.scores, atol=1e-5)


@pytest.fixture
def several_photos() -> list[IndexedProduct]:
    return [product(n, [str(n + 1000 * photo).encode() for photo in range(n % 3 + 1)]) for n in range(90)]


@pytest.mark.parametrize(
    "wanted",
    [
        {},
        {"brand": ["diesel"]},
        {"brand": ["Diesel", "PUMA"], "base_colour": ["Black"]},
        {"category": ["Apparel > Topwear"]},
        {"category": ["apparel"]},
        {"category": ["App"]},
    ],
)
def test_answers_are_those_of_looking_at_everything(
    publish_to: Publish,
    tmp_path: Path,
    queries: np.ndarray,
    several_photos: list[IndexedProduct],
    wanted: dict[str, list[str]],
) -> None:
    for products in ([product(number) for number in range(90)], several_photos):
        publish_to(products)
        searcher = Searcher(open_snapshot(tmp_path / "index"))
        assert_same(searcher, products, queries[:8], 10, **wanted)
        assert_same(searcher, products, queries[:1], 10, **wanted)


def test_dense_filters_of_a_small_index_agree_with_sparse_ones(
    publish_to: Publish,
    tmp_path: Path,
    queries: np.ndarray,
    several_photos: list[IndexedProduct],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(search, "FEW_ROWS", 0)
    publish_to(several_photos)
    searcher = Searcher(open_snapshot(tmp_path / "index"))
    assert_same(searcher, several_photos, queries[:8], 10, base_colour=["Black"])


def test_more_than_there_are_gives_all_there_are(publish_to: Publish, tmp_path: Path, queries: np.ndarray) -> None:
    publish_to([product(number) for number in range(10)])
    searcher = Searcher(open_snapshot(tmp_path / "index"))
    assert len(searcher.search(queries[:1], 100)[0].products) == 10
    assert len(searcher.search(queries[:2], 100, {"brand": ["Nike"]})[1].products) == 2
    assert len(searcher.search(queries[:1], 5, {"brand": ["Nobody"]})[0].products) == 0


def test_an_empty_index_answers_with_nothing(publish_to: Publish, tmp_path: Path, queries: np.ndarray) -> None:
    publish_to([])
    searcher = Searcher(open_snapshot(tmp_path / "index", ENCODER))
    assert [len(hits.products) for hits in searcher.search(queries[:3], 5)] == [0, 0, 0]
    assert [len(hits.products) for hits in searcher.search(queries[:1], 5, {"brand": ["Puma"]})] == [0]


def test_bad_queries_are_refused(publish_to: Publish, tmp_path: Path, queries: np.ndarray) -> None:
    publish_to([product(number) for number in range(10)])
    searcher = Searcher(open_snapshot(tmp_path / "index"))
    with pytest.raises(SnapshotError, match=r"no attribute 'price' to filter by; it has brand, base_colour, category"):
        searcher.search(queries, 5, {"price": ["1"]})
    with pytest.raises(SnapshotError, match=r"\[Q, 32\], the width of the index; got \(50, 31\)"):
        searcher.search(queries[:, 1:], 5)
    with pytest.raises(SnapshotError, match="NaN"):
        searcher.search(queries * np.nan, 5)
    with pytest.raises(SnapshotError, match="k is 0"):
        searcher.search(queries, 0)


@pytest.fixture
def partitioned(publish_to: Publish, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """4,000 products in cells, which only indexes a hundred times as large get otherwise."""
    monkeypatch.setattr("index.publish.EXACT_NUMBERS", 1000)
    monkeypatch.setattr(search, "FEW_ROWS", 20)
    publish_to([attributed(number) for number in range(4000)])
    return tmp_path / "index"


def attributed(number: int) -> IndexedProduct:
    """Shares of .1, 2, 10 and 50 %, and a category whose products all lie on one side."""
    shares = {"few": 0.001, "some": 0.02, "more": 0.1, "half": 0.5}
    u = np.random.default_rng(number + 10**6).random()
    brand = next((name for name, share in shares.items() if u < share), "rest")
    side = "Left" if vector_of(number)[0] < -0.25 else "Right"
    return IndexedProduct(f"id-{number}", [str(number).encode()], dict(zip(COLUMNS, (brand, "Red", side), strict=True)))


def test_a_partition_finds_what_exact_search_finds(partitioned: Path, queries: np.ndarray) -> None:
    snapshot = open_snapshot(partitioned, ENCODER)
    record = snapshot.manifest.partition
    assert record is not None
    assert record.recall_at_10 >= partition.RECALL
    assert record.scanned < 4000
    near, exact = Searcher(snapshot), Searcher(snapshot, exact=True)
    fresh = unit(np.random.default_rng(99), 40)
    kept = ["few", "some", "more", "half"]
    for wanted in ({}, *({"brand": kept[: number + 1]} for number in range(4)), {"category": ["Left"]}):
        found = [
            np.isin(true.products, hits.products).mean()
            for hits, true in zip(near.search(fresh, 10, wanted), exact.search(fresh, 10, wanted), strict=True)
        ]
        assert np.mean(found) >= 0.98, wanted
        for hits, true in zip(near.search(fresh, 10, wanted), exact.search(fresh, 10, wanted), strict=True):
            assert len(hits.products) == len(true.products)


def test_a_filter_whose_products_lie_far_away_costs_no_answer(partitioned: Path) -> None:
    snapshot = open_snapshot(partitioned)
    away = np.zeros((1, 32), np.float32)
    away[0, 0] = 1.0  # all of Left lies on the other side
    hits = Searcher(snapshot).search(away, 50, {"category": ["Left"]})[0]
    true = Searcher(snapshot, exact=True).search(away, 50, {"category": ["Left"]})[0]
    assert len(hits.products) == 50
    assert np.isin(true.products[:10], hits.products).mean() >= 0.9


def test_asking_a_partition_for_everything_gives_everything(partitioned: Path, queries: np.ndarray) -> None:
    searcher = Searcher(open_snapshot(partitioned))
    assert len(searcher.search(queries[:1], 5000)[0].products) == 4000


def test_ten_full_turnovers_cost_no_recall(partitioned: Path, publish_to: Publish) -> None:
    fresh = unit(np.random.default_rng(98), 40)

    def recall() -> float:
        snapshot = open_snapshot(partitioned)
        pairs = zip(Searcher(snapshot).search(fresh, 10), Searcher(snapshot, exact=True).search(fresh, 10), strict=True)
        return float(np.mean([np.isin(true.products, hits.products).mean() for hits, true in pairs]))

    before = recall()
    for turn in range(1, 11):
        publish_to([attributed(number) for number in range(10_000 * turn, 10_000 * turn + 4000)])
    assert recall() >= before - 0.005
