"""EI-CLIP's training: three contrastive losses over one batch, and how well the towers find each other's products.

(E^I, E^T), (E^I, E^D) and (E^I, Ê^A): the whole text, the description alone, the entities alone; symmetric each, over
the pairs of all processes. Catalogues repeat titles, and many products share all entities: texts that say the same are
positives of each other's photos, never negatives.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from models.encoders import ImageEncoder
from models.retriever import Retriever

from .contrastive import contrastive_loss
from .distributed import gather_with_gradients
from .embeddings import evaluating, in_batches
from .retrieval_examples import RetrievalExamples, RetrievalPairs, Texts, TextViews
from .retrieval_metrics import RetrievalReport, retrieval_report
from .train import Batch, Losses, Task

EMBEDS = {"text": "text_embeds", "description": "description_embeds", "entities": "entity_embeds"}


class RetrievalTask(Task[Retriever]):
    """Trains a retriever on the pairs of the training split.

    Args:
        name: of the stage.
        model: trained in place.
        examples: of all splits.
        views: of the training texts.
        features: of all examples, from `photo_features`, where the image encoder's backbone is frozen.
        fixed_norms: whether batch norms of the image tower keep their statistics, of a tower that all else was trained
            on as it is in evaluation; by those of batches it would be another one.
    """

    def __init__(
        self,
        name: str,
        model: Retriever,
        examples: RetrievalExamples,
        views: TextViews,
        features: np.ndarray | None = None,
        fixed_norms: bool = False,
    ) -> None:
        super().__init__()
        self.fixed_norms = fixed_norms
        self.name = name
        self.model = model
        self.examples = examples
        self.features = features
        self.dataset = RetrievalPairs(examples, examples.rows("train"), views, features)

    def start_epoch(self, progress: float) -> None:
        """Sets the mode of the image tower's batch norms."""
        for module in self.model.image_encoder.backbone.modules() if self.fixed_norms else ():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()

    def forward(self, model: nn.Module, batch: Batch) -> Batch:
        """The embeddings that the losses compare, [B, D] each, and the scale."""
        names = ("images", "input_ids", "attention_mask", "described", "entity_ids")
        outputs: Batch = model(*(batch[name] for name in names))
        return outputs

    def losses(self, outputs: Batch, batch: Batch) -> Losses:
        """One for each kind of text that the model has."""
        return retrieval_losses(outputs, batch)

    def scalars(self, outputs: Batch) -> Batch:
        """The scale of the cosines."""
        return {"logit_scale": outputs["scale"].detach()}

    def evaluate(self) -> dict[str, float]:
        """Recall and MRR on the validation split, both directions, among all its products."""
        rows = self.examples.held_out("val")
        if not len(rows):
            return {}
        reports = embed_rows(self.model, self.examples, rows, features=self.features).reports()
        return {f"{way}/{name}": value for way, report in reports.items() for name, value in report.flat().items()}


def retrieval_losses(outputs: Batch, batch: Batch) -> Losses:
    """The contrastive loss of each kind of text, over the pairs of all processes.

    Args:
        outputs: of `Retriever.forward`; without entities there is the description's loss alone.
        batch: of `RetrievalPairs`.
    """
    images = gather_with_gradients(outputs["image_embeds"])
    names = ("keys", "description_keys", "entity_ids", "described")
    keys, descriptions, entities, described = (gather_with_gradients(batch[name].long()) for name in names)
    same_description = descriptions == descriptions.T
    same_entities = (entities[:, None] == entities).all(2)
    has_description, has_entities = described[:, 0] > 0, (entities > 0).any(1)
    kinds = {
        "text": ((keys == keys.T) | (same_description & same_entities), has_description | has_entities),
        "description": (same_description, has_description),
        "entities": (same_entities, has_entities),
    }
    return {
        name: _loss_of_given(images, gather_with_gradients(outputs[EMBEDS[name]]), outputs["scale"], *kind)
        for name, kind in kinds.items()
        if EMBEDS[name] in outputs
    }


def _loss_of_given(images: Tensor, texts: Tensor, scale: Tensor, positives: Tensor, given: Tensor) -> Tensor:
    """The contrastive loss over the pairs whose text is there; zero where there is none."""
    if not bool(given.any()):
        return images.sum() * 0.0
    return contrastive_loss(images[given], texts[given], scale, positives[given][:, given])


@dataclass(frozen=True)
class EmbeddedRows:
    """M examples, embedded: row i of both is the same product.

    Attributes:
        products: [M] whose.
        image_embeds, text_embeds: [M, D] float32, unit length.
    """

    products: np.ndarray
    image_embeds: np.ndarray
    text_embeds: np.ndarray

    def reports(self, among: np.ndarray | None = None) -> dict[str, RetrievalReport]:
        """Image to text and text to image among all candidates; queries are those `among` [M] bool."""
        own = [[row] if among is None or among[row] else [] for row in range(len(self.products))]
        if not any(own):
            return {}
        return {
            "image to text": retrieval_report(self.image_embeds, self.text_embeds, own),
            "text to image": retrieval_report(self.text_embeds, self.image_embeds, own),
        }


def embed_rows(
    model: Retriever,
    examples: RetrievalExamples,
    rows: np.ndarray,
    texts: Texts | None = None,
    features: np.ndarray | None = None,
) -> EmbeddedRows:
    """Embeds examples, each by its photo and its product's text.

    Args:
        model: in any mode; evaluated in evaluation mode.
        examples: of all splits.
        rows: [M] which.
        texts: of all products, in which view; as the feed has them when None.
        features: of all examples, from `photo_features`, where they are known.
    """
    device = model.logit_scale.device

    def embed(batch: np.ndarray) -> tuple[Tensor, ...]:
        images = examples.pixels(batch) if features is None else features[batch]
        return (model.embed_image(torch.from_numpy(images).to(device)).cpu(),)

    with evaluating(model):
        images = in_batches(embed, rows)[0].numpy()
    products = examples.examples.product[rows]
    return EmbeddedRows(products, images, embed_texts(model, texts or examples.feed, products))


def photo_features(encoder: ImageEncoder, examples: RetrievalExamples) -> np.ndarray:
    """[all, C] float32, what an image encoder's backbone makes of the photo of every example; of no photo, of white."""
    device = encoder.projection.weight.device

    def features(batch: np.ndarray) -> tuple[Tensor, ...]:
        return (encoder.features(torch.from_numpy(examples.pixels(batch)).to(device))[0].float().cpu(),)

    with evaluating(encoder):
        return in_batches(features, np.arange(len(examples.examples)))[0].numpy()


def embed_texts(model: Retriever, texts: Texts, products: np.ndarray) -> np.ndarray:
    """[M, D] float32 of some products' texts."""
    device = model.logit_scale.device

    def embed(batch: np.ndarray) -> tuple[Tensor, ...]:
        given = texts.batch(batch)
        del given["description_keys"]
        return (model.embed_text(**{name: tensor.to(device) for name, tensor in given.items()}).cpu(),)

    with evaluating(model):
        return in_batches(embed, products)[0].numpy()
