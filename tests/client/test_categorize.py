"""One call: what comes back, and which error for which mistake, before or after a round trip."""

import itertools
import pickle
import re
import socket
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import numpy as np
import pytest
from tritonclient.grpc import service_pb2

import client as shelfwise
from client import Categorization, Category, InvalidInput, ServerError, ShelfwiseClient, ShelfwiseError
from client.tensors import bytes_tensor, output
from serving.server import TritonServer

NOBODY = "127.0.0.1:1"


def test_answer_is_typed_and_ranked(client: ShelfwiseClient) -> None:
    result = client.categorize(b"12345", "Puma shoe", k=2)
    number = result.categories[0].id
    assert isinstance(number, int)
    assert result == Categorization(
        (
            Category("Title > Puma shoe", ("Title", "Puma shoe"), number, 0.5),
            Category("Image bytes > 5", ("Image bytes", "5"), number, 0.25),
        ),
        neighbour_kl=0.75,
    )
    assert pickle.loads(pickle.dumps(result)) == result


def test_absent_inputs_travel_as_empty_bytes(client: ShelfwiseClient) -> None:
    assert client.categorize(b"123", k=1).categories[0].label == "Title > "
    assert client.categorize(title="a", k=2).categories[1].label == "Image bytes > 0"


@pytest.mark.parametrize("title", ["👟 running", "حذاء رياضي", "with\0NUL", "x" * 2**20])
def test_title_arrives_as_it_was_given(client: ShelfwiseClient, title: str) -> None:
    assert client.categorize(title=title, k=1).categories[0].label == f"Title > {title}"


@pytest.mark.parametrize(("image", "title"), [(None, None), (b"", ""), (None, " \t\n"), (b"", None)])
def test_neither_image_nor_title_is_refused_without_a_round_trip(image: bytes | None, title: str | None) -> None:
    with ShelfwiseClient(NOBODY) as client, pytest.raises(InvalidInput, match="image and title") as caught:
        client.categorize(image, title)
    assert caught.value.status is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"title": "a", "k": 0}, "k must be a whole number, at least 1, not 0"),
        ({"title": "a", "k": 2.5}, "k must be a whole number, at least 1, not 2.5"),
        ({"title": "a", "k": True}, "k must be a whole number, at least 1, not True"),
        ({"title": float("nan")}, "title must be text, not float"),
        ({"title": "lone \ud800 surrogate"}, "not valid Unicode: .* at character 5"),
        ({"image": np.zeros((2, 2), np.int64)}, r"int64 \[2, 2\]"),
    ],
)
def test_mistakes_are_named_without_a_round_trip(arguments: dict, message: str) -> None:
    with ShelfwiseClient(NOBODY) as client, pytest.raises(InvalidInput, match=message):
        client.categorize(**arguments)


def test_k_above_what_the_server_returns_is_refused_with_both_numbers(client: ShelfwiseClient) -> None:
    with pytest.raises(InvalidInput, match="k is 4, but this server returns 3"):
        client.categorize(title="a", k=4)


@pytest.mark.parametrize(
    ("title", "kind", "status", "text"),
    [
        ("refuse", InvalidInput, "INVALID_ARGUMENT", "row 0 is refused"),
        ("break", ServerError, "INTERNAL", "row 0 broke the model"),
    ],
)
def test_server_text_passes_through(
    client: ShelfwiseClient, title: str, kind: type[ShelfwiseError], status: str, text: str
) -> None:
    with pytest.raises(kind) as caught:
        client.categorize(title=title)
    assert (caught.value.status, str(caught.value)) == (status, text)


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        ("INVALID_ARGUMENT", "InvalidInput"),
        ("OUT_OF_RANGE", "InvalidInput"),
        ("NOT_FOUND", "ModelNotFound"),
        ("UNAUTHENTICATED", "AccessDenied"),
        ("PERMISSION_DENIED", "AccessDenied"),
        ("CANCELLED", "RequestCancelled"),
        ("INTERNAL", "ServerError"),
        ("UNKNOWN", "ServerError"),
        ("UNIMPLEMENTED", "ServerError"),
        ("RESOURCE_EXHAUSTED", "ServerError"),
    ],
)
def test_every_status_has_its_class_and_is_not_retried(grpc_server: Callable, status: str, kind: str) -> None:
    calls = itertools.count(1)

    def fail(request: service_pb2.ModelInferRequest, context: grpc.ServicerContext) -> None:
        context.abort(grpc.StatusCode[status], f"reason {next(calls)}")

    with ShelfwiseClient(grpc_server(fail)) as client, pytest.raises(ShelfwiseError) as caught:
        client.categorize(title="a")
    assert type(caught.value) is getattr(shelfwise, kind)
    assert (caught.value.status, str(caught.value)) == (status, "reason 1")
    assert next(calls) == 2
    again = pickle.loads(pickle.dumps(caught.value))
    assert (type(again), again.status, str(again)) == (type(caught.value), status, "reason 1")


def test_errors_are_also_the_builtin_kind_that_callers_catch() -> None:
    assert issubclass(shelfwise.InvalidInput, ValueError)
    assert issubclass(shelfwise.DeadlineExceeded, TimeoutError)
    assert issubclass(shelfwise.ModelNotFound, LookupError)


def test_answer_of_another_kind_of_server_is_refused(grpc_server: Callable) -> None:
    url = grpc_server(lambda request, context: service_pb2.ModelInferResponse(model_name="categorize"))
    with ShelfwiseClient(url) as client, pytest.raises(ServerError, match=r"'category' of shape \[1, any\]"):
        client.categorize(title="a")


@pytest.mark.parametrize(
    ("datatype", "content"),
    [
        ("BYTES", bytes_tensor([b"a", b"b"])),
        ("BYTES", bytes_tensor([b"a", b"b", b"c"])[:-1]),
        ("BYTES", bytes_tensor([b"a", b"b", b"c"]) + b"\0"),
        ("FP32", b"\0" * 16),
        ("FP32", b"\0" * 13),
        ("BF16", b"\0" * 6),
    ],
)
def test_an_answer_whose_bytes_do_not_fit_its_shape_is_refused(datatype: str, content: bytes) -> None:
    tensor = service_pb2.ModelInferResponse.InferOutputTensor(name="category", datatype=datatype, shape=(1, 3))
    response = service_pb2.ModelInferResponse(outputs=[tensor], raw_output_contents=[content])
    with pytest.raises(ServerError, match=rf"but has {len(content)} bytes of {datatype} in it"):
        output(response, "categorize", "category", (1, None))


def test_threads_share_one_client_without_mixing_answers(client: ShelfwiseClient) -> None:
    titles = [f"title {number}" for number in range(200)]
    with ThreadPoolExecutor(8) as threads:
        results = threads.map(lambda title: client.categorize(title=title, k=1), titles)
    assert [result.categories[0].label for result in results] == [f"Title > {title}" for title in titles]


def test_health_of_a_running_server(client: ShelfwiseClient, scripted_server: TritonServer) -> None:
    assert client.is_ready()
    metadata = client.server_metadata()
    assert metadata.name == f"{socket.gethostname()}-{scripted_server.grpc_port}"
    assert re.fullmatch(r"\d+\.\d+\.\d+", metadata.version)
    assert metadata.model_versions == ("1",)


@pytest.mark.parametrize("url", ["grpc://127.0.0.1:8001", "127.0.0.1", "", "::1:8001", "127.0.0.1:port", ":8001"])
def test_url_that_is_not_host_and_port_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match='"host:port"'):
        ShelfwiseClient(url)


@pytest.mark.parametrize("timeout", [0, -1.0, float("nan"), float("inf"), 1e12, "5", True])
def test_timeout_must_be_positive_and_at_most_a_day(timeout: float) -> None:
    with pytest.raises(ValueError, match="timeout"):
        ShelfwiseClient(NOBODY, timeout=timeout)
    with ShelfwiseClient(NOBODY) as client:
        for call in (
            lambda: client.categorize(title="a", timeout=timeout),
            lambda: client.categorize_many([], timeout=timeout),
            lambda: client.is_ready(timeout=timeout),
            lambda: client.server_metadata(timeout=timeout),
        ):
            with pytest.raises(ValueError, match="timeout must be a positive number of seconds, at most a day"):
                call()


def test_client_folder_alone_imports_under_its_distribution_name(tmp_path: Path) -> None:
    (tmp_path / "shelfwise_client").symlink_to(Path(shelfwise.__file__).parent)
    program = (
        "import sys; sys.path.insert(0, sys.argv[1]);"
        "import shelfwise_client; shelfwise_client.ShelfwiseClient('127.0.0.1:1').close();"
        "project = ('client', 'catalogue', 'models', 'training', 'serving', 'kernels', 'export', 'torch', 'PIL');"
        "print([name for name in project if name in sys.modules])"
    )
    output = subprocess.run(
        [sys.executable, "-I", "-c", program, str(tmp_path)], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert output.stdout.strip() == "[]"
