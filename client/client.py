"""The ensembles as Python calls: `ShelfwiseClient`, which blocks, and `AsyncShelfwiseClient` for asyncio.

Both have the same methods with the same arguments. A method says how it is called and documented; what is particular to
an ensemble is in `ensembles.py`, what is common to all in `engine.py` and `stream.py`.
"""

from __future__ import annotations

from collections.abc import AsyncIterable, Callable, Coroutine, Iterable, Mapping, Sequence
from typing import Any, Concatenate, ParamSpec, Self, TypeVar, Unpack, cast
from urllib.parse import urlsplit

from . import ensembles
from .call import Answer, Call
from .endpoints import Endpoints
from .engine import Engine, checked_seconds
from .ensembles import Description, Filters, Item, Photos, Query, TextAndImage
from .http_transport import HttpConnection
from .images import Image
from .matching import Listings, ask_texts, search_ranked
from .results import (
    Categorization,
    ColourMatch,
    Embedding,
    Judgement,
    SearchResult,
    ServerMetadata,
    TextImageMatch,
)
from .runtime import Asyncio, Blocking, Runtime, finish
from .shared_memory import SharedMemory
from .stream import AsyncStream, Stream, StreamOptions
from .transport import COMPRESSIONS, TLS, Connection, GrpcConnection, is_loopback

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")
Each = TypeVar("Each")

Matches = tuple[ColourMatch, ...]
ItemFields = Item | tuple[Image | None, str | None]
PhotosFields = Photos | tuple[Sequence[Image], Sequence[str]]
DescriptionFields = Description | tuple[str, Sequence[str | None]]
QueryFields = Query | tuple[str | None, Image | None] | tuple[str | None, Image | None, str | None]
TextAndImageFields = TextAndImage | tuple[str | None, Image, str | None]


class _Client:
    """Arguments, checks and engine of both clients."""

    _runtime: type[Blocking] | type[Asyncio]

    def __init__(
        self,
        url: str | Connection | Sequence[str | Connection],
        *,
        timeout: float = 10.0,
        tls: TLS | None = None,
        headers: Mapping[str, str] | Callable[[], Mapping[str, str]] | None = None,
        compression: str | None = None,
        hedge_after: float | None = None,
        shared_memory: bool = False,
    ) -> None:
        if compression not in COMPRESSIONS:
            raise ValueError(f'compression must be "gzip", "deflate" or None, not {compression!r}')
        runtime = self._runtime()
        urls = list(url) if isinstance(url, Sequence) and not isinstance(url, str) else [url]
        if not urls:
            raise ValueError("give at least one url")
        connections = [_connection(each, tls, compression, runtime) if isinstance(each, str) else each for each in urls]
        fixed = headers or {}
        self._engine = Engine(
            runtime,
            Endpoints(connections),
            checked_seconds(timeout),
            None if hedge_after is None else checked_seconds(hedge_after, "hedge_after"),
            fixed if callable(fixed) else lambda: fixed,
        )
        if shared_memory:
            first, *others = connections
            if others or not isinstance(first, GrpcConnection) or not is_loopback(first.url):
                named = ", ".join(connection.url for connection in connections)
                raise ValueError(f"shared memory needs one gRPC server on this machine, not {named}")
            self._engine.shared_memory = SharedMemory(self._engine.send)


class ShelfwiseClient(_Client):
    """A connection to a Shelfwise server, or to several that serve the same.

    Connects with the first call, and again by itself when the connection is lost. All methods may be called from
    several threads at once; the connection is shared and requests overlap on it. Create it after a fork, not before.

    >>> with ShelfwiseClient(url, timeout=5.0) as client:
    ...     client.categorize(title="Puma men running shoes", k=1).categories[0].label
    '... > ...'

    Args:
        url: "host:port" of the server's gRPC endpoint, or "http://host:port" ("https://…") of its HTTP endpoint, or a
            sequence of them, which share the requests; or a `Connection` of one's own.
        timeout: seconds that a call may take from start to end, retries included, unless it is given its own.
        tls: encrypts the connection; None sends in the clear.
        headers: sent with every request, for example {"authorization": "Bearer …"}; or a function that gives them,
            for what changes: tokens, the `traceparent` of a request that is being served.
        compression: of requests, "gzip" or "deflate"; images gain nothing by it.
        hedge_after: seconds after which a request without an answer is sent a second time, to another server if there
            is one; the first answer counts.
        shared_memory: large requests go through /dev/shm, where a server on this machine allows it.

    Raises:
        ValueError: a URL without a port, a timeout that is not positive, or options that do not fit together.
        OSError: a TLS file cannot be read.
    """

    _runtime = Blocking

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes the connection; calls in flight in other threads end with RequestCancelled."""
        finish(self._engine.close())

    def categorize(
        self, image: Image | None = None, title: str | None = None, *, k: int = 5, timeout: float | None = None
    ) -> Categorization:
        """The k most probable categories of one product.

        >>> answer = client.categorize("shoe.jpg", "Puma men running shoes", k=2)
        >>> [category.label for category in answer.categories]
        ['... > ...', '...']

        Args:
            image: path, bytes of an image file, uint8 array [H, W, 3] (RGB) or [H, W], or Pillow image; None or
                empty bytes when there is none.
            title: product title; None or blank when there is none.
            k: how many categories, at most what the server returns (the smaller of 20 and its number of classes).
            timeout: seconds for the whole call; None takes the client's.

        Raises:
            InvalidInput: neither image nor title, an image that is too large or cannot be decoded, k out of range.
            ShelfwiseError: see its subclasses for the faults of server and network.
        """
        return self._run(self._engine.ask(ensembles.categorize(k), (image, title), timeout))

    def categorize_many(
        self, items: Iterable[ItemFields], *, k: int = 5, **options: Unpack[StreamOptions]
    ) -> Stream[Categorization]:
        """Categorizes a sequence or an endless stream, yielding one answer or one error for each item, in order.

        At most batch_size × (in_flight + 1) items are read ahead of the answer that is yielded next. An item that is
        wrong costs its own answer only: when the server refuses a batch, its rows are asked about one by one. Images
        are read and encoded in the threads that send them. Closing the iterator, or leaving it to the garbage
        collector, cancels what is in flight.

        >>> items = [("shoe.jpg", "Puma men running shoes"), (None, "Nike tee"), (None, None)]
        >>> for answer in client.categorize_many(items, k=1):
        ...     print("no:" if isinstance(answer, ShelfwiseError) else "yes:", answer)
        yes: Categorization(categories=(Category(label='... > ...', ...), neighbour_kl=...)
        yes: Categorization(...)
        no: image and title are both empty: at least one of them is needed
        >>> sorted(number for number, answer in client.categorize_many(items, k=1).as_completed())
        [0, 1, 2]

        Args:
            items: `Item`s or plain (image, title) tuples; fields as in `categorize`.
            k: as in `categorize`.
            options: see `StreamOptions`.

        Yields:
            A Categorization, or the ShelfwiseError that `categorize` would have raised for this item.

        Raises:
            InvalidInput: k is not positive or, once the first answer is there, larger than what the server returns.
            ServerError: the server's answers are not those of a Shelfwise server.
            ServerUnavailable: as many requests in a row as `give_up_after` says found no server.
            DeadlineExceeded: the stream's own deadline has passed.
            ValueError: an option that is not positive.
        """
        return self._many(ensembles.categorize(k), items, options)

    def judge(
        self, image: Image | None = None, title: str | None = None, *, k: int = 5, timeout: float | None = None
    ) -> Judgement:
        """`categorize`, and whether the answer can be filed without a person looking; an older server cannot say.

        Raises:
            InvalidInput: as `categorize`, and where the server has no output `sure_from`.
            ShelfwiseError: see its subclasses for the faults of server and network.
        """
        return self._run(self._engine.ask(ensembles.judge(k), (image, title), timeout))

    def judge_many(
        self, items: Iterable[ItemFields], *, k: int = 5, **options: Unpack[StreamOptions]
    ) -> Stream[Judgement]:
        """`judge` of many items, as `categorize_many` does it."""
        return self._many(ensembles.judge(k), items, options)

    def match_colours(
        self,
        images: Sequence[Image],
        labels: Sequence[str],
        *,
        one_to_one: bool = False,
        timeout: float | None = None,
    ) -> Matches:
        """The colour label of every photo of one product.

        >>> matches = client.match_colours(["1.jpg", "2.jpg"], ["Black (ships today)", "Navy"], one_to_one=True)
        >>> sorted(match.label for match in matches)
        ['Black (ships today)', 'Navy']

        Args:
            images: [n] photos, 1 ≤ n ≤ 128, each as in `categorize`.
            labels: [m] labels as the seller writes them, in any language, n ≤ m ≤ 256.
            one_to_one: no label is given twice: the assignment that is most probable as a whole. Else each photo gets
                its own most probable label.
            timeout: seconds for the whole call; None takes the client's.

        Returns:
            [n] matches, in the order of the photos.

        Raises:
            InvalidInput: no image, fewer labels than images, too many of either, or an image or label that cannot be
                read; the message names its place.
            ShelfwiseError: see its subclasses for the faults of server and network.
        """
        return self._run(self._engine.ask(ensembles.match_colours(one_to_one), (images, labels), timeout))

    def match_colours_many(
        self, products: Iterable[PhotosFields], *, one_to_one: bool = False, **options: Unpack[StreamOptions]
    ) -> Stream[Matches]:
        """`match_colours` of many products, as `categorize_many` does it; those of equal size share requests."""
        return self._many(ensembles.match_colours(one_to_one), products, options)

    def embed_image(self, image: Image, *, timeout: float | None = None) -> Embedding:
        """The place of an image in the space that texts share, of unit length.

        >>> len(client.embed_image("shoe.jpg").values)
        4
        """
        return self._run(self._engine.ask(ensembles.embed_image(), image, timeout))

    def embed_image_many(self, images: Iterable[Image], **options: Unpack[StreamOptions]) -> Stream[Embedding]:
        """`embed_image` of many images, as `categorize_many` does it."""
        return self._many(ensembles.embed_image(), images, options)

    def embed_text(
        self, description: str, entities: Sequence[str | None] = (), *, timeout: float | None = None
    ) -> Embedding:
        """The place of a text in the space that images share, of unit length.

        >>> len(client.embed_text("Puma men running shoes", ["Puma", "Blue"]).values)
        4

        Args:
            description: what is said about the product.
            entities: [E] in the order of the served bundle; None or empty is an absent one.
            timeout: seconds for the whole call; None takes the client's.
        """
        return self._run(self._engine.ask(ensembles.embed_text(), (description, entities), timeout))

    def embed_text_many(
        self, descriptions: Iterable[DescriptionFields], **options: Unpack[StreamOptions]
    ) -> Stream[Embedding]:
        """`embed_text` of many texts, as `categorize_many` does it."""
        return self._many(ensembles.embed_text(), descriptions, options)

    def search(
        self,
        query: str | None = None,
        image: Image | None = None,
        like: str | None = None,
        entities: Sequence[str | None] = (),
        *,
        k: int = 10,
        filters: Filters | None = None,
        rerank: int = 0,
        listings: Listings | None = None,
        timeout: float | None = None,
    ) -> SearchResult:
        """The products nearest to a text, an image, a known product, entities, or to several of them together.

        >>> [product.product_id for product in client.search("red shoes", k=2, filters={"brand": "Puma"}).products]
        ['...', '...']

        Args:
            query: text; the brands and colours that it names are found in it.
            image: as in `categorize`.
            like: id of a product that is in the index; it is not found itself.
            entities: [E] in the order of the served bundle; None or empty is an absent one.
            k: how many products; there may be fewer that the filters keep.
            filters: values by attribute, {"base_colour": ["Black", "Navy Blue"], "category": "Apparel > Topwear"}.
            rerank: how many of the products found are ranked again, by whether query, title and photo belong together
                (`match_text_image`); the result is then a `RankedSearch`, which says how long that took.
            listings: title and photo of products by id, needed for `rerank`.
            timeout: seconds for the whole call; None takes the client's.
        """
        asked = Query(query, image, like, entities)
        if not rerank:
            return self._run(self._engine.ask(ensembles.search(k, filters), asked, timeout))
        call = ensembles.search(max(k, rerank), filters)
        return self._run(search_ranked(self._engine, call, asked, listings or {}, k, rerank, timeout))

    def search_many(
        self,
        queries: Iterable[QueryFields],
        *,
        k: int = 10,
        filters: Filters | None = None,
        **options: Unpack[StreamOptions],
    ) -> Stream[SearchResult]:
        """`search` for many queries, as `categorize_many` does it."""
        return self._many(ensembles.search(k, filters), queries, options)

    def match_text_image(
        self, title: str | None, image: Image, query: str | None = None, *, timeout: float | None = None
    ) -> TextImageMatch:
        """How probable it is that a title, an image and perhaps a query belong together; title or query may be absent.

        >>> 0 <= client.match_text_image("Puma men running shoes", "shoe.jpg").probability <= 1
        True
        """
        return self._run(self._engine.ask(ensembles.match_text_image(), (title, image, query), timeout))

    def match_text_image_many(
        self, pairs: Iterable[TextAndImageFields], **options: Unpack[StreamOptions]
    ) -> Stream[TextImageMatch]:
        """`match_text_image` of many pairs, as `categorize_many` does it."""
        return self._many(ensembles.match_text_image(), pairs, options)

    def match_texts(
        self, image: Image, titles: Sequence[str], query: str | None = None, *, timeout: float | None = None
    ) -> tuple[TextImageMatch, ...]:
        """`match_text_image` of any number of titles with one image, which the server reads once for 128 of them.

        >>> shoe, dress = client.match_texts("shoe.jpg", ["Puma men running shoes", "Red dress"])
        >>> 0 <= shoe.probability <= 1
        True
        """
        return self._run(ask_texts(self._engine, image, titles, query, timeout))

    def is_ready(self, model: str = "categorize", *, timeout: float | None = None) -> bool:
        """Whether a server says that a model, "categorize" or "match_colours", is ready; False without an answer.

        Asks once, without retries.

        >>> client.is_ready("categorize")
        True

        Raises:
            AccessDenied: the server is there but wants a header.
        """
        return self._run(self._engine.is_ready(model, timeout))

    def server_metadata(self, model: str = "categorize", *, timeout: float | None = None) -> ServerMetadata:
        """Name and version of the server, and the versions of a model that it serves.

        >>> client.server_metadata().model_versions
        ('1',)

        Raises:
            ModelNotFound: the server does not serve the model.
            ShelfwiseError: as in `categorize`.
        """
        return self._run(self._engine.server_metadata(model, timeout))

    def model_digests(self, model: str = "categorize", *, timeout: float | None = None) -> set[str]:
        """What the servers' answers depend on, as a hash of the model's files: one value where all answer alike.

        Of several servers those that can be reached are asked; "" is one whose release was made without.

        >>> len(client.model_digests())
        1

        Raises:
            ModelNotFound: a server does not serve the model.
            ShelfwiseError: as in `categorize`.
        """
        return self._run(self._engine.model_digests(model, timeout))

    def _run(self, coroutine: Coroutine[Any, Any, Result]) -> Result:
        return finish(coroutine)  # type: ignore[no-any-return]

    def _many(self, call: Call[Answer], items: Iterable[Any], options: StreamOptions) -> Stream[Answer]:
        return Stream(self._engine, call, iter(items), options)


def _awaited(
    method: Callable[Concatenate[ShelfwiseClient, Parameters], Result],
) -> Callable[Concatenate[AsyncShelfwiseClient, Parameters], Coroutine[Any, Any, Result]]:
    """The same function: what it returns is `_run`'s of the client that it is called on."""
    return cast(Any, method)  # type: ignore[no-any-return]


def _streamed(
    method: Callable[Concatenate[ShelfwiseClient, Iterable[Each], Parameters], Stream[Answer]],
) -> Callable[Concatenate[AsyncShelfwiseClient, Iterable[Each] | AsyncIterable[Each], Parameters], AsyncStream[Answer]]:
    """The same function: what it returns is `_many`'s of the client that it is called on."""
    return cast(Any, method)  # type: ignore[no-any-return]


class AsyncShelfwiseClient(_Client):
    """`ShelfwiseClient` for asyncio: the same methods, to be awaited, and streams for `async for`.

    Items of a stream may come from an asynchronous source, too. Cancelling a task cancels its request at the server.
    One client belongs to one event loop.

    >>> async def label(title):
    ...     async with AsyncShelfwiseClient(url) as client:
    ...         return (await client.categorize(title=title, k=1)).categories[0].label
    >>> asyncio.run(label("Puma men running shoes"))
    '... > ...'
    """

    _runtime = Asyncio

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.close()

    async def close(self) -> None:
        await self._engine.close()

    categorize = _awaited(ShelfwiseClient.categorize)
    categorize_many = _streamed(ShelfwiseClient.categorize_many)
    judge = _awaited(ShelfwiseClient.judge)
    judge_many = _streamed(ShelfwiseClient.judge_many)
    match_colours = _awaited(ShelfwiseClient.match_colours)
    match_colours_many = _streamed(ShelfwiseClient.match_colours_many)
    embed_image = _awaited(ShelfwiseClient.embed_image)
    embed_image_many = _streamed(ShelfwiseClient.embed_image_many)
    embed_text = _awaited(ShelfwiseClient.embed_text)
    embed_text_many = _streamed(ShelfwiseClient.embed_text_many)
    search = _awaited(ShelfwiseClient.search)
    search_many = _streamed(ShelfwiseClient.search_many)
    match_text_image = _awaited(ShelfwiseClient.match_text_image)
    match_text_image_many = _streamed(ShelfwiseClient.match_text_image_many)
    match_texts = _awaited(ShelfwiseClient.match_texts)
    is_ready = _awaited(ShelfwiseClient.is_ready)
    server_metadata = _awaited(ShelfwiseClient.server_metadata)
    model_digests = _awaited(ShelfwiseClient.model_digests)

    def _run(self, coroutine: Coroutine[Any, Any, Result]) -> Coroutine[Any, Any, Result]:
        return coroutine

    def _many(self, call: Call[Answer], items: Any, options: StreamOptions) -> AsyncStream[Answer]:
        return AsyncStream(self._engine, call, items, options)


def _connection(url: str, tls: TLS | None, compression: str | None, runtime: Runtime) -> Connection:
    scheme, separator, _ = url.partition("://")
    if separator and scheme in ("http", "https"):
        if urlsplit(url).hostname is None:
            raise ValueError(f'url must be "http://host:port", not {url!r}')
        if tls is not None and scheme == "http":
            raise ValueError(f'TLS needs "https://", not {url!r}')
        return HttpConnection(url, tls, compression, runtime)
    host, _, port = url.rpartition(":")
    special = url.startswith(("unix:", "ipv4:", "ipv6:", "dns:"))
    if separator or (not special and (not host or not port.isdigit() or (":" in host and host[0] != "["))):
        raise ValueError(
            f'url must be "host:port" of the gRPC endpoint, such as "127.0.0.1:8001" or "[::1]:8001", not {url!r}'
        )
    return GrpcConnection(url, tls, compression, runtime)
