"""Keras 3 on whatever backend it runs, and TensorFlow's SavedModel.

A model on TensorFlow is converted by tf2onnx; one on PyTorch is a module, and one on JAX a function, and they go the
ways of those. `.keras` files are read in Keras' safe mode, which runs no code of theirs, and a SavedModel only if its
graph does nothing but compute.
"""

from __future__ import annotations

import os
import re
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import onnx
import onnx.parser
from onnx import helper, numpy_helper

from onnxplain.adapters.export import Exported, export_original
from onnxplain.adapters.original import Original, require
from onnxplain.adapters.pytorch import first_line
from onnxplain.adapters.saved_model import require_harmless
from onnxplain.engine.requests import Array
from onnxplain.errors import BackendMissing, ExportError, InputError, OnnxplainError, UsageError
from onnxplain.models.preprocess import PreprocessSpec

if TYPE_CHECKING:
    import keras

Run: TypeAlias = Callable[[Any], Any]

OPSET = 18
BACKENDS = ("tensorflow", "jax", "torch")
IMAGENET = {"image_mean": (0.485, 0.456, 0.406), "image_std": (0.229, 0.224, 0.225)}
MODES: Mapping[str, Mapping[str, Any]] = {  # of keras.applications' preprocess_input
    "tf": {"image_mean": (0.5, 0.5, 0.5), "image_std": (0.5, 0.5, 0.5)},  # -1 to 1
    "torch": IMAGENET,
    "caffe": {"rescale_factor": 1.0, "image_mean": (123.68, 116.779, 103.939), "do_flip_channel_order": True},
    "none": {"rescale_factor": 1.0},  # 0 to 255, for what has a Rescaling of its own
}


def preprocess_input(mode: str, size: tuple[int, int]) -> PreprocessSpec:
    """What `preprocess_input` of keras.applications does in one of its modes, after resizing to `size` (H, W).

    "tf" is that of MobileNet v1 and v2, Inception, Xception, NASNet and ResNet v2; "caffe" that of ResNet v1 and VGG;
    "torch" that of DenseNet; "none" that of EfficientNet, MobileNet v3, ConvNeXt and RegNet, which rescale themselves.
    """
    if mode not in MODES:
        raise UsageError(f"keras:{mode}: there is no such preprocessing; next: use one of {', '.join(MODES)}")
    return PreprocessSpec(size=size, **MODES[mode])


def export(
    model: keras.Model,
    example: Array | None,
    out: str | os.PathLike[str],
    *,
    preprocess: PreprocessSpec | None = None,
    labels: Sequence[str] | None = None,
    name: str | None = None,
    **how: Any,
) -> Exported:
    """Write the gradient model of a Keras classifier, checked against the outputs and gradients of its backend.

    Args:
        model: a built model with one image input and one output, logits or probabilities (N, K).
        example: images as it takes them, float32 (N, H, W, C), at which the export is checked; None: random ones.
        out: the gradient model's file.
        preprocess: how a photo becomes an image, such as `preprocess_input("tf", (224, 224))`; None: its input is
            taken as it is.
        labels: the names of the K classes.
        name: what messages and the file call the classifier; None: that of the model.
        how: the other arguments of `export_original`.

    Raises:
        ExportError: it is no such classifier, or cannot be exported, or its export differs from it.
        Otherwise as `export_original`.
    """
    return export_original(original(model, example, preprocess=preprocess, labels=labels, name=name), out, **how)


def load(path: str | os.PathLike[str]) -> Original:
    """A `.keras` file, or the folder of a SavedModel.

    Raises `InputError` if it cannot be read, or wants to run code.
    """
    if Path(path).is_dir():
        return of_saved_model(Path(path))
    keras = load_keras()
    try:
        with muted():
            model = keras.models.load_model(path, compile=False, safe_mode=True)
    except Exception as error:
        raise InputError(
            f"{path}: Keras does not load it in safe mode ({reason(error)}); next: if you trust it, load it in a "
            "function of your own, and give module:function, or export it from Python"
        ) from error
    return original(model, name=str(path))


def reason(error: Exception) -> str:
    """What Keras has against a model, without the configuration and the arguments that it repeats."""
    text = str(error).split("Exception encountered: ")[-1]
    text = re.split(r"Example error message for object .*:\n|\x1b\[1m", text)[-1].replace("\x1b[0m", "").strip()
    return (text.splitlines() or [type(error).__name__])[0][:200].rstrip(".;: ")


def original(
    model: keras.Model,
    example: Array | None = None,
    *,
    preprocess: PreprocessSpec | None = None,
    labels: Sequence[str] | None = None,
    name: str | None = None,
) -> Original:
    """A Keras classifier with its gradients and layers; see `export`. Raises `ExportError` if it is none."""
    keras = load_keras()
    name = name or str(getattr(model, "name", type(model).__name__))
    if not isinstance(model, keras.Model):
        raise ExportError(f"{name}: expected a keras.Model, got {type(model).__name__}; next: give one")
    shape = image_shape(model, name, example)
    require_floats(keras, model, name)
    given = None if example is None else np.ascontiguousarray(example, np.float32)
    zeros = np.zeros((2, *shape), np.float32)
    about: dict[str, Any] = {"preprocess": preprocess, "labels": labels, "name": name}
    framework = f"Keras {keras.__version__} on {keras.backend.backend()}"
    match keras.backend.backend():
        case "torch":
            from onnxplain.adapters import pytorch

            made = pytorch.original(model.eval(), zeros, **about)
        case "jax":
            from onnxplain.adapters import jax

            made = jax.original(lambda x: model(x, training=False), zeros, **about)
        case _:
            try:
                made = of_tensorflow(lambda x: model(x, training=False), shape, **about)
            except OnnxplainError:
                raise
            except Exception as error:
                raise ExportError(
                    f"{name}: it fails at two images of shape {list(shape)} ({reason(error)}); next: correct it"
                ) from error
    return replace(made, images=given, framework=framework, layers=layers_of(keras, model))


def load_keras() -> Any:
    """Import Keras, and its backend with it."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    try:
        with muted():
            return require("keras", "keras")
    except ModuleNotFoundError as error:
        if error.name in BACKENDS:
            raise BackendMissing(f"{error.name}, on which Keras is to run,", "keras") from error
        raise


def image_shape(model: keras.Model, name: str, example: Array | None) -> tuple[int, ...]:
    """The shape of one image. Raises `ExportError` if a model has none, or several."""
    inputs, outputs = getattr(model, "inputs", None), getattr(model, "outputs", None)
    if not inputs and example is not None:
        return tuple(np.shape(example)[1:])
    if not inputs:
        raise ExportError(f"{name}: not built, so nobody knows its input; next: call it once, or give an example")
    if len(inputs) != 1 or len(outputs or ()) != 1:
        raise ExportError(
            f"{name}: expected one input and one output, got {len(inputs)} and {len(outputs or ())}; next: make a "
            "keras.Model of the image and the logits"
        )
    shape = tuple(inputs[0].shape[1:])
    if None in shape:
        if example is None:
            raise ExportError(f"{name}: its input {shape} leaves sizes open; next: give an example, or build it anew")
        shape = tuple(np.shape(example)[1:])
    return shape


def require_floats(keras: Any, model: keras.Model, name: str) -> None:
    """Raise `ExportError` if a model takes integers, or computes in what ONNX Runtime or a derivative cannot follow."""
    for image in getattr(model, "inputs", None) or ():
        if not keras.backend.is_float_dtype(image.dtype):
            raise ExportError(
                f"{name}: its input is {image.dtype}, which has no derivative; next: build it with an Input of float32"
            )
    for layer in every_layer(model):
        policy = layer.dtype_policy
        if policy.compute_dtype in ("bfloat16", "float64") or getattr(policy, "quantization_mode", None):
            raise ExportError(
                f"{name}: its layer {layer.name} computes in {policy.name}, expected float32; next: build it with the "
                "policy float32, and load its weights"
            )


def every_layer(model: keras.Model) -> Iterator[keras.Layer]:
    """Its layers, and those of the models among them."""
    for layer in model.layers:
        yield layer
        if hasattr(layer, "layers"):
            yield from every_layer(layer)


def of_tensorflow(
    run: Run,
    shape: tuple[int, ...],
    *,
    preprocess: PreprocessSpec | None = None,
    labels: Sequence[str] | None = None,
    name: str,
) -> Original:
    """A function of TensorFlow from images to outputs."""
    tf = require("tensorflow", "keras")

    def call(x: Any) -> Any:
        y = run(x)
        if isinstance(y, dict | list | tuple):
            values = list(y.values()) if isinstance(y, dict) else list(y)
            if len(values) != 1:
                raise ExportError(
                    f"{name}: it returns {len(values)} outputs, expected one; next: make a model of the image and the "
                    "logits"
                )
            (y,) = values
        return y

    def outputs(images: Array) -> Array:
        with muted():
            y = np.asarray(call(tf.constant(images)))
        if y.ndim < 2 or len(y) != len(images) or any(size != 1 for size in y.shape[2:]):
            raise ExportError(
                f"{name}: it returns an array of shape {list(y.shape)} for {len(images)} images, expected (N, K); "
                "next: give a classifier"
            )
        return y.reshape(len(y), -1)

    def gradients(images: Array, weights: Array) -> Array:
        x = tf.constant(images)
        with muted(), tf.GradientTape() as tape:
            tape.watch(x)
            total = tf.reduce_sum(tf.reshape(call(x), weights.shape) * weights)
        gradient = tape.gradient(total, x)
        if gradient is None:
            raise ExportError(f"{name}: its outputs have no gradient in TensorFlow; next: look for stop_gradient")
        return np.asarray(gradient)

    outputs(np.zeros((2, *shape), np.float32))  # raises if this is no classifier

    def write(path: Path) -> Sequence[str]:
        with muted(), warnings.catch_warnings(action="ignore"):
            converter = require("tf2onnx", "keras")
            signature = [tf.TensorSpec((None, *shape), tf.float32, name="input")]
            function = tf.function(lambda input: tf.identity(call(input), name="outputs"), input_signature=signature)
            try:
                with functions_inlined(tf):
                    converter.convert.from_function(
                        function, input_signature=signature, opset=OPSET, output_path=str(path)
                    )
                    captures = function.get_concrete_function().graph.captures
            except Exception as error:
                raise ExportError(
                    f"{name}: tf2onnx cannot convert it ({last_line(error)}); next: replace what it does not know"
                ) from error
        constants = {inside.name: value.numpy() for value, inside in captures if value.dtype != tf.resource}
        tidy(path, name, constants)
        return ()

    return Original(
        name=name,
        framework=f"TensorFlow {tf.__version__}",
        image_shape=shape,
        write=write,
        outputs=outputs,
        gradients=gradients,
        preprocess=preprocess,
        labels=labels,
        provenance={"exporter": f"tf2onnx {require('tf2onnx', 'keras').__version__}"},
    )


@contextmanager
def functions_inlined(tf: Any) -> Iterator[None]:
    """Keras has grouped convolutions compiled, as functions that tf2onnx does not look into; here they are traced."""
    before = tf.config.functions_run_eagerly()
    tf.config.run_functions_eagerly(True)
    try:
        yield
    finally:
        tf.config.run_functions_eagerly(before)


def last_line(error: Exception) -> str:
    """What TensorFlow says of code that it has traced: the reason comes last."""
    if "\x1b[1m" in str(error):
        return reason(error)  # of Keras, which ends with the arguments
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[-1] if lines else type(error).__name__)[:200].rstrip(".;: ")


def tidy(path: Path, name: str, constants: Mapping[str, Array] = MappingProxyType({})) -> None:
    """Write what tf2onnx left of TensorFlow's operators as ONNX, and name batch and output as other exporters do.

    `constants` are the inputs that are none, but values that a function found outside (Keras' Normalization has such).

    Raises `ExportError` if there is an operator that ONNX does not have.
    """
    model = onnx.load(path)
    graph = model.graph
    (output,) = graph.output
    graph.initializer.extend(
        numpy_helper.from_array(constants[v.name], v.name) for v in graph.input if v.name in constants
    )
    inputs = [value for value in graph.input if value.name not in constants]
    del graph.input[:]
    graph.input.extend(inputs)
    nodes = [part for node in graph.node for part in in_onnx(node)]
    del graph.node[:]
    graph.node.extend(nodes)
    for node in graph.node:
        node.output[:] = ["outputs" if name == output.name else name for name in node.output]
        node.input[:] = ["outputs" if name == output.name else name for name in node.input]
    output.name = "outputs"
    for value in (graph.input[0], output):
        if not value.type.tensor_type.shape.dim[0].dim_value:
            value.type.tensor_type.shape.dim[0].dim_param = "N"
    try:
        onnx.checker.check_model(model)
    except onnx.checker.ValidationError as error:
        raise ExportError(f"{name}: tf2onnx made no ONNX of it ({first_line(error)}); next: replace that") from error
    onnx.save(model, path)


# What tf2onnx leaves as it is in TensorFlow and TFLite, in terms of ONNX; Keras has erfc in gelu, and expm1 in celu.
ERFC = "erfc (float x) => (float y) { one = Constant <value = float {1}> () e = Erf (x) y = Sub (one, e) }"
EXPM1 = "expm1 (float x) => (float y) { one = Constant <value = float {1}> () e = Exp (x) y = Sub (e, one) }"
GELU = """gelu (float x) => (float y) {
    half = Constant <value = float {0.5}> ()
    one = Constant <value = float {1}> ()
    scale = Constant <value = float {0.7071067811865476}> ()
    s = Mul (x, scale)
    e = Erf (s)
    h = Mul (half, x)
    f = Add (one, e)
    y = Mul (h, f)
}"""
GELU_BY_TANH = """gelu (float x) => (float y) {
    half = Constant <value = float {0.5}> ()
    one = Constant <value = float {1}> ()
    cubic = Constant <value = float {0.044715}> ()
    scale = Constant <value = float {0.7978845608028654}> ()
    x2 = Mul (x, x)
    x3 = Mul (x2, x)
    c = Mul (cubic, x3)
    a = Add (x, c)
    s = Mul (scale, a)
    t = Tanh (s)
    h = Mul (half, x)
    f = Add (one, t)
    y = Mul (h, f)
}"""


def in_onnx(node: onnx.NodeProto) -> list[onnx.NodeProto]:
    """A node that tf2onnx made, by ONNX's own operators."""
    attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    match node.op_type:
        case "Erfc":
            return written_out(node, ERFC)
        case "Expm1":
            return written_out(node, EXPM1)
        case "TFL_GELU":
            return written_out(node, GELU_BY_TANH if attributes.get("approximate") else GELU)
        case "Resize" if attributes["coordinate_transformation_mode"] == b"tf_half_pixel_for_nn":
            # floor((x + 0.5) / scale), which ONNX no longer has, is half_pixel's coordinate rounded half up
            attributes |= {"coordinate_transformation_mode": "half_pixel", "nearest_mode": "round_prefer_ceil"}
            return [helper.make_node("Resize", node.input, node.output, node.name, **attributes)]
    return [node]


def written_out(node: onnx.NodeProto, text: str) -> list[onnx.NodeProto]:
    """The nodes of a graph from x to y, in place of a node."""
    nodes = list(onnx.parser.parse_graph(text).node)
    names = {"x": node.input[0], "y": node.output[0]}
    for part in nodes:
        for values in (part.input, part.output):
            values[:] = [names.get(value, f"{node.output[0]}.{value}") for value in values]
    return nodes


def layers_of(keras: Any, model: keras.Model) -> Callable[[Array], Iterator[tuple[str, Array]]] | None:
    """The outputs of the layers of a model that is a graph of them; None for others."""
    try:
        layers = [layer for layer in model.layers if not isinstance(layer, keras.layers.InputLayer)]
        inside = keras.Model(model.inputs, [layer.output for layer in layers])
    except (AttributeError, ValueError):
        return None

    def outputs(images: Array) -> Iterator[tuple[str, Array]]:
        values = inside(images, training=False)
        values = values if isinstance(values, list) else [values]
        for layer, value in zip(layers, values, strict=True):
            yield layer.name, np.asarray(keras.ops.convert_to_numpy(value))

    return outputs


def of_saved_model(folder: Path) -> Original:
    """The signature `serving_default` of a SavedModel, or its only one. Raises `InputError` if there is none."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    with muted():
        tf = require("tensorflow", "keras")
        require_harmless(folder)
        try:
            loaded = tf.saved_model.load(str(folder))
        except Exception as error:
            raise InputError(f"{folder}: not a SavedModel ({first_line(error)}); next: save it again") from error
    found = loaded.signatures
    which = "serving_default" if "serving_default" in found or len(found) != 1 else next(iter(found))
    if which not in found:
        raise InputError(f"{folder}: no signature serving_default, it has {list(found)}; next: save it with one")
    function = found[which]
    inputs = function.structured_input_signature[1]
    if len(inputs) != 1:
        raise ExportError(f"{folder}: its signature takes {', '.join(inputs)}, expected one image; next: save another")
    ((key, spec),) = inputs.items()
    shape = tuple(spec.shape[1:])
    if spec.dtype != tf.float32 or None in shape:
        raise ExportError(
            f"{folder}: its input is {spec.dtype.name}{list(spec.shape)}, expected float32 of a fixed size; "
            "next: save it with such a signature"
        )
    # asked of `loaded`, which keeps its variables alive
    made = of_tensorflow(lambda x: loaded.signatures[which](**{key: x}), shape, name=str(folder))
    return replace(made, provenance={**made.provenance, "signature": which})


@contextmanager
def muted() -> Iterator[None]:
    """What is written to stderr meanwhile, by Python or by libraries below it, is lost; errors are raised."""
    sys.stderr.flush()
    kept = os.dup(2)
    with open(os.devnull, "w") as nothing:
        os.dup2(nothing.fileno(), 2)
        try:
            yield
        finally:
            with suppress(OSError):
                sys.stderr.flush()
            os.dup2(kept, 2)
            os.close(kept)
