"""Whether a gradient is the derivative of the logits: a test that needs the model and a runtime, and nothing else.

The pull-back must be the adjoint of the derivative: for an image x, an objective F with gradient g and any direction d

    ⟨g, d⟩  =  (F(x + h d) - F(x - h d)) / 2h,   h → 0.

The left side comes from the gradient model, the right side from forward calls. Rounding disturbs the right side by
~1/h, curvature and the kinks of Relu and max pooling by ~h. How much is measured on the spot: the step grows fourfold
from one that rounding drowns, until the answers of two neighbouring steps disagree more than those before. Kinks begin
to matter there. So the test is made at the pair before the best, where what is left of the noise is rounding, which is
much alike in all directions: what the two steps disagree by, over all directions of a family, is the noise. It is a
matter of forward calls, so that no wrong gradient can hide behind it.

Two families of directions, since neither sees everything. *Along* the gradient (all of it, single channels, single
quadrants) each pixel adds to the signal, so that a factor of 1.01 shows; but what is missing from g is missing from d.
*Across*, in random signs for all pixels, any error e shows by |e| on the average, whatever its form, though with
more noise. Both are given in units of |g|.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from onnxplain.engine.drive import Model, run
from onnxplain.engine.requests import Gradients, Head, Kind, Logits, Objective, Points, Program
from onnxplain.errors import Gap

Array: TypeAlias = NDArray[Any]

FACTOR = 4  # a gap above this many times the noise is an error
ALONG, ACROSS = 0.1, 0.3  # a test that would not have noticed errors of this size along and across says nothing
DIRECTIONS = 8  # random ones
GROWTH = 4  # of the step, from rung to rung
SHORTEST = 2.0**-40  # step, in units of the range of the input; longer for types that cannot resolve it
LONGEST = 2.0**-4  # likewise
GRAIN = 2.0**-6  # of the noise that is laid over an image: equal neighbours would be a kink of max pooling, likewise
LOOKS = 5  # at an image, each with new grain: that it lies on a kink is no coincidence five times
ROUNDING = 64  # units in the last place that a gradient may be off by, whatever the noise of the differences
COTANGENT = 8  # likewise the cotangent of an objective, compared with that of the logits


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What one family of directions showed, in units of the gradient's norm.

    `gap` is the largest deviation of any direction, `noise` what the forward values can be trusted to, `step` where.
    """

    gap: float
    noise: float
    step: float
    directions: int

    @property
    def noticeable(self) -> float:
        """The smallest error that could have been noticed."""
        return FACTOR * self.noise

    @property
    def passed(self) -> bool:
        return self.gap <= self.noticeable  # NaN is a failure too


@dataclass(frozen=True, kw_only=True)
class Look:
    """What was seen at one image.

    `along` and `across` are about the objective `logit`, `objectives` about the others, along the same directions.
    `logits` is the largest difference between the two models' logits, `logits_noise` what rounding alone does to them.
    `norm` is that of the gradient; a look is `flat` where it is zero, and rightly so.
    """

    image: str
    target: str
    norm: float
    along: Finding
    across: Finding
    objectives: Mapping[str, Finding]
    logits: float
    logits_noise: float
    values: tuple[str, ...]  # the objectives whose value is not that of the logits

    @property
    def flat(self) -> bool:
        return self.norm == 0 and self.passed

    @property
    def passed(self) -> bool:
        return not self.wrong_slopes and not self.wrong_answers

    @property
    def wrong_slopes(self) -> list[str]:
        """Where the gradient is not the derivative, each in a sentence."""
        findings = {"along the gradient": self.along, "in random directions": self.across}
        findings |= {f"under the objective {name}": finding for name, finding in self.objectives.items()}
        return [
            f"{where} the model changes otherwise than its gradient says, by {percent(finding.gap)} of the gradient; "
            f"noise explains {percent(finding.noticeable)}"
            for where, finding in findings.items()
            if not finding.passed
        ]

    @property
    def wrong_answers(self) -> list[str]:
        """Where the forward half of the gradient model is not the forward model, each in a sentence."""
        wrong = [f"the value under the objective {name} is not that of the logits" for name in self.values]
        if not self.logits <= FACTOR * self.logits_noise:
            wrong.append(
                f"the logits differ from those of the forward model by up to {self.logits:.3g}; "
                f"noise explains {FACTOR * self.logits_noise:.3g}"
            )
        return wrong


@dataclass(frozen=True, kw_only=True)
class Verification:
    """The verdict over several images, and all that it rests on.

    `along` and `across` are the smallest errors that could have been noticed, in units of the gradient's norm: of its
    size, and of any form. `inconclusive` means that nothing contradicts the gradient, but that noise would have hidden
    a large error too; `partial` that the gradient was told to stop at operators, `stopped`, so that it is not the
    model's and cannot pass.
    """

    verdict: Literal["passed", "failed", "inconclusive", "partial"]
    along: float
    across: float
    failures: tuple[str, ...]
    looks: tuple[Look, ...]
    stopped: tuple[Gap, ...] = ()

    @property
    def passed(self) -> bool:
        return self.verdict == "passed"


def verify(
    model: Model, images: Mapping[str, Array], *, span: float = 1.0, seed: int = 0, stopped: Sequence[Gap] = ()
) -> Verification:
    """Hold the gradient of `model` against its own logits at `images`, by name, each as the model takes one.

    `span` is the length of the input's range, `stopped` where the gradient was told to stop. Images are looked at under
    the predicted class and under random weights of all classes, in turns, with a fine grain laid over them. Where the
    gradient seems wrong, the image is looked at again with another grain: next to a kink the noise is not what it is
    elsewhere, but an image does not lie next to one every time.

    Raises:
        NonFinite: NaN or Inf came out of the model.
        BackendFailed: the runtime failed.
    """
    looks = []
    for at, (name, x) in enumerate(images.items()):
        for attempt in range(1 if stopped else LOOKS):
            rng = np.random.default_rng([seed, at, attempt])
            grain = rng.uniform(-GRAIN, GRAIN, x.shape) * span
            look = run(
                looking(
                    (x + grain).astype(model.dtype), model.head, name=name, rng=rng, span=span, weights=at % 2 == 1
                ),
                model,
            )
            if look.passed:
                break
        looks.append(look)
        if not look.passed:
            break
    return judged(looks, stopped)


def random_images(shape: Sequence[int], low: float, high: float, seed: int = 0) -> dict[str, Array]:
    """Two images of random numbers from `low` to `high`: patches, and noise all over."""
    rng = np.random.default_rng(seed)
    coarse = rng.uniform(low, high, [min(size, 4) for size in shape])
    for axis, size in enumerate(shape):
        coarse = coarse.take(np.arange(size) * min(size, 4) // size, axis=axis)
    return {"random patches": coarse, "random noise": rng.uniform(low, high, tuple(shape))}


def judged(looks: Sequence[Look], stopped: Sequence[Gap] = ()) -> Verification:
    """The verdict over all looks."""
    alive = [look for look in looks if not look.flat]
    along = min((look.along.noticeable for look in alive), default=math.inf)
    across = min((look.across.noticeable for look in alive), default=math.inf)
    answers = [f"{look.image}: {failure}" for look in looks for failure in look.wrong_answers]
    slopes = [f"{look.image}: {failure}" for look in looks for failure in look.wrong_slopes]
    verdict: Literal["passed", "failed", "inconclusive", "partial"] = "passed"
    if answers or (slopes and not stopped):
        verdict = "failed"
    elif stopped:
        verdict = "partial"
    elif not (along <= ALONG and across <= ACROSS):
        verdict = "inconclusive"
    return Verification(
        verdict=verdict,
        along=along,
        across=across,
        failures=(*answers, *slopes),
        looks=tuple(looks),
        stopped=tuple(stopped),
    )


def looking(x: Array, head: Head, *, name: str, rng: np.random.Generator, span: float, weights: bool) -> Program[Look]:
    """One look at one image, as a program."""
    here = (yield Logits(x[None]))[0].astype(np.float64)
    target: int | Array = rng.normal(size=here.shape).astype(np.float32) if weights else int(here.argmax())
    objectives = [Objective(kind, target, head) for kind in Kind]
    answers: list[Gradients] = []
    for objective in objectives:
        answers.append((yield Points(x[None], objective)))  # noqa: PERF401 (no comprehension can yield)
    gradients = [answer.gradient[0].astype(np.float64) for answer in answers]
    g, root = gradients[0], math.sqrt(x.size)
    signs = [rng.choice([-1.0, 1.0], x.shape) for _ in range(DIRECTIONS)]
    along = [part * (root / np.linalg.norm(part)) for part in parts(g)]
    units = [float(np.linalg.norm(gradient)) for gradient in gradients]
    (across,), rounding = yield from hold(x, gradients[:1], here, objectives[:1], signs, units[:1], span, 16)
    findings = [across] * len(Kind)
    if along:
        findings, _ = yield from hold(x, gradients, here, objectives, along, [root * unit for unit in units], span, 2)
    scale = 1e-5 * float(np.abs(objectives[0].row(len(here))).sum() * (1 + np.abs(here).max()))
    return Look(
        image=name,
        target="random weights" if weights else f"class {target}",
        norm=units[0],
        along=findings[0],
        across=across,
        objectives={o.kind.name.lower(): found for o, found in zip(objectives[1:], findings[1:], strict=True)},
        logits=float(np.abs(answers[0].logits[0] - here).max()),
        logits_noise=rounding,
        values=tuple(
            objective.kind.name.lower()
            for objective, answer in zip(objectives, answers, strict=True)
            if not abs(answer.value[0] - (true := float(objective.value(here)))) <= scale + 1e-5 * abs(true)
        ),
    )


def parts(g: Array) -> Iterator[Array]:
    """The gradient, and what of it lies in each channel and in each quadrant; nothing that is zero throughout.

    A channel is a place along an axis of at most four, a quadrant one of the halves of all longer axes.
    """
    masks: list[tuple[slice, ...]] = [(slice(None),) * g.ndim]
    for axis, size in enumerate(g.shape):
        if 1 < size <= 4:
            masks += [(*(slice(None),) * axis, slice(i, i + 1)) for i in range(size)]
    halves = [(slice(0, n // 2), slice(n // 2, n)) if n > 4 else (slice(None),) for n in g.shape]
    quadrants = list(itertools.product(*halves))
    for mask in (*masks, *(quadrants if len(quadrants) > 1 else ())):
        part = np.zeros_like(g)
        part[mask] = g[mask]
        if part.any():
            yield part


def hold(
    x: Array,
    gradients: Sequence[Array],
    here: Array,
    objectives: Sequence[Objective],
    directions: Sequence[Array],
    units: Sequence[float],
    span: float,
    shortest: float,
) -> Generator[Logits, Any, tuple[list[Finding], float]]:
    """Hold each objective's gradient against differences along `directions` (rms 1); also what rounding does to logits.

    Findings are in terms of the `units`, the slopes that count as 1, or of the slope that is found, if that is greater.
    """
    d = np.stack(directions)
    eps = float(np.finfo(x.dtype).eps)
    first = step = span * max(shortest * eps, SHORTEST)
    rounding = 4 * eps * float(np.abs(here).max())
    resolution = 4 * rounding
    floors = [eps * (ROUNDING * unit + COTANGENT * units[0]) for unit in units]
    ladders = [Ladder(unit, floor) for unit, floor in zip(units, floors, strict=True)]
    while step <= LONGEST * span and not all(ladder.done for ladder in ladders):
        up, down = (x + step * d).astype(x.dtype), (x - step * d).astype(x.dtype)
        logits = (yield Logits(np.concatenate([up, down]))).astype(np.float64)
        moves = (up.astype(np.float64) - down).reshape(len(d), -1)
        if step == first:
            rounding = max(rounding, float(np.abs(logits[: len(d)] + logits[len(d) :] - 2 * here).max()))
        for ladder, objective, g in zip(ladders, objectives, gradients, strict=True):
            after, before = objective.value(logits).reshape(2, -1)
            ladder.climb(step, after - before, moves @ g.ravel(), resolution)
        step *= GROWTH
    return [ladder.finding(len(d)) for ladder in ladders], rounding


class Rung(NamedTuple):
    """A step, how far each direction is off, and the slope that was found."""

    step: float
    gap: Array
    slope: float


class Ladder:
    """One objective at longer and longer steps: up to where the differences of neighbouring steps begin to grow."""

    def __init__(self, unit: float, floor: float) -> None:
        self.unit, self.floor = unit, floor
        self.rungs: list[Rung] = []
        self.unseen = 0.0  # the slope that the gradient claims of a model that stands still

    def climb(self, step: float, change: Array, expected: Array, resolution: float) -> None:
        """The next rung: what the objective does over twice the step, and what the gradient says that it does."""
        if self.done:
            return
        if not self.rungs and np.count_nonzero(change) * 2 <= len(change):  # still on one stair of the rounding
            claimed = float(np.abs(expected).max())
            self.unseen = claimed / (2 * step) if claimed > resolution else 0.0
            return
        slope = float(np.sqrt((change**2).mean())) / (2 * step)
        self.rungs.append(Rung(step, (change - expected) / (2 * step), slope))

    @property
    def noise(self) -> list[float]:
        """What each rung and the next disagree by."""
        return [float(np.sqrt(((a.gap - b.gap) ** 2).mean())) for a, b in itertools.pairwise(self.rungs)]

    @property
    def done(self) -> bool:
        noise = self.noise
        return len(noise) > 1 and noise[-1] >= noise[-2]

    def finding(self, directions: int) -> Finding:
        """What the rung below the best pair says: there rounding is most of the noise, which all directions share."""
        noise = self.noise
        if not noise:
            gap, step = (self.unseen, 0.0) if not self.rungs else (0.0, self.rungs[0].step)
            return Finding(gap=gap / (self.unit or 1), noise=0.0 if gap else math.inf, step=step, directions=directions)
        at = max(len(noise) - (3 if self.done else 2), 0)
        low, high = self.rungs[at : at + 2]
        size = max(self.unit, low.slope, high.slope) or 1.0
        return Finding(
            gap=float(np.abs(low.gap).max()) / size,
            noise=(noise[at] + self.floor) / size,
            step=low.step,
            directions=directions,
        )


def percent(fraction: float) -> str:
    """A fraction as text."""
    return f"{100 * fraction:.2g} %"
