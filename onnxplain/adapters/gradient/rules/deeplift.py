"""DeepLIFT multipliers: rules that carry a change from a reference through each operator exactly.

Below Δ stands for a value at the image minus the same value at the reference, which is written with a prime.

Where a rule of the gradient has x̄ = ȳ f′(x), a rule here has x̄ = ȳ m with multipliers m for which

    Σᵢ mᵢ Δxᵢ = Δy

so that, rule by rule, the multipliers of the image keep Σ m Δx = ΔF (summation to delta). Source: Shrikumar, Greenside
and Kundaje, "Learning Important Features Through Propagating Activation Differences", ICML 2017, section 3; as a
gradient with other factors, Ancona, Ceolini, Öztireli and Gross, ICLR 2018, proposition 2.

*  linear operators keep their rules (the linear rule, section 3.5.1).
*  a function of one value has m = Δy / Δx (the rescale rule, section 3.5.2), and its derivative where Δx is 0.
*  a maximum: Δy belongs to the element that wins where y is larger, at the image or at the reference.

The paper says nothing of products. Two factors that both depend on the image are treated as equals:
Δ(ab) = Δa (b + b')/2 + Δb (a + a')/2, which are their Shapley values. Quotients and softmax follow from such steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from onnxplain.adapters.gradient.body import has_body
from onnxplain.adapters.gradient.expr import Expr, UnsupportedCase, op, where
from onnxplain.adapters.gradient.prepare import OPSET
from onnxplain.adapters.gradient.registry import DEFAULT, Entry, Rule, Rules
from onnxplain.adapters.gradient.rules.norm import per_channel

LEAST = 1e-10  # |Δx| below which a derivative takes its place: little, for at a kink the two differ

LINEAR = (
    "Add", "AveragePool", "Cast", "CastLike", "Col2Im", "Compress", "Concat", "CumSum", "DepthToSpace", "Dropout",
    "Expand", "Flatten", "Gather", "GatherElements", "GatherND", "GlobalAveragePool", "Identity", "Mean", "Neg", "Pad",
    "ReduceMean", "ReduceSum", "Reshape", "Resize", "ReverseSequence", "Slice", "SpaceToDepth", "Split", "Squeeze",
    "Sub", "Sum", "Tile", "Transpose", "Trilu", "Unsqueeze", "Where",
)  # fmt: skip
PRODUCTS = ("Conv", "ConvTranspose", "Gemm", "MatMul", "Mul")
FUNCTIONS = (  # of one value, place by place, with parameters that do not depend on the image
    "Abs", "Acos", "Acosh", "Asin", "Asinh", "Atan", "Atanh", "Clip", "Cos", "Cosh", "Elu", "Erf", "Exp", "Gelu",
    "HardSigmoid", "HardSwish", "LeakyRelu", "Log", "Mish", "PRelu", "Pow", "Reciprocal", "Relu", "Selu", "Shrink",
    "Sigmoid", "Sin", "Sinh", "Softplus", "Softsign", "Sqrt", "Swish", "Tan", "Tanh", "ThresholdedRelu",
)  # fmt: skip
MAXIMA = ("GlobalMaxPool", "Max", "MaxPool", "ReduceMax")
MINIMA = ("Min", "ReduceMin")


def change(x: Expr) -> Expr:
    """Δx = x - x', between image and reference."""
    return x - x.reference


def middle(x: Expr | None) -> Expr | None:
    """(x + x') / 2."""
    return (x + x.reference) * 0.5 if x is not None and x.varies else x


def quotient(dy: Expr, dx: Expr, limit: Expr) -> Expr:
    """Δy / Δx; its limit where Δx is as good as 0."""
    none = dx * dx < LEAST**2
    return where(none, limit, dy / where(none, 1.0, dx))


def varying(xs: Sequence[Expr | None]) -> list[bool]:
    """Which of the inputs of an operator depend on the image."""
    return [x is not None and x.varies for x in xs]


def parts(result: Any, wanted: Sequence[bool]) -> list[Expr | None]:
    """The cotangents of the wanted inputs in what a rule of the gradient returns."""
    found = result if isinstance(result, tuple) else (result,)
    return [(part() if callable(part) else part) if want else None for part, want in zip(found, wanted, strict=False)]


def with_parameters(rule: Rule) -> Rule:
    """The rule of the gradient, for an operator that is linear as long as its parameters do not depend on the image."""

    def multiplier(g: Any, y: Any, *xs: Expr | None, **attributes: Any) -> Any:
        refuse_parameters(xs[1:])
        return rule(g, y, *xs, **attributes)

    return multiplier


def refuse_parameters(xs: Sequence[Expr | None]) -> None:
    if any(varying(xs)):
        raise UnsupportedCase("its parameters depend on the image, for which DeepLIFT has no multipliers")


def rescale(rule: Rule) -> Rule:
    """y = f(x):  x̄ = ȳ Δy / Δx."""

    def multiplier(g: Expr, y: Expr, *xs: Expr | None, **attributes: Any) -> tuple[Expr | None, ...]:
        wanted = varying(xs)
        if sum(wanted) > 1:
            raise UnsupportedCase("several of its inputs depend on the image, for which DeepLIFT has no multipliers")
        slopes = parts(rule(g, y, *xs, **attributes), wanted)
        return tuple(
            None if slope is None or x is None else quotient(g * change(y), change(x), slope)
            for slope, x in zip(slopes, xs, strict=False)
        )

    return multiplier


def product(rule: Rule) -> Rule:
    """y = ab, of any bilinear kind:  ā = ȳ (b + b')/2  and  b̄ = ȳ (a + a')/2."""

    def multiplier(g: Expr, y: Expr, *xs: Expr | None, **attributes: Any) -> Any:
        return rule(g, y, *(xs if sum(varying(xs)) == 1 else map(middle, xs)), **attributes)

    return multiplier


def einsum(g: Expr, y: Expr, *xs: Expr, equation: str | bytes) -> Any:
    """A product of two, whatever else is in it."""
    if sum(varying(xs)) > 2:
        raise UnsupportedCase("several factors depend on the image; DeepLIFT has multipliers for products of two")
    return product(DEFAULT["Einsum"].rule)(g, y, *xs, equation=equation)


def extremum(rule: Rule, sign: float = 1.0) -> Rule:
    """y = max x:  x̄ᵢ = ȳ Δy / Δxᵢ for the element i that is y, or y', whichever is larger.

    With sign = -1 the same for y = min x, and whichever is smaller.
    There Δxᵢ is Δy at least, in magnitude, so that no multiplier is larger than 1.
    """

    def multiplier(g: Any, y: Any, *xs: Expr | None, **attributes: Any) -> tuple[Expr | None, ...]:
        if isinstance(g, tuple):  # the indices, the second output of MaxPool, have no gradient
            g, y = g[0], y[0]
        dy = change(y)
        here = where(dy * sign > 0.0, dy, 0.0)  # what the winners at the image take; the others take the rest
        wanted, references = varying(xs), [x and x.reference for x in xs]
        won = parts(rule(g * here, y, *xs, **attributes), wanted)
        lost = parts(rule(g * (dy - here), y.reference, *references, **attributes), wanted)
        slopes = parts(rule(g, y, *xs, **attributes), wanted)
        return tuple(
            None if a is None or b is None or slope is None or x is None else quotient(a + b, change(x), slope)
            for a, b, slope, x in zip(won, lost, slopes, xs, strict=False)
        )

    return multiplier


def divide(g: Expr, y: Expr, a: Expr, b: Expr) -> tuple[Any, ...]:
    """y = a r with r = 1/b:  ā = ȳ (r + r')/2  and, as Δr / Δb = -r r',  b̄ = -ȳ r r' (a + a')/2."""
    r, r0 = 1 / b, 1 / b.reference
    return lambda: g * (r + r0) * 0.5, lambda: -g * r * r0 * middle(a)


def softmax(g: Expr, y: Expr, x: Expr, *, axis: int = -1) -> Expr:
    """y = eˡ with l = x - L, L = log Σ eˣ:  x̄ = h - m Σ h  with  h = ȳ Δy / Δl  and m as in `share`."""
    axis %= x.rank
    total, total0 = log_sum(x, axis), log_sum(x.reference, axis)
    h = g * quotient(change(y), change(x) - (total - total0), y)
    return h - share(x, total, total0) * h.sum([axis], keepdims=True)


def log_softmax(g: Expr, y: Expr, x: Expr, *, axis: int = -1) -> Expr:
    """y = x - L, L = log Σ eˣ:  x̄ = ȳ - m Σ ȳ."""
    axis %= x.rank
    return g - share(x, log_sum(x, axis), log_sum(x.reference, axis)) * g.sum([axis], keepdims=True)


def log_sum(x: Expr, axis: int) -> Expr:
    """L = log Σ eˣ along an axis."""
    top = op("ReduceMax", x, [axis], keepdims=1)
    return top + op("Log", op("Exp", x - top).sum([axis], keepdims=True))


def share(x: Expr, total: Expr, total0: Expr) -> Expr:
    """m with Σ m Δx = ΔL, given L and L'.

    With S = Σ e and e = eˣ⁻ᶜ, for a constant c that keeps all of them at 1 or below:  m = (Δe / Δx) / (ΔS / ΔL).
    """
    c = where(total > total0, total, total0)
    e, e0, s, s0 = (op("Exp", part - c) for part in (x, x.reference, total, total0))
    return quotient(e - e0, change(x), e) / quotient(s - s0, total - total0, s)


def instance_normalization(
    g: Expr, y: Expr, x: Expr, scale: Expr, bias: Expr, *, epsilon: float = 1e-5
) -> tuple[Any, ...]:
    """y = γ h + β, h standardised over each picture."""
    refuse_parameters((scale, bias))
    return lambda: standardised(g * per_channel(scale, x), x, list(range(2, x.rank)), epsilon), None, None


def layer_normalization(
    g: Any,
    y: Any,
    x: Expr,
    scale: Expr,
    bias: Expr | None = None,
    *,
    axis: int = -1,
    epsilon: float = 1e-5,
    stash_type: int = 1,
) -> tuple[Any, ...]:
    """y = γ h + β, h standardised over the last axes."""
    refuse_parameters((scale, bias))
    g, *others = g if isinstance(g, tuple) else (g,)
    if g is None or any(other is not None for other in others):
        raise UnsupportedCase("DeepLIFT has no multipliers for its mean and deviation")
    return lambda: standardised(g * scale, x, list(range(axis % x.rank, x.rank)), epsilon), None, None


def standardised(q: Expr, x: Expr, axes: Sequence[int], epsilon: float) -> Expr:
    """h = c r with c = x - mean(x), v = mean(c²), r = 1/√(v + ε):  x̄ = c̄ - mean(c̄), given q = h̄.

    c̄ = q (r + r')/2 + (c + c') v̄ / n  with  v̄ = (Δr / Δv) Σ q (c + c')/2, over the n elements of the axes.
    """
    (c, v, r), (c0, v0, r0) = (deviations(part, axes, epsilon) for part in (x, x.reference))
    slope = quotient(r - r0, v - v0, -0.5 * r / (v + epsilon))
    both = q * (r + r0) * 0.5 + (c + c0) * slope * (q * (c + c0) * 0.5).mean(axes)
    return both - both.mean(axes)


def deviations(x: Expr, axes: Sequence[int], epsilon: float) -> tuple[Expr, Expr, Expr]:
    """x - mean(x), the variance, and one over the standard deviation."""
    c = x - x.mean(axes)
    v = (c * c).mean(axes)
    return c, v, 1 / op("Sqrt", v + epsilon)


def none(*_: Any, **__: Any) -> Any:
    raise UnsupportedCase("DeepLIFT has no multipliers for it; next: use another method for this model")


def table() -> dict[str, Entry]:
    """The rules, and refusals of what the gradient has a rule for and neither ONNX nor DeepLIFT takes apart."""
    made: dict[str, Rule] = {
        **{op_type: DEFAULT[op_type].rule for op_type in LINEAR},
        **{op_type: rescale(DEFAULT[op_type].rule) for op_type in FUNCTIONS},
        **{op_type: product(DEFAULT[op_type].rule) for op_type in PRODUCTS},
        **{op_type: extremum(DEFAULT[op_type].rule) for op_type in MAXIMA},
        **{op_type: extremum(DEFAULT[op_type].rule, sign=-1.0) for op_type in MINIMA},
        "BatchNormalization": with_parameters(DEFAULT["BatchNormalization"].rule),
        "Div": divide,
        "Einsum": einsum,
        "InstanceNormalization": instance_normalization,
        "LayerNormalization": layer_normalization,
        "LogSoftmax": log_softmax,
        "Softmax": softmax,
    }
    entries = {name: Entry(rule, DEFAULT[name].broadcastable, reference=True) for name, rule in made.items()}
    left = [op_type for op_type in DEFAULT if op_type not in entries and not has_body("", op_type, OPSET)]
    return entries | {op_type: Entry(none, reference=True) for op_type in left}


# A table of rules for `gradient_model(model, rules=...)`: the gradient model gets a reference, and `gradient` holds
# multipliers. What has no entry is taken apart into operators that do, as its function in ONNX says.
DEEPLIFT: Rules = table()
