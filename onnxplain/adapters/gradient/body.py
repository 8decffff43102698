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
from onnxplain.adapters.gradient.registry import ALLOWED


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
    return emit_function(ir.to_proto(node), xs, emit)


def emit_function(node: onnx.NodeProto, xs: list[Expr | None], emit: Emit) -> tuple[Expr | None, ...]:
    function = function_body(node, xs, emit.opset)
    given = attributes_of(node, emit.opset)
    values: dict[str, Expr | None] = dict.fromkeys(function.input)
    values |= dict(zip(function.input, xs, strict=False))
    values[""] = None
    for template in function.node:
        inner = filled(template, given)
        attributes = {proto.name: ir.serde.deserialize_attribute(proto).value for proto in inner.attribute}
        if inner.domain or any(isinstance(value, ir.Graph) for value in attributes.values()):
            raise UnsupportedCase(f"its function body holds {inner.domain or 'a branch or a loop'}")
        inputs = [values[name] for name in inner.input]
        if inner.op_type == "Constant":
            values[inner.output[0]] = emit.constant(constant_of(attributes))
        elif inner.op_type == "CastLike" and inputs[0] is not None and inputs[1] is not None:
            (values[inner.output[0]],) = emit.node(
                "Cast", inputs[:1], {"to": int(inputs[1].value.dtype or ir.DataType.FLOAT)}, 1
            )
        elif inner.op_type not in ALLOWED and has_body(inner.op_type, emit.opset):
            values |= dict(zip(inner.output, emit_function(inner, inputs, emit), strict=True))
        else:
            values |= dict(
                zip(inner.output, emit.node(inner.op_type, inputs, attributes, len(inner.output)), strict=True)
            )
    return tuple(values[name] for name in function.output[: len(node.output)])


def function_body(node: onnx.NodeProto, xs: list[Expr | None], opset: int) -> onnx.FunctionProto:
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
            version, node.SerializeToString(), [kind.SerializeToString() for kind in types]
        )
    )
    return function


def attributes_of(node: onnx.NodeProto, opset: int) -> dict[str, onnx.AttributeProto]:
    """The attributes of a node, with the schema's defaults for those that it leaves out."""
    schema = onnx.defs.get_schema(node.op_type, opset, "")
    defaults = {name: attribute.default_value for name, attribute in schema.attributes.items()}
    return {name: proto for name, proto in defaults.items() if proto.type} | {p.name: p for p in node.attribute}


def filled(template: onnx.NodeProto, given: Mapping[str, onnx.AttributeProto]) -> onnx.NodeProto:
    """A node of the body, with references to attributes of the operator itself filled in."""
    inner = onnx.NodeProto()
    inner.CopyFrom(template)
    del inner.attribute[:]
    for proto in template.attribute:
        if not proto.ref_attr_name:
            inner.attribute.append(proto)
        elif proto.ref_attr_name in given:
            inner.attribute.add().CopyFrom(given[proto.ref_attr_name])
            inner.attribute[-1].name = proto.name
    return inner


def constant_of(attributes: Mapping[str, Any]) -> Array:
    """The value of a Constant node."""
    ((name, value),) = attributes.items()
    if name == "value":
        return np.asarray(value.numpy())
    return np.asarray(value, np.float32 if name.startswith("value_float") else np.int64)
