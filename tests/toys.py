"""Small classifiers with gradients on paper: the models that methods, metrics and the driver are tested with.

The values and cotangents of the objectives are written from their formulas, one by one, and share nothing with the
package; each image is computed alone, so that an image gives the same bits in every batch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxplain.engine.drive import BIASES, GRADIENT, LAYERS, LOGITS, MULTIPLIERS, Model, run
from onnxplain.engine.executors.function import FunctionExecutor
from onnxplain.engine.executors.protocol import Executor, TensorSpec
from onnxplain.engine.methods import Method, Task
from onnxplain.engine.requests import Attribution
from onnxplain.engine.space import Space

Array = NDArray[Any]

X = np.array([0.9, 0.2, 0.6, 0.4, 0.7, 0.1])
W = np.array([[1, -2, 0.5, 3, -1, 0.25], [0.5, 1, -1, 0, 2, -0.5], [-1, 0.5, 1, -0.5, 0.5, 1]])
V = np.array([[1, -0.5, 0.25], [-0.75, 1, 0.5], [0.2, 0.3, -1]])
B = np.array([0.1, -0.2, 0.05])


@dataclass(frozen=True)
class Toy:
    """Logits z(x) of one image, and J(x)^T v: the gradient of <v, z> at x.

    `layer(x, v)` is an inner layer A and the gradient of <v, z> with respect to it, both (C,h,w): without one, the
    image itself. `biases(x, v)` are the bias-gradients (C,h,w) and what else <v, z> has beside the gradient times x:
    without them, all of that together. `multipliers(x, x', v)` are those of DeepLIFT for <v, z>: without them, the
    gradient at x, which they are on affine models.
    """

    logits: Callable[[Array], Array]
    pull_back: Callable[[Array, Array], Array]
    shape: tuple[int, ...] = (6,)
    classes: int = 3
    layer: Callable[[Array, Array], tuple[Array, Array]] | None = None
    biases: Callable[[Array, Array], tuple[list[Array], Any]] | None = None
    multipliers: Callable[[Array, Array, Array], Array] | None = None

    def inside(self, x: Array, v: Array) -> tuple[Array, Array]:
        if self.layer is not None:
            return self.layer(x, v)
        return channels_first(x), channels_first(self.pull_back(x, v))

    def beside(self, x: Array, v: Array) -> tuple[list[Array], Any]:
        if self.biases is not None:
            return self.biases(x, v)
        return [], v @ self.logits(x) - (x * self.pull_back(x, v)).sum()


def channels_first(x: Array) -> Array:
    """A picture (C,H,W) or (H,W,C), or a vector, as (C,H,W)."""
    return x.reshape(1, 1, -1) if x.ndim == 1 else x if x.shape[0] <= x.shape[-1] else np.moveaxis(x, -1, 0)


def affine(weights: Array, bias: Array | float = 0.0, shape: tuple[int, ...] | None = None) -> Toy:
    """z = W x + b."""
    shape = shape or weights.shape[1:]
    return Toy(
        lambda x: weights @ x.reshape(-1) + bias, lambda x, v: (weights.T @ v).reshape(x.shape), shape, len(weights)
    )


def tanh_net(inner: Array, bias: Array, outer: Array, shape: tuple[int, ...] | None = None) -> Toy:
    """z = V tanh(W x + b)."""

    def pull_back(x: Array, v: Array) -> Array:
        h = np.tanh(inner @ x.reshape(-1) + bias)
        return np.reshape(inner.T @ ((1 - h * h) * (outer.T @ v)), x.shape)

    def layer(x: Array, v: Array) -> tuple[Array, Array]:
        """The hidden units, as channels of four places if they are so many."""
        grid = (-1, 2, 2) if len(bias) % 4 == 0 else (-1, 1, 1)
        return np.tanh(inner @ x.reshape(-1) + bias).reshape(grid), (outer.T @ v).reshape(grid)

    def biases(x: Array, v: Array) -> tuple[list[Array], Any]:
        """dF/da * b of the units' arguments a, and the implicit bias of tanh."""
        h, g = layer(x, v)
        a, slope = (inner @ x.reshape(-1) + bias).reshape(h.shape), 1 - h * h
        return [g * slope * bias.reshape(h.shape), g * (h - slope * a)], 0.0

    def multipliers(x: Array, reference: Array, v: Array) -> Array:
        a, b = inner @ x.reshape(-1) + bias, inner @ reference.reshape(-1) + bias
        slope = [np.tanh(p) - np.tanh(q) if p != q else 1 - np.tanh(p) ** 2 for p, q in zip(a, b, strict=True)]
        over = [p - q if p != q else 1.0 for p, q in zip(a, b, strict=True)]
        return np.reshape(inner.T @ (np.array(slope) / np.array(over) * (outer.T @ v)), x.shape)

    logits = lambda x: outer @ np.tanh(inner @ x.reshape(-1) + bias)  # noqa: E731
    return Toy(logits, pull_back, shape or inner.shape[1:], len(outer), layer, biases, multipliers)


def relu_net(seed: int, size: int = 6, classes: int = 3) -> Toy:
    """z = V relu(W x), without biases, so that z(c x) = c z(x) for c > 0."""
    draw = np.random.default_rng(seed)
    inner, outer = draw.normal(size=(16, size)), draw.normal(size=(classes, 16))

    def multipliers(x: Array, reference: Array, v: Array) -> Array:
        a, b = inner @ x, inner @ reference
        change = np.maximum(a, 0) - np.maximum(b, 0)
        slope = np.where(a == b, a > 0, change / np.where(a == b, 1, a - b))
        return np.asarray(inner.T @ (slope * (outer.T @ v)))

    return Toy(
        lambda x: outer @ np.maximum(inner @ x, 0), lambda x, v: inner.T @ ((inner @ x > 0) * (outer.T @ v)),
        (size,), classes, multipliers=multipliers,
    )  # fmt: skip


TOY_L = affine(W)
TOY_T = tanh_net(W, B, V)


def quadratic(seed: int, size: int = 6, classes: int = 3) -> Toy:
    """z_k = x^T Q_k x / 2 + w_k^T x + b_k, drawn at random."""
    draw = np.random.default_rng(seed)
    q = draw.normal(size=(classes, size, size))
    q = (q + q.transpose(0, 2, 1)) / 2
    w, b = draw.normal(size=(classes, size)), draw.normal(size=classes)
    return Toy(lambda x: (q @ x) @ x / 2 + w @ x + b, lambda x, v: v @ (q @ x + w), (size,), classes)


def picture_net(seed: int = 0, shape: tuple[int, ...] = (3, 8, 8), classes: int = 4) -> Toy:
    """A tanh net on pictures, (C,H,W) or (H,W,C)."""
    draw = np.random.default_rng(seed)
    size = int(np.prod(shape))
    inner = draw.normal(size=(16, size)) / np.sqrt(size) * 3
    return tanh_net(inner, draw.normal(size=16) / 4, draw.normal(size=(classes, 16)), shape)


def softmax(z: Array) -> Array:
    e = np.exp(z - np.max(z))
    return np.asarray(e / np.sum(e))


def log_softmax(z: Array) -> Array:
    return np.asarray(z - np.max(z) - np.log(np.sum(np.exp(z - np.max(z)))))


def objective(code: int, z: Array, t: Array) -> tuple[Any, Array]:
    """psi(z) and the cotangent v = d psi / d z, for the code and target of a gradient model's extra inputs."""
    p = softmax(z)
    match code:
        case 0:  # logit
            return t @ z, t
        case 1:  # prob
            return t @ p, p * (t - t @ p)
        case 2:  # logprob
            return t @ log_softmax(z), t - t.sum() * p
        case 3 | 4:  # ce, soft_ce
            return -(t @ log_softmax(z)), t.sum() * p - t
        case 5:  # logit_l2
            return ((z - t) ** 2).sum() / 2, z - t
        case 6:  # ce_on_probs
            u = t.sum() * softmax(p) - t
            return -(t @ log_softmax(p)), p * (u - p @ u)
        case 7:  # prob_on_probs
            q = softmax(p)
            w = q * (t - t @ q)
            return t @ q, p * (w - p @ w)
    raise AssertionError(code)


def executors(toy: Toy, dtype: Any = np.float64) -> tuple[FunctionExecutor, FunctionExecutor]:
    """The classifier and the gradient model of a toy."""
    dtype = np.dtype(dtype)
    inputs = {"x": TensorSpec(dtype, ("N", *toy.shape))}
    logits = {"logits": TensorSpec(dtype, ("N", toy.classes))}
    extra = {
        "onnxplain_target": TensorSpec(np.dtype(np.float32), ("N", toy.classes)),
        "onnxplain_objective": TensorSpec(np.dtype(np.int64), ("N",)),
    }
    grown = {
        "value": TensorSpec(dtype, ("N",)),
        "gradient": TensorSpec(dtype, ("N", *toy.shape)),
    }

    def forward(feeds: Mapping[str, Array]) -> dict[str, Array]:
        return {"logits": np.stack([toy.logits(x) for x in feeds["x"]]).astype(dtype)}

    def backward(feeds: Mapping[str, Array]) -> dict[str, Array]:
        z = [toy.logits(x) for x in feeds["x"]]
        rows = zip(feeds["onnxplain_objective"].tolist(), z, feeds["onnxplain_target"].astype(np.float64), strict=True)
        psi = [objective(code, z, t) for code, z, t in rows]
        gradient = [toy.pull_back(x, v) for x, (_, v) in zip(feeds["x"], psi, strict=True)]
        return {
            "logits": np.stack(z).astype(dtype),
            "value": np.array([value for value, _ in psi], dtype),
            "gradient": np.stack(gradient).astype(dtype),
        }

    return FunctionExecutor(forward, inputs, logits), FunctionExecutor(backward, inputs | extra, logits | grown)


def looking_inside(toy: Toy, dtype: Any = np.float64) -> dict[str, FunctionExecutor]:
    """The gradient models of a toy with its inner layer, with its bias-gradients, and with a reference, by role."""
    _, backward = executors(toy, dtype)

    def cotangents(feeds: Mapping[str, Array]) -> list[tuple[Array, Array]]:
        """Each image, and that of its logits."""
        rows = zip(feeds["x"], feeds["onnxplain_objective"].tolist(), feeds["onnxplain_target"], strict=True)
        return [(x, objective(code, toy.logits(x), t.astype(np.float64))[1]) for x, code, t in rows]

    def layers(feeds: Mapping[str, Array]) -> dict[str, Array]:
        a, g = zip(*(toy.inside(x, v) for x, v in cotangents(feeds)), strict=True)
        more = {"activation_0": np.stack(a).astype(dtype), "activation_gradient_0": np.stack(g).astype(dtype)}
        return {**backward(feeds), **more}

    def biases(feeds: Mapping[str, Array]) -> dict[str, Array]:
        parts = [toy.beside(x, v) for x, v in cotangents(feeds)]
        maps = [np.stack(layer).astype(dtype) for layer in zip(*(maps for maps, _ in parts), strict=True)]
        sums = [sum(float(layer.sum()) for layer in maps) + rest for maps, rest in parts]
        more = {f"bias_gradient_{i}": layer for i, layer in enumerate(maps)}
        return {**backward(feeds), **more, "bias_sum": np.array(sums, dtype)}

    def multipliers(feeds: Mapping[str, Array]) -> dict[str, Array]:
        rows = zip(cotangents(feeds), feeds["onnxplain_reference"], strict=True)
        given = [toy.pull_back(x, v) if toy.multipliers is None else toy.multipliers(x, r, v) for (x, v), r in rows]
        return {**backward({name: feeds[name] for name in backward.inputs}), "gradient": np.stack(given).astype(dtype)}

    with_reference = {**backward.inputs, "onnxplain_reference": backward.inputs["x"]}
    return {
        MULTIPLIERS: FunctionExecutor(multipliers, with_reference, backward.outputs),
        LAYERS: FunctionExecutor(layers, backward.inputs, backward.outputs),
        BIASES: FunctionExecutor(biases, backward.inputs, backward.outputs),
    }


def model_of(toy: Toy, dtype: Any = np.float64, batch_size: int = 8) -> Model:
    """A toy as the driver takes it."""
    return joined(*executors(toy, dtype), batch_size=batch_size, **looking_inside(toy, dtype))


def joined(forward: Executor, backward: Executor, batch_size: int = 8, **more: Executor) -> Model:
    """A classifier and its gradient models as the driver takes them."""
    made = {LOGITS: forward, GRADIENT: backward, **more}
    return Model({role: partial(made.get, role) for role in made}, batch_size=batch_size)  # type: ignore[misc]


def explain(
    method: Method, toy: Toy, x: Array, target: int | Array = 0, *, space: Space | None = None, seed: int = 0
) -> Attribution:
    """What a method says of one image, in the image's dtype."""
    return run(method(x, task(toy, target, space=space, seed=seed)), model_of(toy, x.dtype))


def task(toy: Toy, target: int | Array = 0, *, space: Space | None = None, seed: int = 0) -> Task:
    """What a method is told of a toy, in pixel space unless told otherwise."""
    return Task(target, space or pixels(toy), np.random.default_rng(seed))


def pixels(toy: Toy) -> Space:
    """Pixel space for a toy's input."""
    return Space.pixels(rank=len(toy.shape))
