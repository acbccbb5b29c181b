"""Image and text encoders: a backbone, a projection, unit-length embeddings; and the small ones trained from scratch.

The layout is that of CLIP (Radford et al., 2021): a backbone, a bias-free projection to a shared width, L2 norm. The
backbone is any that `models.backbones` understands; pretrained ones are read by `models.checkpoints`.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, NonNegativeInt, PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import BertConfig, PreTrainedModel, ResNetConfig

from .backbones import backbone_from_config, plain_config
from .image_tower import IMAGENET_MEAN, IMAGENET_STD, ImagePooling, ImageTower

SMALLEST_SIDE = 48


class ImageEncoderConfig(BaseModel):
    """What is needed to rebuild an image encoder; `backbone` is a Hugging Face config with its `model_type`."""

    model_config = ConfigDict(extra="forbid")

    backbone: dict[str, Any]
    projection_dim: PositiveInt
    height: PositiveInt
    width: PositiveInt
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    pooling: ImagePooling = "pooler"


class TextEncoderConfig(BaseModel):
    """What is needed to rebuild a text encoder.

    `pooling`: mean over attended tokens, the first token, the backbone's own pooler, or the last step of a GRU over the
    tokens. `padding` is the token that a backbone of SigLIP's reads behind every text, up to as many as it has
    positions: it was trained without a mask.
    """

    model_config = ConfigDict(extra="forbid")

    backbone: dict[str, Any]
    projection_dim: PositiveInt
    max_length: PositiveInt
    pooling: Literal["mean", "first", "pooler", "gru"] = "mean"
    padding: NonNegativeInt | None = None


class ImageEncoder(ImageTower):
    """uint8 images to unit-length embeddings.

    Args:
        config: backbone, projection width, image size and the statistics that normalise pixels.
        backbone: the network itself; built from `config.backbone` with random weights when None.

    Raises:
        ValueError: the backbone does not take images of that size.
    """

    def __init__(self, config: ImageEncoderConfig, backbone: PreTrainedModel | None = None) -> None:
        size = config.height, config.width
        super().__init__(config.backbone, *size, config.mean, config.std, config.pooling, backbone)
        self.config = config
        self.projection = nn.Linear(self.pooled_width, config.projection_dim, bias=False)

    def forward(self, pixel_values: Tensor) -> Tensor:
        """[B, H, W, 3] uint8 -> [B, D] float32, unit length."""
        return F.normalize(self.projection(self.features(pixel_values)[0]).float(), dim=-1)


class TextEncoder(nn.Module):
    """Token ids to unit-length embeddings.

    Args:
        config: backbone, projection width, sequence length and pooling.
        backbone: the network itself; built from `config.backbone` with random weights when None.
    """

    def __init__(self, config: TextEncoderConfig, backbone: PreTrainedModel | None = None) -> None:
        super().__init__()
        self.config = config
        self.backbone = backbone if backbone is not None else backbone_from_config(config.backbone)
        if config.pooling != "pooler" and getattr(self.backbone, "pooler", None) is not None:
            self.backbone.register_module("pooler", None)  # BERT's; it would be carried along for nothing
        described = self.backbone.config
        width = described.projection_size if config.padding is not None else described.hidden_size
        if config.pooling == "gru":
            self.gru = nn.GRU(width, width, batch_first=True)
        self.projection = nn.Linear(width, config.projection_dim, bias=False)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """[B, L] int64, [B, L] int64 -> [B, D] float32, unit length. Every row must attend to at least one token."""
        if self.config.padding is None:
            output = self.backbone(input_ids=input_ids, attention_mask=attention_mask)
        else:
            output = self.backbone(input_ids=self._padded(input_ids, attention_mask, self.config.padding))
        if self.config.pooling == "pooler":
            pooled = output.pooler_output
        elif self.config.pooling == "first":
            pooled = output.last_hidden_state[:, 0]
        elif self.config.pooling == "gru":
            steps, _ = self.gru(output.last_hidden_state)
            last = attention_mask.sum(1) - 1  # padding lies behind the text
            pooled = steps[torch.arange(len(steps), device=steps.device), last]
        else:
            mask = attention_mask.unsqueeze(-1).to(output.last_hidden_state.dtype)
            pooled = (output.last_hidden_state * mask).sum(1) / mask.sum(1)
        return F.normalize(self.projection(pooled).float(), dim=-1)

    def _padded(self, input_ids: Tensor, attention_mask: Tensor, padding: int) -> Tensor:
        """Texts [B, L] as a backbone without a mask was trained: padded to all of its positions."""
        texts = input_ids.masked_fill(attention_mask == 0, padding)
        positions = self.config.backbone["max_position_embeddings"]
        behind = texts.new_full((texts.shape[0], positions), padding)
        return torch.cat([texts, behind], dim=1)[:, :positions]


def small_image_encoder(height: int, width: int, projection_dim: int) -> ImageEncoder:
    """A ResNet (He et al., 2016) of 1.5 M parameters that trains from scratch on two CPU cores in minutes.

    Widths are multiples of 32: Intel AMX multiplies bfloat16 in tiles of that many channels.

    Args:
        height, width: pixels of the images it will see.
        projection_dim: width D of the embeddings.

    Raises:
        ValueError: a side is below 48 pixels.
    """
    # Below, the last stage strides over a map two pixels wide, where oneDNN's bfloat16 convolution (torch 2.13, AMX)
    # reads memory that is not its own: now and then NaN, always wrong.
    if min(height, width) < SMALLEST_SIDE:
        raise ValueError(f"images of {height}x{width} pixels are too small; the encoder takes {SMALLEST_SIDE} a side")
    backbone = ResNetConfig(embedding_size=32, hidden_sizes=[64, 96, 128, 256], depths=[1, 1, 1, 1], layer_type="basic")
    return ImageEncoder(
        ImageEncoderConfig(
            backbone=plain_config(backbone.to_dict()), projection_dim=projection_dim, height=height, width=width
        )
    )


def small_text_encoder(vocab_size: int, max_length: int, projection_dim: int, *, hidden_size: int = 192) -> TextEncoder:
    """A two-layer BERT (Devlin et al., 2019) for titles and labels.

    Args:
        vocab_size: size of the tokenizer's vocabulary.
        max_length: tokens a text is padded or cut to.
        projection_dim: width D of the embeddings.
        hidden_size: width of the layers, a multiple of 4.
    """
    backbone = BertConfig(
        vocab_size=vocab_size,
        hidden_size=hidden_size,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=2 * hidden_size,
        max_position_embeddings=max_length,
        pad_token_id=0,
    )
    return TextEncoder(
        TextEncoderConfig(
            backbone=plain_config(backbone.to_dict()), projection_dim=projection_dim, max_length=max_length
        )
    )
