"""Originals on their way to a gradient model: what agrees is written, and what does not is named, and leaves nothing.

The framework of these tests is NumPy, with the gradient by hand.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

import onnxplain as ox
from onnxplain.adapters.export import export_original
from onnxplain.adapters.mismatch import first_difference
from onnxplain.adapters.onnx_file import properties
from onnxplain.adapters.original import Original
from onnxplain.adapters.sources import as_images
from onnxplain.engine.requests import softmax
from onnxplain.errors import ExportError, FeedMismatch, OnnxplainError, OutputError, UsageError
from onnxplain.models.preprocess import PreprocessSpec, normalise, to_pixels

Array = NDArray[Any]
SPEC = PreprocessSpec(size=(4, 5), image_mean=(0.4, 0.5, 0.6), image_std=(0.2, 0.3, 0.25), do_flip_channel_order=True)
LABELS = ["ant", "bee", "cat"]


@dataclass
class Net:
    """tanh(x A + a) B + b of flattened images, with probabilities at the end if `ends`; scaled weights are another."""

    first: float = 1.0
    second: float = 1.0
    ends: bool = False

    def __post_init__(self) -> None:
        draw = np.random.default_rng(5)
        self.A = (draw.standard_normal((60, 8)) / 8).astype(np.float32)
        self.B = draw.standard_normal((8, 3)).astype(np.float32)

    def layers(self, x: Array) -> Iterator[tuple[str, Array]]:
        yield "flat", (flat := x.reshape(len(x), -1))
        yield "first", (hidden := self.first * flat @ self.A)
        yield "tanh", (hidden := np.tanh(hidden))
        yield "second", (z := self.second * hidden @ self.B)
        if self.ends:
            yield "softmax", softmax(z)

    def outputs(self, x: Array) -> Array:
        return list(self.layers(x))[-1][1]

    def gradients(self, x: Array, weights: Array) -> Array:
        layers = dict(self.layers(x))
        g = weights
        if self.ends:
            p = layers["softmax"]
            g = p * (weights - (weights * p).sum(1, keepdims=True))
        g = (g @ (self.second * self.B).T) * (1 - layers["tanh"] ** 2)
        return (g @ (self.first * self.A).T).reshape(x.shape)

    def write(self, path: Path) -> list[str]:
        weights = {"A": self.first * self.A, "B": self.second * self.B, "shape": np.array([0, -1])}
        kinds = [("Reshape", ["x", "shape"], "v"), ("MatMul", ["v", "A"], "h"), ("Tanh", ["h"], "t")]
        kinds += [("MatMul", ["t", "B"], "z"), *([("Softmax", ["z"], "p")] if self.ends else [])]
        nodes = [helper.make_node(op, inputs, [output]) for op, inputs, output in kinds]
        x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3, 4, 5])
        y = helper.make_tensor_value_info(kinds[-1][2], TensorProto.FLOAT, ["N", 3])
        tensors = [
            numpy_helper.from_array(w.astype(np.float32) if w.dtype.kind == "f" else w, n) for n, w in weights.items()
        ]
        graph = helper.make_graph(nodes, "net", [x], [y], tensors)
        onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path)
        return ["written by hand"]


def original(net: Net | None = None, export: Net | None = None, **more: Any) -> Original:
    net = net or Net()
    known: dict[str, Any] = {"preprocess": SPEC, "labels": LABELS, "provenance": {"licence": "none"}}
    return Original(
        name="nets:mine",
        framework="NumPy 2",
        image_shape=(3, 4, 5),
        write=(export or net).write,
        outputs=net.outputs,
        gradients=net.gradients,
        layers=net.layers,
        **known | more,
    )


@pytest.mark.parametrize("ends", [False, True])
def test_what_agrees_is_written(tmp_path: Path, ends: bool) -> None:
    net = Net(ends=ends)
    done = export_original(original(net), tmp_path / "g.onnx", classifier=tmp_path / "c.onnx")
    found = done.agreement
    assert found is not None
    assert (found.framework, found.images, found.given) == ("NumPy 2", 4, False)
    assert found.outputs < 1e-6
    assert found.gradient is not None
    assert found.gradient < 1e-5
    assert found.cosine == pytest.approx(1, abs=1e-9)
    assert done.notes[0] == "written by hand"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["c.onnx", "g.onnx"]
    for file in ("g.onnx", "c.onnx"):
        meta = properties(onnx.load(tmp_path / file))
        assert json.loads(meta["onnxplain.labels"]) == LABELS
        assert meta["onnxplain.source"] == "nets:mine"
        assert meta["onnxplain.framework"] == "NumPy 2"
        assert meta["onnxplain.licence"] == "none"


def test_the_gradient_is_that_of_the_original_in_pixels(tmp_path: Path) -> None:
    """With a flip of channels and another scale for each: checked here without the code that checks it."""
    net = Net()
    export_original(original(net), tmp_path / "g.onnx")
    pixels = np.random.default_rng(0).random((2, 3, 4, 5), np.float32)
    mean, std = (np.float32(v).reshape(3, 1, 1) for v in (SPEC.image_mean, SPEC.image_std))

    def value(x: Array) -> Array:
        return net.outputs(((x - mean) / std)[:, ::-1].astype(np.float64))[:, 1]

    step = 1e-5 * np.eye(60).reshape(60, 1, 3, 4, 5)
    slopes = np.stack([(value(pixels + d) - value(pixels - d)) / 2e-5 for d in step], axis=1)
    with ox.open(tmp_path / "g.onnx") as explainer:
        ours = explainer.gradients(pixels, target=1).gradient
    np.testing.assert_allclose(ours, slopes.reshape(ours.shape), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    ("export", "layer"), [(Net(first=1.1), "first"), (Net(second=1.1), "second"), (Net(ends=True), "second")]
)
def test_an_export_that_differs_is_named_by_its_layer(tmp_path: Path, export: Net, layer: str) -> None:
    if export.ends:  # another classifier altogether: all its layers are there, and probabilities are no logits
        export.second = 1.1
    with pytest.raises(ExportError, match=rf"not the same classifier: .* first in the layer {layer};"):
        export_original(original(Net(), export), tmp_path / "g.onnx", classifier=tmp_path / "c.onnx")
    assert not list(tmp_path.iterdir())


def test_a_layer_that_is_merged_into_the_next_one_is_not_blamed(tmp_path: Path) -> None:
    net = Net()
    net.write(tmp_path / "c.onnx")
    x = np.random.default_rng(0).standard_normal((2, 3, 4, 5)).astype(np.float32)
    layers = list(net.layers(x))
    merged = [*layers[:2], ("merged", layers[1][1] * 7), *layers[2:]]
    assert first_difference(tmp_path / "c.onnx", x, merged) is None
    turned = [(name, np.moveaxis(y, 1, -1)) for name, y in layers]
    assert first_difference(tmp_path / "c.onnx", x, turned) is None
    with_scales = [("scale", np.float32(3)), ("scales", np.ones(3, np.float32)), *layers]
    assert first_difference(tmp_path / "c.onnx", x, with_scales) == "scale"
    wrong = [*layers[:2], ("wrong", layers[2][1] * 7), ("wrong too", layers[3][1] * 7)]
    assert first_difference(tmp_path / "c.onnx", x, wrong) == "wrong"


def test_a_gradient_that_differs_is_refused(tmp_path: Path) -> None:
    net = Net()
    wrong = replace(original(net), gradients=lambda x, w: net.gradients(x, w) * (np.arange(5) != 2))
    with pytest.raises(ExportError, match=r"gradient .* is not that of NumPy 2: cosine 0\.[0-9]+"):
        export_original(wrong, tmp_path / "g.onnx")
    assert not list(tmp_path.iterdir())
    assert export_original(wrong, tmp_path / "g.onnx", verify=False).agreement is None


def test_probabilities_that_are_saturated_have_no_gradient_to_compare(tmp_path: Path) -> None:
    done = export_original(original(Net(second=400, ends=True)), tmp_path / "g.onnx")
    assert done.agreement is not None
    assert done.agreement.cosine is None


def test_outputs_that_are_no_numbers_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="NumPy 2 itself is not finite"):
        export_original(original(Net(second=np.nan)), tmp_path / "g.onnx")
    assert not list(tmp_path.iterdir())


def test_labels_have_to_be_as_many_as_classes(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="2 labels for 3 classes"):
        export_original(original(labels=LABELS[:2]), tmp_path / "g.onnx")
    assert not list(tmp_path.iterdir())


def test_images_have_to_be_such_as_the_model_takes(tmp_path: Path) -> None:
    images = np.zeros((2, 3, 5, 4), np.float32)
    with pytest.raises((FeedMismatch, OnnxplainError), match=r"float32\[2, 3, 5, 4\]"):
        export_original(original(images=images), tmp_path / "g.onnx")


def test_what_is_there_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "c.onnx").write_text("mine")
    with pytest.raises(OutputError, match="overwrite"):
        export_original(original(), tmp_path / "g.onnx", classifier=tmp_path / "c.onnx")
    assert (tmp_path / "c.onnx").read_text() == "mine"
    assert not (tmp_path / "g.onnx").exists()


def test_photos_are_given_as_the_classifier_takes_them(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (4, 5, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "1.png")
    (x,) = as_images(original(), [tmp_path / "1.png"])
    expected = (pixels / 255 - SPEC.image_mean) / SPEC.image_std
    np.testing.assert_allclose(x, expected[..., ::-1].transpose(2, 0, 1), atol=1e-5)
    done = export_original(original(images=x[None]), tmp_path / "g.onnx")
    assert done.agreement is not None
    assert (done.agreement.images, done.agreement.given) == (1, True)
    with pytest.raises(UsageError, match="no defined way"):
        as_images(original(preprocess=None), [tmp_path / "1.png"])


@pytest.mark.parametrize("axis", [0, -1])
def test_to_pixels_is_the_inverse_of_normalise(axis: int) -> None:
    x = np.random.default_rng(0).random((2, 3, 4, 3), np.float32)
    back = to_pixels(normalise(x, SPEC, channel_axis=axis), SPEC, channel_axis=axis)
    np.testing.assert_allclose(back, x, atol=1e-6)
