"""What entities bring: EI-CLIP beside its rivals and without its parts, on the same features, with the same budget.

    ① untuned       a CLIP folder as it is (SHELFWISE_CLIP), on whole titles
    ② description   tuned on descriptions, titles without brand and colour
    ③ concatenated  tuned on descriptions with all entities behind them, as words
    ④ equal gates   EI-CLIP with every w_k = 1
    ⑤ EI-CLIP       gates learnt

All tuned rows stand on one frozen image tower whose features are computed once, and take equally many steps from the
same seeds; all candidates of the test split. Then EI-CLIP with each group alone, in other batch sizes, and with a group
drawn at random put in, whose gate should be the smallest.
"""

from __future__ import annotations

import copy
import os
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import results
from benchmarks.quality.colours import DATA, REAL_FEED
from catalogue.entities import EntityVocabulary
from catalogue.feed import detect_preset, open_feed
from catalogue.sample import generate_sample
from catalogue.store import open_store
from models.checkpoints import image_encoder_from_checkpoint, text_encoder_from_checkpoint
from models.entities import EntityConfig, EntityTower
from models.retriever import Retriever
from models.tokenizer import load_tokenizer, set_length
from training.recipe import STORE_FOLDER
from training.retrieval import RetrievalRecipe, RetrievalSettings, make_towers, split_figures
from training.retrieval_examples import RetrievalExamples, TextViews, make_retrieval_examples, make_texts
from training.retrieval_task import RetrievalTask, embed_rows, photo_features
from training.settings import TrainConfig
from training.train import fit, make_accelerator

RUNS = results.ROOT / "runs" / "benchmarks" / "retrieval"
SEEDS = (0, 1, 2)
BATCH_SIZES = (16, 32, 64, 128)
BUDGET = TrainConfig(
    epochs=4, batch_size=256, learning_rate=1e-3, weight_decay=1e-4, rates={"image_encoder.backbone": 0.0}
)
AS_THE_FEED_SAYS = TextViews(title_entities=0.0, title=0.0, entity_dropout=0.0)
NOISE_GROUP = "drawn at random"
CLIP = os.environ.get("SHELFWISE_CLIP")
Row = dict[str, Any]


@dataclass(frozen=True)
class Variant:
    """What a model is told of a product, and how.

    `groups`: which entities have encoders; `gated`: their gates are learnt; `words`: they stand in the description.
    """

    name: str
    groups: tuple[str, ...] = ()
    gated: bool = True
    words: bool = False


def main(quick: bool, output: Path) -> None:
    """Measure and write JSON to `output`; quick: a drawn feed, one seed, two epochs, the rows alone."""
    rows: list[Row] = []
    for row in measure(quick):
        rows.append(row)
        print({name: value for name, value in row.items() if not isinstance(value, dict)}, flush=True)
        results.write("retrieval", rows, ("torch", "transformers", "numpy"), output)


def measure(quick: bool) -> Iterator[Row]:
    """A row a variant and seed."""
    path = DATA / REAL_FEED
    if quick or not path.is_file():
        path = RUNS / "drawn.parquet"
        if not path.is_file():
            path.parent.mkdir(parents=True, exist_ok=True)
            generate_sample(path, 1_000)
    bench = Bench(path, BUDGET.model_copy(update={"epochs": 2}) if quick else BUDGET)
    groups = bench.recipe.vocabulary.groups
    whole = Variant("⑤ EI-CLIP", groups)
    if CLIP is not None:
        yield bench.untuned(Path(CLIP))
    for seed in SEEDS[:1] if quick else SEEDS:
        yield bench.tuned(Variant("② description"), seed)
        yield bench.tuned(Variant("③ concatenated", groups, words=True), seed)
        yield bench.tuned(replace(whole, name="④ equal gates", gated=False), seed)
        yield bench.tuned(whole, seed)
    if quick:
        return
    for group in groups:
        yield bench.tuned(Variant(f"{group} alone", (group,)), SEEDS[0])
    for size in BATCH_SIZES:
        yield bench.tuned(replace(whole, name=f"batches of {size}"), SEEDS[0], size)
    yield bench.tuned(replace(whole, name=f"with a group {NOISE_GROUP}", groups=(*groups, NOISE_GROUP)), SEEDS[0])


class Bench:
    """A feed with the features of its photos, to train variants on.

    Args:
        path: of the feed.
        budget: settings of every training.
    """

    def __init__(self, path: Path, budget: TrainConfig) -> None:
        self.settings = RetrievalSettings()
        feed = open_feed(path, detect_preset(path))
        self.accelerator = make_accelerator()
        store = open_store(feed, RUNS / STORE_FOLDER, *self.settings.image_size)
        generator = np.random.default_rng(0)
        store.entities[NOISE_GROUP] = [f"value {number}" for number in generator.integers(0, 20, len(store))]
        self.recipe = RetrievalRecipe(store, self.settings, self.accelerator)
        self.features = photo_features(self.recipe.model.image_encoder, self.recipe.examples)
        self.budget = budget

    def tuned(self, variant: Variant, seed: int, batch_size: int | None = None) -> Row:
        """Trains a variant and measures it on the test split."""
        torch.manual_seed(seed)
        recipe = self.recipe
        vocabulary = self.vocabulary(() if variant.words else variant.groups)
        examples = self.examples(vocabulary, variant.groups if variant.words else ())
        # As the recipe's towers, but for random weights of their own: the same for every variant of a seed.
        titles = [recipe.store.titles[row] for row in recipe.store.rows("train")]
        _, _, text_encoder = make_towers([title for title in titles if title], self.settings)
        entities = None
        if vocabulary.groups:
            entities = EntityTower(
                EntityConfig(
                    groups=vocabulary.groups,
                    sizes=tuple(len(names) for names in vocabulary.values.values()),
                    embed_dim=self.settings.embed_dim,
                    gated=variant.gated,
                )
            )
        model = Retriever(copy.deepcopy(recipe.model.image_encoder), text_encoder, entities)
        task = RetrievalTask("variant", model, examples, AS_THE_FEED_SAYS, self.features)
        config = self.budget.model_copy(update={"batch_size": batch_size or self.budget.batch_size})
        with tempfile.TemporaryDirectory() as temporary:  # no checkpoint: the next variant has the same name
            fit(task, config, Path(temporary), self.accelerator, seed=seed)
        rows = examples.held_out("test")
        embedded = embed_rows(model, examples, rows, features=self.features)
        row: Row = {"variant": variant.name, "seed": seed, "batch_size": config.batch_size, "epochs": config.epochs}
        row |= split_figures(embedded, recipe.store)
        if entities is not None and entities.config.gated:
            ids = torch.from_numpy(examples.feed.entity_ids[embedded.products])
            row["gates"] = entities.mean_gates(ids.to(model.logit_scale.device))
        return row

    def untuned(self, folder: Path) -> Row:
        """A CLIP folder as it is, on whole titles; photos in its own size."""
        image_encoder = image_encoder_from_checkpoint(folder, self.settings.embed_dim)
        text_encoder = text_encoder_from_checkpoint(folder, self.settings.embed_dim, 64)
        tokenizer = set_length(load_tokenizer(folder), 64)
        config, path = image_encoder.config, DATA / REAL_FEED
        store = open_store(open_feed(path, detect_preset(path)), RUNS / STORE_FOLDER, config.height, config.width)
        examples = make_retrieval_examples(store, tokenizer, EntityVocabulary({}))
        model = Retriever(image_encoder, text_encoder).to(self.accelerator.device)
        embedded = embed_rows(model, examples, examples.held_out("test"), examples.titles)
        return {"variant": "① untuned", "seed": 0, "epochs": 0, **split_figures(embedded, store)}

    def vocabulary(self, groups: Sequence[str]) -> EntityVocabulary:
        """The vocabulary of some groups, with the one drawn at random if it is asked for."""
        store = self.recipe.store
        training = store.rows("train")
        columns = {group: [store.entities[group][row] for row in training] for group in groups}
        return EntityVocabulary.from_columns(columns, self.settings.min_count)

    def examples(self, vocabulary: EntityVocabulary, as_words: Sequence[str]) -> RetrievalExamples:
        """The recipe's examples under another vocabulary, with some entities written behind the descriptions."""
        recipe, store = self.recipe, self.recipe.store
        descriptions = [recipe.vocabulary.parse(title).description for title in store.titles]
        if as_words:
            descriptions = [
                " ".join([text, *(store.entities[group][row] for group in as_words)])
                for row, text in enumerate(descriptions)
            ]
        entities = [{group: store.entities[group][row] for group in vocabulary.groups} for row in range(len(store))]
        texts = make_texts(recipe.tokenizer, vocabulary, descriptions, entities)
        said = np.column_stack([texts.description_keys, texts.entity_ids])
        keys = np.unique(said, axis=0, return_inverse=True)[1].ravel()
        return replace(recipe.examples, feed=texts, asked=texts, titles=texts, keys=keys)
