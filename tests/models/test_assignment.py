from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest

from models.assignment import one_to_one, sinkhorn


def probabilities(images: int, labels: int, seed: int) -> np.ndarray:
    logits = np.random.default_rng(seed).normal(size=(images, labels)) * 3
    exponentials = np.exp(logits)
    return (exponentials / exponentials.sum(1, keepdims=True)).astype(np.float32)


@pytest.mark.parametrize(("images", "labels"), [(1, 1), (1, 4), (3, 3), (4, 6)])
def test_one_to_one_is_the_most_probable_assignment(images: int, labels: int) -> None:
    for seed in range(20):
        matrix = probabilities(images, labels, seed)
        best = max(
            permutations(range(labels), images),
            key=lambda chosen: sum(np.log(float(matrix[row, column])) for row, column in enumerate(chosen)),
        )
        found = one_to_one(matrix)
        assert found.dtype == np.int32
        assert tuple(found) == best


def test_one_to_one_differs_from_arg_max_where_two_images_want_one_label() -> None:
    matrix = np.array([[0.6, 0.4], [0.9, 0.1]])
    assert matrix.argmax(1).tolist() == [0, 0]
    assert one_to_one(matrix).tolist() == [1, 0]


def test_probabilities_of_zero_are_assigned_last() -> None:
    assert one_to_one(np.array([[1.0, 0.0], [1.0, 0.0]])).tolist() in ([0, 1], [1, 0])


@pytest.mark.parametrize(("images", "labels"), [(1, 3), (4, 4), (3, 9)])
def test_sinkhorn_gives_no_label_more_than_one_image(images: int, labels: int) -> None:
    for seed in range(20):
        normalised = sinkhorn(probabilities(images, labels, seed), iterations=500)
        np.testing.assert_allclose(normalised.sum(1), 1, atol=1e-9)
        assert normalised.sum(0).max() < 1 + 1e-3
        assert normalised.min() >= 0


def test_sinkhorn_stays_finite_where_probabilities_are_zero() -> None:
    for matrix in (np.eye(3)[[0, 0, 1]], np.eye(5)[[4, 4, 4]], np.zeros((2, 2))):
        normalised = sinkhorn(matrix, iterations=500)
        np.testing.assert_allclose(normalised.sum(1), 1, atol=1e-9)
        assert np.isfinite(normalised).all()


def test_sinkhorn_keeps_a_matrix_that_is_normalised_both_ways() -> None:
    matrix = np.array([[0.7, 0.3], [0.3, 0.7]])
    np.testing.assert_allclose(sinkhorn(matrix), matrix, atol=1e-12)


@pytest.mark.parametrize("decode", [one_to_one, sinkhorn])
def test_fewer_labels_than_images_are_refused_with_both_counts(decode: object) -> None:
    with pytest.raises(ValueError, match="3 images cannot get different labels out of 2"):
        decode(np.full((3, 2), 0.5))  # type: ignore[operator]
