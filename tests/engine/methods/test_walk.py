"""Walks on the host: against the loop that the definition is, one walk after the other."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import toys
import walks

from onnxplain.engine.drive import GRADIENT, LOGITS, Usage, drive, run
from onnxplain.engine.methods.walk import on_host
from onnxplain.engine.requests import Kind, Logits, Objective, Points, Program, Stop, Walk, Walked
from onnxplain.errors import FeedMismatch, UsageError


def naive(walk: Walk, toy: toys.Toy, i: int) -> tuple[Any, ...]:
    """Walk i by itself: point, path sum, first and last logits, steps, whether it was stopped."""

    def look(objective: Objective, target: Any, x: Any) -> tuple[Any, Any]:
        z = toy.logits(x)
        row = target.astype(np.float64) if isinstance(target, np.ndarray) else np.eye(toy.classes)[target]
        return z, toy.pull_back(x, toys.objective(objective.kind, z, row)[1])

    x, total, met, taken = walk.start.copy(), np.zeros_like(walk.start), [], 0
    mine = walk.objective.target if walk.classes is None else int(walk.classes[i])
    while taken < walk.steps[i]:
        z, g = look(walk.objective, mine, x)
        met.append(z)
        if (walk.stop is Stop.ARRIVED and z.argmax() == mine) or (walk.stop is Stop.LEFT and z.argmax() != mine):
            return x, total, met[0], z, taken, True
        h = g if walk.along is None else look(walk.along, walk.along.target, x)[1]
        to = x + walk.step[i] * np.sign(g) * (1 if walk.moving is None else walk.moving[i])
        if walk.low is not None:
            to = np.clip(to, walk.low, walk.high)
        total, x, taken = total + (to - x) * h, to, taken + 1
    return x, total, met[0], met[-1], taken, False


@pytest.mark.parametrize("seed", range(60))
def test_a_walk_is_the_loop_of_its_definition(seed: int) -> None:
    """Points by the last bit; a displacement is told from the difference of two points by one rounding of x."""
    walk = walks.drawn(seed)
    answer = toys_answer(walk, batch_size=1 + seed % 4)
    for i in range(len(walk.steps)):
        x, total, first, last, taken, stopped = naive(walk, walks.TOY, i)
        assert (answer.point[i] == x).all()
        assert answer.path_sum[i] == pytest.approx(total, abs=1e-13)
        assert (answer.first[i] == first).all()
        assert (answer.last[i] == last).all()
        assert (answer.iterations[i], answer.stopped[i]) == (taken, stopped)


def test_the_draws_have_everything() -> None:
    """Else the tests above and those of walks on a device would say less than they seem to."""
    drawn = [walks.drawn(seed) for seed in range(60)]
    answers = [toys_answer(walk) for walk in drawn]
    for attribute in ("classes", "moving", "low", "along", "along_at_start"):
        assert {getattr(walk, attribute) is None for walk in drawn} == {True, False}
    assert {walk.stop for walk in drawn} == set(Stop)
    assert any(answer.stopped.any() and not answer.stopped.all() for answer in answers)
    assert any(answer.stopped.any() and answer.iterations[answer.stopped].min() == 0 for answer in answers)
    assert any(answer.iterations[answer.stopped].max(initial=0) > 1 for answer in answers)
    assert {len(walk.steps) for walk in drawn} >= {1, 2, 5}


def toys_answer(walk: Walk, batch_size: int = 8) -> Walked:
    return run(walks.asks(walk), toys.model_of(walks.TOY, batch_size=batch_size))


@pytest.mark.parametrize(("classes", "rows"), [(None, 1 + 3 * 4), ([0, 1, 2, 0], 4 + 3 * 4)])
def test_walks_share_their_first_gradient(classes: list[int] | None, rows: int) -> None:
    """Where they have one objective, and so one gradient in the place where all begin."""
    walk = walks.plain(steps=4, count=4, classes=classes)
    usage = Usage()
    list(drive([walks.asks(walk)], toys.model_of(walks.TOY), usage=usage))
    assert usage.rows == {GRADIENT: rows, LOGITS: 0}
    assert usage.calls == {GRADIENT: 4, LOGITS: 0}


@pytest.mark.parametrize("known", [True, False])
def test_what_is_known_is_not_asked(known: bool) -> None:
    """Nor is the gradient of `along` where a walk has ended."""
    along = Objective(Kind.PROB, 1)
    start = walks.IMAGES[0]
    (gradient,) = run(asks_points(start[None], along), toys.model_of(walks.TOY)).gradient
    walk = walks.plain(steps=3, count=2, along=along, along_at_start=gradient if known else None)
    usage = Usage()
    list(drive([walks.asks(walk)], toys.model_of(walks.TOY), usage=usage))
    assert usage.rows[GRADIENT] == (1 + 2 * 2) + (not known) + 2 * 2


def asks_points(x: Any, objective: Objective) -> Program[Any]:
    return (yield Points(x, objective))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": np.array([3])}, r"expected for each walk a step, .* got steps \[3\] with \[2\] of the others"),
        ({"steps": np.array([3, 0])}, "at least one"),
        ({"steps": np.zeros(0, int), "step": np.zeros((0, 6))}, "at least one"),
        ({"classes": np.array([1])}, r"with \[2, 1\] of the others"),
        ({"moving": np.ones((3, 6), bool)}, r"with \[2, 3\] of the others"),
        ({"low": np.zeros(6)}, "both bounds, low and high, or none"),
        ({"stop": Stop.LEFT}, "stop='left' needs classes"),
    ],
)
def test_walks_that_make_no_sense(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=f"Walk: .*{message}"):
        walks.plain(**changes)


def test_images_and_classes_are_looked_at_as_those_of_points_are() -> None:
    with pytest.raises(FeedMismatch, match=r"input x: expected rows of float64\[6\], got float32"):
        toys_answer(walks.plain(start=walks.IMAGES[0].astype(np.float32)))
    with pytest.raises(UsageError, match="target 3 is out of range"):
        toys_answer(walks.plain(classes=[0, 3]))


def test_a_program_is_closed_with_its_walk() -> None:
    closed = []

    def careful() -> Program[None]:
        try:
            yield walks.plain()
            yield Logits(walks.IMAGES[:1])
        finally:
            closed.append(True)

    program = on_host(careful())
    assert isinstance(program.send(None), Points)
    assert not closed
    program.close()
    assert closed
