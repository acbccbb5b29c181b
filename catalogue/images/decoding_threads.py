"""The threads on which a served model decodes, and a budget of pixels that keeps one request from holding up others.

A batch is answered when its last image is decoded, so only as much goes into it as is decoded within about a tenth of a
second; a request that brings more is set aside, decoded by few threads of their own, and answered whenever it is done,
while batch after batch goes on. What waits there is bounded, and so is memory: `BATCH_WEIGHT` a thread for batches, one
image a thread aside, each within `catalogue.images.limits`. Weights are those of `OpenedImage`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from threading import Lock
from typing import Any, TypeVar

REQUEST_WEIGHT = 160 * 10**6
"""Of a request: more is refused. 160 PNGs of a megapixel, 100 photos of a phone."""
BATCH_WEIGHT = 4 * 10**6
"""Of a batch, for each thread."""
WAITING_WEIGHT = 4 * REQUEST_WEIGHT
"""Of the requests set aside that are not answered yet: when there are more, the next is refused as busy."""
MOST_ASIDE = 4
COMPLETE_FINAL = 1  # TRITONSERVER_RESPONSE_COMPLETE_FINAL: nothing comes after this response
BUSY = "too many large images are waiting to be decoded; try again"
Item = TypeVar("Item")
Result = TypeVar("Result")


def fault_of_weight(weight: int, images: int) -> str:
    """What is wrong with so many images of one request that weigh so much together; "" for nothing."""
    if weight <= REQUEST_WEIGHT:
        return ""
    declared, most = weight / 1e6, REQUEST_WEIGHT / 1e6
    return (
        f"{images} images of {declared:.0f} megapixels to decode; at most {most:.0f} are taken in one request "
        "(a baseline JPEG counts with an eighth of its pixels)"
    )


class DecodingThreads:
    """Threads for the images of batches, as many as the process has cores, and others for what is set aside."""

    def __init__(self) -> None:
        self.threads = len(os.sched_getaffinity(0))
        self.batch_pool = ThreadPoolExecutor(self.threads, thread_name_prefix="decode")
        self.aside_pool = ThreadPoolExecutor(max(1, min(MOST_ASIDE, self.threads // 2)), thread_name_prefix="aside")
        self.waiting = 0
        self.lock = Lock()

    def map(self, work: Callable[[Item], Result], items: Sequence[Item]) -> Iterable[Result]:
        """The results of a batch in order; a single item is worked on by the calling thread."""
        return self.batch_pool.map(work, items) if len(items) > 1 else map(work, items)

    def in_batch(self, weights: Sequence[int]) -> list[bool]:
        """Which of the requests that came together are answered together: in order, what is within the budget."""
        left, chosen = BATCH_WEIGHT * self.threads, []
        for weight in weights:
            chosen.append(weight <= left)
            left -= weight if chosen[-1] else 0
        return chosen

    def respond(
        self,
        asked: Sequence[Any],
        senders: Sequence[Callable[[], Any]],
        answer: Callable[[Sequence[Any]], Sequence[Any]],
        refuse: Callable[[str, str], Any],
    ) -> list[Any]:
        """The responses to requests that came together, None for each that is answered later, through its sender.

        Args:
            asked: the requests as they were read, each with the `weight` of its images.
            senders: of each, Triton's `get_response_sender`.
            answer: from some of them to their responses, in order.
            refuse: a response with an error, from a message and the name of Triton's state.
        """
        in_batch = self.in_batch([request.weight for request in asked])
        answers = iter(answer([request for request, now in zip(asked, in_batch, strict=True) if now]))
        responses = []
        for request, get_sender, now in zip(asked, senders, in_batch, strict=True):
            if now:
                responses.append(next(answers))
                continue
            later = self.set_aside(request.weight, partial(_send, request, get_sender(), answer, refuse))
            responses.append(None if later else refuse(BUSY, "UNAVAILABLE"))
        return responses

    def set_aside(self, weight: int, work: Callable[[], None]) -> bool:
        """Works on a request when it is its turn; False, and nothing is done, where too much waits already."""
        with self.lock:
            if self.waiting + weight > WAITING_WEIGHT:
                return False
            self.waiting += weight
        self.aside_pool.submit(self._work, weight, work)
        return True

    def _work(self, weight: int, work: Callable[[], None]) -> None:
        try:
            work()
        finally:
            with self.lock:
                self.waiting -= weight

    def shutdown(self) -> None:
        """Waits for what is set aside, then ends all threads."""
        self.aside_pool.shutdown()
        self.batch_pool.shutdown()


def _send(
    request: Any, sender: Any, answer: Callable[[Sequence[Any]], Sequence[Any]], refuse: Callable[[str, str], Any]
) -> None:
    try:
        response = refuse("cancelled", "CANCELLED") if sender.is_cancelled() else answer([request])[0]
    except Exception as error:  # raised on a thread that nobody looks at: the caller would wait for ever
        response = refuse(f"{type(error).__name__}: {error}", "INTERNAL")
    sender.send(response, flags=COMPLETE_FINAL)
