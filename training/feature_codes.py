"""Binary feature codes: each class described by yes/no features that it shares with its neighbours, instead of a
soft-max.

Notable: a head of F logits with `training.losses.code_loss` learns the features; `FeatureCodes.class_scores` gives
every class the log-likelihood of its whole code, so that top-k, calibration and all metrics work as with class logits,
and a feature that the network doubts counts for less than one it is sure of (at certainty it is the Hamming distance).
Codes are given by hand, read off the taxonomy, or hashed from name embeddings.
Sources: output codes, Dietterich and Bakiri, JAIR 1995; iterative quantisation, Gong and Lazebnik, CVPR 2011.
"""

from __future__ import annotations

import heapq
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from catalogue.atomic import atomic_file
from catalogue.product import PATH_SEPARATOR
from training.labels import Array

CODES_FORMAT = "shelfwise-feature-codes-1"


@dataclass(frozen=True, eq=False)
class FeatureCodes:
    """The feature code of every class; no two classes have the same.

    Attributes:
        codes: [C, F] uint8 of 0 and 1.
        features: the F names of the features, all different.

    Raises:
        ValueError: when an entry is neither 0 nor 1, two classes share a code, or the names do not fit; the message
            names the classes or the feature.
    """

    codes: Tensor
    features: tuple[str, ...]

    def __post_init__(self) -> None:
        if self.codes.ndim != 2 or self.codes.dtype != torch.uint8 or not self.codes.numel():
            raise ValueError(f"codes must be uint8 [C, F]; got {self.codes.dtype} {tuple(self.codes.shape)}")
        wrong = (self.codes > 1).nonzero()
        if wrong.numel():
            c, feature = wrong[0].tolist()
            value = int(self.codes[c, feature])
            raise ValueError(f"feature {feature} of class {c} must be 0 or 1; got {value}")
        if len(self.features) != self.codes.shape[1]:
            raise ValueError(f"codes have {self.codes.shape[1]} features, but {len(self.features)} names were given")
        if len(set(self.features)) < len(self.features):
            twice = next(name for name in self.features if self.features.count(name) > 1)
            raise ValueError(f"two features have the same name {twice!r}")
        first: dict[bytes, int] = {}
        for c, code in enumerate(self.codes.cpu().numpy()):
            other = first.setdefault(code.tobytes(), c)
            if other != c:
                raise ValueError(f"classes {other} and {c} have the same code: no prediction could tell them apart")

    @property
    def classes(self) -> int:
        """C, the number of classes."""
        return self.codes.shape[0]

    def class_scores(self, logits: Tensor) -> Tensor:
        """Log-likelihood of each class's code: nearest-code decoding in which doubtful features count for less.

        Σ_f log σ(±z_f), + where the code has a 1; softmax of it is the probability of each class if all were equally
        frequent.

        Args:
            logits: [B, F] of the features, any floating dtype; computed in float32 at least.

        Returns:
            [B, C], highest for the nearest code.

        Raises:
            ValueError: when the width is not F.
        """
        if logits.ndim != 2 or logits.shape[1] != self.codes.shape[1]:
            raise ValueError(f"logits must be [B, {self.codes.shape[1]}]; got {tuple(logits.shape)}")
        logits = logits if logits.dtype == torch.float64 else logits.float()
        # log σ(z) = z − softplus(z) and log σ(−z) = −softplus(z): one matrix product and a constant a row.
        return logits @ self.codes.to(logits).T - F.softplus(logits).sum(dim=1, keepdim=True)

    def save(self, path: Path) -> None:
        """Write the codes as safetensors, whole or not at all."""
        metadata = {"format": CODES_FORMAT, "features": json.dumps(self.features)}
        with atomic_file(path) as aside:
            save_file({"codes": self.codes.cpu().contiguous()}, aside, metadata)

    @classmethod
    def load(cls, path: Path) -> FeatureCodes:
        """Read codes that `save` wrote.

        Raises:
            FileNotFoundError: when there is no such file.
            ValueError: when the file holds no feature codes or contradicts itself; the message names the file.
        """
        if not path.is_file():
            raise FileNotFoundError(f"no feature codes at {path}")
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                if metadata.get("format") != CODES_FORMAT:
                    raise ValueError(f"format is {metadata.get('format')!r}, not {CODES_FORMAT!r}")
                return cls(file.get_tensor("codes"), tuple(json.loads(metadata["features"])))
        except (SafetensorError, ValueError, KeyError) as error:
            raise ValueError(f"{path} holds no feature codes: {error}") from error


def codes_from_table(table: Sequence[Sequence[int]], features: Sequence[str]) -> FeatureCodes:
    """Codes given by hand: one row a class, one column a feature, 0 or 1.

    Raises:
        ValueError: as `FeatureCodes`, and when the rows differ in length or hold anything but 0 and 1.
    """
    for c, row in enumerate(table):
        if len(row) != len(features):
            raise ValueError(f"class {c} has {len(row)} features, but {len(features)} names were given")
        for feature, value in enumerate(row):
            if value not in (0, 1):
                raise ValueError(f"feature {feature} of class {c} must be 0 or 1; got {value}")
    return FeatureCodes(torch.tensor([list(row) for row in table], dtype=torch.uint8), tuple(features))


def codes_from_taxonomy(paths: Sequence[tuple[str, ...]]) -> FeatureCodes:
    """One feature for every category above or at a class: siblings differ in their own feature only.

    A category that holds all classes tells nothing and is left out. Codes are dense, [C, nodes of the tree]: 31 MB for
    Google's 5,595 categories; hash the names instead where there are many times more.

    Args:
        paths: one path a class, from the top down; all different.

    Raises:
        ValueError: when there are fewer than two paths, one is empty, or two are the same; the message names the class.
    """
    if len(paths) < 2:
        raise ValueError(f"feature codes need at least two classes; got {len(paths)}")
    first: dict[tuple[str, ...], int] = {}
    members: dict[tuple[str, ...], list[int]] = {}
    for c, path in enumerate(paths):
        if not path:
            raise ValueError(f"the path of class {c} is empty")
        other = first.setdefault(path, c)
        if other != c:
            raise ValueError(f"classes {other} and {c} have the same path {PATH_SEPARATOR.join(path)!r}")
        for level in range(1, len(path) + 1):
            members.setdefault(path[:level], []).append(c)
    telling = {node: classes for node, classes in members.items() if len(classes) < len(paths)}
    codes = torch.zeros(len(paths), len(telling), dtype=torch.uint8)
    for feature, classes in enumerate(telling.values()):
        codes[classes, feature] = 1
    return FeatureCodes(codes, tuple(PATH_SEPARATOR.join(node) for node in telling))


def codes_from_embeddings(embeddings: Array, bits: int, *, iterations: int = 50, seed: int = 0) -> FeatureCodes:
    """Codes hashed from name embeddings, so that similar names get similar codes.

    The signs of a rotation of the leading principal components; the rotation is the one that loses least by taking
    signs,
    found from a random one. Where classes collide, the later one takes the nearest free code: the one reached by
    changing the signs nearest to zero.

    Args:
        embeddings: [C, D] of the class names.
        bits: F, the width of the code: log2(C) ≤ F ≤ min(D, C − 1). Twice log2(C) leaves room for similarity.
        iterations: of the quantisation.
        seed: of the first rotation.

    Raises:
        ValueError: when `bits` is out of range, or an embedding is not finite or zero; the message names it.

    Source: Gong and Lazebnik, "Iterative Quantization", CVPR 2011.
    """
    vectors = np.asarray(embeddings.cpu() if isinstance(embeddings, Tensor) else embeddings, dtype=np.float64)
    if vectors.ndim != 2:
        raise ValueError(f"embeddings must be [C, D]; got {vectors.shape}")
    classes, width = vectors.shape
    fewest, most = max(classes - 1, 1).bit_length(), min(width, classes - 1)
    if not fewest <= bits <= most:
        raise ValueError(
            f"bits must be between {fewest} (log2 of {classes} classes) and {most} (principal components); got {bits}"
        )
    length = np.linalg.norm(vectors, axis=1)
    for c in np.flatnonzero(~np.isfinite(length) | (length == 0))[:1]:
        raise ValueError(f"the embedding of class {c} must be finite and not zero; its length is {length[c]}")
    centred = vectors / length[:, None]
    centred = centred - centred.mean(axis=0)
    components = np.linalg.svd(centred.T @ centred, hermitian=True)[0][:, :bits]
    projected = centred @ components
    rotation = np.linalg.qr(np.random.default_rng(seed).normal(size=(bits, bits)))[0]
    for _ in range(iterations):
        signs = np.where(projected @ rotation > 0, 1.0, -1.0)
        left, _, right = np.linalg.svd(signs.T @ projected)
        rotation = right.T @ left.T
    codes = _distinct_signs(projected @ rotation)
    return FeatureCodes(torch.from_numpy(codes), tuple(f"bit {bit}" for bit in range(bits)))


def _distinct_signs(values: npt.NDArray[np.float64]) -> npt.NDArray[np.uint8]:
    """The signs of each row as 0 and 1; a row whose signs are taken changes those that cost least until they are
    free."""
    codes = (values > 0).astype(np.uint8)
    taken: set[bytes] = set()
    for row, code in enumerate(codes):
        for changed in _cheapest_subsets(np.abs(values[row])):
            candidate = code.copy()
            candidate[changed] ^= 1
            if candidate.tobytes() not in taken:
                break
        codes[row] = candidate
        taken.add(candidate.tobytes())
    return codes


def _cheapest_subsets(costs: npt.NDArray[np.float64]) -> Iterator[list[int]]:
    """All subsets of places in order of their summed cost, the empty one first."""
    order = np.argsort(costs, kind="stable").tolist()
    yield []
    # Each subset is reached once: from the one without its last place, or with its last place one earlier.
    heap: list[tuple[float, list[int]]] = [(float(costs[order[0]]), [0])]
    while heap:
        cost, subset = heapq.heappop(heap)
        yield [order[place] for place in subset]
        last = subset[-1]
        if last + 1 < len(order):
            following = float(costs[order[last + 1]])
            heapq.heappush(heap, (cost + following, [*subset, last + 1]))
            heapq.heappush(heap, (cost + following - float(costs[order[last]]), [*subset[:-1], last + 1]))
