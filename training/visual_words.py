"""What a patch shows, as a distribution over visual words: the true one of masked patch modelling.

The feature extractor is fixed: the pixels of a patch, brought to 4x4 (48 numbers), and their distances to k-means
centres of the feed's own patches (a bag of visual words, Sivic and Zisserman, 2003). Were it the network that is
trained, both sides could meet by saying the same of every patch. Here they cannot: the target depends on pixels alone,
no gradient reaches it, and it differs from patch to patch, so that a constant prediction is left with a loss of the
mutual information between patch and word at least.
"""

from __future__ import annotations

import numpy as np
import torch
from scipy.cluster.vq import kmeans2
from torch import Tensor, nn
from torch.nn import functional as F

from catalogue.store import Store

SIDE = 4
FITTED_PHOTOS = 500
ITERATIONS = 10


class VisualWords(nn.Module):
    """Patches to distributions over K words.

    Args:
        centres: [K, 48] float32.
        temperature: squared distance over which a word's share falls by e.
        rows, columns: the grid of patches.
    """

    centres: Tensor

    def __init__(self, centres: Tensor, temperature: float, rows: int, columns: int) -> None:
        super().__init__()
        self.register_buffer("centres", centres)
        self.temperature = temperature
        self.grid = rows, columns

    @torch.no_grad()
    def forward(self, pixel_values: Tensor) -> Tensor:
        """[B, H, W, 3] uint8 -> [B, P, K] float32, rows of patches one after the other; each sums to 1."""
        squared = torch.cdist(patch_vectors(pixel_values, *self.grid), self.centres) ** 2
        return torch.softmax(-squared / self.temperature, dim=2)


def patch_vectors(pixel_values: Tensor, rows: int, columns: int) -> Tensor:
    """[B, H, W, 3] uint8 -> [B, P, 48] float32: the patches' pixels between 0 and 1, averaged to 4x4."""
    pixels = pixel_values.float().permute(0, 3, 1, 2) / 255
    small = F.adaptive_avg_pool2d(pixels, (SIDE * rows, SIDE * columns))
    cut = small.unflatten(3, (columns, SIDE)).unflatten(2, (rows, SIDE))
    return cut.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)


def visual_words(store: Store, photos: np.ndarray, rows: int, columns: int, words: int, seed: int) -> VisualWords:
    """The visual words of a feed.

    Args:
        store: where the photos are.
        photos: rows of the photos to learn from; some hundred of them are drawn.
        rows, columns: the grid of patches.
        words: K; fewer where there are fewer different patches.
        seed: of the drawing and of k-means.
    """
    generator = np.random.default_rng(seed)
    drawn = np.sort(generator.permutation(photos)[:FITTED_PHOTOS])
    vectors = patch_vectors(torch.from_numpy(store.photos(drawn)), rows, columns).flatten(0, 1).numpy()
    different = np.unique(np.round(vectors, 2), axis=0)  # most patches of shop photos are white
    centres, own = kmeans2(different, min(words, len(different)), ITERATIONS, minit="points", rng=generator)
    temperature = float(((different - centres[own]) ** 2).sum(1).mean()) or 1.0
    missing = words - len(centres)
    centres = np.pad(centres, ((0, missing), (0, 0)), constant_values=1e3)  # far from every patch
    return VisualWords(torch.from_numpy(centres.astype(np.float32)), temperature, rows, columns)
