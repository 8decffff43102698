"""A batch that an exporter has fixed, made free where every sample provably stays by itself.

Invariant of each value that depends on the image: along axis 0 lie the samples one after the other, all with the same
number of rows, and the rows of a sample depend on that sample alone. The image has one row a sample. `rows_of` says,
operator by operator, whether a node keeps that up and how many rows its output has. Whatever it does not know breaks
it, and then the batch stays as it is. Constants that spell the batch out (the shape of a Reshape, a class token that is
concatenated) are rewritten only once the whole way from the image to the logits is known to be sound.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxplain.adapters.gradient.control import subgraphs
from onnxplain.adapters.gradient.expr import Emit
from onnxplain.adapters.gradient.facts import Array
from onnxplain.adapters.gradient.prepare import infer_shapes
from onnxplain.adapters.gradient.sweep import kind, label, reads

BATCH = "N"

SAMPLE_WISE = frozenset(  # every row of the first input by itself, with parameters that are the same for all
    (
        "Abs", "Acos", "Acosh", "Asin", "Asinh", "Atan", "Atanh", "AveragePool", "BatchNormalization", "Cast", "Ceil",
        "Celu", "Clip", "Conv", "ConvTranspose", "Cos", "Cosh", "DepthToSpace", "Dropout", "Elu", "Erf", "Exp", "Floor",
        "Gelu", "GlobalAveragePool", "GlobalLpPool", "GlobalMaxPool", "GroupNormalization", "HardSigmoid", "HardSwish",
        "Identity", "InstanceNormalization", "IsInf", "IsNaN", "LRN", "LeakyRelu", "Log", "LpPool", "MaxPool", "Mish",
        "Neg", "Not", "Reciprocal", "Relu", "Round", "Selu", "Shrink", "Sigmoid", "Sign", "Sin", "Sinh", "Softplus",
        "Softsign", "SpaceToDepth", "Sqrt", "Swish", "Tan", "Tanh", "ThresholdedRelu",
    )
)  # fmt: skip
ELEMENTWISE = frozenset(  # with broadcasting
    (
        "Add", "And", "Div", "Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Max", "Mean", "Min", "Mod",
        "Mul", "Or", "PRelu", "Pow", "Sub", "Sum", "Where", "Xor",
    )
)  # fmt: skip
ALONG = {  # one axis, or all from it on; the attribute's default
    "ArgMax": 0, "ArgMin": 0, "Gather": 0, "Hardmax": -1, "LayerNormalization": -1, "LogSoftmax": -1,
    "LpNormalization": -1, "RMSNormalization": -1, "Softmax": -1, "Split": 0, "TopK": -1,
}  # fmt: skip
SEVERAL = ELEMENTWISE | {"Concat", "Einsum", "MatMul"}  # more than the first operand may depend on the image

Edit = Callable[[Emit], None]


class Mixed(Exception):
    """Why samples do not demonstrably stay apart at a node."""


def free_batch(model: ir.Model, x: ir.Value, logits: ir.Value) -> str | None:
    """Make the fixed batch of image x symbolic, if samples stay apart on all ways to the logits; else say why not."""
    size = int(x.shape[0]) if x.shape is not None else 0  # type: ignore[arg-type]
    rows: dict[ir.Value, int] = {x: 1}
    edits: list[Edit] = []
    for node in model.graph:
        if not any(value in rows for value in reads(node)):
            continue
        try:
            count = rows_of(node, rows, size, edits)
            for y in node.outputs:
                if y.uses() or y is logits:
                    need(dims(y)[0] == count * size, f"axis 0 of its output {y.name} is {dims(y)[0]} long")
                rows[y] = count
        except Mixed as why:
            return f"{kind(node)} ({label(node)}): {why}"
    if rows.get(logits) != 1:
        return f"the logits {logits.name}, which have {rows.get(logits, 0)} rows for each image"
    emit = Emit(model.graph)
    for edit in edits:
        edit(emit)
    set_input_shape(model, x, [BATCH, *dims(x)[1:]])
    return None


def set_input_shape(model: ir.Model, x: ir.Value, shape: Sequence[int | str]) -> None:
    """Give the image another shape, and infer all others anew."""
    for y in (*(y for node in model.graph for y in node.outputs), *model.graph.outputs):
        y.shape = None
    x.shape = ir.Shape(shape)
    infer_shapes(model)


def rows_of(node: ir.Node, rows: dict[ir.Value, int], size: int, edits: list[Edit]) -> int:
    """The rows that each sample has in the outputs of a node. Raises `Mixed` where samples may meet."""
    need(not node.domain and not list(subgraphs(node)), "not known to keep samples apart")
    name, inputs = node.op_type, node.inputs
    ours = [i for i, value in enumerate(inputs) if value in rows]  # the operands that depend on the image
    need(ours == [0] or name in SEVERAL, "more depends on the image than its first input")
    counts = {count for value, count in rows.items() if value in inputs}
    need(len(counts) == 1, "its operands have different numbers of rows for a sample")
    (count,) = counts
    rank = len(dims(inputs[0])) if name not in ELEMENTWISE else max(len(dims(v)) for v in inputs if v is not None)
    if name in SAMPLE_WISE:
        need(not attribute(node, "training_mode", 0), "it is in training mode")
    elif name in ELEMENTWISE:
        for i, value in enumerate(inputs):
            if i in ours:
                need(len(dims(value)) == rank, "it broadcasts the axis of the samples to another one")
            elif value is not None:
                same_for_all(value, rank)
    elif name in ALONG:
        need(attribute(node, "axis", ALONG[name]) % rank != 0, "it works along the axis of the samples")
        if name.endswith("Normalization"):
            for value in inputs[1:]:  # scale and bias, broadcast
                same_for_all(value, rank)
    elif name.startswith("Reduce"):
        axes = known(node, 1)
        need(axes.size > 0 and not (axes % rank == 0).any(), "it reduces the axis of the samples")
    elif name == "Transpose":
        need(attribute(node, "perm", [rank - 1])[0] == 0, "it moves the axis of the samples")
    elif name == "Flatten":
        need(attribute(node, "axis", 1) % (rank + 1) != 0, "it flattens the axis of the samples")
        return dims(node.outputs[0])[0] // size
    elif name == "Squeeze":
        need(not (known(node, 1) % rank == 0).any(), "it removes the axis of the samples")
    elif name == "Unsqueeze":
        axes = known(node, 1)
        need(not (axes % (rank + axes.size) == 0).any(), "it puts an axis before that of the samples")
    elif name == "Reshape":
        return reshaped(node, count, size, edits)
    elif name == "Expand":
        target = known(node, 1)
        need(target.size <= rank, "it puts an axis before that of the samples")
        if target.size == rank and target[0] != 1:
            need(target[0] == count * size, "it repeats samples")
            replace(edits, node, 1, [1, *target[1:]])
    elif name == "Tile":
        need(known(node, 1)[0] == 1, "it repeats samples")
    elif name == "Slice":
        starts, ends = known(node, 1), known(node, 2)
        axes, steps = known(node, 3, np.arange(starts.size)) % rank, known(node, 4, np.ones(starts.size))
        entire = (starts == 0) & (ends >= 2**31 - 1) & (steps == 1)
        need(entire[axes == 0].all(), "it takes some of the samples")
    elif name == "Pad":
        widths, axes = known(node, 1).reshape(2, -1), known(node, 3, np.arange(rank)) % rank
        need(not widths[:, axes == 0].any(), "it adds samples")
    elif name == "Resize":
        resized(node, rank, edits)
    elif name == "Concat":
        need(attribute(node, "axis", 0) % rank != 0, "it joins along the axis of the samples")
        for i, value in enumerate(inputs):
            if i not in ours:
                need(dims(value)[0] == count * size == 1, f"{value and value.name} may differ from sample to sample")
                repeat(edits, node, i, inputs[ours[0]])
    elif name == "Gemm":
        need(not attribute(node, "transA", 0), "it makes columns of samples")
        if len(inputs) > 2:
            same_for_all(inputs[2], 2)
    elif name == "MatMul":
        rank = max(len(dims(value)) for value in inputs)
        for i, value in enumerate(inputs):
            if i in ours:  # rows of the left matrix may be samples; no other axis of a matrix can
                need(len(dims(value)) == rank and (rank > 2 or ours == [0]), "it sums over samples")
            elif rank > 2:
                same_for_all(value, rank)
    elif name == "Einsum":
        separate(attribute(node, "equation", b""), ours)
    else:
        raise Mixed("not known to keep samples apart")
    return count


def reshaped(node: ir.Node, count: int, size: int, edits: list[Edit]) -> int:
    """The rows of a sample after a Reshape, whose shape may name the batch.

    Elements keep their order, so that those of a sample stay together; they are whole rows if the length of axis 0 is a
    multiple of the batch.
    """
    shape, given = dims(node.outputs[0]), known(node, 1)
    need(shape[0] % size == 0, "it joins samples in a row")
    need(all(shape), "a tensor without elements")
    result = shape[0] // size
    zero_copies = not attribute(node, "allowzero", 0)
    if not (given[0] == 0 and zero_copies) and not (given[0] == -1 and (given[1:] > 0).all()):
        # a 0, where it says the same, tells shape inference more than a -1
        replace(edits, node, 1, [0 if result == count else -1, *shape[1:]])
        edits.append(lambda _: node.attributes.update(allowzero=ir.AttrInt64("allowzero", 0)))
    return result


def resized(node: ir.Node, rank: int, edits: list[Edit]) -> None:
    """Check a Resize, whose sizes may name the batch."""
    need(attribute(node, "coordinate_transformation_mode", "") != "tf_crop_and_resize", "it crops by a region")
    axes = [a % rank for a in attribute(node, "axes", range(rank))]
    if 0 not in axes:
        return
    sizes = known(node, 3, np.empty(0, np.int64))
    if not sizes.size:
        need(known(node, 2)[axes.index(0)] == 1, "it resizes along the axis of the samples")
        return
    need(axes[0] == 0 and attribute(node, "keep_aspect_ratio_policy", "stretch") == "stretch", "its sizes mix axes")
    rest = sizes[1:].tolist()
    edits.append(lambda emit: node.replace_input_with(3, run_time_shape(emit, node, node.inputs[0], rest)))


def separate(equation: str | bytes, ours: Sequence[int]) -> None:
    """Check that an Einsum has one letter in front of what depends on the image and of its output, and only there."""
    text = equation.decode() if isinstance(equation, bytes) else equation
    left, _, right = text.replace(" ", "").partition("->")
    need(right[:1].isalpha() and "." not in text, "its equation leaves something open")
    for i, term in [*enumerate(left.split(",")), (ours[0], right)]:
        places = [at for at, letter in enumerate(term) if letter == right[0]]
        need(places == ([0] if i in ours else []), "it mixes samples")


# What is known of nodes and values


def need(holds: object, why: str) -> None:
    if not holds:
        raise Mixed(why)


def dims(value: ir.Value | None) -> list[int]:
    """The shape, which has to be known in full, with an axis 0."""
    shape = [] if value is None or value.shape is None else [d for d in value.shape if isinstance(d, int)]
    if value is None or value.shape is None or len(shape) != len(value.shape) or not shape:
        raise Mixed(f"the shape of {value.name if value is not None else 'an input'} is not known, or it has no axis")
    return shape


def same_for_all(value: ir.Value | None, rank: int) -> None:
    """Check that a value that does not depend on the image has one row for all samples of an operand of `rank` axes."""
    if value is not None and value.shape is not None and len(value.shape) < rank:
        return
    need(dims(value)[0] == 1, f"{value and value.name} may differ from sample to sample")


def attribute(node: ir.Node, name: str, default: Any) -> Any:
    return node.attributes[name].value if name in node.attributes else default


def known(node: ir.Node, index: int, default: Array | None = None) -> Array:
    """The value of an input, which has to be a constant; the default, if there is one, where the input is absent."""
    value = node.inputs[index] if index < len(node.inputs) else None
    if value is None and default is not None:
        return default
    if value is None or value.const_value is None:
        raise Mixed(f"its input {index} is not a constant")
    return value.const_value.numpy()


# Edits. Nodes are made bare: whatever is known of shapes when they are made still has the fixed batch in it.


def replace(edits: list[Edit], node: ir.Node, index: int, values: Sequence[int]) -> None:
    """Give a node a constant of its own."""
    edits.append(lambda emit: node.replace_input_with(index, whole(emit, values)))


def repeat(edits: list[Edit], node: ir.Node, index: int, like: ir.Value | None) -> None:
    """Repeat an input of one row as often as `like` has rows."""
    value = node.inputs[index]
    rest = [1] * (len(dims(value)) - 1)

    def edit(emit: Emit) -> None:
        repeated = bare(emit, node, "Expand", [value, run_time_shape(emit, node, like, rest)])
        node.replace_input_with(index, repeated)

    edits.append(edit)


def run_time_shape(emit: Emit, node: ir.Node, like: ir.Value | None, rest: Sequence[int]) -> ir.Value:
    """As many rows as `like` has when the model runs, and the rest of a shape; for a node to read."""
    count = bare(emit, node, "Shape", [like], start=0, end=1)
    return bare(emit, node, "Concat", [count, whole(emit, rest)], axis=0)


def whole(emit: Emit, values: Sequence[int]) -> ir.Value:
    return emit.constant(np.asarray(values, np.int64)).value


def bare(emit: Emit, before: ir.Node, op_type: str, inputs: Sequence[ir.Value | None], **attributes: int) -> ir.Value:
    """The output of a new node."""
    name = emit.name(op_type)
    node = ir.node(op_type, inputs, attributes, outputs=[ir.Value(name=name)], name=name)
    emit.graph.insert_before(before, node)
    return node.outputs[0]
