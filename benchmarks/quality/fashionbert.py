"""FashionBERT on a real feed: what parts of its pre-training are worth, ranking, re-ranking and its cost, the audit.

A run a variant, all of one size, budget and seed; each is measured on the feed's test split:

    TIA accuracy and AUC   own title against another of the same type; queries likewise
    sample 100             the right one among 100 others of its sub-category, text to photo and photo to text, SumR
    re-ranking             made queries, the right product among 100, with milliseconds a candidate on one core
    entrance               both again by the cosine of what enters the stream, a dual encoder of the same towers
    audit                  share of planted swaps among the first 5 % of all held-out listings

Published, for scale (Fashion-Gen, whose licence keeps it from here): TIA accuracy .913, R@1 .24 / .29, SumR 251.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.results import ROOT, read, write
from catalogue.feed import detect_preset, open_feed
from catalogue.sample import generate_sample
from catalogue.store import Store, open_store
from models.fashionbert import FashionBert
from training.audit import audit, share_found, swap_titles
from training.bundle import Bundle
from training.embeddings import evaluating, in_batches
from training.examples import Examples
from training.match_tasks import match_probabilities
from training.match_text_image import MatchRecipe, MatchSettings
from training.recipe import digest, run_stages
from training.retrieval_metrics import figures_of_first, sampled_candidates, spread
from training.train import make_accelerator

FEED = ROOT.parent / "shared" / "data" / "fashion-60x80.parquet"
PACKAGES = ("torch", "transformers", "tokenizers", "numpy")
VARIANTS: Mapping[str, Mapping[str, Any]] = {
    "adaptive (softmax of losses)": {},
    "adaptive (gradient norms)": {"balance": "gradients"},
    "without contrast, as published": {"contrast": False},
    "equal weights": {"balance": "equal"},
    "without MPM": {"patch_modelling": False},
    "single tokens masked": {"whole_words": False},
    "8x8 patches": {"grid_rows": 8, "grid_columns": 8},
}
QUICK = ("adaptive (softmax of losses)", "equal weights")
PLANTED = 0.05
TIMED = 50
QUERIES = 250  # of each draw: a thousand of them are a million pairs, ten minutes of a core for every variant
FOLDER = ROOT / "runs" / "fashionbert"


def main(*, quick: bool, output: Path) -> None:
    """Trains and measures every variant, and writes each as it is done; one that was measured already is kept.

    quick: two variants on a small drawn feed, and fewer queries. Runs in runs/fashionbert go on where they were.
    """
    folder, feed_path, settings = FOLDER, FEED, MatchSettings()
    if quick or not FEED.is_file():
        folder = FOLDER / "quick"
        folder.mkdir(parents=True, exist_ok=True)
        feed_path = folder / "sample.parquet"
        generate_sample(feed_path, products=1500, seed=0)
        settings = settings.overridden({"pairs.epochs": 2, "image_height": 64, "image_width": 48})
    store = open_store(open_feed(feed_path, detect_preset(feed_path)), folder / "store", *settings.image_size)
    path = output / "fashionbert.json"
    rows = read(path)["rows"] if path.is_file() else []
    for name in QUICK if quick else VARIANTS:
        changed = settings.overridden(VARIANTS[name])
        trained = digest(store.digest, changed.model_dump_json())
        if any(row["trained"] == trained for row in rows):
            continue
        row = {"variant": name, "trained": trained, **measure(store, changed, folder / name, quick=quick)}
        rows = [other for other in rows if other["variant"] != name] + [row]
        print(f"{name}: {row['test']}  sample 100 {row['sample_100']}  audit {row['audit_found']:.0%}", flush=True)
        print(write("fashionbert", rows, PACKAGES, output), flush=True)


def measure(store: Store, settings: MatchSettings, folder: Path, *, quick: bool) -> dict[str, Any]:
    """Trains a variant, and all of its figures."""
    recipe = MatchRecipe(store, settings, make_accelerator())
    (model,) = run_stages(recipe, folder).values()
    with evaluating(model):
        return figures(recipe, model, queries=50 if quick else QUERIES, draws=1 if quick else 5)


def figures(recipe: MatchRecipe, model: FashionBert, *, queries: int, draws: int) -> dict[str, Any]:
    """All figures of a trained model on the test split."""
    return {
        "test": recipe.measure(model),
        "sample_100": sample_100(recipe.examples, model, queries, draws),
        "reranking": reranking(recipe, model, queries),
        "audit_found": audit_found(recipe, model),
        "milliseconds_per_candidate": milliseconds_per_candidate(recipe.examples, model),
    }


def sample_100(examples: Examples, model: FashionBert, queries: int, draws: int) -> dict[str, Any]:
    """Recall in both directions, mean and deviation over draws, and SumR, of the matcher and of its entrance alone.

    {} where the split is too small.
    """
    rows = examples.paired_rows("test")
    groups = [examples.store.categories[product][:2] for product in examples.product[rows]]
    if len(rows) <= 100:
        return {}
    titles = examples.input_ids, examples.attention_mask
    cosines = entrance(model, examples, rows, tuple(tokens[examples.product[rows]] for tokens in titles))
    found: dict[str, Any] = {"queries": queries, "matcher": {}, "entrance": {}}
    for direction in ("text to photo", "photo to text"):
        matched, entered = [], []
        for draw in range(draws):
            asked, candidates = sampled_candidates(groups, 0, draw, queries)
            own, other = np.repeat(rows[asked], candidates.shape[1]), rows[candidates].ravel()
            photo, text = (other, own) if direction == "text to photo" else (own, other)
            scores = match_probabilities(
                model, examples.store.photos, titles, examples.photo[photo], examples.product[text]
            )
            matched.append(figures_of_first(scores.reshape(candidates.shape)))
            by_cosine = cosines.T if direction == "text to photo" else cosines
            entered.append(figures_of_first(by_cosine[asked[:, None], candidates]))
        for name, measured in (("matcher", matched), ("entrance", entered)):
            found[name][direction] = {figure: asdict(value) for figure, value in spread(measured).items()}
    for name in ("matcher", "entrance"):
        recalls = [figures[f"recall_at_{k}"]["mean"] for figures in found[name].values() for k in (1, 5, 10)]
        found[name]["sum_r"] = 100 * sum(recalls)
    return found


def reranking(recipe: MatchRecipe, model: FashionBert, queries: int) -> dict[str, dict[str, float]]:
    """Made queries: recall and MRR of the right product among 100 others of its sub-category.

    By the matcher, which sees query, title and photo, and by the entrance alone, which compares query and photo.
    """
    examples = recipe.examples
    pairs = recipe.held_out("test", queries=True)
    rows, tokens = pairs.rows, pairs.query_tokens
    if len(rows) <= 100:
        return {}
    groups = [examples.store.categories[product][:2] for product in examples.product[rows]]
    asked, candidates = sampled_candidates(groups, 0, 0, queries)
    products = rows[candidates].ravel()
    scores = match_probabilities(
        model,
        examples.store.photos,
        (examples.input_ids, examples.attention_mask),
        examples.photo[products],
        examples.product[products],
        (np.repeat(tokens[0][asked], 101, axis=0), np.repeat(tokens[1][asked], 101, axis=0)),
    )
    cosines = entrance(model, examples, rows, tokens)
    return {
        "matcher": figures_of_first(scores.reshape(candidates.shape)),
        "entrance": figures_of_first(cosines.T[asked[:, None], candidates]),
    }


def entrance(model: FashionBert, examples: Examples, rows: np.ndarray, texts: tuple[np.ndarray, ...]) -> np.ndarray:
    """[B, N] cosines, over a temperature, of the photos of B examples with N texts as they enter the stream."""
    ids, mask = map(torch.from_numpy, texts)

    def cosines(numbers: np.ndarray) -> tuple[torch.Tensor, ...]:
        pixels = torch.from_numpy(examples.store.photos(examples.photo[numbers]))
        return (model.entrance(model.patches(pixels), ids, mask),)

    return np.asarray(in_batches(cosines, rows)[0].numpy())


def audit_found(recipe: MatchRecipe, model: FashionBert) -> float:
    """Share of planted swaps, 5 % of the held-out titles, that are in the 5 % listed first."""
    store, examples = recipe.store, recipe.examples
    rows = np.unique(examples.product[examples.paired_rows("test")])
    titles, swapped = swap_titles(store.titles, store.categories, rows, PLANTED, np.random.default_rng(0))
    if not len(swapped):
        return float("nan")
    planted = Bundle(recipe.config(model), model, recipe.tokenizer, ())
    listings = audit(planted, replace(store, titles=titles), "test")
    return share_found(listings, {store.ids[row] for row in swapped}, PLANTED)


def milliseconds_per_candidate(examples: Examples, model: FashionBert) -> float:
    """Of re-ranking 50 candidates by photo and title, patch features included, on one core; the fastest of three."""
    rows = examples.paired_rows("test")[:TIMED]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    batch = examples.batch(rows)
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        model.match(model.patches(batch["pixel_values"]), batch["input_ids"], batch["attention_mask"])
        seconds.append(time.perf_counter() - start)
    torch.set_num_threads(threads)
    return 1e3 * min(seconds) / len(rows)
