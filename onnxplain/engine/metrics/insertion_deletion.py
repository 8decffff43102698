"""Insertion and deletion: does the class appear, or vanish, with the pixels that a map calls important?

Petsiuk, Das, Saenko: RISE, BMVC 2018. With c the class of the full image and q pixels a step, pixels change in
descending order of the map, from "nothing" to the image (insertion) or from the image to "nothing" (deletion):

    s_i = p_c(image after i steps),  i = 0 ... N,  N = ceil(HW / q)
    AUC = (sum s_i - (s_0 + s_N) / 2) / N          mean = (sum s_i) / (N + 1)

What "nothing" is, q, and what is ranked, a `Protocol` says.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from onnxplain.engine.heatmap import reduction
from onnxplain.engine.metrics.maps import one_a_pixel, require_map, score_maps
from onnxplain.engine.metrics.protocols import Order, Protocol, Substrate
from onnxplain.engine.requests import Blends, Head, Logits, Program
from onnxplain.engine.space import Space
from onnxplain.errors import InputError, UsageError

Array: TypeAlias = NDArray[Any]

CHUNK = 32  # frames that are asked for at once


@dataclass(frozen=True, eq=False)
class Curve:
    """s_0 ... s_N (float64): the probability of the class, before any change to after the last."""

    s: Array

    @property
    def auc(self) -> float:
        """(sum s_i - (s_0 + s_N) / 2) / N, in [0, 1]."""
        return float((self.s.sum() - (self.s[0] + self.s[-1]) / 2) / (len(self.s) - 1))

    @property
    def mean(self) -> float:
        """(sum s_i) / (N + 1), in [0, 1]."""
        return float(self.s.mean())


@dataclass(frozen=True, eq=False)
class Played:
    """Both games of one map. `insertion` and `deletion` share the full image: s_N of the one is s_0 of the other.

    A score means little if the full image's is already near 0: look at `insertion.s[-1]`. `constant` tells that the map
    ranks nothing, so that the order is that of the pixels' indices.
    """

    insertion: Curve
    deletion: Curve
    target: int
    protocol: Protocol
    reduction: str
    constant: bool

    @property
    def difference_auc(self) -> float:
        """AUC(insertion) - AUC(deletion), in [-1, 1]: the area of the difference of the curves."""
        return self.insertion.auc - self.deletion.auc

    def rows(self) -> list[dict[str, Any]]:
        """Result rows: what is measured, how, its value, which direction is better, and the curve if it has one."""
        insertion, deletion = self.insertion, self.deletion
        values: list[tuple[str, float, str, Curve | None]] = [
            ("insertion_auc", insertion.auc, "higher", insertion),
            ("insertion_mean", insertion.mean, "higher", None),
            ("deletion_auc", deletion.auc, "lower", deletion),
            ("deletion_mean", deletion.mean, "lower", None),
            ("difference_auc", self.difference_auc, "higher", None),
        ]
        how = {"protocol": str(self.protocol), "reduction": self.reduction, "target": self.target}
        return [
            {"metric": metric, "value": value, **how, "direction": better, "constant_map": self.constant}
            | ({"curve": curve.s.tolist()} if curve is not None else {})
            for metric, value, better, curve in values
        ]


@dataclass(frozen=True, init=False)
class InsertionDeletion:
    """Insertion and deletion of a map, under a `protocol` (one, or the name of a preset), with another `step` if given.

    `reduce` says how a map with channels becomes one number a pixel (`sum`, `abs_sum`, `max_abs`). A map (H, W) is
    taken as it is, with the reduction "none"; a union protocol ranks the channels themselves, with "union".
    """

    id: str
    protocol: Protocol
    reduce: str

    def __init__(
        self,
        protocol: Protocol | str = "rise",
        reduce: str = "sum",
        *,
        step: int | Fraction | None = None,
        id: str = "insertion-deletion",
    ) -> None:
        protocol = protocol if isinstance(protocol, Protocol) else Protocol.named(protocol)
        object.__setattr__(self, "id", id)
        object.__setattr__(self, "protocol", protocol if step is None else replace(protocol, step=step))
        object.__setattr__(self, "reduce", str(reduction(reduce)))

    def __call__(
        self,
        x: Array,
        heatmap: Array,
        *,
        space: Space,
        head: Head = Head.SOFTMAX,
        channel_axis: int = 0,
        name: str = "heatmap",
    ) -> Program[Played]:
        """The games as a program, which asks for `Blends` of at most 32 frames at once.

        Args:
            x: one image (C, H, W), in the space and dtype of the model's input.
            heatmap: (H, W), or an attribution in the shape of `x`. Never resized.
            space: what black and the mean colour are.
            head: what makes probabilities of logits.
            channel_axis: 0 for (C, H, W), -1 for (H, W, C).
            name: of the heatmap, for errors.

        Raises:
            InputError: the map does not fit the image, or holds NaN or Inf.
            UsageError: black is asked for but the input's range is unknown; a softmax head has one class only.
        """
        protocol = self.protocol
        ranked, how = self.ranked(x, heatmap, channel_axis, name)
        pixels = ranked.shape[1]
        when = change_step(ranked, protocol.pixels(pixels))
        when = np.expand_dims(when.reshape(np.delete(x.shape, channel_axis)), channel_axis)
        nothing = {
            kind: substrate(kind, x, space, channel_axis, f"protocol {protocol}")
            for kind in (protocol.insertion, protocol.deletion)
        }

        # Ends do not depend on the map, and games may share them: each is asked for once.
        logits = yield Logits(np.stack([x, *nothing.values()]))
        if logits.shape[1] < 2 and head is Head.SOFTMAX:
            raise UsageError(
                "insertion and deletion follow a probability, and the softmax of one output is always 1; "
                "next: say that the head is a sigmoid"
            )
        c = int(logits[0].argmax())
        full, *rest = probability(logits, c, head)
        ends = dict(zip(nothing, rest, strict=True))

        n = protocol.steps(pixels)
        inserting = yield from frames(nothing[protocol.insertion], x, when, n, c, head)
        deleting = yield from frames(x, nothing[protocol.deletion], when, n, c, head)
        return Played(
            insertion=Curve(np.array([ends[protocol.insertion], *inserting, full])),
            deletion=Curve(np.array([full, *deleting, ends[protocol.deletion]])),
            target=c,
            protocol=protocol,
            reduction=how,
            constant=bool((ranked == ranked[:, :1]).all()),
        )

    def ranked(self, x: Array, heatmap: Array, channel_axis: int, name: str) -> tuple[Array, str]:
        """What is ranked, (rankings, HW), and how it came from the channels."""
        require_map(x, heatmap, channel_axis, name)
        if self.protocol.order is Order.UNION:
            if heatmap.ndim == 2:
                raise InputError(
                    f"{name}: protocol {self.protocol} ranks each channel, but this map has none; "
                    "next: give a map with channels, or use agi_isa"
                )
            return np.moveaxis(heatmap, channel_axis, 0).reshape(x.shape[channel_axis], -1), "union"
        ranked, how = one_a_pixel(heatmap, self.reduce, channel_axis)
        return ranked[None], how

    def rows(self, height: int, width: int) -> int:
        """How many rows one map of this size costs: for progress bars."""
        ends = 1 + len({self.protocol.insertion, self.protocol.deletion})
        return ends + 2 * (self.protocol.steps(height * width) - 1)

    score = score_maps


def frames(start: Array, finish: Array, when: Array, n: int, c: int, head: Head) -> Program[list[float]]:
    """s_1 ... s_{n-1}: frame i shows `finish` where pixels change before step i, and `start` elsewhere."""
    s: list[float] = []
    for i in range(1, n, CHUNK):
        steps = np.arange(i, min(i + CHUNK, n)).reshape(-1, 1, 1, 1)
        logits = yield Blends(start, finish, when < steps)
        s.extend(probability(logits, c, head))
    return s


def probability(logits: Array, c: int, head: Head) -> list[float]:
    """The probability of class c for each row of logits, in float64."""
    return list(head.probability(logits.astype(np.float64))[:, c])


def change_step(ranked: Array, q: int) -> Array:
    """The step (0 ... N-1) at which each pixel changes, q at a time, in descending order; ties: lower index first.

    With several rankings (R, HW), a pixel changes at the first of its turns: floor(min_r rank_r / q).
    """
    order = np.argsort(-ranked.astype(np.float64), axis=1, kind="stable")
    rank = np.argsort(order, axis=1)  # the inverse permutation
    return np.asarray(rank.min(axis=0) // q)


def substrate(kind: Substrate, x: Array, space: Space, channel_axis: int, who: str) -> Array:
    """What stands for "no image" beside x, in the units of x."""
    match kind:
        case Substrate.BLACK:
            space.require_range(who)
            nothing = space.low
        case Substrate.ZERO:
            nothing = space.zero
        case Substrate.BLUR:
            # RISE blurs (x - zero) / scale; a blur is linear, so that the scale cancels
            nothing = blur(x.astype(np.float64) - space.zero, channel_axis) + space.zero
    return np.broadcast_to(nothing, x.shape).astype(x.dtype)


def blur(z: Array, channel_axis: int = 0) -> Array:
    """RISE's blur of an image, padded with zeros: with the mean colour, if that is where z has its zero."""
    import cv2

    taps = blur_taps()
    planes = [np.ascontiguousarray(plane) for plane in np.moveaxis(z, channel_axis, 0)]
    blurred = [cv2.sepFilter2D(plane, -1, taps, taps, borderType=cv2.BORDER_CONSTANT) for plane in planes]
    return np.stack(blurred, axis=channel_axis)


def blur_taps(size: int = 11, sigma: float = 5.0) -> Array:
    """One axis of RISE's `gkern(11, 5)`, (size,) float64: .087958 .088896 .090474 .092191 .093489 .093982 ...

    It is a unit impulse on `size` points through SciPy's Gaussian filter, whose reach of 4 sigma is more than there
    are points, and which reflects at the border: the tails fold back, and what is left is almost a box.
    """
    reach = int(4 * sigma)
    gaussian = np.exp(-(np.arange(-reach, reach + 1) ** 2) / (2 * sigma**2))
    impulse = np.zeros(size)
    impulse[size // 2] = 1
    return np.convolve(np.pad(impulse, reach, mode="symmetric"), gaussian / gaussian.sum(), mode="valid")
