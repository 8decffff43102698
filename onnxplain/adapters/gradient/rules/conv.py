"""Convolutions. The gradient with respect to the input is a convolution too, with the kernel turned round.

y[k, o] = Σ_c,a  W[k, c, a] x[c, o s + a d - p]
x̄[c, i] = Σ_k,a  W[k, c, a] ȳ[k, o]   over all  o s + a d - p = i
W̄[k, c, a] = Σ_o  ȳ[k, o] x[c, o s + a d - p]

A transposed convolution is the second line forwards: x and ȳ change places.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from onnxplain.adapters.gradient.expr import Expr, UnsupportedCase, op
from onnxplain.adapters.gradient.parts import Grid
from onnxplain.adapters.gradient.registry import vjp
from onnxplain.adapters.gradient.rules.places import constant
from onnxplain.adapters.gradient.rules.window import Phase, Window, unfold, windows

SMALL_MAP = 20  # outputs along each axis
MOST_PARTS = 9  # of a convolution that goes back in parts


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
    """x̄ by the formula above: a plain Conv for stride 1, else several (`in_parts`) or a transposed one.

    W̄: see `kernel_gradient`.
    """
    kernel = [w.size(a) for a in range(2, w.rank)]
    along = windows(x, y, kernel, auto_pad=auto_pad, dilations=dilations, pads=pads, strides=strides)

    def image() -> Expr:
        if w.constant is not None and all(window.stride == 1 for window in along):
            return flipped_conv(g, w.constant, group, along)
        if w.constant is not None and group == w.size(0) == x.size(1) and can_part(along):
            return depthwise_conv(g, w.constant, along)
        parts = parted_conv(g, w.constant, group, along) if w.constant is not None and in_parts(along) else None
        return transposed_conv(g, w, group, along) if parts is None else parts

    return (image, lambda: kernel_gradient(g, x, group, along), lambda: g.sum([0, *range(2, g.rank)]))[
        : 2 + (b is not None)
    ]


def flipped_conv(g: Expr, w: Any, group: int, along: list[Window]) -> Expr:
    """Stride 1:  x̄[c, i] = Σ_k,a W[k, c, a] ȳ[k, i + p - a d] = Conv(ȳ, flipped W), padded so that i covers all of x.

    In ȳ's padded coordinates tap a sits at (kernel - 1 - a) d, hence the flip and the padding extent - p before.
    """
    befores = [window.extent - window.before for window in along]
    afters = [window.size - window.count + window.before for window in along]
    return padded_conv(g, flipped(w, group), group, [window.dilation for window in along], befores, afters)


def flipped(w: Any, group: int) -> Any:
    """A kernel for the way back: inputs and outputs change places, in each group, and its taps are turned round."""
    outputs, inputs, *kernel = w.shape
    per_group = w.reshape(group, outputs // group, inputs, *kernel)
    turned = np.flip(np.swapaxes(per_group, 1, 2), axis=tuple(range(3, per_group.ndim)))
    return turned.reshape(group * inputs, outputs // group, *kernel)


def padded_conv(g: Expr, w: Any, group: int, dilations: list[int], befores: list[int], afters: list[int]) -> Expr:
    """A Conv of stride 1, where padding below 0 cuts off."""
    kernel = g.emit.constant(w)
    for axis, (before, after) in enumerate(zip(befores, afters, strict=True), start=2):
        g = g.pad(axis, min(before, 0), min(after, 0))
    return op("Conv", g, kernel, dilations=dilations, group=group, pads=[max(p, 0) for p in (*befores, *afters)])


def in_parts(along: list[Window]) -> bool:
    """Whether to leave a strided convolution to `parted_conv`.

    TensorRT has no transposed one that is both strided and dilated. And on ONNX Runtime's CPU that has no kernel in the
    blocked layout of other convolutions, so that of small maps, where interleaving is cheap, it takes half as long
    again. A kernel of one tap needs no parts: all but one would be zeros. Nor are there ever more than a few.
    """
    if all(window.kernel == 1 for window in along) or math.prod(window.stride for window in along) > MOST_PARTS:
        return False
    return any(window.dilation > 1 for window in along) or all(window.count <= SMALL_MAP for window in along)


def parted_conv(g: Expr, w: Any, group: int, along: list[Window]) -> Expr | None:
    """Any stride, by plain convolutions: the inputs of each residue modulo the stride (see `Phase`), interleaved.

    None if no output saw any input.
    """
    turned = flipped(w, group)

    def image(chosen: list[Phase]) -> Expr | None:
        """x̄ where the first axes have the residues that were chosen."""
        axis = len(chosen)
        if axis < len(along):
            parts = [None if phase is None else image([*chosen, phase]) for phase in along[axis].phases()]
            return along[axis].together(parts, axis + 2)
        taps = [phase.turned(kernel) for phase, kernel in zip(chosen, w.shape[2:], strict=True)]
        befores, afters = [phase.before for phase in chosen], [phase.after for phase in chosen]
        dilations = [phase.dilation for phase in chosen]
        return padded_conv(g, turned[..., *taps], group, dilations, befores, afters)

    return image([])


def can_part(along: list[Window]) -> bool:
    """Whether `depthwise_conv` knows the windows: of a picture, with one stride, and a tap for each residue."""
    first = along[0]
    return len(along) == 2 and all(
        window.dilation == 1 and window.stride == first.stride <= window.kernel for window in along
    )


def depthwise_conv(g: Expr, w: Any, along: list[Window]) -> Expr:
    """Any stride, each channel by itself:  x̄ in parts by the residues of its pixels (see `Grid`), each a plain Conv.

    In one dimension, with x̄[i] = Σ_a W[a] ȳ[o] over all  o s + a - p = i  and  i = s q + r - (p + s k):  a = r + s m,
    o = q - k - m. So part r is Conv(ȳ, every s-th tap from r on, turned round), with k + taps - 1 zeros before.
    """
    stride = along[0].stride
    ahead = [max(-((window.before + 1 - stride) // stride), 0) for window in along]  # k, for offsets from s - 1 on
    sizes = tuple(window.size for window in along)
    offsets = tuple(window.before + stride * k for window, k in zip(along, ahead, strict=True))
    counts = tuple(-(-(size + offset) // stride) for size, offset in zip(sizes, offsets, strict=True))
    grid = Grid(stride=stride, offsets=offsets, counts=counts, sizes=sizes)
    afters = [count - window.count - k for window, count, k in zip(along, counts, ahead, strict=True)]
    for axis, after in enumerate(afters, start=2):
        g = g.pad(axis, 0, min(after, 0))  # windows in the padding alone: they saw no input
    parts = []
    for i, j in grid.residues:
        taps = w[:, :, i::stride, j::stride]
        befores = [k + taken - 1 for k, taken in zip(ahead, taps.shape[2:], strict=True)]
        kernel = g.emit.constant(np.flip(taps, axis=(2, 3)))
        parts.append(op("Conv", g, kernel, group=len(w), pads=[*befores, *(max(after, 0) for after in afters)]))
    return grid.together(parts)


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


@vjp("ConvTranspose")
def conv_transpose(
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
    output_padding: Sequence[int] | None = None,
    output_shape: Sequence[int] | None = None,
    pads: Sequence[int] | None = None,
    strides: Sequence[int] | None = None,
) -> tuple[Any, ...]:
    """x̄ = Conv(ȳ, W), the convolution that this is the transpose of."""
    spatial = x.rank - 2
    same = auto_pad in ("SAME_UPPER", "SAME_LOWER")
    extra = output_padding or [0] * spatial
    if same and any(extra):
        raise UnsupportedCase("auto_pad together with output_padding, about which runtimes and ONNX's shapes differ")
    along = []
    for i in range(spatial):
        kernel, step, spread = w.size(i + 2), (strides or [1] * spatial)[i], (dilations or [1] * spatial)[i]
        window = Window(y.size(i + 2), x.size(i + 2), kernel, step, spread, before=0, after=0)
        if same or output_shape:  # they decide on the padding, in halves
            total = max(window.reach + extra[i] - window.size, 0)
            before = total // 2 if auto_pad == "SAME_UPPER" else total - total // 2
        else:
            before = pads[i] if pads and auto_pad == "NOTSET" else 0
        along.append(replace(window, before=before))

    def image() -> Expr:
        kernel = w if w.constant is None else g.emit.constant(w.constant.copy())  # its own copy: see Emit.constant
        afters = [window.reach - window.before - window.size for window in along]
        cropped = g
        for axis, (window, after) in enumerate(zip(along, afters, strict=True), start=2):
            cropped = cropped.pad(axis, min(window.before, 0), min(after, 0))
        return op(
            "Conv",
            cropped,
            kernel,
            dilations=[window.dilation for window in along],
            group=group,
            pads=[max(p, 0) for p in (*(window.before for window in along), *afters)],
            strides=[window.stride for window in along],
        )

    def weight() -> Expr:
        return kernel_gradient(x, g, group, along)

    return (image, weight, lambda: g.sum([0, *range(2, g.rank)]))[: 2 + (b is not None)]


def kernel_gradient(few: Expr, many: Expr, group: int, along: list[Window]) -> Expr:
    """W̄[k, c, a] = Σ_n,o few[n, k, o] many[n, c, o s + a d - p], as a product of matrices for each group.

    A Conv could do it with the batch in the place of the channels, but most runtimes want a number of channels that is
    fixed.
    """
    batch, channels = few.shape[0], many.size(1) // group
    places = math.prod(window.count for window in along)
    taps = [window.kernel for window in along]
    rows = few.reshape((batch, group, few.size(1) // group, places))
    seen = unfold(many, along).reshape((batch, group, channels * math.prod(taps), places))
    return (rows @ seen.mT).sum([0]).reshape((few.size(1), channels, *taps))


@vjp("Col2Im")
def col2im(
    g: Expr,
    y: Expr,
    x: Expr,
    image_shape: Expr,
    block_shape: Expr,
    *,
    dilations: Sequence[int] | None = None,
    pads: Sequence[int] | None = None,
    strides: Sequence[int] | None = None,
) -> tuple[Any, ...]:
    """y = the sum of blocks that overlap;  x̄ = the blocks of ȳ."""
    image, block = (constant(part, "shapes").tolist() for part in (image_shape, block_shape))
    spatial = len(image)
    border = pads or [0] * 2 * spatial
    along = []
    for i, (size, kernel) in enumerate(zip(image, block, strict=True)):
        step, spread = (strides or [1] * spatial)[i], (dilations or [1] * spatial)[i]
        before, after = border[i], border[i + spatial]
        count = (size + before + after - spread * (kernel - 1) - 1) // step + 1
        along.append(Window(size, count, kernel, step, spread, before, after))
    return unfold(g, along).reshape(x.shape), None, None
