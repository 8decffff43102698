"""LIME: a small linear model of the classifier around one image."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum
from math import sqrt
from typing import Any, ClassVar

import numpy as np

from onnxplain.engine.methods.baselines import Baseline, baseline_of, require_baseline
from onnxplain.engine.methods.masked import coalition_values
from onnxplain.engine.methods.method import (
    CLASS_KINDS,
    Array,
    Task,
    require_one_of,
    require_positive,
    require_whole,
    spread,
)
from onnxplain.engine.methods.superpixels import (
    EXTRA,
    Segments,
    mean_colours,
    require_segments,
    subsets,
    superpixels,
)
from onnxplain.engine.requests import Attribution, Kind, Program
from onnxplain.errors import importing

MOST_SAMPLES = 1_000_000
MOST_ALPHA = 1e9
MOST_WIDTH = 1e6


class Regression(Enum):
    """How the weights of the linear model are found from weighted samples."""

    K_LASSO = "k_lasso"  # the `k` superpixels that the Lasso takes first, then least squares on them
    LASSO = "lasso"  # penalty alpha * |w|_1 on half the mean squared error
    RIDGE = "ridge"  # penalty alpha * |w|^2 on the summed squared error


class Distance(Enum):
    """How far a sample, which keeps n of M superpixels, is from the image; both from 0 to 1."""

    L2 = "l2"  # sqrt(1 - n/M): the Euclidean one of the vectors of 0 and 1, over sqrt(M)
    COSINE = "cosine"  # 1 - sqrt(n/M), of the same vectors


class Draws(Enum):
    """Which superpixels a sample keeps."""

    SIZES = "sizes"  # a uniformly random number of them, 1 to M: as the paper has it
    COINS = "coins"  # each with probability 1/2: as the released code has it


@dataclass(frozen=True, kw_only=True)
class LIME:
    """A_i = w_s for the superpixel s of pixel i; w minimises sum_j pi_j (F(z_j) - w_0 - <w, z'_j>)^2 + penalty(w).

    z'_j (0 or 1 for each superpixel) says what sample j keeps of the image, z_j is that image with the rest replaced,
    pi_j = exp(-D(z'_j)^2 / width^2) with the `distance` D. The first of the `samples` is x itself, the others are
    `draws`. `segments` cuts the superpixels, or is their map (H, W); `baseline` replaces them, by default each by its
    own mean colour. `regression` says how w is found; `k` and `alpha` belong to it. F is `objective` of the class, by
    default its probability. A has the units of F. One forward row a sample.

    Source: Ribeiro, Singh and Guestrin, KDD 2016, section 3.4 and algorithm 1, which leave the width open
    (`LIME.repo()`: the released code for images). Needs scikit-learn, and scikit-image to cut superpixels.
    """

    forward_only: ClassVar[bool] = True
    id: str = "lime"
    samples: int = 1000
    segments: Segments | Array = Segments.QUICKSHIFT
    draws: Draws = Draws.SIZES
    distance: Distance = Distance.L2
    width: float = 0.75
    regression: Regression = Regression.K_LASSO
    k: int = 10
    alpha: float = 1.0
    baseline: Baseline | Array | None = None
    objective: Kind = Kind.PROB

    def __post_init__(self) -> None:
        require_whole("LIME: samples", self.samples, 2, MOST_SAMPLES)
        require_segments("LIME", self.segments)
        require_one_of("LIME: draws", self.draws, Draws)
        require_one_of("LIME: distance", self.distance, Distance)
        require_positive("LIME: width", self.width, MOST_WIDTH)
        require_one_of("LIME: regression", self.regression, Regression)
        require_whole("LIME: k", self.k, 1, MOST_SAMPLES)
        require_positive("LIME: alpha", self.alpha, MOST_ALPHA)
        if self.baseline is not None:
            require_baseline("LIME", self.baseline)
        require_one_of("LIME: objective", self.objective, CLASS_KINDS)

    @classmethod
    def repo(cls, **changes: Any) -> LIME:
        """The released code for images: coins, the cosine distance, all superpixels in a ridge regression.

        Its kernel is the square root of the paper's at width 1/4, which is the paper's at width sqrt(2)/4.
        """
        released = cls(
            id="lime-repo",
            draws=Draws.COINS,
            distance=Distance.COSINE,
            width=sqrt(2) / 4,
            regression=Regression.RIDGE,
        )
        return replace(released, **changes)

    def rows(self, shape: tuple[int, ...]) -> int:  # noqa: ARG002 (the same for every shape)
        return self.samples

    def __call__(self, x: Array, task: Task) -> Program[Attribution]:
        cut = superpixels(x, self.segments, task, "LIME")
        count = int(cut.max()) + 1
        given = self.baseline
        baseline = mean_colours(x, cut, task) if given is None else baseline_of(x, given, task, "LIME")

        kept = self.draw(task.rng, count)
        values = yield from coalition_values(x, baseline, kept, cut, self.objective, task)
        share = kept.mean(axis=1)
        away = np.sqrt(1 - share) if self.distance is Distance.L2 else 1 - np.sqrt(share)
        proximity = np.exp(-(away**2) / self.width**2)

        weights, intercept = self.regress(kept.astype(np.float64), values, proximity)
        residuals = values - intercept - kept @ weights
        spread_of_values = float(proximity @ (values - np.average(values, weights=proximity)) ** 2)
        return Attribution(
            spread(weights[cut], x, task.space),
            {
                "superpixels": count,
                "weights": weights.tolist(),
                "intercept": intercept,
                "r2": 1 - float(proximity @ residuals**2) / spread_of_values if spread_of_values > 0 else None,
            },
        )

    def draw(self, rng: np.random.Generator, count: int) -> Array:
        """What each sample keeps, bool (samples, count); the first keeps all."""
        if self.draws is Draws.COINS:
            kept = rng.random((self.samples, count)) < 0.5
        else:
            kept = subsets(rng, rng.integers(1, count + 1, self.samples), count)
        kept[0] = True
        return kept

    def regress(self, z: Array, y: Array, proximity: Array) -> tuple[Array, float]:
        """The weights (M,) and the intercept of the linear model of values y (n,) of samples z (n, M)."""
        with importing("scikit-learn", EXTRA):
            from sklearn.linear_model import Lasso, LinearRegression, Ridge, lars_path
        chosen = np.arange(z.shape[1])
        if self.regression is Regression.RIDGE:
            model = Ridge(alpha=self.alpha)
        elif self.regression is Regression.LASSO:
            model = Lasso(alpha=self.alpha)
        else:
            model = LinearRegression()
            root = np.sqrt(proximity)
            centred = root[:, None] * (z - np.average(z, axis=0, weights=proximity))
            path = lars_path(centred, root * (y - np.average(y, weights=proximity)), method="lasso")[2] != 0
            chosen = np.flatnonzero(path[:, np.flatnonzero(path.sum(axis=0) <= self.k)[-1]])
        weights = np.zeros(z.shape[1])
        if not len(chosen):  # F is the same everywhere
            return weights, float(np.average(y, weights=proximity))
        model.fit(z[:, chosen], y, sample_weight=proximity)
        weights[chosen] = model.coef_
        return weights, float(model.intercept_)
