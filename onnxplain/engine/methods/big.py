"""BIG: boundary-based integrated gradients."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any, NamedTuple

import numpy as np

from onnxplain.engine.methods.baselines import Baseline
from onnxplain.engine.methods.integrated_gradients import IntegratedGradients
from onnxplain.engine.methods.method import (
    MOST_ETA,
    MOST_WALK,
    Array,
    Task,
    require,
    require_one_of,
    require_positive,
    require_whole,
)
from onnxplain.engine.methods.quadrature import Rule
from onnxplain.engine.methods.walk import explained_class, require_classes
from onnxplain.engine.requests import Attribution, Kind, Logits, Points, Program, Request, Stop, Walk

MOST_BISECTION = 100
MOST_RADIUS = 1e6
TINY = 1e-12  # the least norm of a gradient that is divided by


class Attack(Enum):
    """How a point of another class is looked for."""

    SIGN = "sign"  # one walk from x, steps of eta * sign(grad L)
    L2_PGD = "l2_pgd"  # in model space, for each radius: steps along grad L from a random start, kept inside the ball


class Boundary(NamedTuple):
    """Where an attack has come: a point, the class that the model predicts there, and after how many steps."""

    point: Array
    label: int
    iteration: int


@dataclass(frozen=True, kw_only=True)
class BIG:
    """A = IG(x; x'): integrated gradients from a point x' nearby, at which the model predicts another class.

    x' is found by the attack `sign`: from x, `attack_steps` steps of +eta * sign(grad L), each clipped to the valid
    range; `earliest`: it ends at the first point of another class, which is the closest one on the walk, else at the
    last point. `bisection` points between x and x', halving the interval each time, then bring x' closer. L is
    `attack_objective` of the class, `eta` is in pixel units (1 = black to white). If x itself is of another class than
    the one explained, x' = x and A = 0.

    `l2_pgd` works in model space: for one radius e of `radii` after the other, from a point drawn at random in the ball
    of radius e around x, `attack_steps` steps of length 2 e^2 / attack_steps along the gradient, each followed by the
    projection onto the ball and the valid range. The first radius that ends (or, with `earliest`, comes) at another
    class wins.

    An attack that succeeds nowhere is told by the diagnostic `success` = false; x' is then the last point that it came
    to. The integral is that of `IntegratedGradients(steps=..., rule=..., objective=...)`, and complete with respect to
    x': A has the units of F, the `objective`, and sums to F(x) - F(x') up to the error of the `rule`.

    Cost: for each attack `attack_steps` gradient rows at most and a forward row; then `bisection` forward rows, `steps`
    gradient rows and 2 forward rows.

    Diagnostics: those of integrated gradients; `success`, `attacks` (how many were made), `iteration` (steps to x'),
    `label` (the class at x') and `distance` (|x - x'|, Euclidean, in model space).

    Source: Wang, Fredrikson and Datta, Robust Models Are More Interpretable Because Attributions Look Normal,
    ICML 2022.
    """

    id: str = "big"
    steps: int = 50
    rule: Rule = Rule.MIDPOINT
    objective: Kind = Kind.LOGIT
    attack: Attack = Attack.SIGN
    attack_steps: int = 50
    attack_objective: Kind = Kind.CE
    eta: float = 0.001
    radii: tuple[float, ...] = (36 / 255, 64 / 255, 0.3, 0.5, 0.7, 0.9, 1.1)
    earliest: bool = True
    bisection: int = 0

    def __post_init__(self) -> None:
        self.integral()
        require_one_of("BIG: attack", self.attack, Attack)
        require_whole("BIG: attack_steps", self.attack_steps, 1, MOST_WALK)
        require_one_of("BIG: attack_objective", self.attack_objective, (Kind.CE, Kind.CE_ON_PROBS))
        require_positive("BIG: eta", self.eta, MOST_ETA)
        known = len(self.radii) > 0 and all(0 < radius <= MOST_RADIUS for radius in self.radii)
        require(known, "BIG: radii", f"positive numbers, at most {MOST_RADIUS:g}", self.radii)
        require_whole("BIG: bisection", self.bisection, 0, MOST_BISECTION)

    @classmethod
    def reference(cls, **changes: Any) -> BIG:
        """The authors' code: L2-PGD as Foolbox does it, and ten points by Captum's trapezoid rule."""
        released = cls(
            id="big-reference",
            steps=10,
            rule=Rule.CAPTUM_TRAPEZOID,
            attack=Attack.L2_PGD,
            attack_steps=40,
            earliest=False,
        )
        return replace(released, **changes)

    @classmethod
    def isa(cls, **changes: Any) -> BIG:
        """BIG as the comparison in the released code of ISA has it: all steps are taken, a softmax twice in L."""
        released = cls(
            id="big-isa",
            rule=Rule.CAPTUM_TRAPEZOID,
            objective=Kind.PROB,
            attack_objective=Kind.CE_ON_PROBS,
            earliest=False,
        )
        return replace(released, **changes)

    def integral(self, start: Array | Baseline = Baseline.BLACK) -> IntegratedGradients:
        """Integrated gradients from `start`."""
        return IntegratedGradients(steps=self.steps, rule=self.rule, objective=self.objective, baseline=start)

    def rows(self, shape: tuple[int, ...]) -> int:
        attacks = 1 if self.attack is Attack.SIGN else len(self.radii)
        return attacks * (self.attack_steps + 1) + self.bisection + self.integral().rows(shape)

    def __call__(self, x: Array, task: Task) -> Program[Attribution]:
        explained = explained_class(task, "BIG")
        attacks, found = yield from self.search(x, explained, task)
        success = found.label != explained
        if success and self.bisection:
            found = yield from self.bisect(x, found, explained)
        answer = yield from self.integral(found.point)(x, task)
        said = {
            "success": success,
            "attacks": attacks,
            "iteration": found.iteration,
            "label": found.label,
            "distance": length((x - found.point) / task.space.scale),
        }
        return Attribution(answer.values, answer.diagnostics | said)

    def search(self, x: Array, explained: int, task: Task) -> Generator[Request, Any, tuple[int, Boundary]]:
        """How many attacks it took, and where the last one has come."""
        if self.attack is Attack.SIGN:
            return 1, (yield from self.walk(x, explained, task))
        for attack, radius in enumerate(self.radii):
            start = x + drawn_in_ball(x.shape, radius, task.rng).astype(x.dtype) * task.space.scale.astype(x.dtype)
            found = yield from self.descend(start, x, radius, explained, task)
            if found.label != explained:
                return attack + 1, found
        return len(self.radii), found

    def walk(self, x: Array, explained: int, task: Task) -> Generator[Request, Any, Boundary]:
        """The attack by signs of gradients."""
        task.space.require_range("BIG")
        low, high, span = (fact.astype(x.dtype) for fact in (task.space.low, task.space.high, task.space.span))
        walked = yield Walk(
            start=np.clip(x, low, high),
            step=(self.eta * span)[None],
            steps=np.array([self.attack_steps]),
            objective=task.objective(self.attack_objective),
            classes=np.array([explained]),
            low=low,
            high=high,
            stop=Stop.LEFT if self.earliest else Stop.NEVER,
        )
        require_classes(walked.first, "BIG")
        (point,), (iteration,) = walked.point, walked.iterations.tolist()
        logits = walked.last if walked.stopped[0] else (yield Logits(point[None]))
        return Boundary(point, int(logits[0].argmax()), iteration)

    def descend(
        self, point: Array, x: Array, radius: float, explained: int, task: Task
    ) -> Generator[Request, Any, Boundary]:
        """One attack by gradients in model space, from `point` on, inside the ball of `radius` around `x`."""
        objective = task.objective(self.attack_objective)
        low, high, scale = (fact.astype(x.dtype) for fact in (task.space.low, task.space.high, task.space.scale))
        point = np.clip(point, low, high)
        for i in range(self.attack_steps):
            at = yield Points(point[None], objective)
            require_classes(at.logits, "BIG")
            label = int(at.logits[0].argmax())
            if self.earliest and label != explained:
                return Boundary(point, label, i)
            point = self.pgd_step(point, at.gradient[0], x, radius, scale)
            np.clip(point, low, high, out=point)
        logits = yield Logits(point[None])
        return Boundary(point, int(logits[0].argmax()), self.attack_steps)

    def pgd_step(self, point: Array, gradient: Array, x: Array, radius: float, scale: Array) -> Array:
        """In model space: a step along the direction of the gradient, then back into the ball."""
        slope = gradient * scale
        offset = (point - x) / scale
        offset += (2 * radius**2 / self.attack_steps / max(length(slope), TINY)) * slope
        offset *= min(1.0, radius / max(length(offset), TINY))
        return np.asarray(x + offset * scale)

    def bisect(self, x: Array, found: Boundary, explained: int) -> Generator[Request, Any, Boundary]:
        """A point of another class nearer to `x`, on the straight way to the one that was found."""
        near, far, label = 0.0, 1.0, found.label
        for _ in range(self.bisection):
            middle = (near + far) / 2
            logits = yield Logits((x + middle * (found.point - x))[None])
            predicted = int(logits[0].argmax())
            if predicted == explained:
                near = middle
            else:
                far, label = middle, predicted
        return found._replace(point=x + far * (found.point - x), label=label)


def length(v: Array) -> float:
    """The Euclidean norm of an array of any shape."""
    return float(np.sqrt(np.square(v, dtype=np.float64).sum()))


def drawn_in_ball(shape: tuple[int, ...], radius: float, rng: np.random.Generator) -> Array:
    """A point drawn evenly from the ball of this radius around 0, float32."""
    direction = rng.standard_normal(shape, np.float32)
    # the volume within r grows as r^n
    share = rng.random() ** (1 / direction.size)
    return np.asarray(direction * (radius * share / max(length(direction), TINY)))
