"""The quality suite's figures on a small matcher: every one is there, and where it must lie."""

from __future__ import annotations

import math
from pathlib import Path

import torch

from benchmarks.quality.fashionbert import VARIANTS, figures
from catalogue.feed import open_feed
from catalogue.sample import generate_sample
from catalogue.store import open_store
from training.match_text_image import MatchRecipe, MatchSettings
from training.train import make_accelerator


def test_variants_are_settings() -> None:
    assert all(MatchSettings().overridden(changes) for changes in VARIANTS.values())


@torch.no_grad()
def test_figures_of_an_untrained_matcher_are_those_of_a_guess(tmp_path: Path) -> None:
    generate_sample(tmp_path / "sample.parquet", products=1200, seed=0)
    settings = MatchSettings(image_height=64, image_width=48, hidden_size=48, layers=1, vocab_size=3000)
    store = open_store(open_feed(tmp_path / "sample.parquet"), tmp_path / "store", 64, 48)
    recipe = MatchRecipe(store, settings, make_accelerator())
    found = figures(recipe, recipe.model.eval(), queries=20, draws=1)
    assert abs(found["test"]["title"]["auc"] - 0.5) < 0.2
    assert abs(found["test"]["query"]["auc"] - 0.5) < 0.2
    for way in ("matcher", "entrance"):
        for direction in ("text to photo", "photo to text"):
            recall = found["sample_100"][way][direction]["recall_at_10"]["mean"]
            assert recall < 0.35, "a guess finds one in ten"
        assert found["sample_100"][way]["sum_r"] < 120
        assert found["reranking"][way]["mrr"] < 0.3
    assert 0 <= found["audit_found"] <= 0.5
    assert math.isfinite(found["milliseconds_per_candidate"])
