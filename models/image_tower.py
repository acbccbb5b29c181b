"""What all image encoders share: uint8 photos, normalised, through a backbone, to one vector and to patches.

Notable: images enter as uint8 [B, H, W, 3], the form in which they travel between served models; normalisation is the
first operation of the graph, so training, export and serving cannot disagree about it. The cast to float comes before
the transpose because TensorRT's Transpose refuses uint8. Every tower has one image size of its own, whatever its
backbone was pretrained on: learned positions are interpolated, in the graph.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from .backbones import SizedPatches, backbone_from_config

# The statistics of ImageNet: what most published backbones were trained with, harmless for one trained from scratch.
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

# "pooler": what the backbone gives as pooler_output; "first": its first token; "mean": the mean of its patches;
# "first_and_mean": both side by side, as DINOv2's authors read their backbone.
ImagePooling = Literal["pooler", "first", "mean", "first_and_mean"]


class ImageTower(nn.Module):
    """uint8 images of one size to the features of a backbone.

    Args:
        architecture: Hugging Face config of the backbone with its `model_type`.
        height, width: pixels of the images that the backbone sees.
        mean, std: of each channel, of pixels between 0 and 1.
        pooling: how the features become one vector.
        backbone: the network itself; built from `architecture` with random weights when None.

    Raises:
        ValueError: the backbone does not take images of that size.
    """

    backbone: PreTrainedModel
    mean: Tensor
    std: Tensor

    def __init__(
        self,
        architecture: dict[str, Any],
        height: int,
        width: int,
        mean: tuple[float, float, float],
        std: tuple[float, float, float],
        pooling: ImagePooling,
        backbone: PreTrainedModel | None,
    ) -> None:
        super().__init__()
        self.backbone = backbone if backbone is not None else backbone_from_config(architecture)
        self.pooling = pooling
        self.register_buffer("mean", torch.tensor(mean) * 255.0, persistent=False)
        self.register_buffer("std", torch.tensor(std) * 255.0, persistent=False)
        self.options: dict[str, Any] = {}
        self.tokens = 0  # of a backbone of tokens those that are patches, the last ones
        patch_size = architecture.get("patch_size")
        if patch_size is not None and "hidden_sizes" not in architecture:
            rows, columns = (side // patch for side, patch in zip((height, width), both_sides(patch_size), strict=True))
            self.tokens = rows * columns
            if architecture["model_type"] == "siglip2_vision_model":
                self.backbone.embeddings = SizedPatches(self.backbone.embeddings, (rows, columns))
                self.options = {"pixel_attention_mask": None, "spatial_shapes": None}
            elif "interpolate_pos_encoding" in inspect.signature(self.backbone.forward).parameters:
                native = both_sides(architecture["image_size"])
                self.options = {"interpolate_pos_encoding": (height, width) != native}
            if pooling != "pooler" and getattr(self.backbone, "pooler", None) is not None:
                self.backbone.register_module("pooler", None)  # ViT's; it would be carried along for nothing
        training = self.backbone.training
        try:
            with torch.no_grad():
                self.backbone.eval()
                pooled, patches = self.features(torch.zeros(1, height, width, 3, dtype=torch.uint8))
        except (RuntimeError, ValueError) as error:
            kind = architecture["model_type"]
            raise ValueError(f"images of {height}x{width} pixels do not fit a backbone {kind!r}: {error}") from error
        self.backbone.train(training)
        self.pooled_width = pooled.shape[1]
        self.patch_count, self.patch_width = patches.shape[1:]

    def features(self, pixel_values: Tensor) -> tuple[Tensor, Tensor]:
        """[B, H, W, 3] uint8 -> one vector an image [B, C'] and its patches [B, P, C], row by row."""
        output = self.backbone(pixel_values=normalised(pixel_values, self.mean, self.std), **self.options)
        states = output.last_hidden_state
        patches = states[:, -self.tokens :] if self.tokens else states.flatten(2).transpose(1, 2)
        if self.pooling == "pooler":
            return output.pooler_output.flatten(1), patches
        parts = {"first": [states[:, 0]], "mean": [patches.mean(1)], "first_and_mean": [states[:, 0], patches.mean(1)]}
        return torch.cat(parts[self.pooling], dim=1), patches

    def patch_features(self, pixel_values: Tensor) -> Tensor:
        """[B, H, W, 3] uint8 -> [B, patch_count, patch_width], row by row; not of unit length."""
        return self.features(pixel_values)[1]


def both_sides(size: int | Sequence[int]) -> tuple[int, int]:
    """Height and width of what a config gives as one number or as both."""
    return (size, size) if isinstance(size, int) else (size[0], size[1])


def normalised(pixel_values: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """(pixels - mean) / std of every channel: [B, H, W, 3] uint8, [3], [3] -> [B, 3, H, W] float32.

    Whole rows of pixels at once: with the channels innermost, as an 8-bit graph has them, ONNX Runtime subtracts three
    numbers at a time, which took longer than the first convolution.
    """
    width = pixel_values.shape[2]
    rows = pixel_values.to(torch.float32).flatten(2)  # in this order: TensorRT does not reshape uint8
    return ((rows - mean.repeat(width)) / std.repeat(width)).unflatten(2, (width, 3)).permute(0, 3, 1, 2)
