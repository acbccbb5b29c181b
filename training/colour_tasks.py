"""The colour matcher's trainings: towers by supervised contrast, everything together, the matcher on frozen towers.

contrastive   a photo and its written colour against all of the batch; photos of the same colour are all positives
              (Khosla et al., 2020; across two towers as in UniCL, Yang et al., 2022)
joint         cross-entropy of every photo over the labels of its product and of its label over the photos, plus the
              contrastive loss on the same batch: a product alone shows a photo only the few colours it comes in
frozen        the matcher and its norms on embeddings of fixed towers: an epoch takes seconds, and every photo is
              seen beside many more others
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import Dataset

from catalogue.colour_groups import ColourGroup
from catalogue.colour_labels import clean_labels
from kernels.ragged import split_logits
from models.colour_matcher import ColourHead, ColourMatcher
from models.colour_tower import ColourTower
from models.two_towers import TwoTowers

from .colour_examples import Clean, ColourExamples, ColourPairs, ColourProducts, augment_photos, product_batch
from .colour_metrics import ColourReport, colour_report
from .contrastive import TowersTask, contrastive_loss
from .distributed import gather_with_gradients
from .embeddings import evaluating, in_batches
from .sampling import BatchRequest
from .train import Batch, Losses, Task, WeightedSum


class ColourContrastiveTask(TowersTask[ColourTower]):
    """Trains both towers on single photos and their colours."""

    def __init__(self, model: TwoTowers[ColourTower], pairs: ColourPairs, evaluator: ColourEvaluator) -> None:
        super().__init__()
        self.model = model
        self.dataset = pairs
        self.evaluator = evaluator

    def positives(self, batch: Batch) -> Tensor:
        """Photos of the same colour are all positives."""
        colours = gather_with_gradients(batch["colours"])
        return colours[:, None] == colours

    def evaluate(self) -> dict[str, float]:
        """The report of matching validation products by cosine alone, each photo for itself."""
        return self.evaluator.cosine_report(self.model).flat()


class ColourJointTask(Task[ColourMatcher]):
    """Trains towers and head together on products.

    Args:
        model: the whole matcher.
        scale: multiplies the cosines of the contrastive term; what the contrastive stage learned.
        products: batches of products with pixels.
        evaluator: measures the model on the validation split.
        contrastive_weight: of the contrastive term.
        label_share: see `matching_loss`.
    """

    name = "joint"

    def __init__(
        self,
        model: ColourMatcher,
        scale: Tensor,
        products: ColourProducts,
        evaluator: ColourEvaluator,
        contrastive_weight: float,
        label_share: float,
    ) -> None:
        super().__init__()
        self.label_share = label_share
        self.combiner = WeightedSum({"contrast": contrastive_weight})
        self.model = model
        self.scale = scale
        self.dataset = products
        self.evaluator = evaluator

    def forward(self, model: nn.Module, batch: Batch) -> Batch:
        """Packed logits [Σ n·m], image_embeds [N, D] and label_embeds [U, D]."""
        outputs = model(*(batch[name] for name in ColourMatcher.INPUTS))
        return dict(zip(("logits", "image_embeds", "label_embeds"), outputs, strict=True))

    def losses(self, outputs: Batch, batch: Batch) -> Losses:
        """Cross-entropy within each product, and the contrastive loss over the batch."""
        return {
            "matching": batch_loss(outputs["logits"], batch, self.label_share),
            "contrast": contrastive_loss(
                outputs["image_embeds"], outputs["label_embeds"], self.scale, batch["positives"]
            ),
        }

    def evaluate(self) -> dict[str, float]:
        """The report on the validation products."""
        return self.evaluator.report(self.model).flat()


class FrozenProducts(Dataset[Batch]):
    """The products of `ColourProducts` with photos as embeddings, [V, N, D] of V augmented views of every photo."""

    def __init__(self, products: ColourProducts, views: Tensor, place: np.ndarray) -> None:
        self.products = products
        self.views = views
        self.place = place  # row number of a photo -> index into the views

    def __len__(self) -> int:
        return len(self.products)

    def __getitem__(self, request: BatchRequest) -> Batch:
        """A batch as `ColourProducts` gives it, with image_embeds [N, D] instead of pixel_values."""
        batch = self.products.without_photos(request)
        view = np.random.default_rng(request.seed).integers(0, len(self.views), len(batch["photos"]))
        return batch | {"image_embeds": self.views[torch.from_numpy(view), self.place[batch["photos"].numpy()]]}


class ColourFrozenTask(Task[ColourHead]):
    """Trains the head alone, on embeddings of fixed towers."""

    name = "frozen"

    def __init__(
        self, matcher: ColourMatcher, products: FrozenProducts, evaluator: ColourEvaluator, label_share: float
    ) -> None:
        super().__init__()
        self.label_share = label_share
        self.model = matcher.head
        self.dataset = products
        self.evaluator = evaluator
        self.text_encoder = matcher.text_encoder.eval()
        self.label_embeds: dict[bytes, Tensor] = {}  # of the texts met so far: sellers' wordings come again and again
        self.validation = evaluator.embed(matcher)

    def forward(self, model: nn.Module, batch: Batch) -> Batch:
        """Packed logits [Σ n·m]."""
        label_embeds = self._embed_labels(batch["input_ids"], batch["attention_mask"])[batch["label_index"]]
        return {"logits": model(batch["image_embeds"], label_embeds, batch["cu_images"], batch["cu_labels"])}

    def losses(self, outputs: Batch, batch: Batch) -> Losses:
        """Cross-entropy within each product."""
        return {"matching": batch_loss(outputs["logits"], batch, self.label_share)}

    def evaluate(self) -> dict[str, float]:
        """The report on the validation products."""
        return self.evaluator.head_report(self.model, *self.validation).flat()

    @torch.no_grad()
    def _embed_labels(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        rows = zip(input_ids.cpu().numpy(), attention_mask.sum(1).tolist(), strict=True)
        texts = [row[:length].tobytes() for row, length in rows]
        new = [row for row, text in enumerate(texts) if text not in self.label_embeds]
        if new:
            embeds = self.text_encoder(input_ids[new], attention_mask[new])
            self.label_embeds |= {texts[row]: embed for row, embed in zip(new, embeds, strict=True)}
        return torch.stack([self.label_embeds[text] for text in texts])


def batch_loss(logits: Tensor, batch: Batch, label_share: float) -> Tensor:
    """`matching_loss` of a batch of products."""
    return matching_loss(logits, batch["answers"], batch["cu_images"], batch["cu_labels"], label_share)


def matching_loss(logits: Tensor, answers: Tensor, cu_images: Tensor, cu_labels: Tensor, label_share: float) -> Tensor:
    """Cross-entropy of N photos, each over the labels of its product, and of each one's label over the photos.

    Args:
        logits: [Σ n·m], packed as in `models.matcher.Matcher`.
        answers: [N] int64, index into the labels of the photo's product.
        cu_images, cu_labels: [P + 1] cumulative numbers of photos and of labels.
        label_share: of the second in the sum. Labels that no photo shows are asked for none.
    """
    products = split_logits(logits, cu_images, cu_labels)
    shown = answers.split((cu_images[1:] - cu_images[:-1]).tolist())
    places = torch.cat([torch.arange(len(own), device=own.device) for own in shown])
    by_label = [product[:, own].T for product, own in zip(products, shown, strict=True)]
    of_photos, of_labels = _cross_entropy(products, answers), _cross_entropy(by_label, places)
    return (1 - label_share) * of_photos + label_share * of_labels


def _cross_entropy(products: Sequence[Tensor], targets: Tensor) -> Tensor:
    """Mean over the rows of all products, which differ in width."""
    widest = max(product.shape[1] for product in products)
    rows = [F.pad(product, (0, widest - product.shape[1]), value=-torch.inf) for product in products]
    return F.cross_entropy(torch.cat(rows).float(), targets)


class ColourEvaluator:
    """Measures matchers on the products of one split.

    Args:
        examples: the photos.
        groups: the products.
        labels: of each product its m labels as they were written; the feed's own when None.
        tokenizer, clean: as in training.
    """

    def __init__(
        self,
        examples: ColourExamples,
        groups: Sequence[ColourGroup],
        tokenizer: Tokenizer,
        clean: Clean = clean_labels,
        labels: Sequence[Sequence[str]] | None = None,
    ) -> None:
        self.examples = examples
        self.groups = groups
        written = [group.labels for group in groups] if labels is None else labels
        self.batch = product_batch(groups, written, tokenizer, clean)

    def report(self, model: ColourMatcher) -> ColourReport:
        """How well a matcher in evaluation mode does."""
        return self.head_report(model.head, *self.embed(model))

    def head_report(self, head: ColourHead, image_embeds: Tensor, label_embeds: Tensor) -> ColourReport:
        """How well a head in evaluation mode does on what `embed` gave."""
        return self.measured(self.answers(head, image_embeds, label_embeds))

    def cosine_report(self, model: TwoTowers[ColourTower]) -> ColourReport:
        """How well two towers do by cosine alone, each photo for itself."""
        image_embeds, label_embeds = self.embed(model)
        with torch.no_grad():
            cosines = model.scale * image_embeds @ label_embeds.T
        images, labels = self.batch["cu_images"].tolist(), self.batch["cu_labels"].tolist()
        parts = zip(pairwise(images), pairwise(labels), strict=True)
        return self.measured(
            [cosines[slice(*rows), slice(*columns)].softmax(1).cpu().numpy() for rows, columns in parts]
        )

    @torch.no_grad()
    def embed(self, model: ColourMatcher | TwoTowers[ColourTower]) -> tuple[Tensor, Tensor]:
        """Embeddings [N, D] of all photos and [M, D] of all labels by towers in evaluation mode, on their device."""
        device = model.image_encoder.position.device
        rows, place = np.unique(self.batch["photos"].numpy(), return_inverse=True)  # products share photos
        texts = model.text_encoder.eval()(*(self.batch[name].to(device) for name in ("input_ids", "attention_mask")))
        photos = embed_photos(model.image_encoder, self.examples, rows)[place]
        return photos.to(device), texts[self.batch["label_index"]]

    @torch.no_grad()
    def answers(self, head: ColourHead, image_embeds: Tensor, label_embeds: Tensor) -> list[np.ndarray]:
        """Of each product the probabilities [n, m] that a head gives."""
        lengths = (self.batch["cu_images"], self.batch["cu_labels"])
        logits = head(image_embeds, label_embeds, *(length.to(image_embeds.device) for length in lengths))
        return [part.softmax(1).numpy() for part in split_logits(logits.float().cpu(), *lengths)]

    def measured(self, answers: Sequence[np.ndarray]) -> ColourReport:
        """The report of probabilities [n, m], product by product."""
        truths = (np.array(group.answers) for group in self.groups)
        return colour_report(zip(answers, truths, strict=True))


def embed_photos(tower: nn.Module, examples: ColourExamples, rows: np.ndarray, seed: int | None = None) -> Tensor:
    """Embeddings [N, D] of the photos `rows` [N], by a tower in evaluation mode; of augmented photos with a seed."""
    generator = None if seed is None else np.random.default_rng(seed)
    device = next(tower.parameters()).device

    def embed(batch: np.ndarray) -> tuple[Tensor]:
        pixels = examples.store.photos(batch)
        if generator is not None:
            pixels = augment_photos(pixels, generator)
        return (tower(torch.from_numpy(pixels).to(device)).cpu(),)

    with evaluating(tower):
        return in_batches(embed, rows)[0]
