"""A finished float32 model, made to compute in float16 or bfloat16: its graph says so, as strongly typed runtimes want.

Inputs and outputs stay float32, and so does what `narrow_nodes` leaves wide; the objective, and what the logits are
made of last, always are.

Float16 has no number between 0 and 6e-8, so the cotangent of the logits is scaled there, for each sample, and all that
comes of it is scaled back at the end: ∂ψ/∂u is linear in it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Set
from pathlib import Path
from typing import TypeVar

import numpy as np
import onnx
import onnx_ir as ir
from onnx_ir.passes import common as passes

from onnxplain.adapters.gradient.classifier import NOTES_KEY, OUTPUTS
from onnxplain.adapters.gradient.differentiate import as_message, finish
from onnxplain.adapters.gradient.expr import PREFIX, Emit, Expr, op
from onnxplain.adapters.gradient.facts import SMALL
from onnxplain.adapters.gradient.narrow import HEAVY, ancestors, descendants, narrow_nodes, rounded
from onnxplain.adapters.gradient.objective import COTANGENT
from onnxplain.adapters.gradient.prepare import infer_shapes, raised
from onnxplain.adapters.gradient.read import from_message, refusing
from onnxplain.adapters.gradient.rules.mask import SCALE, as_number, bounds_of
from onnxplain.adapters.gradient.sweep import label
from onnxplain.engine.drive import REFERENCE, TARGET
from onnxplain.engine.executors.setup import Precision
from onnxplain.errors import UsageError

Model = TypeVar("Model", onnx.ModelProto, ir.Model)

PRECISION_KEY = "onnxplain.precision"
HALVES: Mapping[Precision, ir.DataType] = {
    Precision.FP16: ir.DataType.FLOAT16,
    Precision.BF16: ir.DataType.BFLOAT16,
}
BFLOAT16_OPSET = 22  # the first in which convolutions and pools may be of bfloat16
# Of the scaled cotangent of the logits. Relative to it, inner cotangents of trained classifiers are 2^-15 to 2^-5 in
# the middle, and up to 2^3: so they lie amid the normal numbers of float16, 2^-14 to 2^16.
PEAK = 2.0**8


def in_precision(model: Model, precision: str, *, folder: str | os.PathLike[str] | None = None) -> Model:
    """A gradient model, or its forward half, in another precision; of the same kind as what was given.

    The inputs and outputs, and their types, are the same. For float32 and TF32 nothing is to be done, and so for a
    model that has the precision already. Weights may lie in files: those of a message in `folder`.

    Raises:
        InvalidModel: the model cannot be read.
        UsageError: there is no such precision; the model has another one already; it has multipliers; it is not of
            this version; or its weights do not fit into a message, in half precision neither.
    """
    precision = Precision.parse(precision)
    have = properties(model).get(PRECISION_KEY)
    if have is not None and have != precision:
        raise UsageError(
            f"the model computes in {have}, not in {precision}; next: ask for {have}, or convert the float32 one"
        )
    if have is not None or precision not in HALVES:
        return model
    if isinstance(model, onnx.ModelProto):
        copy = onnx.ModelProto()
        copy.CopyFrom(model)
        with refusing("the model"):
            ours = from_message(copy, Path(folder or ""), "the model")
        return as_message(converted(ours, precision))
    return converted(model.clone(), precision)


def widened(model: onnx.ModelProto, *, folder: str | os.PathLike[str] | None = None) -> onnx.ModelProto:
    """A model that was written in half precision, computing in float32: with its rounded weights, node by node.

    Raises `InvalidModel` if the model cannot be read.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    with refusing("the model"):
        ours = from_message(copy, Path(folder or ""), "the model")
    halves, single = set(HALVES.values()), ir.DataType.FLOAT
    for node in ours.graph.all_nodes():
        if node.op_type == "Cast" and node.attributes["to"].as_int() in halves:
            node.attributes.add(ir.AttrInt64("to", int(single)))
        for y in node.outputs:
            if y.dtype in halves:
                y.type = ir.TensorType(single)
    for value in ours.graph.initializers.values():
        tensor = value.const_value
        if tensor is not None and tensor.dtype in halves:
            value.const_value = ir.tensor(tensor.numpy().astype(np.float32), name=value.name)
            value.type = ir.TensorType(single)
    ours.metadata_props.pop(PRECISION_KEY, None)
    return as_message(finish(ours))


def precision_of(model: onnx.ModelProto | ir.Model) -> Precision:
    """What a model was made to compute in; float32 where nothing is said."""
    return Precision(properties(model).get(PRECISION_KEY, Precision.FP32))


def properties(model: onnx.ModelProto | ir.Model) -> Mapping[str, str]:
    if isinstance(model, ir.Model):
        return model.metadata_props
    return {entry.key: entry.value for entry in model.metadata_props}


def converted(model: ir.Model, precision: Precision) -> ir.Model:
    """The model, which is ours to change, with all in half precision that can be."""
    half = HALVES[precision]
    if any(x.name == REFERENCE for x in model.graph.inputs):
        raise UsageError(
            f"precision {precision}: multipliers divide by differences of activations, for which it has too few "
            "digits; next: use fp32"
        )
    if half == ir.DataType.BFLOAT16 and model.graph.opset_imports[""] < BFLOAT16_OPSET:
        model = raised(model, BFLOAT16_OPSET)
        passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    model = infer_shapes(model)
    graph = model.graph
    cotangent = next((y for node in graph for y in node.outputs if y.name == COTANGENT), None)
    targets = [x for x in graph.inputs if x.name == TARGET]
    if targets and cotangent is None:
        raise UsageError("the gradient model is of another version of onnxplain; next: export the classifier again")
    emit = Emit(graph)
    masks_as_comparisons(emit)
    passes.RemoveUnusedNodesPass()(model)
    wide = {node for x in targets for node in descendants(x, until=cotangent)}
    wide |= ancestors(y for y in graph.outputs if y.name == OUTPUTS[0])
    if cotangent is not None and half == ir.DataType.FLOAT16:
        scale(emit, cotangent)
    passes.TopologicalSortPass()(model)
    narrow = narrow_nodes(graph, half, wide)
    products = [node for node in graph if node.op_type in HEAVY and node not in narrow | wide]
    if products:
        which = f"{len(products)} products stay in float32 (the first: {label(products[0])})"
        note = f"{which}: {precision} cannot hold a constant of theirs, or a runtime lacks the operator in it"
        with refusing("the model"):
            model.metadata_props[NOTES_KEY] = json.dumps([*json.loads(model.metadata_props.get(NOTES_KEY, "[]")), note])
    convert(graph, half, narrow)
    model.metadata_props[PRECISION_KEY] = str(precision)
    return finish(model)


def masks_as_comparisons(emit: Emit) -> None:
    """Write masks (see `rules.mask`) as comparisons: their slope, 2^100, is beyond float16.

    A second step, which takes a mask to a mask, is one too many.
    """
    masks: set[ir.Value] = set()
    for node in [node for node in emit.graph if node.op_type == "HardSigmoid" and not node.domain]:
        alpha, beta = node.attributes.get_float("alpha", 0.2), node.attributes.get_float("beta", 0.5)
        x, y = node.inputs[0], node.outputs[0]
        if abs(alpha) != SCALE or x is None:
            continue
        if (found := bounds_of(node)) is not None:
            e, low, high = Expr(emit, found[0]), *found[1:]
            x = as_number(op("And", e > low, e < high), e).value
        elif x not in masks:
            e, bound = Expr(emit, x), -beta / alpha
            x = as_number(e > bound if alpha > 0 else e < bound, e).value
            masks.add(x)
        y.replace_all_uses_with(x)


def scale(emit: Emit, cotangent: ir.Value) -> None:
    """Give each row of c (N, K), the cotangent of the logits, the peak 2^8, and take it back from what comes of it.

    c' = c / m · 2^8 and x̄ = x̄' · m / 2^8 with m = max |c| over the row, in float32: that rounds thousands of times
    finer than the cast to float16 that follows. A row of zeros is divided by the smallest normal number.
    """
    graph, c = emit.graph, Expr(emit, cotangent)
    behind = descendants(cotangent)
    readers = list(cotangent.uses())
    largest = op("Max", op("ReduceMax", op("Abs", c), [1], keepdims=1), float(np.finfo(np.float32).tiny))
    scaled = c / largest * PEAK
    for node, index in readers:
        node.replace_input_with(index, scaled.value)
    back = largest * (1 / PEAK)
    for at, y in enumerate(graph.outputs):
        if y.producer() in behind:
            name, e = y.name, Expr(emit, y)
            y.name = f"{PREFIX}scaled_{name}"
            whole = (e * back.reshape((e.shape[0], *(1,) * (e.rank - 1)))).value
            whole.name, whole.shape = name, y.shape
            graph.outputs[at] = whole


def convert(graph: ir.Graph, half: ir.DataType, narrow: Set[ir.Node]) -> None:
    """Have these nodes compute in half precision, with casts in between: of each value one at the most."""
    single = ir.DataType.FLOAT
    read = [
        (node, index, x)
        for node in graph.all_nodes()
        for index, x in enumerate(node.inputs)
        if x is not None and x.dtype == single
    ]
    for node in narrow:
        if node.op_type == "Cast":
            if dtype_of(node.inputs[0]) == half:
                continue  # who wants float32 reads it, the others what it reads
            node.attributes.add(ir.AttrInt64("to", int(half)))
        for y in node.outputs:
            if y.dtype == single:
                y.type = ir.TensorType(half)
    casts: dict[ir.Value, ir.Value] = {}
    for node, index, x in read:
        want = half if node in narrow else single
        if x.dtype != want:
            if x not in casts:
                casts[x] = constant_in(graph, x, want) if x.const_value is not None else cast(graph, x, want)
            node.replace_input_with(index, casts[x])


def dtype_of(x: ir.Value | None) -> ir.DataType | None:
    return None if x is None else x.dtype


def cast(graph: ir.Graph, x: ir.Value, dtype: ir.DataType) -> ir.Value:
    """A value in another type; what a cast has read already, if that is of this type."""
    producer = x.producer()
    before = producer.inputs[0] if producer is not None and producer.op_type == "Cast" else None
    if before is not None and before.dtype == dtype:
        return before
    name = name_in(x, dtype)
    y = ir.Value(name=name, shape=x.shape, type=ir.TensorType(dtype))
    node = ir.node("Cast", [x], {"to": int(dtype)}, outputs=[y], name=name)
    if producer is None:
        graph.insert_before(graph[0], node)
    else:
        graph.insert_after(producer, node)
    return y


def constant_in(graph: ir.Graph, x: ir.Value, dtype: ir.DataType) -> ir.Value:
    """A constant in another type. A large one may lie in a file still: it is rounded when the model is written."""
    tensor, shape, name = x.const_value, x.shape, name_in(x, dtype)
    assert tensor is not None
    assert shape is not None

    def make() -> ir.TensorProtocol:
        return ir.tensor(rounded(tensor.numpy(), dtype), name=name)

    data = ir.LazyTensor(make, dtype, shape, name=name) if tensor.size > SMALL else make()
    y = ir.Value(name=name, shape=shape, type=ir.TensorType(dtype), const_value=data)
    graph.register_initializer(y)
    return y


def name_in(x: ir.Value, dtype: ir.DataType) -> str:
    return f"{PREFIX}{dtype.name.lower()}/{x.name}"
