"""Operators that ONNX defines by a function: their body as an expansion (see `registry`)."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from onnxplain.adapters.gradient.expr import Emit, Expr, UnsupportedCase
from onnxplain.adapters.gradient.facts import Array


@cache
def has_body(op_type: str, opset: int) -> bool:
    """Whether ONNX says what the operator does in terms of others."""
    try:
        schema: Any = onnx.defs.get_schema(op_type, opset, "")  # onnx's own stubs lack half of what it has
    except onnx.defs.SchemaError:
        return False
    return bool(schema.has_function or schema.has_context_dependent_function)


def emit_body(node: ir.Node, xs: list[Expr | None], emit: Emit) -> tuple[Expr | None, ...]:
    """Compute the outputs of a node again, as its function body says, from `xs` in place of its inputs."""
    function = function_body(node, xs, emit.opset)
    given = attributes_of(node, emit.opset)
    values: dict[str, Expr | None] = dict.fromkeys(function.input)
    values |= dict(zip(function.input, xs, strict=False))
    values[""] = None
    for inner in function.node:
        attributes = resolved(inner, given)
        if inner.domain or any(isinstance(value, ir.Graph) for value in attributes.values()):
            raise UnsupportedCase(f"its function body holds {inner.domain or 'a branch or a loop'}")
        inputs = [values[name] for name in inner.input]
        if inner.op_type == "Constant":
            values[inner.output[0]] = emit.constant(constant_of(attributes))
        elif inner.op_type == "CastLike" and inputs[0] is not None and inputs[1] is not None:
            (values[inner.output[0]],) = emit.node(
                "Cast", inputs[:1], {"to": int(inputs[1].value.dtype or ir.DataType.FLOAT)}, 1
            )
        else:
            outputs = emit.node(inner.op_type, inputs, attributes, len(inner.output))
            values |= dict(zip(inner.output, outputs, strict=True))
    return tuple(values[name] for name in function.output[: len(node.outputs)])


def function_body(node: ir.Node, xs: list[Expr | None], opset: int) -> onnx.FunctionProto:
    """The newest body up to the opset; some depend on the node's attributes and on the types of its inputs."""
    schema: Any = onnx.defs.get_schema(node.op_type, opset, "")
    function = onnx.FunctionProto()
    if versions := [v for v in schema.function_opset_versions if v <= opset]:
        function.ParseFromString(schema.get_function_with_opset_version(max(versions)))
        return function
    types = [onnx.TypeProto() if x is None else ir.to_proto(x.value).type for x in xs]
    version = max(v for v in schema.context_dependent_function_opset_versions if v <= opset)
    function.ParseFromString(
        schema.get_context_dependent_function_with_opset_version(
            version, ir.to_proto(node).SerializeToString(), [kind.SerializeToString() for kind in types]
        )
    )
    return function


def attributes_of(node: ir.Node, opset: int) -> dict[str, Any]:
    """The attributes of a node, with the schema's defaults for those that it leaves out."""
    schema = onnx.defs.get_schema(node.op_type, opset, "")
    defaults = {name: attribute.default_value for name, attribute in schema.attributes.items()}
    found = {name: ir.serde.deserialize_attribute(value).value for name, value in defaults.items() if value.type}
    return found | {name: attribute.value for name, attribute in node.attributes.items()}


def resolved(inner: onnx.NodeProto, given: Mapping[str, Any]) -> dict[str, Any]:
    """The attributes of a node of the body, with references to those of the operator itself filled in."""
    attributes = {}
    for proto in inner.attribute:
        if not proto.ref_attr_name:
            attributes[proto.name] = ir.serde.deserialize_attribute(proto).value
        elif proto.ref_attr_name in given:
            attributes[proto.name] = given[proto.ref_attr_name]
    return attributes


def constant_of(attributes: Mapping[str, Any]) -> Array:
    """The value of a Constant node."""
    ((name, value),) = attributes.items()
    if name == "value":
        return np.asarray(value.numpy())
    return np.asarray(value, np.float32 if name.startswith("value_float") else np.int64)
