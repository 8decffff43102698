"""Images of other kinds, from photo to score: channels last, grey, integers, half precision, sizes left open."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import pytest
import tiny
from frameworks import framework
from PIL import Image

import onnxplain as ox
from onnxplain.adapters.gradient.classifier import gradient_model
from onnxplain.engine.methods import CrediblePath, IntegratedGradients, Method, Saliency
from onnxplain.engine.metrics import InsertionDeletion
from onnxplain.engine.requests import Head, Kind
from onnxplain.errors import InputError, InvalidModel, UsageError
from onnxplain.explainer import Explainer
from onnxplain.models.preprocess import PreprocessSpec, load_image

SPEC = PreprocessSpec.from_dict(tiny.SPEC)
GREY = PreprocessSpec(size=(8, 8), image_mean=(0.1307,), image_std=(0.3081,), image_mode="L")
X = np.random.default_rng(0).random((3, 3, 8, 8), np.float32)
METHODS: list[Method] = [
    ox.methods.ISA(k=50, t1=2, t2=3), CrediblePath(kernels=(3, 5), steps=10, max_iter=4), IntegratedGradients(steps=5),
    Saliency(), ox.methods.Occlusion(window=3, stride=2),
]  # fmt: skip


def before(model: onnx.ModelProto, text: str, shape: str, dtype: str = "float") -> onnx.ModelProto:
    """A classifier with something in front of it, which makes its image `x` of `image`."""
    front = onnx.parser.parse_graph(f"front ({dtype}{shape} image) => (float[N, 3, 8, 8] x) {{ {text} }}")
    made = onnx.ModelProto()
    made.CopyFrom(model)
    made.graph.input[0].CopyFrom(front.input[0])
    nodes = [*front.node, *made.graph.node]
    del made.graph.node[:]
    made.graph.node.extend(nodes)
    return made


LAST = before(tiny.classifier(), "x = Transpose<perm = [0, 3, 1, 2]>(image)", "[N, 8, 8, 3]")


def grey_model(shape: str = "[N, 1, 8, 8]") -> onnx.ModelProto:
    text = "x = Concat<axis = 1>(image, image, image)"
    if shape.endswith("1]") and not shape.startswith("[N, 1"):
        text = "t = Transpose<perm = [0, 3, 1, 2]>(image) x = Concat<axis = 1>(t, t, t)"
    return before(tiny.classifier(), text, shape)


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    pixels = np.random.default_rng(7).integers(0, 256, (12, 10, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.id)
@pytest.mark.parametrize("preprocess", [SPEC, None], ids=["pixel", "model"])
def test_channels_last_is_the_same_image_in_another_layout(method: Method, preprocess: PreprocessSpec | None) -> None:
    """Logits bit for bit; attributions have the input's layout, and agree with those of the model channels first.

    But for ISA, whose eliminations go by the order of the features where scores are equal.
    """
    how = {"preprocess": preprocess} | ({} if preprocess else {"range": (0.0, 1.0)})
    with ox.open(tiny.classifier(), **how) as first, ox.open(LAST, **how) as last:
        assert last.channel_axis == -1
        assert last.image_size == (8, 8)
        np.testing.assert_array_equal(first.logits(X), last.logits(X.transpose(0, 2, 3, 1)))
        ours, theirs = last.explain(X.transpose(0, 2, 3, 1), method), first.explain(X, method)
    for a, b in zip(ours, theirs, strict=True):
        assert a.attribution.shape == (8, 8, 3)
        assert a.channel_axis == -1
        if method.id == "credible":
            assert np.isfinite(a.attribution).all()  # its random points depend on the bytes of the image
        else:
            np.testing.assert_allclose(np.moveaxis(a.attribution, -1, 0), b.attribution, rtol=1e-3, atol=1e-4)
            np.testing.assert_allclose(a.heatmap(), b.heatmap(), rtol=1e-3, atol=1e-4)


def test_superpixels_of_a_model_with_channels_last_and_of_a_grey_one() -> None:
    """All 14 coalitions of four superpixels, do not depend on the layout; draws do."""
    framework("sklearn")
    cut = np.add.outer(2 * (np.arange(8) // 4), np.arange(8) // 4)
    exact, drawn = ox.methods.KernelSHAP(segments=cut), ox.methods.LIME(segments=cut, samples=40)
    with ox.open(tiny.classifier(), preprocess=SPEC) as first, ox.open(LAST, preprocess=SPEC) as last:
        for a, b in zip(last.explain(X.transpose(0, 2, 3, 1), exact), first.explain(X, exact), strict=True):
            np.testing.assert_allclose(np.moveaxis(a.attribution, -1, 0), b.attribution, rtol=1e-3, atol=1e-4)
        assert last.explain(X.transpose(0, 2, 3, 1), drawn)[0].attribution.shape == (8, 8, 3)
    for shape in ("[N, 1, 8, 8]", "[N, 8, 8, 1]"):
        with ox.open(grey_model(shape), preprocess=GREY, gradient=False) as grey:
            x = X[:1, :1].reshape(1, *grey.forward.image_shape)
            for method in (exact, drawn, ox.methods.RISE(masks=20)):
                map = grey.explain(x, method)[0].attribution
                assert map.shape == x.shape[1:]
                assert map.any()


def test_photos_and_scores_of_a_model_with_channels_last(photo: Path, tmp_path: Path) -> None:
    """The heatmap file has the channels first, and is scored alike by both models; so is a plain array."""
    with ox.open(tiny.classifier(), preprocess=SPEC) as first, ox.open(LAST, preprocess=SPEC) as last:
        scores = []
        for explainer, name in ((first, "first.npz"), (last, "last.npz")):
            (outcome,) = ox.explain_photos(explainer, [photo], [IntegratedGradients(steps=5)])
            explanation = outcome.unwrap()
            explanation.save(tmp_path / name)
            assert explanation.overlay().shape == (8, 8, 3)
            again = ox.Explanation.load(tmp_path / name)
            np.testing.assert_array_equal(again.attribution, explanation.attribution)
            np.save(tmp_path / "plain.npy", np.moveaxis(explanation.attribution, explanation.channel_axis, 0))
            files = [tmp_path / name, tmp_path / "plain.npy"]
            for protocol in ("rise", "agi_isa-union"):
                metric = InsertionDeletion(ox.metrics.Protocol.named(protocol, 8))
                played = ox.score_heatmaps(explainer, files, [metric], photos=[photo])
                rows = [row for outcome in played for row in outcome.unwrap().rows]
                scores.append([row["value"] for row in rows])
        assert np.load(tmp_path / "first.npz")["attribution"].shape == (3, 8, 8)
        assert np.load(tmp_path / "last.npz")["attribution"].shape == (3, 8, 8)
    np.testing.assert_allclose(scores[:2], scores[2:], rtol=1e-5, atol=1e-6)
    assert last.provenance["space"] == "pixel"
    assert last.provenance["head"] == "softmax"


@pytest.mark.parametrize("shape", ["[N, 1, 8, 8]", "[N, 8, 8, 1]"])
def test_grey_images(shape: str, photo: Path) -> None:
    """One channel in [0, 1]; a photo becomes grey as Pillow does it, and its three channels are shown."""
    with ox.open(grey_model(shape), preprocess=GREY) as explainer, ox.open(grey_model(shape), preprocess=None) as raw:
        (outcome,) = ox.explain_photos(explainer, [photo], [Saliency(signed=True)])
        explanation = outcome.unwrap()
        assert explanation.attribution.size == 64
        assert explanation.heatmap().shape == (8, 8)
        grey = np.asarray(Image.open(photo).convert("L").resize((8, 8), Image.Resampling.BILINEAR))
        np.testing.assert_array_equal(explanation.image, np.repeat(grey[..., None], 3, axis=2))
        x = explainer.to_input(load_image(photo, GREY))
        assert x.shape == explainer.forward.image_shape
        np.testing.assert_array_equal(x.reshape(8, 8), grey.astype(np.float32) / 255)
        np.testing.assert_allclose(
            explainer.logits(x[None]), raw.logits((x[None] - np.float32(0.1307)) / np.float32(0.3081)), rtol=1e-4
        )
        for method in METHODS:
            assert explainer.explain(x[None], method)[0].attribution.shape == x.shape
    with pytest.raises(UsageError, match="image_mode: L"):
        ox.open(grey_model(shape), preprocess=SPEC)


def test_specifications_of_grey_images(tmp_path: Path) -> None:
    """One mean in a list, or the mode; timm by its input size. What contradicts itself is refused."""
    given = {"size": 8, "resample": 2, "image_mean": [0.5], "image_std": [0.25]}
    spec = PreprocessSpec.from_dict(given)
    assert (spec.image_mode, spec.image_mean, spec.channels) == ("L", (0.5,), 1)
    assert PreprocessSpec.from_dict(spec.to_dict()) == spec
    mode = {"size": 8, "resample": 2, "image_mode": "L"}
    assert PreprocessSpec.from_dict(mode).image_std == (1.0,)
    timm = {"input_size": [1, 8, 8], "interpolation": "bilinear", "crop_pct": 1.0, "mean": [0.5], "std": [0.25]}
    assert PreprocessSpec.from_timm({"pretrained_cfg": timm}).image_mode == "L"
    for wrong in (
        given | {"image_std": [0.1, 0.2, 0.3]}, given | {"image_mode": "RGB"}, given | {"image_mode": "CMYK"},
        given | {"do_flip_channel_order": True},
    ):  # fmt: skip
        with pytest.raises(InputError, match="expected"):
            PreprocessSpec.from_dict(wrong)


def test_an_image_of_bytes_becomes_floats_behind_its_cast(tmp_path: Path, photo: Path) -> None:
    """uint8 and channels last, as TensorFlow exports it: the same numbers as the model gives for the bytes."""
    text = "i = Cast<to = 1>(image) k = Constant<value_float = 255.0>() d = Div(i, k) "
    model = before(tiny.classifier(), text + "x = Transpose<perm = [0, 3, 1, 2]>(d)", "[N, 8, 8, 3]", "uint8")
    path = tmp_path / "bytes.onnx"
    onnx.save(model, path)
    spec = {"size": {"height": 8, "width": 8}, "resample": 2, "do_rescale": False, "do_normalize": False}
    (tmp_path / "bytes.preprocessor_config.json").write_text(json.dumps(spec))
    done = ox.write_gradient_model(path, tmp_path / "g.onnx")
    assert done.difference is not None
    assert done.difference < 1e-4
    assert "the input image is float32; the classifier's is uint8" in done.notes
    with ox.open(tmp_path / "g.onnx") as explainer, ox.open(tiny.classifier(), preprocess=None) as plain:
        x = explainer.to_input(load_image(photo, explainer.preprocess))[None]
        np.testing.assert_allclose(explainer.logits(x), plain.logits(x.transpose(0, 3, 1, 2)), rtol=1e-4, atol=1e-5)
        want = plain.gradients(x.transpose(0, 3, 1, 2), target=1).gradient
        got = explainer.gradients(x, target=1).gradient
        np.testing.assert_allclose(got.transpose(0, 3, 1, 2), want, rtol=1e-3, atol=1e-5)
    with ox.open(path, preprocess=None) as units:
        np.testing.assert_allclose(units.logits(255 * x), explainer_logits(model, x), rtol=1e-4, atol=1e-5)


def explainer_logits(model: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    from onnxplain.engine.executors.onnxruntime import OnnxRuntimeExecutor

    return np.asarray(OnnxRuntimeExecutor(model)({"image": np.rint(255 * x).astype(np.uint8)})["logits"])


def test_integers_that_are_no_pixels_are_refused() -> None:
    """Where whole numbers go into arithmetic of whole numbers there is nothing to differentiate."""
    text = "k = Constant<value_int = 2>() i = Cast<to = 7>(image) d = Div(i, k) x = Cast<to = 1>(d)"
    with pytest.raises(InvalidModel, match=r"cast to floats; got image uint8.* goes into Cast"):
        gradient_model(before(tiny.classifier(), text, "[N, 3, 8, 8]", "uint8"))


def test_half_precision_comes_in_as_float32() -> None:
    """Steps of a method are smaller than half precision can tell from nothing."""
    text = "x = Cast<to = 1>(image)"
    made = gradient_model(before(tiny.classifier(), text, "[N, 3, 8, 8]", "float16"))
    kinds = {v.name: v.type.tensor_type.elem_type for v in (*made.graph.input, *made.graph.output)}
    assert kinds["image"] == kinds["gradient"] == onnx.TensorProto.FLOAT


@pytest.mark.parametrize("given", [(3, 8, 8), (1, 3, 8, 8), [3, 8, 8]])
def test_sizes_that_a_model_leaves_open_can_be_given(given: object) -> None:
    """With or without a batch of one; the preprocessing says them as well."""
    model = tiny.classifier()
    for axis in (2, 3):
        model.graph.input[0].type.tensor_type.shape.dim[axis].dim_param = f"d{axis}"
    with ox.open(model, preprocess=None, input_shape=given) as opened, ox.open(model, preprocess=SPEC) as told:
        assert opened.forward.image_shape == told.forward.image_shape == (3, 8, 8)
    with pytest.raises(InvalidModel, match=r"not fixed; next: .*input_shape=, or --input-shape"):
        ox.open(model, preprocess=None)


@pytest.mark.parametrize("given", [(3, 9, 8), (8, 8, 3), (3, 8), (2, 3, 8, 8), (3, 8, 0), (3, 8.0, 8)])
def test_sizes_that_do_not_fit_are_refused(given: tuple[int, ...]) -> None:
    with pytest.raises(UsageError, match="does not fit the model's input"):
        ox.open(tiny.classifier(), preprocess=None, input_shape=given)


def test_a_gradient_model_has_its_head_and_its_sizes_built_in() -> None:
    made = gradient_model(tiny.classifier())
    for more in ({"head": "softmax"}, {"input_shape": (3, 8, 8)}):
        with pytest.raises(UsageError, match="built in"):
            ox.open(made, preprocess=None, **more)


# Heads, from the photo to the score


def labels_model(classes: int = 5) -> onnx.ModelProto:
    """The tiny classifier, whose first outputs are labels, each by itself."""
    model = tiny.classifier()
    model.graph.node.append(onnx.helper.make_node("Slice", ["logits", "zero", "count", "axis"], ["some"]))
    model.graph.node.append(onnx.helper.make_node("Sigmoid", ["some"], ["p"]))
    for name, value in (("zero", 0), ("count", classes), ("axis", 1)):
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.array([value], np.int64), name))
    model.graph.output[0].name = "p"
    model.graph.output[0].type.tensor_type.shape.dim[1].dim_value = classes
    return model


@pytest.fixture(params=[1, 5], ids=["one label", "five labels"])
def labels(request: pytest.FixtureRequest):
    with ox.open(labels_model(request.param), preprocess=SPEC) as opened:
        yield opened


def test_values_of_a_sigmoid_head(labels: Explainer) -> None:
    """`prob` is σ(z) and `ce` -log σ(z), in the graph and in every method."""
    assert labels.head == "sigmoid"
    assert labels.provenance["head"] == "sigmoid"
    assert "Sigmoid" in labels.notes[0]
    z = labels.logits(X).astype(np.float64)
    p = 1 / (1 + np.exp(-z))
    np.testing.assert_allclose(labels.gradients(X, target=0, objective="prob").value, p[:, 0], rtol=1e-5)
    np.testing.assert_allclose(labels.gradients(X, objective="ce").value, -np.log(p.max(axis=1)), rtol=1e-4, atol=1e-6)
    near = CrediblePath(kernels=(3,), steps=4, max_iter=3, baseline_objective=Kind.SOFT_CE)
    for method in (*METHODS, near):
        (explanation,) = labels.explain(X[:1], method)
        assert np.isfinite(explanation.attribution).all()
    (explanation,) = labels.explain(X[:1], IntegratedGradients(steps=400, objective=Kind.PROB))
    assert explanation.diagnostics["completeness_gap"] < 0.02


def test_photos_and_scores_of_a_sigmoid_head(labels: Explainer, photo: Path, tmp_path: Path) -> None:
    """The probability that is shown and followed is σ of the label's logit."""
    from onnxplain.files import summary

    (outcome,) = ox.explain_photos(labels, [photo], [Saliency()])
    explanation = outcome.unwrap()
    z = float(explanation.logits[explanation.target])
    p = 1 / (1 + np.exp(-z))
    assert summary(explanation)["probability"] == pytest.approx(p, rel=1e-5)
    explanation.save(tmp_path / "h.npz")
    (scored,) = ox.score_heatmaps(labels, [tmp_path / "h.npz"], [InsertionDeletion()])
    (curve, *_) = [row["curve"] for row in scored.unwrap().rows if row["metric"] == "insertion_auc"]
    assert curve[-1] == pytest.approx(p, rel=1e-4)


def test_a_method_that_drops_the_head_is_told(labels: Explainer) -> None:
    """Its objectives would be those of a softmax."""

    class Forgetful(Saliency):
        def __call__(self, x, task):
            return super().__call__(x, replace(task, head=Head.SOFTMAX))

    with pytest.raises(UsageError, match="pass on the head"):
        labels.explain(X[:1], Forgetful())
