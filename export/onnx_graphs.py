"""PyTorch modules to ONNX files, with a dynamic batch axis.

Opset and IR version are what Triton's shipped ONNX Runtime reads (24.10: opset 21, IR 10), so an exported repository
goes to the official container unchanged.  Tensor names are the interface: encoders follow Hugging Face CLIP.
"""

from __future__ import annotations

import logging
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import numpy as np
import onnx
import onnx.compose
import torch
from torch import Tensor, nn

from models.category_head import CategoryHead, way_asked
from repository.check import check_versions
from training.labels import NeighbourDivergence, NeighbourTable

OPSET = 18
LARGEST_SINGLE_FILE = 2**31 - 2**20  # protobuf's 2 GB, less room for the graph itself
# Two, not one: the exporter takes a batch of one for a constant.
EXAMPLE_ROWS = 2


class ExportError(RuntimeError):
    """A graph that could not be exported, or came out as Triton's ONNX Runtime would not read it."""


@dataclass(frozen=True)
class Names:
    """A further output of a graph, strings: the names of the numbers that another output holds.

    Args:
        output: what the further output is called.
        numbers: the output whose entries are indices into `names`.
        names: of 0, 1, 2, …
    """

    output: str
    numbers: str
    names: Sequence[str]


@dataclass(frozen=True)
class GraphSpec:
    """A served ONNX model: the module, example inputs by name (batch axis first), and the outputs' names.

    `float32_only` is for a model that decides between close figures, or is too small to gain: it stays an ONNX file in
    float32 whatever the target and the precision.
    `dynamic_axes` names further axes of inputs that vary from request to request, {input: {axis: name}}; axes of one
    name are equally long. Their example lengths are two or more, different for different names.
    `choices` are outputs whose arg-max over the last axis is an answer: the parity gate counts how often it changes.
    `names` are looked up within the graph, for callers who want words; PyTorch, which has none, gives the numbers.
    `only_where` is a further input, [B, 1] bool, of the file that is all graphs: in a batch of which no row has it this
    graph is not computed, and its outputs are zeros; callers ignore them in every row that has it not.
    """

    name: str
    module: nn.Module
    inputs: Mapping[str, Tensor]
    outputs: Sequence[str]
    float32_only: bool = False
    dynamic_axes: Mapping[str, Mapping[int, str]] = field(default_factory=dict)
    choices: Sequence[str] = ()
    names: Names | None = None
    only_where: str | None = None


class ServedEncoders(nn.Module):
    """Both encoders of a categorizer as one graph.

    Args:
        image_encoder, text_encoder: give embeddings of one width.
        trim: compute on as many tokens as the longest title of the batch has, not on all there is room for. Such
            lengths are known only when a batch is there, which ONNX Runtime takes and TensorRT does not.
    """

    def __init__(self, image_encoder: nn.Module, text_encoder: nn.Module, *, trim: bool = True) -> None:
        super().__init__()
        self.image_encoder = image_encoder
        self.text_encoder = text_encoder
        self.trim = trim

    def forward(self, pixel_values: Tensor, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
        """image_embeds and text_embeds, [B, D] each, of pixels [B, H, W, 3] uint8 and tokens [B, L] int64."""
        if self.trim:
            input_ids, attention_mask = trimmed(input_ids, attention_mask)
        return self.image_encoder(pixel_values), self.text_encoder(input_ids, attention_mask)


def trimmed(input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
    """Tokens and mask [B, L], padded behind, without what no row of the batch attends to: [B, 2 … L] each."""
    longest = largest(attention_mask.sum(1), attention_mask.shape[1])
    return input_ids[:, :longest], attention_mask[:, :longest]


def largest(lengths: Tensor, limit: int) -> int:
    """The largest of some lengths, at most limit; at least 2, since the exporter takes a length of 1 for a constant."""
    found = cast(int, lengths.max().clamp(min=2).item())  # not int(), which would ask the exporter for its value
    torch._check(found >= 2)  # the exporter has to know within what bounds a slice moves
    torch._check(found <= limit)
    return found


class ServedCategoryHead(nn.Module):
    """A category head with the look-up of its answers: the k most probable classes, how odd and how sure the answer is.

    Args:
        head: gives logits, calibrated for each way to ask.
        soft_labels: the label-neighbour table; its weights are the soft label of every class.
        top_k: classes an answer lists.
    """

    def __init__(self, head: CategoryHead, soft_labels: NeighbourTable, top_k: int) -> None:
        super().__init__()
        self.head = head
        self.top_k = top_k
        self.neighbour_divergence = NeighbourDivergence(soft_labels)

    def forward(
        self, image_embeds: Tensor, text_embeds: Tensor, image_present: Tensor, text_present: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """The answer of each row.

        Args:
            image_embeds, text_embeds: [B, D] float32.
            image_present, text_present: [B, 1] bool.

        Returns:
            category_id [B, k] int32 and probability [B, k] float32, most probable first; neighbour_kl [B, 1] float32,
            KL(soft label of the first category ‖ the distribution as it was trained), which finds more mistakes than
            with the calibrated one: that is sharper than any soft label; class_probability [B, C] float32;
            sure_from [B, 1] float32, the probability from which an answer to such a question needs no person.
        """
        way = way_asked(image_present, text_present)
        logits = self.head(image_embeds, text_embeds, image_present, text_present)
        log_probability = self.head.log_probability(logits, way)
        top, category_id = log_probability.topk(self.top_k, dim=-1)
        as_trained = torch.log_softmax(self.head.class_logits(logits).float(), dim=-1)
        neighbour_kl = self.neighbour_divergence(as_trained, category_id[:, 0])
        sure_from = self.head.sure_from[way].unsqueeze(1)
        return category_id.to(torch.int32), top.exp(), neighbour_kl, log_probability.exp(), sure_from


def export_onnx(graph: GraphSpec, path: Path) -> None:
    """Writes `graph` as one ONNX file.

    Raises:
        ExportError: the module cannot be traced, or the file needs a newer ONNX Runtime than Triton ships.
    """
    batch = torch.export.Dim("batch", min=1)
    names = list(graph.inputs)
    lengths = {name: torch.export.Dim(name, min=1) for axes in graph.dynamic_axes.values() for name in axes.values()}
    shapes = tuple(
        {0: batch} | {axis: lengths[length] for axis, length in graph.dynamic_axes.get(name, {}).items()}
        for name in names
    )
    # The exporter narrates every step at level INFO and warns about its own internals.
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                graph.module.eval(),
                tuple(graph.inputs.values()),
                dynamo=True,
                input_names=names,
                output_names=list(graph.outputs),
                dynamic_shapes=shapes,
                opset_version=OPSET,
                verbose=False,
            )
    except torch.onnx.errors.OnnxExporterError as error:
        raise ExportError(f"{graph.name}: PyTorch could not export the model: {error}") from error
    assert program is not None
    model = program.model_proto
    if graph.names is not None:
        look_up_names(model, graph.names)
    save_onnx(model, path)
    check_versions(path)


def fuse_onnx(parts: Mapping[str, Path], path: Path, only_where: Mapping[str, str] | None = None) -> None:
    """Writes ONNX files as one graph: what one gives and a later one takes, by name, stays inside.

    Args:
        parts: files by the name of their graph, in the order in which they depend on each other.
        path: the file to write.
        only_where: see `GraphSpec`, by the name of the graph.
    """
    models = []
    for name, part in parts.items():
        # Names inside a part could meet those of another.
        model = onnx.compose.add_prefix(onnx.load(part), f"{name}/", rename_inputs=False, rename_outputs=False)
        if only_where and name in only_where:
            compute_only_where(model, only_where[name])
        models.append(model)
    for model in models:
        model.ir_version = max(model.ir_version for model in models)
    fused, *others = models
    for model in others:
        given = {tensor.name for tensor in fused.graph.output}
        inside = [(tensor.name, tensor.name) for tensor in model.graph.input if tensor.name in given]
        fused = onnx.compose.merge_models(fused, model, io_map=inside)
    save_onnx(fused, path)
    check_versions(path)


def compute_only_where(model: onnx.ModelProto, present: str) -> None:
    """Puts a graph into a branch that is taken where some row of a further input [B, 1] bool is true.

    The other branch gives zeros: an image tower costs nothing in a search by text.
    """
    graph, name = model.graph, f"{model.graph.name}/{present}"
    computed = onnx.helper.make_graph(
        list(graph.node), f"{name}/then", [], list(graph.output), list(graph.initializer), value_info=graph.value_info
    )
    zeros, nodes, outputs = [], [], []
    for output in graph.output:
        width = output.type.tensor_type.shape.dim[1].dim_value
        shape, zero = f"{name}/{output.name}/shape", f"{name}/{output.name}/zeros"
        wide = onnx.numpy_helper.from_array(np.array([width], np.int64), f"{name}/{output.name}/width")
        zeros.append(wide)
        nodes += [
            onnx.helper.make_node("Concat", [f"{name}/rows", wide.name], [shape], axis=0),
            onnx.helper.make_node("ConstantOfShape", [shape], [zero]),
        ]
        other = onnx.ValueInfoProto()
        other.CopyFrom(output)
        other.name = zero
        outputs.append(other)
    absent = onnx.helper.make_graph(nodes, f"{name}/else", [], outputs, zeros)
    helper = onnx.helper.make_node
    around = [
        helper("Shape", [present], [f"{name}/rows"], start=0, end=1),
        helper("Cast", [present], [f"{name}/counted"], to=onnx.TensorProto.INT32),
        helper("ReduceMax", [f"{name}/counted"], [f"{name}/most"], keepdims=0),
        helper("Cast", [f"{name}/most"], [f"{name}/any"], to=onnx.TensorProto.BOOL),
        helper(
            "If",
            [f"{name}/any"],
            [output.name for output in graph.output],
            then_branch=_renamed_outputs(computed, f"{name}/"),
            else_branch=absent,
        ),
    ]
    batch = graph.input[0].type.tensor_type.shape.dim[0].dim_param
    for inside in ("node", "initializer", "value_info"):
        graph.ClearField(inside)
    graph.node.extend(around)
    graph.input.append(onnx.helper.make_tensor_value_info(present, onnx.TensorProto.BOOL, [batch, 1]))


def _renamed_outputs(branch: onnx.GraphProto, prefix: str) -> onnx.GraphProto:
    """A branch's outputs under names of its own: those of the node around it belong to the graph outside."""
    renamed = {output.name: f"{prefix}{output.name}" for output in branch.output}
    for node in branch.node:
        for names in (node.input, node.output):
            names[:] = [renamed.get(name, name) for name in names]
    for output in branch.output:
        output.name = renamed[output.name]
    return branch


def look_up_names(model: onnx.ModelProto, names: Names) -> None:
    """Adds the output `names.output` to a graph: a Gather from a table of strings."""
    (numbers,) = (output for output in model.graph.output if output.name == names.numbers)
    table = f"{names.output}_names"
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array(names.names, np.object_), table))
    model.graph.node.append(onnx.helper.make_node("Gather", [table, names.numbers], [names.output], name=names.output))
    output = model.graph.output.add(name=names.output)
    output.type.tensor_type.CopyFrom(numbers.type.tensor_type)
    output.type.tensor_type.elem_type = onnx.TensorProto.STRING


def save_onnx(model: onnx.ModelProto, path: Path) -> None:
    """Writes a graph as one file; weights of 2 GB and more, which protobuf cannot hold, beside it in `<path>.data`."""
    data = path.with_name(f"{path.name}.data")
    data.unlink(missing_ok=True)  # onnx appends to it
    weights = sum(len(tensor.raw_data) for tensor in model.graph.initializer)
    onnx.save(model, path, save_as_external_data=weights > LARGEST_SINGLE_FILE, location=data.name)


def file_bytes(path: Path) -> int:
    """Size of an ONNX file with the weights beside it."""
    return sum(file.stat().st_size for file in (path, path.with_name(f"{path.name}.data")) if file.is_file())


def operator_counts(path: Path) -> dict[str, int]:
    """How often each operator occurs in an ONNX file, the most frequent first."""
    graph = onnx.load(path, load_external_data=False).graph
    return dict(Counter(node.op_type for node in graph.node).most_common())
