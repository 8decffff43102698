"""Which nodes of a float32 graph may compute in half precision, and which stay as they are.

Products of matrices and convolutions are narrow: hardware adds their terms up in float32. What reduces, divides or
takes powers is wide. All else goes with its neighbours, so that few casts are needed.
"""

from __future__ import annotations

from collections.abc import Iterable, Set
from functools import cache

import numpy as np
import onnx_ir as ir

from onnxplain.adapters.gradient.facts import Array
from onnxplain.adapters.gradient.portability import TABLES, data_parameter, schema_of
from onnxplain.adapters.gradient.sweep import reads

HEAVY = frozenset(("Conv", "ConvTranspose", "Einsum", "Gemm", "MatMul"))
# One rounding for each element, which may be followed by others.
LIGHT = frozenset(
    (
        "Abs", "Add", "AveragePool", "Clip", "HardSigmoid", "HardSwish", "LeakyRelu", "Max", "MaxPool", "Min", "Mul",
        "Neg", "PRelu", "Relu", "Sigmoid", "Sign", "Sub", "Sum", "Tanh",
    )
)  # fmt: skip
COMPARING = frozenset(("Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual"))
# Rounded before or after, their outputs are the same.
MOVING = frozenset(
    (
        "Concat", "DepthToSpace", "Expand", "Flatten", "Gather", "Identity", "Pad", "Reshape", "Slice", "SpaceToDepth",
        "Split", "Squeeze", "Tile", "Transpose", "Unsqueeze", "Where",
    )
)  # fmt: skip
# A constant of these is a bound: rounded, it would be another one than that which a mask compares with.
BOUNDED = frozenset(("Clip", "Max", "Min")) | COMPARING
LARGEST = np.finfo(np.float32).max


def narrow_nodes(graph: ir.Graph, half: ir.DataType, wide: Set[ir.Node]) -> set[ir.Node]:
    """The nodes that are to compute in half precision, all values being float32 before. `wide` are not among them.

    1. Heavy nodes are narrow, and so is what makes floats of truth values.
    2. A light node, or one that compares or moves, is narrow if none of its operands comes out of a wide node.
    3. A light node is wide after all if whatever reads it is wide, so that a value is rounded once, as late as can be;
       and one that moves is narrow after all if whatever reads it is narrow.

    A node stays wide where ONNX, CUDA or TensorRT do not have its operator in that type (see `portability`), or where
    it has a constant that would not survive (see `rounded`).
    """
    opset = graph.opset_imports[""]
    outputs = set(graph.outputs)
    main = [node for node in graph if not node.domain and node not in wide and outputs.isdisjoint(node.outputs)]
    kinds = [node for node in main if node.op_type in HEAVY or goes_along(node)]
    able = {node for node in kinds if takes(node.op_type, opset, half) and fits(node, half)}
    narrow: set[ir.Node] = set()
    for node in main:
        follows = node.op_type in HEAVY or all(x.producer() in narrow for x in sources(node))
        if exact(node, half) or (node in able and follows):
            narrow.add(node)
    for node in reversed(main):
        readers = {reader for y in node.outputs for reader, _ in y.uses()}
        moved = node.op_type in MOVING and bool(sources(node))
        if node in narrow and not (node.op_type in HEAVY | COMPARING or moved) and readers.isdisjoint(narrow):
            narrow.remove(node)
        elif node in able and moved and readers and readers <= narrow:
            narrow.add(node)
    return narrow


def goes_along(node: ir.Node) -> bool:
    """Whether a node is of the kind of those around it. Divided by a constant, it is as good as multiplied."""
    divides = node.op_type == "Div" and node.inputs[1] is not None and node.inputs[1].const_value is not None
    return divides or node.op_type in LIGHT | MOVING | COMPARING


def sources(node: ir.Node) -> list[ir.Value]:
    """The inputs of float32 that are no constants."""
    return [x for x in floats(node) if x.const_value is None]


def floats(node: ir.Node) -> list[ir.Value]:
    """The inputs of float32."""
    return [x for x in node.inputs if x is not None and x.dtype == ir.DataType.FLOAT]


def exact(node: ir.Node, half: ir.DataType) -> bool:
    """Whether a node makes float32 of what half precision holds as well."""
    if node.op_type != "Cast" or node.domain or node.outputs[0].dtype != ir.DataType.FLOAT:
        return False
    return node.inputs[0] is not None and node.inputs[0].dtype in (ir.DataType.BOOL, half)


@cache
def takes(op_type: str, opset: int, dtype: ir.DataType) -> bool:
    """Whether ONNX has an operator in a type, and CUDA and TensorRT too, if they have it at all."""
    schema = schema_of(op_type, opset)
    if schema is None or not schema.inputs:
        return False
    name, version = dtype.name.lower(), schema.since_version
    parameter = data_parameter(op_type, version)
    legal = {kind for c in schema.type_constraints if c.type_param_str == parameter for kind in c.allowed_type_strs}
    rows = [row for table in TABLES.values() for row in table.rows.get(op_type, ()) if row.first <= version <= row.last]
    limits = [row.types.get(parameter, row.types.get("data")) for row in rows]
    return f"tensor({name})" in legal and all(limit is None or name in limit for limit in limits)


def fits(node: ir.Node, half: ir.DataType) -> bool:
    """Whether half precision can hold the constants of a node, and its attributes."""
    numbers = [a.as_float() for a in node.attributes.values() if a.type == ir.AttributeType.FLOAT]
    constants = [x.const_value.numpy() for x in floats(node) if x.const_value is not None]
    return all(abs(number) <= float(half.max) for number in numbers) and all(
        survives(array, half, exactly=node.op_type in BOUNDED) for array in constants
    )


def survives(array: Array, half: ir.DataType, *, exactly: bool) -> bool:
    """Whether nothing of a constant overflows, and its largest element is a normal number, with all digits."""
    narrow = rounded(array, half).astype(np.float32)
    if exactly or not array.any():
        return bool(((narrow == array) | (np.abs(array) == LARGEST)).all())
    return bool(float(half.tiny) <= np.abs(narrow).max() <= float(half.max))


def rounded(array: Array, half: ir.DataType) -> Array:
    """A constant in half precision. The lowest float32, which stands for one below all others, becomes its lowest."""
    marked = np.abs(array) == LARGEST
    limited = np.where(marked, np.copysign(np.float32(half.max), array), array) if marked.any() else array
    with np.errstate(over="ignore"):
        return limited.astype(half.numpy())


def ancestors(values: Iterable[ir.Value]) -> set[ir.Node]:
    """The heavy nodes that make values through nothing but light and moving ones, and these."""
    found: set[ir.Node] = set()
    waiting = list(values)
    while waiting:
        node = waiting.pop().producer()
        if node is None or node in found or node.op_type not in HEAVY | MOVING | LIGHT - {"AveragePool", "MaxPool"}:
            continue
        found.add(node)
        if node.op_type not in HEAVY:
            waiting += reads(node)
    return found


def descendants(value: ir.Value, until: ir.Value | None = None) -> set[ir.Node]:
    """The nodes that depend on a value, but for those that do so through another only."""
    found: set[ir.Node] = set()
    waiting = [value]
    while waiting:
        for node, _ in waiting.pop().uses():
            if node not in found:
                found.add(node)
                waiting += [y for y in node.outputs if y is not until]
    return found
