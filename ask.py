"""Asking a running server from the command line: a table on a terminal, plain lines or JSON lines in a pipe.

    shelfwise categorize shoe.jpg --title "Puma men running shoes"
    shelfwise categorize --json < items.jsonl > answers.jsonl
    shelfwise search "diesel jacket" --filter brand=Diesel --filter base_colour=Black -k 20

With `--json` and nothing else to ask about, every line of standard input is an item, {"image": PATH, "title": TEXT},
{"images": [PATH, …], "labels": [TEXT, …]} or {"title": TEXT, "image": PATH, "query": TEXT}, as the command says, and
every line of standard output its answer or {"error": …}, in order; an "id" comes back as it was.
Exit status: 0 everything was answered; 1 something was refused or failed; 2 wrong usage;
3 the server could not be reached or did not answer in time.
"""

from __future__ import annotations

import json
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

if TYPE_CHECKING:
    from catalogue.product import Product
    from client import Categorization, FoundProduct, ShelfwiseClient

app = typer.Typer()

CaOption = Annotated[
    Path | None, typer.Option("--ca", envvar="SHELFWISE_CA", help="Certificate authority (PEM) of a server behind TLS.")
]
HeaderOption = Annotated[
    list[str] | None, typer.Option("--header", help="KEY=VALUE sent with every call, for a gated server; repeatable.")
]
UrlOption = Annotated[str, typer.Option(envvar="SHELFWISE_URL", help="gRPC address of the server, host:port.")]
UrlsOption = Annotated[
    list[str] | None,
    typer.Option(
        "--url",
        envvar="SHELFWISE_URL",
        help="host:port of the server (127.0.0.1:8001), or http://host:port; repeatable.",
    ),
]
TimeoutOption = Annotated[float, typer.Option(min=0.01, help="Seconds for every request, retries included.")]
JsonOption = Annotated[
    bool, typer.Option("--json", help="JSON lines; with nothing else to ask about, items come from standard input.")
]


def fail(error: Exception) -> NoReturn:
    """Ends the program with an error's sentence instead of a traceback."""
    typer.secho(f"error: {error}", err=True, fg=typer.colors.RED)
    raise typer.Exit(_status(error))


def parse_headers(assignments: Sequence[str] | None) -> dict[str, str] | None:
    """Headers of KEY=VALUE assignments; raises ValueError."""
    headers = {}
    for assignment in assignments or []:
        key, separator, value = assignment.partition("=")
        if not separator:
            raise ValueError(f"--header wants KEY=VALUE, got {assignment!r}")
        headers[key] = value
    return headers or None


@app.command()
def categorize(
    image: Annotated[Path | None, typer.Argument(help="Image file; may be left out when a title is given.")] = None,
    title: Annotated[str | None, typer.Option(help="The product's title.")] = None,
    k: Annotated[int, typer.Option("-k", min=1, help="Categories to list.")] = 5,
    as_json: JsonOption = False,
    url: UrlsOption = None,
    timeout: TimeoutOption = 10.0,
    ca: CaOption = None,
    header: HeaderOption = None,
) -> None:
    """Ask a running server for the category of a product, or of many (--json)."""

    def ask(client: ShelfwiseClient) -> int:
        from client import Judgement

        if as_json and image is None and title is None:
            return _pipe(("image", "title"), lambda items: _judged_many(client, items, k))
        answer = _judged(client, image, title, k)
        if as_json:
            typer.echo(json.dumps(answer.to_dict(), ensure_ascii=False))
        else:
            _table(
                ("probability", "category"),
                [(f"{category.probability:7.4f}", category.label) for category in answer.categories],
            )
            typer.echo(f"neighbour_kl {answer.neighbour_kl:.3f}")
            if isinstance(answer, Judgement):
                typer.echo("sure" if answer.sure else "look")
        return 0

    _run(ask, url, timeout, ca, header)


@app.command("match-colours")
def match_colours(
    images: Annotated[list[Path] | None, typer.Argument(help="Photos of one product.")] = None,
    labels: Annotated[
        str | None, typer.Option(help="Its colour labels, separated by commas, at least as many as photos.")
    ] = None,
    one_to_one: Annotated[bool, typer.Option("--one-to-one", help="Give no label twice.")] = False,
    picture: Annotated[Path | None, typer.Option(help="Draw photos and labels to this PNG.")] = None,
    as_json: JsonOption = False,
    url: UrlsOption = None,
    timeout: TimeoutOption = 10.0,
    ca: CaOption = None,
    header: HeaderOption = None,
) -> None:
    """Ask a running server which colour label belongs to which photo of a product, or of many (--json)."""
    photos = images or []
    if not as_json and not (photos and labels):
        raise typer.BadParameter("give photos and --labels, or --json and products on standard input")

    def ask(client: ShelfwiseClient) -> int:
        if as_json and not photos:
            fields = ("images", "labels")
            return _pipe(fields, lambda items: client.match_colours_many(items, one_to_one=one_to_one))
        texts = [label.strip() for label in (labels or "").split(",")]
        matches = client.match_colours(photos, texts, one_to_one=one_to_one)
        if picture is not None:
            from catalogue.colour_sheet import LabelledPhoto, draw_colour_sheet

            rows = zip(photos, matches, strict=True)
            draw_colour_sheet(
                [[LabelledPhoto(photo.read_bytes(), m.label, m.index, m.probability) for photo, m in rows]], picture
            )
        if as_json:
            typer.echo(json.dumps({"matches": [match.to_dict() for match in matches]}, ensure_ascii=False))
        else:
            _table(
                ("probability", "label", "photo"),
                [(f"{m.probability:7.4f}", m.label, str(photo)) for photo, m in zip(photos, matches, strict=True)],
            )
        return 0

    _run(ask, url, timeout, ca, header)


def _judged(client: ShelfwiseClient, image: Path | None, title: str | None, k: int) -> Categorization:
    """The answer, with whether it is sure where the server says so: one of an older release does not."""
    from client import ShelfwiseError

    try:
        return client.judge(image, title, k=k)
    except ShelfwiseError as error:
        if "sure_from" not in str(error):
            raise
        return client.categorize(image, title, k=k)


def _judged_many(client: ShelfwiseClient, items: Iterable[Any], k: int) -> Iterable[Any]:
    """The same for a stream, which asks once what the server's release can say."""
    from client import ShelfwiseError

    try:
        client.judge(title="?", k=k)
    except ShelfwiseError as error:  # of another kind: every item will meet it, too
        if "sure_from" in str(error):
            return client.categorize_many(items, k=k)
    return client.judge_many(items, k=k)


@app.command()
def search(
    query: Annotated[str | None, typer.Argument(help="Text; brands and colours that it names are found in it.")] = None,
    image: Annotated[Path | None, typer.Option(help="Image file to search by.")] = None,
    like: Annotated[str | None, typer.Option(help="Id of a product: more like this.")] = None,
    brand: Annotated[list[str] | None, typer.Option(help="Keep products of this brand; repeatable.")] = None,
    colour: Annotated[list[str] | None, typer.Option(help="Keep products of this colour; repeatable.")] = None,
    category: Annotated[list[str] | None, typer.Option(help="Keep what lies below, 'Apparel > Topwear'.")] = None,
    other: Annotated[
        list[str] | None, typer.Option("--filter", help="ATTRIBUTE=VALUE, any attribute of the index; repeatable.")
    ] = None,
    k: Annotated[int, typer.Option("-k", min=1, help="Products to list.")] = 10,
    rerank: Annotated[
        int, typer.Option(min=0, help="Rank so many again by whether query, title and photo match; needs --feed.")
    ] = 0,
    feed: Annotated[Path | None, typer.Option(help="Feed of the products, for titles and pictures.")] = None,
    picture: Annotated[Path | None, typer.Option(help="Draw the hits to this PNG; needs --feed.")] = None,
    as_json: JsonOption = False,
    url: UrlsOption = None,
    timeout: TimeoutOption = 10.0,
    ca: CaOption = None,
    header: HeaderOption = None,
) -> None:
    """Ask a running server for the products nearest to a text, an image or a product, or to many (--json)."""
    if picture is not None and feed is None:
        raise typer.BadParameter("--picture needs --feed, where the photos are")
    if rerank and (feed is None or query is None):
        raise typer.BadParameter("--rerank needs a query to match, and --feed, where titles and photos are")
    filters: dict[str, list[str]] = {}
    named = [("brand", brand), ("base_colour", colour), ("category", category)]
    for attribute, values in [*named, *(_filter(entry) for entry in other or [])]:
        filters.setdefault(attribute, []).extend(values or [])

    def ask(client: ShelfwiseClient) -> int:
        if as_json and query is None and image is None and like is None:
            fields = ("query", "image", "like")
            return _pipe(fields, lambda items: client.search_many(items, k=k, filters=filters))
        from client import RankedSearch

        products: Iterable[Product] = ()
        if feed is not None:
            from catalogue.feed import detect_preset, open_feed

            products = open_feed(feed, detect_preset(feed), "skip")
        listings = {it.id: (it.title, it.images[0]) for it in products if it.images} if rerank else {}
        answer = client.search(query, image, like, k=k, filters=filters, rerank=rerank, listings=listings)
        titles: dict[str, str] = {}
        if feed is not None:
            from catalogue.search_sheet import SheetSearch, draw_search_sheet, sheet_hits

            hits = sheet_hits(answer.products, products)
            titles = {product.product_id: hit.title for product, hit in zip(answer.products, hits, strict=True)}
            if picture is not None:
                asked = image.read_bytes() if image is not None else None
                draw_search_sheet([SheetSearch(query or like or "", asked, hits)], picture)
        if as_json:
            typer.echo(json.dumps(answer.to_dict(), ensure_ascii=False))
        else:
            _table(
                ("score", "product", "photo", "matched", "title"),
                [
                    (_score(p), p.product_id, str(p.photo), ", ".join(p.matched), titles.get(p.product_id, ""))
                    for p in answer.products
                ],
            )
            if not answer.products:
                typer.echo("no product fits the filters", err=True)
            if isinstance(answer, RankedSearch):
                typer.echo(f"ranked again in {1e3 * answer.seconds:.0f} ms", err=True)
        return 0

    _run(ask, url, timeout, ca, header)


@app.command()
def match(
    image: Annotated[Path | None, typer.Argument(help="Photo of the product.")] = None,
    title: Annotated[str | None, typer.Argument(help="The text that may belong to it.")] = None,
    query: Annotated[str | None, typer.Option(help="A search query that both may answer.")] = None,
    as_json: JsonOption = False,
    url: UrlsOption = None,
    timeout: TimeoutOption = 10.0,
    ca: CaOption = None,
    header: HeaderOption = None,
) -> None:
    """Ask a running server whether a text belongs to a photo, or texts to photos (--json)."""
    if not as_json and not (image and (title or query)):
        raise typer.BadParameter("give a photo and a text, or --json and pairs on standard input")

    def ask(client: ShelfwiseClient) -> int:
        if as_json and image is None:
            return _pipe(("title", "image", "query"), client.match_text_image_many)
        answer = client.match_text_image(title or "", image or b"", query)
        if as_json:
            typer.echo(json.dumps(answer.to_dict()))
        else:
            typer.echo(f"{answer.probability:7.4f}")
            if answer.text_cut:
                typer.echo("the text is longer than the model reads: this is about its beginning", err=True)
        return 0

    _run(ask, url, timeout, ca, header)


def _score(product: FoundProduct) -> str:
    """What a product was ranked by: how well it matches where it was ranked again, else its similarity."""
    match = getattr(product, "match", None)
    return f"{product.score if match is None else match:7.4f}"


def _filter(entry: str) -> tuple[str, list[str]]:
    attribute, separator, value = entry.partition("=")
    if not separator:
        raise typer.BadParameter(f"--filter wants ATTRIBUTE=VALUE, got {entry!r}")
    return attribute, [value]


def _run(
    ask: Callable[[ShelfwiseClient], int],
    urls: Sequence[str] | None,
    timeout: float,
    ca: Path | None,
    header: Sequence[str] | None,
) -> None:
    from client import TLS, ShelfwiseClient, ShelfwiseError

    try:
        tls = TLS(ca) if ca else None
        address = urls or "127.0.0.1:8001"
        with ShelfwiseClient(address, timeout=timeout, tls=tls, headers=parse_headers(header)) as client:
            status = ask(client)
    except (ShelfwiseError, ValueError, OSError) as error:
        fail(error)
    raise typer.Exit(status)


def _pipe(fields: tuple[str, ...], ask_many: Callable[[Iterable[Any]], Iterable[Any]]) -> int:
    """Answers standard input line by line; the exit status."""
    ids: deque[Any] = deque()

    def items() -> Iterator[Any]:
        for line in sys.stdin:
            if not line.strip():
                continue
            try:
                item = json.loads(line)
                ids.append(item.get("id"))
                yield tuple(item.get(field) for field in fields)
            except (ValueError, AttributeError):
                ids.append(None)
                yield f"not a JSON object: {line.strip()}"  # refused by the client with this text, and no other item

    status = 0
    for answer in ask_many(items()):
        number = ids.popleft()
        if isinstance(answer, Exception):
            status = max(status, _status(answer))
            line: dict[str, Any] = {"error": str(answer), "status": getattr(answer, "status", None)}
        elif isinstance(answer, tuple):
            line = {"matches": [match.to_dict() for match in answer]}
        else:
            line = answer.to_dict()
        typer.echo(json.dumps(line if number is None else {"id": number, **line}, ensure_ascii=False))
    return status


def _status(error: Exception) -> int:
    from client import DeadlineExceeded, ServerUnavailable

    return 3 if isinstance(error, (ServerUnavailable, DeadlineExceeded)) else 1


def _table(names: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    if not sys.stdout.isatty():
        for row in rows:
            typer.echo("  ".join(row))
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(*names)
    for row in rows:
        table.add_row(*map(Text, row))  # labels may hold what rich would take for markup
    Console().print(table)
