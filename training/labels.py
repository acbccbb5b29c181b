"""Label neighbours from category names, and the five target distributions built on them.

Notable: everything about C labels lives in sparse rows of K+1 numbers, so a table of 100,000 labels takes 25 MB and is
found in blocks of 64 MB of the C×C similarities. A target that spreads mass over every class
(`uniform`) is a row plus one number, the probability of each class outside the row. Equal similarities are ranked by
class number, so a table is a function of the names alone.
Sources: neighbour label smoothing as in semantic-label product categorization at Walmart; curriculum of Doğan et al.,
"Label-Similarity Curriculum Learning", ECCV 2020.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from catalogue.atomic import atomic_file
from catalogue.product import PATH_SEPARATOR, normal_label

NEIGHBOURS = 20
BLOCK_BYTES = 64 * 2**20
TABLE_FORMAT = "shelfwise-neighbour-table-1"

Naming = Literal["leaf", "path"]
Representation = Literal["one_hot", "uniform", "neighbour_uniform", "neighbour_semantic", "curriculum", "binary_codes"]
SemanticRoute = Literal["similarity", "distance", "share"]
Array = npt.NDArray[np.floating] | Tensor
NameEncoder = Callable[[Sequence[str]], Array]


@dataclass(frozen=True, eq=False)
class NeighbourTable:
    """The nearest labels of every label, and a target distribution over them.

    Attributes:
        ids: [C, K+1] int32; slot 0 is the class itself, then its neighbours, nearest first.
        similarities: [C, K+1] float32, 1 in slot 0; a table made from distances d holds 1 − d.
        weights: [C, K+1] float32, the target probability of each listed class.
        background: the target probability of each class that the row does not list; 0 except for `uniform`.
            weights.sum(1) + background·(C − K − 1) = 1.

    Raises:
        ValueError: when shapes, ids or weights do not fit together; the message names the class and the value.
    """

    ids: Tensor
    similarities: Tensor
    weights: Tensor
    background: float = 0.0

    def __post_init__(self) -> None:
        if self.ids.ndim != 2 or self.ids.shape[1] < 1 or self.ids.shape[1] > self.ids.shape[0]:
            raise ValueError(f"ids must be [C, K+1] with 0 ≤ K < C; got {tuple(self.ids.shape)}")
        for name, dtype in (("ids", torch.int32), ("similarities", torch.float32), ("weights", torch.float32)):
            values = getattr(self, name)
            if values.dtype != dtype or values.shape != self.ids.shape:
                raise ValueError(
                    f"{name} must be {dtype} {tuple(self.ids.shape)}; got {values.dtype} {tuple(values.shape)}"
                )
        own = torch.arange(self.classes, dtype=torch.int32, device=self.ids.device)
        _refuse(self.ids[:, 0] != own, lambda c: f"slot 0 of class {c} holds class {int(self.ids[c, 0])}, not itself")
        _refuse(
            ((self.ids < 0) | (self.ids >= self.classes)).any(dim=1),
            lambda c: f"class {c} lists {self.ids[c].tolist()}, but there are {self.classes} classes",
        )
        ordered = self.ids.sort(dim=1).values
        _refuse(
            (ordered[:, 1:] == ordered[:, :-1]).any(dim=1),
            lambda c: f"class {c} lists a class twice: {self.ids[c].tolist()}",
        )
        _refuse(~torch.isfinite(self.similarities).all(dim=1), lambda c: f"a similarity of class {c} is not finite")
        total = self.weights.double().sum(dim=1) + self.background * (self.classes - self.ids.shape[1])
        # A NaN weight fails both comparisons, hence the negations.
        _refuse(
            ~((self.weights >= 0).all(dim=1) & ((total - 1).abs() <= 1e-5)),
            lambda c: f"the target of class {c} must be ≥ 0 and sum to 1; it sums to {float(total[c])}",
        )

    @property
    def classes(self) -> int:
        """C, the number of labels."""
        return self.ids.shape[0]

    @property
    def neighbours(self) -> int:
        """K, the number of neighbours of each label, itself not counted."""
        return self.ids.shape[1] - 1

    def save(self, path: Path) -> None:
        """Write the table as safetensors, whole or not at all."""
        tensors = {"ids": self.ids, "similarities": self.similarities, "weights": self.weights}
        metadata = {"format": TABLE_FORMAT, "background": json.dumps(self.background)}
        with atomic_file(path) as aside:
            save_file({name: tensor.cpu().contiguous() for name, tensor in tensors.items()}, aside, metadata)

    @classmethod
    def load(cls, path: Path) -> NeighbourTable:
        """Read a table that `save` wrote.

        Raises:
            FileNotFoundError: when there is no such file.
            ValueError: when the file is no neighbour table or contradicts itself; the message names the file.
        """
        if not path.is_file():
            raise FileNotFoundError(f"no neighbour table at {path}")
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                if metadata.get("format") != TABLE_FORMAT:
                    raise ValueError(f"format is {metadata.get('format')!r}, not {TABLE_FORMAT!r}")
                tensors = {name: file.get_tensor(name) for name in ("ids", "similarities", "weights")}
            return cls(**tensors, background=json.loads(metadata["background"]))
        except (SafetensorError, ValueError, KeyError) as error:
            raise ValueError(f"{path} is not a neighbour table: {error}") from error


@dataclass(frozen=True, slots=True)
class LabelScheme:
    """Which target distribution to train on; `targets` gives it for an epoch.

    Attributes:
        representation: see `one_hot`, `uniform`, `neighbour_uniform`, `neighbour_semantic`; `curriculum` is
            neighbour_semantic hardened from epoch to epoch; `binary_codes` is no distribution: the head learns
            feature codes (`training/feature_codes.py`), and one_hot stands in where a distribution is asked for.
        route: how neighbour_semantic and curriculum turn similarities into weights.
        alpha: mass off the true class, for uniform, neighbour_uniform and route "share".
        temperature: T of route "distance".
        remaining: what curriculum leaves of the mass off the true class in the last epoch; until then it falls by the
            same factor every epoch. The paper sets that factor; this way three epochs end as hard as thirty.
    """

    representation: Representation = "neighbour_semantic"
    route: SemanticRoute = "similarity"
    alpha: float = 0.1
    temperature: float = 0.1
    remaining: float = 0.01

    @property
    def has_codes(self) -> bool:
        """Whether the head learns feature codes."""
        return self.representation == "binary_codes"

    def targets(self, table: NeighbourTable, progress: float = 0.0) -> NeighbourTable:
        """The target distributions of an epoch, the first at progress 0, the last at 1; only `curriculum`'s change.

        Raises:
            ValueError: on an unknown representation or a number out of range, named.
        """
        if self.representation in ("one_hot", "binary_codes"):
            return one_hot(table)
        if self.representation == "uniform":
            return uniform(table, self.alpha)
        if self.representation == "neighbour_uniform":
            return neighbour_uniform(table, self.alpha)
        if self.representation not in get_args(Representation):
            raise ValueError(f"label representation {self.representation!r} is none of {get_args(Representation)}")
        semantic = neighbour_semantic(table, self.route, alpha=self.alpha, temperature=self.temperature)
        return harden(semantic, self.remaining, progress) if self.representation == "curriculum" else semantic


class NeighbourDivergence(nn.Module):
    """How odd an answer is: KL(soft label of a class ‖ prediction), small when the doubt is among near labels.

    Args:
        soft_labels: the table whose weights are the soft label of every class.
    """

    ids: Tensor
    weights: Tensor
    negative_entropy: Tensor

    def __init__(self, soft_labels: NeighbourTable) -> None:
        super().__init__()
        weights = soft_labels.weights
        self.register_buffer("ids", soft_labels.ids.long())
        self.register_buffer("weights", weights)
        self.register_buffer("negative_entropy", torch.xlogy(weights, weights).sum(1, keepdim=True))

    def forward(self, log_probability: Tensor, classes: Tensor) -> Tensor:
        """[B, C] log-probabilities and the class [B] whose soft label they are compared with -> [B, 1]."""
        near = log_probability.gather(1, self.ids[classes])
        return self.negative_entropy[classes] - (self.weights[classes] * near).sum(1, keepdim=True)


def one_hot(table: NeighbourTable) -> NeighbourTable:
    """1 on the class itself."""
    weights = torch.zeros_like(table.weights)
    weights[:, 0] = 1
    return replace(table, weights=weights, background=0.0)


def uniform(table: NeighbourTable, alpha: float = 0.1) -> NeighbourTable:
    """1 − α on the class itself, α/(C − 1) on every other class: label smoothing."""
    share = _check_alpha(alpha) / max(table.classes - 1, 1)
    weights = torch.full_like(table.weights, share)
    weights[:, 0] = 1 - alpha
    return replace(table, weights=weights, background=share)


def neighbour_uniform(table: NeighbourTable, alpha: float = 0.1) -> NeighbourTable:
    """1 − α on the class itself, α/K on each of its K neighbours."""
    _check_has_neighbours(table)
    weights = torch.full_like(table.weights, _check_alpha(alpha) / table.neighbours)
    weights[:, 0] = 1 - alpha
    return replace(table, weights=weights, background=0.0)


def neighbour_semantic(
    table: NeighbourTable, route: SemanticRoute = "similarity", *, alpha: float = 0.1, temperature: float = 0.1
) -> NeighbourTable:
    """Weights from label similarity s over the class itself and its K neighbours.

    Args:
        table: its similarities are used; its weights are not.
        route: "similarity": s, 1 for the class itself, normalised. "distance": softmax(−d/T) with d = 1 − s, 0 for the
            class itself. "share": 1 − α on the class itself, α shared among the neighbours in proportion to s.
            Negative similarities count as 0 in "similarity" and "share".
        alpha: α of "share", 0 ≤ α < 1.
        temperature: T of "distance", > 0.

    Raises:
        ValueError: on α, T or a route out of range, or for "similarity" and "share" when a class has no neighbour of
            positive similarity; the message names it.
    """
    _check_has_neighbours(table)
    similarities = table.similarities.double()
    if route == "distance":
        if not (math.isfinite(temperature) and temperature > 0):
            raise ValueError(f"temperature must be finite and > 0; got {temperature}")
        weights = torch.softmax((similarities - 1) / temperature, dim=1)
        return replace(table, weights=weights.float(), background=0.0)
    if route not in ("similarity", "share"):
        raise ValueError(f"route must be similarity, distance or share; got {route!r}")
    weights = similarities.clamp(min=0)
    near = weights[:, 1:].sum(dim=1, keepdim=True)
    _refuse(
        near.squeeze(1) == 0,
        lambda c: f"class {c} has no neighbours: none of its {table.neighbours} similarities is above 0",
    )
    if route == "similarity":
        weights = weights / (1 + near)
    else:
        weights = weights * _check_alpha(alpha) / near
        weights[:, 0] = 1 - alpha
    return replace(table, weights=weights.float(), background=0.0)


def harden(targets: NeighbourTable, remaining: float, progress: float) -> NeighbourTable:
    """Targets some way through the label-similarity curriculum.

    Each epoch multiplies the mass off the class itself by the same ε and renormalises the row: together that is one
    factor, `remaining` to the power of `progress`, and one normalisation.

    Args:
        targets: the targets of the first epoch.
        remaining: 0 ≤ remaining < 1, the factor in the last epoch.
        progress: 0 in the first epoch, which leaves the targets as they are, 1 in the last.

    Raises:
        ValueError: on a number out of range.
    """
    if not 0 <= remaining < 1:
        raise ValueError(f"remaining must be in [0, 1); got {remaining}")
    if not 0 <= progress <= 1:
        raise ValueError(f"progress must be in [0, 1]; got {progress}")
    if progress == 0:
        return targets
    left = remaining**progress
    weights = targets.weights.double()
    weights[:, 1:] *= left
    background = targets.background * left
    total = weights.sum(dim=1, keepdim=True) + background * (targets.classes - weights.shape[1])
    # With background mass every row has the same total (see `uniform`); one number can stay one number.
    return replace(targets, weights=(weights / total).float(), background=background / float(total[0]))


def class_names(paths: Sequence[tuple[str, ...]], naming: Naming = "path") -> list[str]:
    """The text that stands for each class when names are embedded.

    Args:
        paths: one path a class, from the top down.
        naming: "path": the whole path, "Apparel > Topwear > Tshirts"; "leaf": the last name alone, with as many of the
            names above it as it takes to tell it from every other class ("Pet Supplies > Accessories").

    Raises:
        ValueError: on an empty path, two classes of the same path, or an unknown naming; the message names the classes.
    """
    first: dict[tuple[str, ...], int] = {}
    for c, path in enumerate(paths):
        if not path or not all(name.strip() for name in path):
            raise ValueError(f"class {c} has an empty name: {path!r}")
        spelling = tuple(map(normal_label, path))
        if spelling in first:
            raise ValueError(f"classes {first[spelling]} and {c} have the same name {PATH_SEPARATOR.join(spelling)!r}")
        first[spelling] = c
    if naming == "path":
        return [PATH_SEPARATOR.join(path) for path in paths]
    if naming != "leaf":
        raise ValueError(f"naming must be leaf or path; got {naming!r}")
    endings = Counter(path[-length:] for path in paths for length in range(1, len(path) + 1))

    def shortest_ending(path: tuple[str, ...]) -> tuple[str, ...]:
        alone = (path[-length:] for length in range(1, len(path) + 1) if endings[path[-length:]] == 1)
        return next(alone, path)

    return [PATH_SEPARATOR.join(shortest_ending(path)) for path in paths]


def neighbours_of_names(
    paths: Sequence[tuple[str, ...]], encode: NameEncoder, k: int = NEIGHBOURS, naming: Naming = "path"
) -> NeighbourTable:
    """The k nearest labels of every label, by cosine of the embeddings of their names.

    Args:
        paths: one path a class, from the top down; all different.
        encode: names to embeddings [C, D]: a `SentenceEncoder`, or any text encoder.
        k: neighbours of each label.
        naming: what of the path is embedded, see `class_names`.

    Returns:
        A table with one_hot weights.

    Raises:
        ValueError: on duplicate or empty names, k ≥ C, or embeddings of the wrong shape, not finite or zero.
    """
    names = class_names(paths, naming)
    embeddings = encode(names)
    if embeddings.ndim != 2 or embeddings.shape[0] != len(names):
        raise ValueError(f"the encoder made {tuple(embeddings.shape)} of {len(names)} names; it must be [C, D]")
    return neighbours_of_embeddings(embeddings, k)


def neighbours_of_embeddings(
    embeddings: Array, k: int = NEIGHBOURS, *, block_bytes: int = BLOCK_BYTES
) -> NeighbourTable:
    """The k nearest labels of every label, by cosine, in blocks of rows.

    Args:
        embeddings: [C, D], any length; one row a label.
        k: neighbours of each label, 1 ≤ k < C.
        block_bytes: how much of the similarities is in memory at a time; at least one row is.

    Returns:
        A table with one_hot weights, on the device of the embeddings.

    Raises:
        ValueError: on k out of range, or an embedding that is not finite or zero; the message names the class.
    """
    if embeddings.ndim != 2:
        raise ValueError(f"embeddings must be [C, D]; got {tuple(embeddings.shape)}")
    rows = _float32_rows(embeddings, 0, embeddings.shape[0])
    length = rows.norm(dim=1)
    _refuse(~torch.isfinite(length), lambda c: f"the embedding of class {c} is not finite: similarities would be NaN")
    _refuse(length == 0, lambda c: f"the embedding of class {c} is zero: it has no direction to compare")
    unit = rows / length.unsqueeze(1)
    return _nearest(
        lambda start, stop: (unit[start:stop] @ unit.T).clamp_(-1, 1), unit.shape[0], k, block_bytes, unit.device
    )


def neighbours_of_similarities(
    similarities: Array, k: int = NEIGHBOURS, *, block_bytes: int = BLOCK_BYTES
) -> NeighbourTable:
    """The k nearest labels of every label from a given matrix, which is read in blocks of rows (it may be mapped).

    Args:
        similarities: [C, C], row c the similarities to class c; 1 on the diagonal, at most 1 elsewhere.
        k: neighbours of each label, 1 ≤ k < C.
        block_bytes: how much of the matrix is copied at a time; at least one row is.

    Returns:
        A table with one_hot weights.

    Raises:
        ValueError: on k out of range, a matrix that is not square, or an entry that is not finite or above 1, or not 1
            on the diagonal; the message names both classes and the value.
    """
    size = _check_square("similarities", similarities)

    def block(start: int, stop: int) -> Tensor:
        values = _float32_rows(similarities, start, stop)
        _check_entries("similarity", values, start, values <= 1 + 1e-4, own=1.0)
        return values.clamp(max=1)

    return _nearest(block, size, k, block_bytes, torch.device("cpu"))


def neighbours_of_distances(distances: Array, k: int = NEIGHBOURS, *, block_bytes: int = BLOCK_BYTES) -> NeighbourTable:
    """The k nearest labels of every label from a given distance matrix, read in blocks of rows.

    The table's similarities are 1 − d, so that route "distance" weighs with softmax(−d/T).

    Args:
        distances: [C, C], row c the distances from class c; 0 on the diagonal, ≥ 0 elsewhere.
        k: neighbours of each label, 1 ≤ k < C.
        block_bytes: how much of the matrix is copied at a time; at least one row is.

    Returns:
        A table with one_hot weights.

    Raises:
        ValueError: on k out of range, a matrix that is not square, or an entry that is not finite or negative, or not 0
            on the diagonal; the message names both classes and the value.
    """
    size = _check_square("distances", distances)

    def block(start: int, stop: int) -> Tensor:
        values = _float32_rows(distances, start, stop)
        _check_entries("distance", values, start, values >= -1e-4, own=0.0)
        return 1 - values.clamp(min=0)

    return _nearest(block, size, k, block_bytes, torch.device("cpu"))


def _nearest(
    block_of: Callable[[int, int], Tensor], classes: int, k: int, block_bytes: int, device: torch.device
) -> NeighbourTable:
    """The k largest entries of each row, given the rows start … stop−1 of the similarities at a time."""
    if not 1 <= k < classes:
        raise ValueError(f"k must be at least 1 and less than the number of classes; got k={k} with {classes} classes")
    ids = torch.empty(classes, k + 1, dtype=torch.int32, device=device)
    similarities = torch.ones(classes, k + 1, dtype=torch.float32, device=device)
    ids[:, 0] = torch.arange(classes, device=device)
    step = max(1, block_bytes // (4 * classes))
    for start in range(0, classes, step):
        block = block_of(start, min(start + step, classes))
        block.diagonal(start).fill_(-torch.inf)
        rows = slice(start, start + block.shape[0])
        similarities[rows, 1:], ids[rows, 1:] = _largest(block, k)
    weights = torch.zeros_like(similarities)
    weights[:, 0] = 1
    return NeighbourTable(ids, similarities, weights)


def _largest(block: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest values of each row and their columns; equal values in order of column, also where they straddle
    k."""
    values, columns = block.topk(k, dim=1)
    smallest = values[:, -1:]
    straddling = ((block >= smallest).sum(dim=1) > k).nonzero().flatten()
    for row in straddling.tolist():
        above = (block[row] > smallest[row]).nonzero().flatten()
        equal = (block[row] == smallest[row]).nonzero().flatten()
        columns[row] = torch.cat([above, equal])[:k]
    columns = columns.sort(dim=1).values
    values = block.gather(1, columns)
    values, order = values.sort(dim=1, descending=True, stable=True)
    return values, columns.gather(1, order).to(torch.int32)


def _float32_rows(matrix: Array, start: int, stop: int) -> Tensor:
    """Rows of the matrix as a tensor; those of an array are copied, since it may be mapped read-only from a file."""
    rows = matrix[start:stop]
    return rows.float() if isinstance(rows, Tensor) else torch.from_numpy(np.array(rows, dtype=np.float32))


def _check_square(name: str, matrix: Array) -> int:
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1]:
        raise ValueError(f"{name} must be [C, C]; got {tuple(matrix.shape)}")
    return int(matrix.shape[0])


def _check_entries(name: str, values: Tensor, start: int, allowed: Tensor, own: float) -> None:
    wrong = ~(torch.isfinite(values) & allowed)
    diagonal = torch.arange(values.shape[0])
    wrong[diagonal, diagonal + start] |= (values[diagonal, diagonal + start] - own).abs() > 1e-4
    if bool(wrong.any()):
        row, column = wrong.nonzero()[0].tolist()
        expected = f"{own:g}" if row + start == column else "finite and ≤ 1" if own == 1 else "finite and ≥ 0"
        value = float(values[row, column])
        raise ValueError(f"the {name} of class {row + start} to class {column} must be {expected}; got {value}")


def _check_alpha(alpha: float) -> float:
    if not 0 <= alpha < 1:
        raise ValueError(f"alpha must be in [0, 1); got {alpha}")
    return alpha


def _check_has_neighbours(table: NeighbourTable) -> None:
    if table.neighbours == 0:
        raise ValueError("class 0 has no neighbours: the table lists none for any class")


def _refuse(wrong: Tensor, message: Callable[[int], str]) -> None:
    """Raises ValueError with the message for the first class of which `wrong` [C] is true."""
    if bool(wrong.any()):
        raise ValueError(message(int(wrong.nonzero()[0])))
