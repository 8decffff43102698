"""Operators that move elements without changing them: their adjoint moves the cotangent back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from onnxplain.adapters.gradient.expr import Expr, UnsupportedCase, add_all, concat
from onnxplain.adapters.gradient.registry import vjp


@vjp("Reshape", "Flatten", "Squeeze", "Unsqueeze")
def reshape(g: Expr, y: Expr, x: Expr, shape: Expr | None = None, **_: Any) -> tuple[Any, ...]:
    """The same elements in the same order;  x̄ = ȳ in the shape of x."""
    return g.like(x), None


@vjp("Transpose")
def transpose(g: Expr, y: Expr, x: Expr, *, perm: Sequence[int] | None = None) -> Expr:
    """yᵢ = x_π(i);  x̄ goes back by π⁻¹."""
    order = list(perm) if perm is not None else list(range(x.rank))[::-1]
    return g.transpose([int(i) for i in np.argsort(order)])


@vjp("Concat")
def concatenate(g: Expr, y: Expr, *xs: Expr, axis: int) -> tuple[Any, ...]:
    """y = (x₁, x₂, ...);  each x̄ is its own stretch of ȳ."""
    axis %= y.rank
    stops = np.cumsum([x.size(axis) for x in xs]).tolist()
    starts = [0, *stops[:-1]]
    return tuple(lambda a=a, b=b: g.slice(axis, a, b) for a, b in zip(starts, stops, strict=True))


@vjp("Split")
def split(
    g: Any, y: Any, x: Expr, split: Expr | None = None, *, axis: int = 0, num_outputs: int | None = None
) -> tuple[Any, ...]:
    """(y₁, y₂, ...) = x;  x̄ = (ȳ₁, ȳ₂, ...), with zeros for the parts that do not matter."""
    axis %= x.rank
    parts, ys = (g, y) if isinstance(g, tuple) else ((g,), (y,))
    if all(part is not None for part in parts):
        return concat(parts, axis), None
    stops = np.cumsum([part.size(axis) for part in ys]).tolist()
    padded = [
        part.pad(axis, stop - part.size(axis), stops[-1] - stop)
        for part, stop in zip(parts, stops, strict=True)
        if part is not None
    ]
    return add_all(padded), None


@vjp("Slice")
def slice_(
    g: Expr, y: Expr, x: Expr, starts: Expr, ends: Expr, axes: Expr | None = None, steps: Expr | None = None
) -> tuple[Any, ...]:
    """y = x[start:end:step];  x̄ = ȳ at the places that were taken, 0 elsewhere. One axis after the other."""
    if any(part is not None and part.constant is None for part in (starts, ends, axes, steps)):
        raise UnsupportedCase("starts, ends, axes or steps that are not constant")
    assert starts.constant is not None
    assert ends.constant is not None
    count = len(starts.constant)
    over = range(count) if axes is None or axes.constant is None else axes.constant.tolist()
    pace = [1] * count if steps is None or steps.constant is None else steps.constant.tolist()
    for start, end, axis, step in zip(starts.constant.tolist(), ends.constant.tolist(), over, pace, strict=True):
        axis %= x.rank
        if not isinstance(x.shape[axis], int) and (start, step) == (0, 1) and end >= np.iinfo(np.int32).max:
            continue  # all of the batch
        first = max(start, -x.size(axis)) if step < 0 else start  # beyond this ONNX clamps as Python does
        taken = range(x.size(axis))[first:end:step]
        if step < 0:
            g, taken = g.slice(axis, -1, np.iinfo(np.int64).min, -1), taken[::-1]
        if abs(step) > 1:
            g = spread(g, axis, abs(step))
        g = g.pad(axis, taken.start, x.size(axis) - taken.start - g.size(axis))
    return g.like(x), None, None, None, None  # shape inference forgets the name of a batch that was sliced whole


def spread(g: Expr, axis: int, step: int) -> Expr:
    """`step - 1` zeros between neighbours along one axis, none behind the last."""
    shape = g.shape
    size = g.size(axis)
    column = g.reshape((*shape[: axis + 1], 1, *shape[axis + 1 :])).pad(axis + 1, 0, step - 1)
    rows = column.reshape((*shape[:axis], size * step, *shape[axis + 1 :]))
    return rows.slice(axis, 0, (size - 1) * step + 1)


@vjp("Pad")
def pad(
    g: Expr,
    y: Expr,
    x: Expr,
    pads: Expr,
    value: Expr | None = None,
    axes: Expr | None = None,
    *,
    mode: str = "constant",
) -> tuple[Any, ...]:
    """y = x with a constant border (cropped where a width is negative);  x̄ = ȳ without it."""
    if mode != "constant":
        raise UnsupportedCase(f"mode {mode}")
    if pads.constant is None or (axes is not None and axes.constant is None):
        raise UnsupportedCase("widths or axes that are not constant")
    over = range(x.rank) if axes is None or axes.constant is None else axes.constant.tolist()
    befores, afters = np.split(pads.constant, 2)
    for axis, before, after in zip(over, befores.tolist(), afters.tolist(), strict=True):
        g = g.pad(axis % x.rank, -before, -after)

    def border() -> Expr:
        raise UnsupportedCase("the gradient with respect to the border's value")

    return (g.like(x), None, border, None)[: 2 + (value is not None) + (axes is not None)]
