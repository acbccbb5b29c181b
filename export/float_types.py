"""A float32 ONNX graph rewritten to compute in float16 or bfloat16, with the nodes that need float32 left in it.

Inputs and outputs of the graph keep their types, so no configuration and no ensemble changes.  What a node may be
given is read from its ONNX schema, not from a list of operators.  Constants beyond float16's range are clamped to it
(attention masks are -3.4e38, epsilons 1e-12), as ONNX Runtime's own converter does.
ONNX Runtime on a CPU has no bfloat16 kernels, and computes float16 in float32 without rounding in between;
`rounded=True` writes the same graph in float32 with every value rounded where the low type would round it, which is
what a GPU computes with float32 accumulators.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import ml_dtypes
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from .onnx_graphs import ExportError

FLOAT16, BFLOAT16 = TensorProto.FLOAT16, TensorProto.BFLOAT16
_NUMPY_TYPES: dict[int, np.dtype] = {FLOAT16: np.dtype(np.float16), BFLOAT16: np.dtype(ml_dtypes.bfloat16)}
_TYPE_NAMES: dict[int, str] = {FLOAT16: "tensor(float16)", BFLOAT16: "tensor(bfloat16)"}
_GRAPHS = (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS)


def lower_floats(
    model: onnx.ModelProto, element_type: int, keep: Collection[str], *, rounded: bool = False
) -> onnx.ModelProto:
    """The graph in another float type.

    Args:
        model: a float32 graph without control flow, every node named.
        element_type: FLOAT16 or BFLOAT16.
        keep: names of the nodes that stay in float32.
        rounded: compute in float32 and round, instead of computing in `element_type`.

    Returns:
        A new model; `model` is left as it is.

    Raises:
        ExportError: the graph has control flow, or a tensor whose type cannot be inferred.
    """
    return _Lowering(model, element_type, rounded).rewrite(frozenset(keep))


def lowerable_nodes(model: onnx.ModelProto, element_type: int) -> list[onnx.NodeProto]:
    """The nodes that `lower_floats` would change when nothing is kept, in the graph's order."""
    lowering = _Lowering(model, element_type, rounded=False)
    return [node for node in model.graph.node if lowering.can_lower(node)]


class _Lowering:
    """One rewriting; every float32 tensor `x` may get a second form `x.low`."""

    def __init__(self, model: onnx.ModelProto, element_type: int, rounded: bool) -> None:
        self.model = onnx.shape_inference.infer_shapes(model)
        self.element_type = element_type
        self.rounded = rounded
        self.opset = max(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))
        graph = self.model.graph
        self.initializers = {tensor.name: tensor for tensor in graph.initializer}
        self.types = {name: tensor.data_type for name, tensor in self.initializers.items()}
        for value in [*graph.input, *graph.value_info, *graph.output]:
            self.types[value.name] = value.type.tensor_type.elem_type
        for node in graph.node:
            if any(
                attribute.type in (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS)
                for attribute in node.attribute
            ):
                raise ExportError(f"node {node.name} ({node.op_type}) has a graph inside: it cannot be lowered")
            for name in node.output:
                if name and name not in self.types:
                    raise ExportError(f"the element type of {name}, from node {node.name}, cannot be inferred")
        self.nodes: list[onnx.NodeProto] = []
        self.low: set[str] = set()  # tensors whose low form exists
        self.float32: set[str] = set()  # tensors whose float32 form exists

    def rewrite(self, keep: frozenset[str]) -> onnx.ModelProto:
        graph = self.model.graph
        self.float32 = {value.name for value in graph.input} | set(self.initializers)
        for node in graph.node:
            self._add(node, lowered=node.name not in keep and self.can_lower(node))
        for value in graph.output:
            self._in_float32(value.name)
        result = onnx.ModelProto()
        result.CopyFrom(self.model)
        del result.graph.node[:], result.graph.value_info[:], result.graph.initializer[:]
        result.graph.node.extend(self.nodes)
        used = {name for node in self.nodes for name in node.input}
        for name, tensor in self.initializers.items():
            if name in used:
                result.graph.initializer.append(tensor)
            if _low(name) in used:
                result.graph.initializer.append(self._lowered_initializer(tensor))
        onnx.checker.check_model(result)
        return result

    def can_lower(self, node: onnx.NodeProto) -> bool:
        """Whether the node computes in float32 and would compute in the low type instead, given low inputs."""
        if node.domain not in ("", "ai.onnx"):
            return False
        outputs = [index for index, name in enumerate(node.output) if self._is_float32(name)]
        if node.op_type == "Cast":
            return bool(outputs)
        parameters = [self._type_parameter(node, index) for index in range(len(node.input))]
        lowered = {parameter for name, parameter in zip(node.input, parameters, strict=True) if self._is_float32(name)}
        lowered.discard(None)
        schema = onnx.defs.get_schema(node.op_type, self.opset)
        results = [
            _formal(schema.outputs, index).type_str for index, name in enumerate(node.output) if self._is_float32(name)
        ]
        return bool(lowered) and all(result in lowered for result in results)

    def _add(self, node: onnx.NodeProto, lowered: bool) -> None:
        new = onnx.NodeProto()
        new.CopyFrom(node)
        for index, name in enumerate(node.input):
            if self._is_float32(name):
                low = lowered and node.op_type != "Cast" and self._type_parameter(node, index) is not None
                new.input[index] = self._in_low(name) if low else self._in_float32(name)
        outputs = [index for index, name in enumerate(node.output) if self._is_float32(name)]
        if node.op_type == "Cast" and lowered and not self.rounded:
            new.attribute[0].i = self.element_type
        for index in outputs:
            name = node.output[index]
            if not lowered:
                self.float32.add(name)
            elif self.rounded:
                new.output[index] = f"{name}.exact"
            else:
                new.output[index] = _low(name)
                self.low.add(name)
        self.nodes.append(new)
        if lowered and self.rounded:
            for index in outputs:
                self._round(new.output[index], _low(node.output[index]))
                self.low.add(node.output[index])

    def _in_low(self, name: str) -> str:
        if name not in self.low:
            self.low.add(name)
            if name not in self.initializers:
                if self.rounded:
                    self._round(name, _low(name))
                else:
                    self._cast(name, _low(name), self.element_type)
        return _low(name)

    def _in_float32(self, name: str) -> str:
        if name not in self.float32:
            self.float32.add(name)
            self._cast(_low(name), name, TensorProto.FLOAT)
        return name

    def _round(self, source: str, target: str) -> None:
        self._cast(source, f"{target}.bits", self.element_type)
        self._cast(f"{target}.bits", target, TensorProto.FLOAT)

    def _cast(self, source: str, target: str, element_type: int) -> None:
        self.nodes.append(helper.make_node("Cast", [source], [target], name=f"cast.{target}", to=element_type))

    def _lowered_initializer(self, tensor: TensorProto) -> TensorProto:
        values = numpy_helper.to_array(tensor)
        dtype = _NUMPY_TYPES[self.element_type]
        limits = ml_dtypes.finfo(dtype)
        clamped = np.clip(values, float(limits.min), float(limits.max))
        smallest = float(limits.smallest_subnormal)
        clamped = np.where((values != 0) & (np.abs(values) < smallest), np.copysign(smallest, values), clamped)
        low = clamped.astype(dtype)
        return numpy_helper.from_array(low.astype(np.float32) if self.rounded else low, _low(tensor.name))

    def _type_parameter(self, node: onnx.NodeProto, index: int) -> str | None:
        """The schema's type variable of an input when it may be the low type, None when it may not."""
        schema = onnx.defs.get_schema(node.op_type, self.opset)
        formal = _formal(schema.inputs, index)
        for constraint in schema.type_constraints:
            if constraint.type_param_str == formal.type_str:
                allowed = _TYPE_NAMES[self.element_type] in constraint.allowed_type_strs
                return str(formal.type_str) if allowed else None
        return None

    def _is_float32(self, name: str) -> bool:
        return bool(name) and self.types[name] == TensorProto.FLOAT


def _low(name: str) -> str:
    return f"{name}.low"


def _formal(parameters: Sequence[onnx.defs.OpSchema.FormalParameter], index: int) -> onnx.defs.OpSchema.FormalParameter:
    return parameters[min(index, len(parameters) - 1)]  # the last one may be variadic
