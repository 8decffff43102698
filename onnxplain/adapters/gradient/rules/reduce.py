"""Reductions: the cotangent goes back to every element that was summed, and stays broadcastable."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxplain.adapters.gradient.expr import Expr, UnsupportedCase, concat, op, where
from onnxplain.adapters.gradient.layout import fits
from onnxplain.adapters.gradient.registry import Rule, no_gradient, vjp
from onnxplain.adapters.gradient.rules.mask import above, below, reaches

SMALL_MAP = 32  # along each axis


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


def reduction(op_type: str, formula: Rule) -> None:
    """Register a reduction by its formula, where ȳ and y have a 1 in place of each axis, and the axes are a list."""

    def rule(
        g: Expr, y: Expr, x: Expr, axes: Expr | None = None, *, keepdims: int = 1, noop_with_empty_axes: int = 0
    ) -> tuple[Any, ...]:
        over = reduced_axes(x, axes, noop_with_empty_axes)
        return formula(kept(g, x, over, keepdims), kept(y, x, over, keepdims), x, over), None

    vjp(op_type)(rule)


def lp_slope(g: Expr, y: Expr, x: Expr, p: int) -> tuple[Expr, Expr]:
    """The two factors of x̄ for y = (Σ|x|ᵖ)^(1/p):  ȳ y^(1-p), which is 0 where y = 0, and |x|^(p-1) sign(x)."""
    if p == 1:
        return g, op("Sign", x)
    some = above(y, 0.0)
    safe = y + (1 - some)
    if p == 2:
        return g * some / safe, x
    sign = op("Sign", x)
    return g * some * op("Pow", safe, 1.0 - p), sign * op("Pow", x * sign, p - 1.0)


def lp_norm(p: int) -> Rule:
    def rule(g: Expr, y: Expr, x: Expr, axes: list[int]) -> Expr:
        """y = (Σ|x|ᵖ)^(1/p);  x̄ = ȳ y^(1-p) |x|^(p-1) sign(x), 0 where y = 0."""
        per_output, per_input = lp_slope(g, y, x, p)
        return per_output * per_input

    return rule


def extreme(sign: float) -> Rule:
    def rule(g: Expr, y: Expr, x: Expr, axes: list[int]) -> Expr:
        """y = max x or min x;  ȳ is shared out evenly among the elements equal to y, as by PyTorch's amax."""
        hit = reaches(x, y, sign)
        return hit * (g / hit.sum(axes, keepdims=True))

    return rule


def product(g: Expr, y: Expr, x: Expr, axes: list[int]) -> Expr:
    """y = Π x;  x̄ᵢ = ȳ Π xⱼ over the others, j ≠ i.

    With z = 1 where x is 0 and w = x + z, whose elements are not zero, that is ȳ (Π w) / wᵢ if none of the others is
    zero, and else 0.
    """
    z = 1 - op("Sign", x) * op("Sign", x)
    w = x + z
    others = z.sum(axes, keepdims=True) - z
    whole = op("ReduceProd", w, axes, keepdims=1) if axes else w
    return g * below(others, 0.5) * whole / w


reduction("ReduceL1", lp_norm(1))
reduction("ReduceL2", lp_norm(2))
reduction("ReduceSumSquare", lambda g, y, x, axes: 2 * g * x)
reduction("ReduceLogSum", lambda g, y, x, axes: g * op("Exp", -y))  # y = log Σ x, so e^-y = 1 / Σ x
reduction("ReduceLogSumExp", lambda g, y, x, axes: g * op("Exp", x - y))
reduction("ReduceMax", extreme(1.0))
reduction("ReduceMin", extreme(-1.0))
reduction("ReduceProd", product)


@vjp("GlobalLpPool")
def global_lp_pool(g: Expr, y: Expr, x: Expr, *, p: int = 2) -> Expr:
    """y = (Σ|x|ᵖ)^(1/p) over all spatial axes;  x̄ = ȳ y^(1-p) |x|^(p-1) sign(x), 0 where y = 0."""
    per_output, per_input = lp_slope(g, y, x, p)
    return per_output * per_input


@vjp("GlobalMaxPool")
def global_max_pool(g: Expr, y: Expr, x: Expr) -> Expr:
    """y = max x over all spatial axes;  ȳ goes to the first element that is equal to y, as in MaxPool."""
    columns = (*x.shape[:2], math.prod(x.size(a) for a in range(2, x.rank)))
    hit = reaches(x, y, 1.0).reshape(columns)
    earlier = op("CumSum", hit, np.asarray(2), exclusive=1)
    return g * (hit * below(earlier, 0.5)).reshape(x.shape)


@vjp("CumSum")
def cumulative_sum(g: Expr, y: Expr, x: Expr, axis: Expr, *, exclusive: int = 0, reverse: int = 0) -> tuple[Any, ...]:
    """yᵢ = Σ xⱼ up to i;  x̄ⱼ = Σ ȳᵢ from j on: the same sum from the other end."""
    if axis.constant is None:
        raise UnsupportedCase("an axis that is not constant")
    return op("CumSum", g, np.asarray(axis.constant.item()), exclusive=exclusive, reverse=int(not reverse)), None


@vjp("CumProd")
def cumulative_product(
    g: Expr, y: Expr, x: Expr, axis: Expr, *, exclusive: int = 0, reverse: int = 0
) -> tuple[Any, ...]:
    """yᵢ = x₁ ... xᵢ;  x̄ⱼ = (x₁ ... xⱼ₋₁) tⱼ  with  tⱼ = ȳⱼ + xⱼ₊₁ tⱼ₊₁. No division: x may hold zeros.

    If yᵢ leaves xᵢ out (exclusive), it is what else is yᵢ₋₁, and ȳ moves by one.
    """
    if axis.constant is None:
        raise UnsupportedCase("an axis that is not constant")
    along = int(axis.constant.item()) % x.rank
    count = x.size(along)
    order = range(count)[::-1] if reverse else range(count)
    xs = [x.slice(along, i, i + 1) for i in order]
    gs = [g.slice(along, i, i + 1) for i in order]
    if exclusive:
        gs = [*gs[1:], gs[0] * 0.0]
    before: list[Expr] = []
    after = [gs[-1]]
    for i in range(count - 1):
        before.append(before[-1] * xs[i] if before else xs[i])
        after.append(gs[-2 - i] + xs[-1 - i] * after[-1])
    after.reverse()
    parts = [after[0], *(b * t for b, t in zip(before, after[1:], strict=True))]
    return concat(parts[::-1] if reverse else parts, along), None


@vjp("GlobalAveragePool")
def global_average_pool(g: Expr, y: Expr, x: Expr) -> Expr:
    """y = the mean over all spatial axes;  x̄ = ȳ / n.

    Over a small map it is spread out at once, by the mean over windows that see ȳ and n - 1 zeros around it: thus it is
    in the blocked layout from the start (see `layout`).
    """
    sizes = [x.size(a) for a in range(2, x.rank)]
    if fits(g) and max(sizes) <= SMALL_MAP:
        return op("AveragePool", g, kernel_shape=sizes, pads=[n - 1 for n in sizes] * 2, count_include_pad=1)
    return g * (1 / math.prod(sizes))


@vjp("Softmax")
def softmax(g: Expr, y: Expr, x: Expr, *, axis: int = -1) -> Expr:
    """yᵢ = eˣⁱ / Σⱼ eˣʲ;  x̄ = y ⊙ (ȳ - ⟨ȳ, y⟩)."""
    if chosen_from(y.value):
        y = where(y > 0.0, y, 0.0)
    return y * (g - (g * y).sum([axis % x.rank], keepdims=True))


def chosen_from(value: ir.Value) -> bool:
    """Whether a Where takes some of the elements only: of an attention's weights, to leave out what is NaN.

    That is what a softmax makes of a row that is masked all over. Its cotangent is 0 then, and so must x̄ be.
    """
    readers = [node for node, _ in value.uses()]
    copies = [node for node in readers if node.op_type in ("Cast", "CastLike", "Identity")]
    return any(node.op_type == "Where" for node in readers) or any(chosen_from(node.outputs[0]) for node in copies)


@vjp("LogSoftmax")
def log_softmax(g: Expr, y: Expr, x: Expr, *, axis: int = -1) -> Expr:
    """yᵢ = xᵢ - log Σⱼ eˣʲ;  x̄ = ȳ - softmax(x) Σ ȳ."""
    return g - op("Exp", y) * g.sum([axis % x.rank], keepdims=True)


no_gradient("it picks an index", "ArgMax", "ArgMin", "NonMaxSuppression", "NonZero")
no_gradient("it compares", "Equal", "Greater", "GreaterOrEqual", "IsInf", "IsNaN", "Less", "LessOrEqual")
no_gradient("it is logic", "And", "Not", "Or", "Xor")
no_gradient("it is constant between jumps", "Floor", "Ceil", "Hardmax", "Round", "Sign")
no_gradient("it reads a shape", "Shape", "Size", "ConstantOfShape", "EyeLike", "RandomNormalLike", "RandomUniformLike")
