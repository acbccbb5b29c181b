"""The client of a Shelfwise server: product images and texts in, categories, colours, embeddings and products out.

Installable alone (`pip install ./client`, imported as `shelfwise_client`): numpy and tritonclient, no torch. Inside
the project the same files are the package `client`, hence relative imports only. The README beside this file is for
callers. To read on: `client.py` is the front door, `ensembles.py` describes what is served, `engine.py` brings one
request to its end and `stream.py` many, `transport.py` and `http_transport.py` are the two wires.
"""

from .client import AsyncShelfwiseClient, ShelfwiseClient
from .ensembles import Description, Item, Photos, Query, TextAndImage
from .errors import (
    AccessDenied,
    DeadlineExceeded,
    InvalidInput,
    ModelNotFound,
    RequestCancelled,
    ServerError,
    ServerUnavailable,
    ShelfwiseError,
)
from .images import MAX_IMAGE_BYTES, Image, encode_image
from .results import (
    Categorization,
    Category,
    ColourMatch,
    Embedding,
    FoundProduct,
    Judgement,
    RankedProduct,
    RankedSearch,
    SearchResult,
    ServerMetadata,
    TextImageMatch,
    to_arrow,
)
from .stream import AsyncStream, Progress, Stream, StreamOptions
from .transport import TLS, Connection

__all__ = [
    "MAX_IMAGE_BYTES",
    "TLS",
    "AccessDenied",
    "AsyncShelfwiseClient",
    "AsyncStream",
    "Categorization",
    "Category",
    "ColourMatch",
    "Connection",
    "DeadlineExceeded",
    "Description",
    "Embedding",
    "FoundProduct",
    "Image",
    "InvalidInput",
    "Item",
    "Judgement",
    "ModelNotFound",
    "Photos",
    "Progress",
    "Query",
    "RankedProduct",
    "RankedSearch",
    "RequestCancelled",
    "SearchResult",
    "ServerError",
    "ServerMetadata",
    "ServerUnavailable",
    "ShelfwiseClient",
    "ShelfwiseError",
    "Stream",
    "StreamOptions",
    "TextAndImage",
    "TextImageMatch",
    "encode_image",
    "to_arrow",
]
