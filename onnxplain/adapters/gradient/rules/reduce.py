"""Reductions: the cotangent goes back to every element that was summed, and stays broadcastable."""

from __future__ import annotations

import math
from typing import Any

from onnxplain.adapters.gradient.expr import Expr, UnsupportedCase, op
from onnxplain.adapters.gradient.registry import no_gradient, vjp


def reduced_axes(x: Expr, axes: Expr | None, noop_with_empty_axes: int) -> list[int]:
    """The axes of a reduction, counted from the front."""
    if axes is not None and axes.constant is None:
        raise UnsupportedCase("axes that are not constant")
    given = [] if axes is None or axes.constant is None else [int(a) for a in axes.constant]
    if not given:
        return [] if noop_with_empty_axes else list(range(x.rank))
    return sorted(a % x.rank for a in given)


def kept(g: Expr, x: Expr, axes: list[int], keepdims: int) -> Expr:
    """The cotangent with a 1 in place of each reduced axis."""
    return g if keepdims else g.reshape([1 if a in axes else d for a, d in enumerate(x.shape)])


@vjp("ReduceSum")
def reduce_sum(
    g: Expr, y: Expr, x: Expr, axes: Expr | None = None, *, keepdims: int = 1, noop_with_empty_axes: int = 0
) -> tuple[Any, ...]:
    """y = Σ x;  x̄ = ȳ."""
    return kept(g, x, reduced_axes(x, axes, noop_with_empty_axes), keepdims), None


@vjp("ReduceMean")
def reduce_mean(
    g: Expr, y: Expr, x: Expr, axes: Expr | None = None, *, keepdims: int = 1, noop_with_empty_axes: int = 0
) -> tuple[Any, ...]:
    """y = Σ x / n;  x̄ = ȳ / n."""
    over = reduced_axes(x, axes, noop_with_empty_axes)
    return kept(g, x, over, keepdims) * (1 / math.prod(x.size(a) for a in over)), None


@vjp("GlobalAveragePool")
def global_average_pool(g: Expr, y: Expr, x: Expr) -> Expr:
    """y = the mean over all spatial axes;  x̄ = ȳ / n."""
    return g * (1 / math.prod(x.size(a) for a in range(2, x.rank)))


@vjp("Softmax")
def softmax(g: Expr, y: Expr, x: Expr, *, axis: int = -1) -> Expr:
    """yᵢ = eˣⁱ / Σⱼ eˣʲ;  x̄ = y ⊙ (ȳ - ⟨ȳ, y⟩)."""
    return y * (g - (g * y).sum([axis % x.rank], keepdims=True))


@vjp("LogSoftmax")
def log_softmax(g: Expr, y: Expr, x: Expr, *, axis: int = -1) -> Expr:
    """yᵢ = xᵢ - log Σⱼ eˣʲ;  x̄ = ȳ - softmax(x) Σ ȳ."""
    return g - op("Exp", y) * g.sum([axis % x.rank], keepdims=True)


no_gradient("it picks an index", "ArgMax", "ArgMin")
no_gradient(
    "it compares", "Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Not", "And", "Or", "IsNaN", "IsInf"
)
no_gradient("it is constant between jumps", "Floor", "Ceil", "Round", "Sign")
no_gradient("it reads a shape", "Shape", "Size", "ConstantOfShape")
