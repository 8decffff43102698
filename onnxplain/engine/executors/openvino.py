"""OpenVINO as an executor, on the CPU. The only file that imports it."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx.external_data_helper import ExternalDataInfo, uses_external_data

from onnxplain.engine.executors.protocol import Array, Closing, TensorSpec, check_feeds
from onnxplain.errors import BackendFailed, ExecutionError, OutOfMemory, UsageError, importing

DEVICE = "CPU"
# float32 throughout: it would take bfloat16 on processors that have it.
EXACT = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}


class OpenVinoExecutor(Closing):
    """A model that OpenVINO has compiled for the CPU, computed in float32.

    `threads` bounds its threads (0: it decides). `options` are its properties, such as `CACHE_DIR`. `folder` is where
    weights lie that the model has in files of their own.
    """

    def __init__(
        self,
        model: onnx.ModelProto | bytes,
        *,
        threads: int = 0,
        options: Mapping[str, str] | None = None,
        folder: str | os.PathLike[str] | None = None,
    ) -> None:
        with importing("openvino", "openvino"):
            import openvino as ov
        if taken := sorted({"INFERENCE_PRECISION_HINT", "INFERENCE_NUM_THREADS"} & set(options or {})):
            raise UsageError(
                f"provider option {taken[0]}: is set by precision and threads, which results record; next: leave it out"
            )
        proto = onnx.load_from_string(model) if isinstance(model, bytes) else model
        settings: dict[str, Any] = EXACT | ({"INFERENCE_NUM_THREADS": threads} if threads else {}) | dict(options or {})
        core = ov.Core()
        check_options(core, dict(options or {}))
        try:
            compiled = core.compile_model(read(core, proto, folder), DEVICE, settings)
        except Exception as error:  # its exceptions are RuntimeError, or ov.Exception
            raise failed("refused the model", error) from error
        self._request: Any = compiled.create_infer_request()
        weights = {tensor.name for tensor in proto.graph.initializer}
        self.inputs: Mapping[str, TensorSpec] = {
            value.name: declared(value) for value in proto.graph.input if value.name not in weights
        }
        # An input that has no effect is none any more.
        self._inputs = {name: port for port in compiled.inputs for name in port.get_names() if name in self.inputs}
        self._outputs = {value.name: port for value, port in zip(proto.graph.output, compiled.outputs, strict=True)}
        self.outputs: Mapping[str, TensorSpec] = {name: spec(port) for name, port in self._outputs.items()}
        self.facts: Mapping[str, Any] = {
            "runtime": "openvino",
            "version": ov.__version__,
            "device": core.get_property(DEVICE, "FULL_DEVICE_NAME"),
        }

    def __call__(self, feeds: Mapping[str, Array], /) -> Mapping[str, Array]:
        if self._request is None:
            raise ExecutionError("this executor is closed")
        check_feeds(self.inputs, feeds)
        try:
            answer = self._request.infer(
                {port: np.ascontiguousarray(feeds[name]) for name, port in self._inputs.items()}
            )
        except Exception as error:
            raise failed("failed while running the model", error) from error
        return {name: answer[output] for name, output in self._outputs.items()}

    def close(self) -> None:
        self._request = None


def check_options(core: Any, options: Mapping[str, str]) -> None:
    """Raise `UsageError` for a property that OpenVINO does not know, or not with that value."""
    known = core.get_property(DEVICE, "SUPPORTED_PROPERTIES")  # which loads the plugin: it would check nothing before
    for name, value in options.items():
        try:
            core.set_property(DEVICE, {name: value})
        except Exception as error:
            settable = ", ".join(sorted(each for each, mutable in known.items() if mutable != "RO"))
            raise UsageError(
                f"provider option {name}={value}: OpenVINO says: {last_line(error)}; next: use one of {settable}"
            ) from error


def read(core: Any, proto: onnx.ModelProto, folder: str | os.PathLike[str] | None) -> Any:
    """The model as OpenVINO has it. It finds files of weights beside a file of the model only, and follows no links."""
    places = {ExternalDataInfo(tensor).location for tensor in proto.graph.initializer if uses_external_data(tensor)}
    if not places:
        return core.read_model(proto.SerializeToString())
    with tempfile.TemporaryDirectory() as scratch:
        for place in places:
            beside = Path(scratch, place)
            if Path(place).is_absolute() or ".." in Path(place).parts:
                raise BackendFailed(f"weights in {place}: a file outside of the model's folder is not read")
            beside.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(Path(folder or ".", place), beside)
        file = Path(scratch, "model.onnx")
        file.write_bytes(proto.SerializeToString())
        return core.read_model(file)


def failed(what: str, error: Exception) -> BackendFailed:
    """The runtime's error as one of ours."""
    kind = OutOfMemory if "bad_alloc" in str(error) or "memory" in str(error).lower() else BackendFailed
    return kind(f"openvino {what}: {last_line(error)}")


def last_line(error: Exception) -> str:
    """Of what OpenVINO says, what went wrong; the lines before tell where in its source."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__


def declared(value: onnx.ValueInfoProto) -> TensorSpec:
    """dtype and shape of an input, as the model has it."""
    kind = value.type.tensor_type
    shape = tuple(d.dim_value if d.HasField("dim_value") else d.dim_param or None for d in kind.shape.dim)
    return TensorSpec(onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type), shape)


def spec(port: Any) -> TensorSpec:
    """dtype and shape of an output; a free dimension has no name here."""
    shape = tuple(d.get_length() if d.is_static else None for d in port.get_partial_shape())
    return TensorSpec(np.dtype(port.get_element_type().to_dtype()), shape)
