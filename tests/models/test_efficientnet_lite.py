"""EfficientNet-Lite0: TensorFlow's padding, shapes, and the ImageNet weights of the package."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from torch.nn import BatchNorm2d as Norm
from torch.nn import functional as F

from catalogue.feed import open_feed
from catalogue.images import decode_image
from export.onnx_graphs import GraphSpec, export_onnx
from models import efficientnet_lite
from models.checkpoints import imagenet_backbone, imagenet_image_encoder
from models.efficientnet_lite import EfficientNetLite, EfficientNetLiteConfig, SamePadding, imagenet_weights
from models.encoders import ImageEncoder

FASHION = Path(__file__).resolve().parents[3] / "shared" / "data" / "fashion-224x224.parquet"
packaged = pytest.mark.skipif(imagenet_weights() is None, reason=f"{efficientnet_lite.PACKAGE} is not installed")


@pytest.mark.parametrize("side", [11, 12])
@pytest.mark.parametrize(("kernel", "stride"), [(3, 1), (3, 2), (5, 1), (5, 2)])
def test_padding_is_tensorflows(side: int, kernel: int, stride: int) -> None:
    torch.manual_seed(0)
    convolution = SamePadding(2, 3, kernel, stride, padding=kernel // 2, bias=False)
    inputs = torch.randn(1, 2, side, 7)
    outputs = [-(-length // stride) for length in (side, 7)]
    expected = torch.zeros(1, 3, *outputs)
    before = [
        max((count - 1) * stride + kernel - length, 0) // 2 for count, length in zip(outputs, (side, 7), strict=True)
    ]
    framed = F.pad(inputs, (before[1], kernel, before[0], kernel))
    for row in range(outputs[0]):
        for column in range(outputs[1]):
            window = framed[0, :, row * stride : row * stride + kernel, column * stride : column * stride + kernel]
            expected[0, :, row, column] = (convolution.weight * window).sum((1, 2, 3))
    torch.testing.assert_close(convolution(inputs), expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_the_map_is_a_thirty_second_of_the_image() -> None:
    network = EfficientNetLite(EfficientNetLiteConfig()).eval()
    output = network(pixel_values=torch.randn(2, 3, 112, 84))
    assert output.last_hidden_state.shape == (2, 1280, 4, 3)
    torch.testing.assert_close(output.pooler_output, output.last_hidden_state.mean((2, 3)))
    assert sum(parameter.numel() for parameter in network.parameters()) == 4_652_008 - 1280 * 1000 - 1000


def test_statistics_follow_the_images_within_the_steps_of_a_short_training() -> None:
    """A drawn catalogue has 27: what is evaluated must be what was trained."""
    norms = [module for module in EfficientNetLite(EfficientNetLiteConfig()).modules() if isinstance(module, Norm)]
    inputs = torch.randn(8, norms[0].num_features, 4, 4) * 3 + 5
    for _ in range(27):
        norms[0].train()(inputs)
    torch.testing.assert_close(norms[0].eval()(inputs), norms[0].train()(inputs), atol=0.2, rtol=0.1)
    assert len({norm.momentum for norm in norms}) == 1


def test_without_the_package_there_is_no_encoder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(efficientnet_lite, "PACKAGE", "no-such-package-of-weights")
    assert imagenet_image_encoder(112, 84, 16) is None
    assert imagenet_backbone() is None


def test_a_package_that_is_damaged_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = tmp_path / "cut.pth"
    monkeypatch.setattr(efficientnet_lite, "imagenet_weights", lambda: path)
    for content in (b"", b"version https://git-lfs.github.com/spec/v1"):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"cut\.pth does not hold the weights"):
            imagenet_image_encoder(112, 84, 16)
    torch.save({"_fc.weight": torch.zeros(3)}, path)
    with pytest.raises(ValueError, match=r"cut\.pth does not hold the weights"):
        imagenet_image_encoder(112, 84, 16)


@packaged
@torch.no_grad()
def test_a_bundle_rebuilds_the_encoder_without_the_package() -> None:
    encoder = imagenet_image_encoder(112, 84, 16)
    assert encoder is not None
    rebuilt = ImageEncoder(type(encoder.config).model_validate_json(encoder.config.model_dump_json()))
    rebuilt.load_state_dict(encoder.state_dict())
    images = torch.randint(0, 256, (2, 112, 84, 3), dtype=torch.uint8)
    torch.testing.assert_close(rebuilt.eval()(images), encoder.eval()(images))
    assert encoder.patch_features(images).shape == (2, 12, 1280)
    backbone = imagenet_backbone()
    assert backbone is not None
    tower = backbone.colour_tower(16, 80, 64)
    assert tower.eval()(images[:, :80, :64]).shape == (2, 16)


@packaged
def test_the_exported_encoder_equals_torch(tmp_path: Path) -> None:
    encoder = imagenet_image_encoder(112, 84, 16)
    assert encoder is not None
    images = torch.randint(0, 256, (3, 112, 84, 3), dtype=torch.uint8)
    export_onnx(GraphSpec("image_encoder", encoder, {"pixel_values": images}, ["image_embeds"]), tmp_path / "m.onnx")
    [embeds] = onnxruntime.InferenceSession(tmp_path / "m.onnx").run(None, {"pixel_values": images[:1].numpy()})
    with torch.no_grad():
        np.testing.assert_allclose(embeds, encoder.eval()(images[:1]).numpy(), atol=1e-5)


@packaged
@pytest.mark.skipif(not FASHION.is_file(), reason=f"{FASHION} is not there")
@torch.no_grad()
def test_it_names_clothes_as_imagenet_does() -> None:
    """Pictures of a few article types, by the package's own classifier: the weights lie where they belong."""
    imagenet = {"Jeans": {608}, "Sports Shoes": {770}, "Sunglasses": {836, 837}, "Sandals": {774}}
    encoder = imagenet_image_encoder(224, 224, 16)
    path = imagenet_weights()
    assert encoder is not None
    assert path is not None
    encoder.eval()
    tensors = torch.load(path, weights_only=True)
    right = []
    for product in open_feed(FASHION, preset="fashion"):
        labels = imagenet.get(product.category[-1]) if product.category else None
        if labels and product.images:
            pixels = torch.from_numpy(decode_image(product.images[0], 224, 224))[None]
            logits = encoder.features(pixels)[0] @ tensors["_fc.weight"].T + tensors["_fc.bias"]
            right.append(int(logits.argmax()) in labels)
        if len(right) == 40:
            break
    assert np.mean(right) >= 0.8
