"""Convolutions. The gradient with respect to the input is a convolution too, with the kernel turned round.

y[k, o] = Σ_c,a  W[k, c, a] x[c, o s + a d - p]
x̄[c, i] = Σ_k,a  W[k, c, a] ȳ[k, o]   over all  o s + a d - p = i
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from onnxplain.adapters.gradient.expr import Expr, op
from onnxplain.adapters.gradient.registry import vjp
from onnxplain.adapters.gradient.rules.window import Window, windows


@vjp("Conv")
def conv(
    g: Expr,
    y: Expr,
    x: Expr,
    w: Expr,
    b: Expr | None = None,
    *,
    auto_pad: str = "NOTSET",
    dilations: Sequence[int] | None = None,
    group: int = 1,
    kernel_shape: Sequence[int] | None = None,
    pads: Sequence[int] | None = None,
    strides: Sequence[int] | None = None,
) -> tuple[Any, ...]:
    """x̄ by the formula above: a plain Conv for stride 1, else a transposed one. W̄: see `kernel_gradient`."""
    kernel = [w.size(a) for a in range(2, w.rank)]
    along = windows(x, y, kernel, auto_pad=auto_pad, dilations=dilations, pads=pads, strides=strides)

    def image() -> Expr:
        if w.constant is not None and all(window.stride == 1 for window in along):
            return flipped_conv(g, w.constant, group, along)
        return transposed_conv(g, w, group, along)

    return (image, lambda: kernel_gradient(g, x, group, along), lambda: g.sum([0, *range(2, g.rank)]))[
        : 2 + (b is not None)
    ]


def flipped_conv(g: Expr, w: Any, group: int, along: list[Window]) -> Expr:
    """Stride 1:  x̄[c, i] = Σ_k,a W[k, c, a] ȳ[k, i + p - a d] = Conv(ȳ, flipped W), padded so that i covers all of x.

    In ȳ's padded coordinates tap a sits at (kernel - 1 - a) d, hence the flip and the padding extent - p before.
    """
    outputs, inputs, *kernel = w.shape
    per_group = w.reshape(group, outputs // group, inputs, *kernel)
    flipped = np.flip(np.swapaxes(per_group, 1, 2), axis=tuple(range(3, per_group.ndim)))
    kernel_back = g.emit.constant(flipped.reshape(group * inputs, outputs // group, *kernel))
    befores = [window.extent - window.before for window in along]
    afters = [window.size - window.count + window.before for window in along]
    for axis, (before, after) in enumerate(zip(befores, afters, strict=True), start=2):
        g = g.pad(axis, min(before, 0), min(after, 0))  # padding wider than the kernel: those outputs saw no input
    return op(
        "Conv",
        g,
        kernel_back,
        dilations=[window.dilation for window in along],
        group=group,
        pads=[max(p, 0) for p in (*befores, *afters)],
    )


def transposed_conv(g: Expr, w: Expr, group: int, along: list[Window]) -> Expr:
    """Any stride: ConvTranspose. Inputs behind the last window, which no output saw, come from its output padding.

    Asymmetric padding, which not every runtime has here, is cropped afterwards.
    """
    kernel = w if w.constant is None else g.emit.constant(w.constant.copy())  # its own copy: see Emit.constant
    afters = [window.reach - window.before - window.size for window in along]
    # An output padding of a stride or more would mean one window more: ONNX Runtime refuses it, dilated or not.
    symmetric = all(0 <= window.before - after < window.stride for window, after in zip(along, afters, strict=True))
    common: dict[str, Any] = {
        "dilations": [window.dilation for window in along],
        "group": group,
        "strides": [window.stride for window in along],
    }
    if symmetric:
        befores = [window.before for window in along]
        missing = [window.before - after for window, after in zip(along, afters, strict=True)]
        return op("ConvTranspose", g, kernel, **common, pads=[*befores, *befores], output_padding=missing)
    full = op("ConvTranspose", g, kernel, **common)
    for axis, (window, after) in enumerate(zip(along, afters, strict=True), start=2):
        full = full.pad(axis, -window.before, -after)
    return full


def kernel_gradient(g: Expr, x: Expr, group: int, along: list[Window]) -> Expr:
    """W̄[k, c, a] = Σ_n,o ȳ[n, k, o] x[n, c, o s + a d - p]: a convolution over x with the kernel ȳ.

    The batch takes the place of the channels, and stride and dilation change theirs. In groups, x comes as
    (C/groups, groups N, ...), and the kernel as (K, N, ...).
    """
    batch = x.shape[0]
    spatial, sizes = range(3, x.rank + 1), x.shape[2:]
    images = x.reshape((batch, group, x.size(1) // group, *sizes)).transpose((2, 1, 0, *spatial))
    images = images.reshape((x.size(1) // group, group * batch if isinstance(batch, int) else None, *sizes))
    for axis, window in enumerate(along, start=2):
        images = images.pad(axis, window.before, window.reach - window.before - window.size)
    kernel = op(
        "Conv",
        images,
        g.transpose((1, 0, *range(2, g.rank))),
        dilations=[window.stride for window in along],
        strides=[window.dilation for window in along],
        group=group,
    )
    return kernel.transpose((1, 0, *range(2, x.rank)))
