"""Sensitivity-N: does the sum of a map over some pixels say how much the class loses without them?"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np

from onnxplain.engine.heatmap import Reduction
from onnxplain.engine.methods.method import require, require_one_of, require_whole
from onnxplain.engine.metrics.insertion_deletion import substrate
from onnxplain.engine.metrics.maps import Array, on_picture, per_pixel, require_map
from onnxplain.engine.metrics.protocols import Substrate
from onnxplain.engine.requests import Head, Kind, Logits, Objective, Program
from onnxplain.engine.space import Space

CHUNK = 32  # images that exist at once
MOST_SUBSETS = 100_000
ALIKE = 1e-12  # relative: a standard deviation below it is rounding


@dataclass(frozen=True, eq=False)
class Correlations:
    """The correlation at each ratio, float64; NaN where either side did not vary."""

    ratios: tuple[float, ...]
    at: Array
    target: int
    protocol: str
    reduction: str
    constant: bool

    @property
    def value(self) -> float:
        """The mean over the ratios that have one, in [-1, 1]; NaN if none has."""
        defined = self.at[np.isfinite(self.at)]
        return float(defined.mean()) if len(defined) else float("nan")

    def rows(self) -> list[dict[str, Any]]:
        """One row: the mean, the curve over ratios (None: undefined), and how many ratios were `dropped`."""
        curve = [float(value) if np.isfinite(value) else None for value in self.at]
        return [
            {
                "metric": "sensitivity_n",
                "value": self.value if np.isfinite(self.value) else None,
                "protocol": self.protocol,
                "reduction": self.reduction,
                "target": self.target,
                "direction": "higher",
                "constant_map": self.constant,
                "curve": curve,
                "ratios": list(self.ratios),
                "dropped": sum(value is None for value in curve),
            }
        ]


@dataclass(frozen=True, kw_only=True)
class SensitivityN:
    """PCC over S of  sum_{i in S} A_i  and  F(x) - F(x without S),  for sets S of N pixels; the mean over N.

    N = round(ratio * HW) for each of `ratios`, one pixel at least; at each of them `subsets` sets are drawn evenly, and
    their pixels are replaced by `substrate`. A is the map reduced over channels by `reduce`, F `objective` of the
    predicted class. The sets depend on `seed`, the image's pixels and N only, so that all methods are held against the
    same ones. Where the sums or the falls do not vary, there is no correlation: it is left out of the mean, and
    counted.

    Costs 1 + subsets * len(ratios) forward rows. Of a linear F with A = w * (x - x') it is 1, at every N < HW.

    Source: Ancona, Ceolini, Öztireli and Gross, ICLR 2018, section 4. How many sets, which sizes and what replaces
    pixels differs from paper to paper; the ratios are in the range of Akhtar and Jalwana, ICML 2023, section 7.
    """

    id: str = "sensitivity-n"
    ratios: tuple[float, ...] = (0.01, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
    subsets: int = 100
    substrate: Substrate = Substrate.BLACK
    objective: Kind = Kind.LOGIT
    reduce: Reduction = Reduction.SUM
    seed: int = 0

    def __post_init__(self) -> None:
        between = len(self.ratios) > 0 and all(0 < ratio < 1 for ratio in self.ratios)
        require(between, "SensitivityN: ratios", "numbers between 0 and 1", self.ratios)
        require_whole("SensitivityN: subsets", self.subsets, 2, MOST_SUBSETS)
        require_one_of("SensitivityN: substrate", self.substrate, Substrate)
        require_one_of("SensitivityN: objective", self.objective, (Kind.LOGIT, Kind.PROB, Kind.LOGPROB))
        require_one_of("SensitivityN: reduce", self.reduce, Reduction)
        require_whole("SensitivityN: seed", self.seed, 0, 2**63 - 1)

    @property
    def protocol(self) -> str:
        """All that fixes the number, in words."""
        whole = SensitivityN()
        ratios = "" if self.ratios == whole.ratios else f", ratios {', '.join(map(str, self.ratios))}"
        seed = f", seed {self.seed}" * bool(self.seed)
        return f"{self.objective.name.lower()}, {self.substrate}, {self.subsets} subsets{ratios}{seed}"

    def rows(self, height: int, width: int) -> int:  # noqa: ARG002 (the same for every size)
        return 1 + self.subsets * len(self.ratios)

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
        """The program for one image and map; see `InsertionDeletion.__call__` for arguments and errors."""
        require_map(x, heatmap, channel_axis, name)
        values, reduction = per_pixel(heatmap, self.reduce, channel_axis)
        values = values.astype(np.float64)
        nothing = substrate(self.substrate, x, space, channel_axis, "SensitivityN")
        logits = yield Logits(x[None])
        objective = Objective(self.objective, int(logits[0].argmax()), head)
        at_x = objective.value(logits)[0]

        found: list[float] = []
        for ratio in self.ratios:
            n = max(round(ratio * values.size), 1)
            rng = self.generator(x, n)
            sums, falls = np.empty(self.subsets), np.empty(self.subsets)
            for first in range(0, self.subsets, CHUNK):
                now = slice(first, min(first + CHUNK, self.subsets))
                removed = subsets(rng, now.stop - now.start, n, values.size)
                logits = yield Logits(np.where(on_picture(removed, x, channel_axis), nothing, x))
                sums[now] = [values[one].sum() for one in removed]
                falls[now] = at_x - objective.value(logits)
            found.append(correlation(sums, falls))
        return Correlations(
            ratios=self.ratios,
            at=np.array(found),
            target=int(objective.target),
            protocol=self.protocol,
            reduction=reduction,
            constant=bool((values == values[0]).all()),
        )

    def generator(self, x: Array, n: int) -> np.random.Generator:
        """The random numbers for sets of `n` pixels of this image."""
        digest = hashlib.sha256(x.tobytes()).digest()
        words = np.frombuffer(digest, np.uint32).tolist()
        return np.random.default_rng(np.random.SeedSequence(self.seed, spawn_key=(*words, n)))


def subsets(rng: np.random.Generator, count: int, n: int, pixels: int) -> Array:
    """`count` sets of exactly `n` of so many pixels, bool (count, pixels), each drawn evenly from all of that size."""
    chosen = rng.random((count, pixels)).argpartition(n - 1, axis=1)[:, :n]
    sets = np.zeros((count, pixels), bool)
    np.put_along_axis(sets, chosen, True, axis=1)
    return sets


def correlation(a: Array, b: Array) -> float:
    """Pearson's correlation; NaN if either side does not vary."""
    deviations = []
    for values in (a, b):
        deviation = values - values.mean()
        if np.sqrt((deviation**2).mean()) <= ALIKE * np.abs(values).max():
            return float("nan")
        deviations.append(deviation / np.linalg.norm(deviation))
    return float(deviations[0] @ deviations[1])
