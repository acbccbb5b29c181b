"""From a matrix of probabilities, images by labels, to one label an image.

Arg-max lets two images take one label. One-to-one takes the assignment of the largest probability as a whole (linear
assignment, by scipy); Sinkhorn's normalisation is its soft form: every image's row sums to 1 and no label's column to
more than 1 (Sinkhorn and Knopp, 1967; columns with slack as in Cuturi, 2013).
Imports numpy and scipy only: the export copies this file next to the Triton model that decodes.
"""

from __future__ import annotations

import numpy as np
from scipy.optimize import linear_sum_assignment

FLOOR = 1e-30


def one_to_one(probability: np.ndarray) -> np.ndarray:
    """The most probable assignment in which no label is given twice.

    Args:
        probability: [n, m] of the labels (columns) for each image (rows), n ≤ m.

    Returns:
        [n] int32, the label of each image.

    Raises:
        ValueError: there are fewer labels than images.
    """
    images, labels = probability.shape
    if images > labels:
        raise ValueError(f"{images} images cannot get different labels out of {labels}")
    _, columns = linear_sum_assignment(-np.log(np.maximum(probability.astype(np.float64), FLOOR)))
    return columns.astype(np.int32)


def sinkhorn(probability: np.ndarray, iterations: int = 50) -> np.ndarray:
    """Probabilities under the knowledge that every label is given to one image at most.

    Args:
        probability: [n, m] float, n ≤ m.
        iterations: of alternating normalisation.

    Returns:
        [n, m] float64; rows sum to 1, columns to at most 1 (as far as the iterations converged).

    Raises:
        ValueError: there are fewer labels than images.
    """
    images, labels = probability.shape
    if images > labels:
        raise ValueError(f"{images} images cannot get different labels out of {labels}")
    # Not in logarithms: no ratio of two entries is above 1 / FLOOR, which float64 holds many times over.
    scaled = np.maximum(probability.astype(np.float64), FLOOR)
    slack = np.full(labels, float(labels > images))  # what a column gives to no image, m - n in all
    for _ in range(iterations if images else 0):
        columns = scaled.sum(0) + slack
        scaled, slack = scaled / columns, slack / columns
        scaled /= scaled.sum(1, keepdims=True)
        if labels > images:
            slack *= (labels - images) / slack.sum()
    return scaled
