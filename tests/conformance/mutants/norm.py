"""Mistakes in the rules of normalisations, and of a convolution's weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from onnxplain.adapters.gradient.expr import Expr, op
from onnxplain.adapters.gradient.registry import DEFAULT
from onnxplain.adapters.gradient.rules.norm import channel_mean

RIGHT = {name: entry.rule for name, entry in DEFAULT.items()}


def without(name: str, attribute: str) -> Callable[..., Any]:
    """An attribute that nobody read."""

    def rule(*args: Any, **attributes: Any) -> Any:
        return RIGHT[name](*args, **{k: v for k, v in attributes.items() if k != attribute})

    return rule


def with_ones(name: str) -> Callable[..., Any]:
    """A scale that the image's gradient does not see."""

    def rule(g: Any, y: Any, x: Expr, scale: Expr, *rest: Any, **attributes: Any) -> Any:
        right = RIGHT[name](g, y, x, scale, *rest, **attributes)
        return (RIGHT[name](g, y, x, scale / scale, *rest, **attributes)[0], *right[1:])

    return rule


def groups(change: Callable[[int, int], int]) -> Callable[..., Any]:
    """Another number of groups."""

    def rule(g: Expr, y: Expr, x: Expr, *parameters: Expr, num_groups: int, **attributes: Any) -> Any:
        number = change(num_groups, x.size(1))
        return RIGHT["GroupNormalization"](g, y, x, *parameters, num_groups=number, **attributes)

    return rule


def batch_parameters(forget: str) -> Callable[..., Any]:
    """BatchNormalization with a parameter's cotangent wrong."""

    def rule(*args: Any, **attributes: Any) -> Any:
        image, scale, bias, mean, var = RIGHT["BatchNormalization"](*args, **attributes)
        if forget == "mean":
            return image, scale, bias, lambda: -mean(), var
        if forget == "var":
            return image, scale, bias, mean, lambda: var() * 2
        return image, lambda: scale() * 2, bias, mean, var

    return rule


def rms(g: Expr, y: Expr, x: Expr, scale: Expr, *, axis: int = -1, epsilon: float = 1e-5, **_: Any) -> Any:
    """1/√mean(x²) taken for a constant."""
    r = 1 / op("Sqrt", (x * x).mean(list(range(axis % x.rank, x.rank))) + epsilon)
    return g * scale * r, g * r * x


def lrn(
    wrong: str,
) -> Callable[..., Any]:
    def rule(g: Expr, y: Expr, x: Expr, *, size: int, alpha: float = 1e-4, beta: float = 0.75, bias: float = 1.0):
        before, after = (size - 1) // 2, size // 2
        s = bias + alpha * channel_mean(x * x, before, after)
        factor = op("Pow", s, -beta)
        if wrong == "constant":
            return g * factor
        return g * factor - (2 * alpha) * x * channel_mean(g * x * factor / s, after, before)

    return rule


MUTANTS: dict[str, tuple[str, Callable[..., Any]]] = {
    "BatchNormalization: sign of the mean": ("BatchNormalization", batch_parameters("mean")),
    "BatchNormalization: half forgotten": ("BatchNormalization", batch_parameters("var")),
    "BatchNormalization: scale twice": ("BatchNormalization", batch_parameters("scale")),
    "RMSNormalization: constant root": ("RMSNormalization", rms),
    "RMSNormalization: axis forgotten": ("RMSNormalization", without("RMSNormalization", "axis")),
    "RMSNormalization: epsilon forgotten": ("RMSNormalization", without("RMSNormalization", "epsilon")),
    "RMSNormalization: no scale": ("RMSNormalization", with_ones("RMSNormalization")),
    "InstanceNormalization: epsilon forgotten": ("InstanceNormalization", without("InstanceNormalization", "epsilon")),
    "InstanceNormalization: no scale": ("InstanceNormalization", with_ones("InstanceNormalization")),
    "GroupNormalization: epsilon forgotten": ("GroupNormalization", without("GroupNormalization", "epsilon")),
    "GroupNormalization: no scale": ("GroupNormalization", with_ones("GroupNormalization")),
    "GroupNormalization: one group": ("GroupNormalization", groups(lambda number, channels: 1)),
    "GroupNormalization: each channel": ("GroupNormalization", groups(lambda number, channels: channels)),
    "LpNormalization: always 2": ("LpNormalization", without("LpNormalization", "p")),
    "LpNormalization: axis forgotten": ("LpNormalization", without("LpNormalization", "axis")),
    "LRN: constant denominator": ("LRN", lrn("constant")),
    "LRN: beta forgotten": ("LRN", lrn("beta")),
    "LRN: bias forgotten": ("LRN", without("LRN", "bias")),
    "Conv: weights of the sum": ("Conv", lambda *args, **more: weights_twice(RIGHT["Conv"](*args, **more))),
}


def weights_twice(parts: Any) -> Any:
    image, weights, *bias = parts
    return (image, lambda: weights() * 2, *bias)
