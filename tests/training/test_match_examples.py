"""What FashionBERT is trained on: words and patches masked, photos and queries that do not belong, visual words."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers

from catalogue.feed import open_feed, write_feed
from catalogue.product import Product
from catalogue.store import Store, open_store
from models.tokenizer import encode, set_length, train_tokenizer
from training.examples import Examples, make_examples
from training.masking import NO_WORD, NOT_ASKED, WordMasking, mask_patches, word_ids
from training.match_examples import MaskedPairs
from training.negatives import NONE, SameCategoryNegatives, kin_of_products
from training.queries import QueryMaker, misspell
from training.sampling import BatchRequest
from training.visual_words import patch_vectors, visual_words

LENGTH = 24
ROWS = 4000


def word_piece(titles: list[str]) -> Tokenizer:
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokenizer.train_from_iterator(titles, trainers.WordPieceTrainer(vocab_size=120, special_tokens=special))
    ids = [(name, tokenizer.token_to_id(name)) for name in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=ids)
    return tokenizer


@pytest.fixture(scope="module")
def store(sample_feed: Path, tmp_path_factory: pytest.TempPathFactory) -> Store:
    return open_store(open_feed(sample_feed), tmp_path_factory.mktemp("store"), 64, 48)


@pytest.fixture(scope="module", params=["byte-level BPE", "WordPiece"])
def tokenizer(request: pytest.FixtureRequest, store: Store) -> Tokenizer:
    # Vocabularies so small that most words are several tokens.
    made = train_tokenizer(store.titles, 300) if request.param == "byte-level BPE" else word_piece(store.titles)
    return set_length(made, LENGTH)


@pytest.fixture(scope="module")
def examples(store: Store) -> Examples:
    return make_examples(store, set_length(train_tokenizer(store.titles, 600), 16))


def texts(store: Store, tokenizer: Tokenizer) -> tuple[np.ndarray, np.ndarray]:
    titles = (store.titles * (1 + ROWS // len(store.titles)))[:ROWS]
    return encode(tokenizer, titles)[0], word_ids(tokenizer, titles)


def test_words_are_masked_whole_in_berts_shares(store: Store, tokenizer: Tokenizer) -> None:
    input_ids, words = texts(store, tokenizer)
    masking = WordMasking(tokenizer)
    masked = masking.mask(input_ids, words, np.random.default_rng(0))
    assert masking.mask_token not in input_ids, "what stands for a masked word occurs in no text"

    asked = np.zeros_like(input_ids, bool)
    row, column = np.nonzero(masked.tokens != NOT_ASKED)
    place = masked.positions[row, column]
    asked[row, place] = True
    assert (masked.tokens[row, column] == input_ids[row, place]).all()
    np.testing.assert_array_equal(masked.input_ids[~asked], input_ids[~asked])
    assert not asked[words == NO_WORD].any(), "neither padding nor [CLS]"
    assert asked[words != NO_WORD].mean() == pytest.approx(0.15, abs=0.01)
    several = 0
    for number in range(ROWS):
        for word in set(words[number]) - {NO_WORD}:
            pieces = asked[number, words[number] == word]
            several += len(pieces) > 1
            if asked[number].sum() < masked.positions.shape[1]:  # a text that is masked to the limit may end in a word
                assert pieces.all() or not pieces.any()
    assert several > ROWS, "there were words of several tokens"

    seen = masked.input_ids[row, place]
    assert (seen == masking.mask_token).mean() == pytest.approx(0.8, abs=0.02)
    assert (seen == input_ids[row, place]).mean() == pytest.approx(0.1, abs=0.02)
    special = {tokenizer.token_to_id(name) for name in ("[PAD]", "[CLS]", "[UNK]", "[SEP]")} - {masking.mask_token}
    assert not special & set(seen.tolist()), "the other token is an ordinary one"


def test_single_tokens_are_masked_when_words_may_be_split(store: Store, tokenizer: Tokenizer) -> None:
    input_ids, words = texts(store, tokenizer)
    masked = WordMasking(tokenizer, whole_words=False).mask(input_ids, words, np.random.default_rng(0))
    asked = np.zeros_like(input_ids, bool)
    row, column = np.nonzero(masked.tokens != NOT_ASKED)
    asked[row, masked.positions[row, column]] = True
    assert asked[words != NO_WORD].mean() == pytest.approx(0.15, abs=0.01)
    split = [
        number
        for number in range(200)
        for word in set(words[number]) - {NO_WORD}
        if 0 < asked[number, words[number] == word].sum() < (words[number] == word).sum()
    ]
    assert split


def test_a_tenth_of_the_patches_is_masked() -> None:
    masked = mask_patches(2000, 64, np.random.default_rng(0))
    assert masked.mean() == pytest.approx(0.1, abs=0.005)
    assert np.abs(masked.mean(0) - 0.1).max() < 0.03, "wherever they lie"


def test_negatives_are_of_the_same_category_and_no_kin(store: Store, examples: Examples) -> None:
    rows = examples.paired_rows("train")
    negatives = SameCategoryNegatives(examples, rows)
    kin = kin_of_products(store)
    drawn = [negatives.draw(rows, np.random.default_rng(seed)) for seed in range(5)]
    for others in drawn:
        found = others != NONE
        assert found.mean() > 0.8
        own, other = examples.product[rows[found]], examples.product[others[found]]
        assert [store.categories[row] for row in own] == [store.categories[row] for row in other]
        assert (kin[own] != kin[other]).all()
        assert set(others[found]) <= set(rows)
    assert len(set(map(bytes, drawn))) == len(drawn), "another one every time"


def product(name: str, images: list[bytes], title: str, category: str = "Shoes") -> Product:
    return Product(name, tuple(images), title, (category,), {}, "train")


def test_repeated_photos_and_titles_are_no_negatives(sample_feed: Path, tmp_path: Path) -> None:
    photos = list(dict.fromkeys(image for item in open_feed(sample_feed) for image in item.images))[:8]
    feed = [
        product("a", [photos[0], photos[1]], "Red shoe"),
        product("shares a photo with a", [photos[1], photos[2]], "Crimson shoe"),
        product("has the title of a", [photos[3]], "red  SHOE"),
        product("other", [photos[4]], "Blue shoe"),
        product("alone in its category", [photos[5]], "Hat", "Hats"),
        product("without a title", [photos[6]], ""),
    ]
    write_feed(tmp_path / "feed.parquet", feed)
    store = open_store(open_feed(tmp_path / "feed.parquet"), tmp_path / "store", 64, 48)
    examples = make_examples(store, set_length(train_tokenizer(store.titles, 300), 8))
    rows = examples.paired_rows("train")
    negatives = SameCategoryNegatives(examples, rows)
    seen: dict[str, Counter[str]] = {}
    for seed in range(60):
        for row, other in zip(rows, negatives.draw(rows, np.random.default_rng(seed)), strict=True):
            name = "" if other == NONE else store.ids[examples.product[other]]
            seen.setdefault(store.ids[examples.product[row]], Counter())[name] += 1
    assert all(set(seen[name]) == {"other"} for name in ("a", "shares a photo with a", "has the title of a"))
    assert set(seen["other"]) == {"a", "shares a photo with a", "has the title of a"}
    assert set(seen["alone in its category"]) == {""}
    assert "without a title" not in seen


def test_a_photo_comes_with_its_title_and_with_a_strangers(store: Store, examples: Examples) -> None:
    rows = examples.paired_rows("train")
    tokenizer = set_length(train_tokenizer(store.titles, 600), 16)
    pairs = MaskedPairs(examples, rows, tokenizer, 16, whole_words=True)
    batch = pairs[BatchRequest(np.arange(len(rows)), 3)]
    aligned, photo, kin = (batch[name].numpy() for name in ("aligned", "photo", "kin"))
    assert photo[aligned].tolist() == list(range(len(rows)))
    assert len(set(photo[~aligned])) == (~aligned).sum() > 0.8 * len(rows)
    own = kin_of_products(store)[examples.product[rows]]
    assert (kin[aligned] == own).all()
    assert (kin[~aligned] != own[photo[~aligned]]).all(), "never of the product itself nor of its kin"
    assert len(batch["masked_tokens"]) == len(rows), "a stranger's title is not to be guessed"
    assert "query_ids" not in batch
    titles, masked = examples.input_ids[examples.product[rows]], batch["input_ids"][: len(rows)].numpy()
    assert (titles[:, : masked.shape[1]] == masked).mean() > 0.8
    again = pairs[BatchRequest(np.arange(len(rows)), 3)]
    assert all(torch.equal(again[name], batch[name]) for name in batch), "a batch is a function of its request"


def test_queries_come_with_most_pairs_and_some_are_another_products(store: Store, examples: Examples) -> None:
    rows = examples.paired_rows("train")
    tokenizer = set_length(train_tokenizer(store.titles, 600), 16)
    pairs = MaskedPairs(examples, rows, tokenizer, 16, whole_words=True, queries=QueryMaker(store))
    batch = pairs[BatchRequest(np.arange(len(rows)), 0)]
    asked = batch["query_mask"].sum(1) > 0
    assert float(asked.float().mean()) == pytest.approx(0.8, abs=0.08)
    untitled = batch["attention_mask"].sum(1) == 1
    assert bool(asked[untitled].all())
    assert 0 < float(untitled.float().mean()) < 0.2
    assert bool((batch["masked_tokens"][untitled[: len(rows)]] == NOT_ASKED).all())
    aligned, photo, kin = batch["aligned"], batch["photo"], batch["kin"]
    own_title = kin == kin[photo]
    assert bool(own_title[aligned].all())
    query_alone = own_title & ~aligned
    assert 0.1 < float(query_alone.sum() / (~aligned).sum()) < 0.5
    assert bool(asked[query_alone].all())


def test_queries_are_answered_by_the_product_that_they_were_made_for(store: Store) -> None:
    maker = QueryMaker(store)
    generator = np.random.default_rng(0)
    made = [(row, maker.make(row, generator)) for row in range(len(store)) for _ in range(3) if store.titles[row]]
    assert all(query.text and maker.fits(query, row) for row, query in made)
    assert len({query.text for _, query in made}) > len(made) / 3
    strangers = [maker.fits(query, (row + 1) % len(store)) for row, query in made]
    assert np.mean(strangers) < 0.3


def test_faults_of_spelling_change_one_letter_of_some_queries() -> None:
    generator = np.random.default_rng(0)
    typed = [misspell("blue shirt", generator) for _ in range(2000)]
    wrong = [text for text in typed if text != "blue shirt"]
    assert 0.1 < len(wrong) / len(typed) < 0.17
    assert all(abs(len(text) - len("blue shirt")) <= 1 for text in wrong)


def test_patches_are_cut_row_by_row() -> None:
    pixels = torch.zeros(1, 64, 48, 3, dtype=torch.uint8)
    pixels[0, 16:32, 36:48] = 255  # second row, fourth column of 4 x 4
    vectors = patch_vectors(pixels, 4, 4)
    assert vectors.shape == (1, 16, 48)
    assert vectors[0].sum(1).nonzero().flatten().tolist() == [7]


def test_visual_words_tell_patches_apart(store: Store, examples: Examples) -> None:
    photos = examples.photo[examples.paired_rows("train")]
    words = visual_words(store, photos, 4, 4, 32, seed=0)
    true = words(torch.from_numpy(store.photos(photos[:200]))).flatten(0, 1).double()
    torch.testing.assert_close(true.sum(1), torch.ones(len(true), dtype=torch.float64), atol=1e-5, rtol=0)
    # What a prediction that is the same for every patch is left with at best: the mutual information.
    mean = true.mean(0)
    left = torch.special.entr(mean).sum() - torch.special.entr(true).sum(1).mean()
    assert left > 0.5
    assert not list(words.parameters())
