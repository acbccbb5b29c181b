"""The networks: unit-length embeddings, absent modalities, checkpoint folders of Hugging Face."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import BertConfig, BertModel, CLIPConfig, CLIPModel, ViTConfig, ViTModel

from models.category_head import CategoryHead, CategoryHeadConfig
from models.encoders import (
    image_encoder_from_checkpoint,
    small_image_encoder,
    small_text_encoder,
    text_encoder_from_checkpoint,
)


def pixels(rows: int, height: int = 64, width: int = 48) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (rows, height, width, 3), dtype=torch.uint8, generator=generator)


def test_embeddings_have_unit_length() -> None:
    image_encoder = small_image_encoder(64, 48, 32).eval()
    text_encoder = small_text_encoder(300, 8, 32).eval()
    ids = torch.arange(16).view(2, 8)
    for embeds in (image_encoder(pixels(2)), text_encoder(ids, torch.ones_like(ids))):
        torch.testing.assert_close(embeds.norm(dim=1), torch.ones(2))
        assert embeds.shape == (2, 32)


def test_padding_does_not_change_a_text_embedding() -> None:
    encoder = small_text_encoder(300, 8, 32).eval()
    ids = torch.tensor([[2, 7, 9, 0, 0, 0, 0, 0]])
    mask = torch.tensor([[1, 1, 1, 0, 0, 0, 0, 0]])
    other_padding = torch.tensor([[2, 7, 9, 5, 4, 3, 2, 1]])
    torch.testing.assert_close(encoder(ids, mask), encoder(other_padding, mask))


def test_an_embedding_does_not_depend_on_batch_neighbours() -> None:
    encoder = small_image_encoder(64, 48, 32).eval()
    batch = pixels(5)
    torch.testing.assert_close(encoder(batch)[3:4], encoder(batch[3:4]), atol=1e-5, rtol=0)


def test_images_too_small_for_the_encoder_are_refused() -> None:
    with pytest.raises(ValueError, match="40x32"):
        small_image_encoder(40, 32, 32)


def test_what_stands_in_an_absent_modality_does_not_matter() -> None:
    head = CategoryHead(CategoryHeadConfig(embed_dim=32, num_classes=7)).eval()
    image, text = torch.randn(3, 32), torch.randn(3, 32)
    yes, no = torch.ones(3, 1, dtype=torch.bool), torch.zeros(3, 1, dtype=torch.bool)
    without_title = head(image, text, yes, no)
    torch.testing.assert_close(without_title, head(image, torch.zeros(3, 32), yes, no))
    assert not torch.allclose(without_title, head(image, text, yes, yes))
    assert not torch.allclose(without_title, head(image, text, no, yes))


def test_a_vit_checkpoint_folder_becomes_an_image_encoder(tmp_path: Path) -> None:
    config = ViTConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64, image_size=32)
    config.patch_size = 16
    torch.manual_seed(0)
    saved = ViTModel(config).eval()
    saved.save_pretrained(tmp_path)
    encoder = image_encoder_from_checkpoint(tmp_path, 24).eval()
    assert (encoder.config.height, encoder.config.width) == (32, 32)
    images = pixels(2, 32, 32)
    normalised = (images.float().permute(0, 3, 1, 2) - encoder.mean[:, None, None]) / encoder.std[:, None, None]
    pooled = saved(pixel_values=normalised).pooler_output
    expected = torch.nn.functional.normalize(encoder.projection(pooled), dim=-1)
    torch.testing.assert_close(encoder(images), expected)


def test_a_clip_checkpoint_folder_brings_its_own_projections(tmp_path: Path) -> None:
    tower = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    config = CLIPConfig(
        text_config=tower | {"vocab_size": 50, "max_position_embeddings": 16, "eos_token_id": 49, "bos_token_id": 48},
        vision_config=tower | {"image_size": 32, "patch_size": 16},
        projection_dim=24,
    )
    torch.manual_seed(0)
    clip = CLIPModel(config).eval()
    clip.save_pretrained(tmp_path)
    image_encoder = image_encoder_from_checkpoint(tmp_path, 999).eval()
    text_encoder = text_encoder_from_checkpoint(tmp_path, 999, max_length=16).eval()
    images = pixels(2, 32, 32)
    ids = torch.tensor([[48, 5, 6, 49, 49, 49], [48, 9, 49, 49, 49, 49]])
    mask = torch.tensor([[1, 1, 1, 1, 0, 0], [1, 1, 1, 0, 0, 0]])
    normalised = (images.float().permute(0, 3, 1, 2) - image_encoder.mean[:, None, None]) / image_encoder.std[
        :, None, None
    ]
    with torch.no_grad():
        expected = clip(input_ids=ids, attention_mask=mask, pixel_values=normalised)
        torch.testing.assert_close(image_encoder(images), expected.image_embeds)
        torch.testing.assert_close(text_encoder(ids, mask), expected.text_embeds)


def test_a_bert_checkpoint_folder_is_mean_pooled(tmp_path: Path) -> None:
    config = BertConfig(vocab_size=50, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64)
    torch.manual_seed(0)
    saved = BertModel(config).eval()
    saved.save_pretrained(tmp_path)
    encoder = text_encoder_from_checkpoint(tmp_path, 24, max_length=8).eval()
    ids, mask = torch.tensor([[2, 3, 4, 0]]), torch.tensor([[1, 1, 1, 0]])
    mean = saved(input_ids=ids, attention_mask=mask).last_hidden_state[:, :3].mean(1)
    expected = torch.nn.functional.normalize(encoder.projection(mean), dim=-1)
    torch.testing.assert_close(encoder(ids, mask), expected)


def test_a_folder_that_is_no_checkpoint_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"config\.json"):
        image_encoder_from_checkpoint(tmp_path, 24)
    BertConfig(max_position_embeddings=16, vocab_size=10).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="16 positions"):
        text_encoder_from_checkpoint(tmp_path, 24, max_length=32)
