"""Many texts for one image, and a search ranked again: what takes several requests, against all served contracts."""

from __future__ import annotations

import asyncio
import io
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

import shelfwise
from catalogue.feed import write_feed
from catalogue.product import Product
from client import AsyncShelfwiseClient, InvalidInput, RankedSearch, ShelfwiseClient
from serving.server import TritonServer
from tests.client.test_ensembles import matched

RUNNER = CliRunner()
FILTERS = {"brand": ["Puma", "Nike"], "season": "Fall"}


def test_a_thousand_texts_are_answered_in_their_order(contract_server: TritonServer) -> None:
    titles = [f"t{number}" for number in range(1000)]
    expected = [matched(title, b"1", "query") for title in titles]
    with ShelfwiseClient(contract_server.url) as client:
        assert [answer.to_dict() for answer in client.match_texts(b"1", titles, "query")] == expected
        assert [answer.to_dict() for answer in client.match_texts(b"1", titles[:1], "query")] == expected[:1]

    async def ask() -> None:
        async with AsyncShelfwiseClient(contract_server.url) as client:
            assert [answer.to_dict() for answer in await client.match_texts(b"1", titles, "query")] == expected

    asyncio.run(ask())


def test_a_search_is_ranked_again_by_how_well_query_title_and_image_match(contract_server: TritonServer) -> None:
    with ShelfwiseClient(contract_server.url) as client:
        plain = client.search("red", k=60, filters=FILTERS)
        listings = {product.product_id: (f"title {product.photo}", b"%d" % product.photo) for product in plain.products}
        unknown = listings.pop("red #3")
        assert unknown
        again = client.search("red", k=40, filters=FILTERS, rerank=50, listings=listings)
        assert isinstance(again, RankedSearch)
        assert again.seconds > 0
        expected = {name: matched(title, image, "red")["probability"] for name, (title, image) in listings.items()}
        first = [product.product_id for product in plain.products[:50] if product.product_id in listings]
        order = sorted(first, key=lambda name: expected[name], reverse=True)[:40]
        assert [product.product_id for product in again.products] == order
        assert [product.match for product in again.products] == [expected[name] for name in order]
        before = {product.product_id: product for product in plain.products}
        assert all(product.score == before[product.product_id].score for product in again.products)

        few = client.search("red", k=60, filters=FILTERS, rerank=5, listings=listings)
        assert [product.product_id for product in few.products[4:]] == [f"red #{rank}" for rank in (3, *range(5, 60))]
        assert [product.match for product in few.products[4:]] == [None] * 56
        with pytest.raises(InvalidInput, match="rerank matches products with a query"):
            client.search(image=b"1", rerank=5)


def test_the_command_line_takes_titles_and_photos_from_a_feed(contract_server: TritonServer, tmp_path: Path) -> None:
    products = []
    for rank in range(6):
        photo = io.BytesIO()
        Image.new("RGB", (8, 8), (40 * rank, 0, 0)).save(photo, "PNG")
        products.append(Product(f"red #{rank}", (photo.getvalue(),), f"shirt {rank}", (), {}, "train"))
    write_feed(tmp_path / "feed.parquet", products)
    command = ["search", "red", "-k", "4", "--url", contract_server.url, "--rerank", "6"]
    result = RUNNER.invoke(shelfwise.app, [*command, "--feed", str(tmp_path / "feed.parquet")])
    assert result.exit_code == 0, result.output
    score = {item.id: matched(item.title, item.images[0], "red")["probability"] for item in products}
    best = sorted(score, key=lambda name: score[name], reverse=True)[:4]
    lines = result.stdout.splitlines()
    assert [line.split("  ")[1] for line in map(str.strip, lines)] == best
    assert [float(line.split()[0]) for line in lines] == pytest.approx([score[name] for name in best], abs=1e-4)
    assert "ranked again in" in result.stderr
    assert RUNNER.invoke(shelfwise.app, command).exit_code == 2
