"""FashionBERT: what its stream is made of, that rows do not see each other, and which parts may be pretrained."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from models.encoders import TextEncoderConfig
from models.fashionbert import ENTRANCE_GAIN, FashionBert, FashionBertConfig, PatchGrid, small_bert

LENGTH, VOCABULARY = 12, 200


def make(patches: PatchGrid) -> FashionBert:
    torch.manual_seed(0)
    text = TextEncoderConfig(
        backbone=small_bert(VOCABULARY, LENGTH, hidden_size=96, layers=2), projection_dim=96, max_length=LENGTH
    )
    model = FashionBert(FashionBertConfig(text=text, patches=patches, visual_words=32)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "position" in name or name == "segments":  # so small at first that a fault in them would not be seen
                parameter.normal_(0, 0.5)
            elif parameter.ndim == 2:
                parameter.mul_(3)
    return model


@pytest.fixture(scope="module")
def model() -> FashionBert:
    return make(PatchGrid(height=64, width=48, rows=4, columns=4))


def batch(rows: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (rows, 64, 48, 3), generator=generator, dtype=torch.uint8)
    ids = torch.randint(5, VOCABULARY, (rows, LENGTH), generator=generator)
    lengths = torch.randint(3, LENGTH + 1, (rows, 1), generator=generator)
    return pixels, ids, (torch.arange(LENGTH) < lengths).long()


@torch.no_grad()
def test_padding_and_neighbours_change_nothing(model: FashionBert) -> None:
    pixels, ids, mask = batch(5)
    together = model(pixels, ids, mask).match
    for row in range(5):
        length = int(mask[row].sum())
        alone = model(pixels[row : row + 1], ids[row : row + 1, :length], mask[row : row + 1, :length]).match
        torch.testing.assert_close(alone[0], together[row], atol=1e-5, rtol=0)
    query, none = ids.roll(1, 1), torch.zeros_like(mask)
    torch.testing.assert_close(model(pixels, ids, mask, query, none).match, together, atol=1e-5, rtol=0)
    assert (model(pixels, ids, mask, query, mask).match - together).abs().min() > 1e-5, "a query is read"


@torch.no_grad()
def test_a_patch_is_read_in_its_place_and_alone(model: FashionBert) -> None:
    pixels, ids, mask = batch(2)
    features = model.patches(pixels)
    changed = pixels.clone()
    changed[:, 16:32, 12:24] = 0  # second row, second column
    moved = (model.patches(changed) - features).abs().amax((0, 2)) > 1e-6
    assert moved.nonzero().flatten().tolist() == [5]
    swapped = features[:, torch.tensor([1, 0, *range(2, 16)])]
    assert (model.match(swapped, ids, mask) - model.match(features, ids, mask)).abs().min() > 1e-6


@torch.no_grad()
def test_of_a_zeroed_patch_nothing_is_seen(model: FashionBert) -> None:
    pixels, ids, mask = batch(2)
    changed = pixels.clone()
    changed[:, 16:32, 12:24] = 0
    zeroed = torch.zeros(2, 16, dtype=torch.bool)
    zeroed[:, 5] = True
    seen, unseen = (model(picture, ids, mask, zeroed=zeroed) for picture in (pixels, changed))
    torch.testing.assert_close(seen.match, unseen.match)
    torch.testing.assert_close(seen.patches, unseen.patches)


@torch.no_grad()
def test_heads_answer_about_the_places_asked_for(model: FashionBert) -> None:
    pixels, ids, mask = batch(3)
    places = torch.tensor([[1, 2], [2, 1], [0, 0]])
    found = model(pixels, ids, mask, masked_positions=places)
    assert found.tokens.shape == (3, 2, VOCABULARY)
    assert found.patches.shape == (3, 16, 32)
    other = model(pixels, ids, mask, masked_positions=places.flip(1))
    torch.testing.assert_close(found.tokens, other.tokens.flip(1))
    changed = pixels.clone()
    changed[:] = 255
    assert (model(changed, ids, mask, masked_positions=places).tokens - found.tokens).abs().max() > 1e-4


@torch.no_grad()
def test_a_photo_serves_several_texts(model: FashionBert) -> None:
    pixels, ids, mask = batch(3)
    photo = torch.tensor([0, 1, 2, 0, 0, 1])
    texts = torch.tensor([0, 1, 2, 1, 2, 0])
    shared = model(pixels, ids[texts], mask[texts], photo=photo)
    one_by_one = model(pixels[photo], ids[texts], mask[texts])
    torch.testing.assert_close(shared.match, one_by_one.match)
    torch.testing.assert_close(shared.patches, one_by_one.patches[:3])
    torch.testing.assert_close(shared.entrance, one_by_one.entrance[:3])


@torch.no_grad()
def test_the_entrance_compares_mean_words_with_mean_patches(model: FashionBert) -> None:
    pixels, ids, mask = batch(2)
    query, query_mask = ids.flip(1), mask.flip(0)
    query_mask[1] = 0
    found = model(pixels, ids, mask, query, query_mask).entrance
    for row in range(2):
        words = [model.words(ids[row, 1 : mask[row].sum()]).mean(0)]
        if row == 0:
            words.append(model.words(query[0, 1 : query_mask[0].sum()]).mean(0))
        for photo in range(2):
            image = model.patches(pixels[photo : photo + 1])[0].mean(0)
            cosines = [torch.cosine_similarity(text, image, dim=0) for text in words]
            torch.testing.assert_close(found[photo, row], sum(cosines) / 0.07)


@torch.no_grad()
def test_the_agreement_at_the_entrance_is_part_of_the_answer() -> None:
    model = make(PatchGrid(height=64, width=48, rows=4, columns=4))
    pixels, ids, mask = batch(3)
    patches = model.patches(pixels)
    found, agreement = model.match(patches, ids, mask), model.entrance(patches, ids, mask).diagonal()
    torch.testing.assert_close(model(pixels, ids, mask).match, found)
    model.entrance_gain.zero_()
    torch.testing.assert_close(found - model.match(patches, ids, mask), ENTRANCE_GAIN * agreement)
    plain = FashionBert(model.config.model_copy(update={"entrance": False}))
    assert not plain.entrance_gain.requires_grad
    assert float(plain.entrance_gain) == 0


def test_grids_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="64x48 pixels cannot be cut into 5x4"):
        make(PatchGrid(height=64, width=48, rows=5, columns=4))


def test_every_part_learns_from_its_task() -> None:
    model = make(PatchGrid(height=64, width=48, rows=8, columns=8)).train()
    pixels, ids, mask = batch(4)
    found = model(pixels, ids, mask, ids, mask, masked_positions=torch.ones(4, 2, dtype=torch.int64))
    outputs = (found.match, found.tokens, found.patches, found.entrance)
    sum(output.square().mean() for output in outputs).backward()
    assert not [name for name, parameter in model.named_parameters() if parameter.grad is None]
