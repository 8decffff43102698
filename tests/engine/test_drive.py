"""The driver: full batches, the same answers in any order and company, errors that stay where they belong."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import pytest
import toys
from hypothesis import given
from hypothesis import strategies as st

from onnxplain.engine.drive import GRADIENT, LOGITS, Model, Outcome, Usage, drive, forward_model, run
from onnxplain.engine.executors.function import FunctionExecutor
from onnxplain.engine.methods import ISA, CrediblePath, IntegratedGradients, Method, Rule, Saliency
from onnxplain.engine.requests import Attribution, Blends, Kind, Line, Logits, Objective, Points, Program, Validity
from onnxplain.errors import BackendFailed, FeedMismatch, NonFinite, UsageError

CE = Objective(Kind.CE, 0)
METHODS: list[Method] = [
    ISA(k=2, t1=3, t2=2),
    CrediblePath(starts=np.full((2, 6), [[0.5], [0.2]]), steps=7, max_iter=5),
    IntegratedGradients(steps=5, rule=Rule.RIGHT),
    Saliency(),
]
IMAGES = np.random.default_rng(0).random((12, 6))


def programs(order: list[int]) -> Iterator[Program[Attribution]]:
    """One method after the other, on one image after the other; each draws from its image's own seed."""
    for i in order:
        yield METHODS[i % 4](IMAGES[i], toys.task(toys.TOY_T, i % 3, seed=i))


def in_order(outcomes: Iterator[Outcome[Any]]) -> list[Any]:
    return [outcome.unwrap() for outcome in sorted(outcomes, key=lambda outcome: outcome.index)]


@given(order=st.permutations(range(12)), batch_size=st.integers(1, 7))
def test_order_and_batch_size_change_no_bit(order: list[int], batch_size: int) -> None:
    alone = [run(program, toys.model_of(toys.TOY_T, batch_size=1)) for program in programs(order)]
    together = in_order(drive(programs(order), toys.model_of(toys.TOY_T, batch_size=batch_size)))
    for expected, actual in zip(alone, together, strict=True):
        assert expected.values.tobytes() == actual.values.tobytes()
        assert expected.diagnostics == actual.diagnostics


def isa(x: toys.Array) -> Program[Attribution]:
    return ISA(k=2)(x, toys.task(toys.TOY_T))


def test_batches_are_full_while_there_is_work() -> None:
    """20 images, 3 rounds of 1 + 14 gradient and 2 forward rows each, in batches of 8.

    Every batch is full until no program is left to be opened; at the very end some are not. One image after the other
    would make 20 * 24 gradient calls, 23 % full.
    """
    sizes: list[tuple[str, int]] = []

    def note(rows: Mapping[str, int]) -> None:
        sizes.extend(rows.items())

    usage = Usage()
    images = np.random.default_rng(1).random((20, 6))
    outcomes = list(drive(map(isa, images), toys.model_of(toys.TOY_T), usage=usage, observe=note))
    assert [outcome.rows for outcome in outcomes] == [{GRADIENT: 45, LOGITS: 6}] * 20
    assert usage.rows == {GRADIENT: 900, LOGITS: 120}
    assert sorted(outcome.index for outcome in outcomes) == list(range(20))
    for role in (GRADIENT, LOGITS):
        of_role = [size for name, size in sizes if name == role]
        assert len(of_role) == usage.calls[role]
        assert sum(of_role) == usage.rows[role]
    assert 900 / (8 * usage.calls[GRADIENT]) > 0.98
    assert usage.runtime_seconds <= usage.seconds


def test_programs_are_opened_as_they_are_needed() -> None:
    opened: list[int] = []

    def source() -> Iterator[Program[Attribution]]:
        for i in range(100):
            opened.append(i)
            yield isa(IMAGES[i % 12])

    outcomes = drive(source(), toys.model_of(toys.TOY_T, batch_size=4))
    assert not opened
    next(outcomes)
    assert len(opened) < 12
    assert len(list(outcomes)) == 99
    assert len(opened) == 100


def test_nothing_to_drive() -> None:
    assert list(drive([], toys.model_of(toys.TOY_T))) == []


def test_a_program_that_asks_for_nothing() -> None:
    def silent() -> Program[int]:
        return 3
        yield Logits(IMAGES[:0])

    def empty() -> Program[int]:
        answer = yield Logits(IMAGES[:0])
        return len(answer)

    assert run(silent(), toys.model_of(toys.TOY_T)) == 3
    assert run(empty(), toys.model_of(toys.TOY_T)) == 0


def poisoned(where: str) -> Model:
    """Toy-T, but NaN comes out for images whose first number is above 0.99."""
    forward, backward = toys.executors(toys.TOY_T)

    def spoil(executor: FunctionExecutor) -> FunctionExecutor:
        def fn(feeds: Mapping[str, toys.Array]) -> dict[str, toys.Array]:
            outputs = dict(executor(feeds))
            if where in outputs:
                outputs[where][feeds["x"][:, 0] > 0.99] = np.nan
            return outputs

        return FunctionExecutor(fn, executor.inputs, executor.outputs)

    return toys.joined(spoil(forward), spoil(backward), batch_size=5)


@pytest.mark.parametrize("where", ["logits", "gradient"])
@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.id)
def test_nan_ends_the_one_program_that_met_it(where: str, method: Method) -> None:
    images = IMAGES * 0.9  # no step of any method leads from here to 0.99
    images[4, 0] = 1

    def source() -> Iterator[Program[Attribution]]:
        for x in images:
            yield method(x, toys.task(toys.TOY_T))

    outcomes = sorted(drive(source(), poisoned(where)), key=lambda outcome: outcome.index)
    assert [outcome.index for outcome in outcomes if outcome.error] == [4]
    assert isinstance(outcomes[4].error, NonFinite)
    assert f"the model gave NaN or Inf in its {where} at request" in str(outcomes[4].error)
    for x, outcome in zip(images, outcomes, strict=True):
        if not outcome.error:
            assert (outcome.unwrap().values == toys.explain(method, toys.TOY_T, x).values).all()
    with pytest.raises(NonFinite):
        outcomes[4].unwrap()


def test_errors_of_a_program_are_its_own() -> None:
    closed: list[bool] = []

    def careful() -> Program[int]:
        try:
            yield Points(IMAGES[:1], Objective(Kind.LOGIT, 7))
        finally:
            closed.append(True)
        return 1

    def refusing() -> Program[int]:
        yield Logits(IMAGES[:1])
        raise UsageError("no")

    def fine() -> Program[int]:
        answer = yield Logits(IMAGES[:3])
        return len(answer)

    outcomes = sorted(drive([careful(), refusing(), fine()], toys.model_of(toys.TOY_T)), key=lambda o: o.index)
    assert [type(o.error) for o in outcomes] == [UsageError, UsageError, type(None)]
    assert [str(o.error)[:30] for o in outcomes[:2]] == ["target 7 is out of range: the ", "no"]
    assert closed == [True]
    assert outcomes[2].unwrap() == 3


def test_a_runtime_that_fails_ends_everything() -> None:
    forward, backward = toys.executors(toys.TOY_T)

    def broken(feeds: Mapping[str, toys.Array]) -> dict[str, toys.Array]:
        raise BackendFailed("out of memory")

    model = toys.joined(forward, FunctionExecutor(broken, backward.inputs, backward.outputs))
    with pytest.raises(BackendFailed):
        list(drive(programs([0, 1]), model))


ONE = IMAGES[:1].astype(np.float32)
T = np.full((1, 2), 0.5)


@pytest.mark.parametrize(
    "request_",
    [
        Logits(ONE.astype(np.float64)),
        Points(ONE.astype(np.float64), CE),
        Line(ONE.astype(np.float64), ONE, T, T, CE),
        Line(ONE, ONE.astype(np.float64), T, T, CE),
        Blends(ONE[0].astype(np.float64), ONE[0], ONE > 0),
        Blends(ONE[0], ONE[0, :5], ONE > 0),
        Points(ONE[:, :5], CE),
        Points(ONE[0], CE),
    ],
    ids=["logits", "points", "start", "step", "blend", "blend shape", "shape", "no rows"],
)
def test_wrong_dtypes_and_shapes_are_refused(request_: Any) -> None:
    def ask() -> Program[None]:
        yield request_

    with pytest.raises(FeedMismatch, match=r"input x: expected rows of float32\[6\], got"):
        run(ask(), toys.model_of(toys.TOY_T, np.float32))


def answer_to(request: Any, model: Model) -> Any:
    def ask() -> Program[Any]:
        return (yield request)

    return run(ask(), model)


@pytest.mark.parametrize("validity", [None, *Validity])
def test_a_line_is_the_sum_over_its_points(validity: Validity | None) -> None:
    """Against the same points asked for one by one, and the definition of each rule."""
    draw = np.random.default_rng(3)
    start, step, t, w = draw.random((2, 6)), draw.normal(size=(2, 6)), draw.random((2, 9)), draw.random((2, 9))
    model, objective = toys.model_of(toys.TOY_T, batch_size=4), Objective(Kind.PROB, 1)
    reference = answer_to(Points(start[:1] + step[:1], objective), model).gradient[0]
    line = answer_to(Line(start, step, t, w, objective, validity, reference), model)
    for i in range(2):
        points = start[i] + t[i, :, None] * step[i]
        there = answer_to(Points(points, objective), model)
        assert line.value[i] == pytest.approx(there.value, abs=1e-15)
        remaining = (start[i] + step[i]) - points
        ours, theirs = {
            None: (1 + 0 * there.gradient, 0.5 + 0 * there.gradient),
            Validity.LITERAL: (reference + 0 * points, remaining * there.gradient),
            Validity.PATH: (step[i] * reference + 0 * points, remaining * there.gradient),
            Validity.GRAD: (reference + 0 * points, there.gradient),
            Validity.SIGN_ONLY: (1e9 * reference + 0 * points, there.gradient),
        }[validity]
        valid = (ours * theirs > 0) & (np.abs(ours) > np.abs(theirs))
        assert validity is None or 0 < valid.mean() < 1
        assert (line.count[i] == valid.sum(axis=0)).all()
        assert line.gradient[i] == pytest.approx((w[i, :, None] * valid * there.gradient).sum(axis=0), abs=1e-14)


def test_mixed_objectives_share_a_batch() -> None:
    usage = Usage()

    def ask(kind: Kind) -> Program[float]:
        answer = yield Points(IMAGES[:1], Objective(kind, 2))
        return float(answer.value[0])

    model = toys.model_of(toys.TOY_T)
    values = in_order(drive((ask(kind) for kind in Kind), model, usage=usage))
    assert usage.calls == {GRADIENT: 1, LOGITS: 0}
    z = toys.TOY_T.logits(IMAGES[0])
    assert values == pytest.approx([toys.objective(kind, z, np.eye(3)[2])[0] for kind in Kind], abs=1e-15)


def test_outcomes_may_be_used_to_run_the_same_model() -> None:
    """A runtime may write its answers into the same arrays again: whoever takes an outcome may ask for more."""
    forward, backward = toys.executors(toys.TOY_T)
    kept = {"logits": np.empty((8, 3)), "value": np.empty(8), "gradient": np.empty((8, 6))}

    def reuse(fn: Callable[[Mapping[str, toys.Array]], Mapping[str, toys.Array]]) -> Any:
        def call(feeds: Mapping[str, toys.Array]) -> dict[str, toys.Array]:
            outputs = fn(feeds)
            for name, array in outputs.items():
                kept[name][: len(array)] = array
            return {name: kept[name][: len(array)] for name, array in outputs.items()}

        return call

    model = toys.joined(
        FunctionExecutor(reuse(forward), forward.inputs, forward.outputs),
        FunctionExecutor(reuse(backward), backward.inputs, backward.outputs),
    )
    saliency = [Saliency()(x, toys.task(toys.TOY_T)) for x in IMAGES]
    for outcome in drive(saliency, model):
        answer_to(Points(0 * IMAGES[:8], CE), model)
        expected = toys.explain(Saliency(), toys.TOY_T, IMAGES[outcome.index]).values
        assert (outcome.unwrap().values == expected).all()


def test_blends_are_chosen_bit_by_bit() -> None:
    """So that any value passes, and it is that of one image or of the other, exactly."""
    first, second = IMAGES[0].copy(), 1e300 * IMAGES[1]
    first[0], second[1] = np.inf, -0.0
    seen: list[Any] = []

    def logits(images: Any) -> Any:
        seen.extend(images.copy())
        return np.ones((len(images), 2))

    shown = np.random.default_rng(0).random((11, len(first))) < 0.5
    model = forward_model(logits, IMAGES[:1], batch_size=4)
    seen.clear()
    assert answer_to(Blends(first, second, shown), model).shape == (11, 2)
    np.testing.assert_array_equal(seen, np.where(shown, second, first))


def test_a_forward_model_gives_no_gradients() -> None:
    model = forward_model(lambda images: images @ toys.W.T, IMAGES[:1])
    assert answer_to(Logits(IMAGES), model) == pytest.approx(IMAGES @ toys.W.T)
    with pytest.raises(UsageError, match="only a forward model was given"):
        answer_to(Points(IMAGES[:1], CE), model)


def test_a_model_must_say_its_sizes() -> None:
    with pytest.raises(UsageError, match="batch size: expected at least 1, got 0"):
        toys.model_of(toys.TOY_T, batch_size=0)


def test_programs_end_one_by_one() -> None:
    """The few forward rows that a path integral ends with do not wait for the many gradient rows of the others."""

    def path() -> Program[int]:
        yield Points(np.repeat(IMAGES[:1], 50, axis=0), Objective(Kind.LOGIT, 0))
        yield Logits(IMAGES[:2])
        return 1

    usage = Usage()
    outcomes = drive((path() for _ in range(8)), toys.model_of(toys.TOY_T, batch_size=8), usage=usage)
    done = [usage.rows[GRADIENT] for _ in outcomes]
    assert done[0] <= 50 + 8 * 5  # its own rows, and those of the batches that were let pass
    assert done == sorted(done)
    assert done[3] <= 4 * 50 + 8 * 5
    assert usage.calls[GRADIENT] == 50
