"""Many items: every item gets its own answer or its own error, in order, with bounded work in flight."""

import logging
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from tritonclient.grpc import InferInput, service_pb2

from client import (
    Categorization,
    DeadlineExceeded,
    InvalidInput,
    Item,
    ServerError,
    ServerUnavailable,
    ShelfwiseClient,
    ShelfwiseError,
)
from client.client import MAX_REQUEST_BYTES
from serving.addresses import free_ports
from serving.server import TritonServer
from tests.triton_state import CANCELLATION_SECONDS, pending_requests, wait_for

from .conftest import REPOSITORY


def labels(answers: list[Categorization | ShelfwiseError]) -> list[str | type[ShelfwiseError]]:
    return [
        answer.categories[0].label.removeprefix("Title > ") if isinstance(answer, Categorization) else type(answer)
        for answer in answers
    ]


def answered(request: service_pb2.ModelInferRequest) -> service_pb2.ModelInferResponse:
    """A well-formed answer to a request of any number of rows."""
    rows = request.inputs[0].shape[0]
    response = service_pb2.ModelInferResponse(model_name="categorize")
    for name, datatype, tensor in (
        ("category", "BYTES", np.full((rows, 1), b"A > B", np.object_)),
        ("category_id", "INT32", np.zeros((rows, 1), np.int32)),
        ("probability", "FP32", np.ones((rows, 1), np.float32)),
        ("neighbour_kl", "FP32", np.zeros((rows, 1), np.float32)),
    ):
        response.outputs.add(name=name, datatype=datatype, shape=tensor.shape)
        content = InferInput(name, tensor.shape, datatype).set_data_from_numpy(tensor)._get_content()
        response.raw_output_contents.append(content)
    return response


def test_answers_come_in_the_order_of_the_items(client: ShelfwiseClient) -> None:
    titles = [f"sleep {0.02 * (number % 3 == 0)}" if number % 5 == 0 else f"title {number}" for number in range(100)]
    answers = list(client.categorize_many([Item(title=title) for title in titles], k=1, batch_size=3))
    assert labels(answers) == titles


def test_plain_pairs_are_items_too(client: ShelfwiseClient) -> None:
    answers = list(client.categorize_many([(b"12", "a"), Item(b"1"), (None, "b")], k=2))
    found = [answer for answer in answers if isinstance(answer, Categorization)]
    assert [[category.label for category in answer.categories] for answer in found] == [
        ["Title > a", "Image bytes > 2"],
        ["Title > ", "Image bytes > 1"],
        ["Title > b", "Image bytes > 0"],
    ]


def test_no_items_give_no_answers(client: ShelfwiseClient) -> None:
    assert list(client.categorize_many([])) == []


def test_bad_rows_cost_only_themselves(client: ShelfwiseClient) -> None:
    items: list[tuple[Any, str | None]] = [
        (None, "a"),
        (None, "refuse"),
        (None, None),
        (None, "b"),
        ("/nowhere/shoe.jpg", "c"),
        (3.5, "d"),
        (None, "break"),
        (None, "e"),
    ]
    expected = ["a", InvalidInput, InvalidInput, "b", InvalidInput, InvalidInput, ServerError, "e"]
    answers = list(client.categorize_many(items * 3, k=1, batch_size=8))
    assert labels(answers) == expected * 3
    assert str(answers[1]) == "row 0 is refused"  # asked about alone, its number in the batch would mislead


def test_k_above_what_the_server_returns_ends_the_stream_once(client: ShelfwiseClient) -> None:
    with pytest.raises(InvalidInput, match="k is 4, but this server returns 3"):
        next(client.categorize_many([(None, "a")] * 10, k=4))


def test_batch_above_what_the_server_takes_is_answered_singly_and_said(
    client: ShelfwiseClient, caplog: pytest.LogCaptureFixture
) -> None:
    titles = [str(number) for number in range(12)]
    with caplog.at_level(logging.WARNING):
        assert labels(list(client.categorize_many([(None, title) for title in titles], k=1, batch_size=12))) == titles
    assert "batch-size must be <= 8" in caplog.text


@pytest.mark.parametrize("arguments", [{"batch_size": 0}, {"in_flight": 0}, {"k": 0}, {"timeout": 0}])
def test_wrong_arguments_are_refused_before_the_first_item_is_read(client: ShelfwiseClient, arguments: dict) -> None:
    def source() -> Iterator[Item]:
        pytest.fail("an item was read")
        yield Item()

    with pytest.raises(ValueError, match=next(iter(arguments))):
        client.categorize_many(source(), **arguments)


def test_reads_ahead_no_further_than_one_batch_more_than_is_in_flight(client: ShelfwiseClient) -> None:
    read = 0

    def source() -> Iterator[Item]:
        nonlocal read
        while True:
            read += 1
            yield Item(title=f"title {read}")

    answers = client.categorize_many(source(), k=1, batch_size=2, in_flight=3)
    for taken in range(1, 30):
        next(answers)
        assert read <= taken + 2 * (3 + 1)


def test_keeps_exactly_the_given_number_of_requests_in_flight(grpc_server: Callable) -> None:
    lock = threading.Lock()
    running = highest = 0

    def infer(request: service_pb2.ModelInferRequest, context: grpc.ServicerContext) -> service_pb2.ModelInferResponse:
        nonlocal running, highest
        with lock:
            running += 1
            highest = max(highest, running)
        time.sleep(0.05)
        with lock:
            running -= 1
        return answered(request)

    with ShelfwiseClient(grpc_server(infer)) as client:
        answers = list(client.categorize_many([(None, "a")] * 40, k=1, batch_size=2, in_flight=5))
    assert len(answers) == 40
    assert highest == 5


def test_batch_of_large_images_is_sent_in_requests_of_bounded_size(grpc_server: Callable) -> None:
    sizes = []

    def infer(request: service_pb2.ModelInferRequest, context: grpc.ServicerContext) -> service_pb2.ModelInferResponse:
        sizes.append(request.ByteSize())
        return answered(request)

    images = [bytes(size * 2**20) for size in (15, 15, 15, 1, 20)]
    with ShelfwiseClient(grpc_server(infer)) as client:
        answers = list(client.categorize_many([(image, None) for image in images], k=1, batch_size=5))
    assert all(isinstance(answer, Categorization) for answer in answers)
    assert len(sizes) == 3
    assert max(sizes) < MAX_REQUEST_BYTES + 1000


def test_late_batch_costs_its_own_rows_only(client: ShelfwiseClient, tmp_path: Path) -> None:
    gate = tmp_path / "gate"

    def source() -> Iterator[Item]:
        yield from (Item(title=title) for title in ("a", "b", f"gate {gate}", "c"))
        gate.with_suffix(".open").touch()  # read once the batch before has been given up
        yield from (Item(title=title) for title in ("d", "e"))

    answers = labels(list(client.categorize_many(source(), k=1, batch_size=2, in_flight=1, timeout=2)))
    assert answers == ["a", "b", DeadlineExceeded, DeadlineExceeded, "d", "e"]


def test_closing_the_iterator_drops_what_waits_at_the_server(
    client: ShelfwiseClient, scripted_server: TritonServer, tmp_path: Path
) -> None:
    before = client.categorize(title="a", k=1).categories[0].id
    gate = tmp_path / "gate"

    def source() -> Iterator[Item]:
        yield Item(title="first")
        yield Item(title=f"gate {gate}")
        wait_for(gate.with_suffix(".entered").exists)  # the model is busy, and what follows waits in its queue
        yield from [Item(title="never")] * 3

    answers = client.categorize_many(source(), k=1, batch_size=1, in_flight=5)
    next(answers)
    wait_for(lambda: pending_requests(scripted_server, "categorize") == 3)
    answers.close()
    time.sleep(CANCELLATION_SECONDS)
    gate.with_suffix(".open").touch()
    after = client.categorize(title="b", k=1).categories[0].id
    assert after - before == 3  # "first", the one at the gate, and "b"


def test_failing_source_ends_the_stream_with_its_own_error(client: ShelfwiseClient) -> None:
    def source() -> Iterator[Item]:
        yield Item(title="a")
        raise OSError("the feed broke")

    with pytest.raises(OSError, match="the feed broke"):
        list(client.categorize_many(source(), k=1))


def test_server_that_is_gone_gives_every_row_its_error() -> None:
    (port,) = free_ports("127.0.0.1", 1)
    with ShelfwiseClient(f"127.0.0.1:{port}", timeout=0.5) as client:
        started = time.monotonic()
        answers = list(client.categorize_many([(None, str(number)) for number in range(20)], batch_size=5))
        assert labels(answers) == [ServerUnavailable] * 20
        assert time.monotonic() - started < 1.0


@pytest.mark.parametrize("end", ["stop", "kill"])
def test_restarted_server_costs_no_row(tmp_path: Path, end: str) -> None:
    grpc_port, metrics = free_ports("127.0.0.1", 2)

    def new_server(log: str) -> TritonServer:
        return TritonServer(REPOSITORY, grpc_port=grpc_port, metrics_port=metrics, log_file=tmp_path / log)

    server = new_server("first")
    server.start()
    try:
        titles = ["sleep 0.02" if number % 10 == 0 else f"title {number}" for number in range(400)]
        with ShelfwiseClient(server.url, timeout=60) as client:
            answers = client.categorize_many([(None, title) for title in titles], k=1, batch_size=2)
            first = [next(answers) for _ in range(50)]
            getattr(server, end)()
            server.stop(grace_seconds=0)
            server = new_server("second")
            restarted = threading.Thread(target=server.start)
            restarted.start()
            rest = list(answers)
            restarted.join()
        assert labels(first + rest) == titles
    finally:
        server.stop(grace_seconds=0)
