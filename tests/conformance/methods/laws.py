"""What every method must keep, and how methods that are wrong on purpose are made."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import toys

from onnxplain.engine.drive import drive
from onnxplain.engine.methods import LIME, KernelSHAP, Method, Saliency, Task
from onnxplain.engine.requests import Attribution, Program
from onnxplain.engine.space import Space

Make = Callable[..., Any]  # a method from parameters that it may have beside those of its row
Law = Callable[[Make], None]
Wrong = list[tuple[str, Make, Law]]  # a mistake, a method that makes it, the law that must reject it

PICTURES = np.random.default_rng(0).random((5, 3, 8, 8))
VECTORS = np.random.default_rng(1).random((4, 6))


def fits_the_image(make: Make) -> None:
    """A has the shape and dtype of x, in both layouts, is finite, and x is as before."""
    for shape, axis in (((3, 8, 8), 0), ((8, 8, 3), -1)):
        x = np.random.default_rng(2).random(shape).astype(np.float32)
        before = x.copy()
        space = Space.pixels(channel_axis=axis)
        values = toys.explain(make(), toys.picture_net(0, shape), x, space=space).values
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
            yield make()(x, toys.task(toy, i % 4, seed=i))
            yield Saliency()(x, toys.task(toy))

    for batch_size in range(1, 8):
        for outcome in drive(programs(), toys.model_of(toy, batch_size=batch_size)):
            if outcome.index % 2 == 0:
                assert outcome.unwrap().values.tobytes() == alone[outcome.index // 2].tobytes()


def costs_no_more_than_it_says(make: Make) -> None:
    toy = toys.picture_net()
    program = make()(PICTURES[0], toys.task(toy, 1))
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


COMMON = (fits_the_image, depends_on_its_image_alone, costs_no_more_than_it_says, survives_dead_and_constant)


@dataclass(frozen=True)
class Row:
    """A method, small enough for pictures of 8 x 8, and its laws."""

    make: Make
    laws: tuple[Law, ...]


def row(make: Make, *laws: Law) -> Row:
    return Row(make, COMMON + laws)


@dataclass(frozen=True, kw_only=True)
class Answers:
    """A method whose answer is that of `right` after `change`, with the cost that `says` tells."""

    right: Method
    change: Callable[[toys.Array, toys.Array], toys.Array]
    says: int = 10**6
    id = "wrong"

    def rows(self, shape: tuple[int, ...]) -> int:
        return self.says

    def __call__(self, x: toys.Array, task: Task) -> Program[Attribution]:
        answer = yield from self.right(x, task)
        return replace(answer, values=self.change(answer.values, x))


def needs_sklearn(method: Method) -> bool:
    """Whether a method fits its answer with scikit-learn, so that a test that runs it has to skip without that."""
    return isinstance(method.right if isinstance(method, Answers) else method, (LIME, KernelSHAP))


def answers(make: Make, change: Callable[[toys.Array, toys.Array], toys.Array], **more: Any) -> Make:
    return lambda **parameters: Answers(right=make(**parameters), change=change, **more)
