"""What convolutions and pools have in common: windows that slide along spatial axes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from onnxplain.adapters.gradient.expr import Expr, UnsupportedCase, add_all, concat

LARGEST = 2**16  # taps of a window, and elements from one to the next: each of them is an operator


@dataclass(frozen=True)
class Window:
    """A window along one axis: output o covers the inputs  o * stride + a * dilation - before,  a < kernel."""

    size: int  # of the input
    count: int  # of the outputs
    kernel: int
    stride: int
    dilation: int
    before: int
    after: int  # padding as given: with ceil_mode a window may reach beyond it

    @property
    def extent(self) -> int:
        """The last tap's distance from the first."""
        return self.dilation * (self.kernel - 1)

    @property
    def reach(self) -> int:
        """How many inputs, padding before them included, the windows cover."""
        return (self.count - 1) * self.stride + self.extent + 1

    @property
    def trivial(self) -> bool:
        """Whether input and output are the same."""
        return (self.kernel, self.stride, self.before, self.count) == (1, 1, 0, self.size)

    def tap(self, x: Expr, axis: int, a: int, border: float = 0.0) -> Expr:
        """What tap a of each window sees: the inputs  o * stride + a * dilation - before,  and the border outside."""
        first = a * self.dilation - self.before
        start, stop = (-((first - end) // self.stride) for end in (0, self.size))  # the windows whose tap is inside
        start, stop = (min(max(o, 0), self.count) for o in (start, stop))
        if start >= stop:
            return x.slice(axis, 0, 1).zeros().pad(axis, 0, self.count - 1) + border  # TODO
        at = start * self.stride + first
        inside = x.slice(axis, at, at + (stop - start - 1) * self.stride + 1, self.stride)
        return inside.pad(axis, start, self.count - stop, border)

    def taps(self, x: Expr, axis: int) -> Expr:
        """What each tap of each window sees: in place of the axis one of taps and one of windows."""
        shape = (*x.shape[:axis], 1, self.count, *x.shape[axis + 1 :])
        return concat([self.tap(x, axis, a).reshape(shape) for a in range(self.kernel)], axis)

    def fold(self, parts: Sequence[Expr], axis: int) -> Expr:
        """The adjoint of taking windows: `parts[a]` holds what tap a of each window sends back to its input.

        Taps that hit the same residue modulo the stride are shifted and added; the residues are interleaved.
        """
        rows = -(-self.size // self.stride)
        residues: list[list[Expr]] = [[] for _ in range(self.stride)]
        for a, part in enumerate(parts):
            shift, residue = divmod(a * self.dilation - self.before, self.stride)
            if shift < rows and shift + self.count > 0:
                residues[residue].append(part.pad(axis, shift, rows - self.count - shift))
        some = next(terms for terms in residues if terms)[0]
        first, *others = [add_all(terms) if terms else some.zeros() for terms in residues]
        return first.interleave(axis, others).pad(axis, 0, self.size - rows * self.stride)


def windows(
    x: Expr,
    y: Expr,
    kernel: Sequence[int],
    *,
    auto_pad: str,
    dilations: Sequence[int] | None,
    pads: Sequence[int] | None,
    strides: Sequence[int] | None,
    ceil_mode: int = 0,
) -> list[Window]:
    """The windows of an operator's spatial axes, with `auto_pad` turned into explicit padding."""
    spatial = len(kernel)
    dilations = dilations or [1] * spatial
    strides = strides or [1] * spatial
    result = []
    for i, (k, s, d) in enumerate(zip(kernel, strides, dilations, strict=True)):
        if max(k, s) > LARGEST:
            raise UnsupportedCase(f"windows of {k:,} taps, {s:,} apart: too many to write out")
        size, count = x.size(i + 2), y.size(i + 2)
        if auto_pad in ("SAME_UPPER", "SAME_LOWER"):
            total = (-(-size // s) - 1) * s + d * (k - 1) + 1 - size
            if count != -(-size // s) or total < -1:
                raise UnsupportedCase("auto_pad with windows that leave gaps, or with ceil_mode: runtimes differ there")
            total = max(total, 0)
            before = total // 2 if auto_pad == "SAME_UPPER" else total - total // 2
            after = total - before
        elif auto_pad == "VALID" or pads is None:
            before = after = 0
        else:
            before, after = pads[i], pads[i + spatial]
        if ceil_mode and (count - 1) * s >= size + before:
            raise UnsupportedCase(
                f"ceil_mode with a last window behind the image: opset {x.emit.opset} counts it, runtimes do not"
            )
        result.append(Window(size, count, k, s, d, before, after))
    return result


def unfold(x: Expr, along: Sequence[Window]) -> Expr:
    """(N, C, taps of each axis ..., windows of each axis ...): what the windows of all spatial axes see."""
    for i in reversed(range(len(along))):
        x = along[i].taps(x, i + 2)
    taps, places = range(2, x.rank, 2), range(3, x.rank, 2)
    return x.transpose((0, 1, *taps, *places)) if len(along) > 1 else x
