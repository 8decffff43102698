"""Inner layers by the public way in: chosen, named, exported; and free of charge for methods that do not ask."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import pytest
import tiny

import onnxplain as ox
from onnxplain.adapters.gradient import differentiate, write
from onnxplain.adapters.gradient.classifier import OUTPUTS, gradient_model, without_layers
from onnxplain.engine.executors.onnxruntime import OnnxRuntimeExecutor
from onnxplain.engine.methods import FullGrad, GradCAM, HiResCAM, IntegratedGradients, LayerCAM, Method, ScoreCAM
from onnxplain.errors import ExecutionError, InvalidModel, PartialGradientWarning, UsageError
from onnxplain.explainer import Explainer
from onnxplain.models.preprocess import PreprocessSpec

SPEC = PreprocessSpec.from_dict(tiny.SPEC)
X = np.random.default_rng(0).random((3, 3, 8, 8), np.float32)
CAMS: list[Method] = [GradCAM(), LayerCAM(), HiResCAM(), ScoreCAM()]
ALL: list[Method] = [*CAMS, FullGrad()]


@pytest.fixture(scope="module")
def explainer():
    with ox.open(tiny.classifier(), preprocess=SPEC) as opened:
        yield opened


@pytest.mark.parametrize("method", ALL, ids=lambda m: m.id)
def test_a_gradient_model_with_layers_explains_as_its_classifier(explainer: Explainer, method: Method) -> None:
    """In memory and from a file; bit for bit."""
    expected = [e.attribution for e in explainer.explain(X, method)]
    made = gradient_model(tiny.classifier(), preprocess=SPEC, layers="auto", bias_gradients=True)
    with ox.open(made) as other:
        for want, got in zip(expected, other.explain(X, method), strict=True):
            np.testing.assert_array_equal(want, got.attribution)


def test_the_layer_is_part_of_where_an_explanation_comes_from(explainer: Explainer) -> None:
    assert [layer["name"] for layer in explainer.layers] == ["b0"]
    for method in ALL:
        (explanation,) = explainer.explain(X[:1], method)
        assert explanation.provenance.get("layer") == (None if isinstance(method, FullGrad) else "b0")
    (plain,) = explainer.explain(X[:1], IntegratedGradients(steps=3))
    assert "layer" not in plain.provenance


def test_several_layers(explainer: Explainer) -> None:
    """By their places; and each is the one that it would be alone."""
    with ox.open(tiny.classifier(), preprocess=SPEC, layers=["a", "b0"]) as both:
        first, second = (both.explain(X, HiResCAM(layer=at)) for at in (0, 1))
    assert [e.provenance["layer"] for e in (*first, *second)] == ["a"] * 3 + ["b0"] * 3
    for got, want in zip(second, explainer.explain(X, HiResCAM()), strict=True):
        np.testing.assert_array_equal(got.attribution, want.attribution)
    with pytest.raises(UsageError, match="layer 1 was asked for, but the model was opened with 1"):
        explainer.explain(X, GradCAM(layer=1))


def test_methods_that_do_not_ask_pay_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """No model with layers is made or started for them, and one that was exported with layers is run without."""
    started: list[list[str]] = []
    start = OnnxRuntimeExecutor.__init__

    def watched(self: OnnxRuntimeExecutor, model: onnx.ModelProto, **how: object) -> None:
        started.append([value.name for value in model.graph.output])
        start(self, model, **how)  # type: ignore[arg-type]

    monkeypatch.setattr(OnnxRuntimeExecutor, "__init__", watched)
    made = gradient_model(tiny.classifier(), preprocess=SPEC, layers="auto", bias_gradients=True)
    for given, how in ((tiny.classifier(), {"preprocess": SPEC}), (made, {})):
        started.clear()
        with ox.open(given, **how) as opened:  # type: ignore[arg-type]
            opened.explain(X, IntegratedGradients(steps=2))
            assert started == [["logits"], list(OUTPUTS)]
            opened.explain(X, GradCAM())
            opened.explain(X, LayerCAM())
            assert len(started) == 3
            opened.explain(X, FullGrad())
            assert len(started) == 4
        started.clear()
        with ox.open(given, **how) as opened:  # type: ignore[arg-type]
            opened.explain(X, GradCAM())
            assert len(started) == 2  # and no plain gradient model


def test_without_layers_a_gradient_model_is_the_one_that_was_never_given_any() -> None:
    plain = gradient_model(tiny.classifier(), preprocess=SPEC)
    more = gradient_model(tiny.classifier(), preprocess=SPEC, layers=["a", "auto"], bias_gradients=True)
    assert [n.op_type for n in without_layers(more).graph.node] == [n.op_type for n in plain.graph.node]
    assert without_layers(plain) is plain


def test_a_gradient_model_that_was_exported_without() -> None:
    """It says what to do, and other methods go on."""
    with ox.open(gradient_model(tiny.classifier(), preprocess=SPEC)) as opened:
        with pytest.raises(UsageError, match=r"without inner layers; next: export it again with --layer auto, or give"):
            opened.explain(X, GradCAM())
        with pytest.raises(UsageError, match="without bias-gradients; next: export it again with --bias-gradients"):
            opened.explain(X, FullGrad())
        opened.explain(X, IntegratedGradients(steps=2))
    with pytest.raises(UsageError, match="layers built in"):
        ox.open(gradient_model(tiny.classifier(), preprocess=SPEC), layers=["a"])


def test_a_model_that_claims_layers_which_it_lacks() -> None:
    made = gradient_model(tiny.classifier(), preprocess=SPEC, layers="auto")
    del made.graph.output[3:]
    with pytest.raises(InvalidModel, match="lacks the output activation_0"):
        ox.open(made)
    made = gradient_model(tiny.classifier(), preprocess=SPEC, bias_gradients=True)
    del made.graph.output[3:]
    with pytest.raises(InvalidModel, match="lacks the output bias_sum"):
        ox.open(made)


def test_errors_of_layers_come_when_a_method_asks() -> None:
    """An unknown name, and a model that has no usual choice, which does for all other methods."""
    with ox.open(tiny.classifier(), preprocess=SPEC, layers=["b00"]) as opened:
        opened.explain(X, IntegratedGradients(steps=2))
        for _ in range(2):
            with pytest.raises(UsageError, match="did you mean b0"):
                opened.explain(X, GradCAM())
    with (
        ox.open(tiny.classifier(), preprocess=SPEC, gradient=False) as opened,
        pytest.raises(UsageError, match="opened forward only"),
    ):
        opened.explain(X, GradCAM())


def test_a_classifier_that_changed_meanwhile(tmp_path: Path) -> None:
    """Its layers would be those of another model."""
    path = tmp_path / "m.onnx"
    onnx.save(tiny.classifier(), path)
    with ox.open(path, preprocess=None) as opened:
        onnx.save(tiny.classifier(softmax=True), path)
        for method in (GradCAM(), FullGrad()):
            with pytest.raises(InvalidModel, match="changed since it was opened"):
                opened.explain(X, method)


def test_a_gradient_that_stops_is_said_once() -> None:
    """When the model is opened, and not again when its layers are made."""
    model = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["" : 18]> net (float[1, 3, 8, 8] x) => (float[1, 4] z)
        <float[4, 3, 1, 1] w = {1, 2, -1, 1, 0, 1, 2, -2, 3, 1, 0, 1}, float[1, 1, 1, 2] places = {0.1, 0.2}>
        {
          a = Conv (x, w) b = GlobalAveragePool (a) odd = GridSample (x, places)
          c = Conv (odd, w) d = Add (b, c) z = Flatten (d)
        }"""
    )
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", PartialGradientWarning)
        opened = ox.open(model, preprocess=None, on_unsupported="stop-gradient")
        with opened:
            assert opened.explain(X[:1], GradCAM())[0].provenance["layer"] == "a"
            assert opened.explain(X[:1], FullGrad())[0].diagnostics["completeness_gap"] > 0.01
    assert [warning.category for warning in caught] == [PartialGradientWarning]


def test_after_closing_nothing_starts() -> None:
    opened = ox.open(tiny.classifier(), preprocess=SPEC)
    opened.close()
    with pytest.raises(ExecutionError, match="closed"):
        opened.explain(X, GradCAM())


# images and heads of other kinds


def kinds() -> dict[str, tuple[onnx.ModelProto, tuple[int, ...]]]:
    def parsed(text: str) -> onnx.ModelProto:
        return onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : 18]> net {text}')

    w = "float[4, {}, 1, 1] w = {{{}}}, float[4, 3] v = {{1, 0, 2, -1, 1, 0, 3, 1, 1, 0, 2, -1}}"
    body = "a = Conv ({}, w) b = Relu (a) p = GlobalAveragePool (b) f = Flatten (p) z = MatMul (f, v)"
    grey, colour = w.format(1, "1, 2, -1, 1"), w.format(3, "1, 2, -1, 1, 0, 1, 2, -2, 3, 1, 0, 1")
    last = "i = Transpose <perm = [0, 3, 1, 2]> (x) "
    batch = "o = ReduceMean <keepdims = 1> (x) x2 = Sub (x, o) "
    return {
        "grey": (parsed(f"(float[N, 1, 8, 8] x) => (float[N, 3] z) <{grey}> {{ {body.format('x')} }}"), (1, 8, 8)),
        "channels last": (
            parsed(f"(float[N, 8, 8, 3] x) => (float[N, 3] z) <{colour}> {{ {last}{body.format('i')} }}"),
            (8, 8, 3),
        ),
        "sigmoid": (
            parsed(f"(float[N, 3, 8, 8] x) => (float[N, 3] y) <{colour}> {{ {body.format('x')} y = Sigmoid (z) }}"),
            (3, 8, 8),
        ),
        "batch of one": (
            parsed(f"(float[1, 3, 8, 8] x) => (float[1, 3] z) <{colour}> {{ {batch}{body.format('x2')} }}"),
            (3, 8, 8),
        ),
    }


@pytest.mark.parametrize("kind", list(kinds()))
@pytest.mark.parametrize("method", ALL, ids=lambda m: m.id)
def test_images_and_heads_of_other_kinds(kind: str, method: Method) -> None:
    """Maps in the image's shape, the same in all channels; FullGrad complete."""
    model, shape = kinds()[kind]
    x = np.random.default_rng(3).random((2, *shape), np.float32)
    with ox.open(model, preprocess=None) as opened:
        explanations = opened.explain(x, method)
        axis = opened.channel_axis
    for explanation in explanations:
        map = explanation.attribution
        assert map.shape == shape
        assert map.any()
        assert (map == map.take([0], axis)).all()
        if isinstance(method, FullGrad):
            assert explanation.diagnostics["completeness_gap"] < 1e-5


def test_channels_last_is_channels_first_turned_round() -> None:
    models = kinds()
    x = np.random.default_rng(3).random((2, 3, 8, 8), np.float32)
    first = onnx.ModelProto()
    first.CopyFrom(models["sigmoid"][0])
    with (
        ox.open(first, preprocess=None, head="softmax") as one,
        ox.open(models["channels last"][0], preprocess=None) as other,
    ):
        for method in ALL:
            if isinstance(method, ScoreCAM):
                continue  # of probabilities
            for a, b in zip(one.explain(x, method), other.explain(np.moveaxis(x, 1, -1), method), strict=True):
                np.testing.assert_allclose(np.moveaxis(b.attribution, -1, 0), a.attribution, rtol=1e-5, atol=1e-6)


def test_layers_in_files_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model whose weights lie beside it is opened, verified and explained with its layers."""
    monkeypatch.setattr(differentiate, "MESSAGE", 4096)
    monkeypatch.setattr(write, "MESSAGE", 4096)
    onnx.save(tiny.classifier(), tmp_path / "m.onnx")
    done = ox.write_gradient_model(
        tmp_path / "m.onnx", tmp_path / "g.onnx", preprocess=None, layers="auto", bias_gradients=True
    )
    assert len(done.files[0].files) == 2
    assert done.verification is not None
    assert done.verification.passed
    assert [layer["name"] for layer in done.layers] == ["b0"]
    with ox.open(tmp_path / "g.onnx") as opened:
        for method in ALL:
            assert opened.explain(X, method)[0].attribution.any()
