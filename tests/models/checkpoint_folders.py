"""Small random networks of every kind that checkpoint folders hold, by kind: what the tests save and read again."""

from __future__ import annotations

from typing import Any

import torch
import transformers as hf
from transformers import PreTrainedModel

LAYERS = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
IMAGE = LAYERS | {"image_size": 32, "patch_size": 8}
TEXT = LAYERS | {"vocab_size": 60, "max_position_embeddings": 16, "pad_token_id": 1, "bos_token_id": 48}
TEXT |= {"eos_token_id": 49, "projection_size": 24, "encoder_hidden_size": 32}
TOWERS = {"text_config": TEXT, "vision_config": IMAGE}
NARROW: dict[str, Any] = {"hidden_sizes": [8, 16], "depths": [1, 1]}
ENCODER = LAYERS | {"vocab_size": 60, "max_position_embeddings": 20}

MODELS: dict[str, tuple[Any, Any]] = {
    "clip": (hf.CLIPModel, hf.CLIPConfig(**TOWERS, projection_dim=24)),
    "siglip": (hf.SiglipModel, hf.SiglipConfig(**TOWERS)),
    "siglip2": (hf.Siglip2Model, hf.Siglip2Config(text_config=TEXT, vision_config=IMAGE | {"num_patches": 16})),
    "chinese_clip": (hf.ChineseCLIPModel, hf.ChineseCLIPConfig(**TOWERS, projection_dim=24)),
    "blip": (hf.BlipModel, hf.BlipConfig(**TOWERS, projection_dim=24, initializer_range=0.02)),
    "dinov2": (hf.Dinov2Model, hf.Dinov2Config(**IMAGE)),
    "dinov2_with_registers": (hf.Dinov2WithRegistersModel, hf.Dinov2WithRegistersConfig(**IMAGE)),
    "dinov3_vit": (hf.DINOv3ViTModel, hf.DINOv3ViTConfig(**IMAGE, num_register_tokens=4)),
    "vit": (hf.ViTModel, hf.ViTConfig(**IMAGE)),
    "vit_mae": (hf.ViTMAEModel, hf.ViTMAEConfig(**IMAGE)),
    "deit": (hf.DeiTModel, hf.DeiTConfig(**IMAGE)),
    "resnet": (hf.ResNetModel, hf.ResNetConfig(embedding_size=8, **NARROW)),
    "regnet": (hf.RegNetModel, hf.RegNetConfig(embedding_size=8, groups_width=8, **NARROW)),
    "convnext": (hf.ConvNextModel, hf.ConvNextConfig(num_stages=2, **NARROW)),
    "convnextv2": (hf.ConvNextV2Model, hf.ConvNextV2Config(num_stages=2, **NARROW)),
    "efficientnet": (
        hf.EfficientNetModel,
        hf.EfficientNetConfig(width_coefficient=0.25, depth_coefficient=0.1, hidden_dim=320),
    ),
    "mobilenet_v2": (hf.MobileNetV2Model, hf.MobileNetV2Config(depth_multiplier=0.25, finegrained_output=False)),
    "bert": (hf.BertModel, hf.BertConfig(**ENCODER)),
    "distilbert": (
        hf.DistilBertModel,
        hf.DistilBertConfig(vocab_size=60, max_position_embeddings=20, dim=32, n_layers=2, n_heads=2, hidden_dim=64),
    ),
    "roberta": (hf.RobertaModel, hf.RobertaConfig(**ENCODER, pad_token_id=1)),
    "xlm-roberta": (hf.XLMRobertaModel, hf.XLMRobertaConfig(**ENCODER, pad_token_id=1)),
    "mpnet": (hf.MPNetModel, hf.MPNetConfig(**ENCODER)),
    "electra": (hf.ElectraModel, hf.ElectraConfig(**ENCODER, embedding_size=16)),
    "albert": (hf.AlbertModel, hf.AlbertConfig(**ENCODER, embedding_size=16)),
}


def network(kind: str) -> PreTrainedModel:
    """A network of a kind, the same random weights every time, batch norms with statistics as training gives them."""
    model_class, config = MODELS[kind]
    torch.manual_seed(0)
    model = model_class(config).eval()
    with torch.no_grad():
        for name, buffer in model.named_buffers():
            if name.endswith("running_var"):
                buffer.uniform_(0.5, 2)
            elif name.endswith("running_mean"):
                buffer.normal_(0, 0.1)
        for name, parameter in model.named_parameters():
            if "position" in name or parameter.abs().max() < 1e-3:  # left at nothing, a fault in them would not be seen
                parameter.normal_(0, 0.3)
            elif parameter.ndim == 2:
                parameter.mul_(3)
    return model
