"""The categorizer's two trainings: a head on frozen encoders (the published recipe), and the whole network end to end.

Both drop a modality at random, so that a product without an image or without a title is nothing new to the head.  The
head alone sees cached embeddings: an epoch over them takes seconds, whatever the encoders cost.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from models.categorizer import Categorizer
from models.category_head import CategoryHead

from .embeddings import Embeddings, embed_examples
from .examples import AugmentedPairs, BatchRequest, Examples
from .feature_codes import FeatureCodes
from .labels import LabelScheme, NeighbourTable
from .losses import LabelLoss, code_loss
from .metrics import CategoryMetrics, CategoryReport
from .train import Batch

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
    def reports(self, head: CategoryHead, embeddings: Embeddings) -> dict[str, CategoryReport]:
        """A report per modality; rows that lack the modality asked for are left out."""
        reports = {}
        for modality in MODALITIES:
            use_image, use_title = "image" in modality, "title" in modality
            rows = torch.ones(len(embeddings), dtype=torch.bool, device=embeddings.labels.device)
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


class CachedEmbeddings(Dataset[Batch]):
    """Batches sliced from embeddings in memory, on the device where they are."""

    def __init__(self, embeddings: Embeddings) -> None:
        self.embeddings = embeddings

    def __len__(self) -> int:
        return len(self.embeddings)

    def __getitem__(self, request: BatchRequest) -> Batch:
        """image_embeds, text_embeds [B, D], image_present, text_present [B, 1] bool, labels [B]."""
        rows = torch.from_numpy(np.sort(request.rows)).to(self.embeddings.labels.device)
        return {name: getattr(self.embeddings, name)[rows] for name in Embeddings.__dataclass_fields__}


class HeadTask:
    """Trains the head alone, on embeddings of frozen encoders."""

    name = "head"

    def __init__(
        self,
        head: CategoryHead,
        train: Embeddings,
        validation: Embeddings,
        objective: CategoryObjective,
        evaluator: CategoryEvaluator,
        dropout: ModalityDropout,
    ) -> None:
        self.model = head
        self.dataset = CachedEmbeddings(train)
        self.validation = validation
        self.objective = objective
        self.evaluator = evaluator
        self.dropout = dropout

    def start_epoch(self, epoch: int) -> None:
        """Sets the targets of the epoch."""
        self.objective.start_epoch(epoch)

    def loss(self, model: nn.Module, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """The objective on one batch of embeddings."""
        image_present, text_present = self.dropout.apply(batch["image_present"], batch["text_present"])
        logits = model(batch["image_embeds"], batch["text_embeds"], image_present, text_present)
        return self.objective(logits, batch["labels"]), {}

    def evaluate(self) -> dict[str, float]:
        """Top-1 and top-5 accuracy of every modality on the validation split."""
        return self.evaluator.accuracies(self.model, self.validation)


class FineTuneTask:
    """Trains encoders and head together."""

    name = "finetune"

    def __init__(
        self,
        model: Categorizer,
        examples: Examples,
        objective: CategoryObjective,
        evaluator: CategoryEvaluator,
        dropout: ModalityDropout,
    ) -> None:
        self.model = model
        self.examples = examples
        self.dataset = AugmentedPairs(examples, examples.rows("train"), token_dropout=TOKEN_DROPOUT)
        self.objective = objective
        self.evaluator = evaluator
        self.dropout = dropout

    def start_epoch(self, epoch: int) -> None:
        """Sets the targets of the epoch."""
        self.objective.start_epoch(epoch)

    def loss(self, model: nn.Module, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """The objective on one batch of images and titles."""
        image_present, text_present = self.dropout.apply(batch["image_present"], batch["text_present"])
        logits = model(batch["pixel_values"], batch["input_ids"], batch["attention_mask"], image_present, text_present)
        return self.objective(logits, batch["labels"]), {}

    def evaluate(self) -> dict[str, float]:
        """Top-1 and top-5 accuracy of every modality on the validation split."""
        embeddings = embed_examples(
            self.model.image_encoder, self.model.text_encoder, self.examples, self.examples.rows("val")
        )
        return self.evaluator.accuracies(self.model.head, embeddings)
