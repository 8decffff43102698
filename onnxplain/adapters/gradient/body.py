"""Operators that ONNX defines by a function: their body as an expansion (see `registry`)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from typing import Any, TypeAlias

import numpy as np
import onnx
import onnx_ir as ir

from onnxplain.adapters.gradient.control import MOST_NODES
from onnxplain.adapters.gradient.expr import Emit, Expr, UnsupportedCase, concat, op, ops
from onnxplain.adapters.gradient.facts import Array
from onnxplain.adapters.gradient.registry import ALLOWED

Values: TypeAlias = "dict[str, Expr | None]"  # of a body, by name


@cache
def has_body(domain: str, op_type: str, opset: int) -> bool:
    """Whether ONNX says what the operator does in terms of others."""
    try:
        schema: Any = onnx.defs.get_schema(op_type, opset, domain)  # onnx's own stubs lack half of what it has
    except onnx.defs.SchemaError:
        return False
    return bool(schema.has_function or schema.has_context_dependent_function)


def emit_body(node: ir.Node, xs: list[Expr | None], emit: Emit) -> tuple[Expr | None, ...]:
    """Compute the outputs of a node again, as its function body says, from `xs` in place of its inputs.

    None for an output that the body leaves out, because the node does.
    """
    return emit_function(ir.to_proto(node), xs, emit)


def emit_function(node: onnx.NodeProto, xs: list[Expr | None], emit: Emit) -> tuple[Expr | None, ...]:
    opset = emit.graph.opset_imports[node.domain]
    function = function_body(node, xs, opset)
    values: Values = {"": None, **dict.fromkeys(function.input), **dict(zip(function.input, xs, strict=False))}
    run(function.node, values, attributes_of(node, opset), emit)
    return tuple(values.get(name) for name in function.output[: len(node.output)])


def run(nodes: Iterable[onnx.NodeProto], values: Values, given: Mapping[str, onnx.AttributeProto], emit: Emit) -> None:
    """Emit nodes of a body one after the other; `values` has what they read, and gets what they compute."""
    for template in nodes:
        inner = filled(template, given)
        inputs = [values[name] for name in inner.input]
        if inner.op_type == "Scan":
            outputs = scan(inner, inputs, values, given, emit)
        else:
            outputs = emit_node(inner, inputs, emit)
        values |= dict(zip(inner.output, outputs, strict=True))


def emit_node(inner: onnx.NodeProto, inputs: list[Expr | None], emit: Emit) -> Sequence[Expr | None]:
    attributes = {proto.name: ir.serde.deserialize_attribute(proto).value for proto in inner.attribute}
    if inner.domain or any(isinstance(value, ir.Graph) for value in attributes.values()):
        raise UnsupportedCase(f"its function body holds {inner.domain or 'a branch or a loop'}")
    if inner.op_type == "Constant":
        return [emit.constant(constant_of(attributes))]
    if inner.op_type == "CastLike" and inputs[0] is not None and inputs[1] is not None:
        return emit.node("Cast", inputs[:1], {"to": int(inputs[1].value.dtype or ir.DataType.FLOAT)}, 1)
    if inner.op_type == "ConstantOfShape" and inputs[0] is not None:
        filling = constant_of(attributes) if attributes else np.zeros(1, np.float32)
        return [op("Expand", emit.constant(filling), inputs[0])]
    outputs = emit.node(inner.op_type, inputs, attributes, len(inner.output))
    if inner.op_type in ALLOWED or all(y.value.const_value is not None for y in outputs):
        return outputs
    if has_body("", inner.op_type, emit.opset):  # the node itself is not read by anybody, and so goes in the end
        return emit_function(inner, inputs, emit)
    raise UnsupportedCase(f"its function body holds {inner.op_type}, which not every runtime has")


def scan(
    inner: onnx.NodeProto,
    inputs: Sequence[Expr | None],
    values: Values,
    given: Mapping[str, onnx.AttributeProto],
    emit: Emit,
) -> Sequence[Expr | None]:
    """Scan, written out: state, slices of the inputs -> state, slices of the outputs; a turn for each slice."""
    attributes = {proto.name: proto for proto in inner.attribute}
    if attributes.keys() != {"body", "num_scan_inputs"}:
        raise UnsupportedCase("its function body scans along another axis than the first, or backwards")
    body, sequences = attributes["body"].g, [x for x in inputs[-attributes["num_scan_inputs"].i :] if x is not None]
    state = list(inputs[: -len(sequences)])
    turns = sequences[0].size(0)
    if turns * len(body.node) > MOST_NODES:
        raise UnsupportedCase(f"{turns} turns of {len(body.node)} nodes: more than {MOST_NODES}")
    columns = [ops("Split", x, [1] * turns, outputs=turns, axis=0) for x in sequences]
    collected = []
    for row in zip(*columns, strict=True):
        arguments = [*state, *(op("Squeeze", x, [0]) for x in row)]
        turn = {**values, **dict(zip((formal.name for formal in body.input), arguments, strict=True))}
        run(body.node, turn, given, emit)
        results = [turn[y.name] for y in body.output]
        state, slices = results[: len(state)], results[len(state) :]
        collected.append([op("Unsqueeze", x, [0]) for x in slices])
    return [*state, *(concat(column, 0) for column in zip(*collected, strict=True))]


def function_body(node: onnx.NodeProto, xs: list[Expr | None], opset: int) -> onnx.FunctionProto:
    """The newest body up to the opset; some depend on the node's attributes and on the types of its inputs."""
    schema: Any = onnx.defs.get_schema(node.op_type, opset, node.domain)
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
    schema = onnx.defs.get_schema(node.op_type, opset, node.domain)
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
