"""Operators that move elements without changing them: their adjoint moves the cotangent back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from onnxplain.adapters.gradient.expr import Expr, UnsupportedCase, add_all, concat, op
from onnxplain.adapters.gradient.facts import Array
from onnxplain.adapters.gradient.registry import vjp
from onnxplain.adapters.gradient.rules.places import constant, put_back, resized


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
        if isinstance(x.shape[axis], int):
            first = max(start, -x.size(axis)) if step < 0 else start  # beyond this ONNX clamps as Python does
            taken = np.arange(x.size(axis))[first:end:step]
            g = put_back(resized(g, axis, len(taken)), axis, taken, x.size(axis))
        else:
            g = uncut(g, x, axis, start, end, step)
    return g.like(x), None, None, None, None  # shape inference forgets the name of a batch that was sliced whole


def uncut(g: Expr, x: Expr, axis: int, start: int, end: int, step: int) -> Expr:
    """The same for an axis of free size that was kept but for some elements at its ends, or reversed."""
    whole = end >= np.iinfo(np.int32).max
    if step == 1 and start >= 0 and (whole or end < 0):
        padded = g.pad(axis, start, 0 if whole else -end)
        if padded is g:
            return g
        size = op("Slice", op("Shape", x), [axis], [axis + 1])
        return op("Slice", padded, [0], size, [axis])  # longer than x where x was so short that nothing was left
    if (start, step) == (-1, -1) and end < np.iinfo(np.int32).min:
        return g.slice(axis, -1, np.iinfo(np.int64).min, -1)
    raise UnsupportedCase(f"[{start}:{end}:{step}] along dimension {axis}, which is not fixed ({x.shape[axis]})")


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
    """y = x with a border (cropped where a width is negative); what the border copies of x adds to its own places.

    A constant border's value gets the sum of ȳ over the border.
    """
    if pads.constant is None or (axes is not None and axes.constant is None):
        raise UnsupportedCase("widths or axes that are not constant")
    over = range(x.rank) if axes is None or axes.constant is None else axes.constant.tolist()
    widths = [
        (axis % x.rank, before, after)
        for axis, before, after in zip(over, *(half.tolist() for half in np.split(pads.constant, 2)), strict=True)
        if (before, after) != (0, 0)
    ]

    def image() -> Expr:
        back = g
        for axis, before, after in widths:
            if mode == "constant":
                back = inner(back, axis, before, after)
            else:
                back = put_back(back, axis, padded_places(x.size(axis), before, after, mode), x.size(axis))
        return back.like(x)

    def border() -> Expr:
        assert value is not None
        rest, parts = g, [g.emit.constant(np.zeros((), g.dtype))]
        everything = list(range(g.rank))
        for axis, before, after in widths:
            strips = [rest.slice(axis, 0, before)] if before > 0 else []
            strips += [rest.slice(axis, -after, np.iinfo(np.int64).max)] if after > 0 else []
            parts += [strip.sum(everything) for strip in strips]
            rest = inner(rest, axis, max(before, 0), max(after, 0))
        return add_all(parts).reshape(value.shape)

    return (image, None, border, None)[: 2 + (value is not None) + (axes is not None)]


def inner(g: Expr, axis: int, before: int, after: int) -> Expr:
    """ȳ without the border along one axis, and with zeros where x was cropped."""
    if max(before, after) > 0:
        g = g.slice(axis, max(before, 0), -after if after > 0 else np.iinfo(np.int64).max)
    return g.pad(axis, max(-before, 0), max(-after, 0))


def padded_places(size: int, before: int, after: int, mode: str) -> Array:
    """Which element of x each element of y is. What is cropped goes first, and is not seen by the border."""
    places = np.arange(size)[max(-before, 0) : size + min(after, 0)]
    return np.pad(places, (max(before, 0), max(after, 0)), mode=mode)  # type: ignore[call-overload,no-any-return]


@vjp("Tile")
def tile(g: Expr, y: Expr, x: Expr, repeats: Expr) -> tuple[Any, ...]:
    """y = x over and over;  x̄ = the sum of the copies."""
    for axis, times in enumerate(constant(repeats, "repeats").tolist()):
        if times != 1:
            copies = g.reshape((*g.shape[:axis], times, x.shape[axis], *g.shape[axis + 1 :]))
            g = copies.sum([axis])
    return g.like(x), None


@vjp("DepthToSpace")
def depth_to_space(g: Expr, y: Expr, x: Expr, *, blocksize: int, mode: str = "DCR") -> Expr:
    """Channels c' b² become blocks of b x b pixels;  x̄ takes the blocks apart again."""
    n, c, h, w = x.shape
    b, channels = blocksize, x.size(1) // blocksize**2
    blocks = g.reshape((n, channels, h, b, w, b))
    return blocks.transpose((0, 3, 5, 1, 2, 4) if mode == "DCR" else (0, 1, 3, 5, 2, 4)).reshape((n, c, h, w))


@vjp("SpaceToDepth")
def space_to_depth(g: Expr, y: Expr, x: Expr, *, blocksize: int, mode: str = "DCR") -> Expr:
    """Blocks of b x b pixels become channels;  x̄ puts the blocks together again."""
    n, c, h, w = x.shape
    b = blocksize
    blocks = (b, b, c) if mode == "DCR" else (c, b, b)
    apart = g.reshape((n, *blocks, y.shape[2], y.shape[3]))
    return apart.transpose((0, 3, 4, 1, 5, 2) if mode == "DCR" else (0, 1, 4, 2, 5, 3)).reshape((n, c, h, w))
