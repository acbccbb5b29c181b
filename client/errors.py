"""What a call can raise: one class for each thing a caller does differently, not one for each gRPC status.

Every error carries the gRPC status and, in its message, the server's own text unchanged, because Triton's text names
the tensor, the shape or the row that was wrong. `status` is None when the client found the fault without asking the
server. The classes survive pickling, so that they cross process pools.
"""


class ShelfwiseError(Exception):
    """Base of everything that this client raises about a request.

    Args:
        message: what went wrong, with the server's text where there is one.
        status: name of the gRPC status, for example "INVALID_ARGUMENT"; None when no server was asked.

    Attributes:
        request_id: what the server's log and trace call the request; None when no server was asked.
    """

    def __init__(self, message: str, *, status: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.request_id: str | None = None


class InvalidInput(ShelfwiseError, ValueError):
    """The request itself is wrong (INVALID_ARGUMENT, OUT_OF_RANGE or found locally): sending it again cannot help."""


class ModelNotFound(ShelfwiseError, LookupError):
    """The server answers but does not hold the model or the version (NOT_FOUND)."""


class AccessDenied(ShelfwiseError):
    """The server wants a header or token that the client did not show."""


class ServerUnavailable(ShelfwiseError):
    """No server, a stopping one, a full queue, no TLS handshake (UNAVAILABLE): still so after the retries."""


class DeadlineExceeded(ShelfwiseError, TimeoutError):
    """No answer within the caller's timeout (DEADLINE_EXCEEDED); the server has been told to drop the request."""


class RequestCancelled(ShelfwiseError):
    """The request was cancelled (CANCELLED), as by closing the client while another thread was waiting."""


class ServerError(ShelfwiseError):
    """The server failed on its own side (INTERNAL, UNKNOWN and every status without a class of its own)."""


_BY_STATUS: dict[str, type[ShelfwiseError]] = {
    "INVALID_ARGUMENT": InvalidInput,
    "OUT_OF_RANGE": InvalidInput,
    "NOT_FOUND": ModelNotFound,
    "UNAUTHENTICATED": AccessDenied,
    "PERMISSION_DENIED": AccessDenied,
    "UNAVAILABLE": ServerUnavailable,
    "DEADLINE_EXCEEDED": DeadlineExceeded,
    "CANCELLED": RequestCancelled,
}

# Four answers of Triton mean something else than their status says. A restricted protocol is refused with UNAVAILABLE,
# which would be retried in vain until the deadline; a model between two loads, or already unloaded by a server that is
# stopping, is NOT_FOUND, although the next attempt finds it; a Python model whose process was killed is INTERNAL until
# it is started again; a request that waited for all of its time is UNAVAILABLE.
_BY_TEXT: dict[str, type[ShelfwiseError]] = {
    "This protocol is restricted": AccessDenied,
    "has no available versions": ServerUnavailable,
    "is not healthy": ServerUnavailable,
    "Request timeout expired": DeadlineExceeded,
}


def error_for(status: str, text: str) -> ShelfwiseError:
    """The typed error for a gRPC status name and the server's text, which becomes the message."""
    for marker, kind in _BY_TEXT.items():
        if marker in text:
            return kind(text, status=status)
    return _BY_STATUS.get(status, ServerError)(text, status=status)
