"""Backbones: networks of Hugging Face by their config, and the kinds of them that are understood.

A kind is the `model_type` of a config.json. Of a kind with two towers (CLIP and its like) an encoder takes its own.
Notable: a config alone rebuilds every backbone. SigLIP2's takes images that differ in size; here they have one size.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F
from transformers import (
    AutoConfig,
    AutoModel,
    BlipTextModel,
    BlipVisionModel,
    ChineseCLIPTextModel,
    PreTrainedModel,
    Siglip2TextModel,
    SiglipTextModel,
    ViTModel,
)

from .efficientnet_lite import EfficientNetLite, EfficientNetLiteConfig

TWO_TOWERS = ("clip", "siglip", "siglip2", "chinese_clip", "blip")
VISION_TRANSFORMERS = ("dinov2", "dinov2_with_registers", "dinov3_vit", "vit", "vit_mae", "deit")
CONVOLUTIONAL = ("resnet", "regnet", "convnext", "convnextv2", "efficientnet", "efficientnet_lite", "mobilenet_v2")
IMAGE_KINDS = (*TWO_TOWERS, *VISION_TRANSFORMERS, *CONVOLUTIONAL)
LANGUAGE_MODELS = ("bert", "distilbert", "roberta", "xlm-roberta", "mpnet", "electra", "albert")
TEXT_KINDS = (*TWO_TOWERS, *LANGUAGE_MODELS)

# What AutoModel does not build from a config; and ViT-MAE, which without its random masking is ViT.
NETWORKS: dict[str, type[PreTrainedModel]] = {
    "blip_text_model": BlipTextModel,
    "blip_vision_model": BlipVisionModel,
    "chinese_clip_text_model": ChineseCLIPTextModel,
    "siglip2_text_model": Siglip2TextModel,
    "siglip_text_model": SiglipTextModel,
    "vit_mae": ViTModel,
}

AutoConfig.register(EfficientNetLiteConfig.model_type, EfficientNetLiteConfig)
AutoModel.register(EfficientNetLiteConfig, EfficientNetLite)


def backbone_from_config(config: dict[str, Any]) -> PreTrainedModel:
    """A Hugging Face backbone of the given architecture with random weights.

    Raises:
        ValueError: the config does not name its `model_type`.
    """
    model_type = config.get("model_type")
    if model_type is None:
        raise ValueError("backbone config has no 'model_type'; a Hugging Face config names its architecture there")
    described = AutoConfig.for_model(**config)
    return NETWORKS[model_type](described) if model_type in NETWORKS else AutoModel.from_config(described)


def plain_config(config: dict[str, Any]) -> dict[str, Any]:
    """A config without what only describes the file it came from, so that equal encoders have equal configs."""
    of_file = {"transformers_version", "_name_or_path", "architectures", "dtype", "torch_dtype"}
    return {key: value for key, value in config.items() if key not in of_file}


class SizedPatches(nn.Module):
    """The first layer of SigLIP2 (Tschannen et al., 2025) for images of one size: patches and where they lie.

    Args:
        embeddings: the layer as transformers builds it, whose parameters are taken.
        grid: rows and columns of patches.
    """

    def __init__(self, embeddings: Any, grid: tuple[int, int]) -> None:
        super().__init__()
        self.patch_embedding: nn.Module = embeddings.patch_embedding
        self.position_embedding: nn.Embedding = embeddings.position_embedding
        self.patch_size, self.learned, self.grid = embeddings.patch_size, embeddings.position_embedding_size, grid

    def forward(self, pixel_values: Tensor, spatial_shapes: None) -> Tensor:
        """[B, 3, H, W] -> [B, P, C]; spatial_shapes is not looked at."""
        (rows, columns), size = self.grid, self.patch_size
        patches = pixel_values[:, :, : rows * size, : columns * size].unflatten(3, (columns, size))
        patches = patches.unflatten(2, (rows, size)).permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)
        learned = self.position_embedding.weight.T.unflatten(1, (self.learned, self.learned))[None]
        positions = F.interpolate(learned, self.grid, mode="bilinear", align_corners=False, antialias=True)
        return self.patch_embedding(patches) + positions.flatten(2).transpose(1, 2)
