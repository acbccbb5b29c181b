"""The categorizer shown: top-5 of a handful of held-out products, accuracy over the test split, single requests.

Accuracy is asked for in three ways (both inputs, the image alone, the title alone), over all test products and over
those whose title and photo no training product has, with what of it could be filed without a person; the contact sheet
shows products with their first answers.
"""

from __future__ import annotations

import io
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageOps

from benchmarks.demo import one_at_a_time
from catalogue.feed import Feed
from catalogue.images import is_readable
from catalogue.product import Product, join_path
from catalogue.store import unseen_products
from client import Categorization, Item, Judgement, ShelfwiseClient, ShelfwiseError

SHOWN = 12
BATCH = 16
MODALITIES = {"image + title": (True, True), "image": (True, False), "title": (False, True)}


@dataclass(frozen=True)
class Accuracy:
    """Shares of held-out products whose category came first, and was among the first five.

    `sure`: the share whose answer the server calls sure, `sure_right`: the share of those that are right, None of none.
    """

    products: int
    top_1: float
    top_5: float
    sure: float
    sure_right: float | None
    products_per_second: float


def demonstrate(client: ShelfwiseClient, feed: Feed, output: Path) -> list[dict[str, Any]]:
    """Shows and measures; returns a row a figure."""
    unseen = unseen_products(feed)
    products = [
        product
        for product in feed
        if product.split == "test" and product.category and all(map(is_readable, product.images[:1]))
    ]
    show(client, products[:SHOWN], output / "contact-sheet.png")
    print(f"contact sheet: {output / 'contact-sheet.png'}")
    rows: list[dict[str, Any]] = []
    for among, chosen in (("", products), (", unseen", [product for product in products if product.id in unseen])):
        print(f"held-out products{among} through the server, {len(chosen)}")
        for modality in MODALITIES:
            asked = having(chosen, modality)
            if not asked:
                continue
            accuracy = measure_accuracy(client, asked, modality)
            right = "" if accuracy.sure_right is None else f" ({accuracy.sure_right:.2%} right)"
            print(
                f"  {modality + among:22} top-1 {accuracy.top_1:.4f}  top-5 {accuracy.top_5:.4f}"
                f"  sure {accuracy.sure:.1%}{right}"
                f"  ({accuracy.products} products, {accuracy.products_per_second:.0f}/s)",
                flush=True,
            )
            rows.append({"measured": "through the server", "modality": modality + among, **vars(accuracy)})
    whole = having(products, "image + title") or products
    latency = one_at_a_time(
        lambda product: client.categorize(image=first_image(product), title=product.title, k=5), whole
    )
    return [*rows, latency]


def show(client: ShelfwiseClient, products: Sequence[Product], sheet: Path) -> None:
    """Prints the five most probable categories of some products and draws them on a contact sheet."""
    answers = [client.categorize(image=first_image(product), title=product.title, k=5) for product in products]
    for product, answer in zip(products, answers, strict=True):
        print(f"{product.title or '(no title)'}   [{join_path(product.category)}]")
        for category in answer.categories:
            mark = "✓" if category.path == product.category else " "
            print(f"  {mark} {category.probability:.4f}  {category.label}")
    print()
    draw_contact_sheet(products, answers, sheet)


def having(products: Sequence[Product], modality: str) -> list[Product]:
    """Those that have what a modality needs."""
    use_image, use_title = MODALITIES[modality]
    return [
        product
        for product in products
        if (product.images or not use_image) and (product.title.strip() or not use_title)
    ]


def measure_accuracy(client: ShelfwiseClient, products: Sequence[Product], modality: str) -> Accuracy:
    """Categorizes products that have what the modality needs through the server.

    Raises:
        ShelfwiseError: a product could not be answered.
    """
    use_image, use_title = MODALITIES[modality]
    items = (
        Item(first_image(product) if use_image else None, product.title if use_title else None) for product in products
    )
    first = within_five = sure = sure_right = 0
    start = time.perf_counter()
    for product, answer in zip(products, judged(client, items), strict=True):
        paths = [category.path for category in answer.categories]
        first += paths[0] == product.category
        within_five += product.category in paths
        sure += answer.sure
        sure_right += answer.sure and paths[0] == product.category
    seconds = time.perf_counter() - start
    count = len(products)
    right = sure_right / sure if sure else None
    return Accuracy(count, first / count, within_five / count, sure / count, right, count / seconds)


def judged(client: ShelfwiseClient, items: Iterator[Item]) -> Iterator[Judgement]:
    """The answers to a stream of items; an item that failed ends the measurement."""
    for answer in client.judge_many(items, k=5, batch_size=BATCH):
        if isinstance(answer, ShelfwiseError):
            raise answer
        yield answer


def first_image(product: Product) -> bytes | None:
    """The main image of a product, None when it has none."""
    return product.images[0] if product.images else None


def draw_contact_sheet(products: Sequence[Product], answers: Sequence[Categorization], path: Path) -> None:
    """Draws each product with its first three answers, the right one in green."""
    columns, width, picture, height = 4, 300, 170, 270
    rows = -(-len(products) // columns)
    sheet = Image.new("RGB", (columns * width, rows * height), "white")
    pen = ImageDraw.Draw(sheet)
    for number, (product, answer) in enumerate(zip(products, answers, strict=True)):
        left, top = (number % columns) * width, (number // columns) * height
        if product.images:
            image = ImageOps.contain(Image.open(io.BytesIO(product.images[0])).convert("RGB"), (width - 20, picture))
            sheet.paste(image, (left + (width - image.width) // 2, top + 6))
        pen.text((left + 10, top + picture + 14), product.title[:44] or "(no title)", "black", font_size=13)
        for line, category in enumerate(answer.categories[:3]):
            colour = "#1a7f37" if category.path == product.category else "#57606a"
            text = f"{category.probability:.3f}  {category.path[-1]}"
            pen.text((left + 10, top + picture + 34 + 17 * line), text, colour, font_size=13)
    sheet.save(path)
