"""Honest probabilities, and what they are worth: which answers need no person.

A temperature is fitted by maximum likelihood on products kept aside (Guo et al., "On Calibration of Modern Neural
Networks", ICML 2017); a threshold is the lowest probability from which answers are right as often as was asked for,
one mistake more counted than was seen (the selection of conformal risk control, Angelopoulos et al., 2022), so that few
products make no promise.  What follows for a catalogue is risk against coverage (Geifman and El-Yaniv, 2017): the share
of products filed without a person and how many of those are right, by probability and by `neighbour_kl`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import minimize_scalar
from scipy.stats import rankdata
from torch import Tensor
from torch.nn import functional as F

from models.category_head import NEVER, CategoryHead, way_number

from .category_tasks import logits_by_way
from .embeddings import Embeddings
from .labels import NeighbourDivergence

SMALLEST_TEMPERATURE, LARGEST_TEMPERATURE = 0.05, 20.0
CONFIDENCES = (0.5, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995)
PRECISIONS = (0.95, 0.98, 0.99, 0.995)


def fit_temperature(logits: Tensor, labels: Tensor) -> float:
    """The temperature T for which softmax(logits / T) explains the labels best.

    Args:
        logits: [N, C].
        labels: [N] int64.

    Returns:
        Between `SMALLEST_TEMPERATURE` and `LARGEST_TEMPERATURE`; 1 for no row.
    """
    if not len(labels):
        return 1.0
    exact, labels = logits.detach().double().cpu(), labels.cpu()
    found = minimize_scalar(  # convex in 1/T, so there is one minimum in log T
        lambda log_temperature: float(F.cross_entropy(exact / np.exp(log_temperature), labels)),
        bounds=(np.log(SMALLEST_TEMPERATURE), np.log(LARGEST_TEMPERATURE)),
        method="bounded",
        options={"xatol": 1e-6},
    )
    return float(np.exp(found.x))


def threshold(confidence: np.ndarray, right: np.ndarray, precision: float) -> float | None:
    """The lowest confidence from which answers are right in the share `precision` of cases, one mistake added.

    Args:
        confidence: [N], of each answer; more is surer.
        right: [N] bool.
        precision: wanted share.

    Returns:
        A value of `confidence`; None where no set of sure answers is good and large enough.
    """
    values, filed, correct = _filed(confidence, right)
    good = np.flatnonzero((correct + 1e-9) >= precision * (filed + 1))  # (mistakes + 1) / (filed + 1) <= 1 - precision
    return float(values[good[-1]]) if len(good) else None


@dataclass(frozen=True)
class Filing:
    """What is filed without a person from a confidence on, and how much of it rightly.

    Attributes:
        confidence: the lowest that is filed.
        share: of all products that are filed.
        precision: share of those that are right; None where nothing is filed.
    """

    confidence: float
    share: float
    precision: float | None


def filing(confidence: np.ndarray, right: np.ndarray, lowest: float) -> Filing:
    """What is filed of answers [N] when those of `lowest` confidence and above are."""
    sure = confidence >= lowest
    return Filing(lowest, float(sure.mean()), float(right[sure].mean()) if sure.any() else None)


def share_at(confidence: np.ndarray, right: np.ndarray, precision: float) -> float:
    """The largest share of answers [N] that can be filed, surest first, with at least `precision` of them right."""
    _, filed, correct = _filed(confidence, right)
    good = np.flatnonzero(correct >= precision * filed - 1e-9)
    return float(filed[good[-1]] / len(right)) if len(good) else 0.0


def mistakes_found(confidence: np.ndarray, right: np.ndarray) -> float | None:
    """The chance that a wrong answer has less confidence than a right one (the area under the ROC curve), ties half;
    None where all answers are right or all are wrong."""
    wrong = int((~right).sum())
    if not 0 < wrong < len(right):
        return None
    ranks = rankdata(confidence)[right]
    rights = len(ranks)
    return float((ranks.sum() - rights * (rights + 1) / 2) / (rights * wrong))


@dataclass(frozen=True)
class AnswerReport:
    """What a person is spared in one way to ask; measured on products that neither training nor fitting has seen.

    Attributes:
        temperature: the logits are divided by.
        sure: what is filed at the threshold chosen on the validation split.
        by_probability: what is filed from each of the `CONFIDENCES` on.
        share_by_probability, share_by_neighbour_kl: by each of the `PRECISIONS`, the largest share that could be filed.
        mistakes_found_by_probability, mistakes_found_by_neighbour_kl: the area under the ROC curve.
    """

    temperature: float
    sure: Filing
    by_probability: Sequence[Filing]
    share_by_probability: dict[str, float]
    share_by_neighbour_kl: dict[str, float]
    mistakes_found_by_probability: float | None
    mistakes_found_by_neighbour_kl: float | None


def calibrate_head(head: CategoryHead, validation: Embeddings, precision: float) -> None:
    """Fits a head's temperatures and thresholds, those of each way to ask on the rows that can be asked so.

    Args:
        head: in evaluation mode.
        validation: embeddings of products kept aside.
        precision: wanted share of right answers among those from `sure_from` on.
    """
    head.temperature.fill_(1.0)
    head.sure_from.fill_(NEVER)
    for way, logits, labels in logits_by_way(head, validation):
        number = way_number(way)
        head.temperature[number] = fit_temperature(head.class_logits(logits), labels)
        probability, classes = head.log_probability(logits, number).exp().max(1)
        found = threshold(probability.cpu().numpy(), (classes == labels).cpu().numpy(), precision)
        head.sure_from[number] = NEVER if found is None else found


def answer_reports(
    head: CategoryHead, embeddings: Embeddings, divergence: NeighbourDivergence, among: np.ndarray | None = None
) -> dict[str, AnswerReport]:
    """What a person is spared in each way to ask.

    Args:
        head: calibrated, in evaluation mode.
        embeddings: of M products that it was not calibrated on.
        divergence: gives `neighbour_kl`.
        among: [M] bool, which of them; all when None.
    """
    reports = {}
    for way, logits, labels in logits_by_way(head, embeddings, among):
        number = way_number(way)
        top, classes = head.log_probability(logits, number).cpu().max(1)
        as_trained = torch.log_softmax(head.class_logits(logits).float().cpu(), dim=1)
        reports[way] = answer_report(
            top.exp().numpy(),
            divergence(as_trained, classes)[:, 0].numpy(),
            (classes == labels.cpu()).numpy(),
            float(head.temperature[number]),
            float(head.sure_from[number]),
        )
    return reports


def answer_report(
    probability: np.ndarray, neighbour_kl: np.ndarray, right: np.ndarray, temperature: float, sure_from: float
) -> AnswerReport:
    """The report of answers [N] with their probability, their divergence from the soft label, and whether they are
    right."""
    ways = {"probability": probability, "neighbour_kl": -neighbour_kl}
    shares = {name: {f"{at:g}": share_at(values, right, at) for at in PRECISIONS} for name, values in ways.items()}
    found = {name: mistakes_found(values, right) for name, values in ways.items()}
    return AnswerReport(
        temperature,
        filing(probability, right, sure_from),
        [filing(probability, right, lowest) for lowest in CONFIDENCES],
        shares["probability"],
        shares["neighbour_kl"],
        found["probability"],
        found["neighbour_kl"],
    )


def _filed(confidence: np.ndarray, right: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Each confidence that occurs, falling, with the number of answers from it on and how many of them are right."""
    order = np.argsort(-confidence, kind="stable")
    sorted_values = confidence[order]
    last = np.flatnonzero(np.append(sorted_values[1:] != sorted_values[:-1], True)) if len(order) else order
    return sorted_values[last], last + 1, np.cumsum(right[order])[last]
