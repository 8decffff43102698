"""Normalisations, as they are at inference."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from onnxplain.adapters.gradient.expr import Expr, UnsupportedCase, add_all, op
from onnxplain.adapters.gradient.registry import vjp
from onnxplain.adapters.gradient.rules.mask import above
from onnxplain.adapters.gradient.scales import scaled


def standardised(x: Expr, axes: Sequence[int], epsilon: float) -> tuple[Expr, Expr]:
    """h = r (x - μ) and r = 1/√(σ² + ε), with μ and σ² over the given axes.

    They are computed again: not every runtime gives them as outputs.
    """
    centred = x - x.mean(axes)
    r = 1 / op("Sqrt", (centred * centred).mean(axes) + epsilon)
    return centred * r, r


def standardised_back(q: Expr, h: Expr, r: Expr, axes: Sequence[int]) -> Expr:
    """x̄ = r (q - mean(q) - h mean(q h)), given q = h̄."""
    return r * (q - q.mean(axes) - h * (q * h).mean(axes))


def per_channel(values: Expr, x: Expr) -> Expr:
    """One value for each channel, to multiply x (N, C, ...) with."""
    ones = (1,) * (x.rank - 2)
    if values.constant is not None:
        return x.emit.constant(values.constant.reshape(-1, *ones))
    return values.reshape((*values.shape, *ones))


def channel_sum(g: Expr) -> Expr:
    """The sum over all but the channels of a value (N, C, ...)."""
    return g.sum([0, *range(2, g.rank)])


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
    """y = γ h + β with h = r (x - μ), r = 1/√(σ² + ε);  x̄ = ȳ γ r.

    γ̄ = Σ ȳ h,  β̄ = Σ ȳ,  μ̄ = -γ r Σ ȳ,  and as ∂r/∂σ² = -r³/2:  σ̄² = -γ r² Σ ȳ h / 2, with sums for each channel.
    """
    if training_mode:
        raise UnsupportedCase("training mode; export the model in evaluation mode")

    def deviation() -> Expr:
        return 1 / op("Sqrt", var + epsilon)

    def slope() -> Expr:
        if scale.constant is not None and var.constant is not None:
            exact = scale.constant.astype(np.float64) / np.sqrt(var.constant.astype(np.float64) + epsilon)
            return x.emit.constant(exact.astype(x.dtype))
        return scale * deviation()

    def weighted_sum() -> Expr:
        return channel_sum(g * (x - per_channel(mean, x))) * deviation()

    return (
        lambda: scaled(g, per_channel(slope(), x)),
        weighted_sum,
        lambda: channel_sum(g),
        lambda: -slope() * channel_sum(g),
        lambda: -0.5 * slope() * deviation() * weighted_sum(),
    )


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
    """y = γ h + β with h = r (x - μ), r = 1/√(σ² + ε);  x̄ as in `standardised_back` with q = γ ȳ, γ̄ = ȳ h, β̄ = ȳ.

    Its further outputs are μ and r:  ∂μ/∂x = 1/n  and  ∂r/∂x = -r² h / n.
    """
    g, g_mean, g_deviation = (*g, None, None)[:3] if isinstance(g, tuple) else (g, None, None)
    axes = list(range(axis % x.rank, x.rank))
    h, r = standardised(x, axes, epsilon)

    def image() -> Expr:
        parts = [] if g is None else [standardised_back(g * scale, h, r, axes)]
        share = 1 / math.prod(x.size(a) for a in axes)
        if g_mean is not None:
            parts.append(g_mean.cast(x.value.dtype) * share)
        if g_deviation is not None:
            parts.append(-g_deviation.cast(x.value.dtype) * r * r * h * share)
        return add_all(parts)

    def slope() -> Expr:
        return scale.zero() if g is None else g * h

    def offset() -> Expr | None:
        return bias.zero() if g is None and bias is not None else g

    return (image, slope, offset)[: 2 + (bias is not None)]


@vjp("RMSNormalization")
def rms_normalization(
    g: Expr, y: Expr, x: Expr, scale: Expr, *, axis: int = -1, epsilon: float = 1e-5, stash_type: int = 1
) -> tuple[Any, ...]:
    """y = γ r x with r = 1/√(mean(x²) + ε);  with q = γ ȳ:  x̄ = r q - r³ x mean(q x),  γ̄ = ȳ r x."""
    axes = list(range(axis % x.rank, x.rank))
    r = 1 / op("Sqrt", (x * x).mean(axes) + epsilon)
    h = r * x

    def image() -> Expr:
        q = g * scale
        return r * (q - h * (q * h).mean(axes))

    return image, lambda: g * h


@vjp("InstanceNormalization")
def instance_normalization(
    g: Expr, y: Expr, x: Expr, scale: Expr, bias: Expr, *, epsilon: float = 1e-5
) -> tuple[Any, ...]:
    """y = γ h + β with h standardised over the spatial axes;  x̄ as in `standardised_back` with q = γ ȳ."""
    axes = list(range(2, x.rank))
    h, r = standardised(x, axes, epsilon)
    return (
        lambda: standardised_back(g * per_channel(scale, x), h, r, axes),
        lambda: channel_sum(g * h),
        lambda: channel_sum(g),
    )


@vjp("GroupNormalization")
def group_normalization(
    g: Expr, y: Expr, x: Expr, scale: Expr, bias: Expr, *, num_groups: int, epsilon: float = 1e-5, stash_type: int = 1
) -> tuple[Any, ...]:
    """y = γ h + β with h standardised over groups of channels;  x̄ as in `standardised_back` with q = γ ȳ."""
    channels = x.size(1)
    if scale.shape != (channels,):
        raise UnsupportedCase("a scale for each group, which ONNX has withdrawn; export the model at opset 21")
    grouped = (x.shape[0], num_groups, channels // num_groups, *x.shape[2:])
    axes = list(range(2, len(grouped)))
    h, r = standardised(x.reshape(grouped), axes, epsilon)

    def image() -> Expr:
        q = (g * per_channel(scale, x)).reshape(grouped)
        return standardised_back(q, h, r, axes).reshape(x.shape)

    return image, lambda: channel_sum(g * h.reshape(x.shape)), lambda: channel_sum(g)


@vjp("LpNormalization")
def lp_normalization(g: Expr, y: Expr, x: Expr, *, axis: int = -1, p: int = 2) -> Expr:
    """y = x / n with n = Σ|x| or n = √Σx²;  x̄ = (ȳ - n′ Σ ȳ y) / n with n′ = sign(x) or y; 0 where n = 0."""
    axes = [axis % x.rank]
    if p == 1:
        norm, slope = (x * op("Sign", x)).sum(axes, keepdims=True), op("Sign", x)
    elif p == 2:
        norm, slope = op("Sqrt", (x * x).sum(axes, keepdims=True)), y
    else:
        raise UnsupportedCase(f"p = {p}")
    some = above(norm, 0.0)
    return (g - slope * (g * y).sum(axes, keepdims=True)) * some / (norm + (1 - some))


@vjp("LRN")
def local_response_normalization(
    g: Expr, y: Expr, x: Expr, *, size: int, alpha: float = 1e-4, beta: float = 0.75, bias: float = 1.0
) -> Expr:
    """y = x s^-β with s = b + α mean(x²), the mean over a window of channels (of which those that are not there are 0).

    x̄ = ȳ s^-β - 2αβ x mean′(ȳ x s^-β⁻¹), where mean′ is over the window of those channels that look at this one: the
    same window, turned round.
    """
    before, after = (size - 1) // 2, size // 2
    s = bias + alpha * channel_mean(x * x, before, after)
    factor = op("Pow", s, -beta)
    return g * factor - (2 * alpha * beta) * x * channel_mean(g * x * factor / s, after, before)


def channel_mean(x: Expr, before: int, after: int) -> Expr:
    """The mean over a window of channels, with zeros for those that are not there, as a pool over (N, 1, C, rest)."""
    plane = x.reshape((x.shape[0], 1, x.size(1), math.prod(x.size(a) for a in range(2, x.rank))))
    kernel = [before + after + 1, 1]
    pooled = op("AveragePool", plane, kernel_shape=kernel, pads=[before, 0, after, 0], count_include_pad=1)
    return pooled.reshape(x.shape)
