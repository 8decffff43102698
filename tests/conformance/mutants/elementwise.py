"""Mistakes in the rules of elementwise operators."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from onnxplain.adapters.gradient.expr import Expr, op, where
from onnxplain.adapters.gradient.registry import DEFAULT
from onnxplain.adapters.gradient.rules.mask import above

RIGHT = {name: entry.rule for name, entry in DEFAULT.items()}


def first_alone(g: Expr, y: Expr, *xs: Expr) -> Any:
    """The first operand takes what the largest should have."""
    return (g, *(g * 0.0 for _ in xs[1:]))


def gelu(wrong: str) -> Callable[..., Any]:
    """The other form's derivative, or one without the density."""

    def rule(g: Expr, y: Expr, x: Expr, *, approximate: str = "none") -> Expr:
        if wrong == "form":
            return RIGHT["Gelu"](g, y, x, approximate="none")
        return g * 0.5 * (1 + op("Erf", x * np.sqrt(0.5)))

    return rule


def pow_of(change: Callable[[Any], Any]) -> Callable[..., Any]:
    """Another exponent than the forward pass had."""

    def rule(g: Expr, y: Expr, x: Expr, p: Expr) -> Any:
        base, exponent = RIGHT["Pow"](g, y, x, p)
        if p.constant is None:
            return base, exponent
        return RIGHT["Pow"](g, y, x, p.emit.constant(change(p.constant)))[0], exponent

    return rule


MUTANTS: dict[str, tuple[str, Callable[..., Any]]] = {
    "Sin: sign": ("Sin", lambda g, y, x: -g * op("Cos", x)),
    "Cos: sign": ("Cos", lambda g, y, x: g * op("Sin", x)),
    "Tan: cosine": ("Tan", lambda g, y, x: g * (1 - y * y)),
    "Asin: no root": ("Asin", lambda g, y, x: g / (1 - x * x)),
    "Acos: sign": ("Acos", lambda g, y, x: g / op("Sqrt", 1 - x * x)),
    "Atan: root": ("Atan", lambda g, y, x: g / op("Sqrt", 1 + x * x)),
    "Sinh: sinh": ("Sinh", lambda g, y, x: g * y),
    "Cosh: cosh": ("Cosh", lambda g, y, x: g * y),
    "Asinh: no root": ("Asinh", lambda g, y, x: g / (x * x + 1)),
    "Acosh: sign under the root": ("Acosh", lambda g, y, x: g / op("Sqrt", x * x + 1)),
    "Atanh: root": ("Atanh", lambda g, y, x: g / op("Sqrt", 1 - x * x)),
    "Mean: sum": ("Mean", lambda g, y, *xs: tuple(g for _ in xs)),
    "Mod: nothing to the divisor": ("Mod", lambda g, y, a, b, *, fmod=0: (g, g * 0.0)),
    "Mod: sign": ("Mod", lambda g, y, a, b, *, fmod=0: (g, g * (a - y) / b)),
    "Softsign: square forgotten": ("Softsign", lambda g, y, x: g * (1 - y * op("Sign", y))),
    "Elu: alpha forgotten": ("Elu", lambda g, y, x, *, alpha=1.0: RIGHT["Elu"](g, y, x)),
    "Elu: exponential alone": (
        "Elu",
        lambda g, y, x, *, alpha=1.0: g * (above(x, 0.0) + (1 - above(x, 0.0)) * op("Exp", x)),
    ),
    "Selu: gamma forgotten": ("Selu", lambda g, y, x, *, alpha=1.67, gamma=1.05: RIGHT["Selu"](g, y, x, alpha=alpha)),
    "Selu: alpha forgotten": ("Selu", lambda g, y, x, *, alpha=1.67, gamma=1.05: RIGHT["Selu"](g, y, x, gamma=gamma)),
    "PRelu: slope everywhere": ("PRelu", lambda g, y, x, slope: (g * slope, RIGHT["PRelu"](g, y, x, slope)[1])),
    "PRelu: slope's cotangent everywhere": ("PRelu", lambda g, y, x, slope: (RIGHT["PRelu"](g, y, x, slope)[0], g * x)),
    "ThresholdedRelu: at zero": ("ThresholdedRelu", lambda g, y, x, *, alpha=1.0: g * above(x, 0.0)),
    "ThresholdedRelu: y for x": ("ThresholdedRelu", lambda g, y, x, *, alpha=1.0: g * above(y, alpha)),
    "Shrink: one side": ("Shrink", lambda g, y, x, *, bias=0.0, lambd=0.5: g * above(x, lambd)),
    "Shrink: default lambd": ("Shrink", lambda g, y, x, *, bias=0.0, lambd=0.5: RIGHT["Shrink"](g, y, x)),
    "Swish: alpha forgotten": ("Swish", lambda g, y, x, *, alpha=1.0: RIGHT["Swish"](g, y, x)),
    "Swish: gate alone": ("Swish", lambda g, y, x, *, alpha=1.0: g * op("Sigmoid", x * alpha)),
    "Mish: tanh alone": ("Mish", lambda g, y, x: g * op("Tanh", op("Softplus", x))),
    "Gelu: always the exact form": ("Gelu", gelu("form")),
    "Gelu: no density": ("Gelu", gelu("density")),
    "Pow: exponent forgotten": ("Pow", lambda g, y, x, p: (g * y / x, RIGHT["Pow"](g, y, x, p)[1])),
    "Pow: exponent plus one": ("Pow", pow_of(lambda p: p + 1)),
    "Pow: whole exponents only": ("Pow", pow_of(np.rint)),
    "Pow: the exponent's logarithm forgotten": ("Pow", lambda g, y, x, p: (RIGHT["Pow"](g, y, x, p)[0], g * y)),
    "Max: the first alone": ("Max", first_alone),
    "Max: the smallest": ("Max", lambda g, y, *xs: tuple(where(x > y, g, 0.0) for x in xs)),
    "Min: all the same": ("Min", lambda g, y, *xs: tuple(g * (1 / len(xs)) for _ in xs)),
}
