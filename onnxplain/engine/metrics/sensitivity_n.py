"""Sensitivity-N: does the attribution of a set of pixels say what the output loses with them?

Ancona, Ceolini, Öztireli, Gross: Towards better understanding of gradient-based attribution methods for deep neural
networks, ICLR 2018. For subsets S of N pixels, with x_S the image without them,

    a_S = sum_{i in S} A_i        d_S = F(x) - F(x_S)        score_N = Pearson correlation of a_S and d_S over the S
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from onnxplain.engine.heatmap import reduction
from onnxplain.engine.methods.method import CLASS_KINDS, require_one_of, require_whole, word
from onnxplain.engine.metrics.insertion_deletion import CHUNK, substrate
from onnxplain.engine.metrics.maps import one_a_pixel, require_map, score_maps
from onnxplain.engine.metrics.protocols import Substrate
from onnxplain.engine.metrics.ranks import pearson
from onnxplain.engine.requests import Array, Blends, Head, Kind, Logits, Objective, Program
from onnxplain.engine.space import Space
from onnxplain.errors import UsageError

RATIOS = (0.01, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
MOST_SUBSETS = 100_000


@dataclass(frozen=True, eq=False, kw_only=True)
class Correlations:
    """The Pearson correlation at each of `ratios`; NaN where the map's sums or the output did not vary."""

    ratios: tuple[float, ...]
    pcc: Array
    target: int
    protocol: str
    reduction: str
    constant: bool

    @property
    def dropped(self) -> int:
        """How many ratios have no correlation."""
        return int(np.isnan(self.pcc).sum())

    @property
    def value(self) -> float:
        """The mean over the ratios that have a correlation, in [-1, 1]; NaN if none has."""
        found = self.pcc[~np.isnan(self.pcc)]
        return float(found.mean()) if len(found) else math.nan

    def rows(self) -> list[dict[str, Any]]:
        """One result row; `curve` holds the correlations, one for each of `ratios`."""
        return [
            {
                "metric": "sensitivity_n", "value": self.value, "protocol": self.protocol, "reduction": self.reduction,
                "target": self.target, "direction": "higher", "constant_map": self.constant, "dropped": self.dropped,
                "curve": self.pcc.tolist(), "ratios": list(self.ratios),
            }
        ]  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class SensitivityN:
    """Sensitivity-N of a map, one number a pixel, at N = round(ratio * HW) for each of `ratios`.

    F is `objective` of the class that is predicted for the full image. `subsets` sets of exactly N pixels are drawn
    uniformly, by the image's pixels and the ratio: all maps of an image meet the same sets. The pixels of a set are
    replaced by `replacement`, in all channels. `reduce` says how a map with channels becomes one number a pixel.
    """

    id: str = "sensitivity-n"
    ratios: tuple[float, ...] = RATIOS
    subsets: int = 100
    replacement: Substrate = Substrate.BLACK
    objective: Kind = Kind.LOGIT
    reduce: str = "sum"

    def __post_init__(self) -> None:
        require_ratios("SensitivityN", self.ratios)
        require_whole("SensitivityN: subsets", self.subsets, 2, MOST_SUBSETS)
        require_one_of("SensitivityN: replacement", self.replacement, Substrate)
        require_one_of("SensitivityN: objective", self.objective, CLASS_KINDS)
        object.__setattr__(self, "reduce", str(reduction(self.reduce)))

    @property
    def protocol(self) -> str:
        """All that fixes the number, in words; `ratios` only if they are not the usual ones."""
        ratios = "" if self.ratios == RATIOS else f", ratios={'/'.join(map(str, self.ratios))}"
        how = f"objective={word(self.objective)}, replacement={self.replacement}, subsets={self.subsets}"
        return how + ratios

    def __call__(
        self,
        x: Array,
        heatmap: Array,
        *,
        space: Space,
        head: Head = Head.SOFTMAX,
        channel_axis: int = 0,
        name: str = "heatmap",
    ) -> Program[Correlations]:
        """The correlations as a program, which asks for `Blends` of at most 32 frames at once.

        Arguments and errors are those of `InsertionDeletion`.
        """
        require_map(x, heatmap, channel_axis, name)
        a, how = one_a_pixel(heatmap, self.reduce, channel_axis)
        a = a.astype(np.float64)
        nothing = substrate(self.replacement, x, space, channel_axis, f"{self.id} with {self.replacement}")
        logits = yield Logits(x[None])
        c = int(logits[0].argmax())
        objective = Objective(self.objective, c, head)
        (full,) = objective.value(logits)

        pcc = []
        for ratio in self.ratios:
            rng = rng_of(x, ratio)
            sums: list[float] = []
            changes: list[float] = []
            for first in range(0, self.subsets, CHUNK):
                masks = draw(rng, min(CHUNK, self.subsets - first), round(ratio * a.size), a.size)
                sums.extend((a * mask).sum() for mask in masks)  # one by one: they stay in the cache
                removed = np.expand_dims(masks.reshape(-1, *np.delete(x.shape, channel_axis)), channel_axis % 3 + 1)
                logits = yield Blends(x, nothing, removed)
                changes.extend(full - objective.value(logits))
            pcc.append(pearson(sums, changes))
        return Correlations(
            ratios=self.ratios,
            pcc=np.array(pcc),
            target=c,
            protocol=self.protocol,
            reduction=how,
            constant=bool((a == a[0]).all()),
        )

    def rows(self, height: int, width: int) -> int:  # noqa: ARG002 -- as all metrics have it
        """How many rows one map costs, whatever its size: for progress bars."""
        return len(self.ratios) * self.subsets + 1

    score = score_maps


def require_ratios(who: str, ratios: Sequence[float]) -> None:
    """Raise `UsageError` unless these are shares of the pixels, each once."""
    if not ratios or not all(0 < ratio < 1 for ratio in ratios) or len(set(ratios)) < len(ratios):
        raise UsageError(f"{who}: ratios: expected shares between 0 and 1, each once, got {list(ratios)}")


def rng_of(x: Array, ratio: float) -> np.random.Generator:
    """A generator that depends on the image's values and the ratio, and on nothing else."""
    digest = hashlib.sha256(np.ascontiguousarray(x).tobytes() + repr(float(ratio)).encode()).digest()
    return np.random.default_rng(int.from_bytes(digest))


def draw(rng: np.random.Generator, count: int, n: int, size: int) -> Array:
    """`count` sets of exactly `n` of `size` pixels, drawn uniformly, as masks (count, size)."""
    few = min(n, size - n)  # draw those that are in the set, or those that are not
    masks = np.zeros((count, size), bool)
    for mask in masks:
        mask[rng.choice(size, few, replace=False, shuffle=False)] = True
    return masks if few == n else ~masks
