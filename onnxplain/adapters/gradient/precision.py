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
from functools import partial
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
from onnxplain.adapters.gradient.narrow import HEAVY, ancestors, descendants, floats, narrow_nodes, rounded
from onnxplain.adapters.gradient.objective import COTANGENT
from onnxplain.adapters.gradient.prepare import infer_shapes, raised
from onnxplain.adapters.gradient.rules.mask import SCALE
from onnxplain.adapters.gradient.rules.norm import per_channel
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
PEAK = 2.0**8  # of the scaled cotangent of the logits


def in_precision(model: Model, precision: Precision, *, folder: str | os.PathLike[str] | None = None) -> Model:
    """A gradient model, or its forward half, in another precision; of the same kind as what was given.

    The inputs and outputs, and their types, are the same. For float32 and TF32 nothing is to be done, and so for a
    model that has the precision already. Weights may lie in files: those of a message in `folder`.

    Raises:
        UsageError: the model has another precision already; it has multipliers; it was not made by this version; or
            its weights do not fit into a message, in half precision neither.
    """
    meta = properties(model)
    have = meta.get(PRECISION_KEY)
    if have is not None and have != precision:
        raise UsageError(f"the model computes in {have}, not in {precision}; next: convert the float32 one")
    if have is not None or precision not in HALVES:
        return model
    if isinstance(model, ir.Model):
        return converted(model.clone(), precision)
    ours = ir.from_proto(model)
    ir.external_data.set_base_dir(ours.graph, Path(folder or ""))
    return as_message(converted(ours, precision))


def properties(model: onnx.ModelProto | ir.Model) -> Mapping[str, str]:
    if isinstance(model, ir.Model):
        return model.metadata_props
    return {entry.key: entry.value for entry in model.metadata_props}


def converted(model: ir.Model, precision: Precision) -> ir.Model:
    """The model, which is ours to change, with all that can be in half precision."""
    half = HALVES[precision]
    if any(x.name == REFERENCE for x in model.graph.inputs):
        raise UsageError(
            f"precision {precision}: multipliers divide by differences of activations, for which it has too few "
            "digits; next: use fp32"
        )
    if half is ir.DataType.BFLOAT16 and model.graph.opset_imports[""] < BFLOAT16_OPSET:
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
    norms_as_factors(emit)
    objective = {node for x in targets for node in descendants(x, cotangent)}
    if cotangent is not None and half is ir.DataType.FLOAT16:
        scale(emit, cotangent)
    passes.TopologicalSortPass()(model)
    logits = ancestors(y for y in graph.outputs if y.name == OUTPUTS[0])
    narrow = narrow_nodes(graph, half, objective | logits)
    left = [node for node in graph if node.op_type in HEAVY and node not in narrow | objective | logits]
    if left:
        notes = json.loads(model.metadata_props.get(NOTES_KEY, "[]"))
        what = f"an operator, or a constant, that {precision} or a runtime lacks"
        notes.append(f"float32 stays in {len(left)} products ({label(left[0])} is the first) for {what}")
        model.metadata_props[NOTES_KEY] = json.dumps(notes)
    convert(graph, half, narrow)
    model.metadata_props[PRECISION_KEY] = str(precision)
    return finish(model)


def masks_as_comparisons(emit: Emit) -> None:
    """Write masks (see `rules.mask`) as comparisons: their slope, 2^100, is none that float16 has."""
    masks: set[ir.Value] = set()
    for node in [node for node in emit.graph if node.op_type == "HardSigmoid" and not node.domain]:
        alpha, beta = node.attributes.get_float("alpha", 0.2), node.attributes.get_float("beta", 0.5)
        (x,), (y,) = node.inputs, node.outputs
        if abs(alpha) != SCALE or x is None:
            continue
        if x not in masks:
            x = op("Cast", op("Greater" if alpha > 0 else "Less", Expr(emit, x), -beta / alpha), to=int(y.dtype)).value
            masks.add(x)
        y.replace_all_uses_with(x)


def norms_as_factors(emit: Emit) -> None:
    """Write y = γ (x - μ) / √(σ² + ε) + β of batches as x a + b, whose two constants are rounded and not their parts.

    A variance is easily below what float16 can hold.
    """
    for node in [node for node in emit.graph if node.op_type == "BatchNormalization" and not node.domain]:
        x, *constants = node.inputs
        if x is None or len(node.outputs) > 1 or any(c is None or c.const_value is None for c in constants):
            continue
        scale, bias, mean, variance = (c.const_value.numpy().astype(np.float64) for c in constants)
        factor = scale / np.sqrt(variance + node.attributes.get_float("epsilon", 1e-5))
        e = Expr(emit, x)
        a, b = (per_channel(emit.constant(v.astype(e.dtype)), e) for v in (factor, bias - mean * factor))
        node.outputs[0].replace_all_uses_with((e * a + b).value)


def scale(emit: Emit, cotangent: ir.Value) -> None:
    """Give each row of the cotangent c (N, K) of the logits the peak 2^8, and take it back from what comes of it.

    c' = c / m · 2^8 and x̄ = x̄' · m / 2^8, with m = max |c| of the row; in float32, which rounds some thousand times
    finer than the cast to float16 that follows. A row of zeros is divided by the smallest normal number, and stays
    what it is.
    """
    graph = emit.graph
    downstream = descendants(cotangent, None)
    outputs = [y for y in graph.outputs if y.producer() in downstream]
    readers = list(cotangent.uses())
    c = Expr(emit, cotangent)
    largest = op("Max", op("ReduceMax", op("Abs", c), [1], keepdims=1), float(np.finfo(np.float32).tiny))
    scaled = c / largest * PEAK
    for node, index in readers:
        node.replace_input_with(index, scaled.value)
    back = largest * (1 / PEAK)
    for y in outputs:
        name, e = str(y.name), Expr(emit, y)
        y.name = f"{PREFIX}scaled_{name}"
        whole = e * back.reshape((e.shape[0], *(1,) * (e.rank - 1)))
        whole.value.name, whole.value.shape = name, y.shape
        graph.outputs[list(graph.outputs).index(y)] = whole.value


def convert(graph: ir.Graph, half: ir.DataType, narrow: Set[ir.Node]) -> None:
    """Have these nodes compute in half precision, with casts in between: of each value one at the most."""
    inputs = [(node, i, x) for node in graph.all_nodes() for i, x in enumerate(node.inputs) if x in set(floats(node))]
    for node in narrow:
        if node.op_type == "Cast" and node.inputs[0].dtype == half:
            continue  # it makes float32 for those who want that; the others read what it reads
        if node.op_type == "Cast":
            node.attributes.add(ir.AttrInt64("to", int(half)))
        for y in node.outputs:
            if y.dtype == ir.DataType.FLOAT:
                y.type = ir.TensorType(half)
    casts = Casts(graph)
    for node, index, x in inputs:
        node.replace_input_with(index, casts.of(x, half if node in narrow else ir.DataType.FLOAT))


class Casts:
    """Values of a graph in one type and in another."""

    def __init__(self, graph: ir.Graph) -> None:
        self.graph = graph
        self.made: dict[tuple[ir.Value, ir.DataType], ir.Value] = {}

    def of(self, x: ir.Value, dtype: ir.DataType) -> ir.Value:
        if x.dtype == dtype:
            return x
        if (x, dtype) not in self.made:
            self.made[x, dtype] = self.constant(x, dtype) if x.const_value is not None else self.cast(x, dtype)
        return self.made[x, dtype]

    def cast(self, x: ir.Value, dtype: ir.DataType) -> ir.Value:
        producer = x.producer()
        if producer is not None and producer.op_type == "Cast" and producer.inputs[0].dtype == dtype:
            return producer.inputs[0]
        name = f"{x.name}/{dtype.name.lower()}"
        y = ir.Value(name=name, shape=x.shape, type=ir.TensorType(dtype))
        node = ir.node("Cast", [x], {"to": int(dtype)}, outputs=[y], name=name)
        if producer is None:
            self.graph.insert_before(self.graph[0], node)
        else:
            self.graph.insert_after(producer, node)
        return y

    def constant(self, x: ir.Value, dtype: ir.DataType) -> ir.Value:
        name = f"{x.name}/{dtype.name.lower()}"
        make = partial(half_tensor, x.const_value, dtype, name)
        large = x.const_value.size > SMALL
        tensor = ir.LazyTensor(make, dtype, x.const_value.shape, name=name) if large else make()
        y = ir.Value(name=name, shape=x.const_value.shape, type=ir.TensorType(dtype), const_value=tensor)
        self.graph.register_initializer(y)
        return y


def half_tensor(tensor: ir.TensorProtocol, dtype: ir.DataType, name: str) -> ir.TensorProtocol:
    return ir.tensor(rounded(tensor.numpy(), dtype), name=name)
