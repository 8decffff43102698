"""KernelSHAP: the Shapley values of superpixels, by a weighted regression."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations
from math import comb
from typing import ClassVar

import numpy as np

from onnxplain.engine.methods.baselines import Baseline, baseline_of, require_baseline
from onnxplain.engine.methods.lime import MOST_SAMPLES
from onnxplain.engine.methods.masked import coalition_values
from onnxplain.engine.methods.method import CLASS_KINDS, Array, Task, require_one_of, require_whole, spread
from onnxplain.engine.methods.superpixels import EXTRA, Segments, require_segments, subsets, superpixels
from onnxplain.engine.requests import Attribution, Kind, Program
from onnxplain.errors import UsageError, importing


@dataclass(frozen=True, kw_only=True)
class KernelSHAP:
    """A_i = phi_s for the superpixel s of pixel i; phi minimises sum_S k(S) (v(S) - v({}) - sum_{s in S} phi_s)^2.

    v(S) = F(x with the superpixels outside S replaced by the baseline), k(S) = (M - 1) / (C(M, |S|) |S| (M - |S|)), and
    sum phi = F(x) - F(x') is kept exactly. If the 2^M - 2 coalitions of M superpixels are no more than `samples`,
    all of them are asked, and phi are the Shapley values; otherwise `samples` are drawn in proportion to k, each
    beside its complement. `segments` cuts the superpixels, or is their map (H, W). F is `objective` of the class, by
    default its logit. phi has the units of F. At most `samples` + 2 forward rows.

    Source: Lundberg and Lee, NeurIPS 2017, theorem 2; complements: Covert and Lee, AISTATS 2021. Needs scikit-learn,
    and scikit-image to cut superpixels.
    """

    forward_only: ClassVar[bool] = True
    id: str = "kernel-shap"
    samples: int = 2048
    segments: Segments | Array = Segments.QUICKSHIFT
    baseline: Baseline | Array = Baseline.MEAN_COLOUR
    objective: Kind = Kind.LOGIT

    def __post_init__(self) -> None:
        require_whole("KernelSHAP: samples", self.samples, 2, MOST_SAMPLES)
        require_segments("KernelSHAP", self.segments)
        require_baseline("KernelSHAP", self.baseline)
        require_one_of("KernelSHAP: objective", self.objective, CLASS_KINDS)

    def rows(self, shape: tuple[int, ...]) -> int:  # noqa: ARG002 (the same for every shape)
        return self.samples + 2

    def __call__(self, x: Array, task: Task) -> Program[Attribution]:
        cut = superpixels(x, self.segments, task, "KernelSHAP")
        count = int(cut.max()) + 1
        baseline = baseline_of(x, self.baseline, task, "KernelSHAP")
        exact = 2**count - 2 <= self.samples
        kept, weights = every_coalition(count) if exact else self.draw(task.rng, count)

        ends = np.array([[False] * count, [True] * count])
        asked = np.concatenate([ends, kept])
        values = yield from coalition_values(x, baseline, asked, cut, self.objective, task)
        nothing, everything = values[:2]
        phi = regress(kept, values[2:] - nothing, weights, everything - nothing)
        return Attribution(
            spread(phi[cut], x, task.space),
            {
                "superpixels": count,
                "shapley_values": phi.tolist(),
                "change": float(everything - nothing),
                "exact": exact,
            },
        )

    def draw(self, rng: np.random.Generator, count: int) -> tuple[Array, Array]:
        """Coalitions, bool (samples, count), drawn in proportion to the kernel, and their equal weights."""
        if self.samples < 2 * count:
            raise UsageError(
                f"KernelSHAP: {self.samples} samples do not determine {count} superpixels; "
                f"next: at least {2 * count} samples, or fewer superpixels"
            )
        sizes = np.arange(1, count)
        likely = 1 / (sizes * (count - sizes))  # of a size: the kernel times the number of coalitions of that size
        half = subsets(rng, rng.choice(sizes, -(-self.samples // 2), p=likely / likely.sum()), count)
        both = np.stack([half, ~half], axis=1).reshape(-1, count)[: self.samples]
        return both, np.ones(len(both))


def every_coalition(count: int) -> tuple[Array, Array]:
    """All coalitions but the empty and the full one, bool (2^M - 2, M), and their weights in the kernel."""
    kept = np.zeros((2**count - 2, count), bool)
    weights: list[float] = []
    for size in range(1, count):
        for members in combinations(range(count), size):
            kept[len(weights), members] = True
            weights.append((count - 1) / (comb(count, size) * size * (count - size)))
    return kept, np.array(weights)


def regress(kept: Array, gains: Array, weights: Array, change: float) -> Array:
    """phi (M,): gains ~ kept @ phi by weighted least squares, with sum phi = change.

    The last value is change less the others: gains - z_M change = sum_{s < M} (z_s - z_M) phi_s.
    """
    with importing("scikit-learn", EXTRA):
        from sklearn.linear_model import LinearRegression
    if not len(kept):  # one superpixel
        return np.array([change])
    z = kept.astype(np.float64)
    model = LinearRegression(fit_intercept=False)
    model.fit(z[:, :-1] - z[:, -1:], gains - z[:, -1] * change, sample_weight=weights)
    return np.append(model.coef_, change - model.coef_.sum())
