"""TFLite files, made by TensorFlow from nets whose gradients it knows."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from frameworks import framework

os.environ.setdefault("KERAS_BACKEND", "tensorflow")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
tf = framework("tensorflow")
keras = framework("keras")
framework("tf2onnx")
framework("ai_edge_litert")
import onnxplain as ox  # noqa: E402
from onnxplain.adapters import tflite  # noqa: E402
from onnxplain.adapters.sources import load  # noqa: E402
from onnxplain.errors import ExportError, InputError  # noqa: E402

layers = keras.layers
NOISE = 1e-5  # of the largest value: some eighty roundings of float32
pytestmark = pytest.mark.filterwarnings("ignore")  # of the frameworks' own code


def net(scale: float = 1.0, batch: int | None = None) -> keras.Model:
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input(batch_shape=(batch, 16, 16, 3)),
            layers.Conv2D(8, 3, strides=2, padding="same", name="stem"),
            layers.ReLU(max_value=6),
            layers.DepthwiseConv2D(3, padding="same", activation="tanh"),
            layers.AveragePooling2D(2),
            layers.Flatten(),
            layers.Dense(5, name="head"),
        ]
    )
    kernel, bias = model.get_layer("head").get_weights()
    model.get_layer("head").set_weights([kernel * scale, bias])
    return model


def converted(model, path: Path, *, quantise: bool = False) -> Path:
    converter = tf.lite.TFLiteConverter.from_keras_model(model)
    if quantise:
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
        draw = np.random.default_rng(0)
        converter.representative_dataset = lambda: [[draw.random((1, 16, 16, 3), np.float32)] for _ in range(4)]
    path.write_bytes(converter.convert())
    return path


def of_function(function, path: Path, shape=(1, 16, 16, 3), **more) -> Path:
    traced = tf.function(function, input_signature=[tf.TensorSpec(shape)])
    converter = tf.lite.TFLiteConverter.from_concrete_functions([traced.get_concrete_function()])
    for name, value in more.items():
        setattr(converter, name, value)
    path.write_bytes(converter.convert())
    return path


def head(x):
    return tf.reduce_mean(x, (1, 2)) @ tf.constant(np.random.default_rng(0).standard_normal((3, 5), np.float32))


@pytest.mark.parametrize("batch", [None, 1])
def test_outputs_and_gradients_are_those_of_the_net(tmp_path: Path, batch: int | None) -> None:
    model = net()
    file = converted(net(batch=batch), tmp_path / "m.tflite")
    done = ox.export(file, tmp_path / "g.onnx", preprocess="keras:tf")
    assert done.agreement is not None
    assert done.agreement.framework.startswith("LiteRT")
    assert done.agreement.cosine is None
    x = np.random.default_rng(0).random((3, 16, 16, 3), np.float32)
    image = tf.Variable(x)
    with tf.GradientTape() as tape:
        value = tf.reduce_sum(model(2 * image - 1, training=False)[:, 2])
    theirs = tape.gradient(value, image).numpy()
    with ox.open(tmp_path / "g.onnx") as explainer:
        ours = explainer.gradients(x, target=2).gradient
    np.testing.assert_allclose(ours, theirs, atol=NOISE * np.abs(theirs).max())


@pytest.mark.parametrize(
    "function",
    [
        lambda x: head(tf.nn.gelu(x)),
        lambda x: head(tf.nn.gelu(x, approximate=True)),
        lambda x: head(tf.nn.tanh(x) * tf.image.resize(x[:, ::3, ::3], (16, 16), method="nearest")),
    ],
    ids=["gelu", "gelu by tanh", "nearest"],
)
def test_operators_that_tf2onnx_leaves_as_they_are(tmp_path: Path, function) -> None:
    ox.export(of_function(function, tmp_path / "m.tflite"), tmp_path / "g.onnx", preprocess=None)
    x = np.random.default_rng(1).standard_normal((2, 16, 16, 3), np.float32)
    image = tf.Variable(x)
    with tf.GradientTape() as tape:
        value = tf.reduce_sum(function(image)[:, 1])
    theirs = tape.gradient(value, image).numpy()
    with ox.open(tmp_path / "g.onnx") as explainer:
        ours = explainer.gradients(x, target=1).gradient
    np.testing.assert_allclose(ours, theirs, atol=NOISE * np.abs(theirs).max())


@pytest.mark.parametrize("batch", [None, 1])
def test_a_tensor_that_its_export_gets_wrong_is_named(tmp_path: Path, monkeypatch, batch: int | None) -> None:
    right, wrong = (converted(net(scale, batch), tmp_path / f"{scale}.tflite") for scale in (1.0, 1.1))
    write = tflite.write
    monkeypatch.setattr(tflite, "write", lambda name, file: write(str(wrong), file))
    with pytest.raises(ExportError, match=r"first in the layer .+;"):
        ox.export(right, tmp_path / "g.onnx", preprocess=None)
    assert not (tmp_path / "g.onnx").exists()


def test_quantised_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"quantised .* next: convert it to TFLite without optimisations"):
        load(converted(net(), tmp_path / "q.tflite", quantise=True))


def test_weights_that_are_quantised_by_channel_are_refused(tmp_path: Path) -> None:
    kernel = tf.constant(np.random.default_rng(0).standard_normal((3, 3, 3, 64), np.float32))  # smaller ones stay
    file = of_function(
        lambda x: tf.reduce_mean(tf.nn.conv2d(x, kernel, 2, "SAME"), (1, 2)),
        tmp_path / "q.tflite",
        optimizations=[tf.lite.Optimize.DEFAULT],
    )
    with pytest.raises(ExportError, match=r"quantised \(1 tensors\)"):
        load(file)


def test_weights_of_half_precision_are_floats(tmp_path: Path) -> None:
    converter = tf.lite.TFLiteConverter.from_keras_model(net())
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.target_spec.supported_types = [tf.float16]
    (tmp_path / "h.tflite").write_bytes(converter.convert())
    done = ox.export(tmp_path / "h.tflite", tmp_path / "g.onnx", preprocess=None)
    assert done.agreement is not None


@pytest.mark.parametrize(
    ("function", "shape", "said"),
    [
        (head, (4, 16, 16, 3), r"the shape \[4, 16, 16, 3\], expected images of a fixed size, one by one"),
        (head, (1, None, None, 3), r"the shape \[1, -1, -1, 3\]"),
        (lambda x: tf.argmax(head(x), -1), (1, 8, 8, 3), "its input is float32 and its output int64"),
        (lambda x: (head(x), x), (1, 8, 8, 3), "expected one input and one output, got 1 and 2"),
    ],
    ids=["four at once", "open", "the class itself", "two outputs"],
)
def test_what_is_no_classifier_is_refused(tmp_path: Path, function, shape, said: str) -> None:
    with pytest.raises(ExportError, match=said):
        load(of_function(function, tmp_path / "m.tflite", shape))


def test_operators_of_others_are_named(tmp_path: Path) -> None:
    file = of_function(lambda x: tf.raw_ops.Digamma(x=head(x)), tmp_path / "m.tflite", allow_custom_ops=True)
    with pytest.raises(ExportError, match=r"LiteRT does not run it .*Digamma.* next: convert it to TFLite's own"):
        load(file)


def test_files_that_are_none(tmp_path: Path) -> None:
    (tmp_path / "m.tflite").write_bytes(b"nothing at all")
    with pytest.raises(InputError, match="not a TFLite file"):
        load(tmp_path / "m.tflite")
