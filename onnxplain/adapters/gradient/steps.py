"""The step models of walks and lines whose state stays on the device: what is done there between two gradients.

    gradient model ──gradient──► step model ──point──► gradient model ──gradient──► ...

Both are elementwise but for their sums. Everything that may change is an input, so one model serves every method,
every objective and every classifier of that image shape.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeAlias

import numpy as np
import onnx
import onnx_ir as ir

from onnxplain.adapters.gradient.differentiate import copied, finish
from onnxplain.adapters.gradient.expr import Emit, Expr, op, where
from onnxplain.engine.requests import Validity
from onnxplain.engine.resident import (
    ACTIVE,
    ALONG,
    AT,
    BOUNDED,
    COUNT,
    GRADIENT,
    HIGH,
    LOW,
    NEXT,
    PATH_SUM,
    POINT,
    REFERENCE,
    REST,
    RULE,
    RULES,
    SPOILT,
    START,
    STEP,
    SUM,
    USED,
    WEIGHT,
)

Shape: TypeAlias = tuple[int | str, ...]

BATCH = "N"
ROW: Shape = (BATCH,)


def walk_step(image: Sequence[int], dtype: np.dtype[np.generic]) -> onnx.ModelProto:
    """One step of N walks; see `Walk` for the formula, and `sign_step`.

    Inputs (N, ...): `point` x, `path_sum`, `gradient` g, `along` h, and `step`, which is 0 where a feature may not
    move; (N) bool: `bounded`, whether a walk is clipped, and `active`, whether it takes this step; `low` and `high`,
    like an image. Outputs: `next_point`, `next_path_sum`, and `spoilt` (N) bool: whether there is NaN or Inf in g, or,
    where a walk is active, in h. A walk that is not active stays as it is.
    """
    one: Shape = tuple(image)
    spec = dict.fromkeys((POINT, PATH_SUM, GRADIENT, ALONG, STEP), (BATCH, *one)) | dict.fromkeys((LOW, HIGH), one)
    model, given = begun("walk_step", spec, dtype, bools=dict.fromkeys((BOUNDED, ACTIVE), ROW))
    x, g, h = given[POINT], given[GRADIENT], given[ALONG]
    bounded, active = (column(given[name], len(image)) for name in (BOUNDED, ACTIVE))
    displacement = given[STEP] * op("Sign", g)
    free = x + displacement
    clipped = op("Min", op("Max", free, given[LOW]), given[HIGH])
    moved = where(bounded, clipped - x, displacement)
    return ended(
        model,
        {
            NEXT.format(POINT): where(active, where(bounded, clipped, free), x),
            NEXT.format(PATH_SUM): given[PATH_SUM] + where(active, moved * h, 0),
            SPOILT: op("Or", spoilt(g), spoilt(h) & given[ACTIVE]),
        },
    )


def line_step(image: Sequence[int], dtype: np.dtype[np.generic]) -> onnx.ModelProto:
    """Add up what the last N points of a line gave, and make the next N; see `Line` and `Validity`.

    Inputs: `gradient` g (N, ...) of the last points, their `weight` and `rest` (1 - t), and `used` (N) bool, without
    which a point counts for nothing; `t` (N) of the next; `start`, `step`, `reference`, `sum` and `count`, each like an
    image; `rule` int64 (1), the place of the validity in `RULES`. Outputs: `point` (N, ...), `next_sum`, `next_count`,
    and `spoilt` (N) bool: whether there is NaN or Inf in g.
    """
    one: Shape = tuple(image)
    spec = dict.fromkeys((WEIGHT, REST, AT), ROW) | dict.fromkeys((START, STEP, REFERENCE, SUM, COUNT), one)
    spec[GRADIENT] = (BATCH, *one)
    model, given = begun("line_step", spec, dtype, bools={USED: ROW}, integers={RULE: (1,)})
    g, step = given[GRADIENT], given[STEP]
    weight, rest, t, used = (column(given[name], len(image)) for name in (WEIGHT, REST, AT, USED))
    counts = valid(g, rest, given) & used
    return ended(
        model,
        {
            POINT: step * t + given[START],
            NEXT.format(SUM): given[SUM] + where(counts, g * weight, 0).sum([0]),
            NEXT.format(COUNT): given[COUNT] + counts.cast(g.value.dtype or ir.DataType.FLOAT).sum([0]),
            SPOILT: spoilt(g),
        },
    )


def valid(g: Expr, rest: Expr, given: Mapping[str, Expr]) -> Expr:
    """Where the points are valid, (N, ...) bool."""

    def rule_is(*rules: Validity | None) -> Expr:
        codes = [op("Equal", given[RULE], g.emit.constant(np.asarray([RULES.index(rule)]))) for rule in rules]
        return codes[0] if len(codes) == 1 else op("Or", *codes)

    step, reference = given[STEP], given[REFERENCE]
    ours = where(rule_is(Validity.PATH), step * reference, reference)
    theirs = where(rule_is(Validity.LITERAL, Validity.PATH), step * rest * g, g)
    same_sign = op("Equal", op("Sign", ours), op("Sign", theirs))
    larger = op("Abs", ours) > op("Abs", theirs)
    return op("Or", same_sign & op("Or", larger, rule_is(Validity.SIGN_ONLY)), rule_is(None))


def spoilt(g: Expr) -> Expr:
    """For each row, whether it holds NaN or Inf, bool (N). (A comparison with NaN is false.)"""
    fine = op("LessOrEqual", op("Abs", g), float(np.finfo(g.dtype).max))
    bad = op("Not", fine).cast(g.value.dtype or ir.DataType.FLOAT)
    return op("ReduceMax", bad, list(range(1, g.rank)), keepdims=0) > 0


def column(row: Expr, rank: int) -> Expr:
    """(N) as it broadcasts against N images."""
    return row.reshape((row.shape[0], *(1,) * rank))


def begun(
    name: str,
    floats: Mapping[str, Shape],
    dtype: np.dtype[np.generic],
    *,
    bools: Mapping[str, Shape],
    integers: Mapping[str, Shape] | None = None,
) -> tuple[ir.Model, dict[str, Expr]]:
    """A model without a node, and its inputs."""
    kinds = {ir.DataType.from_numpy(dtype): floats, ir.DataType.BOOL: bools, ir.DataType.INT64: integers or {}}
    values = [
        ir.Value(name=one, shape=ir.Shape(shape), type=ir.TensorType(kind))
        for kind, shapes in kinds.items()
        for one, shape in shapes.items()
    ]
    graph = ir.Graph(values, [], nodes=[], opset_imports={"": 18}, name=f"onnxplain_{name}")
    emit = Emit(graph)
    return ir.Model(graph, ir_version=8), {str(value.name): Expr(emit, value) for value in values}


def ended(model: ir.Model, outputs: Mapping[str, Expr]) -> onnx.ModelProto:
    """The model with its outputs, checked."""
    model.graph.outputs[:] = [copied(expr, name) for name, expr in outputs.items()]
    return ir.to_proto(finish(model))
