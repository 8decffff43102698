"""Elementwise operators. Read each line as  y = f(x),  x̄ = ȳ · f′(x),  with ȳ written g.

Derivatives read y rather than x wherever they can, so that a runtime may still fuse Conv with the activation behind it.
Where f has a kink, the derivative is PyTorch's.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxplain.adapters.gradient.expr import Expr, UnsupportedCase, add_all, op, where
from onnxplain.adapters.gradient.registry import Rule, define, no_gradient, vjp
from onnxplain.adapters.gradient.rules.mask import above, below, between, reaches, where_above

define(
    {
        "Add": lambda g, y, a, b: (g, g),
        "Sub": lambda g, y, a, b: (g, lambda: -g),
        "Mul": lambda g, y, a, b: (lambda: g * b, lambda: g * a),
        "Div": lambda g, y, a, b: (lambda: g / b, lambda: -g * y / b),
        "Sum": lambda g, y, *xs: tuple(g for _ in xs),
        "Mean": lambda g, y, *xs: tuple(g * (1 / len(xs)) for _ in xs),
        "Mod": lambda g, y, a, b, *, fmod=0: (g, lambda: -g * (a - y) / b),  # y = a - b times a whole number
        "Identity": lambda g, y, x: g,
        "Neg": lambda g, y, x: -g,
        "Exp": lambda g, y, x: g * y,
        "Log": lambda g, y, x: g / x,
        "Sqrt": lambda g, y, x: g / (2 * y),
        "Reciprocal": lambda g, y, x: -g * y * y,
        "Abs": lambda g, y, x: g * op("Sign", x),
        "Sin": lambda g, y, x: g * op("Cos", x),
        "Cos": lambda g, y, x: -g * op("Sin", x),
        "Tan": lambda g, y, x: g * (1 + y * y),
        "Asin": lambda g, y, x: g / op("Sqrt", (1 - x) * (1 + x)),
        "Acos": lambda g, y, x: -g / op("Sqrt", (1 - x) * (1 + x)),
        "Atan": lambda g, y, x: g / (1 + x * x),
        "Sinh": lambda g, y, x: g * (op("Exp", x) + op("Exp", -x)) * 0.5,
        "Cosh": lambda g, y, x: g * y * op("Tanh", x),  # sinh = cosh tanh, without cancellation near 0
        "Asinh": lambda g, y, x: g / op("Sqrt", x * x + 1),
        "Acosh": lambda g, y, x: g / op("Sqrt", (x - 1) * (x + 1)),
        "Atanh": lambda g, y, x: g / ((1 - x) * (1 + x)),
        "Tanh": lambda g, y, x: g * (1 - y * y),
        "Sigmoid": lambda g, y, x: g * y * (1 - y),
        "Softplus": lambda g, y, x: g * op("Sigmoid", x),
        "Softsign": lambda g, y, x: g * (1 - y * op("Sign", y)) * (1 - y * op("Sign", y)),
        "Erf": lambda g, y, x: g * op("Exp", math.log(2 / math.sqrt(math.pi)) - x * x),
        "Relu": lambda g, y, x: where_above(g, y, 0.0),
        "Cast": lambda g, y, x, *, to, saturate=1, round_mode="up": g.cast(x.value.dtype),
        "CastLike": lambda g, y, x, like, *, saturate=1, round_mode="up": (g.cast(x.value.dtype), like.zero),
    },
    broadcastable=True,
)


@vjp("LeakyRelu", broadcastable=True)
def leaky_relu(g: Expr, y: Expr, x: Expr, *, alpha: float = 0.01) -> Expr:
    """y = x where x > 0, else αx."""
    return g * alpha + g * (1 - alpha) * above(x, 0.0)


@vjp("HardSigmoid", broadcastable=True)
def hard_sigmoid(g: Expr, y: Expr, x: Expr, *, alpha: float = 0.2, beta: float = 0.5) -> Expr:
    """y = max(0, min(1, αx + β));  x̄ = αȳ strictly between the bounds."""
    return g * alpha * above(y, 0.0) * below(y, 1.0)


@vjp("HardSwish", broadcastable=True)
def hard_swish(g: Expr, y: Expr, x: Expr) -> Expr:
    """y = x max(0, min(1, x/6 + 1/2));  f′ = 0 up to -3, 1 from 3 on, (2x + 3)/6 between."""
    low, high = above(x, -3.0), below(x, 3.0)
    return g * ((2 * x + 3.0) / 6) * low * high + g * (1 - high)


@vjp("Clip", broadcastable=True)
def clip(g: Expr, y: Expr, x: Expr, low: Expr | None = None, high: Expr | None = None) -> tuple[Any, ...]:
    """y = min(max(x, low), high);  x̄ = ȳ strictly between the bounds, 0 at them, where it goes to the bound."""

    def lower() -> Expr | None:
        if low is None:
            return None
        rest = g * (1 - above(y, low))
        return rest if high is None else rest * below(y, high)

    def upper() -> Expr | None:
        return None if high is None else g * (1 - below(y, high))

    if low is not None and high is not None:
        return g * between(y, low, high), lower, upper
    if low is not None:
        return g * above(y, low), lower
    return g if high is None else g * below(y, high), None, upper


@vjp("Dropout", broadcastable=True)
def dropout(g: Any, y: Any, x: Expr, ratio: Expr | None = None, training: Expr | None = None, *, seed: int = 0) -> Any:
    """At inference y = x."""
    if training is not None and (training.constant is None or bool(training.constant)):
        raise UnsupportedCase("training mode; export the model in evaluation mode")
    return g[0] if isinstance(g, tuple) else g, ratio and ratio.zero, None


@vjp("Elu", broadcastable=True)
def elu(g: Expr, y: Expr, x: Expr, *, alpha: float = 1.0) -> Expr:
    """y = x where x > 0, else α(eˣ - 1);  f′ = 1 where x > 0, else αeˣ = y + α."""
    positive = above(x, 0.0)
    return g * (positive + (1 - positive) * (y + alpha))


@vjp("Selu", broadcastable=True)
def selu(g: Expr, y: Expr, x: Expr, *, alpha: float = 1.6732631921768188, gamma: float = 1.0507010221481323) -> Expr:
    """y = γ Elu(x);  f′ = γ where x > 0, else γαeˣ = y + γα."""
    positive = above(x, 0.0)
    return g * (gamma * positive + (1 - positive) * (y + gamma * alpha))


@vjp("PRelu", broadcastable=True)
def p_relu(g: Expr, y: Expr, x: Expr, slope: Expr) -> tuple[Any, ...]:
    """y = x where x > 0, else αx;  x̄ = ȳ or αȳ, ᾱ = 0 or ȳx."""
    positive = above(x, 0.0)
    return lambda: g * (positive + (1 - positive) * slope), lambda: g * (1 - positive) * x


@vjp("ThresholdedRelu", broadcastable=True)
def thresholded_relu(g: Expr, y: Expr, x: Expr, *, alpha: float = 1.0) -> Expr:
    """y = x where x > α, else 0."""
    return g * above(x, alpha)


@vjp("Shrink", broadcastable=True)
def shrink(g: Expr, y: Expr, x: Expr, *, bias: float = 0.0, lambd: float = 0.5) -> Expr:
    """y = x + b where x < -λ, x - b where x > λ, else 0;  f′ = 1 or 0."""
    if lambd < 0:
        raise UnsupportedCase("a negative lambd")  # both sides would overlap
    return g * (below(x, -lambd) + above(x, lambd))


@vjp("Swish", broadcastable=True)
def swish(g: Expr, y: Expr, x: Expr, *, alpha: float = 1.0) -> Expr:
    """y = x s with s = σ(αx);  f′ = s + αxs(1 - s) = s + αy(1 - s)."""
    s = op("Sigmoid", x * alpha)
    return g * (s + alpha * y * (1 - s))


@vjp("Mish", broadcastable=True)
def mish(g: Expr, y: Expr, x: Expr) -> Expr:
    """y = x t with t = tanh(softplus(x));  f′ = t + x (1 - t²) σ(x)."""
    t = op("Tanh", op("Softplus", x))
    return g * (t + x * (1 - t * t) * op("Sigmoid", x))


@vjp("Gelu", broadcastable=True)
def gelu(g: Expr, y: Expr, x: Expr, *, approximate: str = "none") -> Expr:
    """y = x Φ(x);  f′ = Φ(x) + x φ(x), with φ, Φ the density and the distribution function of the normal distribution.

    In the approximate form Φ = (1 + t)/2 with t = tanh(u), u = c (x + k x³);  f′ = Φ + x (1 - t²) c (1 + 3k x²)/2.
    """
    if approximate == "tanh":
        c, k = math.sqrt(2 / math.pi), 0.044715
        square = x * x
        t = op("Tanh", c * x * (1 + k * square))
        return g * 0.5 * (1 + t + x * (1 - t * t) * (c + 3 * c * k * square))
    distribution = 0.5 * (1 + op("Erf", x * math.sqrt(0.5)))
    density = (1 / math.sqrt(2 * math.pi)) * op("Exp", -0.5 * x * x)
    return g * (distribution + x * density)


@vjp("Pow", broadcastable=True)
def power(g: Expr, y: Expr, x: Expr, p: Expr) -> tuple[Any, ...]:
    """y = xᵖ;  x̄ = ȳ p xᵖ⁻¹, 0 for p = 0;  p̄ = ȳ y log x, 0 at x = 0 and NaN below, as PyTorch has it.

    Nothing but the exponent's own gradient takes a logarithm: x may be negative where p is whole.
    """

    def base() -> Expr:
        if p.constant is None:
            q = p.cast(x.value.dtype or ir.DataType.FLOAT)
            return g * q * op("Pow", x, where(op("Equal", q, 0.0), 1.0, q - 1))
        known = p.constant.astype(x.dtype)
        if known.size == 1:
            value = float(known.item())
            if value == 0:
                return x.zero()
            if value == 1:
                return g
            if value == 2:
                return g * 2 * x
            if value == 0.5:
                return g / (2 * y)
        return g * known * op("Pow", x, np.where(known == 0, known.dtype.type(1), known - 1))

    def exponent() -> Expr:
        cotangent = g * y * op("Log", where(op("Equal", x, 0.0), 1.0, x))
        return cotangent.cast(p.value.dtype or ir.DataType.FLOAT)

    return base, exponent


def extremum(sign: float) -> Rule:
    """The rule of Max (sign = 1) or Min (-1)."""

    def rule(g: Expr, y: Expr, *xs: Expr) -> tuple[Any, ...]:
        """y = the largest or smallest of x₁, x₂, ...;  ȳ is shared out evenly among those that are equal to y.

        PyTorch has it so for two operands; of more, all count the same here too.
        """
        if len(xs) == 1:
            return (g,)
        hits = [reaches(x, y, sign) for x in xs]
        share = g / add_all(hits)
        return tuple(lambda hit=hit: share * hit for hit in hits)

    return rule


define({"Max": extremum(1.0), "Min": extremum(-1.0)}, broadcastable=True)

no_gradient("it works on bits", "BitCast", "BitShift", "BitwiseAnd", "BitwiseNot", "BitwiseOr", "BitwiseXor")
