"""The public way in: `open`, and what an `Explainer` promises."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import tiny
from conformance.methods import ROWS
from conformance.methods.laws import needs_sklearn
from frameworks import framework

import onnxplain as ox
from onnxplain.adapters.gradient.classifier import gradient_model
from onnxplain.adapters.gradient.registry import DEFAULT
from onnxplain.engine.executors.setup import Precision
from onnxplain.engine.methods import CrediblePath, Method, Saliency, forward_only
from onnxplain.engine.requests import Kind
from onnxplain.errors import ExecutionError, FeedMismatch, InvalidModel, NonFinite, NotDifferentiable, UsageError
from onnxplain.models.preprocess import PreprocessSpec, normalise

SPEC = PreprocessSpec.from_dict(tiny.SPEC)
X = np.random.default_rng(0).random((7, 3, 8, 8), np.float32)

# one of each, small: with loops that depend on the data, and with random numbers
SMALL: list[Method] = [row.make() for row in ROWS.values()]


@pytest.fixture(scope="module")
def explainer():
    with ox.open(tiny.classifier(), preprocess=SPEC) as opened:
        yield opened


@pytest.mark.parametrize("method", SMALL, ids=lambda method: method.id)
def test_an_image_gives_the_same_attribution_alone_and_in_any_company(explainer, method: Method) -> None:
    """Bit for bit, through ONNX Runtime: whatever the batch size, the order and the other images."""
    if needs_sklearn(method):
        framework("sklearn")
    alone = [explainer.explain(x[None], method)[0].attribution for x in X]
    for batch_size, order in ((1, [0, 1, 2]), (2, [3, 2, 1, 0]), (5, [6, 0, 5, 1, 4, 2, 3])):
        with ox.open(tiny.classifier(), preprocess=SPEC, batch_size=batch_size) as other:
            together = other.explain(X[order], method)
        for i, explanation in zip(order, together, strict=True):
            np.testing.assert_array_equal(explanation.attribution, alone[i])


def test_another_seed_draws_other_points(explainer) -> None:
    method = CrediblePath(kernels=(3,), steps=4, max_iter=2, validity=None)
    first, again, other = (explainer.explain(X[:1], method, seed=seed)[0].attribution for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


def test_what_a_model_is_given_as_makes_no_difference(tmp_path: Path) -> None:
    """A path with its sidecar, a ModelProto, an onnx-ir model, and the gradient model of each."""
    model = tiny.classifier()
    path = tmp_path / "m.onnx"
    onnx.save(model, path)
    (tmp_path / "m.preprocessor_config.json").write_text(json.dumps(tiny.SPEC))
    made = gradient_model(model, preprocess=SPEC)
    onnx.save(made, tmp_path / "g.onnx")
    results = []
    for given, options in (
        (path, {}),
        (str(path), {"preprocess": tmp_path / "m.preprocessor_config.json"}),
        (model, {"preprocess": SPEC}),
        (ir.from_proto(model), {"preprocess": SPEC}),
        (made, {}),
        (tmp_path / "g.onnx", {}),
    ):
        with ox.open(given, **options) as opened:
            results.append((opened.logits(X), opened.gradients(X).gradient))
    for logits, gradient in results[1:]:
        np.testing.assert_array_equal(logits, results[0][0])
        np.testing.assert_array_equal(gradient, results[0][1])


def test_pixel_space_and_model_space_differ_by_the_normalisation_alone(explainer) -> None:
    """Logits agree; by the chain rule gradients differ by the scale, channels reversed (the model is BGR)."""
    with ox.open(tiny.classifier(), preprocess=None) as raw:
        there = raw.gradients(normalise(X, SPEC), target=2)
        assert raw.provenance["space"] == "model"
    here = explainer.gradients(X, target=2)
    np.testing.assert_allclose(here.logits, there.logits, rtol=1e-5, atol=1e-5)
    scale = np.asarray(SPEC.space().scale, np.float32)
    np.testing.assert_allclose(here.gradient, there.gradient[:, ::-1] / scale, rtol=1e-4, atol=1e-6)


def test_targets_come_in_every_form(explainer) -> None:
    """None is the predicted class; weights that are one-hot are a class."""
    predicted = explainer.logits(X).argmax(axis=1)
    by_none, by_list = explainer.gradients(X), explainer.gradients(X, target=list(predicted))
    by_rows = explainer.gradients(X, target=np.eye(5, dtype=np.float32)[predicted])
    np.testing.assert_array_equal(by_none.gradient, by_list.gradient)
    np.testing.assert_array_equal(by_none.gradient, by_rows.gradient)
    np.testing.assert_allclose(by_none.value, explainer.logits(X).max(axis=1), rtol=1e-6)
    one = explainer.explain(X[:1], Saliency(), target=np.array([[1, -1, 0, 0, 0]], np.float32))[0]
    margin = explainer.gradients(X[:1], target=0).gradient - explainer.gradients(X[:1], target=1).gradient
    np.testing.assert_allclose(one.attribution, np.abs(margin[0]), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", [Kind.PROB, "logprob", "ce"])
def test_an_objective_goes_by_its_kind_or_its_name(explainer, kind) -> None:
    """ce = -log p, and p' = p (log p)'."""
    p = np.exp(explainer.gradients(X, target=1, objective="logprob").value)
    log = explainer.gradients(X, target=1, objective="logprob").gradient
    factor = {Kind.PROB: p, "logprob": np.ones(7), "ce": -np.ones(7)}[kind].reshape(-1, 1, 1, 1)
    found = explainer.gradients(X, target=1, objective=kind).gradient
    np.testing.assert_allclose(found, factor * log, rtol=1e-4, atol=1e-6)


def test_stream_reads_images_lazily_and_names_the_bad_one(explainer) -> None:
    """Only as many images are read as fill a batch; a NaN ends its own image, and its error says which."""
    read = []

    def images():
        for i in range(100):
            read.append(i)
            yield np.full((3, 8, 8), np.nan, np.float32) if i == 1 else X[i % 7]

    outcomes = explainer.stream(images(), Saliency())
    first = [next(outcomes) for _ in range(5)]
    assert len(read) < 50
    (bad,) = [outcome for outcome in first if outcome.error is not None]
    assert isinstance(bad.error, NonFinite)
    assert str(bad.error).startswith("image 1: the model gave NaN or Inf in its logits")
    outcomes.close()
    with pytest.raises(NonFinite, match="image 2"):
        explainer.explain(np.stack([X[0], X[1], np.full_like(X[0], np.nan)]), Saliency())


@pytest.mark.parametrize("sound", [True, False])
def test_a_batch_fixed_at_one_is_made_free_or_run_row_by_row(sound: bool) -> None:
    """It stays where samples might meet: here in an operator that nobody knows to keep them apart."""
    model = tiny.classifier()
    fixed = tiny.classifier()
    for value in (*fixed.graph.input, *fixed.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 1
    if not sound:
        fixed.graph.node[-1].output[0] = "straight"
        for name, perm in (("turned", "straight"), ("logits", "turned")):
            fixed.graph.node.append(onnx.helper.make_node("Transpose", [perm], [name], perm=[1, 0]))
    with ox.open(model, preprocess=SPEC) as free, ox.open(fixed, preprocess=SPEC) as one:
        np.testing.assert_allclose(free.gradients(X).gradient, one.gradients(X).gradient, rtol=1e-4, atol=1e-6)
        assert one.usage.calls["gradient"] == (1 if sound else len(X))
        assert ("is free" if sound else "stays fixed at 1") in one.notes[0]


def test_scoring_needs_no_gradient_rules(monkeypatch: pytest.MonkeyPatch) -> None:
    """A classifier with a gap is refused, with all gaps, unless it is opened forward only."""
    monkeypatch.delitem(DEFAULT, "Sin")
    model = tiny.classifier()
    model.graph.node[1].op_type = "Sin"
    with pytest.raises(NotDifferentiable, match="Sin"):
        ox.open(model, preprocess=SPEC)
    with ox.open(model, preprocess=SPEC, gradient=False) as forward:
        assert forward.logits(X).shape == (7, 5)
        with pytest.raises(UsageError, match="forward only"):
            forward.gradients(X)
        with pytest.raises(UsageError, match="forward only"):
            forward.explain(X, Saliency())


def test_these_methods_ask_no_gradient() -> None:
    assert {method.id for method in SMALL if forward_only(method)} == {
        "rise", "rise-repo", "occlusion", "lime", "lime-repo", "kernel-shap"
    }  # fmt: skip


@pytest.mark.parametrize("method", [*filter(forward_only, SMALL)], ids=lambda method: method.id)
def test_forward_only_methods_need_no_gradient(monkeypatch: pytest.MonkeyPatch, method: Method) -> None:
    """They explain a classifier with a gap, and start no session for a gradient where there is one; and agree."""
    if needs_sklearn(method):
        framework("sklearn")
    with ox.open(tiny.classifier(), preprocess=SPEC) as opened:
        expected = opened.explain(X[:2], method)[1].attribution
        assert len(opened._opened) == 1
        assert opened.usage.calls["gradient"] == 0
    monkeypatch.delitem(DEFAULT, "Relu")
    with pytest.raises(NotDifferentiable, match="Relu"):
        ox.open(tiny.classifier(), preprocess=SPEC)
    with ox.open(tiny.classifier(), preprocess=SPEC, gradient=False) as forward:
        np.testing.assert_allclose(forward.explain(X[:2], method)[1].attribution, expected, atol=1e-5)


def test_a_range_makes_pixel_units_of_a_model_without_preprocessing() -> None:
    with ox.open(tiny.classifier(), preprocess=None) as unknown, pytest.raises(UsageError, match="range"):
        unknown.explain(X, ox.methods.ISA(k=50))
    with ox.open(tiny.classifier(), preprocess=None, range=(0, 255)) as known:
        assert known.explain(255 * X[:1], ox.methods.ISA(k=50, t1=1, t2=1))[0].attribution.any()
    with pytest.raises(UsageError, match="leave range out"):
        ox.open(tiny.classifier(), preprocess=SPEC, range=(0, 1))


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda e: e.logits(X[0]), FeedMismatch, "expected floats of shape"),
        (lambda e: e.logits((255 * X).astype(np.uint8)), FeedMismatch, "uint8"),
        (lambda e: e.gradients(X, target=5), UsageError, "target 5 is out of range: the model has 5 classes"),
        (lambda e: e.gradients(X, target=[1, 2]), UsageError, "expected one for each of 7 images, got 2"),
        (lambda e: e.explain(255 * X, Saliency()), FeedMismatch, "image 0: pixels from .* takes 0 to 1"),
        (lambda e: e.explain(X, "ig"), UsageError, "expected one of methods"),
        (lambda e: e.explain(X, Saliency), UsageError, "expected one of methods"),
        (lambda e: e.gradients(X[:1], target=[1.9]), UsageError, "expected None, a class"),
        (lambda e: e.gradients(X[:1], target=True), UsageError, "expected None, a class"),
        (lambda e: e.gradients(X[:0]), UsageError, "at least one image"),
        (lambda e: e.gradients(X, objective="loss"), UsageError, "objective 'loss' is unknown"),
        (lambda e: ox.open(tiny.classifier(), on="gpu"), UsageError, "device 'gpu' is unknown; next: use one of cpu, "),
        (lambda e: ox.open(tiny.classifier(), precision="int8"), UsageError, "precision 'int8' is unknown"),
        (lambda e: ox.open(tiny.classifier()), UsageError, "no preprocessing found"),
        (lambda e: ox.open(tiny.classifier(inputs=2), preprocess=None), InvalidModel, "expected one image input"),
    ],
)
def test_mistakes_are_told(explainer, call, error, words) -> None:
    with pytest.raises(error, match=words):
        call(explainer)


def test_threads_may_share_an_explainer(explainer) -> None:
    """They take turns on its buffers: every thread gets the numbers that it would get alone."""
    alone = [explainer.explain(x[None], SMALL[1])[0].attribution for x in X]
    logits = explainer.logits(X)
    with ThreadPoolExecutor(4) as pool:
        together = pool.map(lambda x: explainer.explain(x[None], SMALL[1])[0].attribution, list(X) * 4)
        rows = pool.map(lambda x: explainer.logits(x[None])[0], list(X) * 40)
        for i, attribution in enumerate(together):
            np.testing.assert_array_equal(attribution, alone[i % 7])
        for i, row in enumerate(rows):
            np.testing.assert_array_equal(row, logits[i % 7])


def test_nothing_runs_after_closing() -> None:
    opened = ox.open(tiny.classifier(), preprocess=SPEC)
    assert opened.logits(X).shape == (7, 5)
    assert opened.usage.rows["logits"] == 7
    opened.close()
    opened.close()
    for call in (opened.logits, opened.gradients):
        with pytest.raises(ExecutionError, match="closed"):
            call(X)


def test_channels_last_models_say_where_their_channels_are() -> None:
    """(N, H, W, C) without preprocessing: the attribution has that layout, its heatmap is (H, W)."""
    model = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["" : 18]> last (float[N, 8, 9, 3] x) => (float[N, 4] z)
        { t = Transpose<perm = [0, 3, 1, 2]>(x) p = GlobalAveragePool(t) f = Flatten(p)
          w = Constant<value = float[3, 4] {1,2,3,4,-5,6,7,8,9,-1,2,3}>() z = MatMul(f, w) }"""
    )
    with ox.open(model, preprocess=None) as opened:
        (explanation,) = opened.explain(np.ones((1, 8, 9, 3), np.float32), Saliency())
    assert explanation.attribution.shape == (8, 9, 3)
    assert explanation.heatmap().shape == (8, 9)


@pytest.mark.parametrize("kind", Kind)
def test_no_objective_depends_on_the_batch(kind: Kind) -> None:
    """Bit for bit: their sums over classes are the same for a batch of one."""
    with ox.open(tiny.classifier(), preprocess=SPEC) as one:
        target = np.full((len(X), one.forward.classes), 1 / one.forward.classes, np.float32)
        together = one.gradients(X, target, kind)
        for i, x in enumerate(X):
            alone = one.gradients(x[None], target[i : i + 1], kind)
            assert (alone.value, alone.gradient.tobytes()) == (together.value[i], together.gradient[i].tobytes())


def test_precision_is_that_of_the_graph_and_is_said() -> None:
    """What is asked for is what runs; a gradient model that was written in half precision runs in it unasked."""
    made = gradient_model(tiny.classifier(), preprocess=SPEC)
    half = ox.in_precision(made, Precision.FP16)
    with (
        ox.open(tiny.classifier(), preprocess=SPEC) as wide,
        ox.open(tiny.classifier(), preprocess=SPEC, precision="fp16") as narrow,
        ox.open(half) as unasked,
    ):
        full, asked, found = (each.gradients(X, target=0).gradient for each in (wide, narrow, unasked))
        assert [each.provenance["precision"] for each in (wide, narrow, unasked)] == ["fp32", "fp16", "fp16"]
        np.testing.assert_array_equal(asked, found)
        assert (asked != full).any()
        np.testing.assert_allclose(asked, full, atol=0.02 * np.abs(full).max())  # some twenty roundings of 2^-11
    with pytest.raises(UsageError, match="the model computes in fp16, not in fp32; next: ask for fp16"):
        ox.open(half, precision="fp32")
