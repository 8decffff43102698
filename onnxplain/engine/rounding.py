"""Whether a gradient in half precision is that of float32 but for rounding.

Differences of logits, which `verify` holds a float32 gradient against, are too coarse in half precision: a step that
rounding does not drown crosses kinks. So the gradient is held against that of the same model in float32, which can be
verified. Under R grains laid over an image the two differ by D_1, ..., D_R. Rounding sends numbers up and down, and
units over their kinks, which are others under each grain, so that its mean falls as 1/√R; an error of the gradient
stays. Hence

    gap = |mean D|,    noise = rms |D - mean D| / √R + u √(p/3),

in units of the gradient's norm. The last term is the rounding of weights, which is the same under every grain: each of
p products has weights that are off by u/√3, the rms of numbers spread evenly from -u to u. An error that is another one
under each grain counts as noise: it makes the test inconclusive, and cannot pass either.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from onnxplain.engine.drive import Model, run
from onnxplain.engine.requests import Gradients, Kind, Logits, Objective, Points, Request
from onnxplain.engine.verify import ACROSS, FACTOR, GRAIN, ROUNDING, percent

Array: TypeAlias = NDArray[Any]

GRAINS, FEWER = 16, 4  # over each image, for the objective `logit` and for each of the others
VALUE = 1e-5  # what float32 makes of an objective's value


@dataclass(frozen=True, kw_only=True)
class Deviation:
    """How far the gradient of one objective is from that of float32, in units of its norm.

    `typical` is the root mean square of a single difference, `gap` the norm of their mean, `noise` what rounding makes
    of the mean.
    """

    typical: float
    gap: float
    noise: float
    grains: int

    @property
    def noticeable(self) -> float:
        """The smallest error that could have been noticed."""
        return FACTOR * self.noise

    @property
    def passed(self) -> bool:
        return self.gap <= self.noticeable  # NaN is a failure too


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """What was seen at one image: of the objective `logit`, and of the others.

    `norm` is that of the float32 gradient, `logits` the largest difference from the logits of float32, `logits_bound`
    what rounding may do to them.
    """

    image: str
    target: str
    norm: float
    logit: Deviation
    objectives: Mapping[str, Deviation]
    logits: float
    logits_bound: float
    values: tuple[str, ...]  # the objectives whose value is not that of the logits

    @property
    def failures(self) -> list[str]:
        """What is wrong, each in a sentence."""
        wrong = [f"the value under the objective {name} is not that of the logits" for name in self.values]
        if not self.logits <= self.logits_bound:
            wrong.append(
                f"the logits differ from those of float32 by up to {self.logits:.3g}; "
                f"rounding explains {self.logits_bound:.3g}"
            )
        return wrong + [
            f"under the objective {name} the gradient is off by {percent(found.gap)} of that of float32, on the mean "
            f"of {found.grains} grains; rounding explains {percent(found.noticeable)}"
            for name, found in {"logit": self.logit, **self.objectives}.items()
            if not found.passed
        ]


@dataclass(frozen=True, kw_only=True)
class Rounding:
    """The verdict over several images.

    `typical` is how far the gradient of a single image is from that of float32, `noticeable` the smallest error that
    could have been noticed, of any form; both in units of the gradient's norm. `inconclusive`: rounding would have
    hidden a large error too.
    """

    verdict: Literal["passed", "failed", "inconclusive"]
    typical: float
    noticeable: float
    failures: tuple[str, ...]
    comparisons: tuple[Comparison, ...]


def hold_against(
    single: Model,
    half: Model,
    images: Mapping[str, Array],
    *,
    unit: float,
    products: int,
    span: float = 1.0,
    seed: int = 0,
) -> Rounding:
    """Hold the gradient of a model in half precision against that of the same model in float32.

    `unit` is what numbers of that precision are rounded by, at most, relative to themselves; `products` how many of the
    gradient model's nodes have rounded weights, at most; the rest as in `verify`.

    Raises:
        NonFinite: NaN or Inf came out of a model.
        BackendFailed: the runtime failed.
    """
    comparisons = []
    weights_rounded = unit * math.sqrt(products / 3)
    for at, (name, x) in enumerate(images.items()):
        rng = np.random.default_rng([seed, at])
        rows = (x + rng.uniform(-GRAIN, GRAIN, (GRAINS, *x.shape)) * span).astype(single.dtype)
        here: Array = run(asking(Logits(rows)), single)
        weights = at % 2 == 1
        target: int | Array = rng.normal(size=single.classes).astype(np.float32) if weights else int(here[0].argmax())
        objectives = [Objective(kind, target, single.head) for kind in Kind]
        theirs, ours = (run(answering(rows, objectives), model) for model in (single, half))
        found = {
            objective.kind.name.lower(): deviation(a.gradient, b.gradient, weights_rounded)
            for objective, a, b in zip(objectives, theirs, ours, strict=True)
        }
        logits: Array = run(asking(Logits(rows)), half)
        comparisons.append(
            Comparison(
                image=name,
                target="random weights" if weights else f"class {target}",
                norm=size(theirs[0].gradient),
                logit=found.pop("logit"),
                objectives=found,
                logits=float(max(np.abs(logits - here).max(), np.abs(ours[0].logits - here).max())),
                logits_bound=ROUNDING * unit * max(1.0, float(np.abs(here).max())),
                values=tuple(
                    objective.kind.name.lower()
                    for objective, answer in zip(objectives, ours, strict=True)
                    if not own_values(objective, answer)
                ),
            )
        )
    return judged(comparisons)


def asking(request: Logits) -> Generator[Request, Any, Array]:
    answer: Array = yield request
    return answer


def answering(rows: Array, objectives: Sequence[Objective]) -> Generator[Request, Any, list[Gradients]]:
    """The gradients of each objective at all rows, or at the first few."""
    answers: list[Gradients] = []
    for objective in objectives:
        count = GRAINS if objective.kind is Kind.LOGIT else FEWER
        answers.append((yield Points(rows[:count], objective)))
    return answers


def deviation(single: Array, half: Array, weights_rounded: float) -> Deviation:
    """How far gradients (R, ...) are from those of float32."""
    count = len(single)
    theirs, ours = (rows.reshape(count, -1).astype(np.float64) for rows in (single, half))
    differences = (ours - theirs) / (size(theirs) or 1.0)
    mean = differences.mean(0)
    scatter = math.sqrt(float(((differences - mean) ** 2).sum()) / (count - 1))
    return Deviation(
        typical=size(differences),
        gap=float(np.linalg.norm(mean)),
        noise=scatter / math.sqrt(count) + weights_rounded,
        grains=count,
    )


def size(gradients: Array) -> float:
    """The root mean square of the norms of gradients (R, ...)."""
    return math.sqrt(float((gradients.astype(np.float64) ** 2).sum()) / len(gradients))


def own_values(objective: Objective, answer: Gradients) -> bool:
    """Whether the values are those of the logits that came with them."""
    logits = answer.logits.astype(np.float64)
    true = objective.value(logits)
    scale = float(np.abs(objective.row(logits.shape[1])).sum() * (1 + np.abs(logits).max()))
    return bool((np.abs(answer.value - true) <= VALUE * (scale + np.abs(true))).all())


def judged(comparisons: Sequence[Comparison]) -> Rounding:
    """The verdict over all images."""
    noticeable = min((one.logit.noticeable for one in comparisons if one.norm), default=math.inf)
    failures = tuple(f"{one.image}: {failure}" for one in comparisons for failure in one.failures)
    return Rounding(
        verdict="failed" if failures else "passed" if noticeable <= ACROSS else "inconclusive",
        typical=max((one.logit.typical for one in comparisons), default=math.inf),
        noticeable=noticeable,
        failures=failures,
        comparisons=tuple(comparisons),
    )
