"""DeepLIFT as users meet it: what it is opened with, what holds multipliers and what does not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from tiny import Place, classifier

import onnxplain as ox
from onnxplain.engine.methods import METHODS, DeepLift, IntegratedGradients, Saliency
from onnxplain.errors import InvalidModel, UsageError

X = np.random.default_rng(0).random((2, 3, 8, 8)).astype(np.float32)


def test_a_classifier_is_explained() -> None:
    """Its attributions sum to the change; the multipliers are made when they are first asked for."""
    with ox.open(classifier(), preprocess=None, range=(0, 1)) as explainer:
        explainer.explain(X, Saliency())
        assert "multipliers" not in explainer.model.executors
        for explanation in explainer.explain(X, DeepLift(), target=1):
            assert explanation.diagnostics["completeness_gap"] < 1e-5
            assert explanation.method == "deeplift"
        assert explainer.usage.rows["multipliers"] == 2


def test_images_keep_their_references_in_any_batch() -> None:
    """Rows of one batch have references of their own."""
    with ox.open(classifier(), preprocess=None, range=(0, 1), batch_size=3) as explainer:
        methods = [DeepLift(baseline=np.full((3, 8, 8), level, np.float32)) for level in (0.0, 0.25, 1.0)]
        together = [explainer.explain(X, method, target=0) for method in methods]
        for method, answers in zip(methods, together, strict=True):
            for x, answer in zip(X, answers, strict=True):
                (alone,) = explainer.explain(x[None], method, target=0)
                assert (alone.attribution == answer.attribution).all()
    assert len({answers[0].attribution.tobytes() for answers in together}) == 3


def test_a_model_of_multipliers_is_opened(tmp_path: Path) -> None:
    """It gives logits and multipliers, and no gradients."""
    made = ox.gradient_model(classifier(), rules=ox.DEEPLIFT)
    with ox.open(classifier(), preprocess=None, range=(0, 1)) as explainer:
        expected = explainer.explain(X, DeepLift(), target=1)
    onnx.save(made, tmp_path / "m.onnx")
    for model in (made, tmp_path / "m.onnx"):
        with ox.open(model, range=(0, 1)) as explainer:
            for ours, theirs in zip(explainer.explain(X, DeepLift(), target=1), expected, strict=True):
                assert (ours.attribution == theirs.attribution).all()
            with pytest.raises(UsageError, match="no gradients; next: give the classifier"):
                explainer.explain(X, IntegratedGradients(steps=2))
    assert ox.inspect(tmp_path / "m.onnx").problems == []
    with pytest.raises(UsageError, match="holds multipliers"):
        ox.verify(tmp_path / "m.onnx")


def test_a_gradient_model_has_no_multipliers() -> None:
    with ox.open(ox.gradient_model(classifier()), range=(0, 1)) as explainer:
        with pytest.raises(UsageError, match=r"next: give the classifier, or .*rules=onnxplain.DEEPLIFT"):
            explainer.explain(X, DeepLift())
        explainer.explain(X, Saliency())
    forward = ox.open(classifier(), preprocess=None, range=(0, 1), gradient=False)
    with forward as explainer, pytest.raises(UsageError, match="forward only"):
        explainer.explain(X, DeepLift())


def test_a_model_that_says_it_has_a_reference_and_has_none() -> None:
    made = ox.gradient_model(classifier())
    onnx.helper.set_model_props(made, {p.key: p.value for p in made.metadata_props} | {"onnxplain.rules": "deeplift"})
    with pytest.raises(InvalidModel, match="lacks the input onnxplain_reference"):
        ox.open(made, range=(0, 1))


def test_export_by_the_rules(tmp_path: Path) -> None:
    """Multipliers are no derivative of the logits, so that they cannot be verified as one."""
    place = Place(tmp_path)
    onnx.save(classifier(), place.model)
    out = tmp_path / "out.onnx"
    how = {"preprocess": None, "rules": ox.DEEPLIFT}
    with pytest.raises(UsageError, match="verify=False"):
        ox.write_gradient_model(place.model, out, **how)
    ox.write_gradient_model(place.model, out, verify=False, **how)
    assert [v.name for v in onnx.load(out).graph.input][1] == "onnxplain_reference"


def test_the_baseline_is_that_of_integrated_gradients() -> None:
    with pytest.raises(UsageError, match="DeepLIFT: baseline"):
        DeepLift(baseline="black")  # type: ignore[arg-type]
    assert METHODS["deeplift"] == DeepLift()
