"""What convolutions and pools have in common: windows that slide along spatial axes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from onnxplain.adapters.gradient.expr import Expr, UnsupportedCase, add_all, concat

LARGEST = 2**16  # taps of a window, and elements from one to the next: each of them is an operator


@dataclass(frozen=True, kw_only=True)
class Phase:
    """The cotangents of one residue modulo the stride:  x̄[t] = Σ_j W[taps[j]] ȳ[t - shift - j dilation].

    That is a convolution of stride 1 with these taps turned round, and so much padding of ȳ (below 0: so much cut off).
    """

    taps: range
    dilation: int
    before: int
    after: int

    def turned(self, kernel: int) -> slice:
        """Where its taps lie in a kernel of so many that was turned round."""
        return slice(kernel - 1 - self.taps[-1], kernel - self.taps[0], self.taps.step)


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
        """What tap a of each window sees: the inputs  o * stride + a * dilation - before,  with `border` around x."""
        first = a * self.dilation - self.before
        # The windows whose tap is inside, as far as there are any: start <= o < stop.
        start, stop = (min(max(-((first - end) // self.stride), 0), self.count) for end in (0, self.size))
        if start == stop:  # all see the border
            return x.slice(axis, 0, 1).pad(axis, self.count, 0, border).slice(axis, 0, self.count)
        begin, end = start * self.stride + first, (stop - 1) * self.stride + first + 1
        return x.slice(axis, begin, end, self.stride).pad(axis, start, self.count - stop, border)

    def taps(self, x: Expr, axis: int) -> Expr:
        """What each tap of each window sees: in place of the axis one of taps and one of windows."""
        shape = (*x.shape[:axis], 1, self.count, *x.shape[axis + 1 :])
        return concat([self.tap(x, axis, a).reshape(shape) for a in range(self.kernel)], axis)

    @property
    def rows(self) -> int:
        """How many inputs a residue modulo the stride has at the most."""
        return -(-self.size // self.stride)

    def residue(self, a: int) -> tuple[int, int]:
        """Where tap a hits: window o the input (o + shift) * stride + residue."""
        return divmod(a * self.dilation - self.before, self.stride)

    def fold(self, parts: Sequence[Expr], axis: int) -> Expr:
        """The adjoint of taking windows: `parts[a]` holds what tap a of each window sends back to its input.

        Taps that hit the same residue modulo the stride are shifted and added; the residues are interleaved.
        """
        residues: list[list[Expr]] = [[] for _ in range(self.stride)]
        for a, part in enumerate(parts):
            shift, residue = self.residue(a)
            if -self.count < shift < self.rows:
                residues[residue].append(part.pad(axis, shift, self.rows - self.count - shift))
        whole = self.together([add_all(terms) if terms else None for terms in residues], axis)
        return parts[0].slice(axis, 0, 1).zeros().pad(axis, 0, self.size - 1) if whole is None else whole

    def together(self, residues: Sequence[Expr | None], axis: int) -> Expr | None:
        """An input of which each residue modulo the stride is given, or None for zeros; None if all are zeros."""
        some = next((x for x in residues if x is not None), None)
        if some is None:
            return None
        first, *others = [some.zeros() if x is None else x for x in residues]
        return first.interleave(axis, others).pad(axis, 0, self.size - self.rows * self.stride)

    def phases(self) -> list[Phase | None]:
        """The residues modulo the stride; None where no window has a tap.

        The taps that hit the same residue lie stride / gcd(stride, dilation) apart, and their shifts evenly too.
        """
        phases: list[Phase | None] = []
        for residue in range(self.stride):
            hits = [(a, shift) for a in range(self.kernel) for shift, r in [self.residue(a)] if r == residue]
            hits = [(a, shift) for a, shift in hits if -self.count < shift < self.rows]
            if not hits:
                phases.append(None)
                continue
            (first, nearest), (last, farthest) = hits[0], hits[-1]
            (step, spread) = (hits[1][0] - first, hits[1][1] - nearest) if len(hits) > 1 else (1, 1)
            after = self.rows - self.count - nearest
            phases.append(Phase(taps=range(first, last + 1, step), dilation=spread, before=farthest, after=after))
        return phases


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
