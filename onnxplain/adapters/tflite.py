"""TFLite files of floats, through tf2onnx; LiteRT says what they compute. There are no gradients to compare with.

Quantised files are refused: their integers round otherwise than ONNX does, so that nothing could be checked.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from onnxplain.adapters.keras import OPSET, last_line, muted, tidy
from onnxplain.adapters.original import Original, require
from onnxplain.adapters.pytorch import first_line
from onnxplain.engine.requests import Array
from onnxplain.errors import ExportError, InputError


def load(path: str | os.PathLike[str]) -> Original:
    """A `.tflite` file.

    Raises:
        BackendMissing: LiteRT or tf2onnx is not installed.
        InputError: it cannot be read.
        ExportError: it is quantised, or no classifier.
    """
    require("ai_edge_litert", "tflite")
    from ai_edge_litert.interpreter import Interpreter

    name = str(path)
    try:
        with muted(), warnings.catch_warnings(action="ignore"):
            interpreter = Interpreter(model_path=name, experimental_preserve_all_tensors=True)
    except Exception as error:
        raise InputError(f"{name}: not a TFLite file ({first_line(error)}); next: convert it again") from error
    require_float_classifier(interpreter, name)
    try:
        with muted():
            interpreter.allocate_tensors()
    except Exception as error:
        raise ExportError(
            f"{name}: LiteRT does not run it ({first_line(error)}); next: convert it to TFLite's own operators"
        ) from error
    inputs, outputs = interpreter.get_input_details(), interpreter.get_output_details()
    shape = tuple(map(int, inputs[0]["shape"][1:]))

    def ask(image: Array) -> None:
        interpreter.set_tensor(inputs[0]["index"], image[None])
        interpreter.invoke()

    def run(images: Array) -> Array:
        found = []
        for image in images:
            ask(image)
            found.append(interpreter.get_tensor(outputs[0]["index"]).reshape(-1))
        return np.stack(found)

    with muted():
        exporter = f"tf2onnx {require('tf2onnx', 'tflite').__version__}"
    return Original(
        name=name,
        framework=f"LiteRT {version()}",
        image_shape=shape,
        write=lambda file: write(name, file),
        outputs=run,
        layers=lambda images: tensors(interpreter, ask, images),
        provenance={"exporter": exporter},
    )


def require_float_classifier(interpreter: Any, name: str) -> None:
    """Raise `ExportError` unless a model takes float32 images of a fixed size one by one, and has one output."""
    inputs, outputs = interpreter.get_input_details(), interpreter.get_output_details()
    if len(inputs) != 1 or len(outputs) != 1:
        raise ExportError(
            f"{name}: expected one input and one output, got {len(inputs)} and {len(outputs)}; "
            "next: convert a classifier"
        )
    quantised = [t["name"] for t in interpreter.get_tensor_details() if len(t["quantization_parameters"]["scales"])]
    if quantised:
        raise ExportError(
            f"{name}: quantised ({len(quantised)} tensors), and rounds otherwise than its export would; "
            "next: convert it to TFLite without optimisations"
        )
    ((given, made),) = zip(inputs, outputs, strict=True)
    if given["dtype"] is not np.float32 or made["dtype"] is not np.float32:
        raise ExportError(
            f"{name}: its input is {given['dtype'].__name__} and its output {made['dtype'].__name__}, expected float32 "
            "for both; next: convert the part between the images as floats and the logits"
        )
    batch, *sizes = map(int, given["shape_signature"])
    if batch not in (-1, 1) or -1 in sizes:
        raise ExportError(
            f"{name}: its input has the shape {[batch, *sizes]}, expected images of a fixed size, one by one or as "
            f"many as there are; next: convert it with an input such as {[1, 224, 224, 3]}"
        )


def version() -> str:
    from importlib.metadata import version

    return version("ai-edge-litert")


def write(name: str, file: Path) -> Sequence[str]:
    """Write it as ONNX."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    with muted(), warnings.catch_warnings(action="ignore"):
        converter = require("tf2onnx", "tflite")
        try:
            converter.convert.from_tflite(name, opset=OPSET, output_path=str(file))
        except Exception as error:
            raise ExportError(
                f"{name}: tf2onnx cannot convert it ({last_line(error)}); next: replace what it does not know"
            ) from error
    tidy(file, name)
    return ()


def tensors(interpreter: Any, ask: Any, images: Array) -> Iterator[tuple[str, Array]]:
    """What the operators make of images, in the order of the file."""
    details = interpreter.get_tensor_details()
    rows: list[dict[str, Array]] = []
    for image in images:
        ask(image)
        row = {}
        for tensor in details:
            shape = tensor["shape"]
            if tensor["dtype"] is np.float32 and len(shape) > 1 and shape[0] == 1 and tensor["name"]:
                try:
                    row[tensor["name"]] = interpreter.get_tensor(tensor["index"])
                except ValueError:  # of a delegate's, which keeps it to itself
                    continue
        rows.append(row)
    for name in rows[0]:
        yield name, np.concatenate([row[name] for row in rows])
