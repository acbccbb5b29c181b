"""The categorizer's three trainings: encoders by contrast, a head on frozen encoders, the whole network end to end.

contrastive   both encoders on (image, title) pairs, CLIP's objective over the pairs of all processes
head          on cached embeddings (the published recipe): an epoch takes seconds, whatever the encoders cost
finetune      encoders and head together

The last two ask about every row in all three ways, with image and title, with the image alone and with the title alone,
and average three losses: the embeddings are there, and a product that lacks one is nothing new to the head.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from models.categorizer import Categorizer
from models.category_head import WAYS, CategoryHead, way_number
from models.encoders import ImageEncoder
from models.two_towers import TwoTowers

from .contrastive import TowersTask
from .embeddings import CachedEmbeddings, Embeddings, embed_examples
from .examples import AugmentedPairs, Examples
from .feature_codes import FeatureCodes
from .labels import LabelScheme, NeighbourTable
from .losses import IGNORE_INDEX, LabelLoss, code_loss
from .metrics import CategoryMetrics, CategoryReport
from .train import Batch, Losses, Model, Task, WeightedSum

TOKEN_DROPOUT = 0.1


def can_be_asked(way: str, image_present: Tensor, text_present: Tensor) -> Tensor:
    """Which rows have what a way to ask needs, [B] bool; what is present, [B, 1] bool each."""
    use_image, use_title = WAYS[way]
    return ((image_present | (not use_image)) & (text_present | (not use_title)))[:, 0]


class CategoryObjective:
    """The loss on logits, with the target distribution that the epoch asks for.

    Args:
        table: the nearest labels of every label.
        scheme: makes an epoch's targets of them.
        gamma: focusing exponent of the focal term.
        kl_weight: λ of the KL term; 0 leaves the focal loss alone.
        codes: for a head of binary features, which is trained by their multi-label loss instead.
    """

    def __init__(
        self,
        table: NeighbourTable,
        scheme: LabelScheme,
        *,
        gamma: float,
        kl_weight: float,
        codes: FeatureCodes | None = None,
    ) -> None:
        self.table = table
        self.scheme = scheme
        self.codes = codes
        self.label_loss = LabelLoss(scheme.targets(table), gamma=gamma, kl_weight=kl_weight)

    def start_epoch(self, progress: float) -> None:
        """Moves on to the targets of an epoch, the first at 0, the last at 1."""
        self.label_loss.set_targets(self.scheme.targets(self.table, progress))

    def __call__(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The mean loss of a head's logits, [B, C] or [B, F], against labels [B]; `IGNORE_INDEX` counts nothing."""
        if self.codes is not None:
            return code_loss(logits, labels, self.codes.codes.to(logits.device))
        return self.label_loss.to(logits.device)(logits, labels)


class CategoryEvaluator:
    """Measures a head on embeddings of held-out examples, in each of the ways to ask.

    Args:
        new_metrics: makes an empty `CategoryMetrics` for the classes at hand.
    """

    def __init__(self, new_metrics: Callable[[], CategoryMetrics]) -> None:
        self.new_metrics = new_metrics

    def reports(
        self, head: CategoryHead, embeddings: Embeddings, among: np.ndarray | None = None
    ) -> dict[str, CategoryReport]:
        """A report of each way to ask; rows that are not `among` [M] bool are left out."""
        reports = {}
        for way, logits, labels in logits_by_way(head, embeddings, among):
            metrics = self.new_metrics()
            metrics.update(head.log_probability(logits, way_number(way)).cpu(), labels.cpu())
            reports[way] = metrics.report()
        return reports

    def accuracies(self, head: CategoryHead, embeddings: Embeddings) -> dict[str, float]:
        """Top-1 and top-5 of every way to ask by name, for progress lines and TensorBoard."""
        return {
            f"{way}/{name}": getattr(report, name)
            for way, report in self.reports(head, embeddings).items()
            for name in ("top_1", "top_5")
        }


@torch.no_grad()
def logits_by_way(
    head: CategoryHead, embeddings: Embeddings, among: np.ndarray | None = None
) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Each way to ask with the head's logits [R, …] and the labels [R] of the rows that have what it needs.

    Args:
        head: in evaluation mode.
        embeddings: M examples.
        among: [M] bool, which of them; all when None. A way that none of them can be asked in is left out.
    """
    for way, (use_image, use_title) in WAYS.items():
        rows = can_be_asked(way, embeddings.image_present, embeddings.text_present)
        if among is not None:
            rows &= torch.from_numpy(among).to(rows.device)
        if not rows.any():
            continue
        parts = [
            head(
                embeddings.image_embeds[batch],
                embeddings.text_embeds[batch],
                torch.full((len(batch), 1), use_image, device=batch.device),
                torch.full((len(batch), 1), use_title, device=batch.device),
            )
            for batch in rows.nonzero()[:, 0].split(4096)
        ]
        yield way, torch.cat(parts), embeddings.labels[rows]


class ContrastiveTask(TowersTask[ImageEncoder]):
    """Trains two towers on the pairs of the training split."""

    def __init__(self, model: TwoTowers[ImageEncoder], examples: Examples) -> None:
        super().__init__()
        self.model = model
        self.examples = examples
        self.dataset = AugmentedPairs(examples, examples.paired_rows("train"))

    def evaluate(self) -> dict[str, float]:
        """Image-to-text recall at 1 and 5 among 100 validation pairs, averaged over as many hundreds as there are."""
        rows = self.examples.paired_rows("val")
        rows = rows[np.random.default_rng(0).permutation(len(rows))][: 100 * max(1, len(rows) // 100)]
        if not len(rows):
            return {}
        embeddings = embed_examples(self.model.image_encoder, self.model.text_encoder, self.examples, rows)
        hundreds = zip(embeddings.image_embeds.split(100), embeddings.text_embeds.split(100), strict=True)
        recalls = torch.stack([recall_of_pairs(images, texts, at=(1, 5)) for images, texts in hundreds])
        recall_at_1, recall_at_5 = recalls.mean(0).tolist()
        return {"recall_at_1_of_100": recall_at_1, "recall_at_5_of_100": recall_at_5}


def recall_of_pairs(image_embeds: Tensor, text_embeds: Tensor, at: tuple[int, ...]) -> Tensor:
    """Shares of N images whose own text is among the k nearest of the N texts, a share for each k.

    Args:
        image_embeds, text_embeds: [N, D], unit length; row i of both is the same product.
        at: the k.
    """
    cosines = image_embeds @ text_embeds.T
    rank = (cosines > cosines.diagonal()[:, None]).sum(1)
    return torch.stack([(rank < k).float().mean() for k in at])


class CategoryTask(Task[Model]):
    """What training the head and training the whole network have in common: every row asked about in several ways.

    Args:
        objective: of logits and labels.
        evaluator: measures on the validation split.
        ways: the `WAYS` to ask in; the loss is the mean over them.
    """

    def __init__(self, objective: CategoryObjective, evaluator: CategoryEvaluator, ways: Sequence[str]) -> None:
        super().__init__()
        self.combiner = WeightedSum({way: 1 / len(ways) for way in ways})
        self.objective = objective
        self.evaluator = evaluator
        self.ways = tuple(ways)

    def start_epoch(self, progress: float) -> None:
        """Sets the targets of the epoch."""
        self.objective.start_epoch(progress)

    def forward(self, model: nn.Module, batch: Batch) -> Batch:
        """Logits [B, …] of each way to ask."""
        given = [WAYS[way] for way in self.ways]
        image_present = torch.cat([batch["image_present"] & use_image for use_image, _ in given])
        text_present = torch.cat([batch["text_present"] & use_title for _, use_title in given])
        logits = model(*self.inputs(batch), image_present, text_present)
        return dict(zip(self.ways, logits.chunk(len(self.ways)), strict=True))

    def losses(self, outputs: Batch, batch: Batch) -> Losses:
        """The objective of each way to ask, over the rows that have what it needs."""
        losses = {}
        for way, logits in outputs.items():
            possible = can_be_asked(way, batch["image_present"], batch["text_present"])
            losses[way] = self.objective(logits, batch["labels"].where(possible, IGNORE_INDEX))
        return losses

    def evaluate(self) -> dict[str, float]:
        """Top-1 and top-5 accuracy of every way to ask on the validation split."""
        return self.evaluator.accuracies(*self.held_out())

    @abstractmethod
    def inputs(self, batch: Batch) -> tuple[Tensor, ...]:
        """What of a batch the model takes before the two marks of presence."""

    @abstractmethod
    def held_out(self) -> tuple[CategoryHead, Embeddings]:
        """The head, and embeddings of the validation split."""


class HeadTask(CategoryTask[CategoryHead]):
    """Trains the head alone, on embeddings of frozen encoders."""

    name = "head"

    def __init__(
        self,
        head: CategoryHead,
        train: Embeddings,
        validation: Embeddings,
        objective: CategoryObjective,
        evaluator: CategoryEvaluator,
        ways: Sequence[str] = tuple(WAYS),
    ) -> None:
        super().__init__(objective, evaluator, ways)
        self.model = head
        self.dataset = CachedEmbeddings(train)
        self.validation = validation

    def inputs(self, batch: Batch) -> tuple[Tensor, ...]:
        """Both embeddings, once for each way to ask."""
        return tuple(batch[name].repeat(len(self.ways), 1) for name in ("image_embeds", "text_embeds"))

    def held_out(self) -> tuple[CategoryHead, Embeddings]:
        """The head and the embeddings that it was given."""
        return self.model, self.validation


class FineTuneTask(CategoryTask[Categorizer]):
    """Trains encoders and head together."""

    name = "finetune"

    def __init__(
        self,
        model: Categorizer,
        examples: Examples,
        objective: CategoryObjective,
        evaluator: CategoryEvaluator,
        ways: Sequence[str] = tuple(WAYS),
    ) -> None:
        super().__init__(objective, evaluator, ways)
        self.model = model
        self.examples = examples
        self.dataset = AugmentedPairs(examples, examples.rows("train"), token_dropout=TOKEN_DROPOUT)

    def inputs(self, batch: Batch) -> tuple[Tensor, ...]:
        """Pixels and tokens, once: the categorizer asks in all ways by itself."""
        return batch["pixel_values"], batch["input_ids"], batch["attention_mask"]

    def held_out(self) -> tuple[CategoryHead, Embeddings]:
        """The head, and what the encoders make of the validation split now."""
        encoders = self.model.image_encoder, self.model.text_encoder
        return self.model.head, embed_examples(*encoders, self.examples, self.examples.rows("val"))
