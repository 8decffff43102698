"""Keras on each of its backends, `.keras` files and SavedModels, held against the backend's own gradients."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from frameworks import framework

os.environ.setdefault("KERAS_BACKEND", "tensorflow")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
tf = framework("tensorflow")
keras = framework("keras")
framework("tf2onnx")
from PIL import Image  # noqa: E402

import onnxplain as ox  # noqa: E402
from onnxplain.adapters import keras as adapter  # noqa: E402
from onnxplain.adapters.sources import load  # noqa: E402
from onnxplain.errors import BackendMissing, ExportError, InputError, UsageError  # noqa: E402
from onnxplain.models.preprocess import load_image, normalise, to_input  # noqa: E402

layers = keras.layers
TRIP = Path(__file__).with_name("keras_trip.py")
# Both sides round in float32: 1e-5 of the largest value is some eighty roundings of it, on nets of a few layers.
NOISE = 1e-5
pytestmark = pytest.mark.filterwarnings("ignore")  # of the frameworks' own code


def trip(backend: str, folder: Path) -> dict:
    environment = {**os.environ, "KERAS_BACKEND": backend}
    done = subprocess.run(
        [sys.executable, TRIP, folder], env=environment, capture_output=True, text=True, check=False, timeout=600
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("backend", ["tensorflow", "jax", "torch"])
def test_every_backend_agrees_with_its_own_gradients(tmp_path: Path, backend: str) -> None:
    for needed in {"jax": ("jax", "jax2onnx"), "torch": ("torch", "onnxscript")}.get(backend, ()):
        framework(needed)
    found = trip(backend, tmp_path)
    for name, numbers in found.items():
        assert numbers["framework"].endswith(f"on {backend}"), name
        assert numbers["gradient"] < NOISE, name
        assert numbers["value"] < NOISE, name
        assert numbers["agreement"][2] > 1 - 1e-9
    assert found["convolutional"]["layers"] == [
        "stem", "norm", "swish", "depthwise", "add", "pool", "mean", "dropout", "head"
    ]  # fmt: skip


def net(**more) -> keras.Model:
    keras.utils.set_random_seed(0)
    return keras.Sequential(
        [
            keras.Input((16, 16, 3)),
            layers.Conv2D(6, 3, activation="tanh", name="stem"),
            layers.AveragePooling2D(2, name="pool"),
            layers.Flatten(name="flat"),
            layers.Dense(5, name="head"),
        ],
        **more,
    )


@pytest.fixture
def x():
    return np.random.default_rng(0).random((4, 16, 16, 3), np.float32)


def gradient_of(model, x, target: int):
    image = tf.Variable(x)
    with tf.GradientTape() as tape:
        value = tf.reduce_sum(model(image, training=False)[:, target])
    return tape.gradient(value, image).numpy()


def test_files_and_saved_models_are_exported(tmp_path: Path, x, capfd) -> None:
    model = net()
    model.save(tmp_path / "m.keras")
    model.export(tmp_path / "saved", verbose=False)
    capfd.readouterr()
    for source in ("m.keras", "saved"):
        done = ox.export(tmp_path / source, tmp_path / f"{source}.onnx", preprocess="keras:tf", labels=list("abcde"))
        assert done.agreement is not None
        assert done.agreement.cosine == pytest.approx(1, abs=1e-6)
        with ox.open(tmp_path / f"{source}.onnx") as explainer:
            ours = explainer.gradients(x, target=3).gradient
            assert explainer.labels == list("abcde")
        theirs = 2 * gradient_of(model, 2 * x - 1, 3)
        np.testing.assert_allclose(ours, theirs, atol=NOISE * np.abs(theirs).max())
    assert capfd.readouterr() == ("", "")


def test_a_layer_that_its_export_gets_wrong_is_named(tmp_path: Path, x) -> None:
    from dataclasses import replace

    from onnxplain.adapters.export import export_original

    model, other = net(), net()
    kernel, bias = other.get_layer("head").get_weights()
    other.get_layer("head").set_weights([kernel * 1.1, bias])
    wrong = replace(adapter.original(model, x), write=adapter.original(other).write)
    with pytest.raises(ExportError, match="first in the layer head;"):
        export_original(wrong, tmp_path / "g.onnx")


@pytest.mark.parametrize("mode", adapter.MODES)
def test_modes_are_those_of_keras_applications(tmp_path: Path, mode: str) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (8, 9, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "p.png")
    spec = adapter.preprocess_input(mode, (8, 9))
    ours = normalise(to_input(load_image(tmp_path / "p.png", spec), channel_axis=-1), spec, channel_axis=-1)
    theirs = pixels.astype(np.float32)
    if mode != "none":
        from keras.src.applications.imagenet_utils import preprocess_input

        theirs = preprocess_input(theirs, mode=mode)
    np.testing.assert_allclose(ours, theirs, atol=1e-4)


def test_modes_that_are_none(tmp_path: Path) -> None:
    net().save(tmp_path / "m.keras")
    with pytest.raises(UsageError, match="keras:tf2: there is no such preprocessing; next: use one of tf, torch"):
        ox.export(tmp_path / "m.keras", tmp_path / "g.onnx", preprocess="keras:tf2")
    with pytest.raises(UsageError, match="no preprocessing found"):
        ox.export(tmp_path / "m.keras", tmp_path / "g.onnx")


def two_outputs():
    image = keras.Input((8, 8, 3))
    x = layers.Flatten()(image)
    return keras.Model(image, {"a": layers.Dense(2)(x), "b": layers.Dense(3)(x)})


def two_inputs():
    images = [keras.Input((8,)), keras.Input((8,))]
    return keras.Model(images, layers.Dense(2)(layers.Concatenate()(images)))


def quantised():
    model = net()
    model.quantize("int8")
    return model


def halved():
    """A model whose inner model computes in bfloat16."""
    inner = keras.Sequential([keras.Input((4,)), layers.Dense(2, dtype="mixed_bfloat16", name="last")])
    return keras.Sequential([keras.Input((4,)), inner, layers.Dense(3)])


class Unbuilt(keras.Model):
    def call(self, x):
        return x


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (two_outputs, "got 1 and 2"),
        (two_inputs, "got 2 and 1"),
        (lambda: Unbuilt(name="mine"), "mine: not built"),
        (lambda: keras.Sequential([keras.Input((None, None, 3)), layers.Conv2D(2, 3)]), "leaves sizes open"),
        (lambda: keras.Sequential([keras.Input((8, 8, 3)), layers.Conv2D(2, 3)]), r"array of shape \[2, 6, 6, 2\]"),
        (lambda: 7, "got int"),
        (lambda: keras.Sequential([keras.Input((8,), dtype="uint8"), layers.Dense(2)]), "its input is uint8"),
        (halved, "its layer last computes in mixed_bfloat16"),
        (quantised, "its layer head computes in int8_from_float32"),
        (
            lambda: keras.Sequential(
                [keras.Input((4, 8), batch_size=4), layers.LSTM(4, stateful=True, name="memory")], name="mine"
            ),
            r"mine: it fails at two images of shape \[4, 8\] \(If an RNN is stateful, the batch size",
        ),
    ],
)
def test_what_is_no_classifier_is_refused(tmp_path: Path, model, said: str) -> None:
    with pytest.raises(ExportError, match=said):
        adapter.export(model(), None, tmp_path / "g.onnx")
    assert not list(tmp_path.iterdir())


class Peeking(keras.Model):
    """Does in Python what TensorFlow would have to do."""

    def call(self, x):
        return x * float(keras.ops.convert_to_numpy(keras.ops.sum(x)))


def test_what_keras_says_of_code_that_cannot_be_traced_is_passed_on(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"tf2onnx cannot convert it \(Cannot convert a symbolic tf.Tensor"):
        adapter.export(Peeking(), np.ones((4, 5), np.float32), tmp_path / "g.onnx")


def test_grouped_convolutions_and_celu(tmp_path: Path, x) -> None:
    model = keras.Sequential(
        [
            keras.Input((16, 16, 3)),
            layers.Conv2D(6, 3, groups=3, activation="celu"),
            layers.GlobalAveragePooling2D(),
            layers.Dense(5),
        ]
    )
    adapter.export(model, x, tmp_path / "g.onnx")
    with ox.open(tmp_path / "g.onnx") as explainer:
        ours = explainer.gradients(x, target=3).gradient
    assert not tf.config.functions_run_eagerly()
    theirs = gradient_of(model, x, 3)
    np.testing.assert_allclose(ours, theirs, atol=NOISE * np.abs(theirs).max())


@pytest.mark.parametrize("saved", [False, True])
def test_values_that_are_no_variables_are_no_inputs(tmp_path: Path, x, saved: bool) -> None:
    first = layers.Normalization(mean=(0.1, 0.2, 0.3), variance=(0.5, 0.6, 0.7))
    model = keras.Sequential([keras.Input((16, 16, 3)), first, net()])
    if saved:
        model.export(tmp_path / "m", verbose=False)
        ox.export(tmp_path / "m", tmp_path / "g.onnx", preprocess=None)
    else:
        adapter.export(model, x, tmp_path / "g.onnx")
    with ox.open(tmp_path / "g.onnx") as explainer:
        ours = explainer.gradients(x, target=3).gradient
    theirs = gradient_of(model, x, 3)
    np.testing.assert_allclose(ours, theirs, atol=NOISE * np.abs(theirs).max())


def test_open_sizes_are_those_of_the_example(tmp_path: Path, x) -> None:
    model = keras.Sequential(
        [keras.Input((None, None, 3)), layers.Conv2D(4, 3), layers.GlobalMaxPooling2D(), layers.Dense(3)]
    )
    done = adapter.export(model, x, tmp_path / "g.onnx")
    assert done.agreement is not None
    assert done.agreement.given


def hostile(path: Path) -> None:
    """A file whose Lambda layer would run code."""
    model = keras.Sequential([keras.Input((4,)), layers.Lambda(lambda x: Path("evil-was-here").touch() or x)])
    model.save(path)
    Path("evil-was-here").unlink()  # building it has run it


def outside(path: Path) -> None:
    """A file whose layer is a function of the standard library."""
    net().save(path)
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    config = json.loads(members["config.json"])
    evil = {"module": "os", "class_name": "function", "config": "system", "registered_name": "system"}
    config["config"]["layers"][1]["config"]["activation"] = evil
    members["config.json"] = json.dumps(config).encode()
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)


@pytest.mark.parametrize("make", [hostile, outside, lambda path: path.write_bytes(b"PK nothing")])
def test_files_that_want_to_run_code_do_not(tmp_path: Path, monkeypatch, make) -> None:
    monkeypatch.chdir(tmp_path)
    make(tmp_path / "m.keras")
    with pytest.raises((InputError, ExportError), match=r"m\.keras: "):
        load(tmp_path / "m.keras")
    assert not (tmp_path / "evil-was-here").exists()


def test_folders_that_are_no_saved_model(tmp_path: Path) -> None:
    (tmp_path / "saved").mkdir()
    (tmp_path / "saved" / "saved_model.pb").write_bytes(b"nothing")
    with pytest.raises(InputError, match="not a SavedModel"):
        load(tmp_path / "saved")

    class Two(tf.Module):
        @tf.function(input_signature=[tf.TensorSpec((None, 4)), tf.TensorSpec((None, 4))])
        def __call__(self, a, b):
            return a + b

    two = Two()
    tf.saved_model.save(two, str(tmp_path / "two"), signatures={"serving_default": two.__call__})
    with pytest.raises(ExportError, match="expected one image"):
        load(tmp_path / "two")


class Writer(tf.Module):
    """Writes a file when it is called."""

    @tf.function(input_signature=[tf.TensorSpec((None, 4))])
    def __call__(self, x):
        tf.io.write_file("evil-was-here", "x")
        return x


class Starter(tf.Module):
    """Writes a file when it is loaded."""

    def __init__(self):
        super().__init__()

        class Table(tf.saved_model.experimental.TrackableResource):
            def _create_resource(self):
                return tf.raw_ops.HashTableV2(key_dtype=tf.string, value_dtype=tf.string)

            def _initialize(self):
                tf.io.write_file("evil-was-here", "x")

        self.table = Table()

    @tf.function(input_signature=[tf.TensorSpec((None, 4))])
    def __call__(self, x):
        return x


class Inner(Writer):
    """Writes a file in a branch of a branch."""

    @tf.function(input_signature=[tf.TensorSpec((None, 4))])
    def __call__(self, x):
        def write():
            tf.io.write_file("evil-was-here", "x")
            return x

        return tf.cond(tf.reduce_sum(x) > 7, lambda: tf.cond(tf.reduce_sum(x) > 9, write, lambda: x), lambda: -x)


class Reader(tf.Module):
    """Reads a file, by an operator that TensorFlow calls stateless."""

    @tf.function(input_signature=[tf.TensorSpec((None, 4))])
    def __call__(self, x):
        return x + tf.cast(tf.strings.length(tf.io.read_file("secret")), tf.float32)


class Sly(tf.Module):
    """Writes a file when it is differentiated."""

    @tf.function(input_signature=[tf.TensorSpec((None, 4))])
    def __call__(self, x):
        @tf.custom_gradient
        def same(x):
            def back(dy):
                tf.io.write_file("evil-was-here", "x")
                return dy

            return tf.identity(x), back

        return same(x)


@pytest.mark.parametrize(
    ("made", "operator"),
    [(Writer, "WriteFile"), (Starter, "WriteFile"), (Inner, "WriteFile"), (Reader, "ReadFile"), (Sly, "WriteFile")],
)
def test_saved_models_that_do_more_than_compute_are_not_loaded(tmp_path, monkeypatch, made, operator: str) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "secret").write_text("x")
    module = made()
    options = tf.saved_model.SaveOptions(experimental_custom_gradients=True)
    tf.saved_model.save(module, "saved", signatures={"serving_default": module.__call__}, options=options)
    (tmp_path / "evil-was-here").unlink(missing_ok=True)
    with pytest.raises(InputError, match=f"saved: its graph has {operator}, which may do more than compute"):
        load(tmp_path / "saved")
    assert not (tmp_path / "evil-was-here").exists()


def test_saved_models_of_tensorflow_1(tmp_path: Path) -> None:
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        x = tf.compat.v1.placeholder(tf.float32, (None, 4))
        tf.compat.v1.saved_model.simple_save(session, str(tmp_path / "saved"), {"x": x}, {"y": x + 1})
    with pytest.raises(InputError, match="a SavedModel of TensorFlow 1; next: load it, and save it with TensorFlow 2"):
        load(tmp_path / "saved")


def reads_another_file(weights) -> None:
    del weights["0"]
    weights.create_dataset("0", (768, 5), "f4", external=[(str(Path("secret").resolve()), 0, 768 * 5 * 4)])


def declares_terabytes(weights) -> None:
    del weights["0"]
    weights.create_dataset("0", (1 << 20, 1 << 20), "f4", chunks=(64, 64), compression="gzip")


@pytest.mark.parametrize("edit", [reads_another_file, declares_terabytes])
def test_weights_that_are_not_in_their_file(tmp_path: Path, monkeypatch, edit) -> None:
    h5py = framework("h5py")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "secret").write_bytes(b"A" * 768 * 5 * 4)
    keras.Sequential([keras.Input((768,)), layers.Dense(5)]).save("m.keras")
    with zipfile.ZipFile("m.keras") as archive:
        archive.extractall("parts")
    with h5py.File("parts/model.weights.h5", "a") as file:
        edit(file["layers/dense/vars"])
    with zipfile.ZipFile("m.keras", "w") as archive:
        for part in Path("parts").iterdir():
            archive.write(part, part.name)
    with pytest.raises(InputError, match="Not allowed: H5"):
        load(tmp_path / "m.keras")


def test_a_backend_that_is_missing_is_named(tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['jax'] = None\n"
        "from onnxplain.adapters.sources import load\n"
        "try: load(sys.argv[1])\n"
        "except Exception as error: sys.exit(f'{type(error).__name__}: {error}')"
    )
    net().save(tmp_path / "m.keras")
    environment = {**os.environ, "KERAS_BACKEND": "jax"}
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path / "m.keras"], env=environment, capture_output=True, text=True, check=False
    )
    assert "BackendMissing: jax, on which Keras is to run, is not installed" in done.stderr
    assert issubclass(BackendMissing, ImportError)
