"""Triton's `onnxruntime` backend, written on the Python backend, for machines that have only pip.

It serves `model.onnx` under the name, and with the configuration, of the official C++ backend
(triton-inference-server/onnxruntime_backend, release 24.10 with ONNX Runtime 1.19.2), so that one repository runs
under both: the same keys are read, the same parts of a configuration are completed, the same mistakes are refused.
What is too new for 1.19.2 (IR above 10, opset above 21) is refused by the export and by `shelfwise repository check`,
not here. A dynamic batch is one `session.run`: inputs are concatenated (those with
`allow_ragged_batch` as one flat tensor, as the official backend does), outputs cut into views.

Two differences, both deliberate: intra-op threads default to cores / instances rather than to all cores for every
instance, and when a batch fails its requests are run one by one, so that only the bad one is answered with an error.
"""

import json
import os

import numpy as np
import onnxruntime as ort
import triton_python_backend_utils as pb_utils

DEFAULT_MODEL_FILENAME = "model.onnx"
DEFAULT_MAX_BATCH_SIZE = 4  # the server's own --backend-config=default-max-batch-size, which stubs are not told

# ONNX Runtime's name of an element type -> (Triton's name in a configuration, numpy's type)
ELEMENT_TYPES = {
    "tensor(bool)": ("TYPE_BOOL", np.bool_),
    "tensor(uint8)": ("TYPE_UINT8", np.uint8),
    "tensor(uint16)": ("TYPE_UINT16", np.uint16),
    "tensor(uint32)": ("TYPE_UINT32", np.uint32),
    "tensor(uint64)": ("TYPE_UINT64", np.uint64),
    "tensor(int8)": ("TYPE_INT8", np.int8),
    "tensor(int16)": ("TYPE_INT16", np.int16),
    "tensor(int32)": ("TYPE_INT32", np.int32),
    "tensor(int64)": ("TYPE_INT64", np.int64),
    "tensor(float16)": ("TYPE_FP16", np.float16),
    "tensor(float)": ("TYPE_FP32", np.float32),
    "tensor(double)": ("TYPE_FP64", np.float64),
    "tensor(string)": ("TYPE_STRING", np.object_),
}

# optimization { graph { level } }: the official backend's reading
GRAPH_OPTIMIZATION_LEVELS = {
    -1: ort.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    1: ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
    2: ort.GraphOptimizationLevel.ORT_DISABLE_ALL,
}


class TritonPythonModel:
    """One instance of an ONNX model."""

    @staticmethod
    def auto_complete_config(auto_complete_model_config):
        """Complete max_batch_size, inputs, outputs and dynamic_batching from the model file.

        As in the official backend a configuration that gives both inputs and outputs is left as it is.
        """
        config = auto_complete_model_config.as_dict()  # the object's own dict: changing it changes the configuration
        if (config["input"] or config.get("batch_input")) and config["output"]:
            return auto_complete_model_config
        path = model_path(config, pb_utils.get_model_dir())
        session = load_session(path, config, instances=1, optimize=False)
        inputs, outputs = session.get_inputs(), session.get_outputs()
        complete_batching(config, inputs + outputs)
        for key, tensors in (("input", inputs), ("output", outputs)):
            if not config[key]:
                config[key] = [tensor_config(tensor, config) for tensor in tensors]
        check_tensors(config, session)
        return auto_complete_model_config

    def initialize(self, args):
        config = json.loads(args["model_config"])
        path = model_path(config, pb_utils.get_model_dir())
        self.batched = config["max_batch_size"] > 0
        self.session = load_session(path, config, instance_count(config), device_of(args))
        check_tensors(config, self.session)
        self.input_names = [tensor["name"] for tensor in config["input"]]
        self.ragged = {tensor["name"] for tensor in config["input"] if tensor.get("allow_ragged_batch")}
        self.output_names = [tensor["name"] for tensor in config["output"]]
        self.run_options = ort.RunOptions()
        shrinkage = parameter(config, "memory.enable_memory_arena_shrinkage")
        if shrinkage:
            self.run_options.add_run_config_entry("memory.enable_memory_arena_shrinkage", shrinkage)

    def execute(self, requests):
        feeds, rows = zip(*(self.feed(request) for request in requests), strict=True)
        if len(requests) == 1 or not self.batched or not same_rows(feeds):
            return [self.respond_alone(feed) for feed in feeds]
        try:
            batch = {name: np.concatenate([feed[name] for feed in feeds]) for name in feeds[0]}
            outputs = self.run(batch)
        except Exception:
            return [self.respond_alone(feed) for feed in feeds]  # the good requests must not fail with the bad one
        responses, start = [], 0
        for count in rows:
            stop = start + count
            responses.append(self.response([output[start:stop] for output in outputs]))
            start = stop
        return responses

    def feed(self, request):
        """The request's tensors by name, as views of shared memory, and its rows; optional inputs may be absent."""
        feed, rows = {}, 0
        for name in self.input_names:
            tensor = pb_utils.get_input_tensor_by_name(request, name)
            if tensor is not None:
                array = tensor.as_numpy()
                rows = len(array) if array.ndim else 0
                array = array.ravel() if name in self.ragged else array
                feed[name] = text(array) if array.dtype == np.object_ else array
        return feed, rows

    def run(self, feed):
        return self.session.run(self.output_names, feed, self.run_options)

    def respond_alone(self, feed):
        try:
            return self.response(self.run(feed))
        except Exception as error:
            return pb_utils.InferenceResponse(error=pb_utils.TritonError(f"onnx runtime error: {error}"))

    def response(self, outputs):
        return pb_utils.InferenceResponse(
            [pb_utils.Tensor(name, output) for name, output in zip(self.output_names, outputs, strict=True)]
        )


def text(array):
    """Triton's BYTES as ONNX Runtime wants strings: the same array of str."""
    decoded = [element.decode("utf-8") for element in array.ravel()]
    return np.array(decoded, dtype=np.object_).reshape(array.shape)


def same_rows(feeds):
    """Whether requests can be concatenated: the same inputs with the same shapes behind the batch axis."""
    first = {name: array.shape[1:] for name, array in feeds[0].items()}
    return all({name: array.shape[1:] for name, array in feed.items()} == first for feed in feeds[1:])


def model_path(config, model_dir):
    """The ONNX file of a version folder."""
    path = os.path.join(model_dir, config.get("default_model_filename") or DEFAULT_MODEL_FILENAME)
    if os.path.isdir(path):
        path = os.path.join(path, DEFAULT_MODEL_FILENAME)
    if not os.path.exists(path):
        raise pb_utils.TritonModelException(f"unable to find '{path}' for model instance '{config['name']}'")
    return path


def load_session(path, config, instances, device="CPUExecutionProvider", optimize=True):
    """An ONNX Runtime session with the options that the configuration asks for."""
    options = ort.SessionOptions()
    options.log_severity_level = 3  # errors only; the official backend reports warnings at verbose level
    level = int(config.get("optimization", {}).get("graph", {}).get("level", 0))
    options.graph_optimization_level = GRAPH_OPTIMIZATION_LEVELS.get(level, ort.GraphOptimizationLevel.ORT_ENABLE_ALL)
    if not optimize:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    execution_mode = integer_parameter(config, "execution_mode")
    if execution_mode not in (0, 1):
        raise pb_utils.TritonModelException(
            "Invalid configuration value provided. Expected values for execution_mode are 0 or 1 but got "
            f"{execution_mode} ."
        )
    if execution_mode == 1:
        options.execution_mode = ort.ExecutionMode.ORT_PARALLEL
    intra_op = integer_parameter(config, "intra_op_thread_count")
    options.intra_op_num_threads = intra_op if intra_op > 0 else max(1, available_cores() // instances)
    # An instance is a process of its own here: threads that spin while they wait would take the cores from the decoder,
    # the tokenizer and the other models, which is many times what spinning saves.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.inter_op.allow_spinning", "0")
    inter_op = integer_parameter(config, "inter_op_thread_count")
    if inter_op > 0:
        options.inter_op_num_threads = inter_op
    device_allocator = parameter(config, "session.use_device_allocator_for_initializers")
    if device_allocator:
        options.add_session_config_entry("session.use_device_allocator_for_initializers", device_allocator)
    options.enable_cpu_mem_arena = boolean_parameter(config, "enable_mem_arena", True)
    options.enable_mem_pattern = boolean_parameter(config, "enable_mem_pattern", True)
    for library in config.get("model_operations", {}).get("op_library_filename", []):
        options.register_custom_ops_library(library)
    for accelerator in (
        config.get("optimization", {}).get("execution_accelerators", {}).get("cpu_execution_accelerator", [])
    ):
        raise pb_utils.TritonModelException(f"unknown Execution Accelerator '{accelerator['name']}' is requested")
    providers = [device, "CPUExecutionProvider"] if device != "CPUExecutionProvider" else [device]
    return ort.InferenceSession(path, options, providers=providers)


def device_of(args):
    """The execution provider of an instance: CUDA where the instance is placed on a GPU and ONNX Runtime can use it."""
    if args["model_instance_kind"] != "GPU":
        return "CPUExecutionProvider"
    if "CUDAExecutionProvider" not in ort.get_available_providers():
        pb_utils.Logger.log_warn(
            f"{args['model_instance_name']} is placed on GPU {args['model_instance_device_id']}, but the installed "
            "ONNX Runtime has no CUDA execution provider: it runs on the CPU (say so with instance_group { kind: "
            "KIND_CPU })"
        )
        return "CPUExecutionProvider"
    return ("CUDAExecutionProvider", {"device_id": args["model_instance_device_id"]})


def available_cores():
    """Cores that this process may use: its affinity, and the container's CPU quota where there is one."""
    cores = len(os.sched_getaffinity(0))
    try:
        with open("/sys/fs/cgroup/cpu.max") as quota_file:
            quota, period = quota_file.read().split()
        if quota != "max":
            cores = min(cores, max(1, int(quota) // int(period)))
    except (OSError, ValueError):
        pass  # no cgroup v2: no quota to respect
    return cores


def instance_count(config):
    """Instances of the model on one machine, over all its instance groups (one a GPU for KIND_GPU)."""
    return max(
        1, sum(int(group.get("count", 1)) * max(1, len(group.get("gpus", []))) for group in config["instance_group"])
    )


def parameter(config, name):
    """The value of parameters { key: NAME }, "" when it is not given."""
    return config.get("parameters", {}).get(name, {}).get("string_value", "")


def integer_parameter(config, name):
    """A parameter as a number, 0 when it is not given."""
    value = parameter(config, name)
    try:
        return int(value) if value else 0
    except ValueError:
        raise pb_utils.TritonModelException(f"failed to convert {name} '{value}' to integral number") from None


def boolean_parameter(config, name, default):
    """A parameter as a truth value, spelt as the official backend accepts it."""
    value = parameter(config, name).lower()
    if value in ("", "true", "1", "false", "0"):
        return value in ("true", "1") if value else default
    raise pb_utils.TritonModelException(f"failed to convert {name} '{value}' to boolean")


def complete_batching(config, tensors):
    """max_batch_size and dynamic_batching: a model can be batched when the first axis of every tensor is dynamic."""
    batched = all(dims and dims[0] == -1 for dims in map(dims_of, tensors))
    if not batched:
        if config["max_batch_size"] != 0:
            raise pb_utils.TritonModelException(
                f"autofill failed for model '{config['name']}': model does not support batching while non-zero "
                "max_batch_size is specified"
            )
        return
    if config["max_batch_size"] == 0:
        config["max_batch_size"] = DEFAULT_MAX_BATCH_SIZE
        pb_utils.Logger.log_warn(
            f"autofilled max_batch_size to {DEFAULT_MAX_BATCH_SIZE} for model '{config['name']}' since batching is "
            "supported but no max_batch_size is specified in model configuration"
        )
    if config["max_batch_size"] > 1 and "sequence_batching" not in config:
        config.setdefault("dynamic_batching", {})


def tensor_config(tensor, config):
    """The configuration of one tensor as the model file has it."""
    dims = dims_of(tensor)[1 if config["max_batch_size"] > 0 else 0 :]
    completed = {"name": tensor.name, "data_type": triton_type(tensor, config), "dims": dims}
    if not dims:  # a configuration cannot say "no dimensions": one of size 1, taken away by a reshape
        completed["dims"] = [1]
        if config["max_batch_size"] > 0:
            completed["reshape"] = {"shape": []}
    return completed


def dims_of(tensor):
    """Shape of a tensor in the model file; what is symbolic there (a name, or nothing) is -1 here."""
    return [dim if isinstance(dim, int) else -1 for dim in tensor.shape]


def triton_type(tensor, config):
    """The element type as a configuration names it; refuses what Triton cannot carry (BF16, sequences, maps)."""
    if tensor.type not in ELEMENT_TYPES:
        raise pb_utils.TritonModelException(
            f"unable to load model '{config['name']}', unsupported datatype {tensor.type} of tensor '{tensor.name}'"
        )
    return ELEMENT_TYPES[tensor.type][0]


def check_tensors(config, session):
    """Refuse a configuration whose inputs are not the model's, or whose outputs are not among the model's."""
    inputs = {tensor.name: tensor for tensor in session.get_inputs()}
    outputs = {tensor.name: tensor for tensor in session.get_outputs()}
    overridable = {tensor.name: tensor for tensor in session.get_overridable_initializers()}
    count = sum(not tensor.get("optional") for tensor in config["input"]) + len(config.get("batch_input", []))
    if count != len(inputs):
        raise pb_utils.TritonModelException(
            f"unable to load model '{config['name']}', configuration expects {count} inputs, model provides "
            f"{len(inputs)}"
        )
    for tensor in config["input"]:
        check_tensor(config, "input", tensor, inputs | overridable, exact=False)
    for tensor in config["output"]:
        check_tensor(config, "output", tensor, outputs, exact=True)


def check_tensor(config, kind, tensor, provided, exact):
    """Name, type and dims of one configured tensor against the model's.

    Inputs may be narrower than the model's (64 for a dynamic axis), never wider (-1 for 64); outputs must be `exact`.
    """
    model, name = config["name"], tensor["name"]
    if name not in provided:
        raise pb_utils.TritonModelException(
            f"unexpected inference {kind} '{name}', allowed {kind}s are: {', '.join(sorted(provided))} "
            f"(model '{model}')"
        )
    model_type = triton_type(provided[name], config)
    if tensor["data_type"] != model_type:
        raise pb_utils.TritonModelException(
            f"unable to load model '{model}', configuration expects datatype {tensor['data_type']} for {kind} "
            f"'{name}', model provides {model_type}"
        )
    shape = dims_of(provided[name])
    if tensor.get("allow_ragged_batch"):
        if shape != [-1]:
            raise pb_utils.TritonModelException(
                f"unable to load model '{model}', configuration expects model provides input with shape [-1]  for "
                f"ragged input '{name}', model provides {shape}"
            )
        return
    configured = tensor["reshape"].get("shape", []) if "reshape" in tensor else tensor["dims"]
    dims = [int(dim) for dim in configured]  # 64-bit numbers are strings in JSON
    if not shape:
        if any(dim != 1 for dim in dims):
            raise pb_utils.TritonModelException(
                f"unable to load model '{model}', scalar tensor '{name}', should only provide 1 in the model "
                f"configuration when the model doesn't support batching. Model configuration provided: {dims}."
            )
        return
    complete, prefix = dims, ""
    if config["max_batch_size"] > 0:
        if shape[0] != -1:
            raise pb_utils.TritonModelException(
                f"model '{model}', tensor '{name}': for the model to support batching the shape should have at least 1 "
                f"dimension and the first dimension must be -1; but shape expected by the model is {shape}"
            )
        complete = [-1, *dims]
        prefix = (
            "an initial batch dimension because max_batch_size > 0 followed by the explicit tensor shape, making "
            "complete "
        )
    agree = len(shape) == len(complete) and all(
        ours == theirs or (theirs == -1 and not exact) for ours, theirs in zip(complete, shape, strict=True)
    )
    if not agree:
        raise pb_utils.TritonModelException(
            f"model '{model}', tensor '{name}': the model expects {len(shape)} dimensions (shape {shape}) but the "
            f"model configuration specifies {len(complete)} dimensions ({prefix}shape {complete})"
        )
