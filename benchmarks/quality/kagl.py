"""The public title-to-image benchmark on Fashion Product Images (KAGL, of Marqo's leaderboard), with our retriever.

Queries are titles, documents all photos of the feed; a title's products are the right ones. Nothing that is asked for
was seen in training: the products of all queries, and whatever has the title of one of them, are taken out of it.
Colour, brand and sub-category to product are scored on held-out products alone. Not zero-shot: ours learnt from the
other products of the same shop, which the published models never saw; but its photos have 60x80 pixels, theirs all.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import results
from benchmarks.quality.colours import DATA, REAL_FEED
from catalogue.feed import detect_preset, open_feed
from catalogue.product import SPLITS
from catalogue.store import Store, open_store, title_key
from models.retriever import Retriever
from training.recipe import STORE_FOLDER, run_stages
from training.retrieval import RetrievalRecipe, RetrievalSettings
from training.retrieval_examples import make_texts
from training.retrieval_metrics import RetrievalReport, retrieval_report
from training.retrieval_task import embed_rows, embed_texts
from training.settings import TrainConfig
from training.train import make_accelerator

RUNS = results.ROOT / "runs" / "benchmarks" / "kagl"
QUERIES = "kagl-title-to-image.json"
PUBLISHED = {
    "Marqo-FashionSigLIP": (0.179, 0.489, 0.293),
    "SigLIP B/16": (0.169, 0.468, 0.272),
    "FashionCLIP 2.0": (0.122, 0.404, 0.217),
    "OpenFashionCLIP": (0.091, 0.325, 0.170),
}
"""R@1, R@10 and MRR of title to image, zero-shot, photos at full resolution (marqo-ai/marqo-FashionCLIP)."""

Row = dict[str, Any]


@dataclass(frozen=True)
class Variant:
    """A training whose result is measured."""

    name: str
    settings: RetrievalSettings


VARIANTS: tuple[Variant, ...] = (
    Variant(
        "from scratch",
        RetrievalSettings(
            from_scratch=True,
            finetune=TrainConfig(epochs=12, batch_size=512, learning_rate=1e-3, weight_decay=1e-4),
        ),
    ),
    Variant("ImageNet", RetrievalSettings()),
)


def main(quick: bool, output: Path) -> None:
    """Measure and write JSON to `output`; quick: the frozen stage of the ImageNet tower for one epoch."""
    if not (DATA / QUERIES).is_file():
        print(f"{DATA / QUERIES} is not there: not measured")
        return
    variants = VARIANTS
    if quick:
        none = TrainConfig(epochs=0)
        short = RetrievalSettings().frozen.model_copy(update={"epochs": 1})
        variants = (Variant("ImageNet, quick", RetrievalSettings(frozen=short, finetune=none)),)
    rows: list[Row] = [
        {"model": name, "zero_shot": True, "recall_at_1": r1, "recall_at_10": r10, "mrr": mrr}
        for name, (r1, r10, mrr) in PUBLISHED.items()
    ]
    for variant in variants:
        for row in measure(variant):
            rows.append(row)
            print(row, flush=True)
            results.write("kagl", rows, ("torch", "transformers", "numpy"), output)


def measure(variant: Variant) -> list[Row]:
    """Trains a variant and asks each of its candidates."""
    path = DATA / REAL_FEED
    settings = variant.settings
    store = open_store(open_feed(path, detect_preset(path)), RUNS / STORE_FOLDER, *settings.image_size)
    relevant = json.loads((DATA / QUERIES).read_text(encoding="utf-8"))
    hold_out(store, relevant)
    recipe = RetrievalRecipe(store, settings, make_accelerator())
    candidates = run_stages(recipe, RUNS / variant.name.replace(" ", "-"))
    return [
        {
            "model": f"{variant.name}, {stage}",
            "zero_shot": False,
            "trained_on": len(store.rows("train")),
            **summary(ask_titles(recipe, model, relevant)),
            "attributes": recipe.measure(model)["attributes"],
        }
        for stage, model in candidates.items()
    ]


def hold_out(store: Store, relevant: Mapping[str, Sequence[str]]) -> None:
    """Moves what the queries ask for, and all that has the title of a query or of such a product, to the test split."""
    asked = {product for products in relevant.values() for product in products}
    titles = {title_key(title) for title in relevant}
    titles |= {title_key(title) for number, title in zip(store.ids, store.titles, strict=True) if number in asked}
    held_out = [
        number in asked or title_key(title) in titles for number, title in zip(store.ids, store.titles, strict=True)
    ]
    store.splits[np.flatnonzero(held_out)] = SPLITS.index("test")


def ask_titles(recipe: RetrievalRecipe, model: Retriever, relevant: Mapping[str, Sequence[str]]) -> RetrievalReport:
    """All queries against all photos, each title parsed as the server does it."""
    examples, vocabulary = recipe.examples, recipe.vocabulary
    photos = np.flatnonzero(examples.examples.image_present)
    photos = photos[np.unique(examples.examples.product[photos], return_index=True)[1]]
    documents = embed_rows(model, examples, photos)
    place = {recipe.store.ids[product]: row for row, product in enumerate(documents.products)}
    parsed = [vocabulary.parse(title) for title in relevant]
    texts = make_texts(
        recipe.tokenizer, vocabulary, [text.description for text in parsed], [text.entities for text in parsed]
    )
    queries = embed_texts(model, texts, np.arange(len(parsed)))
    found = [[place[product] for product in products if product in place] for products in relevant.values()]
    return retrieval_report(queries, documents.image_embeds, found)


def summary(report: RetrievalReport) -> dict[str, float]:
    """The figures that the leaderboard has."""
    return {"queries": report.queries, **report.flat()}
