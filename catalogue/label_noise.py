"""Colours as sellers write them: the inverse of cleaning, for training and for tests.

One product is written in one manner: a language, perhaps an article's name behind every colour; then each label may get
a note in brackets, a code in front, other case, its words in another order. Chinese comes from `colour_words`; a
colour without a Chinese wording there is written as it is.
Source of the kinds of noise: the colour labels of Taobao products (notes on delivery, 色, the article's name).
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from catalogue.colour_words import CHINESE, ENGLISH

ARTICLES_ENGLISH = ("Shirt", "T-shirt", "Dress", "Handbag", "Running Shoes", "Top", "Watch", "Colour", "Style")
ARTICLES_CHINESE = ("T恤", "短袖", "连衣裙", "外套", "手提包", "运动鞋", "款", "上衣", "卫衣")
NOTES_ENGLISH = (
    "(ships within 30 days)",
    "(pre-order)",
    "[new arrival]",
    "(in stock)",
    "(size M-XL)",
    "(2 pcs)",
    "{last pieces}",
)
NOTES_CHINESE = ("（付款后30天内发货）", "【现货】", "（预售）", "(加绒)", "【新款】", "（均码）", "[收藏优先发货]")
MARKS_ENGLISH = ("Classic", "Pure", "New", "Hot")
MARKS_CHINESE = ("经典", "高级", "新款", "时尚")


@dataclass(frozen=True)
class LabelNoise:
    """How often sellers write in which manner; each a probability.

    Attributes:
        chinese: of a product whose labels are in Chinese.
        synonym: of a label with another wording than the usual one.
        article: of a product with an article's name behind all of its colours.
        note: of a label with a note in brackets.
        code: of a label with a number in front.
        mark: of a label with a word of praise in front.
        case: of a label (English) in capitals or lower case.
        shuffle: of a label (English) whose words change places.
    """

    chinese: float = 0.3
    synonym: float = 0.3
    article: float = 0.3
    note: float = 0.2
    code: float = 0.05
    mark: float = 0.1
    case: float = 0.3
    shuffle: float = 0.1


def written_labels(colours: Sequence[str], noise: LabelNoise, chance: random.Random) -> list[str]:
    """The colours of one product as a seller might write them.

    Args:
        colours: [m] names of colours, English.
        noise: how often what is done.
        chance: decides.

    Returns:
        [m] labels; different colours stay different words.
    """
    chinese = chance.random() < noise.chinese
    articles = ARTICLES_CHINESE if chinese else ARTICLES_ENGLISH
    article = chance.choice(articles) if chance.random() < noise.article else ""
    write = _chinese if chinese else _english
    return [write(colour, article, noise, chance) for colour in colours]


def _english(colour: str, article: str, noise: LabelNoise, chance: random.Random) -> str:
    name = chance.choice(ENGLISH[colour]) if colour in ENGLISH and chance.random() < noise.synonym else colour
    words = name.split()
    if chance.random() < noise.shuffle:
        chance.shuffle(words)
    if chance.random() < noise.mark:
        words.insert(0, chance.choice(MARKS_ENGLISH))
    text = " ".join(words)
    if chance.random() < noise.case:
        text = chance.choice((text.upper(), text.lower()))
    return _decorated(f"{text} {article}".strip(), f"{chance.randrange(1, 99):02d} ", NOTES_ENGLISH, noise, chance)


def _chinese(colour: str, article: str, noise: LabelNoise, chance: random.Random) -> str:
    wordings = CHINESE.get(colour, (colour,))
    text = chance.choice(wordings) if chance.random() < noise.synonym else wordings[0]
    if chance.random() < noise.mark:
        text = chance.choice(MARKS_CHINESE) + text
    return _decorated(text + article, f"{chance.choice('ABCD')}{chance.randrange(1, 99)}", NOTES_CHINESE, noise, chance)


def _decorated(text: str, code: str, notes: Sequence[str], noise: LabelNoise, chance: random.Random) -> str:
    if chance.random() < noise.code:
        text = code + text
    if chance.random() < noise.note:
        text = f"{text}{chance.choice(('', ' '))}{chance.choice(notes)}"
    return text
