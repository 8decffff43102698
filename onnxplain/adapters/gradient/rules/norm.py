"""Normalisations, as they are at inference."""

from __future__ import annotations

from typing import Any

import numpy as np

from onnxplain.adapters.gradient.expr import Expr, UnsupportedCase, op
from onnxplain.adapters.gradient.registry import vjp


@vjp("BatchNormalization", broadcastable=True)
def batch_normalization(
    g: Any,
    y: Any,
    x: Expr,
    scale: Expr,
    bias: Expr,
    mean: Expr,
    var: Expr,
    *,
    epsilon: float = 1e-5,
    momentum: float = 0.9,
    training_mode: int = 0,
) -> tuple[Any, ...]:
    """y = γ (x - μ) / √(σ² + ε) + β with constant μ, σ²;  x̄ = ȳ γ / √(σ² + ε)."""
    if training_mode:
        raise UnsupportedCase("training mode; export the model in evaluation mode")

    def parameter() -> Expr:
        raise UnsupportedCase("the gradient with respect to a parameter")

    column = (-1, *(1,) * (x.rank - 2))
    if scale.constant is not None and var.constant is not None:
        slope = scale.constant.astype(np.float64) / np.sqrt(var.constant.astype(np.float64) + epsilon)
        factor = x.emit.constant(slope.reshape(column).astype(x.dtype))
    else:
        factor = (scale / op("Sqrt", var + epsilon)).reshape((x.shape[1], *column[1:]))
    return g * factor, parameter, parameter, parameter, parameter


@vjp("LayerNormalization")
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
    """y = γ h + β with h = r (x - μ), r = 1/√(σ² + ε);  with q = γ ȳ:  x̄ = r (q - mean(q) - h mean(q h)).

    μ and σ² are computed again: not every runtime gives them as outputs.
    """
    if isinstance(g, tuple):
        if any(extra is not None for extra in g[1:]):
            raise UnsupportedCase("the gradient of its mean or deviation outputs")
        g = g[0]
    axes = list(range(axis % x.rank, x.rank))
    centred = x - x.mean(axes)
    r = 1 / op("Sqrt", (centred * centred).mean(axes) + epsilon)
    h = centred * r
    q = g * scale
    return (
        lambda: r * (q - q.mean(axes) - h * (q * h).mean(axes)),
        lambda: g * h,
        lambda: g,
    )[: 2 + (bias is not None)]
