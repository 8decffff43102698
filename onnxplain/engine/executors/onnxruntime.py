"""ONNX Runtime as an executor. The only file that imports it."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx

from onnxplain.engine.executors.protocol import Array, Buffer, Closing, TensorSpec, check_binding, check_feeds
from onnxplain.errors import BackendFailed, BackendMissing, ExecutionError, FeedMismatch

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
        cuda = self._session.get_provider_options().get("CUDAExecutionProvider")
        self.own_memory = cuda is not None
        self._device = ("cpu", 0) if cuda is None else ("cuda", int(cuda.get("device_id", 0)))
        self._records = cuda is not None and cuda.get("enable_cuda_graph") == "1"
        self._graphs = itertools.count(1)  # 0 is the runtime's own
        self.inputs: Mapping[str, TensorSpec] = specs(self._session.get_inputs())
        self.outputs: Mapping[str, TensorSpec] = specs(self._session.get_outputs())

    def __call__(self, feeds: Mapping[str, Array], /) -> Mapping[str, Array]:
        if self._session is None:
            raise ExecutionError("this executor is closed")
        check_feeds(self.inputs, feeds)
        try:
            values = self._session.run(None, dict(feeds), self._run_options(kept=False))
        except Exception as error:
            raise BackendFailed(f"onnxruntime failed while running the model: {first_line(error)}") from error
        return dict(zip(self.outputs, values, strict=True))

    def _run_options(self, *, kept: bool) -> Any:
        """None, but where the session makes CUDA graphs: one belongs to the addresses that it was recorded with."""
        if not self._records:
            return None
        import onnxruntime as ort

        options = ort.RunOptions()
        options.add_run_config_entry("gpu_graph_id", str(next(self._graphs)) if kept else "-1")  # -1: no recording
        return options

    def buffer(self, spec: TensorSpec, /) -> OrtBuffer:
        import onnxruntime as ort

        try:
            value = ort.OrtValue.ortvalue_from_shape_and_type(spec.shape, spec.dtype.type, *self._device)
        except Exception as error:
            raise BackendFailed(f"onnxruntime gave no memory for {spec}: {first_line(error)}") from error
        return OrtBuffer(value, spec)

    def bind(self, buffers: Mapping[str, Buffer], /, *, kept: bool = False) -> Callable[[], None]:
        """See `OnDevice`. Where the session makes CUDA graphs, a binding that is kept is recorded at its first call.

        That was written from the runtime's documentation and has never been run by us.
        """
        if self._session is None:
            raise ExecutionError("this executor is closed")
        ours = {name: buffer for name, buffer in buffers.items() if isinstance(buffer, OrtBuffer)}
        bound = {name: (buffer.spec, buffer.value.data_ptr()) for name, buffer in ours.items()}
        check_binding(self.inputs, self.outputs, bound)
        binding = self._session.io_binding()
        for name in self.inputs:
            binding.bind_ortvalue_input(name, ours[name].value)
        for name in self.outputs:
            binding.bind_ortvalue_output(name, ours[name].value)
        options = self._run_options(kept=kept)

        def call() -> None:
            if self._session is None:
                raise ExecutionError("this executor is closed")
            try:
                self._session.run_with_iobinding(binding, options)
            except Exception as error:
                raise BackendFailed(f"onnxruntime failed while running the model: {first_line(error)}") from error

        return call

    def close(self) -> None:
        self._session = None


class OrtBuffer:
    """A tensor of the runtime, in the memory of its device."""

    def __init__(self, value: Any, spec: TensorSpec) -> None:
        self.value = value
        self.spec = spec

    def write(self, values: Array, /) -> None:
        if not self.spec.admits(values):
            raise FeedMismatch(f"buffer: expected {self.spec}, got {TensorSpec(values.dtype, values.shape)}")
        self.value.update_inplace(np.ascontiguousarray(values))

    def read(self) -> Array:
        values = self.value.numpy()
        return np.asarray(values.copy() if self.value.device_name() == "cpu" else values)  # there it is a view


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
