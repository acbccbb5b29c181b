"""FashionBERT's pre-training: masked words, masked patches, alignment, and their weights; and how pairs are scored.

The same task twice: on titles and photos (T-I), then with queries beside them (Q-T-I) from where the first ended.
Notable: to the three published tasks comes a fourth (ITC), the contrast of words and patches as they enter the stream.
Whether two things agree is no sum of what each is, and a stream from scratch finds no gradient towards it: TIA stays at
ln 2. Once words and patches lie in one space, what agrees adds up, and TIA falls.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.fashionbert import FashionBert

from .embeddings import evaluating, in_batches
from .masking import NOT_ASKED
from .match_examples import MaskedPairs
from .train import Batch, Losses, Task
from .visual_words import VisualWords


class MatchTask(Task[FashionBert]):
    """Four tasks on one stream.

    Args:
        name: of the stage.
        model: what is trained.
        pairs: what on.
        words: the true distribution of a patch; None leaves masked patches without a loss.
        contrast: whether words and patches are brought into one space (ITC).
        combiner: weighs the losses.
        measure: the validation figures of the model as it is.
    """

    def __init__(
        self,
        name: str,
        model: FashionBert,
        pairs: MaskedPairs,
        words: VisualWords | None,
        contrast: bool,
        combiner: nn.Module,
        measure: Callable[[], dict[str, float]],
    ) -> None:
        super().__init__()
        self.name = name
        self.model = model
        self.dataset = pairs
        self.words = words
        self.contrast = contrast
        self.combiner = combiner
        self.measure = measure

    def forward(self, model: nn.Module, batch: Batch) -> Batch:
        """match [N], tokens [B, M, V], patches [B, P, K] and entrance [B, N]: logits."""
        names = ("query_ids", "query_mask", "zeroed", "masked_positions", "photo")
        asked = {name: batch.get(name) for name in names}
        predictions = model(batch["pixel_values"], batch["input_ids"], batch["attention_mask"], **asked)
        return {name: getattr(predictions, name) for name in ("match", "tokens", "patches", "entrance")}

    def losses(self, outputs: Batch, batch: Batch) -> Losses:
        """tia, mlm, mpm and itc."""
        match, photos = outputs["match"], len(batch["pixel_values"])
        losses = {
            "tia": F.binary_cross_entropy_with_logits(match, batch["aligned"].float()),
            "mlm": masked_word_loss(outputs["tokens"], batch["masked_tokens"]),
        }
        if self.words is not None:
            true = self.words.to(match.device)(batch["pixel_values"])
            losses["mpm"] = masked_patch_loss(outputs["patches"], true, batch["zeroed"][:photos])
        if self.contrast:
            losses["itc"] = entrance_loss(outputs["entrance"], batch["kin"])
        return losses

    def evaluate(self) -> dict[str, float]:
        """The validation figures."""
        return self.measure()


def masked_word_loss(logits: Tensor, tokens: Tensor) -> Tensor:
    """Mean cross-entropy of logits [B, M, V] and tokens [B, M], `NOT_ASKED` left out; 0 where none is asked."""
    total = F.cross_entropy(logits.flatten(0, 1), tokens.flatten(), ignore_index=NOT_ASKED, reduction="sum")
    return total / (tokens != NOT_ASKED).sum().clamp(min=1)


def masked_patch_loss(logits: Tensor, true: Tensor, asked: Tensor) -> Tensor:
    """Mean KL(true ‖ predicted) over patches: logits, true [B, P, K], asked [B, P] bool; 0 where none is asked."""
    divergence = F.kl_div(torch.log_softmax(logits, dim=2), true, reduction="none").sum(2)
    return (divergence * asked).sum() / asked.sum().clamp(min=1)


def entrance_loss(logits: Tensor, kin: Tensor) -> Tensor:
    """Mean cross-entropy of finding the text of a photo among all, and the photo of a text.

    Args:
        logits: [B, N] of B photos and N texts, the first B of which are theirs in turn.
        kin: [N] numbers, equal for texts that are not to be told apart.
    """
    own = torch.arange(len(logits), device=logits.device)
    strangers = kin[None, :] != kin[: len(logits), None]
    strangers[own, own] = True
    logits = logits.masked_fill(~strangers, -torch.inf)
    return (F.cross_entropy(logits, own) + F.cross_entropy(logits[:, : len(logits)].T, own)) / 2


def match_probabilities(
    model: FashionBert,
    pixels: Callable[[np.ndarray], np.ndarray],
    titles: tuple[np.ndarray, np.ndarray],
    photo: np.ndarray,
    title: np.ndarray,
    queries: tuple[np.ndarray, np.ndarray] | None = None,
) -> np.ndarray:
    """How probable it is that texts and photos belong together, each photo read once; shared out among processes.

    Args:
        model: FashionBERT.
        pixels: from numbers of photos to their pixels [B, H, W, 3] uint8.
        titles: token ids and mask [T, L] int64.
        photo, title: [N] of each pair, the number of its photo and of its title.
        queries: token ids and mask [N, Q] of each pair's query; None: no pair has one.

    Returns:
        [N] float32.
    """
    device = model.segments.device
    numbers, place = np.unique(photo, return_inverse=True)

    def patches(rows: np.ndarray) -> tuple[Tensor, ...]:
        return (model.patches(torch.from_numpy(pixels(rows)).to(device)),)

    with evaluating(model):
        (features,) = in_batches(patches, numbers)

        def match(rows: np.ndarray) -> tuple[Tensor, ...]:
            texts = [array[title[rows]] for array in titles]
            texts += [array[rows] for array in queries] if queries is not None else []
            return (torch.sigmoid(model.match(features[place[rows]], *trimmed(texts, device))),)

        (probabilities,) = in_batches(match, np.arange(len(photo)))
    return np.asarray(probabilities.cpu().numpy())


def trimmed(texts: list[np.ndarray], device: torch.device) -> list[Tensor]:
    """Pairs of token ids and mask, without what no row attends to."""
    longest = [max(1, int(mask.sum(1).max(initial=1))) for mask in texts[1::2] for _ in range(2)]
    return [torch.from_numpy(array[:, :length]).to(device) for array, length in zip(texts, longest, strict=True)]
