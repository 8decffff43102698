"""Walks to other classes: AGI and BIG."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import naive
import numpy as np
import pytest
import toys
from conformance.methods.laws import PICTURES, VECTORS, Make, Row, Wrong, answers, row

from onnxplain.engine.drive import run
from onnxplain.engine.methods import AGI, BIG, Attack, Rule, Task
from onnxplain.engine.methods.walk import sign_step
from onnxplain.engine.requests import Attribution, Kind, Logits, Objective, Points, Program, Request

NETS = [(toys.TOY_T, x) for x in VECTORS] + [(toys.picture_net(), x) for x in PICTURES[:2]]


def predicted(toy: toys.Toy, x: toys.Array) -> int:
    return int(toy.logits(x).argmax())


# AGI ----------------------------------------------------------------------------------------------------------------


def walks_and_integrates(make: Make, *, restart: bool = False) -> None:
    """Number by number, step by step, the loops of `naive.adversarial_gradients`."""
    for toy, x in NETS:
        for target in range(toy.classes):
            expected, taken, _ = naive.adversarial_gradients(toy, x, target, restart=restart)
            answer = toys.explain(make(k=20, m=20), toy, x, target)
            assert answer.values == pytest.approx(expected, abs=1e-12)
            assert answer.diagnostics["iterations"] == taken


def walks_from_the_image(make: Make) -> None:
    """The same where each step starts from the image again."""
    walks_and_integrates(make, restart=True)


def adds_up_to_the_fall(make: Make) -> None:
    """sum A = the fall of p_c along all walks, to first order in the step; it falls where another class is reached."""
    for toy, x in NETS:
        target = predicted(toy, x)
        answer = toys.explain(make(m=4000, epsilon=2e-4, k=20), toy, x, target)
        _, _, ends = naive.adversarial_gradients(toy, x, target, steps=4000, step=2e-4)
        p = [toys.softmax(toy.logits(point))[target] for point in [x, *ends]]
        fall = sum(p[0] - end for end in p[1:])
        assert answer.values.sum() == pytest.approx(fall, rel=5e-3)
        assert fall > 0


def nothing_where_it_is_already(make: Make) -> None:
    """The class that the model predicts is reached before the first step."""
    two = toys.affine(toys.W[:2])
    for x in VECTORS:
        other = predicted(two, x)
        answer = toys.explain(make(), two, x, 1 - other)
        assert not answer.values.any()
        assert (answer.diagnostics["classes"], answer.diagnostics["iterations"]) == ([other], [0])
        assert answer.diagnostics["arrived"] == [True]


# BIG ----------------------------------------------------------------------------------------------------------------


def boundary_of(
    method: Any, toy: toys.Toy, x: toys.Array, target: int, seed: int = 0
) -> tuple[toys.Array, Attribution]:
    """x', which the method tells nobody but asks for last, and the attribution."""
    asked: list[Request] = []

    def listen() -> Program[Attribution]:
        program, answer = method(x, toys.task(toy, target, seed=seed)), None
        while True:
            try:
                asked.append(program.send(answer))
            except StopIteration as end:
                return end.value  # type: ignore[no-any-return]
            answer = yield asked[-1]

    attribution = run(listen(), toys.model_of(toy, x.dtype))
    (last,) = [request for request in asked[-1:] if isinstance(request, Logits)]
    return last.x[1], attribution


def ends_at_another_class(make: Make) -> None:
    """Where success is told, x' is of another class, the one that is told; where it is not, x' is of the same."""
    told = set()
    for toy, x in NETS:
        target = predicted(toy, x)
        for more in ({"eta": 0.01}, {"eta": 1e-6, "radii": (1e-6,)}):
            end, answer = boundary_of(make(**more), toy, x, target)
            assert answer.diagnostics["label"] == predicted(toy, end)
            assert answer.diagnostics["success"] == (predicted(toy, end) != target)
            assert answer.diagnostics["distance"] == pytest.approx(np.linalg.norm(x - end), rel=1e-6)
            told.add(answer.diagnostics["success"])
    assert told == {True, False}


def complete_to_its_boundary(make: Make) -> None:
    """sum A = F(x) - F(x'), by a rule that is exact on quadratics (with three points or more)."""
    for seed, x in enumerate(VECTORS):
        toy = toys.quadratic(seed)
        target = predicted(toy, x)
        method = make(eta=0.01, objective=Kind.LOGIT, rule=Rule.TRAPEZOID)
        end, answer = boundary_of(method, toy, x, target, seed)
        assert answer.diagnostics["distance"] == pytest.approx(np.linalg.norm(x - end))
        assert answer.values.sum() == pytest.approx((toy.logits(x) - toy.logits(end))[target], abs=1e-11)
        assert answer.diagnostics["completeness_gap"] < 1e-9


def integrates_from(
    make: Make,
    attack: Callable[[toys.Toy, toys.Array, int, int], toys.Array],
    code: int,
    rule: tuple[toys.Array, toys.Array],
) -> None:
    for seed, (toy, x) in enumerate(NETS):
        target = predicted(toy, x)
        end = attack(toy, x, target, seed)
        expected = naive.integrated(toy, x, end, target, code, *rule)
        assert toys.explain(make(), toy, x, target, seed=seed).values == pytest.approx(expected, abs=1e-6)


def finds_the_earliest(make: Make) -> None:
    """The default, number by number: `naive.sign_attack` and the midpoint rule."""
    for step in (0.001, 0.01):

        def attack(toy: toys.Toy, x: toys.Array, target: int, seed: int, step: float = step) -> toys.Array:
            return naive.sign_attack(toy, x, target, steps=50, step=step, earliest=True)

        integrates_from(partial(make, eta=step, steps=50, attack_steps=50), attack, naive.LOGIT, naive.midpoint(50))


def is_the_attack_of_foolbox(make: Make) -> None:
    """`naive.l2_attack`, which draws the same starts, and Captum's rule with ten points."""

    def attack(toy: toys.Toy, x: toys.Array, target: int, seed: int) -> toys.Array:
        radii = (36 / 255, 64 / 255, 0.3, 0.5, 0.7, 0.9, 1.1)
        return naive.l2_attack(toy, x, target, np.random.default_rng(seed), radii=radii, steps=40)

    integrates_from(make, attack, naive.LOGIT, naive.captum_trapezoid(10))


def takes_all_its_steps(make: Make) -> None:
    """The comparison in the code of ISA: all fifty steps, up the loss of a double softmax."""

    def attack(toy: toys.Toy, x: toys.Array, target: int, seed: int) -> toys.Array:
        return naive.sign_attack(toy, x, target, steps=50, step=0.001, earliest=False, code=naive.CE_ON_PROBS)

    integrates_from(make, attack, naive.PROB, naive.captum_trapezoid(50))


ROWS: dict[str, Row] = {
    "agi": row(AGI, walks_and_integrates, adds_up_to_the_fall, nothing_where_it_is_already),
    "agi-repo": row(AGI.repo, walks_from_the_image, nothing_where_it_is_already),
    "big": row(BIG, finds_the_earliest, ends_at_another_class, complete_to_its_boundary),
    "big-reference": row(BIG.reference, is_the_attack_of_foolbox, ends_at_another_class, complete_to_its_boundary),
    "big-isa": row(BIG.isa, takes_all_its_steps, ends_at_another_class, complete_to_its_boundary),
}


class NeverArrives(AGI):
    """Goes on after the class is reached: all m steps are taken."""

    def __call__(self, x: toys.Array, task: Task) -> Program[Attribution]:
        answer = yield from super().__call__(x, task)
        points = yield Points(np.repeat(x[None], self.m, axis=0), task.objective(self.objective))
        return replace(answer, values=answer.values - points.gradient.sum(axis=0) * self.epsilon)


class Boasts(BIG):
    """Says that it has succeeded, whatever has come of it."""

    def __call__(self, x: toys.Array, task: Task) -> Program[Attribution]:
        answer = yield from super().__call__(x, task)
        return replace(answer, diagnostics=answer.diagnostics | {"success": True})


class BlackInstead(BIG):
    """Integrates from black to the image, once it has its boundary."""

    def integral(self, start: toys.Array | None = None) -> Any:
        return super().integral()


class Descends(BIG):
    """Makes the class surer."""

    def walk(self, x: toys.Array, explained: int, task: Task) -> Any:
        point = x.copy()
        for _ in range(self.attack_steps):
            at = yield Points(point[None], Objective(Kind.LOGPROB, task.target))
            sign_step(point, at.gradient[0], self.eta * task.space.span)
        return (yield from super().walk(point, explained, task))


WRONG: Wrong = [
    ("AGI that restarts", AGI.repo, walks_and_integrates),
    ("AGI that does not restart", AGI, walks_from_the_image),
    ("AGI of a double softmax", partial(AGI, objective=Kind.PROB_ON_PROBS), walks_and_integrates),
    ("AGI of fewer classes", lambda **more: AGI(**more | {"k": 1}), walks_and_integrates),
    ("AGI turned over", answers(AGI, lambda a, x: -a), adds_up_to_the_fall),
    ("AGI divided by its classes", answers(AGI, lambda a, x: a / 2), adds_up_to_the_fall),
    ("AGI that never arrives", NeverArrives, nothing_where_it_is_already),
    ("BIG that takes all its steps", partial(BIG, earliest=False), finds_the_earliest),
    ("BIG that descends", Descends, finds_the_earliest),
    ("BIG that halves the way", partial(BIG, bisection=5), finds_the_earliest),
    ("BIG that boasts", Boasts, ends_at_another_class),
    ("BIG from black", BlackInstead, complete_to_its_boundary),
    ("BIG of the reference, steps of other length", partial(BIG.reference, attack_steps=39), is_the_attack_of_foolbox),
    ("BIG of the reference, earliest", partial(BIG.reference, earliest=True), is_the_attack_of_foolbox),
    ("BIG of the reference, by signs", partial(BIG.reference, attack=Attack.SIGN), is_the_attack_of_foolbox),
    ("BIG of the reference, midpoints", partial(BIG.reference, rule=Rule.MIDPOINT), is_the_attack_of_foolbox),
    ("BIG of ISA, one softmax", partial(BIG.isa, attack_objective=Kind.CE), takes_all_its_steps),
    ("BIG of ISA, logits", partial(BIG.isa, objective=Kind.LOGIT), takes_all_its_steps),
    ("BIG of ISA, earliest", partial(BIG.isa, earliest=True), takes_all_its_steps),
]
