"""JAX classifiers on their way to a gradient model, held against jax.grad."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from frameworks import framework

jax = framework("jax")
framework("jax2onnx")
nnx = framework("flax.nnx")
linen = framework("flax.linen")
eqx = framework("equinox")
import jax.numpy as jnp  # noqa: E402

import onnxplain as ox  # noqa: E402
from onnxplain.adapters import jax as adapter  # noqa: E402
from onnxplain.adapters.export import export_original  # noqa: E402
from onnxplain.adapters.sources import from_object  # noqa: E402
from onnxplain.engine.executors.onnxruntime import OnnxRuntimeExecutor  # noqa: E402
from onnxplain.errors import BackendMissing, ExportError, UsageError  # noqa: E402
from onnxplain.models.preprocess import PreprocessSpec  # noqa: E402

# Both sides round in float32: 1e-5 of the largest value is some eighty roundings of it, on nets of a few layers.
NOISE = 1e-5
pytestmark = pytest.mark.filterwarnings("ignore")  # of the libraries' own code


class OfNNX(nnx.Module):
    def __init__(self) -> None:
        rngs = nnx.Rngs(0)
        self.conv, self.norm = nnx.Conv(3, 8, (3, 3), strides=2, rngs=rngs), nnx.BatchNorm(8, rngs=rngs)
        self.drop, self.head = nnx.Dropout(0.5, rngs=rngs), nnx.Linear(8, 5, rngs=rngs)

    def __call__(self, x):
        x = nnx.gelu(self.norm(self.conv(x)))
        return self.head(self.drop(x.mean((1, 2))))


class OfLinen(linen.Module):
    @linen.compact
    def __call__(self, x):
        x = linen.GroupNorm(2)(linen.Conv(8, (3, 3))(x))
        x = linen.avg_pool(jnp.tanh(x), window_shape=(2, 2), strides=(2, 2))
        return linen.Dense(5)(x.reshape(x.shape[0], -1))


class OfEquinox(eqx.Module):
    conv: eqx.nn.Conv2d
    drop: eqx.nn.Dropout
    head: eqx.nn.Linear

    def __init__(self) -> None:
        first, second = jax.random.split(jax.random.key(0))
        self.conv, self.head = eqx.nn.Conv2d(3, 8, 3, key=first), eqx.nn.Linear(8, 5, key=second)
        self.drop = eqx.nn.Dropout(0.5)

    def __call__(self, x):
        return self.head(self.drop(jax.nn.silu(self.conv(x)).mean((1, 2))))


def weights():
    first, second = jax.random.split(jax.random.key(1))
    return {"kernel": jax.random.normal(first, (3, 3, 3, 6)) / 5, "head": jax.random.normal(second, (6, 5))}


def plain(params, x):
    """A function of parameters and images."""
    y = jax.lax.conv_general_dilated(x, params["kernel"], (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    return jnp.tanh(y).max((1, 2)) @ params["head"]


def nnx_net():
    net = OfNNX()
    for _ in range(2):  # statistics of its own
        net(np.random.default_rng(9).random((4, 16, 16, 3), np.float32))
    net.eval()
    return net, None, (16, 16, 3)


def linen_net():
    net = OfLinen()
    return net, net.init(jax.random.key(0), np.zeros((2, 16, 16, 3), np.float32)), (16, 16, 3)


CASES = {
    "nnx": nnx_net,
    "linen": linen_net,
    "equinox": lambda: (eqx.nn.inference_mode(OfEquinox()), None, (3, 16, 16)),
    "function": lambda: (plain, weights(), (16, 16, 3)),
    "closure": lambda: ((lambda w: lambda x: plain(w, x))(weights()), None, (16, 16, 3)),
}


def called(net, params, x):
    if isinstance(net, linen.Module):
        return net.apply(params, x)
    if isinstance(net, eqx.Module):
        return jax.vmap(net)(x)
    return net(x) if params is None else net(params, x)


@pytest.mark.parametrize("kind", CASES)
def test_outputs_and_gradients_are_those_of_jax(tmp_path: Path, kind: str) -> None:
    net, params, shape = CASES[kind]()
    x = np.random.default_rng(0).random((5, *shape), np.float32)
    done = adapter.export(net, x, tmp_path / "g.onnx", params=params, classifier=tmp_path / "c.onnx")
    assert done.agreement is not None
    assert done.agreement.cosine == pytest.approx(1, abs=1e-6)
    with OnnxRuntimeExecutor((tmp_path / "c.onnx").read_bytes()) as executor:
        for rows in (1, 2, 5):
            (found,) = executor({"input": x[:rows]}).values()
            np.testing.assert_allclose(found, called(net, params, x[:rows]), atol=NOISE)
    theirs = np.asarray(jax.grad(lambda x: called(net, params, x)[:, 3].sum())(x))
    with ox.open(tmp_path / "g.onnx") as explainer:
        assert explainer.channel_axis == (0 if kind == "equinox" else -1)
        ours = explainer.gradients(x, target=3).gradient
    np.testing.assert_allclose(ours, theirs, atol=NOISE * np.abs(theirs).max())


def test_methods_explain_pictures_with_channels_last(tmp_path: Path) -> None:
    spec = PreprocessSpec(size=(16, 16), image_mean=(0.4, 0.5, 0.6), image_std=(0.2, 0.3, 0.25))
    x = np.random.default_rng(0).random((2, 16, 16, 3), np.float32)
    adapter.export(plain, x, tmp_path / "g.onnx", params=weights(), preprocess=spec)
    with ox.open(tmp_path / "g.onnx") as explainer:
        (one, _) = explainer.explain(x, ox.methods.IntegratedGradients(steps=64), 2)
        assert one.attribution.shape == (16, 16, 3)
        assert one.diagnostics["completeness_gap"] < 0.05
    mean, std = np.array(spec.image_mean, np.float32), np.array(spec.image_std, np.float32)
    theirs = np.asarray(jax.grad(lambda x: plain(weights(), (x - mean) / std)[:, 2].sum())(x))
    with ox.open(tmp_path / "g.onnx") as explainer:
        np.testing.assert_allclose(explainer.gradients(x, 2).gradient, theirs, atol=NOISE * np.abs(theirs).max())


WINDOWS = {
    "max": lambda x: jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 3, 3, 1), (1, 2, 2, 1), "SAME"),
    "sum": lambda x: jax.lax.reduce_window(x, 0.0, jax.lax.add, (1, 3, 2, 1), (1, 2, 2, 1), "SAME"),
    "channels first": lambda x: jax.lax.reduce_window(
        x, -jnp.inf, jax.lax.max, (1, 1, 3, 3), (1, 1, 2, 2), ((0, 0), (0, 0), (1, 1), (0, 1))
    ),
    "one axis": lambda x: jax.lax.reduce_window(x, 0.0, jax.lax.add, (1, 1, 1, 4), (1, 1, 1, 3), "VALID"),
    "none": lambda x: jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 1, 1, 1), (1, 1, 1, 1), "VALID"),
}


@pytest.mark.parametrize("kind", WINDOWS)
def test_windows_slide_along_two_axes(tmp_path: Path, kind: str) -> None:
    draw = np.random.default_rng(0)
    x = draw.standard_normal((3, 7, 6, 5), np.float32)
    pool = WINDOWS[kind]
    outputs = draw.standard_normal((pool(x)[0].size, 4), np.float32)

    def net(x):
        return pool(jnp.tanh(x)).reshape(x.shape[0], -1) @ outputs

    adapter.export(net, x, tmp_path / "g.onnx")
    theirs = np.asarray(jax.grad(lambda x: net(x)[:, 3].sum())(x))
    with ox.open(tmp_path / "g.onnx") as explainer:
        np.testing.assert_allclose(explainer.logits(x), net(x), atol=NOISE * 10)
        ours = explainer.gradients(x, target=3).gradient
    np.testing.assert_allclose(ours, theirs, atol=NOISE * np.abs(theirs).max())


def test_primitives_are_named_in_order() -> None:
    x = np.random.default_rng(0).random((2, 16, 16, 3), np.float32)
    made = adapter.original(plain, x, params=weights())
    found = list(made.layers(x))
    assert [name.split()[0] for name, _ in found] == ["conv_general_dilated", "tanh", "reduce_max", "dot_general"]
    np.testing.assert_allclose(found[-1][1], plain(weights(), x), atol=NOISE)
    inside = adapter.original(jax.jit(jax.checkpoint(lambda x: plain(weights(), jax.nn.relu(x)))), x)
    assert [name.split()[0] for name, _ in inside.layers(x)] == ["max", *(name.split()[0] for name, _ in found)]


def test_a_derivative_of_its_own_is_told(tmp_path: Path) -> None:
    given = weights()

    def net(x):
        return plain(given, x) * jax.lax.stop_gradient(plain(given, x))

    x = np.random.default_rng(0).random((2, 16, 16, 3), np.float32)
    with pytest.raises(ExportError, match=r"is not that of JAX .* and 2 times as long; .*stop_gradient"):
        adapter.export(net, x, tmp_path / "g.onnx")
    assert not list(tmp_path.iterdir())


def test_random_numbers_are_told_from_those_of_the_export(tmp_path: Path) -> None:
    """jax2onnx draws others, and keys are no arrays of floats."""

    def net(x):
        return jnp.tanh(x) + jax.random.normal(jax.random.key(0), (3,))

    with pytest.raises(ExportError, match="first in the layer add"):
        adapter.export(net, np.ones((2, 3), np.float32), tmp_path / "g.onnx")


def test_an_export_that_differs_is_named_by_its_primitive(tmp_path: Path) -> None:
    wrong = weights() | {"head": weights()["head"] * 1.1}
    x = np.random.default_rng(0).random((2, 16, 16, 3), np.float32)
    made = adapter.original(plain, x, params=weights())
    other = adapter.original(plain, x, params=wrong)
    with pytest.raises(ExportError, match="first in the layer dot_general 3;"):
        export_original(replace(made, write=other.write), tmp_path / "g.onnx")
    assert not list(tmp_path.iterdir())


def test_probabilities_in_pieces_are_refused(tmp_path: Path) -> None:
    """Their logits are not found, and the softmax of probabilities would be explained."""

    given = weights()

    def net(x):
        e = jnp.exp(plain(given, x))
        return e / e.sum(1, keepdims=True)

    with pytest.raises(ExportError, match="next: export what returns logits"):
        adapter.export(net, np.zeros((2, 16, 16, 3), np.float32), tmp_path / "g.onnx")


@pytest.mark.parametrize("wide", [False, True])
def test_jax_is_left_as_it_was(tmp_path: Path, capfd, wide: bool) -> None:
    before = jnp.cumsum, linen.max_pool, nnx.avg_pool
    x, given = np.zeros((2, 16, 16, 3), np.float32), weights()
    with jax.enable_x64(wide):
        adapter.export(plain, x, tmp_path / "g.onnx", params=given)
        assert jax.config.jax_enable_x64 == wide
    assert not jax.config.jax_enable_x64
    assert (jnp.cumsum, linen.max_pool, nnx.avg_pool) == before
    assert capfd.readouterr() == ("", "")


def test_arguments_may_have_no_names(tmp_path: Path) -> None:
    """jax2onnx itself does not take these."""

    def net(x):
        y = linen.max_pool(jnp.tanh(x), (2, 2), (2, 2))
        y = nnx.avg_pool(jnp.cumsum(y, 3), (2, 2), (1, 1), "SAME")
        return jnp.take(y, np.array([0, 2]), 3).reshape(x.shape[0], -1)

    x = np.random.default_rng(0).standard_normal((2, 6, 6, 3), np.float32)
    adapter.export(net, x, tmp_path / "g.onnx")
    theirs = np.asarray(jax.grad(lambda x: net(x)[:, 3].sum())(x))
    with ox.open(tmp_path / "g.onnx") as explainer:
        np.testing.assert_allclose(explainer.logits(x), net(x), atol=NOISE)
        ours = explainer.gradients(x, target=3).gradient
    np.testing.assert_allclose(ours, theirs, atol=NOISE * np.abs(theirs).max())


class Switched(linen.Module):
    @linen.compact
    def __call__(self, x, train=True):
        x = linen.BatchNorm(use_running_average=not train)(linen.Dense(4)(x))
        return linen.Dense(3)(linen.Dropout(0.5, deterministic=not train)(jnp.tanh(x)))


def test_an_argument_for_training_is_false() -> None:
    x = np.random.default_rng(0).standard_normal((4, 6), np.float32)
    net = Switched()
    variables = net.init(jax.random.key(0), x, train=False)
    found = adapter.original(net, x, params=variables).outputs(x)
    np.testing.assert_allclose(found, net.apply(variables, x, train=False), atol=NOISE)


def test_parameters_and_vectorised_modules_are_taken_as_they_are() -> None:
    x = np.random.default_rng(0).standard_normal((4, 6), np.float32)
    dense = linen.Dense(3)
    variables = dense.init(jax.random.key(0), x)
    found = adapter.original(dense, x, params=variables["params"]).outputs(x)
    np.testing.assert_allclose(found, dense.apply(variables, x), atol=NOISE)
    one = eqx.nn.MLP(6, 3, 5, 1, key=jax.random.key(0))
    for net in (one, eqx.filter_vmap(one), jax.vmap(one)):
        np.testing.assert_allclose(adapter.original(net, x).outputs(x), jax.vmap(one)(x), atol=NOISE)


@pytest.mark.parametrize(
    ("net", "params", "shape", "said"),
    [
        (lambda: OfNNX(), None, (16, 16, 3), "2 of its layers are in training mode, [A-Za-z]+.[a-z_]+=False first"),
        (lambda: OfEquinox(), None, (3, 16, 16), "2 of its layers are in training mode, Dropout"),
        (lambda: OfLinen(), None, (16, 16, 3), "give its variables as params"),
        (lambda: lambda x: (x, x), None, (4,), "returns a tuple"),
        (lambda: lambda x: {"logits": x}, None, (4,), "returns a dict"),
        (lambda: lambda x: x.sum(), None, (4,), r"of shape \[\] for 2 images"),
        (lambda: lambda x: x.argmax(1), None, (4,), "expected float32"),
        (lambda: lambda x: x @ np.zeros((7, 2)), None, (4,), "raised TypeError for images of shape"),
        (lambda: lambda x: x.astype(jnp.bfloat16), None, (4,), "returns bfloat16 .*expected float32"),
        (lambda: lambda x: x + 1j, None, (4,), "returns complex64 .*expected float32"),
        (lambda: lambda x: 2 * x if x.sum() > 0 else x, None, (4,), "raised TracerBoolConversionError"),
    ],
)
def test_what_is_no_classifier_is_refused(tmp_path: Path, net, params, shape, said: str) -> None:
    with pytest.raises(ExportError, match=said):
        adapter.export(net(), np.ones((2, *shape), np.float32), tmp_path / "g.onnx", params=params)
    assert not list(tmp_path.iterdir())


def test_what_the_exporter_does_not_know_is_refused(tmp_path: Path) -> None:
    def eigen(x):
        return jnp.linalg.eigvalsh(x @ x.transpose(0, 2, 1))

    def by_length(x):
        return jnp.tanh(x).reshape(len(x), -1)

    for net, shape in ((eigen, (2, 4, 4)), (by_length, (2, 4, 4, 3))):
        with pytest.raises(ExportError, match=r"jax2onnx cannot convert it \(.+\); next: "):
            adapter.export(net, np.ones(shape, np.float32), tmp_path / "g.onnx")
    assert not list(tmp_path.iterdir())


def test_objects_find_their_adapter() -> None:
    assert from_object(nnx_net()[0], "mine", (16, 16, 3)).image_shape == (16, 16, 3)
    spec = PreprocessSpec(size=(16, 16))
    assert from_object(CASES["equinox"]()[0], "mine", preprocess=spec).image_shape == (3, 16, 16)
    with pytest.raises(UsageError, match="how large"):
        from_object(nnx_net()[0], "mine")


def test_without_jax_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jax", None)
    with pytest.raises(BackendMissing, match=r"onnxplain\[jax\]"):
        adapter.original(plain, np.zeros((2, 4, 4, 3), np.float32))
