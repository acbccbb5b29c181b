"""Image and text encoders: any Hugging Face backbone, a projection, unit-length embeddings.

The layout is that of CLIP (Radford et al., 2021): a backbone, a bias-free projection to a shared width, L2 norm.
Notable: images enter as uint8 [B, H, W, 3], the form in which they travel between served models; normalisation is the
first operation of the graph, so training, export and serving cannot disagree about it.  The cast to float comes before
the transpose because TensorRT's Transpose refuses uint8.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoConfig, AutoImageProcessor, AutoModel, BertConfig, CLIPModel, ResNetConfig

# The statistics of ImageNet: what most published backbones were trained with, harmless for one trained from scratch.
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

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


class TextEncoderConfig(BaseModel):
    """What is needed to rebuild a text encoder.

    `pooling`: mean over attended tokens, the backbone's own pooler, or the last step of a GRU over the tokens.
    """

    model_config = ConfigDict(extra="forbid")

    backbone: dict[str, Any]
    projection_dim: PositiveInt
    max_length: PositiveInt
    pooling: Literal["mean", "pooler", "gru"] = "mean"


class ImageEncoder(nn.Module):
    """uint8 images to unit-length embeddings.

    Args:
        config: backbone, projection width and the statistics that normalise pixels.
        backbone: the network itself; built from `config.backbone` with random weights when None.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, config: ImageEncoderConfig, backbone: nn.Module | None = None) -> None:
        super().__init__()
        self.config = config
        self.backbone = backbone if backbone is not None else backbone_from_config(config.backbone)
        self.projection = nn.Linear(_output_width(config.backbone), config.projection_dim, bias=False)
        self.register_buffer("mean", torch.tensor(config.mean) * 255.0, persistent=False)
        self.register_buffer("std", torch.tensor(config.std) * 255.0, persistent=False)

    def forward(self, pixel_values: Tensor) -> Tensor:
        """[B, H, W, 3] uint8 -> [B, D] float32, unit length."""
        output = self.backbone(pixel_values=normalised(pixel_values, self.mean, self.std))
        pooled = output.pooler_output if output.pooler_output is not None else output.last_hidden_state[:, 0]
        return F.normalize(self.projection(pooled.flatten(1)).float(), dim=-1)


class TextEncoder(nn.Module):
    """Token ids to unit-length embeddings.

    Args:
        config: backbone, projection width, sequence length and pooling.
        backbone: the network itself; built from `config.backbone` with random weights when None.
    """

    def __init__(self, config: TextEncoderConfig, backbone: nn.Module | None = None) -> None:
        super().__init__()
        self.config = config
        self.backbone = backbone if backbone is not None else backbone_from_config(config.backbone)
        if config.pooling != "pooler" and getattr(self.backbone, "pooler", None) is not None:
            self.backbone.register_module("pooler", None)  # BERT's; it would be carried along for nothing
        width = _output_width(config.backbone)
        if config.pooling == "gru":
            self.gru = nn.GRU(width, width, batch_first=True)
        self.projection = nn.Linear(width, config.projection_dim, bias=False)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """[B, L] int64, [B, L] int64 -> [B, D] float32, unit length. Every row must attend to at least one token."""
        output = self.backbone(input_ids=input_ids, attention_mask=attention_mask)
        if self.config.pooling == "pooler":
            pooled = output.pooler_output
        elif self.config.pooling == "gru":
            steps, _ = self.gru(output.last_hidden_state)
            last = attention_mask.sum(1) - 1  # padding lies behind the text
            pooled = steps[torch.arange(len(steps), device=steps.device), last]
        else:
            mask = attention_mask.unsqueeze(-1).to(output.last_hidden_state.dtype)
            pooled = (output.last_hidden_state * mask).sum(1) / mask.sum(1)
        return F.normalize(self.projection(pooled).float(), dim=-1)


def normalised(pixel_values: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """(pixels - mean) / std of every channel: [B, H, W, 3] uint8, [3], [3] -> [B, 3, H, W] float32.

    Whole rows of pixels at once: with the channels innermost, as an 8-bit graph has them, ONNX Runtime subtracts three
    numbers at a time, which took longer than the first convolution.
    """
    width = pixel_values.shape[2]
    rows = pixel_values.to(torch.float32).flatten(2)  # in this order: TensorRT does not reshape uint8
    return ((rows - mean.repeat(width)) / std.repeat(width)).unflatten(2, (width, 3)).permute(0, 3, 1, 2)


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


def image_encoder_from_checkpoint(folder: Path, projection_dim: int) -> ImageEncoder:
    """An image encoder from a Hugging Face checkpoint folder (CLIP, ViT, ResNet, ConvNeXT …).

    Args:
        folder: holds config.json, safetensors weights and, where the authors gave one, preprocessor_config.json.
        projection_dim: width D of a fresh projection; a CLIP checkpoint brings its own and this is ignored.

    Raises:
        FileNotFoundError: `folder` has no config.json.
    """
    require_checkpoint(folder)
    config = AutoConfig.from_pretrained(folder)
    image_size = getattr(getattr(config, "vision_config", config), "image_size", 224)
    height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
    statistics: dict[str, Any] = {}
    if (folder / "preprocessor_config.json").exists():
        processor = AutoImageProcessor.from_pretrained(folder)
        statistics = {"mean": tuple(processor.image_mean), "std": tuple(processor.image_std)}
    if config.model_type == "clip":
        clip = CLIPModel.from_pretrained(folder, use_safetensors=True)
        encoder = ImageEncoder(
            ImageEncoderConfig(
                backbone=plain_config(clip.vision_model.config.to_dict()),
                projection_dim=clip.config.projection_dim,
                height=height,
                width=width,
                **statistics,
            ),
            clip.vision_model,
        )
        encoder.projection.load_state_dict(clip.visual_projection.state_dict())
        return encoder
    backbone = AutoModel.from_pretrained(folder, use_safetensors=True)
    return ImageEncoder(
        ImageEncoderConfig(
            backbone=plain_config(config.to_dict()),
            projection_dim=projection_dim,
            height=height,
            width=width,
            **statistics,
        ),
        backbone,
    )


def text_encoder_from_checkpoint(
    folder: Path, projection_dim: int, max_length: int, *, pooling: Literal["mean", "gru"] = "mean"
) -> TextEncoder:
    """A text encoder from a Hugging Face checkpoint folder (CLIP, BERT, MiniLM …).

    Args:
        folder: holds config.json and safetensors weights.
        projection_dim: width D of a fresh projection; a CLIP checkpoint brings its own and this is ignored.
        max_length: tokens a title is padded or cut to; at most what the checkpoint's positions allow.
        pooling: of a checkpoint that brings no projection; "gru" starts a GRU from scratch on top.

    Raises:
        FileNotFoundError: `folder` has no config.json.
        ValueError: the checkpoint has fewer positions than `max_length`.
    """
    require_checkpoint(folder)
    config = AutoConfig.from_pretrained(folder)
    positions = getattr(getattr(config, "text_config", config), "max_position_embeddings", max_length)
    if max_length > positions:
        raise ValueError(f"max_length={max_length} exceeds the {positions} positions of the checkpoint in {folder}")
    if config.model_type == "clip":
        clip = CLIPModel.from_pretrained(folder, use_safetensors=True)
        encoder = TextEncoder(
            TextEncoderConfig(
                backbone=plain_config(clip.text_model.config.to_dict()),
                projection_dim=clip.config.projection_dim,
                max_length=max_length,
                pooling="pooler",
            ),
            clip.text_model,
        )
        encoder.projection.load_state_dict(clip.text_projection.state_dict())
        return encoder
    backbone = AutoModel.from_pretrained(folder, use_safetensors=True)
    return TextEncoder(
        TextEncoderConfig(
            backbone=plain_config(config.to_dict()),
            projection_dim=projection_dim,
            max_length=max_length,
            pooling=pooling,
        ),
        backbone,
    )


def backbone_from_config(config: dict[str, Any]) -> nn.Module:
    """A Hugging Face backbone of the given architecture with random weights.

    Raises:
        ValueError: the config does not name its `model_type`.
    """
    model_type = config.get("model_type")
    if model_type is None:
        raise ValueError("backbone config has no 'model_type'; a Hugging Face config names its architecture there")
    options = {key: value for key, value in config.items() if key != "model_type"}
    return AutoModel.from_config(AutoConfig.for_model(model_type, **options))


def _output_width(config: dict[str, Any]) -> int:
    """Channels that the backbone's pooled output has: convolutional configs list them per stage."""
    return int(config["hidden_sizes"][-1] if "hidden_sizes" in config else config["hidden_size"])


def plain_config(config: dict[str, Any]) -> dict[str, Any]:
    """A config without what only describes the file it came from, so that equal encoders have equal configs."""
    return {key: value for key, value in config.items() if key not in {"transformers_version", "_name_or_path"}}


def require_checkpoint(folder: Path) -> None:
    """Raises FileNotFoundError when `folder` has no config.json."""
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(f"{folder} is no Hugging Face checkpoint folder: config.json is missing")
