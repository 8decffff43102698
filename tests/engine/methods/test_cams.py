"""Methods that look at inner layers: what they refuse, what they tell, and what they cost."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import toys

from onnxplain.engine.drive import Usage, run
from onnxplain.engine.methods import (
    FullGrad,
    GradCAM,
    HiResCAM,
    LayerCAM,
    Method,
    Rescale,
    ScoreCAM,
    Weights,
    from_options,
    to_dict,
)
from onnxplain.engine.methods.maps import bilinear, stretched
from onnxplain.engine.methods.score_cam import CHUNK
from onnxplain.engine.requests import Activations, Kind
from onnxplain.errors import NonFinite, UsageError

TOY = toys.picture_net()
X = np.random.default_rng(0).random((3, 8, 8))
CAMS: list[Method] = [GradCAM(), LayerCAM(), HiResCAM(), ScoreCAM()]
ALL: list[Method] = [*CAMS, FullGrad()]


@pytest.mark.parametrize("method", ALL, ids=lambda m: m.id)
def test_a_vector_is_no_picture(method: Method) -> None:
    with pytest.raises(UsageError, match=r"needs an image of shape \(C,H,W\)"):
        toys.explain(method, toys.TOY_T, toys.X)


@pytest.mark.parametrize("make", [GradCAM, LayerCAM, HiResCAM, ScoreCAM])
def test_layers_that_are_not_there(make: Any) -> None:
    with pytest.raises(UsageError, match="layer 3 was asked for, but the model was opened with 1"):
        toys.explain(make(layer=3), TOY, X)
    for layer in (-1, 0.5, 10**6):
        with pytest.raises(UsageError, match="layer: expected a whole number"):
            make(layer=layer)


@pytest.mark.parametrize("make", [GradCAM, LayerCAM, HiResCAM, ScoreCAM])
def test_objectives_that_are_no_class(make: Any) -> None:
    with pytest.raises(UsageError, match="objective: expected one of logit"):
        make(objective=Kind.LOGIT_L2)


def test_options_as_text() -> None:
    assert from_options("grad-cam", {"layer": "1", "objective": "prob"}) == GradCAM(layer=1, objective=Kind.PROB)
    assert from_options("score-cam", {"weights": "softmax"}) == ScoreCAM(weights=Weights.SOFTMAX)
    assert from_options("fullgrad", {"rescale": "layer", "align_corners": "true"}) == FullGrad(
        rescale=Rescale.LAYER, align_corners=True
    )
    with pytest.raises(UsageError, match="did you mean weights"):
        from_options("score-cam", {"weight": "softmax"})
    with pytest.raises(UsageError, match="expected increase or softmax or score"):
        from_options("score-cam", {"weights": "cic"})


def test_presets_take_changes() -> None:
    assert ScoreCAM.repo(layer=2) == ScoreCAM(id="score-cam-repo", layer=2, weights=Weights.SCORE, upsample_first=True)
    assert to_dict(FullGrad.repo()) == {"rescale": "layer", "align_corners": True}


@pytest.mark.parametrize("method", [GradCAM(), LayerCAM(), HiResCAM(), FullGrad()], ids=lambda m: m.id)
def test_one_row(method: Method) -> None:
    usage = Usage()
    run(method(X, toys.task(TOY)), toys.model_of(TOY), usage=usage)
    assert sum(usage.rows.values()) == method.rows(X.shape) == 1


def test_score_cam_costs_a_forward_row_a_channel() -> None:
    """Of 40 channels, in pieces; one row for the layer and one for the image that says nothing."""
    toy = toys.tanh_net(np.random.default_rng(0).normal(size=(160, 192)) / 9, np.zeros(160), np.ones((3, 160)), X.shape)
    usage = Usage()
    answer = run(ScoreCAM()(X, toys.task(toy)), toys.model_of(toy), usage=usage)
    assert dict(usage.rows) == {"logits": 41, "gradient": 0, "layers": 1}
    assert CHUNK < 40
    assert answer.diagnostics["channels"] == 40
    assert answer.diagnostics["constant_channels"] == 0


@pytest.mark.parametrize("method", [ScoreCAM(), ScoreCAM(weights=Weights.SOFTMAX), ScoreCAM.repo()], ids=lambda m: m.id)
def test_score_cam_passes_over_constant_channels(method: ScoreCAM) -> None:
    """All of them: the map is zero, and the diagnostics say so."""
    toy = toys.tanh_net(np.zeros((16, 192)), np.zeros(16), np.ones((4, 16)), X.shape)
    usage = Usage()
    answer = run(method(X, toys.task(toy)), toys.model_of(toy), usage=usage)
    assert not answer.values.any()
    assert (answer.diagnostics["channels"], answer.diagnostics["constant_channels"]) == (4, 4)
    assert usage.rows["logits"] == 1


def test_baseline_of_score_cam_cancels_in_its_softmax() -> None:
    """softmax(S - b) = softmax(S): what Algorithm 1 subtracts changes nothing."""
    method = ScoreCAM(weights=Weights.SOFTMAX)
    scores = np.random.default_rng(0).normal(size=7)
    assert method.weigh(scores, 3.0) == pytest.approx(method.weigh(scores, 0.0), abs=1e-15)
    assert method.weigh(scores, 3.0).sum() == pytest.approx(1)


def test_hires_cam_sums_to_the_logit_behind_a_linear_head() -> None:
    """Before it is enlarged: F minus the bias, which the toy has none of."""
    answer = toys.explain(HiResCAM(), TOY, X, 2)
    assert answer.diagnostics["sum"] == pytest.approx(TOY.logits(X)[2], abs=1e-12)


def test_fullgrad_tells_what_is_missing() -> None:
    """A model that has something beside its layers which nobody accounts for."""
    lossy = replace(TOY, biases=lambda x, v: (TOY.beside(x, v)[0], 1.0))
    answer = toys.explain(FullGrad(), lossy, X, 1)
    value = TOY.logits(X)[1]
    assert answer.diagnostics["completeness_gap"] == pytest.approx(1 / abs(value))
    assert answer.diagnostics["sum"] == pytest.approx(value + 1)


def test_a_class_may_be_weights() -> None:
    """Two classes against each other: by linearity the difference of their HiResCAMs."""
    one, other = (toys.explain(HiResCAM(), TOY, X, t).values for t in (0, 2))
    both = toys.explain(HiResCAM(), TOY, X, np.array([1.0, 0, -1, 0]))
    assert both.values == pytest.approx(one - other, abs=1e-12)


@pytest.mark.parametrize("method", ALL, ids=lambda m: m.id)
def test_nan_inside_is_an_error(method: Method) -> None:
    """Also where logits and input gradient are finite."""

    def spoilt(x: toys.Array, v: toys.Array) -> Any:
        return np.full((4, 2, 2), np.nan), np.ones((4, 2, 2))

    def gone(x: toys.Array, v: toys.Array) -> Any:
        return [np.full((4, 2, 2), np.inf)], 0.0

    toy = replace(TOY, layer=spoilt, biases=gone)
    with pytest.raises(NonFinite, match="inner layers at request 1"):
        toys.explain(method, toy, X)


def test_a_forward_model_has_no_layers() -> None:
    from onnxplain.engine.drive import forward_model

    model = forward_model(lambda x: x.reshape(len(x), -1)[:, :3], X[None])
    for method, words in ((GradCAM(), "inner layers are needed"), (FullGrad(), "bias-gradients are needed")):
        with pytest.raises(UsageError, match=words):
            run(method(X, toys.task(TOY)), model)


def test_activations_answer_in_rows() -> None:
    """Several points at once, over several batches."""
    rows = np.random.default_rng(1).random((11, 3, 8, 8))

    def program() -> Any:
        return (yield Activations(rows, toys.task(TOY, 1).objective(Kind.LOGIT)))

    answer = run(program(), toys.model_of(TOY, batch_size=4))
    for at, x in enumerate(rows):
        a, g = TOY.inside(x, np.eye(4)[1])
        assert (answer.activations[0][at] == a).all()
        assert (answer.gradients[0][at] == g).all()
        assert (answer.gradient[at] == TOY.pull_back(x, np.eye(4)[1])).all()
    assert answer.value == pytest.approx(answer.logits[:, 1])


# maps


def test_bilinear_keeps_what_is_linear() -> None:
    """Both conventions, up and down; with corners aligned the corners stay."""
    ramp = np.add.outer(np.arange(5.0), 10 * np.arange(4.0))
    corners = bilinear(ramp, (9, 10), align_corners=True)
    assert corners == pytest.approx(np.add.outer(np.linspace(0, 4, 9), 10 * np.linspace(0, 3, 10)))
    rows, columns = (np.clip((np.arange(n) + 0.5) * m / n - 0.5, 0, m - 1) for n, m in ((9, 5), (10, 4)))
    assert bilinear(ramp, (9, 10)) == pytest.approx(np.add.outer(rows, 10 * columns))
    assert (bilinear(ramp, (5, 4)) == ramp).all()
    assert (bilinear(np.ones((1, 1)), (3, 4)) == 1).all()
    assert bilinear(ramp.astype(np.float32), (7, 7)).dtype == np.float32
    assert bilinear(ramp, (1, 1), align_corners=True) == pytest.approx(ramp[:1, :1])


def test_stretched_leaves_no_noise_of_a_constant() -> None:
    m = np.stack([np.arange(4.0).reshape(2, 2), np.full((2, 2), 3.0), np.full((2, 2), 0.0)])
    m[1, 0, 0] += 4e-16
    out = stretched(m, (1, 2))
    assert (out[0] == m[0] / 3).all()
    assert not out[1:].any()
    assert stretched(np.float32([[1, 3]])).dtype == np.float32
