"""Models of half precision; and as hardware runs them, where there is none: in float32, each output being rounded.

ONNX Runtime's CPU runs float16 nodes in float32 and rounds only what leaves a chain of them, and it has few kernels
for bfloat16. The twin says the roundings: Cast there and back behind each node.
"""

from __future__ import annotations

from collections.abc import Iterator, Set
from contextlib import contextmanager

import onnx
import onnx_ir as ir
from onnx import TensorProto, helper, numpy_helper

from onnxplain.adapters.gradient import precision
from onnxplain.adapters.gradient.narrow import descendants
from onnxplain.adapters.gradient.objective import COTANGENT

FLOAT, HALVES = TensorProto.FLOAT, (TensorProto.FLOAT16, TensorProto.BFLOAT16)


def rounding_twin(model: onnx.ModelProto) -> onnx.ModelProto:
    """A model of float32 that gives what one with values of half precision gives, if products add up in float32."""
    out = onnx.ModelProto()
    out.CopyFrom(model)
    graph = out.graph
    types = {v.name: v.type.tensor_type.elem_type for v in (*graph.value_info, *graph.input, *graph.output)}
    for tensor in graph.initializer:
        types[tensor.name] = tensor.data_type
        if tensor.data_type in HALVES:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype("float32"), tensor.name))
    nodes = []
    for original in model.graph.node:
        node = onnx.NodeProto()
        node.CopyFrom(original)
        halves = [name for name in node.output if types.get(name) in HALVES]
        node.output[:] = [f"{name}/exact" if name in halves else name for name in node.output]
        for attribute in node.attribute:
            if node.op_type == "Cast" and attribute.name == "to" and attribute.i in HALVES:
                attribute.i = FLOAT
        nodes.append(node)
        for name in halves:
            nodes.append(helper.make_node("Cast", [f"{name}/exact"], [f"{name}/half"], to=types[name]))
            nodes.append(helper.make_node("Cast", [f"{name}/half"], [name], to=FLOAT))
    del graph.node[:], graph.value_info[:]
    graph.node.extend(nodes)
    return out


@contextmanager
def way_back_in_float32() -> Iterator[None]:
    """Inside, `in_precision` changes the forward half only: from the same activations, the gradient without kinks."""
    choose = precision.narrow_nodes

    def forward_only(graph: ir.Graph, half: ir.DataType, wide: Set[ir.Node]) -> set[ir.Node]:
        (c,) = (y for node in graph for y in node.outputs if y.name == COTANGENT)
        return choose(graph, half, wide) - descendants(c)

    precision.narrow_nodes = forward_only
    try:
        yield
    finally:
        precision.narrow_nodes = choose


def in_dtype(proto: onnx.ModelProto, kind: int) -> onnx.ModelProto:
    """The same graph with every float32 tensor in another precision. (bfloat16 convolutions came with opset 22.)"""
    out = onnx.version_converter.convert_version(proto, 22)
    dtype = onnx.helper.tensor_dtype_to_np_dtype(kind)
    constants = [a.t for node in out.graph.node for a in node.attribute if a.name == "value"]
    for tensor in (*out.graph.initializer, *constants):
        if tensor.data_type == TensorProto.FLOAT:
            values = onnx.numpy_helper.to_array(tensor).astype(dtype)
            tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
    for value in (*out.graph.input, *out.graph.output):
        if value.type.tensor_type.elem_type == TensorProto.FLOAT:
            value.type.tensor_type.elem_type = kind
    for node in out.graph.node:
        for attribute in node.attribute:
            if node.op_type == "Cast" and attribute.name == "to" and attribute.i == TensorProto.FLOAT:
                attribute.i = kind
    del out.graph.value_info[:]
    return out
