"""Pretrained towers: every kind of folder gives what transformers computes, at any size; what does not fit is named."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from tokenizers import models as tokenizer_models
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import (
    AutoImageProcessor,
    CLIPImageProcessor,
    EfficientNetImageProcessor,
    Siglip2ImageProcessor,
    SiglipImageProcessor,
    ViTForImageClassification,
    ViTImageProcessor,
)

from export.onnx_graphs import GraphSpec, ServedEncoders, export_onnx
from models.backbones import IMAGE_KINDS, TEXT_KINDS
from models.checkpoints import (
    colour_tower_from_checkpoint,
    image_encoder_from_checkpoint,
    text_encoder_from_checkpoint,
)
from models.colour_tower import ColourTower
from models.encoders import ImageEncoder, TextEncoder
from models.tokenizer import fit_max_length, load_tokenizer, set_length

from .checkpoint_folders import MODELS, network

IMAGE_FOLDERS = [kind for kind in IMAGE_KINDS if kind in MODELS]
TEXT_FOLDERS = [kind for kind in TEXT_KINDS if kind in MODELS]
EMBEDS = ("clip", "siglip", "siglip2", "chinese_clip", "blip")


def pixels(rows: int, height: int, width: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (rows, height, width, 3), dtype=torch.uint8, generator=generator)


def texts() -> tuple[Tensor, Tensor]:
    ids = torch.tensor([[48, 5, 6, 7, 49, 1, 1, 1], [48, 9, 11, 49, 1, 1, 1, 1]])
    return ids, torch.tensor([[1, 1, 1, 1, 1, 0, 0, 0], [1, 1, 1, 1, 0, 0, 0, 0]])


def normalised(encoder: ImageEncoder, images: Tensor) -> Tensor:
    mean, std = (torch.tensor(values)[:, None, None] for values in (encoder.config.mean, encoder.config.std))
    return (images.permute(0, 3, 1, 2) / 255 - mean) / std


def patchified(images: Tensor, size: int) -> dict[str, Tensor]:
    """SigLIP2's own input, written out patch by patch."""
    rows, columns = images.shape[2] // size, images.shape[3] // size
    patches = [
        images[:, :, size * row : size * (row + 1), size * column : size * (column + 1)].permute(0, 2, 3, 1).flatten(1)
        for row in range(rows)
        for column in range(columns)
    ]
    shapes = torch.tensor([[rows, columns]] * len(images))
    return {
        "pixel_values": torch.stack(patches, 1),
        "pixel_attention_mask": torch.ones(len(images), len(patches), dtype=torch.int64),
        "spatial_shapes": shapes,
    }


def by_transformers(kind: str, images: Tensor) -> Any:
    """What transformers' own image tower gives for normalised images."""
    model = network(kind)
    tower = getattr(model, "vision_model", model)
    if kind == "siglip2":
        return tower(**patchified(images, 8))
    if kind == "vit_mae":
        tower.config.mask_ratio = 0.0
        noise = torch.arange(images.shape[2] * images.shape[3] // 64).expand(len(images), -1).float()
        return tower(pixel_values=images, noise=noise, interpolate_pos_encoding=True)
    takes = inspect.signature(tower.forward).parameters
    options = {"interpolate_pos_encoding": True} if "interpolate_pos_encoding" in takes else {}
    return tower(pixel_values=images, **options)


@pytest.mark.parametrize("size", [(32, 32), (48, 40)])
@pytest.mark.parametrize("kind", IMAGE_FOLDERS)
@torch.no_grad()
def test_an_image_encoder_gives_what_transformers_gives(kind: str, size: tuple[int, int], tmp_path: Path) -> None:
    network(kind).save_pretrained(tmp_path)
    encoder = image_encoder_from_checkpoint(tmp_path, 12, size).eval()
    assert (encoder.config.height, encoder.config.width) == size
    images = pixels(2, *size)
    expected = by_transformers(kind, normalised(encoder, images))
    states = expected.last_hidden_state
    if states.ndim == 4:
        patches = states.flatten(2).transpose(1, 2)
    else:
        patches = states[:, states.shape[1] - size[0] // 8 * (size[1] // 8) :]
    torch.testing.assert_close(encoder.patch_features(images), patches, atol=1e-5, rtol=1e-4)
    assert patches.shape[1:] == (encoder.patch_count, encoder.patch_width)
    if kind in ("clip", "chinese_clip", "blip"):
        embeds = network(kind).visual_projection(expected.pooler_output)
    elif kind in ("siglip", "siglip2"):
        embeds = expected.pooler_output
    elif kind in ("dinov2", "dinov2_with_registers"):
        embeds = encoder.projection(torch.cat([states[:, 0], patches.mean(1)], 1))
    elif kind == "vit_mae":
        embeds = encoder.projection(states[:, 0])
    else:
        embeds = encoder.projection(expected.pooler_output.flatten(1))
    torch.testing.assert_close(encoder(images), F.normalize(embeds, dim=-1), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", TEXT_FOLDERS)
@torch.no_grad()
def test_a_text_encoder_gives_what_transformers_gives(kind: str, tmp_path: Path) -> None:
    model = network(kind)
    model.save_pretrained(tmp_path)
    encoder = text_encoder_from_checkpoint(tmp_path, 12, 8).eval()
    ids, mask = texts()
    tower = getattr(model, "text_model", model)
    if kind in ("siglip", "siglip2"):  # reads all positions, padding and all
        embeds = tower(input_ids=F.pad(ids, (0, 8), value=1)).pooler_output
    elif kind in EMBEDS:
        output = tower(input_ids=ids, attention_mask=mask)
        pooled = output.last_hidden_state[:, 0] if kind == "chinese_clip" else output.pooler_output
        embeds = model.text_projection(pooled)
    else:
        states = model(input_ids=ids, attention_mask=mask).last_hidden_state
        means = [row[:length].mean(0) for row, length in zip(states, mask.sum(1), strict=True)]
        embeds = encoder.projection(torch.stack(means))
    torch.testing.assert_close(encoder(ids, mask), F.normalize(embeds, dim=-1), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", TEXT_FOLDERS)
@torch.no_grad()
def test_neither_padding_nor_its_length_changes_a_text_embedding(kind: str, tmp_path: Path) -> None:
    network(kind).save_pretrained(tmp_path)
    encoder = text_encoder_from_checkpoint(tmp_path, 12, 8).eval()
    ids, mask = texts()
    expected = encoder(ids, mask)
    torch.testing.assert_close(encoder(ids[:, :5], mask[:, :5]), expected, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(encoder(torch.where(mask == 1, ids, 33), mask), expected, atol=1e-5, rtol=1e-4)
    assert (encoder(torch.where(ids == 6, 12, ids), mask)[0] - expected[0]).abs().max() > 1e-4


@pytest.mark.parametrize("kind", ["clip", "siglip2", "dinov2", "vit", "convnext", "efficientnet"])
def test_an_exported_image_encoder_equals_torch(kind: str, tmp_path: Path) -> None:
    network(kind).save_pretrained(tmp_path)
    encoder = image_encoder_from_checkpoint(tmp_path, 12, (48, 40)).eval()
    images = pixels(3, 48, 40)
    graph = GraphSpec("image_encoder", encoder, {"pixel_values": images[:2]}, ["image_embeds"])
    export_onnx(graph, tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    with torch.no_grad():
        expected = encoder(images)
    for rows in (1, 3):
        [embeds] = session.run(None, {"pixel_values": images[:rows].numpy()})
        np.testing.assert_allclose(embeds, expected[:rows].numpy(), atol=1e-5)


@pytest.mark.parametrize("kind", ["clip", "siglip", "chinese_clip", "bert", "distilbert", "roberta"])
def test_an_exported_text_encoder_equals_torch(kind: str, tmp_path: Path) -> None:
    network(kind).save_pretrained(tmp_path)
    encoder = text_encoder_from_checkpoint(tmp_path, 12, 8).eval()
    both = ServedEncoders(nn.Identity(), encoder)
    inputs = dict(zip(("pixel_values", "input_ids", "attention_mask"), (pixels(2, 4, 4), *texts()), strict=True))
    export_onnx(GraphSpec("encoders", both, inputs, ["image_embeds", "text_embeds"]), tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    with torch.no_grad():
        expected = encoder(*texts())
    for rows in (slice(0, 2), slice(1, 2)):
        given = {name: tensor[rows].numpy() for name, tensor in inputs.items()}
        np.testing.assert_allclose(session.run(["text_embeds"], given)[0], expected[rows].numpy(), atol=1e-5)


@pytest.mark.parametrize("kind", IMAGE_FOLDERS)
@torch.no_grad()
def test_a_config_alone_rebuilds_an_image_encoder(kind: str, tmp_path: Path) -> None:
    network(kind).save_pretrained(tmp_path)
    encoder = image_encoder_from_checkpoint(tmp_path, 12, (48, 40)).eval()
    config = type(encoder.config).model_validate_json(encoder.config.model_dump_json())
    rebuilt = ImageEncoder(config)
    rebuilt.load_state_dict(encoder.state_dict())
    torch.testing.assert_close(rebuilt.eval()(pixels(2, 48, 40)), encoder(pixels(2, 48, 40)))


@pytest.mark.parametrize("kind", TEXT_FOLDERS)
@torch.no_grad()
def test_a_config_alone_rebuilds_a_text_encoder(kind: str, tmp_path: Path) -> None:
    network(kind).save_pretrained(tmp_path)
    encoder = text_encoder_from_checkpoint(tmp_path, 12, 8).eval()
    rebuilt = TextEncoder(type(encoder.config).model_validate_json(encoder.config.model_dump_json()))
    rebuilt.load_state_dict(encoder.state_dict())
    torch.testing.assert_close(rebuilt.eval()(*texts()), encoder(*texts()))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("kind", ["clip", "siglip2", "dinov2", "convnext", "efficientnet", "bert", "distilbert"])
def test_weights_of_any_float_type_become_float32(kind: str, dtype: torch.dtype, tmp_path: Path) -> None:
    network(kind).to(dtype).save_pretrained(tmp_path / "short")
    network(kind).to(dtype).float().save_pretrained(tmp_path / "float32")
    pairs: list[list[Any]] = []
    if kind in IMAGE_KINDS:
        pairs.append([image_encoder_from_checkpoint(tmp_path / name, 12, (32, 32)) for name in ("short", "float32")])
    if kind in TEXT_KINDS:
        pairs.append([text_encoder_from_checkpoint(tmp_path / name, 12, 8) for name in ("short", "float32")])
    for short, whole in pairs:
        assert short.config == whole.config
        state = whole.backbone.state_dict()
        for name, tensor in short.backbone.state_dict().items():
            if tensor.is_floating_point():
                assert tensor.dtype == torch.float32
                torch.testing.assert_close(tensor, state[name])


@pytest.mark.parametrize("file", ["preprocessor_config.json", "processor_config.json"])
@pytest.mark.parametrize(
    ("kind", "processor"),
    [
        ("clip", CLIPImageProcessor(image_mean=[0.1, 0.2, 0.3], image_std=[0.4, 0.5, 0.6])),
        ("siglip", SiglipImageProcessor()),
        ("siglip2", Siglip2ImageProcessor(patch_size=8)),
        ("vit", ViTImageProcessor(do_normalize=False)),
        ("efficientnet", EfficientNetImageProcessor()),  # divides by the deviation twice
    ],
)
def test_pixels_are_normalised_as_the_folders_processor_does(
    kind: str, processor: Any, file: str, tmp_path: Path
) -> None:
    network(kind).save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    if file == "processor_config.json":
        content = json.loads((tmp_path / "preprocessor_config.json").read_text())
        (tmp_path / "preprocessor_config.json").unlink()
        (tmp_path / file).write_text(json.dumps({"image_processor": content, "processor_class": "CLIPProcessor"}))
    encoder = image_encoder_from_checkpoint(tmp_path, 12, (32, 32))
    flat = np.full((32, 32, 3), (10, 100, 200), np.uint8)
    read = AutoImageProcessor.from_pretrained(tmp_path)(flat, return_tensors="pt", input_data_format="channels_last")
    values = read["pixel_values"][0]
    expected = values[0].view(-1, 3)[0] if kind == "siglip2" else values[:, 16, 16]
    torch.testing.assert_close(
        normalised(encoder, torch.from_numpy(flat)[None])[0, :, 0, 0], expected, atol=1e-4, rtol=0
    )


def test_a_processor_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    network("vit").save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text('{"image_processor_type": "NoSuchProcessor"}')
    with pytest.raises(ValueError, match=r"image processor in .* cannot be read"):
        image_encoder_from_checkpoint(tmp_path, 12)


@pytest.mark.parametrize("kind", ["resnet", "dinov2", "siglip2", "efficientnet", "vit"])
@torch.no_grad()
def test_a_colour_tower_takes_any_image_backbone(kind: str, tmp_path: Path) -> None:
    network(kind).save_pretrained(tmp_path)
    SiglipImageProcessor().save_pretrained(tmp_path)
    tower = colour_tower_from_checkpoint(tmp_path, 64, 56, 16).eval()
    assert tower.config.mean == (0.5, 0.5, 0.5)
    embeds = tower(pixels(2, 64, 56))
    torch.testing.assert_close(embeds.norm(dim=1), torch.ones(2))
    rebuilt = ColourTower(type(tower.config).model_validate_json(tower.config.model_dump_json()))
    rebuilt.load_state_dict(tower.state_dict())
    torch.testing.assert_close(rebuilt.eval()(pixels(2, 64, 56)), embeds)


@torch.no_grad()
def test_a_vit_that_was_saved_with_a_classifier_is_read_at_its_first_token(tmp_path: Path) -> None:
    config = MODELS["vit"][1]
    torch.manual_seed(0)
    saved = ViTForImageClassification(config).eval()
    saved.save_pretrained(tmp_path)
    encoder = image_encoder_from_checkpoint(tmp_path, 12).eval()
    images = pixels(2, 32, 32)
    first = saved.vit(pixel_values=normalised(encoder, images)).last_hidden_state[:, 0]
    torch.testing.assert_close(encoder(images), F.normalize(encoder.projection(first), dim=-1))


# What does not fit.


def test_other_kinds_are_refused_with_the_kinds_that_are_understood(tmp_path: Path) -> None:
    network("bert").save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"'bert'.*clip.*dinov2.*resnet"):
        image_encoder_from_checkpoint(tmp_path, 12)
    network("resnet").save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"'resnet'.*clip.*bert"):
        text_encoder_from_checkpoint(tmp_path, 12, 8)
    (tmp_path / "config.json").write_text('{"architecture": "resnet18", "pretrained_cfg": {}}')  # as timm writes it
    with pytest.raises(ValueError, match="'resnet18'"):
        image_encoder_from_checkpoint(tmp_path, 12)
    (tmp_path / "config.json").write_text('{"model_type": "mine", "auto_map": {"AutoModel": "modeling.Mine"}}')
    (tmp_path / "modeling.py").write_text("raise SystemExit('code of a checkpoint was run')")
    with pytest.raises(ValueError, match="'mine'"):
        image_encoder_from_checkpoint(tmp_path, 12)


@pytest.mark.parametrize("name", ["config.json", "preprocessor_config.json", "model.safetensors.index.json"])
def test_files_that_are_no_json_are_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"config\.json"):
        image_encoder_from_checkpoint(tmp_path, 12)
    network("vit").save_pretrained(tmp_path, max_shard_size="40KB")
    for content in (b"", b"{", b"[]", b"\x00\xff"):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=name):
            image_encoder_from_checkpoint(tmp_path, 12)


def test_pointers_of_git_lfs_are_refused(tmp_path: Path) -> None:
    network("vit").save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    with pytest.raises(ValueError, match=r"model\.safetensors is a pointer of Git LFS"):
        image_encoder_from_checkpoint(tmp_path, 12)


def test_weights_that_are_missing_or_of_another_format_are_named(tmp_path: Path) -> None:
    network("vit").save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"model\.safetensors is missing"):
        image_encoder_from_checkpoint(tmp_path, 12)
    (tmp_path / "pytorch_model.bin").write_bytes(b"pickle")
    with pytest.raises(FileNotFoundError, match=r"pytorch_model\.bin is not read"):
        image_encoder_from_checkpoint(tmp_path, 12)


def test_shards_that_are_cut_or_missing_are_named(tmp_path: Path) -> None:
    network("vit").save_pretrained(tmp_path, max_shard_size="40KB")
    assert image_encoder_from_checkpoint(tmp_path, 12).config.height == 32
    shard = sorted(tmp_path.glob("model-*.safetensors"))[1]
    whole = shard.read_bytes()
    for length in (0, 7, 100, len(whole) - 1):
        shard.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=f"{shard.name} is cut"):
            image_encoder_from_checkpoint(tmp_path, 12)
    shard.unlink()
    with pytest.raises(FileNotFoundError, match=f"{shard.name} is missing"):
        image_encoder_from_checkpoint(tmp_path, 12)


def test_tensors_that_are_missing_or_of_another_shape_are_named(tmp_path: Path) -> None:
    network("clip").save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    name = "vision_model.encoder.layers.1.mlp.fc1.weight"
    save_file({key: value for key, value in tensors.items() if key != name}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"lack 1 tensors of its vision tower, 'encoder\.layers\.1\.mlp\.fc1\.weight'"):
        image_encoder_from_checkpoint(tmp_path, 12)
    assert text_encoder_from_checkpoint(tmp_path, 12, 8).config.projection_dim == 24
    save_file(tensors | {name: torch.zeros(3, 3)}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="cannot be read"):
        image_encoder_from_checkpoint(tmp_path, 12)


def test_images_of_thousands_of_pixels_need_a_size(tmp_path: Path) -> None:
    config = MODELS["dinov2"][1].__class__(**MODELS["dinov2"][1].to_dict() | {"image_size": 2000})
    MODELS["dinov2"][0](config).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="2000x2000 pixels: give a size"):
        image_encoder_from_checkpoint(tmp_path, 12)
    assert image_encoder_from_checkpoint(tmp_path, 12, (48, 40)).patch_count == 30


def test_images_smaller_than_a_patch_are_refused(tmp_path: Path) -> None:
    network("vit").save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="4x4 pixels do not fit a backbone 'vit'"):
        image_encoder_from_checkpoint(tmp_path, 12, (4, 4))


def save_tokenizer(folder: Path, tokens: list[str], **config: Any) -> None:
    vocabulary = {token: number for number, token in enumerate(tokens)}
    Tokenizer(tokenizer_models.WordLevel(vocabulary, unk_token=tokens[0])).save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


def test_a_tokenizer_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    network("bert").save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="exceeds the 20 positions"):
        text_encoder_from_checkpoint(tmp_path, 12, 21)
    save_tokenizer(tmp_path, ["[UNK]", "[PAD]", *map(str, range(59))])
    with pytest.raises(ValueError, match="61 tokens, the text tower beside it only 60"):
        text_encoder_from_checkpoint(tmp_path, 12, 8)
    save_tokenizer(tmp_path, ["[UNK]", "a"])
    with pytest.raises(ValueError, match="no token to pad with"):
        text_encoder_from_checkpoint(tmp_path, 12, 8)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match=r"tokenizer\.json"):
        text_encoder_from_checkpoint(tmp_path, 12, 8)


def test_roberta_counts_positions_from_behind_its_padding(tmp_path: Path) -> None:
    network("roberta").save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="exceeds the 18 positions"):
        text_encoder_from_checkpoint(tmp_path, 12, 19)
    ids = torch.full((1, 18), 7)
    assert text_encoder_from_checkpoint(tmp_path, 12, 18).eval()(ids, torch.ones_like(ids)).isfinite().all()


def test_siglip_reads_the_padding_that_its_tokenizer_names(tmp_path: Path) -> None:
    network("siglip").save_pretrained(tmp_path)
    save_tokenizer(tmp_path, ["[UNK]", "<pad>", "shoes", "</s>"], pad_token={"content": "</s>"})
    assert text_encoder_from_checkpoint(tmp_path, 12, 8).config.padding == 3
    tokenizer = load_tokenizer(tmp_path)
    fit_max_length(tokenizer, ["shoes"])
    assert set_length(tokenizer, 3).encode("shoes").ids == [2, 3, 3]
