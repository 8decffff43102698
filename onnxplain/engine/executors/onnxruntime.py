"""ONNX Runtime as an executor. The only file that imports it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx

from onnxplain.engine.executors.protocol import Array, Closing, TensorSpec, check_feeds
from onnxplain.errors import BackendFailed, BackendMissing, ExecutionError

DTYPES = {"float": "float32", "double": "float64", "string": "object"}  # where its names are not NumPy's


class OnnxRuntimeExecutor(Closing):
    """An ONNX Runtime session on the CPU.

    `threads` bounds the threads inside one operator (0: the runtime decides). `optimise=False` turns the graph
    optimiser off, so that two graphs with a common half compute it bit for bit alike. `folder` is where weights lie
    that the model has in files of their own.
    """

    def __init__(
        self,
        model: onnx.ModelProto | bytes,
        *,
        threads: int = 0,
        optimise: bool = True,
        folder: str | os.PathLike[str] | None = None,
    ) -> None:
        try:
            import onnxruntime as ort
        except ImportError as error:
            raise BackendMissing("onnxruntime", "cpu") from error
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3  # errors only: warnings about unused initializers are not the user's business
        level = ort.GraphOptimizationLevel
        options.graph_optimization_level = level.ORT_ENABLE_ALL if optimise else level.ORT_DISABLE_ALL
        if folder is not None:
            options.add_session_config_entry("session.model_external_initializers_file_folder_path", os.fspath(folder))
        data = model if isinstance(model, bytes) else model.SerializeToString()
        try:
            self._session: Any = ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # the runtime's exceptions share no base class but Exception
            raise BackendFailed(f"onnxruntime refused the model: {first_line(error)}") from error
        self.version: str = ort.__version__
        self.inputs: Mapping[str, TensorSpec] = specs(self._session.get_inputs())
        self.outputs: Mapping[str, TensorSpec] = specs(self._session.get_outputs())

    def __call__(self, feeds: Mapping[str, Array], /) -> Mapping[str, Array]:
        if self._session is None:
            raise ExecutionError("this executor is closed")
        check_feeds(self.inputs, feeds)
        try:
            values = self._session.run(None, dict(feeds))
        except Exception as error:
            raise BackendFailed(f"onnxruntime failed while running the model: {first_line(error)}") from error
        return dict(zip(self.outputs, values, strict=True))

    def close(self) -> None:
        self._session = None


def specs(values: Any) -> dict[str, TensorSpec]:
    """Tensor specs of a session's inputs or outputs; what NumPy has no type for (a map, bfloat16) is an object."""

    def dtype(kind: str) -> np.dtype[Any]:
        name = kind.removeprefix("tensor(").removesuffix(")")
        try:
            return np.dtype(DTYPES.get(name, name))
        except (TypeError, ValueError):
            return np.dtype(object)

    return {v.name: TensorSpec(dtype(v.type), tuple(v.shape)) for v in values}


def first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
