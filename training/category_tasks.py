"""The categorizer's three trainings: encoders by contrast, a head on frozen encoders, the whole network end to end.

contrastive   both encoders on (image, title) pairs, CLIP's objective over the pairs of all processes
head          on cached embeddings (the published recipe): an epoch takes seconds, whatever the encoders cost
finetune      encoders and head together

The last two drop a modality at random, so that a product without an image or a title is nothing new to the head.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from models.categorizer import Categorizer
from models.category_head import CategoryHead
from models.encoders import ImageEncoder
from models.two_towers import TwoTowers

from .contrastive import TowersTask
from .embeddings import CachedEmbeddings, Embeddings, embed_examples
from .examples import AugmentedPairs, Examples
from .feature_codes import FeatureCodes
from .labels import LabelScheme, NeighbourTable
from .losses import LabelLoss, code_loss
from .metrics import CategoryMetrics, CategoryReport
from .train import Batch, Losses, Model, Task

MODALITIES = ("image + title", "image", "title")
TOKEN_DROPOUT = 0.1


@dataclass(frozen=True)
class ModalityDropout:
    """Shares of the training rows that lose a modality. Titles say more than images: they are dropped more often."""

    title: float = 0.35
    image: float = 0.15

    def apply(self, image_present: Tensor, text_present: Tensor) -> tuple[Tensor, Tensor]:
        """Marks modalities absent at random, [B, 1] bool each; a row never loses the only one it has."""
        draw = torch.rand(image_present.shape, device=image_present.device)
        drop_title = (draw < self.title) & image_present
        drop_image = (draw >= 1 - self.image) & text_present
        return image_present & ~drop_image, text_present & ~drop_title


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

    def start_epoch(self, epoch: int) -> None:
        """Moves on to the targets of an epoch, counted from 0."""
        self.label_loss.set_targets(self.scheme.targets(self.table, epoch))

    def __call__(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The mean loss of a head's logits, [B, C] or [B, F], against labels [B]."""
        if self.codes is not None:
            return code_loss(logits, labels, self.codes.codes.to(logits.device))
        return self.label_loss.to(logits.device)(logits, labels)


class CategoryEvaluator:
    """Measures a head on embeddings of held-out examples: with both modalities, with the image alone, the title alone.

    Args:
        new_metrics: makes an empty `CategoryMetrics` for the classes at hand.
    """

    def __init__(self, new_metrics: Callable[[], CategoryMetrics]) -> None:
        self.new_metrics = new_metrics

    @torch.no_grad()
    def reports(
        self, head: CategoryHead, embeddings: Embeddings, among: np.ndarray | None = None
    ) -> dict[str, CategoryReport]:
        """A report per modality; rows that lack the modality asked for, or are not `among` [M] bool, are left out."""
        reports = {}
        for modality in MODALITIES:
            use_image, use_title = "image" in modality, "title" in modality
            rows = torch.ones(len(embeddings), dtype=torch.bool, device=embeddings.labels.device)
            if among is not None:
                rows &= torch.from_numpy(among).to(rows.device)
            if use_image:
                rows &= embeddings.image_present[:, 0]
            if use_title:
                rows &= embeddings.text_present[:, 0]
            if not rows.any():
                continue
            metrics = self.new_metrics()
            for batch in rows.nonzero()[:, 0].split(4096):
                shape = (len(batch), 1)
                logits = head(
                    embeddings.image_embeds[batch],
                    embeddings.text_embeds[batch],
                    torch.full(shape, use_image, device=batch.device),
                    torch.full(shape, use_title, device=batch.device),
                )
                metrics.update(head.class_logits(logits).float().cpu(), embeddings.labels[batch].cpu())
            reports[modality] = metrics.report()
        return reports

    def accuracies(self, head: CategoryHead, embeddings: Embeddings) -> dict[str, float]:
        """Top-1 and top-5 of every modality by name, for progress lines and TensorBoard."""
        return {
            f"{modality}/{name}": getattr(report, name)
            for modality, report in self.reports(head, embeddings).items()
            for name in ("top_1", "top_5")
        }


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
    """What training the head and training the whole network have in common: the objective on logits.

    `inputs` names what of a batch the model takes before the two marks of presence.
    """

    inputs: tuple[str, ...]

    def __init__(self, objective: CategoryObjective, evaluator: CategoryEvaluator, dropout: ModalityDropout) -> None:
        super().__init__()
        self.objective = objective
        self.evaluator = evaluator
        self.dropout = dropout

    def start_epoch(self, epoch: int) -> None:
        """Sets the targets of the epoch."""
        self.objective.start_epoch(epoch)

    def forward(self, model: nn.Module, batch: Batch) -> Batch:
        """Logits of a batch that lost modalities at random."""
        present = self.dropout.apply(batch["image_present"], batch["text_present"])
        return {"logits": model(*(batch[name] for name in self.inputs), *present)}

    def losses(self, outputs: Batch, batch: Batch) -> Losses:
        """The objective."""
        return {"objective": self.objective(outputs["logits"], batch["labels"])}

    def evaluate(self) -> dict[str, float]:
        """Top-1 and top-5 accuracy of every modality on the validation split."""
        return self.evaluator.accuracies(*self.held_out())

    @abstractmethod
    def held_out(self) -> tuple[CategoryHead, Embeddings]:
        """The head, and embeddings of the validation split."""


class HeadTask(CategoryTask[CategoryHead]):
    """Trains the head alone, on embeddings of frozen encoders."""

    name = "head"
    inputs = ("image_embeds", "text_embeds")

    def __init__(
        self,
        head: CategoryHead,
        train: Embeddings,
        validation: Embeddings,
        objective: CategoryObjective,
        evaluator: CategoryEvaluator,
        dropout: ModalityDropout,
    ) -> None:
        super().__init__(objective, evaluator, dropout)
        self.model = head
        self.dataset = CachedEmbeddings(train)
        self.validation = validation

    def held_out(self) -> tuple[CategoryHead, Embeddings]:
        """The head and the embeddings that it was given."""
        return self.model, self.validation


class FineTuneTask(CategoryTask[Categorizer]):
    """Trains encoders and head together."""

    name = "finetune"
    inputs = ("pixel_values", "input_ids", "attention_mask")

    def __init__(
        self,
        model: Categorizer,
        examples: Examples,
        objective: CategoryObjective,
        evaluator: CategoryEvaluator,
        dropout: ModalityDropout,
    ) -> None:
        super().__init__(objective, evaluator, dropout)
        self.model = model
        self.examples = examples
        self.dataset = AugmentedPairs(examples, examples.rows("train"), token_dropout=TOKEN_DROPOUT)

    def held_out(self) -> tuple[CategoryHead, Embeddings]:
        """The head, and what the encoders make of the validation split now."""
        encoders = self.model.image_encoder, self.model.text_encoder
        return self.model.head, embed_examples(*encoders, self.examples, self.examples.rows("val"))
