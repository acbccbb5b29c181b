"""Suite training: examples a second of each stage and how long it waits for its loader; the head at 4,350 classes.

The stages run the project's own tasks on drawn products. The head is trained on random embeddings, with kernel 1 (on a
CPU its vectorised torch twin) and with the same loss written in eager PyTorch; both are compared before they are timed.
The cost of an epoch is fitted as items x (a + b classes), and only what is called extrapolated was not measured.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader

from benchmarks.growth.growth import ring_table
from benchmarks.isolated import in_own_process
from benchmarks.results import write
from benchmarks.training.report import write_report
from catalogue.colour_groups import ColourGroups
from catalogue.colour_labels import clean_labels
from catalogue.colour_sample import generate_colour_sample
from catalogue.feed import open_feed
from catalogue.sample import generate_sample
from catalogue.store import open_store
from catalogue.taxonomy import Taxonomy
from models.categorizer import Categorizer
from models.category_head import CategoryHead, CategoryHeadConfig
from models.colour_matcher import ColourHead, ColourMatcher
from models.encoders import small_image_encoder, small_text_encoder
from models.tokenizer import fit_max_length, set_length, train_tokenizer
from models.two_towers import TwoTowers
from training.category_tasks import (
    CategoryEvaluator,
    CategoryObjective,
    ContrastiveTask,
    FineTuneTask,
)
from training.colour_examples import ColourPairs, ColourProducts, make_colour_examples
from training.colour_tasks import ColourContrastiveTask, ColourEvaluator, ColourFrozenTask, ColourJointTask
from training.examples import make_examples, training_titles
from training.labels import LabelScheme, NeighbourTable
from training.losses import LabelLoss
from training.match_colours import ColourSettings, colour_towers, frozen_products, label_tokenizer
from training.metrics import CategoryMetrics, taxonomy_table
from training.sampling import EpochSampler
from training.train import Task

PACKAGES = ("torch", "numpy", "triton", "accelerate")
CLASSES, ITEMS = 4_350, 12_000_000
WIDTH, HEAD_BATCH = 256, 1024
SCALING_CLASSES = (142, 1_000, CLASSES, 20_000)
GAMMA, KL_WEIGHT = 2.0, 1.0
Row = dict[str, Any]


def main(quick: bool, output: Path) -> None:
    """Measure everything, write training.json with its tables."""
    rows: list[Row] = []
    for row in measure(quick):
        rows.append(row)
        print({name: value for name, value in row.items() if name != "noise"}, flush=True)
        path = write("training", rows, PACKAGES, output)
    print("Wrote", path, *write_report(path))


def measure(quick: bool) -> Iterator[Row]:
    """All rows of the suite."""
    with tempfile.TemporaryDirectory() as folder:
        steps = 6 if quick else 20
        yield from category_stages(Path(folder), products=400 if quick else 2000, steps=steps)
        yield from colour_stages(Path(folder), products=100 if quick else 400, steps=steps)
    check_losses()
    steps = 5 if quick else 20
    for variant in LOSSES:
        figures, memory = in_own_process(train_head, CLASSES, variant, steps)
        yield {"measured": "head", "loss": variant, "classes": CLASSES, **figures, "memory_mb": memory / 1e6}
    points = []
    for classes in SCALING_CLASSES[: 3 if quick else 4]:
        figures, memory = in_own_process(train_head, classes, KERNEL, steps)
        points.append((classes, 1 / figures["examples_per_second"]))
        yield {"measured": "scaling", "classes": classes, **figures, "memory_mb": memory / 1e6}
    yield extrapolation(points)


def category_stages(folder: Path, products: int, steps: int) -> Iterator[Row]:
    """Steps of contrastive training and of fine-tuning end to end, as `shelfwise train categorize` runs them."""
    generate_sample(folder / "sample.parquet", products)
    feed = open_feed(folder / "sample.parquet")
    start = time.perf_counter()
    store = open_store(feed, folder / "store", 80, 64)
    prepared = len(store) / (time.perf_counter() - start)
    taxonomy = Taxonomy.from_paths({path for path in store.categories if path})
    titles = training_titles(store)
    tokenizer = train_tokenizer(titles)
    length = fit_max_length(tokenizer, titles)
    examples = make_examples(store, set_length(tokenizer, length), taxonomy)
    described = {"measured": "stage", "system": "categorize", "examples": "products"}
    yield described | {"stage": "preparing the feed", "examples_per_second": prepared}

    image_encoder = small_image_encoder(80, 64, WIDTH)
    text_encoder = small_text_encoder(tokenizer.get_vocab_size(), length, WIDTH)
    classes = len(taxonomy.paths)
    head = CategoryHead(CategoryHeadConfig(embed_dim=WIDTH, num_classes=classes))
    table = ring_table(classes)
    tree = taxonomy_table(taxonomy.paths)
    tasks: dict[str, tuple[Task[Any], int]] = {
        "contrastive": (ContrastiveTask(TwoTowers(image_encoder, text_encoder), examples), 128),
        "finetune": (
            FineTuneTask(
                Categorizer(image_encoder, text_encoder, head),
                examples,
                CategoryObjective(table, LabelScheme(), gamma=GAMMA, kl_weight=0.0),
                CategoryEvaluator(lambda: CategoryMetrics(table.ids[:, 1:], tree)),
            ),
            64,
        ),
    }
    for stage, (task, batch) in tasks.items():
        yield described | {"stage": stage, "batch": batch, **run_steps(task, batch, steps)}


def colour_stages(folder: Path, products: int, steps: int) -> Iterator[Row]:
    """Steps of the three stages of `shelfwise train match-colours`; of the last two an example is a whole product."""
    settings = ColourSettings()
    generate_colour_sample(folder / "colours.parquet", products)
    feed = open_feed(folder / "colours.parquet")
    start = time.perf_counter()
    store = open_store(feed, folder / "store", *settings.image_size)
    described = {"measured": "stage", "system": "match-colours"}
    prepared = len(store.readable) / (time.perf_counter() - start)
    yield described | {"stage": "preparing the feed", "examples": "photos", "examples_per_second": prepared}

    examples = make_colour_examples(store)
    tokenizer = label_tokenizer(examples.colours(), settings, clean_labels)
    validation = list(ColourGroups(examples.variants, "val").evaluation())
    evaluator = ColourEvaluator(examples, validation, tokenizer)
    towers = colour_towers(settings, tokenizer)
    matcher = ColourMatcher(towers.image_encoder, towers.text_encoder, ColourHead(settings.matcher))
    pairs = ColourPairs(examples, tokenizer, settings.noise, clean_labels)
    grouped = ColourProducts(examples, tokenizer, settings.noise, clean_labels, settings.mix)
    joint = ColourJointTask(
        matcher, towers.scale.detach(), grouped, evaluator, settings.contrastive_weight, settings.label_share
    )
    embedded = frozen_products(matcher.image_encoder, grouped, views=1)
    tasks: dict[str, tuple[Task[Any], int, str]] = {
        "contrastive": (ColourContrastiveTask(towers, pairs, evaluator), settings.contrastive.batch_size, "photos"),
        "joint": (joint, settings.joint.batch_size, "products"),
        "frozen": (
            ColourFrozenTask(matcher, embedded, evaluator, settings.label_share),
            settings.frozen.batch_size,
            "products",
        ),
    }
    for stage, (task, batch, unit) in tasks.items():
        yield described | {"stage": stage, "examples": unit, "batch": batch, **run_steps(task, batch, steps)}


def run_steps(task: Task[Any], batch_size: int, steps: int) -> Row:
    """Trains some steps as the loop does, and looks at the clock where a batch arrives and where a step ends."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = task.model.to(device, memory_format=torch.channels_last)
    model.train()
    task.start_epoch(0.0)
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    length = len(task.dataset)  # type: ignore[arg-type]
    sampler = EpochSampler(length, min(batch_size, length), seed=0)
    loader = DataLoader(task.dataset, sampler=sampler, batch_size=None, pin_memory=device.type == "cuda")
    waits, whole = [], []
    step = epoch = 0
    while step < steps + 2:
        sampler.start_at(epoch)
        batches = iter(loader)
        for _ in range(len(sampler)):
            begin = time.perf_counter()
            batch = {name: tensor.to(device, non_blocking=True) for name, tensor in next(batches).items()}
            waited = time.perf_counter() - begin
            torch.stack([*task.losses(task.forward(model, batch), batch).values()]).sum().backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            if device.type == "cuda":
                torch.cuda.synchronize()
            step += 1
            if step > 2:  # the first steps choose algorithms and allocate
                waits.append(waited)
                whole.append(time.perf_counter() - begin)
            if step == steps + 2:
                break
        epoch += 1
    return rate(whole, min(batch_size, length)) | {"loader_share": sum(waits) / sum(whole)}


def rate(seconds: list[float], batch: int) -> Row:
    """Examples a second from seconds a step, with the spread between the fifth fastest and fifth slowest steps."""
    middle = statistics.median(seconds)
    low, high = np.percentile(seconds, [20, 80])
    return {"examples_per_second": batch / middle, "noise": {"examples_per_second": float((high - low) / middle)}}


def eager_loss(logits: Tensor, labels: Tensor, table: NeighbourTable) -> Tensor:
    """Focal loss + KL to the label's neighbours, as one would write it: a dense target, eager operators."""
    log_probability = F.log_softmax(logits.float(), dim=-1)
    log_p = log_probability.gather(1, labels[:, None])[:, 0]
    focal = -((1 - log_p.exp()) ** GAMMA) * log_p
    target = torch.zeros_like(log_probability).scatter_(1, table.ids[labels].long(), table.weights[labels])
    return (focal + KL_WEIGHT * F.kl_div(log_probability, target, reduction="none").sum(1)).mean()


KERNEL = "kernel 1"
LOSSES = (KERNEL, "eager PyTorch, dense target")


def make_loss(variant: str, table: NeighbourTable) -> Callable[[Tensor, Tensor], Tensor]:
    """The loss of a variant of `LOSSES`."""
    if variant == KERNEL:
        return LabelLoss(table, gamma=GAMMA, kl_weight=KL_WEIGHT).to(table.ids.device)
    return lambda logits, labels: eager_loss(logits, labels, table)


def check_losses() -> None:
    """Both losses and their gradients are the same. Raises AssertionError."""
    torch.manual_seed(0)
    table = ring_table(500)
    labels = torch.randint(0, 500, (64,))
    found = []
    for variant in LOSSES:
        logits = torch.randn(64, 500, generator=torch.Generator().manual_seed(1)).requires_grad_()
        loss = make_loss(variant, table)(logits, labels)
        (gradient,) = torch.autograd.grad(loss, logits)
        found.append((loss.detach(), gradient))
    torch.testing.assert_close(found[0], found[1], atol=1e-5, rtol=1e-4)


def train_head(classes: int, variant: str, steps: int) -> Row:
    """Steps of the head on embeddings in memory; examples a second, and the GPU's peak memory where there is one."""
    torch.manual_seed(0)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    table = ring_table(classes)
    if device.type == "cuda":
        table = NeighbourTable(table.ids.to(device), table.similarities.to(device), table.weights.to(device))
    head = CategoryHead(CategoryHeadConfig(embed_dim=WIDTH, num_classes=classes)).to(device)
    loss = make_loss(variant, table)
    optimizer = torch.optim.AdamW(head.parameters(), fused=True)
    image_embeds, text_embeds = (F.normalize(torch.randn(8 * HEAD_BATCH, WIDTH, device=device), dim=1) for _ in "it")
    labels = torch.randint(0, classes, (8 * HEAD_BATCH,), device=device)
    present = torch.ones(HEAD_BATCH, 1, dtype=torch.bool, device=device)
    seconds = []
    for step in range(steps + 2):
        start = time.perf_counter()
        rows = torch.randint(0, len(labels), (HEAD_BATCH,), device=device)
        loss(head(image_embeds[rows], text_embeds[rows], present, present), labels[rows]).backward()
        optimizer.step()
        optimizer.zero_grad()
        if device.type == "cuda":
            torch.cuda.synchronize()
        if step >= 2:
            seconds.append(time.perf_counter() - start)
    figures = rate(seconds, HEAD_BATCH)
    if device.type == "cuda":
        figures["gpu_memory_mb"] = torch.cuda.max_memory_allocated() / 1e6
    return figures


def extrapolation(points: list[tuple[int, float]]) -> Row:
    """Seconds an example = a + b·classes, fitted; an epoch of 12 M items at 4,350 classes follows from it."""
    classes, seconds = np.array(points).T
    slope, offset = np.polyfit(classes, seconds, 1)
    fitted = offset + slope * classes
    return {
        "measured": "scaling law",
        "microseconds_per_item": 1e6 * float(offset),
        "microseconds_per_item_and_1000_classes": 1e9 * float(slope),
        "worst_misfit": float(np.abs(fitted / seconds - 1).max()),
        "extrapolated": f"an epoch of {ITEMS:,} items at {CLASSES:,} classes on this machine",
        "extrapolated_seconds": ITEMS * float(offset + slope * CLASSES),
    }
