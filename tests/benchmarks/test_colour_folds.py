"""Folds of colour groups: every group is tested once, and never where it was learnt."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from scipy.stats import ttest_1samp

from benchmarks.quality.colour_folds import DEFAULT, FOLDS, fold_split, folds_table, interval

GROUPS = [f"brand {number} shirt" for number in range(2000)]


def test_every_group_is_tested_in_one_fold_and_the_folds_are_alike() -> None:
    tested = Counter(fold for group in GROUPS for fold in range(FOLDS) if fold_split(group, fold) == "test")
    assert sum(tested.values()) == len(GROUPS)
    assert min(tested.values()) > 330
    for fold in range(FOLDS):
        shares = Counter(fold_split(group, fold) for group in GROUPS)
        assert shares["val"] == pytest.approx(200, abs=50)
        assert shares["train"] == pytest.approx(1400, abs=100)


def test_an_interval_is_students() -> None:
    figures = [0.90, 0.92, 0.91, 0.95, 0.93]
    known = ttest_1samp(figures, 0).confidence_interval(0.95)
    assert interval(figures) == f"{np.mean(figures):.3f} ± {(known.high - known.low) / 2:.3f}"
    assert interval([0.5]) == "0.500"


def test_ways_are_compared_fold_by_fold() -> None:
    rows = [
        {"way": way, "fold": fold, "asked": "real", "one_to_one": {"images": level + 0.1 * fold, "products": 0.5}}
        for way, level in ((DEFAULT, 0.5), ("better", 0.52))
        for fold in range(FOLDS)
    ]
    (better,) = [line for line in folds_table(rows).splitlines() if "better" in line and "images" in line]
    assert "0.020 ± 0.000" in better, "folds differ, the difference does not"
