"""Every method against the laws that it must keep; and methods that are wrong on purpose, which the laws must reject.

Add a method: one line in `ROWS`, with the laws of its kind beside those of all methods.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import toys

from onnxplain.engine.drive import drive
from onnxplain.engine.methods import (
    ISA,
    METHODS,
    Alphas,
    CrediblePath,
    IntegratedGradients,
    Method,
    Saliency,
)
from onnxplain.engine.requests import Attribution, Kind, Line, Objective, Points, Program, Request, Validity
from onnxplain.errors import OnnxplainError

Make = Callable[..., Any]  # a method from parameters that it may have beside those of its row
Law = Callable[[Make], None]

PICTURES = np.random.default_rng(0).random((5, 3, 8, 8))
VECTORS = np.random.default_rng(1).random((4, 6))


# What every method must keep. ---------------------------------------------------------------------------------------


def fits_the_image(make: Make) -> None:
    """A has the shape and dtype of x, in both layouts, is finite, and x is as before."""
    for shape in ((3, 8, 8), (8, 8, 3)):
        x = np.random.default_rng(2).random(shape).astype(np.float32)
        before = x.copy()
        values = toys.explain(make(), toys.picture_net(0, shape), x).values
        assert values.shape == x.shape
        assert values.dtype == np.float32
        assert np.isfinite(values).all()
        assert (x == before).all()


def depends_on_its_image_alone(make: Make) -> None:
    """Bit for bit the same alone, in any company and at any batch size; the same seed gives the same."""
    toy = toys.picture_net()
    alone = [toys.explain(make(), toy, x, i % 4, seed=i).values for i, x in enumerate(PICTURES)]

    def programs() -> Iterator[Program[Attribution]]:
        for i, x in enumerate(PICTURES):
            yield make()(x, i % 4, space=toys.pixels(toy), rng=np.random.default_rng(i))
            yield Saliency()(x, 0, space=toys.pixels(toy), rng=np.random.default_rng(0))

    for batch_size in range(1, 8):
        for outcome in drive(programs(), toys.model_of(toy, batch_size=batch_size)):
            if outcome.index % 2 == 0:
                assert outcome.unwrap().values.tobytes() == alone[outcome.index // 2].tobytes()


def costs_no_more_than_it_says(make: Make) -> None:
    toy = toys.picture_net()
    program = make()(PICTURES[0], 1, space=toys.pixels(toy), rng=np.random.default_rng(0))
    (outcome,) = drive([program], toys.model_of(toy))
    outcome.unwrap()
    assert 0 < sum(outcome.rows.values()) <= make().rows((3, 8, 8))


def survives_dead_and_constant(make: Make) -> None:
    """No NaN on a constant image, on black, on a saturated softmax, or without any gradient."""
    shape = (3, 8, 8)
    weights = np.random.default_rng(0).normal(size=(4, 192))
    for toy in (toys.picture_net(), toys.affine(0 * weights, shape=shape), toys.affine(1e4 * weights, shape=shape)):
        for x in (np.zeros(shape), np.full(shape, 0.5), PICTURES[0]):
            assert np.isfinite(toys.explain(make(), toy, x, 1).values).all()


# What some must keep. -----------------------------------------------------------------------------------------------


def complete(make: Make) -> None:
    """sum A = F(x) - F(x') on quadratics, and the diagnostics say so."""
    for seed, x in enumerate(VECTORS):
        toy = toys.quadratic(seed)
        answer = toys.explain(make(baseline=x[::-1].copy()), toy, x, 1)
        assert answer.values.sum() == pytest.approx((toy.logits(x) - toy.logits(x[::-1]))[1], abs=1e-11)
        assert answer.diagnostics["completeness_gap"] < 1e-9


def exact_on_affine(make: Make) -> None:
    """A = w * (x - x') on affine models."""
    for x in VECTORS:
        values = toys.explain(make(baseline=x[::-1].copy()), toys.TOY_L, x, 2).values
        assert values == pytest.approx(toys.W[2] * (x - x[::-1]), abs=1e-13)


def nothing_from_itself(make: Make) -> None:
    """x = x' gives exactly zero."""
    for x in VECTORS:
        assert not toys.explain(make(baseline=x), toys.TOY_T, x).values.any()


def ranks_affine_by_weight(make: Make) -> None:
    """On affine models the order of importance is that of |w|, round by round or at once."""
    for x in VECTORS:
        values = toys.explain(make(objective=Kind.LOGIT), toys.TOY_L, x, 0).values
        assert (np.argsort(values) == np.argsort(np.abs(toys.W[0]))).all()


def scores_add_up(make: Make) -> None:
    """The scores of a round sum to 1 for each walk, to first order in the step."""
    for x in VECTORS:
        answer = toys.explain(make(k=2, eta1=1e-5, eta2=1e-5), toys.TOY_T, x)
        assert answer.diagnostics["score_sums"] == pytest.approx([2] * 3, rel=1e-4)


def fills_its_rounds(make: Make) -> None:
    """k features to a round, the rest to the last, from r to r + s; the highest of all is in the last round."""
    for x in VECTORS:
        values = np.sort(toys.explain(make(k=4, s=0.9), toys.TOY_T, x).values)
        assert values[[0, 3, 4, 5]] == pytest.approx([0, 0.9, 1, 1.9])


def up_and_down_are_alike(make: Make) -> None:
    """Up psi and down psi are walked from the same point, so -psi gives the same attribution."""
    for x in VECTORS:
        one, other = (toys.explain(make(k=2, objective=kind), toys.TOY_T, x) for kind in (Kind.CE, Kind.LOGPROB))
        assert (one.values == other.values).all()
        assert one.diagnostics["score_sums"] == pytest.approx(other.diagnostics["score_sums"], abs=1e-13)


def credible_on_affine(make: Make) -> None:
    """All gradients are equal: `grad` accepts no feature, `literal` those with x > x', `path` all of them."""
    for x in VECTORS:
        start = x[::-1].copy()
        tell = partial(make, starts=start[None], max_iter=1)
        expected = toys.W[0] * (x - start)

        def values(rule: Validity | None, tell: Make = tell, x: toys.Array = x) -> toys.Array:
            return toys.explain(tell(validity=rule), toys.TOY_L, x, 0).values

        assert not values(Validity.GRAD).any()
        assert values(Validity.LITERAL) == pytest.approx(np.where(x > start, expected, 0), abs=1e-13)
        assert values(Validity.PATH) == pytest.approx(expected, abs=1e-13)
        assert values(None) == pytest.approx(expected, abs=1e-13)


def none_is_ig(make: Make) -> None:
    """Without validity, one baseline and midpoints: integrated gradients."""
    for x in VECTORS:
        start = x[::-1].copy()
        method = make(starts=start[None], max_iter=1, validity=None, alphas=Alphas.MIDPOINT, steps=9)
        same = toys.explain(IntegratedGradients(steps=9, baseline=start), toys.TOY_T, x)
        assert toys.explain(method, toys.TOY_T, x).values == pytest.approx(same.values, abs=1e-14)


def is_the_gradient(make: Make) -> None:
    for x in VECTORS:
        gradient = toys.TOY_T.pull_back(x, np.eye(3)[1])
        assert toys.explain(make(), toys.TOY_T, x, 1).values == pytest.approx(np.abs(gradient), abs=1e-15)
        assert toys.explain(make(signed=True), toys.TOY_T, x, 1).values == pytest.approx(gradient, abs=1e-15)


COMMON = (fits_the_image, depends_on_its_image_alone, costs_no_more_than_it_says, survives_dead_and_constant)


@dataclass(frozen=True)
class Row:
    make: Make
    laws: tuple[Law, ...]


def row(make: Make, *laws: Law) -> Row:
    return Row(make, COMMON + laws)


ROWS = {
    "isa": row(partial(ISA, k=50), ranks_affine_by_weight, scores_add_up, fills_its_rounds, up_and_down_are_alike),
    "credible": row(partial(CrediblePath, max_iter=8, steps=12), credible_on_affine, none_is_ig),
    "ig": row(partial(IntegratedGradients, steps=7), complete, exact_on_affine, nothing_from_itself),
    "saliency": row(Saliency, is_the_gradient),
}


def test_every_method_has_a_row() -> None:
    assert ROWS.keys() == METHODS.keys()
    for id, method in METHODS.items():
        assert method.id == id
        assert isinstance(ROWS[id].make(), method)


@pytest.mark.parametrize(
    ("make", "law"),
    [pytest.param(row.make, law, id=f"{id}-{law.__name__}") for id, row in ROWS.items() for law in row.laws],
)
def test_laws(make: Make, law: Law) -> None:
    law(make)


# Methods that are wrong, one mistake each. --------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Answers:
    """A method whose answer is that of `right` after `change`, with the cost that `says` tells."""

    right: Method
    change: Callable[[toys.Array, toys.Array], toys.Array]
    says: int = 10**6
    id = "wrong"

    def rows(self, shape: tuple[int, ...]) -> int:
        return self.says

    def __call__(self, x: toys.Array, target: Any, **rest: Any) -> Program[Attribution]:
        answer = yield from self.right(x, target, **rest)
        return replace(answer, values=self.change(answer.values, x))


def answers(make: Make, change: Callable[[toys.Array, toys.Array], toys.Array], **more: Any) -> Make:
    return lambda **parameters: Answers(right=make(**parameters), change=change, **more)


def scribble(values: toys.Array, x: toys.Array) -> toys.Array:
    x += 1
    return values


class Shared:
    """State that outlives an image."""

    count = 0

    def add(self, values: toys.Array, x: toys.Array) -> toys.Array:
        self.count += 1
        return values + self.count


class NeverRestarts(ISA):
    """Walks down from where the walk up has ended."""

    def round(self, x0: toys.Array, alive: toys.Array, objective: Objective, span: toys.Array) -> Any:
        x, score, changes = x0.copy(), 0 * x0, []
        for sign, eta, steps in ((1, self.eta1, self.t1), (-1, self.eta2, self.t2)):
            path_sum = 0 * x0
            first = yield Points(x[None], objective)
            for _ in range(steps):
                gradient = (yield Points(x[None], objective)).gradient[0] * alive
                x = x + sign * eta * span * np.sign(gradient)
                path_sum = path_sum + sign * eta * span * np.abs(gradient)
            last = yield Points(x[None], objective)
            changes.append(float(last.value[0] - first.value[0]))
            score = score + path_sum / changes[-1]
        right = yield from super().round(x0, alive, objective, span)
        return right._replace(score=score, changes=changes)


class OneWay(ISA):
    """Forgets one of the walks."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "t2", 0)


class Forgets(ISA):
    """Gives the last round, and so the most important features, the least importance: the bug of released code."""

    def __call__(self, x: toys.Array, target: Any, **rest: Any) -> Program[Attribution]:
        answer = yield from super().__call__(x, target, **rest)
        return replace(answer, values=np.where(answer.values >= answer.diagnostics["rounds"] - 1, 0, answer.values))


class NotStrict(CrediblePath):
    """Accepts a gradient that is as large as that of the image."""

    def __call__(self, x: toys.Array, target: Any, **rest: Any) -> Program[Attribution]:
        program = super().__call__(x, target, **rest)
        request: Request = next(program)
        while True:
            if isinstance(request, Line) and request.reference is not None:
                request = replace(request, reference=request.reference * (1 + 1e-9))
            try:
                request = program.send((yield request))
            except StopIteration as end:
                return end.value  # type: ignore[no-any-return]


class Halved(IntegratedGradients):
    """Weights that do not sum to 1."""

    def __call__(self, x: toys.Array, target: Any, **rest: Any) -> Program[Attribution]:
        program = super().__call__(x, target, **rest)
        line = next(program)
        assert isinstance(line, Line)
        path = yield replace(line, weights=line.weights / 2)
        forward = program.send(path)
        try:
            program.send((yield forward))
        except StopIteration as end:
            return end.value  # type: ignore[no-any-return]
        raise AssertionError


WRONG: list[tuple[str, Make, Law]] = [
    ("float64", answers(Saliency, lambda a, x: a.astype(np.float64)), fits_the_image),
    ("transposed", answers(Saliency, lambda a, x: a.T), fits_the_image),
    ("scribbles on the image", answers(Saliency, scribble), fits_the_image),
    ("float64 points", lambda: lambda x, target, **rest: Saliency()(x * np.float64(1), target, **rest), fits_the_image),
    ("counts images", answers(Saliency, Shared().add), depends_on_its_image_alone),
    (
        "draws from thin air",
        answers(Saliency, lambda a, x: a + np.random.default_rng().random(a.shape)),
        depends_on_its_image_alone,
    ),
    ("understates its cost", answers(IntegratedGradients, lambda a, x: a, says=51), costs_no_more_than_it_says),
    ("divides by its own sum", answers(IntegratedGradients, lambda a, x: a / a.sum()), survives_dead_and_constant),
    ("IG with half the weight", Halved, complete),
    ("IG with half the weight", Halved, exact_on_affine),
    ("IG of the gradient alone", answers(IntegratedGradients, lambda a, x: a / x), complete),
    ("IG with an offset", answers(IntegratedGradients, lambda a, x: a + 1e-9), nothing_from_itself),
    ("ISA that does not restart", NeverRestarts, up_and_down_are_alike),
    ("ISA that walks one way", OneWay, scores_add_up),
    ("ISA that drops its tail", Forgets, fills_its_rounds),
    ("ISA turned over", answers(partial(ISA, k=50), lambda a, x: -a), ranks_affine_by_weight),
    ("credible path, not strict", NotStrict, credible_on_affine),
    ("credible path, scaled", answers(partial(CrediblePath, steps=12), lambda a, x: 2 * a), none_is_ig),
    ("saliency squared", answers(Saliency, lambda a, x: a * a), is_the_gradient),
]


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning", "ignore:divide by zero:RuntimeWarning")
@pytest.mark.parametrize(
    ("make", "law"), [pytest.param(make, law, id=f"{name}-{law.__name__}") for name, make, law in WRONG]
)
def test_wrong_methods_are_rejected(make: Make, law: Law) -> None:
    with pytest.raises((AssertionError, OnnxplainError)):
        law(make)


def test_every_law_has_rejected_something() -> None:
    assert {law for row in ROWS.values() for law in row.laws} == {law for _, _, law in WRONG}
