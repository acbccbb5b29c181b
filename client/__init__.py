"""The gRPC client of a Shelfwise server: product image and title in, category path with probabilities out.

Installable alone (`pip install ./client`, imported as `shelfwise_client`): numpy and tritonclient, no torch. Inside
the project the same files are the package `client`, hence relative imports only. The README beside this file is for
callers; `client.py` is the front door, `transport.py` knows deadlines and retries, `errors.py` what can be raised.
"""

from .client import ShelfwiseClient
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
from .results import Categorization, Category, ColourMatch, Item, ServerMetadata
from .transport import TLS

__all__ = [
    "MAX_IMAGE_BYTES",
    "TLS",
    "AccessDenied",
    "Categorization",
    "Category",
    "ColourMatch",
    "DeadlineExceeded",
    "Image",
    "InvalidInput",
    "Item",
    "ModelNotFound",
    "RequestCancelled",
    "ServerError",
    "ServerMetadata",
    "ServerUnavailable",
    "ShelfwiseClient",
    "ShelfwiseError",
    "encode_image",
]
