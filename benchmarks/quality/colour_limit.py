"""How far the colour labels of a feed can be trusted: the limit of any matcher that is measured against them.

Two measures that know nothing of each other. Repeated photos: many feeds list one photo twice, to the last pixel; where
the two listings name different colours, no system can be right on both. If labels of a photo are drawn from what
annotators would say, with p_c for colour c, two listings agree with probability sum p_c^2, and a perfect predictor is
right with max p_c <= sqrt(sum p_c^2): with agreement a over all photos, accuracy is sqrt(a) at most (Jensen).
Doubted labels: confident learning (Northcutt et al., 2021) by two judges of different make, neither of which saw the
product. A label is doubted when both give the photo to one other label of its product, each at least as sure as it is
on average of photos that do carry that label. How sharp the judges are is measured on exchanged labels.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from catalogue.colour_groups import ColourGroup
from models.assignment import one_to_one
from training.colour_examples import ColourExamples


@dataclass(frozen=True)
class RepeatedPhotos:
    """Pairs of listings with the same pixels.

    Attributes:
        pairs: how many pairs.
        disagree: share of them under different colours.
        limit: the largest share of photos that a perfect predictor of such labels gets right.
    """

    pairs: int
    disagree: float
    limit: float


@dataclass(frozen=True)
class DoubtedLabels:
    """What two judges doubt among products of one photo a label.

    Attributes:
        images, products: shares of photos, and of products with any photo, whose label both doubt.
        both_wrong: share of products where neither judge's one-to-one answer is the labels'.
        mistakes, mistakes_doubted: products that the second judge gets wrong, and those with a doubted label.
        sensitivity: share of labels doubted after two labels of every product were exchanged.
    """

    images: float
    products: float
    both_wrong: float
    mistakes: int
    mistakes_doubted: int
    sensitivity: float


def repeated_photos(examples: ColourExamples, *, named: bool) -> RepeatedPhotos:
    """How often the colours of photos agree that are the same to the last pixel.

    Args:
        examples: the photos.
        named: only those whose title names their colour, which is what real groups are made of.

    Raises:
        ValueError: no photo is there twice.
    """
    listings: dict[int, list[str]] = {}
    for key, variant in zip(examples.store.photo_keys.tolist(), examples.variants, strict=True):
        if variant is not None and (variant.named or not named):
            listings.setdefault(key, []).append(variant.colour)
    pairs = disagree = 0
    for colours in listings.values():
        total = len(colours) * (len(colours) - 1) // 2
        same = sum(colours.count(colour) * (colours.count(colour) - 1) // 2 for colour in set(colours))
        pairs, disagree = pairs + total, disagree + total - same
    if not pairs:
        raise ValueError("no photo of the feed is there twice")
    return RepeatedPhotos(pairs, disagree / pairs, float(np.sqrt(1 - disagree / pairs)))


def doubted_labels(groups: Sequence[ColourGroup], judges: Sequence[Sequence[np.ndarray]]) -> DoubtedLabels:
    """What two judges say of the labels of products.

    Args:
        groups: products with as many labels as photos.
        judges: of each judge the probabilities [n, n] for every product.

    Raises:
        ValueError: there is no product.
    """
    if not groups:
        raise ValueError("there is no product to judge")
    labels = [np.array(group.answers) for group in groups]
    doubts = _doubts(groups, labels, judges)
    wrong = [
        np.array([bool((one_to_one(p) != given).any()) for p, given in zip(judge, labels, strict=True)])
        for judge in judges
    ]
    doubted = np.array([marks.any() for marks in doubts])
    exchanged = [_exchanged(given, random.Random(number)) for number, given in enumerate(labels)]
    found = _doubts(groups, exchanged, judges)
    moved = np.concatenate([new != given for new, given in zip(exchanged, labels, strict=True)])
    return DoubtedLabels(
        images=float(np.concatenate(doubts).mean()),
        products=float(doubted.mean()),
        both_wrong=float(np.logical_and.reduce(wrong).mean()),
        mistakes=int(wrong[-1].sum()),
        mistakes_doubted=int((wrong[-1] & doubted).sum()),
        sensitivity=float(np.concatenate(found)[moved].mean()),
    )


def _doubts(
    groups: Sequence[ColourGroup], labels: Sequence[np.ndarray], judges: Sequence[Sequence[np.ndarray]]
) -> list[np.ndarray]:
    """Of each product which photos' labels [n] all judges doubt."""
    usual = [_usual_confidence(groups, labels, judge) for judge in judges]
    doubts = []
    for number, (group, given) in enumerate(zip(groups, labels, strict=True)):
        photos = np.arange(len(given))
        picks = [one_to_one(judge[number]) for judge in judges]
        marks = (picks[0] != given) & np.logical_and.reduce([pick == picks[0] for pick in picks])
        for judge, confidence in zip(judges, usual, strict=True):
            expected = np.array([confidence[group.colours[label]] for label in picks[0]])
            marks &= judge[number][photos, picks[0]] >= expected
        doubts.append(marks)
    return doubts


def _usual_confidence(
    groups: Sequence[ColourGroup], labels: Sequence[np.ndarray], judge: Sequence[np.ndarray]
) -> dict[str, float]:
    """A judge's mean probability of each colour on the photos that carry it: confident learning's threshold."""
    given: dict[str, list[float]] = {}
    for group, answers, probability in zip(groups, labels, judge, strict=True):
        for photo, label in enumerate(answers):
            given.setdefault(group.colours[label], []).append(float(probability[photo, label]))
    return {colour: float(np.mean(values)) for colour, values in given.items()}


def _exchanged(labels: np.ndarray, chance: random.Random) -> np.ndarray:
    """Labels [n], n ≥ 2, of which two changed places."""
    first, second = chance.sample(range(len(labels)), 2)
    new = labels.copy()
    new[[first, second]] = labels[[second, first]]
    return new
