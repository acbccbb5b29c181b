"""Products in several colours, found in a feed: the groups that a colour matcher learns from and is measured on.

Feeds list every colour as a product of its own. Two whose titles differ in the colour word alone are one product in two
colours; a group is such a product, its photos are to be matched with its colours. Few titles agree so well, so harder
groups are drawn within a category from products of any title, and extra labels that no photo shows are added.
The group of a product is its title without its colour, lower case, single spaces (its id when it has no title). Its
split, whatever the feed says, is `split_of` of its design: the group without words for colours, since one title is
labelled Grey and Charcoal, or either of "Black & Purple". So a held-out title is never seen in another colour or under
another label (but for a title that names two colours whose words `catalogue/colour_words.py` does not have).
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice

from catalogue.colour_words import COLOUR_WORDS, colour_name
from catalogue.images import is_readable
from catalogue.product import Product, Split, split_of

MIN_COLOURS = 2
MAX_COLOURS = 12
HARDER_COLOURS = (3, 8)


@dataclass(frozen=True, slots=True)
class ColourVariant:
    """One product of a feed as one colour of something.

    Attributes:
        group: the title without the colour word.
        colour: its colour, in English where a feed names it in plain Chinese: what makes two variants alike.
        label: the feed's own word for it.
        named: whether the title names the colour; only then does the group say that it is the same design.
        category: as in `Product`.
        split: of the design.
    """

    group: str
    colour: str
    label: str
    named: bool
    category: tuple[str, ...]
    split: Split


@dataclass(frozen=True, slots=True)
class ColourGroup:
    """A product with n photos and m ≥ n colours, one photo a colour.

    Attributes:
        photos: [n] row numbers of variants.
        colours: [m] names, each once.
        labels: [m] the feed's own words for them.
        answers: [n] index into `colours` of each photo.
    """

    photos: tuple[int, ...]
    colours: tuple[str, ...]
    labels: tuple[str, ...]
    answers: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class ColourProduct:
    """A product with what a caller knows of it, and the truth.

    Attributes:
        images: [n] image files.
        labels: [m] the feed's own words for its colours, m ≥ n.
        answers: [n] index into `labels` of each image.
    """

    images: tuple[bytes, ...]
    labels: tuple[str, ...]
    answers: tuple[int, ...]


def colour_products(feed: Iterable[Product], split: Split, limit: int | None = None) -> list[ColourProduct]:
    """The real groups of a split as products, always the same ones.

    Args:
        feed: read twice, so that only photos that are asked for stay in memory.
        split: of the groups.
        limit: how many at most, in the order of their titles. A group with a photo that cannot be read is left out.
    """
    variants = [colour_variant(product) for product in feed for _ in product.images]
    groups = list(islice(ColourGroups(variants, split).evaluation(), limit))
    wanted = {row for group in groups for row in group.photos}
    images = (image for product in feed for image in product.images)
    found = {row: image for row, image in enumerate(images) if row in wanted and is_readable(image)}
    return [
        ColourProduct(tuple(found[row] for row in group.photos), group.labels, group.answers)
        for group in groups
        if found.keys() >= set(group.photos)
    ]


def colour_variant(product: Product) -> ColourVariant | None:
    """A product as a colour variant; None when the feed names no colour for it or it has no image."""
    label = product.entities.get("base_colour", "")
    return variant_of(product.id, product.title, product.category, label) if label and product.images else None


def variant_of(product_id: str, title: str, category: tuple[str, ...], label: str) -> ColourVariant:
    """What a product with a photo and the colour `label` is a variant of."""
    rest, named = _colour_pattern(label).subn(" ", title)
    group = " ".join(rest.split()).lower() or product_id
    design = " ".join(_ANY_COLOUR.sub(" ", group).split())
    return ColourVariant(group, colour_name(label), label, named > 0, category, split_of(design))


@lru_cache(maxsize=4096)
def _colour_pattern(label: str) -> re.Pattern[str]:
    # Not within a Latin word ("Red" in "Layered"); Chinese writes no spaces, so there any place will do.
    return re.compile(rf"(?<![A-Za-z]){re.escape(label)}(?![A-Za-z])", re.IGNORECASE)


# Of names that begin alike the longest: "Navy Blue" before "Navy".
_ANY_COLOUR = re.compile(
    "|".join(_colour_pattern(name).pattern for name in sorted(COLOUR_WORDS, key=len, reverse=True)), re.IGNORECASE
)


class ColourGroups:
    """The groups of one split of a feed.

    Args:
        variants: of the whole feed; groups name them by their index. None for what cannot be used.
        split: which split's variants make groups.

    Attributes:
        real: rows by colour of every group of `MIN_COLOURS` colours or more.
    """

    def __init__(self, variants: Sequence[ColourVariant | None], split: Split) -> None:
        self._labels: dict[int, str] = {}
        by_group: dict[str, dict[str, list[int]]] = {}
        by_category: dict[tuple[str, ...], dict[str, list[int]]] = {}
        for row, variant in enumerate(variants):
            if variant is None or variant.split != split:
                continue
            self._labels[row] = variant.label
            if variant.named:
                by_group.setdefault(variant.group, {}).setdefault(variant.colour, []).append(row)
            by_category.setdefault(variant.category, {}).setdefault(variant.colour, []).append(row)
        self.real: Mapping[str, Mapping[str, Sequence[int]]] = {
            group: colours for group, colours in sorted(by_group.items()) if len(colours) >= MIN_COLOURS
        }
        self._names = tuple(self.real)
        self._categories = [colours for _, colours in sorted(by_category.items()) if len(colours) >= HARDER_COLOURS[0]]
        self._category_weights = [sum(map(len, colours.values())) for colours in self._categories]

    def __len__(self) -> int:
        return len(self._names)

    @property
    def has_harder(self) -> bool:
        """Whether any category has enough colours for `harder`."""
        return bool(self._categories)

    def real_group(self, number: int, chance: random.Random) -> ColourGroup:
        """Group `number` of the real ones: a photo of each colour, `MAX_COLOURS` of them at most."""
        return self._drawn(self.real[self._names[number]], MAX_COLOURS, chance)

    def evaluation(self) -> Iterator[ColourGroup]:
        """Every real group once, always the same: photo and order follow from the group's name."""
        for number, name in enumerate(self._names):
            yield self.real_group(number, random.Random(name))

    def harder(self, chance: random.Random, *, distractors: int = 0) -> ColourGroup:
        """Colours of one category, whatever the design; frequent categories and colours come more often.

        Args:
            chance: decides.
            distractors: colours of the category added that no photo shows, as far as it has them.

        Raises:
            ValueError: no category has colours enough (`has_harder`).
        """
        if not self._categories:
            raise ValueError(f"no category has {HARDER_COLOURS[0]} colours")
        category = chance.choices(self._categories, self._category_weights)[0]
        count = chance.randint(HARDER_COLOURS[0], min(HARDER_COLOURS[1], len(category)))
        # By the root of their number: colours that are rare in the feed are rare in shops, but worth learning.
        keys = {colour: chance.random() ** (len(rows) ** -0.5) for colour, rows in category.items()}
        ranked = sorted(category, key=lambda colour: -keys[colour])
        group = self._drawn({colour: category[colour] for colour in ranked[:count]}, count, chance)
        extra = {colour: self._labels[category[colour][0]] for colour in ranked[count : count + distractors]}
        return _with_distractors(group, extra, chance)

    def _drawn(self, rows: Mapping[str, Sequence[int]], most: int, chance: random.Random) -> ColourGroup:
        colours = chance.sample(sorted(rows), min(most, len(rows)))
        photos = [chance.choice(rows[colour]) for colour in colours]
        labels = tuple(self._labels[row] for row in photos)
        order = chance.sample(range(len(photos)), len(photos))
        return ColourGroup(tuple(photos[place] for place in order), tuple(colours), labels, tuple(order))


def _with_distractors(group: ColourGroup, extra: Mapping[str, str], chance: random.Random) -> ColourGroup:
    """A group with further colours, {colour: label}, that none of its photos shows, all in a new order."""
    colours, labels = [*group.colours, *extra], [*group.labels, *extra.values()]
    order = chance.sample(range(len(colours)), len(colours))
    place = {old: new for new, old in enumerate(order)}
    return ColourGroup(
        group.photos,
        tuple(colours[old] for old in order),
        tuple(labels[old] for old in order),
        tuple(place[answer] for answer in group.answers),
    )
