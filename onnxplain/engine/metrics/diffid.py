"""DiffID: what the class keeps of the most important pixels alone, minus what it keeps without them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from onnxplain.engine.heatmap import Reduction
from onnxplain.engine.methods.method import require
from onnxplain.engine.metrics.maps import Array, on_picture, per_pixel, require_map
from onnxplain.engine.requests import Head, Logits, Program
from onnxplain.engine.space import Space

TINY = 1e-12  # the least |logit| that is divided by


@dataclass(frozen=True, eq=False)
class Differences:
    """Insertion minus deletion at each ratio, float64: of the logit's ratio to that of the image, and of accuracy."""

    logit: Array
    accuracy: Array
    ratios: tuple[float, ...]
    target: int
    reduction: str
    constant: bool

    def rows(self) -> list[dict[str, Any]]:
        """Two rows, `diffid_logit` (None where the image's logit is 0) and `diffid_accuracy`: means over the ratios."""
        how = {"protocol": f"ratios {', '.join(map(str, self.ratios))}", "reduction": self.reduction}
        more = {"target": self.target, "direction": "higher", "constant_map": self.constant}
        rows: list[dict[str, Any]] = []
        for metric, values in (("diffid_logit", self.logit), ("diffid_accuracy", self.accuracy)):
            defined = bool(np.isfinite(values).all())
            curve = values.tolist() if defined else [None] * len(values)
            rows.append(
                {"metric": metric, "value": float(values.mean()) if defined else None}
                | {**how, **more, "curve": curve, "ratios": list(self.ratios)}
            )
        return rows


@dataclass(frozen=True, kw_only=True)
class DiffID:
    """mean over ratios of  f(x with the top pixels alone) - f(x without them).

    At a ratio r the round(r * HW) pixels with the highest sum of magnitudes over channels are the top ones. What is not
    shown is replaced by the mean colour of what is, channel by channel. f is the logit of the predicted class as a
    share of that of the image (`diffid_logit`), and whether the model predicts the same class (`diffid_accuracy`, whose
    mean over images is a difference of accuracies). Costs 1 + 2 * len(ratios) forward rows.

    Source: Yang, Akhtar, Wen and Mian, Local Path Integration for Attribution, AAAI 2023, as its authors' code
    evaluates it.
    """

    id: str = "diffid"
    ratios: tuple[float, ...] = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)

    def __post_init__(self) -> None:
        between = len(self.ratios) > 0 and all(0 < ratio < 1 for ratio in self.ratios)
        require(between, "DiffID: ratios", "numbers between 0 and 1", self.ratios)

    def rows(self, height: int, width: int) -> int:  # noqa: ARG002 (the same for every size)
        return 1 + 2 * len(self.ratios)

    def __call__(
        self,
        x: Array,
        heatmap: Array,
        *,
        space: Space,  # noqa: ARG002 (what replaces pixels is made of the image)
        head: Head = Head.SOFTMAX,  # noqa: ARG002 (logits only)
        channel_axis: int = 0,
        name: str = "heatmap",
    ) -> Program[Differences]:
        """The program for one image and map; see `InsertionDeletion.__call__` for arguments and errors."""
        require_map(x, heatmap, channel_axis, name)
        values, reduction = per_pixel(np.abs(heatmap), Reduction.ABS_SUM, channel_axis)
        order = np.argsort(-values.astype(np.float64), kind="stable")  # ties: lower index first
        logits = yield Logits(x[None])
        c, full = int(logits[0].argmax()), float(logits[0].max())

        logit, accuracy = [], []
        for ratio in self.ratios:
            n = min(max(round(ratio * values.size), 1), values.size - 1)
            top = np.zeros(values.size, bool)
            top[order[:n]] = True
            shown = on_picture(np.stack([top, ~top]), x, channel_axis)
            inserted, deleted = yield Logits(np.stack([shown_alone(x, one, channel_axis) for one in shown]))
            gap = float(inserted[c]) - float(deleted[c])
            logit.append(gap / full if abs(full) > TINY else np.nan)
            accuracy.append(float(inserted.argmax() == c) - float(deleted.argmax() == c))
        return Differences(
            logit=np.array(logit, np.float64),
            accuracy=np.array(accuracy),
            ratios=self.ratios,
            target=c,
            reduction=reduction,
            constant=bool((values == values[0]).all()),
        )


def shown_alone(x: Array, shown: Array, channel_axis: int) -> Array:
    """`x` where `shown`, and the mean colour of that elsewhere."""
    picture = tuple(axis for axis in range(x.ndim) if axis != channel_axis % x.ndim)
    mean = x.mean(axis=picture, keepdims=True, where=shown, dtype=np.float64)
    return np.where(shown, x, mean).astype(x.dtype)
