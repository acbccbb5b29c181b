"""A web service that asks Shelfwise for every request it gets: one client, one event loop, many requests at a time.

    SHELFWISE_URL=127.0.0.1:8001 uvicorn examples.web_service:app
    curl --data-binary @shoe.jpg "http://127.0.0.1:8000/categorize?title=Puma%20men%20running%20shoes"

What a service in production wants is here: the caller's trace goes on to the server, a slow answer becomes 504 and an
overloaded server 503 with a hint to come again, and two servers share the requests where two are named.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from contextvars import ContextVar

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from client import AsyncShelfwiseClient, DeadlineExceeded, InvalidInput, ServerUnavailable, ShelfwiseError

trace: ContextVar[dict[str, str]] = ContextVar("trace")
client = AsyncShelfwiseClient(
    os.environ.get("SHELFWISE_URL", "127.0.0.1:8001").split(),
    timeout=2.0,
    headers=lambda: trace.get({}),
)


async def categorize(request: Request) -> JSONResponse:
    """The image is the request's body, the title its query."""
    if "traceparent" in request.headers:
        trace.set({"traceparent": request.headers["traceparent"]})
    answer = await client.categorize(await request.body(), request.query_params.get("title"), k=3)
    return JSONResponse(answer.to_dict())


async def failed(request: Request, error: Exception) -> JSONResponse:
    """Whose fault it is, and by which name the server's log knows the request."""
    assert isinstance(error, ShelfwiseError)
    status = {InvalidInput: 400, DeadlineExceeded: 504, ServerUnavailable: 503}.get(type(error), 502)
    headers = {"retry-after": "1"} if status == 503 else None
    return JSONResponse({"error": str(error), "request_id": error.request_id}, status, headers)


@asynccontextmanager
async def lifespan(app: Starlette) -> AsyncIterator[None]:
    """The client belongs to the loop of the service."""
    async with client:
        yield


app = Starlette(
    routes=[Route("/categorize", categorize, methods=["POST"])],
    exception_handlers={ShelfwiseError: failed},
    lifespan=lifespan,
)
