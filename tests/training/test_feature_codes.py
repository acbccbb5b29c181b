"""Feature codes: that they are distinct, keep similarity, and decode to the class whose code the network saw."""

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from training.feature_codes import (
    FeatureCodes,
    codes_from_embeddings,
    codes_from_table,
    codes_from_taxonomy,
)
from training.losses import code_loss

SHAPES = codes_from_table([[1, 1], [1, 0], [0, 1], [0, 0]], ["filled", "round"])


def clustered(classes: int = 60, clusters: int = 6, width: int = 24, seed: int = 0) -> np.ndarray:
    generator = np.random.default_rng(seed)
    centres = generator.normal(size=(clusters, width))
    return centres[np.arange(classes) % clusters] + 0.4 * generator.normal(size=(classes, width))


def hamming(codes: torch.Tensor) -> torch.Tensor:
    return (codes.unsqueeze(0) != codes.unsqueeze(1)).sum(dim=2)


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 40), st.integers(0, 8), st.integers(0, 10**6))
def test_scores_are_the_log_likelihood_of_each_code(classes: int, spare_bits: int, seed: int) -> None:
    bits = (classes - 1).bit_length() + spare_bits
    generator = np.random.default_rng(seed)
    numbers = generator.choice(2**bits, size=classes, replace=False)
    table = [[int(number) >> bit & 1 for bit in range(bits)] for number in numbers]
    logits = torch.from_numpy(generator.normal(scale=3, size=(5, bits)))

    scores = codes_from_table(table, [f"f{bit}" for bit in range(bits)]).class_scores(logits)

    probability = torch.sigmoid(logits).numpy()
    for row, c in itertools.product(range(5), range(classes)):
        likelihood = np.prod([p if bit else 1 - p for p, bit in zip(probability[row], table[c], strict=True)])
        assert scores[row, c].item() == pytest.approx(np.log(likelihood), abs=1e-9)


def test_a_prediction_that_is_sure_is_decoded_by_hamming_distance() -> None:
    codes = codes_from_embeddings(clustered(), 16)
    seen = torch.randint(0, 2, (50, 16), generator=torch.Generator().manual_seed(0))
    distance = (seen.unsqueeze(1) != codes.codes.unsqueeze(0)).sum(dim=2)
    scores = codes.class_scores((seen * 2 - 1) * 20.0)
    torch.testing.assert_close(scores, -20.0 * distance, atol=1e-3, rtol=0)


@pytest.mark.parametrize(
    "codes",
    [
        SHAPES,
        codes_from_taxonomy([("A", "B"), ("A", "C"), ("A",), ("D", "B")]),
        codes_from_embeddings(clustered(), 9),
    ],
    ids=["given", "taxonomy", "embeddings"],
)
def test_every_class_is_decoded_from_its_own_code(codes: FeatureCodes) -> None:
    scores = codes.class_scores((codes.codes.float() * 2 - 1) * 4)
    assert scores.argmax(dim=1).tolist() == list(range(codes.classes))


def test_learning_the_features_learns_the_classes() -> None:
    codes = codes_from_taxonomy([("A", "B"), ("A", "C"), ("D", "E"), ("D", "F")])
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(400) % 4
    inputs = torch.eye(4)[labels] + 0.2 * torch.randn(400, 4, generator=generator)
    head = torch.nn.Linear(4, codes.codes.shape[1])
    optimizer = torch.optim.Adam(head.parameters(), lr=0.1)
    for _ in range(60):
        optimizer.zero_grad()
        code_loss(head(inputs), labels, codes.codes).backward()
        optimizer.step()
    assert (codes.class_scores(head(inputs)).argmax(dim=1) == labels).float().mean() > 0.97


def test_taxonomy_codes_have_a_feature_for_every_category_that_tells_classes_apart() -> None:
    codes = codes_from_taxonomy([("All", "A", "B"), ("All", "A", "C"), ("All", "D")])
    assert codes.features == ("All > A", "All > A > B", "All > A > C", "All > D")
    assert codes.codes.tolist() == [[1, 1, 0, 0], [1, 0, 1, 0], [0, 0, 0, 1]]


@settings(max_examples=40, deadline=None)
@given(st.sets(st.lists(st.sampled_from("ABC"), min_size=1, max_size=4).map(tuple), min_size=2, max_size=20))
def test_taxonomy_codes_differ_by_the_categories_not_shared(paths: set[tuple[str, ...]]) -> None:
    ordered = sorted(paths)
    distance = hamming(codes_from_taxonomy(ordered).codes)
    for a, b in itertools.combinations(range(len(ordered)), 2):
        nodes = [{path[:level] for level in range(1, len(path) + 1)} for path in (ordered[a], ordered[b])]
        assert distance[a, b] == len(nodes[0] ^ nodes[1])


def test_similar_names_get_similar_codes() -> None:
    distance = hamming(codes_from_embeddings(clustered(), 16).codes).float()
    cluster = torch.arange(60) % 6
    same = cluster.unsqueeze(0) == cluster.unsqueeze(1)
    within = distance[same & ~torch.eye(60, dtype=torch.bool)].mean()
    assert within < 0.5 * distance[~same].mean()


@settings(max_examples=40, deadline=None)
@given(st.integers(4, 64), st.integers(0, 3), st.booleans(), st.integers(0, 10**6))
def test_codes_are_distinct_however_tight(classes: int, spare_bits: int, same: bool, seed: int) -> None:
    bits = min((classes - 1).bit_length() + spare_bits, classes - 1)
    # In the worst case all names mean the same, and the only difference is noise.
    vectors = np.ones((classes, 70)) + 1e-9 * np.random.default_rng(seed).normal(size=(classes, 70)) if same else None
    codes = codes_from_embeddings(clustered(classes, width=70, seed=seed) if vectors is None else vectors, bits).codes
    assert len(torch.unique(codes, dim=0)) == classes


def test_hashing_is_repeatable_and_depends_on_direction_alone() -> None:
    vectors = clustered()
    codes = codes_from_embeddings(vectors, 12, seed=3).codes
    assert torch.equal(codes, codes_from_embeddings(torch.from_numpy(vectors) * 7, 12, seed=3).codes)


def test_rotation_loses_less_than_the_principal_components_alone() -> None:
    """Neighbours by code agree better with neighbours by embedding after the quantisation than before."""
    vectors = np.random.default_rng(0).normal(size=(200, 32)) * np.linspace(3, 0.2, 32)
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    similarity = unit @ unit.T

    def correlation(iterations: int) -> float:
        distance = hamming(codes_from_embeddings(vectors, 16, iterations=iterations).codes).numpy()
        above = np.triu_indices(200, 1)
        return float(-np.corrcoef(distance[above], similarity[above])[0, 1])

    assert correlation(50) > correlation(0)


def test_save_and_load_give_the_same_codes(tmp_path: Path) -> None:
    SHAPES.save(tmp_path / "codes.safetensors")
    loaded = FeatureCodes.load(tmp_path / "codes.safetensors")
    assert torch.equal(loaded.codes, SHAPES.codes)
    assert loaded.features == ("filled", "round")


def test_foreign_and_missing_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"codes\.safetensors"):
        FeatureCodes.load(tmp_path / "codes.safetensors")
    save_file({"codes": torch.zeros(2, 2, dtype=torch.uint8)}, tmp_path / "codes.safetensors")
    with pytest.raises(ValueError, match=r"codes\.safetensors holds no feature codes"):
        FeatureCodes.load(tmp_path / "codes.safetensors")


@pytest.mark.parametrize(
    ("table", "features", "said"),
    [
        ([[0, 1], [1, 0], [0, 1]], ["a", "b"], "classes 0 and 2 have the same code"),
        ([[0, 1], [2, 0]], ["a", "b"], "feature 0 of class 1 must be 0 or 1; got 2"),
        ([[0, 1], [1]], ["a", "b"], "class 1 has 1 features, but 2 names"),
        ([[0, 1], [1, 0]], ["a", "a"], "same name 'a'"),
        ([], [], r"codes must be uint8 \[C, F\]"),
    ],
)
def test_bad_codes_are_named(table: list[list[int]], features: list[str], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        codes_from_table(table, features)


@pytest.mark.parametrize("bits", [5, 25, 60])
def test_width_out_of_range_is_named(bits: int) -> None:
    with pytest.raises(ValueError, match=rf"between 6 \(log2 of 60 classes\) and 24 .*; got {bits}"):
        codes_from_embeddings(clustered(), bits)


def test_bad_embeddings_paths_and_logits_are_named() -> None:
    vectors = clustered()
    vectors[3, 0] = np.nan
    with pytest.raises(ValueError, match="class 3 must be finite and not zero"):
        codes_from_embeddings(vectors, 8)
    with pytest.raises(ValueError, match="classes 0 and 1 have the same path 'A'"):
        codes_from_taxonomy([("A",), ("A",)])
    with pytest.raises(ValueError, match="class 1 is empty"):
        codes_from_taxonomy([("A",), ()])
    with pytest.raises(ValueError, match=r"\[B, 2\]; got \(1, 3\)"):
        SHAPES.class_scores(torch.zeros(1, 3))
