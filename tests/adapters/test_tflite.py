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


def test_a_tensor_that_its_export_gets_wrong_is_named(tmp_path: Path, monkeypatch) -> None:
    right, wrong = (converted(net(scale), tmp_path / f"{scale}.tflite") for scale in (1.0, 1.1))
    write = tflite.write
    monkeypatch.setattr(tflite, "write", lambda name, file: write(str(wrong), file))
    with pytest.raises(ExportError, match=r"first in the layer .+;"):
        ox.export(right, tmp_path / "g.onnx", preprocess=None)
    assert not (tmp_path / "g.onnx").exists()


def test_quantised_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"quantised .* next: convert it to TFLite without optimisations"):
        load(converted(net(), tmp_path / "q.tflite", quantise=True))


def test_files_that_are_none(tmp_path: Path) -> None:
    (tmp_path / "m.tflite").write_bytes(b"nothing at all")
    with pytest.raises(InputError, match="not a TFLite file"):
        load(tmp_path / "m.tflite")
