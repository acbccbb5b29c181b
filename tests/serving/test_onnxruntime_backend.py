"""The Python-based onnxruntime backend does what the official one does, on small real graphs in a real Triton."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import psutil
import pytest
from onnx import TensorProto, helper
from tritonclient.grpc import InferenceServerClient
from tritonclient.utils import InferenceServerException

from serving.server import TritonServer
from tests.serving.conftest import connect, infer_input
from tests.serving.graphs import save_onnx

FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64


def doubled(repository: Path, name: str, *, axis: str | int = "batch", **options: object) -> Path:
    """y = x + x, [axis, 4]."""
    return save_onnx(
        repository,
        name,
        [helper.make_node("Add", ["x", "x"], ["y"])],
        {"x": (FLOAT, [axis, 4])},
        {"y": (FLOAT, [axis, 4])},
        **options,  # type: ignore[arg-type]
    )


def looked_up(repository: Path, name: str, config: str) -> None:
    """y = table[i], three rows; ONNX Runtime fails on an index outside the table."""
    save_onnx(
        repository,
        name,
        [helper.make_node("Gather", ["table", "i"], ["y"])],
        {"i": (INT64, ["batch", 1])},
        {"y": (FLOAT, ["batch", 1, 2])},
        weights={"table": np.arange(6, dtype=np.float32).reshape(3, 2)},
        config=config,
    )


def write_good_models(repository: Path) -> None:
    doubled(repository, "no_config")
    doubled(repository, "fixed_axis", axis=3)
    doubled(
        repository,
        "batching",
        config="""max_batch_size: 8
        instance_group { count: 1 }
        dynamic_batching { max_queue_delay_microseconds: 300000 preferred_batch_size: 8 }""",
    )
    doubled(
        repository,
        "all_settings",
        config="""max_batch_size: 8
        instance_group { count: 1 }
        optimization { graph { level: 1 } }
        parameters { key: "intra_op_thread_count" value: { string_value: "5" } }
        parameters { key: "inter_op_thread_count" value: { string_value: "2" } }
        parameters { key: "execution_mode" value: { string_value: "1" } }
        parameters { key: "enable_mem_arena" value: { string_value: "true" } }
        parameters { key: "enable_mem_pattern" value: { string_value: "false" } }
        parameters { key: "memory.enable_memory_arena_shrinkage" value: { string_value: "cpu:0" } }
        parameters { key: "session.use_device_allocator_for_initializers" value: { string_value: "1" } }""",
    )
    doubled(
        repository,
        "warmed_up",
        config="""max_batch_size: 8
        model_warmup { name: "one row" batch_size: 1
          inputs { key: "x" value: { data_type: TYPE_FP32 dims: 4 random_data: true } } }""",
    )
    doubled(
        repository,
        "stated_inputs",  # with inputs and outputs given, nothing is completed
        config="""max_batch_size: 2
        input { name: "x" data_type: TYPE_FP32 dims: 4 }
        output { name: "y" data_type: TYPE_FP32 dims: 4 }""",
    )
    looked_up(
        repository,
        "look_up",
        """max_batch_size: 8
        instance_group { count: 1 }
        dynamic_batching { max_queue_delay_microseconds: 300000 preferred_batch_size: 4 }""",
    )
    save_onnx(
        repository,
        "last_of_each",  # of a ragged batch: all rows' elements in one dimension, and how many each row has
        [
            helper.make_node("CumSum", ["length", "rows"], ["end"]),
            helper.make_node("Sub", ["end", "one"], ["place"]),
            helper.make_node("Gather", ["x", "place"], ["last"]),
        ],
        {"x": (FLOAT, ["elements"]), "length": (INT64, ["batch", 1])},
        {"last": (FLOAT, ["batch", 1])},
        weights={"rows": np.array(0, np.int64), "one": np.array(1, np.int64)},
        config="""max_batch_size: 8
        input { name: "x" data_type: TYPE_FP32 dims: -1 allow_ragged_batch: true }
        input { name: "length" data_type: TYPE_INT64 dims: 1 }
        output { name: "last" data_type: TYPE_FP32 dims: 1 }
        instance_group { count: 1 }
        dynamic_batching { max_queue_delay_microseconds: 300000 preferred_batch_size: 4 }""",
    )
    save_onnx(
        repository,
        "difference",
        [helper.make_node("Sub", ["minuend", "subtrahend"], ["difference"])],
        {"minuend": (FLOAT, ["batch", "n"]), "subtrahend": (FLOAT, ["batch", "n"])},
        {"difference": (FLOAT, ["batch", "n"])},
        config="max_batch_size: 8",
    )
    save_onnx(
        repository,
        "image_mean",
        [
            helper.make_node("Cast", ["pixels"], ["floats"], to=FLOAT),
            helper.make_node("ReduceMean", ["floats", "axes"], ["mean"], keepdims=0),
        ],
        {"pixels": (TensorProto.UINT8, ["batch", 6, 5, 3])},
        {"mean": (FLOAT, ["batch"])},
        weights={"axes": np.array([1, 2, 3], np.int64)},
        config="max_batch_size: 8",
    )
    save_onnx(
        repository,
        "text",
        [helper.make_node("StringConcat", ["text", "text"], ["twice"])],
        {"text": (TensorProto.STRING, ["batch", 1])},
        {"twice": (TensorProto.STRING, ["batch", 1])},
        config="max_batch_size: 8",
    )


@pytest.fixture(scope="module")
def server(start_server: Callable[..., TritonServer], tmp_path_factory: pytest.TempPathFactory) -> TritonServer:
    repository = tmp_path_factory.mktemp("onnx")
    write_good_models(repository)
    return start_server(repository, model_control=True)


@pytest.fixture(scope="module")
def client(server: TritonServer) -> InferenceServerClient:
    return connect(server)


def rows(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, 4)).astype(np.float32)


def double(client: InferenceServerClient, model: str, value: np.ndarray) -> np.ndarray:
    return client.infer(model, [infer_input("x", value, "FP32")], client_timeout=10).as_numpy("y")


def test_missing_configuration_is_completed_from_the_file(client: InferenceServerClient) -> None:
    config = client.get_model_config("no_config").config
    assert config.max_batch_size == 4
    assert config.HasField("dynamic_batching")
    assert [(tensor.name, list(tensor.dims)) for tensor in config.input] == [("x", [4])]
    assert [(tensor.name, list(tensor.dims)) for tensor in config.output] == [("y", [4])]
    assert [group.count for group in config.instance_group] == [2]
    assert config.backend == "onnxruntime"
    np.testing.assert_array_equal(double(client, "no_config", rows(4)), 2 * rows(4))


def test_fixed_batch_axis_means_no_batching(client: InferenceServerClient) -> None:
    config = client.get_model_config("fixed_axis").config
    assert config.max_batch_size == 0
    assert not config.HasField("dynamic_batching")
    assert list(config.input[0].dims) == [3, 4]
    np.testing.assert_array_equal(double(client, "fixed_axis", rows(3)), 2 * rows(3))
    with pytest.raises(InferenceServerException, match="unexpected shape"):
        double(client, "fixed_axis", rows(2))


def test_configuration_with_inputs_and_outputs_is_left_alone(client: InferenceServerClient) -> None:
    config = client.get_model_config("stated_inputs").config
    assert config.max_batch_size == 2
    assert not config.HasField("dynamic_batching")


def test_waiting_requests_become_one_batch_and_get_their_own_rows(client: InferenceServerClient) -> None:
    before = client.get_inference_statistics("batching").model_stats[0].execution_count
    values = [rows(count, seed=count) for count in (1, 2, 1, 3, 1)]
    with ThreadPoolExecutor(len(values)) as callers:
        answers = list(callers.map(lambda value: double(client, "batching", value), values))
    for value, answer in zip(values, answers, strict=True):
        np.testing.assert_array_equal(answer, 2 * value)
    assert client.get_inference_statistics("batching").model_stats[0].execution_count == before + 1


def test_ragged_requests_become_one_batch_in_one_dimension(client: InferenceServerClient) -> None:
    def last(values: list[list[float]]) -> np.ndarray:
        x, length = np.array(values, np.float32), np.full((len(values), 1), len(values[0]), np.int64)
        inputs = [infer_input("x", x, "FP32"), infer_input("length", length, "INT64")]
        return client.infer("last_of_each", inputs, client_timeout=10).as_numpy("last")

    asked = [[[1.0, 2.0]], [[3.0]], [[4.0, 5.0, 6.0], [7.0, 8.0, 9.0]]]  # the last of two rows
    with ThreadPoolExecutor(3) as callers:
        answers = list(callers.map(last, asked))
    batches = client.get_inference_statistics("last_of_each").model_stats[0].batch_stats
    assert [batch.batch_size for batch in batches] == [4]
    for answer, expected in zip(answers, ([[2.0]], [[3.0]], [[6.0], [9.0]]), strict=True):
        np.testing.assert_array_equal(answer, expected)
    np.testing.assert_array_equal(last([[1.0, 2.0, 3.0]]), [[3.0]])


def test_bad_request_in_a_batch_fails_alone(client: InferenceServerClient) -> None:
    def look_up(index: int) -> np.ndarray | str:
        try:
            result = client.infer(
                "look_up", [infer_input("i", np.array([[index]], np.int64), "INT64")], client_timeout=10
            )
            return result.as_numpy("y")
        except InferenceServerException as error:
            return error.message()

    with ThreadPoolExecutor(4) as callers:
        answers = list(callers.map(look_up, [0, 1, 7, 2]))
    batches = client.get_inference_statistics("look_up").model_stats[0].batch_stats
    assert [batch.batch_size for batch in batches] == [4]
    for index, answer in zip((0, 1, 2), (answers[0], answers[1], answers[3]), strict=True):
        np.testing.assert_array_equal(answer, [[[2 * index, 2 * index + 1]]])
    assert "onnx runtime error" in answers[2]
    assert "idx=7" in answers[2]


def test_inputs_are_bound_by_name(client: InferenceServerClient) -> None:
    minuend, subtrahend = rows(2, seed=1), rows(2, seed=2)
    inputs = [infer_input("subtrahend", subtrahend, "FP32"), infer_input("minuend", minuend, "FP32")]
    np.testing.assert_array_equal(client.infer("difference", inputs).as_numpy("difference"), minuend - subtrahend)


def test_uint8_pixels_in_and_one_number_a_row_out(client: InferenceServerClient) -> None:
    config = client.get_model_config("image_mean").config
    assert list(config.output[0].dims) == [1]
    assert list(config.output[0].reshape.shape) == []
    pixels = np.random.default_rng(0).integers(0, 256, (2, 6, 5, 3)).astype(np.uint8)
    mean = client.infer("image_mean", [infer_input("pixels", pixels, "UINT8")]).as_numpy("mean")
    np.testing.assert_allclose(mean.ravel(), pixels.mean((1, 2, 3)), rtol=1e-6)


def test_strings_pass_in_and_out(client: InferenceServerClient) -> None:
    text = np.array([["grün"], ["\u65e5\u672c"], [""]], np.object_)
    twice = client.infer("text", [infer_input("text", text, "BYTES")]).as_numpy("twice")
    assert [row.decode() for row in twice.ravel()] == [2 * row for row in text.ravel()]


def test_all_session_settings_are_accepted(client: InferenceServerClient) -> None:
    np.testing.assert_array_equal(double(client, "all_settings", rows(5)), 2 * rows(5))


def test_instances_times_threads_is_at_most_the_number_of_cores(server: TritonServer) -> None:
    assert server.process is not None
    threads: dict[str, int] = {}
    for stub in psutil.Process(server.process.pid).children():
        command = stub.cmdline()
        for model in ("no_config", "all_settings"):
            if any(f"/{model}/1/" in part for part in command):
                threads[model] = stub.num_threads()
    # all_settings asks for 5 intra-op and 2 inter-op threads; no_config says nothing and has 2 instances.
    by_default = max(1, len(os.sched_getaffinity(0)) // 2)
    asked_for = 5 + 2
    assert threads["all_settings"] - threads["no_config"] == pytest.approx(asked_for - by_default, abs=1)


def test_warm_up_runs_on_loading(server: TritonServer, client: InferenceServerClient) -> None:
    np.testing.assert_array_equal(double(client, "warmed_up", rows(1)), 2 * rows(1))


REFUSALS: dict[str, tuple[Callable[[Path, str], object], str]] = {
    "input dims looser than the model's": (
        lambda repository, name: doubled(
            repository, name, config='max_batch_size: 8 input { name: "x" data_type: TYPE_FP32 dims: -1 }'
        ),
        r"tensor 'x': the model expects 2 dimensions \(shape \[-1, 4\]\) but the model configuration .*\[-1, -1\]",
    ),
    "output dims looser than the model's": (
        lambda repository, name: doubled(
            repository, name, config='max_batch_size: 8 output { name: "y" data_type: TYPE_FP32 dims: -1 }'
        ),
        "tensor 'y': the model expects 2 dimensions",
    ),
    "wrong rank": (
        lambda repository, name: doubled(
            repository, name, config='max_batch_size: 8 input { name: "x" data_type: TYPE_FP32 dims: [ 4, 1 ] }'
        ),
        "specifies 3 dimensions",
    ),
    "ragged input of two dimensions": (
        lambda repository, name: doubled(
            repository,
            name,
            config="""max_batch_size: 8
            input { name: "x" data_type: TYPE_FP32 dims: 4 allow_ragged_batch: true }
            output { name: "y" data_type: TYPE_FP32 dims: 4 }""",
        ),
        r"expects model provides input with shape \[-1\]  for ragged input 'x', model provides \[-1, 4\]",
    ),
    "wrong type": (
        lambda repository, name: doubled(
            repository, name, config='max_batch_size: 8 input { name: "x" data_type: TYPE_FP16 dims: 4 }'
        ),
        "configuration expects datatype TYPE_FP16 for input 'x', model provides TYPE_FP32",
    ),
    "wrong name": (
        lambda repository, name: doubled(
            repository, name, config='max_batch_size: 8 input { name: "z" data_type: TYPE_FP32 dims: 4 }'
        ),
        "unexpected inference input 'z', allowed inputs are: x",
    ),
    "unknown output": (
        lambda repository, name: doubled(
            repository, name, config='max_batch_size: 8 output { name: "z" data_type: TYPE_FP32 dims: 4 }'
        ),
        "unexpected inference output 'z', allowed outputs are: y",
    ),
    "missing input": (
        lambda repository, name: save_onnx(
            repository,
            name,
            [helper.make_node("Sub", ["a", "b"], ["c"])],
            {"a": (FLOAT, ["batch", 4]), "b": (FLOAT, ["batch", 4])},
            {"c": (FLOAT, ["batch", 4])},
            config='max_batch_size: 8 input { name: "a" data_type: TYPE_FP32 dims: 4 }',
        ),
        "configuration expects 1 inputs, model provides 2",
    ),
    "batching of a fixed axis": (
        lambda repository, name: doubled(repository, name, axis=3, config="max_batch_size: 8"),
        "model does not support batching while non-zero max_batch_size",
    ),
    "bfloat16 at the edge": (
        lambda repository, name: save_onnx(
            repository,
            name,
            [helper.make_node("Identity", ["x"], ["y"])],
            {"x": (TensorProto.BFLOAT16, ["batch", 4])},
            {"y": (TensorProto.BFLOAT16, ["batch", 4])},
        ),
        r"unsupported datatype tensor\(bfloat16\)",
    ),
    "invalid execution mode": (
        lambda repository, name: doubled(
            repository, name, config='parameters { key: "execution_mode" value: { string_value: "2" } }'
        ),
        "Expected values for execution_mode are 0 or 1 but got 2",
    ),
    "unknown accelerator": (
        lambda repository, name: doubled(
            repository,
            name,
            config='optimization { execution_accelerators { cpu_execution_accelerator { name: "abacus" } } }',
        ),
        "unknown Execution Accelerator 'abacus'",
    ),
    "truncated file": (
        lambda repository, name: os.truncate(doubled(repository, name), 60),
        "Protobuf parsing failed",
    ),
    "no ONNX file": (
        lambda repository, name: doubled(repository, name).write_bytes(b"<html>not found</html>"),
        "Protobuf parsing failed",
    ),
}


@pytest.fixture(scope="module")
def refusals(server: TritonServer, client: InferenceServerClient) -> dict[str, str]:
    """What Triton said to each of the models that must not load; they are loaded together to save time."""

    def load(case: str) -> str:
        name = "refused_" + case.replace(" ", "_").replace("'", "")
        REFUSALS[case][0](server.repository, name)
        try:
            client.load_model(name)
        except InferenceServerException as error:
            return error.message()
        return "loaded"

    with ThreadPoolExecutor(4) as loaders:
        return dict(zip(REFUSALS, loaders.map(load, REFUSALS), strict=True))


@pytest.mark.parametrize("case", REFUSALS)
def test_refused_with_the_reason(case: str, refusals: dict[str, str]) -> None:
    assert re.search(REFUSALS[case][1], refusals[case])


def test_input_dims_may_be_narrower_than_a_dynamic_axis(server: TritonServer, client: InferenceServerClient) -> None:
    save_onnx(
        server.repository,
        "narrowed",
        [helper.make_node("Identity", ["x"], ["y"])],
        {"x": (FLOAT, ["batch", "n"])},
        {"y": (FLOAT, ["batch", "n"])},
        config='max_batch_size: 8 input { name: "x" data_type: TYPE_FP32 dims: 4 }',
    )
    client.load_model("narrowed")
    np.testing.assert_array_equal(double(client, "narrowed", rows(2)), rows(2))
    with pytest.raises(InferenceServerException, match="unexpected shape"):
        client.infer("narrowed", [infer_input("x", rows(2)[:, :3].copy(), "FP32")])
