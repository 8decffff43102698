"""What test_keras.py runs once on each backend of Keras, in a process of its own: the last line is JSON.

KERAS_BACKEND=jax python tests/adapters/keras_trip.py FOLDER
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import keras
import numpy as np

import onnxplain as ox
from onnxplain.adapters import keras as adapter

layers = keras.layers


def build(name: str) -> keras.Model:
    keras.utils.set_random_seed(0)
    x = image = keras.Input((16, 16, 3))
    x = layers.Conv2D(8, 3, strides=2, padding="same", name="stem")(x)
    if name == "convolutional":
        x = layers.BatchNormalization(name="norm")(x)
        x = layers.Activation("swish", name="swish")(x)
        y = layers.DepthwiseConv2D(3, padding="same", activation="tanh", name="depthwise")(x)
        x = layers.MaxPooling2D(name="pool")(layers.Add(name="add")([x, y]))
        x = layers.GlobalAveragePooling2D(name="mean")(x)
        x = layers.Dropout(0.5, name="dropout")(x)
        return keras.Model(image, layers.Dense(5, activation="softmax", name="head")(x), name=name)
    x = layers.Reshape((64, 8), name="tokens")(x)
    x = layers.LayerNormalization(name="norm")(x)
    x = layers.MultiHeadAttention(2, 4, name="attention")(x, x)
    x = layers.Dense(8, activation="gelu", name="mlp")(x)
    x = layers.GlobalAveragePooling1D(name="mean")(x)
    return keras.Model(image, layers.Dense(5, name="head")(x), name=name)


def train(model: keras.Model, x: np.ndarray) -> None:
    """A few steps, so that normalisations have statistics of their own."""
    logits = model.name != "convolutional"
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=logits)
    model.compile(optimizer=keras.optimizers.Adam(0.01), loss=loss)
    model.fit(x, np.arange(len(x)) % 5, epochs=3, batch_size=len(x), verbose=0)


def gradient(model: keras.Model, x: np.ndarray, target: int) -> np.ndarray:
    """By the backend itself."""
    match keras.backend.backend():
        case "tensorflow":
            import tensorflow as tf

            image = tf.Variable(x)
            with tf.GradientTape() as tape:
                value = tf.reduce_sum(model(image, training=False)[:, target])
            return tape.gradient(value, image).numpy()
        case "jax":
            import jax

            return np.asarray(jax.grad(lambda image: model(image, training=False)[:, target].sum())(x))
        case _:
            import torch

            image = torch.tensor(x, requires_grad=True)
            model(image, training=False)[:, target].sum().backward()
            return image.grad.numpy()


def main(folder: Path) -> None:
    x = np.random.default_rng(0).random((6, 16, 16, 3), np.float32)
    found = {}
    for name in ("convolutional", "attention"):
        model = build(name)
        train(model, x)
        file = folder / f"{name}.{keras.backend.backend()}.onnx"
        done = adapter.export(model, x, file)
        theirs = gradient(model, x, 3)
        outputs = keras.ops.convert_to_numpy(model(x, training=False))
        kind = "prob" if name == "convolutional" else "logit"
        with ox.open(file) as explainer:
            ours = explainer.gradients(x, target=3, objective=kind)
        values = ours.value
        found[name] = {
            "agreement": [done.agreement.outputs, done.agreement.gradient, done.agreement.cosine],
            "gradient": float(np.abs(ours.gradient - theirs).max() / np.abs(theirs).max()),
            "value": float(np.abs(values - outputs[:, 3]).max()),
            "layers": [key for key, _ in adapter.original(model).layers(x[:2])],
            "framework": done.agreement.framework,
        }
        model.save(folder / f"{name}.keras")
    sys.stdout.write(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
