"""Operators that choose between elements or repeat them."""

from __future__ import annotations

from typing import Any

from onnxplain.adapters.gradient.expr import Expr, where
from onnxplain.adapters.gradient.registry import vjp


@vjp("Where", broadcastable=True)
def choose(g: Expr, y: Expr, condition: Expr, a: Expr, b: Expr) -> tuple[Any, ...]:
    """y = a where the condition holds, else b;  ā = ȳ there, b̄ = ȳ elsewhere."""
    return None, lambda: where(condition, g, 0.0), lambda: where(condition, 0.0, g)


@vjp("Expand")
def expand(g: Expr, y: Expr, x: Expr, shape: Expr) -> tuple[Any, ...]:
    """y = x, repeated;  x̄ = the sum over the copies, which the sweep takes."""
    return g, None
