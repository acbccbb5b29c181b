"""Towers and head: no answer depends on batch neighbours, order or padding; checkpoints are taken in."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import BertConfig, BertModel

from kernels.ragged import split_logits
from models.checkpoints import text_encoder_from_checkpoint
from models.colour_matcher import ColourHead, ColourMatcher
from models.colour_tower import ColourTower, ColourTowerConfig, small_colour_tower
from models.encoders import TextEncoder, small_text_encoder
from models.matcher import MatcherConfig
from models.tokenizer import character_tokenizer, encode, set_length

HEIGHT, WIDTH = 64, 56
LABELS = ["black", "navy blue", "藏青", "red", "white", "粉"]


@torch.no_grad()
def unlike_start(network: ColourMatcher) -> None:
    """Gives batch norms statistics and the units weights as training would: answers far from uniform."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)  # type: ignore[union-attr]
            module.running_var.uniform_(0.5, 2)  # type: ignore[union-attr]
    for norm in (network.head.image_norm, network.head.label_norm):
        norm.running_var.fill_(1e-3)  # type: ignore[union-attr]
    for parameter in network.head.matcher.parameters():
        parameter.mul_(1.5)


@pytest.fixture(scope="module")
def matcher() -> ColourMatcher:
    torch.manual_seed(0)
    tower = small_colour_tower(HEIGHT, WIDTH)
    labels = small_text_encoder(300 + 64, 16, 128, hidden_size=64)
    network = ColourMatcher(tower, labels, ColourHead(MatcherConfig()))
    unlike_start(network)
    return network.eval()


def product(photos: int, labels: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    colours = torch.randint(0, 256, (photos, 1, 1, 3), generator=generator)
    grain = torch.randint(-40, 41, (photos, HEIGHT, WIDTH, 3), generator=generator)
    pixels = (colours + grain).clamp(0, 255).to(torch.uint8)
    ids = torch.randint(3, 300, (labels, 16), generator=generator)
    lengths = torch.randint(1, 17, (labels, 1), generator=generator)
    return pixels, ids, (torch.arange(16) < lengths).long()


@torch.no_grad()
def answers(matcher: ColourMatcher, products: list[tuple[Tensor, Tensor, Tensor]]) -> list[Tensor]:
    pixels, ids, mask = (torch.cat(column) for column in zip(*products, strict=True))
    lengths = [
        torch.tensor([0, *(len(part[column]) for part in products)]).cumsum(0).to(torch.int32) for column in (0, 1)
    ]
    logits, _, _ = matcher(pixels, ids, mask, torch.arange(len(ids)), *lengths)
    return [part.softmax(1) for part in split_logits(logits, *lengths)]


def test_a_product_is_answered_alike_alone_and_in_a_batch_of_64(matcher: ColourMatcher) -> None:
    sizes = [(1 + number % 7, 1 + number % 7 + number % 5) for number in range(64)]
    products = [product(n, m, seed) for seed, (n, m) in enumerate(sizes)]
    together = answers(matcher, products)
    order = torch.randperm(64, generator=torch.Generator().manual_seed(1)).tolist()
    shuffled = dict(zip(order, answers(matcher, [products[place] for place in order]), strict=True))
    for place in range(0, 64, 7):
        [alone] = answers(matcher, [products[place]])
        torch.testing.assert_close(together[place], alone, atol=1e-5, rtol=0)
        torch.testing.assert_close(shuffled[place], alone, atol=1e-5, rtol=0)


def test_photos_and_labels_in_another_order_get_the_same_answer(matcher: ColourMatcher) -> None:
    pixels, ids, mask = product(5, 8, 3)
    [straight] = answers(matcher, [(pixels, ids, mask)])
    rows, columns = torch.tensor([4, 2, 0, 1, 3]), torch.tensor([7, 0, 3, 1, 6, 2, 5, 4])
    [turned] = answers(matcher, [(pixels[rows], ids[columns], mask[columns])])
    torch.testing.assert_close(turned, straight[rows][:, columns], atol=1e-5, rtol=0)


@torch.no_grad()
def test_padding_changes_nothing(matcher: ColourMatcher) -> None:
    pixels, ids, mask = product(3, 4, 5)
    [alone] = answers(matcher, [(pixels, ids, mask)])
    images = torch.full((1, 6, 128), 7.0)
    images[0, :3] = matcher.image_encoder(pixels)
    labels = torch.full((1, 9, 128), -7.0)
    labels[0, :4] = matcher.text_encoder(ids, mask)
    present = (torch.arange(6) < 3)[None], (torch.arange(9) < 4)[None]
    padded = matcher.head.padded(images, labels, *present).softmax(-1)[0, :3]
    torch.testing.assert_close(padded[:, :4], alone, atol=1e-5, rtol=0)
    assert padded[:, 4:].max() == 0


def test_what_a_photo_gets_depends_on_the_other_photos(matcher: ColourMatcher) -> None:
    pixels, ids, mask = product(4, 4, 5)
    [together] = answers(matcher, [(pixels, ids, mask)])
    [alone] = answers(matcher, [(pixels[:1], ids, mask)])
    assert (together[:1] - alone).abs().max() > 1e-2


@torch.no_grad()
def test_tower_looks_at_the_centre_alone() -> None:
    tower = small_colour_tower(HEIGHT, WIDTH).eval()
    pixels, _, _ = product(2, 1, 0)
    framed = pixels.clone()
    framed[:, :3], framed[:, -3:], framed[:, :, :3], framed[:, :, -3:] = 0, 255, 0, 255
    torch.testing.assert_close(tower(framed), tower(pixels))
    torch.testing.assert_close(tower(pixels).norm(dim=1), torch.ones(2))
    framed[:, 20:40, 20:40] = 0
    assert (tower(framed) - tower(pixels)).abs().max() > 1e-3


def test_a_crop_larger_than_the_image_is_refused() -> None:
    backbone = small_colour_tower(HEIGHT, WIDTH).config.backbone
    config = ColourTowerConfig(backbone=backbone, height=60, width=60, crop_height=64, crop_width=60)
    with pytest.raises(ValueError, match="64x60 does not fit into images of 60x60"):
        ColourTower(config)


def test_widths_that_differ_are_refused() -> None:
    labels = small_text_encoder(300, 16, 64, hidden_size=64)
    with pytest.raises(ValueError, match=r"\(128, 64, 128\)"):
        ColourMatcher(small_colour_tower(HEIGHT, WIDTH), labels, ColourHead(MatcherConfig()))


@torch.no_grad()
def test_bert_and_gru_read_a_label_up_to_its_last_token(tmp_path: Path) -> None:
    config = BertConfig(
        vocab_size=300, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64
    )
    BertModel(config).save_pretrained(tmp_path)
    torch.manual_seed(0)
    tower = text_encoder_from_checkpoint(tmp_path, 16, 12, pooling="gru").eval()
    ids, mask = product(1, 6, 2)[1][:, :12], torch.ones(6, 12, dtype=torch.int64)
    mask[:, 7:] = 0
    other = ids.clone()
    other[:, 7:] = 9
    torch.testing.assert_close(tower(ids, mask), tower(other, mask))
    torch.testing.assert_close(tower(ids, mask), tower(ids[:, :7], mask[:, :7]), atol=1e-6, rtol=1e-5)
    other[:, 6] = (ids[:, 6] + 1) % 300
    assert (tower(other, mask) - tower(ids, mask)).abs().max() > 1e-4
    rebuilt = TextEncoder(tower.config)
    rebuilt.load_state_dict(tower.state_dict())
    torch.testing.assert_close(rebuilt.eval()(ids, mask), tower(ids, mask))


def test_character_tokenizer_knows_every_character() -> None:
    tokenizer = set_length(character_tokenizer(LABELS), 12)
    assert tokenizer.encode("NAVY").tokens[:5] == ["[CLS]", "n", "a", "v", "y"]
    assert tokenizer.encode("青").tokens[:2] == ["[CLS]", "青"]
    unseen = tokenizer.encode("é").tokens
    assert unseen[1:3] == ["<0xC3>", "<0xA9>"]
    assert tokenizer.decode(tokenizer.encode("藏é").ids[1:4]) == "藏é"
    ids, mask = encode(tokenizer, ["", "x" * 50])
    assert mask.sum(1).tolist() == [1, 12]
    assert ids.dtype == np.int64
