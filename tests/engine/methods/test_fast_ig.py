"""Fast IG and gradient times input: one gradient, times the image."""

from __future__ import annotations

import numpy as np
import pytest
import toys

from onnxplain.engine.drive import GRADIENT, LOGITS, drive
from onnxplain.engine.methods import METHODS, FastIG, GradientXInput, IntegratedGradients, Zero
from onnxplain.engine.requests import Kind
from onnxplain.engine.space import Space
from onnxplain.errors import UsageError

NORMALISED = Space.pixels((0.45,), (0.22,), rank=1)


def test_zero_is_that_of_model_space() -> None:
    """A net without biases behind a normalisation: IG from the mean colour, complete to the logit."""
    inner = toys.relu_net(0)
    toy = toys.Toy(
        lambda x: inner.logits((x - 0.45) / 0.22), lambda x, v: inner.pull_back((x - 0.45) / 0.22, v) / 0.22, (6,), 3
    )
    answer = toys.explain(FastIG(), toy, toys.X, 2, space=NORMALISED)
    same = toys.explain(IntegratedGradients(baseline=np.full(6, 0.45)), toy, toys.X, 2)
    assert answer.values == pytest.approx(same.values, abs=1e-5)  # zero is kept in float32
    assert answer.diagnostics["sum"] == pytest.approx(answer.diagnostics["value"], abs=1e-5)
    assert answer.diagnostics["value"] == pytest.approx(toy.logits(toys.X)[2])


def test_a_net_with_biases_is_not_complete_and_says_so() -> None:
    answer = toys.explain(FastIG(), toys.TOY_T, toys.X)
    assert abs(answer.diagnostics["sum"] - answer.diagnostics["value"]) > 0.1


def test_the_comparison_of_isa_turns_the_signs() -> None:
    """On a sure prediction it is minus the gradient of the probability, times the pixels, over two softmaxes."""
    method = FastIG.isa()
    assert METHODS["fig-isa"] == method == FastIG(id="fig-isa", objective=Kind.CE_ON_PROBS, zero=Zero.INPUT)
    isa = toys.explain(method, toys.TOY_T, toys.X, 0, space=NORMALISED).values
    score = toys.explain(GradientXInput(objective=Kind.PROB), toys.TOY_T, toys.X, 0, space=NORMALISED).values
    assert np.corrcoef(isa, score)[0, 1] < -0.9


def test_gradient_times_input_takes_the_input_as_it_is() -> None:
    gradient = toys.TOY_T.pull_back(toys.X, np.eye(3)[1])
    answer = toys.explain(GradientXInput(), toys.TOY_T, toys.X, 1, space=NORMALISED)
    assert answer.values == pytest.approx(toys.X * gradient, abs=1e-15)
    assert answer.diagnostics["sum"] == pytest.approx(toys.X @ gradient)


@pytest.mark.parametrize("method", [FastIG(), GradientXInput()], ids=lambda method: method.id)
def test_one_row_and_no_range(method: FastIG | GradientXInput) -> None:
    program = method(toys.X, toys.task(toys.TOY_T, space=Space.model()))
    (outcome,) = drive([program], toys.model_of(toys.TOY_T))
    assert outcome.rows == {GRADIENT: 1, LOGITS: 0}
    assert method.rows((6,)) == 1
    assert outcome.unwrap().values.any()


def test_parameters_out_of_range() -> None:
    with pytest.raises(UsageError, match="FastIG: zero: expected one of model, input"):
        FastIG(zero="black")
    with pytest.raises(UsageError, match="FastIG: objective"):
        FastIG(objective=Kind.SOFT_CE)
    with pytest.raises(UsageError, match="GradientXInput: objective"):
        GradientXInput(objective=Kind.SOFT_CE)
