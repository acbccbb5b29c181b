"""Several servers behind one client: which one gets the next request, and which is left alone for a while.

A request goes to the server with the fewest under way, ties in turn. A server that fails three times in a row is
ejected, for a second and then twice as long after every further failure, up to half a minute; the request after that
is its trial. When all are ejected, all are used: a guess is better than no answer.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager

from .errors import DeadlineExceeded, ServerUnavailable
from .transport import Connection

FAILURES_BEFORE_EJECTION = 3
FIRST_EJECTION_SECONDS = 1.0
MAX_EJECTION_SECONDS = 30.0


class Endpoint:
    """A server as this client knows it."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.under_way = 0
        self.failures = 0
        self.ejected_until = 0.0
        self.turn = 0


class Endpoints:
    """Threads may share it."""

    def __init__(self, connections: Sequence[Connection]) -> None:
        self.all = [Endpoint(connection) for connection in connections]
        self._turns = itertools.count(1)
        self._lock = threading.Lock()

    def choose(self, tried: Collection[Endpoint] = ()) -> Endpoint:
        """The server for the next request, if possible one that was not tried."""
        with self._lock:
            now = time.monotonic()
            healthy = [endpoint for endpoint in self.all if endpoint.ejected_until <= now] or self.all
            fresh = [endpoint for endpoint in healthy if endpoint not in tried] or healthy
            chosen = min(fresh, key=lambda endpoint: (endpoint.under_way, endpoint.turn))
            chosen.turn = next(self._turns)
            chosen.under_way += 1
            return chosen

    @contextmanager
    def watched(self, endpoint: Endpoint) -> Iterator[None]:
        """Around the request for which it was chosen: learns how that ends."""
        failed = None  # refusals and cancellations say nothing about a server's health
        try:
            yield
            failed = False
        except (ServerUnavailable, DeadlineExceeded):
            failed = True
            raise
        finally:
            with self._lock:
                endpoint.under_way -= 1
                if failed is not None:
                    endpoint.failures = endpoint.failures + 1 if failed else 0
                if failed and endpoint.failures >= FAILURES_BEFORE_EJECTION:
                    doublings = min(endpoint.failures - FAILURES_BEFORE_EJECTION, 10)
                    seconds = min(FIRST_EJECTION_SECONDS * 2**doublings, MAX_EJECTION_SECONDS)
                    endpoint.ejected_until = time.monotonic() + seconds
