"""The category tree: which classes there are, in which order, and how far apart two of them lie.

Classes are paths from the top, kept in sorted order, so that the id of a class depends on the set of classes alone.
Distance between two classes is the height of their lowest common ancestor, the measure of how bad a mistake is
(Deng et al., ECCV 2010; Bertinetto et al., "Making Better Mistakes", CVPR 2020).
Reads lists of paths and both forms in which Google's product taxonomy goes round.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

from catalogue.product import Product, join_path, normal_label, parse_path

PATH_LINE = re.compile(r"\s*(?P<id>\d+) - (?P<path>.+)")
NESTED_SET_LINE = re.compile(r"\s*(?P<id>\d+) \| \[\s*(?P<left>\d+)-\s*(?P<right>\d+)\] \| (?P<label>.+)")


class Taxonomy:
    """A fixed list of classes and the tree that their paths span.

    Args:
        paths: one path a class, from the top down; ones that are or look the same (`normal_label`) count once. A class
            may lie above another class.

    Attributes:
        paths: the classes, sorted label by label (by code point, from the top down); the place is the class id.

    Raises:
        ValueError: there is no path, a path is empty, or a label is empty or contains ">" or a line break.
    """

    def __init__(self, paths: Iterable[tuple[str, ...]]) -> None:
        self.paths: tuple[tuple[str, ...], ...] = tuple(sorted({tuple(map(normal_label, path)) for path in paths}))
        if not self.paths:
            raise ValueError("a taxonomy needs at least one path")
        if not self.paths[0]:
            raise ValueError("a path of a taxonomy may not be empty")
        self.labels: tuple[str, ...] = tuple(join_path(path) for path in self.paths)
        self._ids = {path: i for i, path in enumerate(self.paths)}
        self._height: dict[tuple[str, ...], int] = {}
        for path in self.paths:
            for depth in range(len(path) + 1):
                node = path[:depth]
                self._height[node] = max(self._height.get(node, 0), len(path) - depth)

    @classmethod
    def from_paths(cls, paths: Iterable[tuple[str, ...]]) -> Taxonomy:
        """The taxonomy of these paths, see the class."""
        return cls(paths)

    @classmethod
    def from_products(cls, products: Iterable[Product]) -> Taxonomy:
        """The taxonomy of the categories that the products have; products of unknown category are passed over."""
        return cls({product.category for product in products if product.category})

    @classmethod
    def read_paths(cls, path: Path | str) -> Taxonomy:
        """Reads a file with one path "A > B > C" a line; blank lines and lines that begin with # are passed over.

        Raises:
            ValueError: a line is no path, or there is none; the message names the file and the line.
        """
        return cls(_read(Path(path), parse_path))

    @classmethod
    def read_google(cls, path: Path | str) -> Taxonomy:
        """Reads Google's product taxonomy; every category of it is a class (see `leaves` for the most specific).

        Both forms are understood, and told apart line by line: the official "id - A > B > C", and the listing as
        a nested set, "id | [left-right] | label", in which a category lies below those whose interval holds its own.

        Raises:
            ValueError: a line is of neither form, or there is none; the message names the file and the line.
        """
        open_intervals: list[tuple[int, str]] = []

        def parse(line: str) -> tuple[str, ...]:
            if official := PATH_LINE.fullmatch(line):
                return parse_path(official["path"])
            nested = NESTED_SET_LINE.fullmatch(line)
            if nested is None:
                raise ValueError("neither 'id - A > B > C' nor 'id | [left-right] | label'")
            left, right = int(nested["left"]), int(nested["right"])
            while open_intervals and open_intervals[-1][0] < left:
                open_intervals.pop()
            if left >= right or (open_intervals and right >= open_intervals[-1][0]):
                raise ValueError(f"interval [{left}-{right}] does not nest in the ones before it")
            open_intervals.append((right, normal_label(nested["label"])))
            labels = tuple(label for _, label in open_intervals)
            join_path(labels)
            return labels

        return cls(_read(Path(path), parse))

    def __len__(self) -> int:
        return len(self.paths)

    def __iter__(self) -> Iterator[tuple[str, ...]]:
        return iter(self.paths)

    def __contains__(self, path: object) -> bool:
        return path in self._ids

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Taxonomy) and self.paths == other.paths

    def __hash__(self) -> int:
        return hash(self.paths)

    def __repr__(self) -> str:
        return f"Taxonomy({len(self)} classes, {self.depth} levels)"

    @property
    def depth(self) -> int:
        """Number of levels: the labels in the longest path."""
        return self._height[()]

    def index(self, path: tuple[str, ...]) -> int:
        """The class id of a path.

        Raises:
            KeyError: the path is no class.
        """
        try:
            return self._ids[path]
        except KeyError:
            raise KeyError(f"{path!r} is no class of this taxonomy") from None

    def find(self, name: str) -> int:
        """The class id of a full path "A > B > C", or of a last label that only one class has.

        Raises:
            ValueError: no class has that name, or several have.
        """
        full, last = parse_path(name), normal_label(name)
        named = [i for i, path in enumerate(self.paths) if path == full or path[-1] == last]
        if len(named) != 1:
            candidates = "; ".join(self.labels[i] for i in named) or "none"
            raise ValueError(f"{name!r} must name one category; it names {len(named)}: {candidates}")
        return named[0]

    def label(self, i: int) -> str:
        """The path of class i as "A > B > C".

        Raises:
            IndexError: there is no class i.
        """
        if not 0 <= i < len(self.labels):
            raise IndexError(f"class {i} of a taxonomy of {len(self)}")
        return self.labels[i]

    def leaves(self) -> Taxonomy:
        """The taxonomy of those classes that lie above no other class."""
        return Taxonomy(path for path in self.paths if self._height[path] == 0)

    def height_of_lca(self, path_a: tuple[str, ...], path_b: tuple[str, ...]) -> int:
        """Taxonomy distance of two classes: the height of their lowest common ancestor.

        The height of a node is the number of edges on the longest way down from it to a leaf of this taxonomy. Two
        equal paths are 0 apart, siblings at the bottom 1, classes under different top labels `depth` (their lowest
        common ancestor is the root, above the top labels). A class and one below it are as far apart as the upper
        one is high.

        Raises:
            KeyError: a path is no class.
        """
        self.index(path_a)
        self.index(path_b)
        if path_a == path_b:
            return 0
        shared = 0
        for label_a, label_b in zip(path_a, path_b, strict=False):
            if label_a != label_b:
                break
            shared += 1
        return self._height[path_a[:shared]]


def most_frequent_paths(counts: Mapping[tuple[str, ...], int]) -> dict[str, tuple[str, ...]]:
    """By last label, the path that has the highest count; of equals the one that sorts first.

    Args:
        counts: number of products by path; the empty path is passed over.
    """
    best: dict[str, tuple[str, ...]] = {}
    for path in sorted(counts):
        if path and (path[-1] not in best or counts[path] > counts[best[path[-1]]]):
            best[path[-1]] = path
    return best


def _read(path: Path, parse: Callable[[str], tuple[str, ...]]) -> list[tuple[str, ...]]:
    paths = []
    for number, line in enumerate(path.read_text(encoding="utf-8-sig").splitlines(), start=1):
        if line.strip() and not line.startswith("#"):
            try:
                paths.append(parse(line))
            except ValueError as error:
                raise ValueError(f"{path}, line {number}: {error}") from error
    if not paths:
        raise ValueError(f"{path}: holds no category")
    return paths
