"""Pooling over windows, one axis after the other: the maximum of maxima is the maximum, and sums are separable too."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from onnxplain.adapters.gradient.expr import Expr, op
from onnxplain.adapters.gradient.registry import vjp
from onnxplain.adapters.gradient.rules.mask import keep
from onnxplain.adapters.gradient.rules.reduce import lp_slope
from onnxplain.adapters.gradient.rules.window import Window, windows


@vjp("MaxPool")
def max_pool(
    g: Expr | tuple[Expr, ...],
    y: Expr | tuple[Expr, ...],
    x: Expr,
    *,
    kernel_shape: Sequence[int],
    auto_pad: str = "NOTSET",
    ceil_mode: int = 0,
    dilations: Sequence[int] | None = None,
    pads: Sequence[int] | None = None,
    storage_order: int = 0,
    strides: Sequence[int] | None = None,
) -> Expr:
    """y_o = max of x over the window;  ȳ_o goes to the first element, in row-major order, that is equal to y_o.

    Pooling along the last axis, then the last but one, ... gives the same y. Going back, the first row that holds the
    maximum is found first, and then the first column in it, which is PyTorch's choice among equals. Only comparisons
    and selections: no indices and no scatter, which not every runtime has, or has in a fixed order.
    """
    if isinstance(g, tuple) and isinstance(y, tuple):  # its indices, the second output, have no gradient
        g, y = g[0], y[0]
    assert isinstance(g, Expr)
    assert isinstance(y, Expr)
    along = windows(
        x, y, kernel_shape, auto_pad=auto_pad, dilations=dilations, pads=pads, strides=strides, ceil_mode=ceil_mode
    )
    axes = range(2, x.rank)
    steps = [(axis, window) for axis, window in zip(axes, along, strict=True) if not window.trivial]
    if not steps:
        return g
    stages = [x]
    for axis, window in steps[:0:-1]:  # the first axis is what y adds to the last stage
        stages.append(pool_axis(stages[-1], axis, window))
    for (axis, window), stage, pooled in zip(steps, stages[::-1], [y, *stages[:0:-1]], strict=True):
        g = window.fold(first_hits(g, pooled, stage, axis, window), axis)
    return g


def pool_axis(x: Expr, axis: int, window: Window) -> Expr:
    """The maximum over a window along one axis."""
    spatial = x.rank - 2

    def along(value: int, other: int) -> list[int]:
        return [value if a == axis - 2 else other for a in range(spatial)]

    # The windows reach as far as they do, whatever ceil_mode or auto_pad said.
    after = window.reach - window.size - window.before
    return op(
        "MaxPool",
        x if after >= 0 else x.slice(axis, 0, window.size + after),
        kernel_shape=along(window.kernel, 1),
        strides=along(window.stride, 1),
        dilations=along(window.dilation, 1),
        pads=[*along(window.before, 0), *along(max(after, 0), 0)],
    )


def first_hits(g: Expr, y: Expr, x: Expr, axis: int, window: Window) -> list[Expr]:
    """For each tap of the window: ȳ where that tap is the first one that holds the maximum, 0 elsewhere."""
    lowest = float(np.finfo(x.dtype).min)  # no maximum lies below it, so the border takes nothing
    hits = []
    for a in range(window.kernel - 1):
        below = window.tap(x, axis, a, lowest) < y
        rest = keep(g, below)
        hits.append(g - rest)
        g = rest
    return [*hits, g]  # what no earlier tap took belongs to the last


@vjp("AveragePool")
def average_pool(
    g: Expr,
    y: Expr,
    x: Expr,
    *,
    kernel_shape: Sequence[int],
    auto_pad: str = "NOTSET",
    ceil_mode: int = 0,
    count_include_pad: int = 0,
    dilations: Sequence[int] | None = None,
    pads: Sequence[int] | None = None,
    strides: Sequence[int] | None = None,
) -> Expr:
    """y_o = Σ x over the window / n_o;  x̄ = the sum of ȳ_o / n_o over the windows that hold it."""
    along = windows(
        x, y, kernel_shape, auto_pad=auto_pad, dilations=dilations, pads=pads, strides=strides, ceil_mode=ceil_mode
    )
    pads_back = [w.extent - w.before for w in along] + [w.size - w.count + w.before for w in along]
    if all((w.stride, w.dilation) == (1, 1) for w in along) and min(pads_back) >= 0:
        return pool_back(g, along, pads_back, bool(count_include_pad))
    for axis, window in enumerate(along, start=2):
        if not window.trivial:
            share = 1 / counted(window, bool(count_include_pad))
            g = window.fold([g * along_axis(share, axis, x)] * window.kernel, axis)
    return g


def pool_back(g: Expr, along: list[Window], pads: list[int], include_pad: bool) -> Expr:
    """Stride 1: the sum over the windows that hold an element is a sum over a window too, and so a mean again.

    x̄ = the mean over a window of ȳ_o k / n_o, with k the size of the window. (Runtimes have a fast mean.)
    """
    for axis, window in enumerate(along, start=2):
        share = window.kernel / counted(window, include_pad)
        if (share != 1).any():
            g = g * along_axis(share, axis, g)
    kernel = [window.kernel for window in along]
    return op("AveragePool", g, kernel_shape=kernel, pads=pads, count_include_pad=1)


def along_axis(values: Any, axis: int, like: Expr) -> Expr:
    """Constants along one axis, to multiply a value of the rank of `like` with."""
    return like.emit.constant(values.astype(like.dtype).reshape(-1, *(1,) * (like.rank - 1 - axis)))


def counted(window: Window, include_pad: bool) -> np.ndarray[Any, np.dtype[np.float64]]:
    """By how many elements each output of a mean divides, along one axis."""
    first = np.arange(window.count) * window.stride - window.before
    low, high = (-window.before, window.size + window.after) if include_pad else (0, window.size)
    # The taps before an end are those whose number is less than its distance by the dilation, rounded up.
    before_low, before_high = (np.clip(-((first - end) // window.dilation), 0, window.kernel) for end in (low, high))
    return np.asarray(before_high - before_low, np.float64)


@vjp("LpPool")
def lp_pool(
    g: Expr,
    y: Expr,
    x: Expr,
    *,
    kernel_shape: Sequence[int],
    auto_pad: str = "NOTSET",
    ceil_mode: int = 0,
    dilations: Sequence[int] | None = None,
    p: int = 2,
    pads: Sequence[int] | None = None,
    strides: Sequence[int] | None = None,
) -> Expr:
    """y_o = (Σ|x|ᵖ)^(1/p) over the window;  x̄ = |x|^(p-1) sign(x) Σ ȳ_o y_o^(1-p) over the windows that hold it."""
    along = windows(
        x, y, kernel_shape, auto_pad=auto_pad, dilations=dilations, pads=pads, strides=strides, ceil_mode=ceil_mode
    )
    per_output, per_input = lp_slope(g, y, x, p)
    for axis, window in enumerate(along, start=2):
        if not window.trivial:
            per_output = window.fold([per_output] * window.kernel, axis)
    return per_output * per_input
