"""DiffID: insertion minus deletion, where what is not kept becomes the mean of what is.

The metric of LPI, local path integration (AAAI 2023), as its released code has it. With K the kept pixels, and c the
class and z_c the logit of the full image,

    x_K = x in K, the mean of x over K (of each channel) elsewhere
    insertion keeps the share r of the pixels that the map ranks highest, deletion keeps all but these
    logit  = mean_r [ z_c(x_insertion) - z_c(x_deletion) ] / z_c(x)
    accuracy = mean_r [ (argmax z(x_insertion) = c) - (argmax z(x_deletion) = c) ]
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from onnxplain.engine.heatmap import reduction
from onnxplain.engine.metrics.insertion_deletion import CHUNK, change_step
from onnxplain.engine.metrics.maps import one_a_pixel, require_map, score_maps
from onnxplain.engine.metrics.sensitivity_n import require_ratios
from onnxplain.engine.requests import Array, Head, Logits, Program
from onnxplain.engine.space import Space
from onnxplain.errors import UsageError

RATIOS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)


@dataclass(frozen=True, eq=False, kw_only=True)
class Differences:
    """Insertion minus deletion at each of `ratios`: of z_c / z_c(x), and of whether the class is still predicted.

    `full` is z_c(x). If it is 0, `logit` is NaN; if it is negative, a higher ratio means a lower logit: look at it.
    """

    ratios: tuple[float, ...]
    logit: Array
    accuracy: Array
    full: float
    target: int
    protocol: str
    reduction: str
    constant: bool

    def rows(self) -> list[dict[str, Any]]:
        """Result rows, `diffid_logit` and `diffid_accuracy`; `curve` has one number for each of `ratios`."""
        return [
            {
                "metric": metric, "value": float(curve.mean()), "protocol": self.protocol, "reduction": self.reduction,
                "target": self.target, "direction": "higher", "constant_map": self.constant, "full_logit": self.full,
                "curve": curve.tolist(), "ratios": list(self.ratios),
            }
            for metric, curve in (("diffid_logit", self.logit), ("diffid_accuracy", self.accuracy))
        ]  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class DiffID:
    """DiffID of a map at the shares `ratios` of the pixels; pixels are ranked in descending order, ties by their index.

    `reduce` says how a map with channels becomes one number a pixel.
    """

    id: str = "diffid"
    ratios: tuple[float, ...] = RATIOS
    reduce: str = "abs_sum"

    def __post_init__(self) -> None:
        require_ratios("DiffID", self.ratios)
        object.__setattr__(self, "reduce", str(reduction(self.reduce)))

    @property
    def protocol(self) -> str:
        """All that fixes the number, in words."""
        return "mean of the kept" + ("" if self.ratios == RATIOS else f", ratios={'/'.join(map(str, self.ratios))}")

    def __call__(
        self,
        x: Array,
        heatmap: Array,
        *,
        space: Space,  # noqa: ARG002 -- as all metrics have it
        head: Head = Head.SOFTMAX,  # noqa: ARG002 -- the same
        channel_axis: int = 0,
        name: str = "heatmap",
    ) -> Program[Differences]:
        """The differences as a program; arguments and errors are those of `InsertionDeletion`.

        Raises:
            UsageError: the image has a single pixel, so that nothing can be kept.
        """
        require_map(x, heatmap, channel_axis, name)
        a, how = one_a_pixel(heatmap, self.reduce, channel_axis)
        if a.size < 2:
            raise UsageError(f"{self.id}: an image of one pixel has no part to keep; next: use a larger one")
        logits = yield Logits(x[None])
        c = int(logits[0].argmax())
        full = float(logits[0, c])

        rank = change_step(a[None], 1)
        counts = [min(max(round(ratio * a.size), 1), a.size - 1) for ratio in self.ratios]
        kept = [rank < count for count in counts] + [rank >= count for count in counts]
        z: list[float] = []
        same: list[bool] = []
        for first in range(0, len(kept), CHUNK):
            logits = yield Logits(np.stack([keep(x, mask, channel_axis) for mask in kept[first : first + CHUNK]]))
            z.extend(logits[:, c].astype(np.float64))
            same.extend(logits.argmax(axis=1) == c)
        ratio = np.array(z) / full if full else np.full(len(z), math.nan)
        insertion, deletion = slice(None, len(counts)), slice(len(counts), None)
        stays = np.array(same, np.float64)
        return Differences(
            ratios=self.ratios,
            logit=ratio[insertion] - ratio[deletion],
            accuracy=stays[insertion] - stays[deletion],
            full=full,
            target=c,
            protocol=self.protocol,
            reduction=how,
            constant=bool((a == a[0]).all()),
        )

    def rows(self, height: int, width: int) -> int:  # noqa: ARG002 -- as all metrics have it
        """How many rows one map costs, whatever its size: for progress bars."""
        return 2 * len(self.ratios) + 1

    score = score_maps


def keep(x: Array, kept: Array, channel_axis: int) -> Array:
    """x at the pixels `kept` (HW,), and their mean, channel by channel, at all others."""
    planes = np.moveaxis(x, channel_axis, 0)
    mask = kept.reshape(planes.shape[1:])
    mean = planes[:, mask].mean(axis=1, dtype=np.float64).astype(x.dtype)
    return np.moveaxis(np.where(mask, planes, mean[:, None, None]), 0, channel_axis)
