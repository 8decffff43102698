"""Elementwise operators. Read each line as  y = f(x),  x̄ = ȳ · f′(x),  with ȳ written g.

Derivatives read y rather than x wherever they can, so that a runtime may still fuse Conv with the activation behind it.
Where f has a kink, the derivative is PyTorch's.
"""

from __future__ import annotations

import math
from typing import Any

from onnxplain.adapters.gradient.expr import Expr, UnsupportedCase, op
from onnxplain.adapters.gradient.registry import define, vjp
from onnxplain.adapters.gradient.rules.mask import above, below

define(
    {
        "Add": lambda g, y, a, b: (g, g),
        "Sub": lambda g, y, a, b: (g, lambda: -g),
        "Mul": lambda g, y, a, b: (lambda: g * b, lambda: g * a),
        "Div": lambda g, y, a, b: (lambda: g / b, lambda: -g * y / b),
        "Sum": lambda g, y, *xs: tuple(g for _ in xs),
        "Identity": lambda g, y, x: g,
        "Neg": lambda g, y, x: -g,
        "Exp": lambda g, y, x: g * y,
        "Log": lambda g, y, x: g / x,
        "Sqrt": lambda g, y, x: g / (2 * y),
        "Reciprocal": lambda g, y, x: -g * y * y,
        "Abs": lambda g, y, x: g * op("Sign", x),
        "Tanh": lambda g, y, x: g * (1 - y * y),
        "Sigmoid": lambda g, y, x: g * y * (1 - y),
        "Softplus": lambda g, y, x: g * op("Sigmoid", x),
        "Erf": lambda g, y, x: g * (2 / math.sqrt(math.pi)) * op("Exp", -x * x),
        "Relu": lambda g, y, x: g * above(y, 0.0),
        "Cast": lambda g, y, x, *, to, saturate=1, round_mode="up": g.cast(x.value.dtype),
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
    """y = min(max(x, low), high);  x̄ = ȳ strictly between the bounds, 0 at them."""

    def bound() -> Expr:
        raise UnsupportedCase("the gradient with respect to a bound")

    if low is not None:
        g = g * above(y, low)
    if high is not None:
        g = g * below(y, high)
    return g, bound, bound


@vjp("Dropout", broadcastable=True)
def dropout(g: Any, y: Any, x: Expr, ratio: Expr | None = None, training: Expr | None = None, *, seed: int = 0) -> Any:
    """At inference y = x."""
    if training is not None and (training.constant is None or bool(training.constant)):
        raise UnsupportedCase("training mode; export the model in evaluation mode")
    return (g[0] if isinstance(g, tuple) else g, None, None)
