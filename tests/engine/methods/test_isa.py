"""ISA against golden numbers, its first-order identity, and its edge cases."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import toys
from hypothesis import given
from hypothesis import strategies as st

from onnxplain.engine.drive import GRADIENT, LOGITS, Usage, drive, run
from onnxplain.engine.methods import ISA, Task
from onnxplain.engine.requests import Attribution, Kind, Objective
from onnxplain.engine.space import Space
from onnxplain.errors import UsageError

GOLDEN = [
    (toys.TOY_L, 1, 2, [0, 2.1, 3.1, 1, 2, 1.1]),
    (toys.TOY_T, 0, 2, [0, 3.1, 2.1, 1.1, 2, 1]),
    (toys.TOY_L, 1, 4, [0, 1, 0.783243, 1.1, 2.1, 0.431098]),
    (toys.TOY_T, 0, 4, [0, 0.687645, 2.1, 0.275290, 1.1, 1]),
]


@pytest.mark.parametrize(("toy", "target", "k", "expected"), GOLDEN)
def test_golden_attributions(toy: toys.Toy, target: int, k: int, expected: list[float]) -> None:
    assert toys.explain(ISA(k=k), toy, toys.X, target).values == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(
    ("toy", "target", "scores", "changes"),
    [
        (toys.TOY_L, 1, [0.012617, 0.493437, 0.323670, 0.449465, 0.537410, 0.183821], [0.090360, -0.082468]),
        (toys.TOY_T, 0, [0.224044, 0.295730, 0.503004, 0.252742, 0.338717, 0.384960], [0.040154, -0.039003]),
    ],
)
def test_golden_first_round(toy: toys.Toy, target: int, scores: list[float], changes: list[float]) -> None:
    program = ISA(k=2).round(toys.X, np.ones(6, bool), Objective(Kind.CE, target), np.ones(1))
    this = run(program, toys.model_of(toy))
    assert this.score == pytest.approx(scores, abs=1e-5)
    assert this.changes == pytest.approx(changes, abs=1e-5)
    assert this.guarded == 0


def picture(size: int, seed: int = 0) -> tuple[toys.Toy, toys.Array]:
    return toys.picture_net(seed, (3, size, size)), np.random.default_rng(seed).random((3, size, size))


@pytest.mark.parametrize("k", [1, 7, 50, 64, 191, 192, 193])
def test_every_feature_is_retired_once(k: int) -> None:
    toy, x = picture(8)
    # s < 1, so that each value tells its round; steps so short that the identity below holds to 1e-3
    answer = toys.explain(ISA(k=k, s=0.9, eta1=1e-4, eta2=1e-4), toy, x)
    rounds = -(-192 // k)
    retired = np.floor(answer.values).astype(int).ravel()
    if 192 % k == 1 or k == 1:
        assert answer.values.max() == rounds - 1 + 0.9  # the last feature, alone in its round
    sizes = [min(k, 192 - r * k) for r in range(rounds)]
    assert np.bincount(retired).tolist() == sizes
    for r, size in enumerate(sizes):
        of_round = answer.values.ravel()[retired == r]
        if size > 1:
            assert (of_round.min(), of_round.max()) == (r, pytest.approx(r + 0.9))
    assert answer.diagnostics["rounds"] == rounds
    # first order in eta: the path sums are the changes of the loss, one for each direction
    assert answer.diagnostics["score_sums"] == pytest.approx([2] * rounds, rel=1e-3)


def test_one_round_ranks_by_the_scores() -> None:
    model = toys.model_of(toys.TOY_T)
    scores = run(ISA().round(toys.X, np.ones(6, bool), Objective(Kind.CE, 0), np.ones(1)), model).score
    for k in (6, 5000):
        values = toys.explain(ISA(k=k), toys.TOY_T, toys.X).values
        assert values == pytest.approx(1.1 * (scores - scores.min()) / np.ptp(scores), abs=1e-12)


@given(seed=st.integers(0, 2**32 - 1), size=st.integers(1, 12))
def test_on_an_affine_model_scores_are_weights(seed: int, size: int) -> None:
    """With L = -z_c every score is 2 |w| / |w|_1 over the survivors."""
    draw = np.random.default_rng(seed)
    weights, alive = draw.normal(size=(2, size)), draw.random(size) < 0.7
    alive[0] = True
    program = ISA().round(draw.random(size), alive, Objective(Kind.LOGIT, np.array([0, -1], np.float32)), np.ones(1))
    w = np.abs(weights[1]) * alive
    # the change of L is a difference of values near 1: it has 1e-16 / (16 eta |w|_1) of relative error at least
    assert run(program, toys.model_of(toys.affine(weights))).score == pytest.approx(2 * w / w.sum(), rel=1e-9)


def test_rows_and_calls_of_a_full_size_image() -> None:
    """31 rounds of 8 gradient requests in sequence: 15 gradient rows and 2 forward rows each."""
    draw = np.random.default_rng(0)
    toy = toys.affine(draw.normal(size=(2, 3, 224, 224)).reshape(2, -1) / 400, shape=(3, 224, 224))
    x, usage = draw.random((3, 224, 224)).astype(np.float32), Usage()
    program = ISA()(x, Task(0, Space.pixels((0, 0, 0), (1, 1, 1)), draw))
    (outcome,) = drive([program], toys.model_of(toy, np.float32), usage=usage)
    assert outcome.unwrap().values.dtype == np.float32
    assert outcome.rows == usage.rows == {GRADIENT: 465, LOGITS: 62}
    assert usage.calls == {GRADIENT: 31 * 8, LOGITS: 31}
    assert ISA().rows((3, 224, 224)) == 465 + 62


@pytest.mark.parametrize(("t1", "t2", "gradients", "sum_of_scores"), [(8, 0, 8, 1), (0, 3, 3, 1), (2, 5, 6, 2)])
def test_walks_of_unequal_length(t1: int, t2: int, gradients: int, sum_of_scores: int) -> None:
    method = ISA(k=6, t1=t1, t2=t2)
    (outcome,) = drive([method(toys.X, toys.task(toys.TOY_T))], toys.model_of(toys.TOY_T))
    assert outcome.rows == {GRADIENT: gradients, LOGITS: (t1 > 0) + (t2 > 0)}
    assert method.rows((6,)) == sum(outcome.rows.values())
    assert outcome.unwrap().diagnostics["score_sums"] == pytest.approx([sum_of_scores], rel=0.01)


def test_each_walk_has_its_own_step_and_length() -> None:
    """Two walks at once are the two walks alone, added up."""

    def scores(**parameters: Any) -> toys.Array:
        program = ISA(**parameters).round(toys.X, np.ones(6, bool), Objective(Kind.CE, 0), np.ones(1))
        return run(program, toys.model_of(toys.TOY_T)).score

    up, down = scores(t1=3, t2=0, eta1=0.01), scores(t1=0, t2=5, eta2=0.03)
    assert scores(t1=3, t2=5, eta1=0.01, eta2=0.03) == pytest.approx(up + down, abs=1e-14)


def constant(x: toys.Array, **parameters: Any) -> Attribution:
    """A model that does not care: all gradients are zero."""
    return toys.explain(ISA(**parameters), toys.affine(np.zeros((2, 6))), x)


def test_without_a_gradient_ties_go_in_order_and_are_flagged() -> None:
    answer = constant(toys.X, k=2)
    assert answer.values.tolist() == [0, 0, 1, 1, 3.1, 3.1]  # the last round, degenerate, is lifted above the others
    assert constant(toys.X, k=2, literal=True).values.tolist() == [0, 0, 1, 1, 2, 2]
    assert constant(toys.X, k=6).values.tolist() == [1.1] * 6
    assert answer.diagnostics["guarded"] == 6
    assert answer.diagnostics["score_sums"] == [0, 0, 0]


def test_a_single_last_survivor_is_the_most_important() -> None:
    values = toys.explain(ISA(k=5), toys.TOY_T, toys.X).values
    assert np.sort(values)[-2:] == pytest.approx([1.1, 2.1])
    literal = toys.explain(ISA(k=5, literal=True), toys.TOY_T, toys.X).values
    assert np.sort(literal)[-2:] == pytest.approx([1, 1.1])


def test_a_loss_that_moves_the_wrong_way_is_guarded() -> None:
    """Steps that are far too long for sin: the ascent ends below where it began."""
    toy = toys.Toy(lambda x: np.sin(20 * x[:1]), lambda x, v: 20 * np.cos(20 * x) * v, (1,), 1)
    x = np.array([0.01])
    program = ISA(t1=1, t2=0, eta1=0.25, objective=Kind.LOGIT).round
    change = np.sin(20 * 0.26) - np.sin(20 * 0.01)
    path_sum = 0.25 * 20 * np.cos(0.2)
    assert change < 0 < path_sum
    right = run(program(x, np.ones(1, bool), Objective(Kind.LOGIT, 0), np.ones(1)), toys.model_of(toy))
    assert (right.guarded, right.score[0]) == (1, pytest.approx(path_sum / -change))
    program = ISA(t1=1, t2=0, eta1=0.25, objective=Kind.LOGIT, literal=True).round
    literal = run(program(x, np.ones(1, bool), Objective(Kind.LOGIT, 0), np.ones(1)), toys.model_of(toy))
    assert literal.score[0] == pytest.approx(path_sum / change)


@pytest.mark.parametrize("literal", [False, True])
def test_a_saturated_softmax_gives_numbers(literal: bool) -> None:
    answer = toys.explain(ISA(k=2, literal=literal), toys.affine(1e4 * toys.W), toys.X, 0)
    assert np.isfinite(answer.values).all()
    answer = toys.explain(ISA(k=2, literal=literal), toys.affine(1e4 * toys.W), toys.X, 1)  # ce = 0, gradient 0
    assert np.isfinite(answer.values).all()
    assert answer.diagnostics["guarded"] > 0


def test_pixel_units_follow_the_range() -> None:
    """The same model in levels of 0 to 255: the same attributions."""
    in_levels = toys.tanh_net(toys.W / 255, toys.B, toys.V)
    levels = Space(*(np.array([v], np.float64) for v in (0, 255, 0, 1)))
    expected = toys.explain(ISA(k=2), toys.TOY_T, toys.X).values
    assert toys.explain(ISA(k=2), in_levels, 255 * toys.X, space=levels).values == pytest.approx(expected, abs=1e-9)


def test_the_range_must_be_known() -> None:
    with pytest.raises(UsageError, match="ISA works in pixel units"):
        toys.explain(ISA(), toys.TOY_T, toys.X, space=Space.model())


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"k": 0}, "ISA: k: expected a whole number from 1 to 1000000000, got 0"),
        ({"k": 2.5}, "ISA: k"),
        ({"t1": 0, "t2": 0}, r"ISA: t1 and t2: expected at least one of them above 0, got \(0, 0\)"),
        ({"t1": -1}, "ISA: t1"),
        ({"eta1": 0.0}, "ISA: eta1: expected a positive number"),
        ({"eta2": float("nan")}, "ISA: eta2"),
        ({"s": float("inf")}, "ISA: s"),
        ({"t2": 10_001}, "ISA: t2"),
        ({"eta1": 1e39}, "ISA: eta1: expected a positive number, at most 1, got"),
        ({"s": 1e39}, "ISA: s: expected a positive number, at most 1000, got"),
        ({"eta2": 10**400}, "ISA: eta2"),
        ({"objective": Kind.LOGIT_L2}, "ISA: objective: expected one of logit, .* got 'logit_l2'"),
        ({"objective": 3}, "ISA: objective"),
    ],
)
def test_parameters_out_of_range(parameters: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        ISA(**parameters)
