"""The networks: unit-length embeddings, absent modalities."""

from __future__ import annotations

import pytest
import torch

from models.category_head import CategoryHead, CategoryHeadConfig
from models.encoders import small_image_encoder, small_text_encoder


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
