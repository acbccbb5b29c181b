"""Every ensemble by every way to ask: what is given arrives where it belongs, and what is answered is read as it is."""

from __future__ import annotations

import asyncio
import hashlib
import inspect
import json
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from client import AsyncShelfwiseClient, InvalidInput, ShelfwiseClient, to_arrow
from client.stream import Flow, StreamOptions
from serving.server import TritonServer


def digest(*parts: bytes) -> list[float]:
    return (np.frombuffer(hashlib.sha256(b"|".join(parts)).digest()[:4], np.uint8) / np.float32(255)).tolist()


def matches(images: list[bytes], labels: list[str], *, one_to_one: bool) -> list[Any]:
    rows = [[digest(image, label.encode())[0] for label in labels] for image in images]
    chosen = range(len(images)) if one_to_one else [row.index(max(row)) for row in rows]
    return [
        {"label": labels[place], "index": place, "probability": row[place], "probabilities": tuple(row)}
        for row, place in zip(rows, chosen, strict=True)
    ]


def categories(image: bytes, title: str) -> dict[str, Any]:
    *probabilities, kl = digest(image, title.encode())
    paths = [("A", title), ("A", "B"), ("C",)]
    return {
        "categories": tuple(
            {"label": " > ".join(path), "path": path, "id": len(image) + place, "probability": probabilities[place]}
            for place, path in enumerate(paths)
        ),
        "neighbour_kl": kl,
    }


def matched(title: str, image: bytes, query: str) -> dict[str, Any]:
    return {"probability": digest(query.encode(), title.encode(), image)[0], "text_cut": len(title) > len("title")}


def found(query: str, image: bytes, like: str = "", entities: Sequence[str] = ("",)) -> dict[str, Any]:
    whole = digest(*(part.encode() if isinstance(part, str) else part for part in (query, image, like, *entities)),
                   b"brand=Puma", b"brand=Nike", b"season=Fall")  # fmt: skip
    columns = (np.resize(whole[start:], 2).tolist() for start in (0, 1, 2))
    products = tuple(
        {"product_id": f"{query} #{rank}", "score": score, "photo": rank, "image_score": image_score,
         "text_score": text_score, "matched": () if rank else ("brand", "base_colour")}
        for rank, (score, image_score, text_score) in enumerate(zip(*columns, strict=True))
    )  # fmt: skip
    return {"products": products}


# Name of a call, its options, and pairs of an item and the answer to it as a dictionary.
CALLS: list[tuple[str, dict[str, Any], list[tuple[Any, Any]]]] = [
    ("categorize", {"k": 3}, [
        ((b"12", "shoe"), categories(b"12", "shoe")), ((None, "schön"), categories(b"", "schön"))
    ]),
    *(
        ("match_colours", {"one_to_one": one}, [
            (([b"1"], ["a", "红"]), matches([b"1"], ["a", "红"], one_to_one=one)),
            (([b"1", b"2"], ["a", "b"]), matches([b"1", b"2"], ["a", "b"], one_to_one=one)),
            (([b"3"], ["c", "d"]), matches([b"3"], ["c", "d"], one_to_one=one)),
        ])
        for one in (True, False)
    ),
    ("embed_image", {}, [(image, {"values": tuple(digest(image))}) for image in (b"1", b"22")]),
    ("embed_text", {}, [
        (("shoe", ["Puma", None]), {"values": tuple(digest(b"shoe", b"Puma", b""))}),
        (("shirt", ["", "blau"]), {"values": tuple(digest(b"shirt", b"", b"blau"))}),
    ]),
    ("search", {"k": 2, "filters": {"brand": ["Puma", "Nike"], "season": "Fall"}}, [
        (("red", b"123"), found("red", b"123")),
        ((None, b"1", "id"), found("", b"1", "id")),
        (("a", None, None, ["Puma", None]), found("a", b"", "", ("Puma", ""))),
    ]),
    ("match_text_image", {}, [
        (("title", b"1", "query"), matched("title", b"1", "query")),
        (("longer", b"2", None), matched("longer", b"2", "")),
        ((None, b"3", "query"), matched("", b"3", "query")),
    ]),
]  # fmt: skip
every_call = pytest.mark.parametrize(("name", "options", "items"), CALLS, ids=[name for name, *_ in CALLS])
every_wire = pytest.mark.parametrize("wire", ["grpc", "http"])


def as_dict(answer: Any) -> Any:
    return [match.to_dict() for match in answer] if isinstance(answer, tuple) else answer.to_dict()


def url_of(server: TritonServer, wire: str) -> str:
    return server.url if wire == "grpc" else server.http_url


def asked(method: Callable[..., Any], item: Any, options: dict[str, Any]) -> Any:
    return method(*item, **options) if isinstance(item, tuple) else method(item, **options)


@every_wire
@every_call
def test_blocking(contract_server: TritonServer, wire: str, name: str, options: dict, items: list) -> None:
    with ShelfwiseClient(url_of(contract_server, wire)) as client:
        for item, expected in items:
            assert as_dict(asked(getattr(client, name), item, options)) == expected
        many = getattr(client, f"{name}_many")
        given, expected = zip(*items * 10, strict=True)
        assert [as_dict(answer) for answer in many(given, **options, batch_size=3)] == list(expected)
        as_completed = dict(many(iter(given), **options, in_flight=5).as_completed())
        assert [as_dict(as_completed[number]) for number in range(len(given))] == list(expected)


@every_wire
@every_call
def test_asyncio(contract_server: TritonServer, wire: str, name: str, options: dict, items: list) -> None:
    async def ask() -> None:
        async with AsyncShelfwiseClient(url_of(contract_server, wire)) as client:
            single = await asyncio.gather(*(asked(getattr(client, name), item, options) for item, _ in items))
            assert [as_dict(answer) for answer in single] == [expected for _, expected in items]
            many = getattr(client, f"{name}_many")
            given, expected = zip(*items * 10, strict=True)

            async def source() -> Any:
                for item in given:
                    await asyncio.sleep(0)
                    yield item

            assert [as_dict(answer) async for answer in many(given, **options)] == list(expected)
            assert [as_dict(answer) async for answer in many(source(), **options, batch_size=4)] == list(expected)
            as_completed = {number: answer async for number, answer in many(source(), **options).as_completed()}
            assert [as_dict(as_completed[number]) for number in range(len(given))] == list(expected)

    asyncio.run(ask())


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("embed_image", (b"",), "image is empty"),
        ("embed_text", ("a", "Puma"), "entities must be a sequence of texts, not one text"),
        ("embed_text", (7,), "description must be text, not int"),
        ("embed_text", ("a", ["b", 7]), "entity 1 must be text, not int"),
        ("search", ("  ",), "query, image, like and entities are all empty"),
        ("match_text_image", ("title", None), "image is empty"),
        ("match_text_image", (" ", b"1", None), "title and query are both empty"),
        ("match_texts", (b"1", []), "titles must be a sequence of at least one text"),
        ("match_texts", (b"1", "shoe"), "titles must be a sequence of at least one text"),
        ("match_texts", (b"1", ["shoe", ""]), "title 1 and query are both empty"),
    ],
)
def test_wrong_input_is_named_without_a_server(name: str, arguments: tuple, message: str) -> None:
    with ShelfwiseClient("127.0.0.1:1") as client, pytest.raises(InvalidInput, match=message):
        getattr(client, name)(*arguments)


def test_what_is_no_item_costs_its_own_answer_only(contract_server: TritonServer) -> None:
    items: list[Any] = [(None, "a"), "ab", None, (None, "b", "c", "d"), (None, "e")]
    with ShelfwiseClient(contract_server.url) as client:
        answers = list(client.categorize_many(items, k=1))
    assert [isinstance(answer, InvalidInput) for answer in answers] == [False, True, True, True, False]
    assert str(answers[1]) == "an item must be (image, title), not 'ab'"


def test_both_clients_have_the_same_methods_with_the_same_arguments() -> None:
    names = [name for name in dir(ShelfwiseClient) if not name.startswith("_")]
    assert {f"{call}{kind}" for call, *_ in CALLS for kind in ("", "_many")} < set(names)
    for name in names:
        blocking, asynchronous = (getattr(kind, name) for kind in (ShelfwiseClient, AsyncShelfwiseClient))
        assert inspect.signature(blocking).parameters == inspect.signature(asynchronous).parameters
    assert set(StreamOptions.__annotations__) == set(Flow.__dataclass_fields__)


def test_embeddings_are_arrays_too_and_everything_is_json(contract_server: TritonServer) -> None:
    with ShelfwiseClient(contract_server.url) as client:
        embedding = client.embed_image(b"1")
        answers = [embedding, client.search("a", k=1), *client.match_colours([b"1"], ["a"])]
    array = np.asarray(embedding)
    assert (array.dtype, array.tolist()) == (np.float32, list(embedding.values))
    assert np.asarray(embedding, np.float64).dtype == np.float64
    assert json.loads(json.dumps([answer.to_dict() for answer in answers]))[1]["products"][0]["product_id"] == "a #0"


def test_answers_of_a_stream_are_a_table(contract_server: TritonServer) -> None:
    with ShelfwiseClient(contract_server.url) as client:
        table = to_arrow(client.categorize_many([(None, None), (None, "a")], k=1))
        colours = to_arrow(client.match_colours_many([([b"1"], ["a"])]))
    assert table.column_names == ["error", "categories", "neighbour_kl"]
    failed, answered = table.to_pylist()
    assert "both empty" in failed["error"]
    assert failed["categories"] is None
    assert answered["categories"][0]["label"] == "A > a"
    assert answered["error"] is None
    assert colours.to_pylist()[0]["matches"][0]["label"] == "a"
    assert to_arrow([]).num_rows == 0
