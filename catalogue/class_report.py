"""How the classes and the splits of a catalogue are filled, and what whoever trains on it should be told.

Twins are categories that differ in upper and lower case alone, at any level: "Home > Mugs" and "home > Mugs" learn
against each other. The spelling that most products have wins where they are merged.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from catalogue.product import SPLITS, Split, join_path

Path = tuple[str, ...]
NAMED = 3


@dataclass(frozen=True)
class ClassReport:
    """Products counted by class and split.

    Attributes:
        products: number of products by split; all splits are there.
        untrained: classes of which products are held out, and none is in training.
        single: classes of which one product is in training.
        twins: groups of classes that differ in case alone, each with its number of products, the largest first.
    """

    products: Mapping[Split, int]
    untrained: tuple[Path, ...]
    single: tuple[Path, ...]
    twins: tuple[tuple[tuple[Path, int], ...], ...]

    @classmethod
    def of(cls, categories: Iterable[Path], splits: Iterable[Split]) -> ClassReport:
        """Counts products, given by category (() when unknown) and split, in the same order."""
        products = dict.fromkeys(SPLITS, 0)
        held: Counter[Path] = Counter()
        training: Counter[Path] = Counter()
        for path, split in zip(categories, splits, strict=True):
            products[split] += 1
            if path:
                (training if split == "train" else held)[path] += 1
        counts = held + training
        alike: dict[str, list[tuple[Path, int]]] = {}
        for path, count in sorted(counts.items(), key=lambda item: (-item[1], item[0])):
            alike.setdefault(join_path(path).casefold(), []).append((path, count))
        return cls(
            products=products,
            untrained=tuple(sorted(held.keys() - training.keys())),
            single=tuple(sorted(path for path, count in training.items() if count == 1)),
            twins=tuple(tuple(group) for group in alike.values() if len(group) > 1),
        )

    @property
    def empty_splits(self) -> tuple[Split, ...]:
        """The splits that have no product."""
        return tuple(split for split in SPLITS if not self.products[split])

    def warnings(self) -> list[str]:
        """A sentence for everything that is amiss; none when all is well."""
        warnings = []
        if self.untrained:
            warnings.append(f"{_classes(self.untrained)} without a training product cannot be learned")
        if self.single:
            warnings.append(f"{_classes(self.single)} with a single training product")
        for group in self.twins:
            spellings = ", ".join(f"{join_path(path)!r} ({count})" for path, count in group)
            warnings.append(
                f"categories that differ in case alone are kept apart: {spellings}; --merge-case joins them"
            )
        if "train" in self.empty_splits:
            warnings.append("no product is in the training split: nothing can be learned")
        if "val" in self.empty_splits:
            warnings.append("no product is in the validation split: nothing to choose a model by")
        if "test" in self.empty_splits:
            warnings.append("no product is in the test split: nothing measured")
        return warnings


def _classes(paths: tuple[Path, ...]) -> str:
    named = ", ".join(repr(join_path(path)) for path in paths[:NAMED])
    more = f" and {len(paths) - NAMED} more" if len(paths) > NAMED else ""
    return f"{len(paths)} {'class' if len(paths) == 1 else 'classes'} ({named}{more})"


def frequent_spellings(counts: Mapping[Path, int]) -> dict[Path, Path]:
    """For every path that has twins, the one spelling of all: at each level the one that most products have.

    Args:
        counts: number of products by path. Of equally frequent spellings the one that sorts first wins.
    """
    spellings: dict[Path, Counter[str]] = {}
    for path, count in counts.items():
        folded = tuple(label.casefold() for label in path)
        for depth, label in enumerate(path, start=1):
            spellings.setdefault(folded[:depth], Counter())[label] += count
    best = {node: min(seen, key=lambda label: (-seen[label], label)) for node, seen in spellings.items()}
    merged = {}
    for path in counts:
        folded = tuple(label.casefold() for label in path)
        common = tuple(best[folded[:depth]] for depth in range(1, len(path) + 1))
        if common != path:
            merged[path] = common
    return merged
