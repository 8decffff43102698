"""Masks: numbers that are 1 where something holds and 0 elsewhere, to multiply a cotangent with.

A product where one would expect a `Where`: that takes some 20 times as long on ONNX Runtime's CPU. An infinite
cotangent outside the mask becomes NaN, which is an error when the model is run, and never a wrong number.
"""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir

from onnxplain.adapters.gradient.expr import Expr, op
from onnxplain.adapters.gradient.layout import blocked

SCALE = 2.0**100  # a power of two, so that scaling rounds nothing


def keep(g: Expr, mask: Expr) -> Expr:
    """g where the mask (bool) holds, 0 elsewhere."""
    return g * as_number(mask, g)


def as_number(mask: Expr, like: Expr) -> Expr:
    return mask.cast(like.value.dtype or ir.DataType.FLOAT)


def above(y: Expr, bound: float | Expr) -> Expr:
    """1 where y > bound, 0 elsewhere."""
    return step(y, bound, 1.0)


def where_above(g: Expr, y: Expr, bound: float) -> Expr:
    """g where y > bound, 0 elsewhere."""
    return g * above(y, bound) if blocked(g) else keep(g, y > bound)


def below(y: Expr, bound: float | Expr) -> Expr:
    """1 where y < bound, 0 elsewhere."""
    return step(y, bound, -1.0)


def between(y: Expr, low: Expr, high: Expr) -> Expr:
    """1 where low < y < high, 0 at the bounds, between which y lies.

    Of a picture in two passes that stay in the blocked layout (see `step`). With b, the number before `high`, and
    k = max(0, c (y - b)),

        k - s (y - low)      is 0 at low, negative between the bounds, and positive at high

    if c (high - b) > s (high - low). It is exact: c and s are powers of two, and the rounded difference of two numbers
    has the right sign. ONNX Runtime makes a Conv of each BatchNormalization and joins Relu, Add and HardSigmoid to it.
    """
    bounds = number(low), number(high)
    slopes = None if None in bounds else two_slopes(*map(np.float32, bounds))
    if slopes is None or y.value.dtype != ir.DataType.FLOAT or y.rank != 4 or not isinstance(y.shape[1], int):
        return above(y, low) * below(y, high)
    first, last = map(np.float32, bounds)
    c, s = slopes
    k = op("Relu", scaled(y, c, np.nextafter(last, first)))
    return op("HardSigmoid", scaled(y, -s, first) + k, alpha=-SCALE, beta=-1 / SCALE)


def two_slopes(low: np.float32, high: np.float32) -> tuple[float, float] | None:
    """c and s of `between`, so that nothing overflows and the smallest step above `low` counts; None if none do."""
    largest = float(max(abs(low), abs(high)))
    if not (low < high and largest < math.inf):
        return None
    c = 2.0 ** min(126 - math.frexp(largest)[1], 127)
    room = c * (float(high) - float(np.nextafter(high, low))) / (float(high) - float(low))
    s = 2.0 ** (math.frexp(room)[1] - 3)  # at most a quarter of the room
    step = float(np.nextafter(low, high)) - float(low)
    return (c, s) if s >= 2.0**-126 and s * step * SCALE >= 2 else None


def scaled(y: Expr, factor: float, zero: np.float32) -> Expr:
    """factor * (y - zero) of a picture, as a BatchNormalization whose deviation is 1."""
    epsilon = 2.0**-10
    numbers = (factor, 0.0, zero, 1 - epsilon)  # scale, bias, mean, variance
    return op("BatchNormalization", y, *(np.full(y.size(1), v, np.float32) for v in numbers), epsilon=epsilon)


def bounds_of(mask: ir.Node) -> tuple[ir.Value, float, float] | None:
    """y, low and high of a node that makes `between`, in a graph that may have been read from a file; or None."""
    total = made_by("HardSigmoid", mask) and made_by("Add", mask.inputs[0])
    if not total:
        return None
    down, k = made_by("BatchNormalization", total.inputs[0]), made_by("Relu", total.inputs[1])
    up = made_by("BatchNormalization", k.inputs[0]) if k else None
    if not down or not up or down.inputs[0] is not up.inputs[0]:
        return None
    y, low, before = down.inputs[0], down.inputs[3], up.inputs[3]
    if y is None or low is None or low.const_value is None or before is None or before.const_value is None:
        return None
    high = np.nextafter(before.const_value.numpy()[0], np.float32(np.inf))
    return y, float(low.const_value.numpy()[0]), float(high)


def made_by(op_type: str, given: ir.Value | ir.Node | None) -> ir.Node | None:
    """The node itself, or the one that makes a value, if it is of that type."""
    node = given.producer() if isinstance(given, ir.Value) else given
    return node if node is not None and not node.domain and node.op_type == op_type else None


def reaches(x: Expr, extreme: Expr, sign: float) -> Expr:
    """1 where x is equal to a maximum that none exceeds (sign = 1), or to a minimum (-1), 0 elsewhere.

    Spelled without Equal, which newer opsets have no CUDA kernel for in ONNX Runtime.
    """
    return as_number(op("Not", x < extreme if sign > 0 else x > extreme), extreme)


def step(y: Expr, bound: float | Expr, sign: float) -> Expr:
    """1 where sign * (y - bound) > 0, 0 elsewhere, as HardSigmoid: max(0, min(1, alpha y + beta)).

    ONNX Runtime runs HardSigmoid in the blocked layout of the convolutions around it, where a comparison would have
    every tensor reordered, twice. It is exact. alpha = +-2^100 scales without rounding, and of two float32 numbers of
    magnitude b or more that differ, the difference is at least 2^-24 b: scaled it is beyond 1 for b >= 2^-60. Around 0
    a difference may be as small as 2^-149, and a second HardSigmoid takes its place. There beta is not 0 but -2^-100,
    which is lost in any other sum: OpenVINO takes a beta of 0 for one that is absent, and so for 0.5.
    """
    value = bound if isinstance(bound, float) else number(bound)
    exact = value is not None and (value == 0 or 2.0**-60 <= abs(value) <= 2.0**20)
    if value is None or not exact or y.value.dtype != ir.DataType.FLOAT:
        return as_number(y > bound if sign > 0 else y < bound, y)
    if value:
        return op("HardSigmoid", y, alpha=sign * SCALE, beta=-sign * SCALE * value)
    return op("HardSigmoid", op("HardSigmoid", y, alpha=sign * SCALE, beta=-1 / SCALE), alpha=SCALE, beta=-1 / SCALE)


def number(bound: Expr) -> float | None:
    """The bound, if it is one number and known now."""
    known = bound.constant
    return None if known is None or known.size != 1 else float(known.item())
