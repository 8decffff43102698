"""Operators that choose between elements or repeat them."""

from __future__ import annotations

from typing import Any

from onnxplain.adapters.gradient.expr import Expr, op
from onnxplain.adapters.gradient.registry import vjp
from onnxplain.adapters.gradient.rules.mask import keep


@vjp("Where", broadcastable=True)
def choose(g: Expr, y: Expr, condition: Expr, a: Expr, b: Expr) -> tuple[Any, ...]:
    """y = a where the condition holds, else b;  ā = ȳ there, b̄ = ȳ elsewhere."""
    return None, lambda: keep(g, condition), lambda: keep(g, op("Not", condition))


@vjp("Expand")
def expand(g: Expr, y: Expr, x: Expr, shape: Expr) -> tuple[Any, ...]:
    """y = x, repeated;  x̄ = the sum over the copies, which the sweep takes."""
    return g, None
