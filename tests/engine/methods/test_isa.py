"""ISA against golden numbers, its first-order identity, and its edge cases."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
import toys
from hypothesis import given
from hypothesis import strategies as st

from onnxplain.engine.drive import GRADIENT, LOGITS, Usage, drive, run
from onnxplain.engine.methods import ISA, DeltaLoss, Task
from onnxplain.engine.requests import Attribution, Kind
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
    program = ISA(k=2).round(toys.X, np.ones(6, bool), toys.task(toy, target))
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
    scores = run(ISA().round(toys.X, np.ones(6, bool), toys.task(toys.TOY_T)), model).score
    for k in (6, 5000):
        values = toys.explain(ISA(k=k), toys.TOY_T, toys.X).values
        assert values == pytest.approx(1.1 * (scores - scores.min()) / np.ptp(scores), abs=1e-12)


@given(seed=st.integers(0, 2**32 - 1), size=st.integers(1, 12))
def test_on_an_affine_model_scores_are_weights(seed: int, size: int) -> None:
    """With L = -z_c every score is 2 |w| / |w|_1 over the survivors."""
    draw = np.random.default_rng(seed)
    weights, alive = draw.normal(size=(2, size)), draw.random(size) < 0.7
    alive[0] = True
    toy, target = toys.affine(weights), np.array([0, -1], np.float32)
    program = ISA(objective=Kind.LOGIT).round(draw.random(size), alive, toys.task(toy, target))
    w = np.abs(weights[1]) * alive
    # the change of L is a difference of values near 1: it has 1e-16 / (16 eta |w|_1) of relative error at least
    assert run(program, toys.model_of(toy)).score == pytest.approx(2 * w / w.sum(), rel=1e-9)


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


@pytest.mark.parametrize(
    ("method", "rounds", "gradients", "forward"),
    [
        (ISA.repo(), 31, 16, 0),  # with noise each walk has a first gradient of its own; the losses are those met
        (ISA.table1(), 30, 16, 0),  # the tail is not walked
        (ISA.repo(noise_std=0.0), 31, 15, 0),
        (ISA.repo(delta_loss=DeltaLoss.ENDS), 31, 16, 3),  # x0 without noise, and both ends
        (ISA(reg_lambda=0.01), 31, 15, 3),
        (ISA(noise_std=0.05, t2=0), 31, 8, 2),
    ],
)
def test_rows_of_the_other_modes(method: ISA, rounds: int, gradients: int, forward: int) -> None:
    """The same rounds at 1/16 of the size: 8 gradient requests in sequence, and one forward if any."""
    shape = (3, 56, 56)
    toy = toys.affine(np.random.default_rng(0).normal(size=(2, 9408)) / 100, shape=shape)
    x, usage = np.random.default_rng(1).random(shape).astype(np.float32), Usage()
    small = replace(method, k=9408 // 30)
    (outcome,) = drive([small(x, toys.task(toy))], toys.model_of(toy, np.float32), usage=usage)
    assert outcome.unwrap().diagnostics["rounds"] == rounds
    assert outcome.rows == {GRADIENT: rounds * gradients, LOGITS: rounds * forward}
    assert usage.calls == {GRADIENT: rounds * 8, LOGITS: rounds * (forward > 0)}
    assert small.rows(shape) == method.rows((3, 224, 224)) == sum(outcome.rows.values())


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
        program = ISA(**parameters).round(toys.X, np.ones(6, bool), toys.task(toys.TOY_T))
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
    right = run(program(x, np.ones(1, bool), toys.task(toy)), toys.model_of(toy))
    assert (right.guarded, right.score[0]) == (1, pytest.approx(path_sum / -change))
    program = ISA(t1=1, t2=0, eta1=0.25, objective=Kind.LOGIT, literal=True).round
    literal = run(program(x, np.ones(1, bool), toys.task(toy)), toys.model_of(toy))
    assert literal.score[0] == pytest.approx(path_sum / change)


@pytest.mark.parametrize("toy", [toys.TOY_L, toys.TOY_T])
def test_the_dropped_tail_is_what_matters_most(toy: toys.Toy) -> None:
    """Six features, four a round: the two that survive the first are ranked below all others."""
    kept, dropped = (toys.explain(ISA(k=4, s=0.9, drop_tail=drop), toy, toys.X, 1) for drop in (False, True))
    last = kept.values >= 1
    assert last.sum() == dropped.diagnostics["dropped"] == 2
    assert (dropped.values[last] == 0).all()
    assert (dropped.values[~last] == kept.values[~last]).all()
    assert (
        kept.diagnostics["dropped"] == toys.explain(ISA(k=3, drop_tail=True), toy, toys.X).diagnostics["dropped"] == 0
    )


def test_a_dropped_tail_may_not_be_the_whole_image() -> None:
    assert toys.explain(ISA.table1(k=6), toys.TOY_T, toys.X).values.any()
    with pytest.raises(UsageError, match=r"drop_tail with k=7 would leave all 6 features .* set k to 6 or less"):
        toys.explain(ISA.table1(k=7), toys.TOY_T, toys.X)


def test_presets_change_what_they_are_told() -> None:
    assert ISA.repo() == ISA.repo(noise_std=0.05)
    assert (ISA.table1(k=7, s=2.0).k, ISA.table1(s=2.0).s, ISA.table1().id) == (7, 2.0, "isa-table1")
    assert {f.name for f in fields(ISA) if getattr(ISA.repo(), f.name) != getattr(ISA.table1(), f.name)} == {
        "id",
        "eta1",
        "eta2",
        "s",
        "drop_tail",
    }


def test_clean_changes_know_no_noise_and_no_penalty() -> None:
    """The first round's losses at its end points are L itself: noise and penalty change only where the walk goes."""
    clean = toys.explain(ISA(k=6), toys.TOY_T, toys.X).diagnostics["loss_changes"][0]
    for more in ({"noise_std": 1e-9}, {"reg_lambda": 1e-9}, {"noise_std": 1e-9, "reg_lambda": 1e-9}):
        same = toys.explain(ISA(k=6, **more), toys.TOY_T, toys.X).diagnostics["loss_changes"][0]
        assert same == pytest.approx(clean, abs=1e-14)
    # of the losses met, T - 1 of the T steps: about 7/8 of the way
    met = toys.explain(ISA(k=6, delta_loss=DeltaLoss.EVALUATED), toys.TOY_T, toys.X).diagnostics["loss_changes"][0]
    assert met == pytest.approx([7 / 8 * change for change in clean], rel=0.01)


def test_one_step_has_no_change_between_the_losses_met() -> None:
    answer = toys.explain(ISA(k=3, t1=1, t2=1, delta_loss=DeltaLoss.EVALUATED), toys.TOY_T, toys.X)
    assert answer.diagnostics["loss_changes"] == [[0, 0]] * 2
    assert answer.diagnostics["guarded"] == 4
    assert np.isfinite(answer.values).all()


def test_the_noise_is_that_of_the_seed_in_every_precision() -> None:
    one, again, other = (toys.explain(ISA.repo(k=2), toys.TOY_T, toys.X, seed=seed).values for seed in (0, 0, 1))
    assert (one == again).all()
    assert not (one == other).all()
    single = toys.explain(ISA.repo(k=2), toys.TOY_T, toys.X.astype(np.float32), seed=0).values
    assert single == pytest.approx(one, abs=1e-2)


@given(
    seed=st.integers(0, 2**32 - 1), k=st.integers(1, 8), times_input=st.booleans(), eps=st.sampled_from([0, 1e-6, 1])
)
def test_every_switch_keeps_the_rounds(seed: int, k: int, times_input: bool, eps: float) -> None:
    """k features to a round, each round above the one before while s <= 1, whatever is switched on."""
    x = np.random.default_rng(seed).random(6).round(1)
    method = ISA.repo(k=k, s=0.9, times_input=times_input, eps=eps)
    values = toys.explain(method, toys.TOY_T, x, seed=seed).values
    assert np.bincount(np.floor(values).astype(int)).tolist() == [min(k, 6 - r) for r in range(0, 6, k)]


@pytest.mark.parametrize("literal", [False, True])
def test_a_saturated_softmax_gives_numbers(literal: bool) -> None:
    answer = toys.explain(ISA(k=2, literal=literal), toys.affine(1e4 * toys.W), toys.X, 0)
    assert np.isfinite(answer.values).all()
    answer = toys.explain(ISA(k=2, literal=literal), toys.affine(1e4 * toys.W), toys.X, 1)  # ce = 0, gradient 0
    assert np.isfinite(answer.values).all()
    assert answer.diagnostics["guarded"] > 0


@pytest.mark.parametrize("method", [ISA(k=2), ISA.repo(k=2)])
@pytest.mark.parametrize("low", [0, -100])
def test_pixel_units_follow_the_range(method: ISA, low: int) -> None:
    """The same model in 255 levels, wherever they begin: the same attributions, noise, norm and factor x included."""
    in_levels = toys.tanh_net(toys.W / 255, toys.B - toys.W.sum(axis=1) * low / 255, toys.V)
    levels = Space(*(np.array([v], np.float64) for v in (low, low + 255, 0, 1)))
    expected = toys.explain(method, toys.TOY_T, toys.X).values
    got = toys.explain(method, in_levels, low + 255 * toys.X, space=levels).values
    assert got == pytest.approx(expected, abs=1e-9)


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
        ({"noise_std": -0.1}, "ISA: noise_std: expected a number from 0 to 1, got -0.1"),
        ({"noise_std": float("nan")}, "ISA: noise_std"),
        ({"reg_lambda": -1.0}, "ISA: reg_lambda: expected a number from 0 to 1e.06, got -1.0"),
        ({"delta_loss": "ends"}, r"ISA: delta_loss: expected one of ends, evaluated \(DeltaLoss\), got 'ends'"),
        ({"eps": float("inf")}, "ISA: eps: expected a number from 0 to 1000"),
    ],
)
def test_parameters_out_of_range(parameters: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        ISA(**parameters)
