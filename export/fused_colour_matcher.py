"""The colour matcher for a GPU: both towers, then the whole matcher in one launch (kernel 2), over ragged batches.

Used twice: by the export, whose parity gate runs it on the CPU, where the kernel's torch path computes the same, and by
the Python model that serves it (model_repository/colour_matcher/fused_model.py). The export copies this file and
`SERVED_MODULES`, the network as it was trained, next to that model; so it imports nothing else of the project.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from kernels.matcher import match_products
from kernels.ragged import split_logits
from models.colour_matcher import ColourHead, ColourMatcher
from models.colour_tower import ColourTower, ColourTowerConfig
from models.encoders import TextEncoder, TextEncoderConfig
from models.matcher import MatcherConfig

SERVED_MODULES = {
    "kernels": ("__init__", "matcher", "matcher_torch", "matcher_triton", "matcher_weights", "ragged"),
    "models": (
        "__init__",
        "attention",
        "backbones",
        "colour_matcher",
        "colour_tower",
        "efficientnet_lite",
        "encoders",
        "image_tower",
        "matcher",
    ),
}
CONFIG_FILE, WEIGHTS_FILE = "matcher.json", "model.safetensors"
# Products to compile the kernel on before the first request, one for each of its tiles: of 32 and of 128 tokens.
WARM_UP = ((2, 3), (16, 32))


class FusedColourMatcher:
    """A colour matcher that answers ragged batches on one device.

    Args:
        model: the trained network; moved to `device`.
        dtype: what the towers' layers and the matcher's matrices compute in: bfloat16 (what the kernel takes), or
            float32 (the matcher then runs in torch). The matcher's sums are float32 in both.
        device: of the network.

    Raises:
        ValueError: a matcher that the kernel does not have (an ablation, or of another width).
    """

    def __init__(self, model: ColourMatcher, dtype: torch.dtype, device: torch.device) -> None:
        self.model = model.eval().to(device)
        self.dtype = dtype
        self.device = device
        self.weights = model.head.matcher.packed_weights(dtype)

    @torch.inference_mode()
    def __call__(
        self, pixel_values: Tensor, input_ids: Tensor, attention_mask: Tensor, sizes: Sequence[tuple[int, int]]
    ) -> list[Tensor]:
        """Probabilities of the labels for each photo of P products.

        Args:
            pixel_values: [N, H, W, 3] uint8, the products' photos one product after the other, on the CPU.
            input_ids, attention_mask: [M, L] int64, their labels in the same order, on the CPU.
            sizes: photos n and labels m of each product.

        Returns:
            [n, m] float32 a product, on the CPU, each photo's row sums to 1.
        """
        photos, labels = (torch.tensor([0, *side]).cumsum(0) for side in zip(*sizes, strict=True))
        longest = int(attention_mask.sum(1).max())  # no label needs more of the bundle's length
        tokens = (tensor[:, :longest].to(self.device) for tensor in (input_ids, attention_mask))
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
            image_embeds = self.model.image_encoder(pixel_values.to(self.device))
            label_embeds = self.model.text_encoder(*tokens)
        head = self.model.head
        image_tokens, label_tokens = head.image_norm(image_embeds), head.label_norm(label_embeds)
        logits = match_products(self.weights, image_tokens, label_tokens, photos, labels).cpu()
        return [product.softmax(-1) for product in split_logits(logits, photos, labels)]

    def warm_up(self) -> None:
        """Answers invented products, so that the kernel is compiled and the towers' algorithms chosen."""
        tower, length = self.model.image_encoder.config, self.model.text_encoder.config.max_length
        for photos, labels in WARM_UP:
            tokens = torch.ones(labels, length, dtype=torch.int64)
            pixels = torch.zeros(photos, tower.height, tower.width, 3, dtype=torch.uint8)
            self(pixels, tokens, tokens, [(photos, labels)])


def save_fused(folder: Path, model: ColourMatcher, dtype: torch.dtype) -> None:
    """Writes the network and what it computes in to `folder`."""
    config = {
        "image_encoder": model.image_encoder.config.model_dump(mode="json"),
        "text_encoder": model.text_encoder.config.model_dump(mode="json"),
        "matcher": model.head.matcher.config.model_dump(mode="json"),
        "dtype": str(dtype).removeprefix("torch."),
    }
    (folder / CONFIG_FILE).write_text(json.dumps(config, indent=2) + "\n")
    save_file(model.state_dict(), folder / WEIGHTS_FILE)


def load_fused(folder: Path, device: torch.device) -> FusedColourMatcher:
    """Reads what `save_fused` wrote.

    Raises:
        OSError, ValueError, RuntimeError: a file is missing, or does not fit the other.
    """
    config = json.loads((folder / CONFIG_FILE).read_text())
    model = ColourMatcher(
        ColourTower(ColourTowerConfig(**config["image_encoder"])),
        TextEncoder(TextEncoderConfig(**config["text_encoder"])),
        ColourHead(MatcherConfig(**config["matcher"])),
    )
    model.load_state_dict(load_file(folder / WEIGHTS_FILE))
    return FusedColourMatcher(model, getattr(torch, config["dtype"]), device)
