"""Many items: every item gets its own answer or its own error, in order, with bounded work in flight."""

import itertools
import logging
import os
import signal
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
    Progress,
    ServerError,
    ServerUnavailable,
    ShelfwiseClient,
    ShelfwiseError,
)
from client.stream import MAX_REQUEST_BYTES
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
    first, gate = tmp_path / "first", tmp_path / "gate"
    first.with_suffix(".open").touch()

    def source() -> Iterator[Item]:
        yield Item(title=f"gate {first}")
        wait_for(first.with_suffix(".entered").exists)  # not in one batch with the next
        yield Item(title=f"gate {gate}")
        wait_for(gate.with_suffix(".entered").exists)  # the model is busy, and what follows waits in its queue
        yield from [Item(title="never")] * 3

    answers = client.categorize_many(source(), k=1, batch_size=1, in_flight=5, timeout=300)
    next(answers)
    wait_for(lambda: pending_requests(scripted_server, "categorize") == 3)
    closing = threading.Thread(target=answers.close)
    closing.start()
    closing.join(60)  # not for the timeout, nor for the gate
    was_closed = not closing.is_alive()
    time.sleep(CANCELLATION_SECONDS)
    gate.with_suffix(".open").touch()
    after = client.categorize(title="b", k=1).categories[0].id
    closing.join()
    assert was_closed
    assert after - before == 3  # the first, the one at the gate, and "b"


def test_failing_source_ends_the_stream_with_its_own_error(client: ShelfwiseClient) -> None:
    def source() -> Iterator[Item]:
        yield Item(title="a")
        raise OSError("the feed broke")

    with pytest.raises(OSError, match="the feed broke"):
        list(client.categorize_many(source(), k=1))


def test_server_that_is_gone_gives_every_row_its_error() -> None:
    (port,) = free_ports("127.0.0.1", 1)
    with ShelfwiseClient(f"127.0.0.1:{port}", timeout=0.5) as client:
        answers = list(client.categorize_many([(None, str(number)) for number in range(20)], batch_size=5))
    assert labels(answers) == [ServerUnavailable] * 20


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


def endless() -> Iterator[Item]:
    return (Item(title=f"title {number}") for number in itertools.count())


def answers_before_the_end(answers: Iterator[Any]) -> tuple[list[Any], ShelfwiseError]:
    """What an endless stream yields until it raises, and what that is."""
    found: list[Any] = []
    with pytest.raises(ShelfwiseError) as caught:
        found.extend(answers)  # not lost: list.extend keeps what came before the error
    return found, caught.value


def test_stream_ends_after_so_many_requests_in_a_row_without_an_answer(grpc_server: Callable) -> None:
    arrived = itertools.count(1)

    def infer(request: service_pb2.ModelInferRequest, context: grpc.ServicerContext) -> Any:
        if next(arrived) not in (1, 2, 6):
            context.abort(grpc.StatusCode.DEADLINE_EXCEEDED, "late")
        return answered(request)

    seen: list[Progress] = []
    with ShelfwiseClient(grpc_server(infer)) as client:
        stream = client.categorize_many(
            endless(), k=1, batch_size=2, in_flight=1, give_up_after=4, progress=seen.append
        )
        found, error = answers_before_the_end(stream)
        assert list(stream) == []
    assert isinstance(error, ServerUnavailable)
    assert str(error).startswith("4 requests in a row found no server, the last: no answer from")
    assert next(arrived) == 11  # three, which the sixth forgives, and four
    assert [isinstance(answer, DeadlineExceeded) for answer in found] == [False] * 4 + [True] * 6 + [False] * 2 + [
        True
    ] * 8
    assert [(progress.answered, progress.failed) for progress in seen[:6]] == [
        (2, 0), (4, 0), (6, 2), (8, 4), (10, 6), (12, 6),
    ]  # fmt: skip


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGSTOP])
def test_stream_against_a_server_that_dies_or_hangs_ends(tmp_path: Path, end: signal.Signals) -> None:
    server = TritonServer(REPOSITORY, http_port=0, grpc_port=0, metrics_port=0, log_file=tmp_path / "log")
    server.start()
    assert server.process is not None
    pid = server.process.pid
    try:
        with ShelfwiseClient(server.url, timeout=2) as client:
            client.is_ready(timeout=10)
            answers = client.categorize_many(endless(), k=1, batch_size=2, in_flight=4, give_up_after=6)
            first = [next(answers) for _ in range(20)]
            os.kill(pid, end)
            rest, error = answers_before_the_end(answers)
            assert isinstance(error, ServerUnavailable)
            assert not any(isinstance(answer, ShelfwiseError) for answer in first)
            assert all(isinstance(answer, ShelfwiseError) for answer in rest[-6 * 2 :])
            assert len(rest) <= (4 + 1 + 6 + 4) * 2  # answered before, in flight, given up; a timely one forgives
            if end is signal.SIGSTOP:
                os.kill(pid, signal.SIGCONT)
                assert client.categorize(title="a", k=1, timeout=10).categories[0].label == "Title > a"
    finally:
        os.kill(pid, signal.SIGCONT)
        server.stop(grace_seconds=0)


def test_deadline_of_a_stream_ends_it(client: ShelfwiseClient, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    titles = ["a", "b", f"gate {gate}", "c"]
    answers = client.categorize_many([(None, title) for title in titles], k=1, batch_size=1, in_flight=1, deadline=2)
    found, error = answers_before_the_end(answers)
    gate.with_suffix(".open").touch()
    assert labels(found) == ["a", "b"]
    assert isinstance(error, DeadlineExceeded)
    assert str(error) == "2 items were answered within the stream's 2 s"


def test_as_completed_does_not_wait_for_the_slowest(
    grpc_server: Callable,
) -> None:
    gate = threading.Event()

    def infer(request: service_pb2.ModelInferRequest, context: grpc.ServicerContext) -> Any:
        if b"slow" in request.raw_input_contents[1]:
            assert gate.wait(30)
        return answered(request)

    items = [(None, title) for title in ("slow", "a", "b", "c")]
    with ShelfwiseClient(grpc_server(infer)) as client:
        numbers = []
        for number, answer in client.categorize_many(items, k=1, batch_size=1, in_flight=2).as_completed():
            assert isinstance(answer, Categorization)
            numbers.append(number)
            if len(numbers) == 3:
                gate.set()
    assert sorted(numbers[:3]) == [1, 2, 3]
    assert numbers[3] == 0


def test_rows_of_a_batch_are_not_asked_about_once_the_server_is_gone(grpc_server: Callable) -> None:
    arrived = itertools.count(1)

    def infer(request: service_pb2.ModelInferRequest, context: grpc.ServicerContext) -> Any:
        context.abort(*[
            (grpc.StatusCode.INVALID_ARGUMENT, "refused"), (grpc.StatusCode.DEADLINE_EXCEEDED, "late")
        ][next(arrived) > 2])  # fmt: skip

    with ShelfwiseClient(grpc_server(infer)) as client:
        answers = labels(list(client.categorize_many([(None, "a")] * 8, k=1)))
    assert answers == [InvalidInput] + [DeadlineExceeded] * 7
    assert next(arrived) == 4  # the batch, its first row, its second
