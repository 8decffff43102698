"""Masks: numbers that are 1 where something holds and 0 elsewhere, to multiply a cotangent with.

A product where one would expect a `Where`: that takes some 20 times as long on ONNX Runtime's CPU. An infinite
cotangent outside the mask becomes NaN, which is an error when the model is run, and never a wrong number.
"""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir

from onnxplain.adapters.gradient.expr import Expr, op

SCALE = 2.0**100  # a power of two, so that scaling rounds nothing


def keep(g: Expr, mask: Expr) -> Expr:
    """g where the mask (bool) holds, 0 elsewhere."""
    return g * as_number(mask, g)


def as_number(mask: Expr, like: Expr) -> Expr:
    return mask.cast(like.value.dtype or ir.DataType.FLOAT)


def above(y: Expr, bound: float | Expr) -> Expr:
    """1 where y > bound, 0 elsewhere."""
    return step(y, bound, 1.0)


def below(y: Expr, bound: float | Expr) -> Expr:
    """1 where y < bound, 0 elsewhere."""
    return step(y, bound, -1.0)


def between(y: Expr, low: float | Expr, high: float | Expr) -> Expr:
    """1 where low < y < high, 0 at the bounds, which y does not leave.

    Of a picture in the blocked layout (see `step`) in two passes: with k = max(0, c (y - b)), b the number before high,

        k - s (y - low)      is 0 at low, negative between, positive at high, where k = c (high - b) > s (high - low)

    ONNX Runtime makes a Conv of each BatchNormalization, and joins Relu, Add and HardSigmoid to it. It is exact: c and
    s are powers of two, and a difference of two numbers, rounded, has the right sign.
    """
    bounds = [value if isinstance(value, float) else number(value) for value in (low, high)]
    if None in bounds or y.rank != 4 or not isinstance(y.shape[1], int) or y.value.dtype != ir.DataType.FLOAT:
        return above(y, low) * below(y, high)
    lowest, highest = (np.float32(bound) for bound in bounds)
    before = np.nextafter(highest, np.float32(-np.inf))
    magnitude = max(abs(lowest), abs(highest))
    if not (lowest < highest and 2.0**-20 <= magnitude <= 2.0**20):
        return above(y, low) * below(y, high)
    c = 2.0 ** (125 - math.frexp(magnitude)[1])
    s = 2.0 ** (math.frexp(c * (float(highest) - float(before)))[1] - 3 - math.frexp(2 * magnitude)[1])
    k = op("Relu", scaled(y, c, before))
    return op("HardSigmoid", scaled(y, -s, lowest) + k, alpha=-SCALE, beta=-1 / SCALE)


def scaled(y: Expr, factor: float, zero: float) -> Expr:
    """factor * (y - zero) of a picture, as a BatchNormalization: 1/√(σ² + ε) = 1."""
    channels, epsilon = y.size(1), 2.0**-10
    scale, bias, mean, variance = (np.full(channels, v, np.float32) for v in (factor, 0, zero, 1 - epsilon))
    return op("BatchNormalization", y, scale, bias, mean, variance, epsilon=epsilon)


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
