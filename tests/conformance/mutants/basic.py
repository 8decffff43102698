"""Mistakes in the rules of the operators of the usual convolutional classifiers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any
from unittest.mock import patch

import numpy as np

from onnxplain.adapters.gradient.expr import Expr, concat, op, where
from onnxplain.adapters.gradient.parts import PARTED, Grid
from onnxplain.adapters.gradient.registry import DEFAULT
from onnxplain.adapters.gradient.rules.reduce import kept, reduced_axes
from onnxplain.adapters.gradient.rules.window import Phase, Window

RIGHT = {name: entry.rule for name, entry in DEFAULT.items()}
PHASES = Window.phases


def swapped_pads(name: str) -> Callable[..., Any]:
    """The padding at the end taken for the padding at the beginning."""

    def rule(*args: Any, pads: Any = None, **attributes: Any) -> Any:
        if pads is not None:
            half = len(pads) // 2
            pads = [*pads[half:], *pads[:half]]
        return RIGHT[name](*args, pads=pads, **attributes)

    return rule


def without(name: str, attribute: str) -> Callable[..., Any]:
    """An attribute that nobody read."""

    def rule(*args: Any, **attributes: Any) -> Any:
        return RIGHT[name](*args, **{k: v for k, v in attributes.items() if k != attribute})

    return rule


def conv_with(change: Callable[..., Any]) -> Callable[..., Any]:
    """A Conv whose gradient sees other weights than its forward pass did."""

    def rule(g: Expr, y: Expr, x: Expr, w: Expr, b: Expr | None = None, **attributes: Any) -> Any:
        if w.constant is not None:
            w = w.emit.constant(np.ascontiguousarray(change(w.constant)))
        return RIGHT["Conv"](g, y, x, w, b, **attributes)

    return rule


def conv_in_parts(change: Callable[[Phase], Phase] = lambda phase: phase, turn: int = 1) -> Callable[..., Any]:
    """A strided Conv whose cotangent is put together of other parts, or in another order."""

    def changed(window: Window) -> list[Phase | None]:
        return [None if phase is None else change(phase) for phase in PHASES(window)[::turn]]

    def rule(*args: Any, **attributes: Any) -> Any:
        with patch.object(Window, "phases", changed):
            image, *others = RIGHT["Conv"](*args, **attributes)
            return image(), *others

    return rule


def parted(change: Callable[[Grid, Any], tuple[Grid, Any]]) -> Callable[..., Any]:
    """A strided Conv of single channels that puts the parts of its cotangent together in another way."""

    def rule(*args: Any, **attributes: Any) -> Any:
        image, *rest = RIGHT["Conv"](*args, **attributes)

        def spoilt() -> Expr:
            right: Expr = image()
            if PARTED not in right.value.meta:
                return right
            made = right.value.meta[PARTED]
            grid, parts = change(made.grid, made.parts)
            return grid.together([Expr(right.emit, part) for part in parts])

        return (spoilt, *rest)

    return rule


def undilated(phase: Phase) -> Phase:
    """The shifts of a part's taps taken for neighbours."""
    missing = (phase.dilation - 1) * (len(phase.taps) - 1)
    return replace(phase, dilation=1, before=phase.before - missing)


def last_hit(g: Any, y: Any, x: Expr, **attributes: Any) -> Any:
    """The last maximum instead of the first: the right rule on everything upside down."""
    if isinstance(g, tuple):
        g, y = g[0], y[0]
    if attributes.get("ceil_mode") or attributes.get("auto_pad", "NOTSET") != "NOTSET" or x.rank != 4:
        return RIGHT["MaxPool"](g, y, x, **attributes)

    def turned(z: Expr) -> Expr:
        for axis in (2, 3):
            z = z.slice(axis, -1, np.iinfo(np.int64).min, -1)
        return z

    window, steps = attributes["kernel_shape"], attributes.get("strides") or [1, 1]
    spread, pads = attributes.get("dilations") or [1, 1], attributes.get("pads") or [0, 0, 0, 0]
    ends = []  # what the last window leaves over comes first when turned round
    for i in range(2):
        extent = (y.size(i + 2) - 1) * steps[i] + spread[i] * (window[i] - 1) + 1
        ends.append(extent - pads[i] - x.size(i + 2))
    if min(ends) < 0:
        return RIGHT["MaxPool"](g, y, x, **attributes)
    flipped = {**attributes, "pads": [*ends, *pads[:2]]}
    return turned(RIGHT["MaxPool"](turned(g), turned(y), turned(x), **flipped))


def every_hit(g: Any, y: Any, x: Expr, **attributes: Any) -> Any:
    """Every maximum of a window gets all of ȳ."""
    if isinstance(g, tuple):
        g, y = g[0], y[0]
    return RIGHT["MaxPool"](g, y, x, **attributes) * 2


def softmax_of(axis_used: Callable[[int], int]) -> Callable[..., Any]:
    def rule(g: Expr, y: Expr, x: Expr, *, axis: int = -1) -> Expr:
        return y * (g - (g * y).sum([axis_used(axis) % x.rank], keepdims=True))

    return rule


def layer_norm(term: str) -> Callable[..., Any]:
    """LayerNormalization with one term forgotten."""

    def rule(
        g: Any, y: Any, x: Expr, scale: Expr, bias: Any = None, *, axis: int = -1, epsilon: float = 1e-5, **_: Any
    ):
        axes = list(range(axis % x.rank, x.rank))
        centred = x - x.mean(axes)
        r = 1 / op("Sqrt", (centred * centred).mean(axes) + (0.0 if term == "epsilon" else epsilon))
        h, q = centred * r, g if term == "scale" else g * scale
        total = q
        if term != "mean":
            total = total - q.mean(axes)
        if term != "variance":
            total = total - h * (q * h).mean(axes)
        return r * total, g * h, g

    return rule


def average(factor: bool = False, include: int | None = None) -> Callable[..., Any]:
    def rule(g: Expr, y: Expr, x: Expr, **attributes: Any) -> Expr:
        if include is not None:
            attributes["count_include_pad"] = include
        out = RIGHT["AveragePool"](g, y, x, **attributes)
        return out * float(np.prod(attributes["kernel_shape"])) if factor else out

    return rule


def reduce_mean_as_sum(
    g: Expr, y: Expr, x: Expr, axes: Any = None, *, keepdims: int = 1, noop_with_empty_axes: int = 0
):
    return kept(g, x, reduced_axes(x, axes, noop_with_empty_axes), keepdims), None


def gemm(forget: str) -> Callable[..., Any]:
    return without("Gemm", forget)


def split_in_reverse(g: Any, y: Any, x: Expr, sizes: Any = None, *, axis: int = 0, **_: Any) -> Any:
    if isinstance(g, tuple) and all(part is not None for part in g):
        return concat(g[::-1], axis % x.rank), None
    return RIGHT["Split"](g, y, x, sizes, axis=axis)


def slice_shifted(g: Expr, y: Expr, x: Expr, starts: Expr, ends: Expr, *rest: Any) -> Any:
    """One place too early, where there is one."""
    begin = np.asarray([s - 1 if s > 0 else s for s in starts.constant.tolist()], np.int64)
    stop = np.asarray(
        [e - 1 if s > 0 else e for s, e in zip(starts.constant.tolist(), ends.constant.tolist(), strict=True)], np.int64
    )
    if any(part is not None and (part.constant < 0).any() for part in rest[1:]) or (ends.constant > 50).any():
        return RIGHT["Slice"](g, y, x, starts, ends, *rest)
    return RIGHT["Slice"](g, y, x, x.emit.constant(begin), x.emit.constant(stop), *rest)


def pad_reversed(g: Expr, y: Expr, x: Expr, pads: Expr, *rest: Any, **attributes: Any) -> Any:
    """Widths at the end taken for those at the beginning."""
    turned = np.concatenate(np.split(pads.constant, 2)[::-1])
    return RIGHT["Pad"](g, y, x, x.emit.constant(turned), *rest, **attributes)


def batch_norm(
    g: Any, y: Any, x: Expr, scale: Expr, bias: Expr, mean: Expr, var: Expr, *, epsilon: float = 1e-5, **_: Any
):
    """γ / σ² instead of γ / σ."""
    factor = (scale / (var + epsilon)).reshape((x.shape[1], *(1,) * (x.rank - 2)))
    return (g * factor, *RIGHT["BatchNormalization"](g, y, x, scale, bias, mean, var, epsilon=epsilon)[1:])


MUTANTS: dict[str, tuple[str, Callable[..., Any]]] = {
    "Sub: sign": ("Sub", lambda g, y, a, b: (g, g)),
    "Neg: sign": ("Neg", lambda g, y, x: g),
    "Mul: own factor": ("Mul", lambda g, y, a, b: (g * a, g * b)),
    "Mul: one operand forgotten": ("Mul", lambda g, y, a, b: (g * b, g)),
    "Div: sign of the denominator": ("Div", lambda g, y, a, b: (g / b, g * y / b)),
    "Div: square forgotten": ("Div", lambda g, y, a, b: (g / b, -g * a / b)),
    "Sum: only the first": ("Sum", lambda g, y, *xs: (g, *(g * 0.0 for _ in xs[1:]))),
    "Exp: x for y": ("Exp", lambda g, y, x: g * x),
    "Log: y for x": ("Log", lambda g, y, x: g / y),
    "Sqrt: factor": ("Sqrt", lambda g, y, x: g / y),
    "Reciprocal: sign": ("Reciprocal", lambda g, y, x: g * y * y),
    "Abs: slope one": ("Abs", lambda g, y, x: g),
    "Tanh: x for y": ("Tanh", lambda g, y, x: g * (1 - x * x)),
    "Sigmoid: missing factor": ("Sigmoid", lambda g, y, x: g * y),
    "Softplus: y for x": ("Softplus", lambda g, y, x: g * op("Sigmoid", y)),
    "Erf: factor": ("Erf", lambda g, y, x: g * op("Exp", -x * x)),
    "Erf: exponent": ("Erf", lambda g, y, x: g * (2 / np.sqrt(np.pi)) * op("Exp", -x * x * 0.5)),
    "Relu: straight through": ("Relu", lambda g, y, x: g),
    "LeakyRelu: default slope": ("LeakyRelu", lambda g, y, x, *, alpha=0.01: where(x > 0.0, g, g * 0.01)),
    "LeakyRelu: y for x": ("LeakyRelu", lambda g, y, x, *, alpha=0.01: where(y > 0.0, g, g * alpha)),
    "HardSigmoid: slope one": ("HardSigmoid", lambda g, y, x, **_: where((y > 0.0) & (y < 1.0), g, 0.0)),
    "HardSwish: constant slope": (
        "HardSwish",
        lambda g, y, x: where(x < 3.0, where(x > -3.0, g * (2 * x / 6), 0.0), g),
    ),
    "Clip: no upper bound": ("Clip", lambda *args: (RIGHT["Clip"](*args[:4])[0], *RIGHT["Clip"](*args)[1:])),
    "Clip: all to the bounds": ("Clip", lambda g, *args: (RIGHT["Clip"](g, *args)[0], g, g)),
    "Where: branches swapped": ("Where", lambda g, y, c, a, b: (None, where(c, 0.0, g), where(c, g, 0.0))),
    "MatMul: sign": ("MatMul", lambda g, y, a, b: RIGHT["MatMul"](-g, y, a, b)),
    "MatMul: square not transposed": ("MatMul", lambda g, y, a, b: square(g, y, a, b)),
    "Gemm: alpha forgotten": ("Gemm", gemm("alpha")),
    "Gemm: beta forgotten": ("Gemm", gemm("beta")),
    "Conv: kernel not turned": ("Conv", conv_with(lambda w: np.flip(w, axis=tuple(range(2, w.ndim))))),
    "Conv: channels in reverse": ("Conv", conv_with(lambda w: w[:, ::-1])),
    "Conv: groups in reverse": ("Conv", conv_with(lambda w: w[::-1])),
    "Conv: residues in reverse": ("Conv", conv_in_parts(turn=-1)),
    "Conv: parts shifted": (
        "Conv",
        conv_in_parts(lambda phase: replace(phase, before=phase.before - 1, after=phase.after + 1)),
    ),
    "Conv: parts undilated": ("Conv", conv_in_parts(undilated)),
    "Conv: pads swapped": ("Conv", swapped_pads("Conv")),
    "Conv: parts in reverse": ("Conv", parted(lambda grid, parts: (grid, parts[::-1]))),
    "Conv: rows of parts for columns": (
        "Conv",
        parted(lambda grid, parts: (grid, [parts[j * grid.stride + i] for i, j in grid.residues])),
    ),
    "Conv: parts one pixel off": (
        "Conv",
        parted(lambda grid, parts: (replace(grid, offsets=(grid.offsets[0] - 1, grid.offsets[1])), parts)),
    ),
    "MaxPool: last maximum": ("MaxPool", last_hit),
    "MaxPool: twice": ("MaxPool", every_hit),
    "MaxPool: pads swapped": ("MaxPool", swapped_pads("MaxPool")),
    "AveragePool: sum": ("AveragePool", average(factor=True)),
    "AveragePool: padding counted": ("AveragePool", average(include=1)),
    "AveragePool: padding not counted": ("AveragePool", average(include=0)),
    "AveragePool: pads swapped": ("AveragePool", swapped_pads("AveragePool")),
    "GlobalAveragePool: sum": ("GlobalAveragePool", lambda g, y, x: g),
    "ReduceMean: sum": ("ReduceMean", reduce_mean_as_sum),
    "ReduceSum: mean": ("ReduceSum", lambda *args, **kw: RIGHT["ReduceMean"](*args, **kw)),
    "Softmax: always the last axis": ("Softmax", softmax_of(lambda axis: -1)),
    "Softmax: diagonal only": ("Softmax", lambda g, y, x, *, axis=-1: g * y * (1 - y)),
    "LogSoftmax: y for its exponential": (
        "LogSoftmax",
        lambda g, y, x, *, axis=-1: g - y * g.sum([axis % x.rank], keepdims=True),
    ),
    "BatchNormalization: variance for deviation": ("BatchNormalization", batch_norm),
    "LayerNormalization: no mean": ("LayerNormalization", layer_norm("mean")),
    "LayerNormalization: no variance": ("LayerNormalization", layer_norm("variance")),
    "LayerNormalization: no scale": ("LayerNormalization", layer_norm("scale")),
    "LayerNormalization: no epsilon": ("LayerNormalization", layer_norm("epsilon")),
    "Transpose: the same order again": ("Transpose", lambda g, y, x, *, perm=None: again(g, x, perm)),
    "Concat: backwards": (
        "Concat",
        lambda g, y, *xs, axis: RIGHT["Concat"](reverse(g, axis % y.rank), y, *xs, axis=axis),
    ),
    "Split: backwards": ("Split", split_in_reverse),
    "Slice: shifted by one": ("Slice", slice_shifted),
    "Pad: ends swapped": ("Pad", pad_reversed),
}


def square(g: Expr, y: Expr, a: Expr, b: Expr) -> Any:
    """B instead of its transpose, which only a square matrix allows."""
    if a.rank == b.rank == 2 and b.shape[0] == b.shape[1]:
        return g @ b, a.mT @ g
    return RIGHT["MatMul"](g, y, a, b)


def again(g: Expr, x: Expr, perm: Any) -> Expr:
    """The forward permutation instead of its inverse, where the result has the right shape at all."""
    out = g.transpose(list(perm) if perm is not None else list(range(x.rank))[::-1])
    return out if out.shape == x.shape else out.reshape(x.shape)


def reverse(g: Expr, axis: int) -> Expr:
    return g.slice(axis, -1, np.iinfo(np.int64).min, -1)
