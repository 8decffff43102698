"""ONNX Runtime as an executor, on the CPU, CUDA and its other providers. The only file that imports it."""

from __future__ import annotations

import contextlib
import io
import itertools
import logging
import os
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx

from onnxplain.engine.executors.place import CPU, CUDA, Place
from onnxplain.engine.executors.protocol import Array, Buffer, Closing, TensorSpec, check_binding, check_feeds
from onnxplain.errors import (
    BackendFailed,
    BackendMissing,
    DeviceMissing,
    ExecutionError,
    FeedMismatch,
    OutOfMemory,
    UsageError,
    importing,
)

log = logging.getLogger(__name__)

DTYPES = {"float": "float32", "double": "float64", "string": "object"}  # where its names are not NumPy's
CPU_PROVIDER = "CPUExecutionProvider"
PROVIDERS = {CPU: CPU_PROVIDER, CUDA: "CUDAExecutionProvider"}
LIBRARY = "library"  # the option that is ours: the file of a provider that comes as a plugin
# What works out shapes, which the runtime keeps on the CPU on purpose.
SHAPES = {"Shape", "Gather", "Concat", "Slice", "Squeeze", "Unsqueeze", "Range", "ConstantOfShape", "Cast"}
# How the runtime, CUDA and cuDNN word it; none of them has an error class of its own for it.
OUT_OF_MEMORY = ("failed to allocate memory", "out of memory", "bad_alloc", "bad allocation", "alloc_failed")


def imported() -> Any:
    """The runtime. From 1.29 on its import would begin a file of telemetry in the user's cache folder, and send it."""
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    import onnxruntime

    return onnxruntime


class OnnxRuntimeExecutor(Closing):
    """An ONNX Runtime session.

    `place` is the CPU, a CUDA device, or another provider by its name. `threads` bounds the threads inside one operator
    (0: the runtime decides). `optimise=False` turns the graph optimiser off, so that two graphs with a common half
    compute it bit for bit alike. `tf32` lets a GPU round products. `options` are the provider's own; `library` among
    them is the file of a provider that comes as a plugin. `folder` is where weights lie that the model has in files of
    their own.

    `placement` counts the nodes of the optimised graph by provider, and `facts` has it too: nodes that a provider does
    not run are run by the CPU, and nobody else would tell.
    """

    def __init__(
        self,
        model: onnx.ModelProto | bytes,
        *,
        place: Place | None = None,
        threads: int = 0,
        optimise: bool = True,
        tf32: bool = False,
        options: Mapping[str, str] | None = None,
        folder: str | os.PathLike[str] | None = None,
    ) -> None:
        place = place or Place(CPU)
        with importing("onnxruntime", CUDA if place.runtime == CUDA else CPU):
            ort = imported()
        settings = ort.SessionOptions()
        settings.intra_op_num_threads = threads
        settings.log_severity_level = 4  # fatal only: what fails is told by our errors
        level = ort.GraphOptimizationLevel
        settings.graph_optimization_level = level.ORT_ENABLE_ALL if optimise else level.ORT_DISABLE_ALL
        settings.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
        if folder is not None:
            settings.add_session_config_entry("session.model_external_initializers_file_folder_path", os.fspath(folder))
        provider = PROVIDERS.get(place.runtime, place.runtime)
        if provider == CPU_PROVIDER:
            frugal(settings)
        if provider != CPU_PROVIDER:
            ort.set_default_logger_severity(4)  # fatal only: what fails is told by our errors
        said = io.StringIO()
        with contextlib.redirect_stdout(said):  # where some of it prints
            listed = chosen(ort, settings, place, provider, dict(options or {}), tf32)
        data = model if isinstance(model, bytes) else model.SerializeToString()
        try:
            # Its own fallback would print, and run on the CPU.
            self._session: Any = ort.InferenceSession(data, settings, providers=listed, enable_fallback=0)
        except Exception as error:  # the runtime's exceptions share no base class but Exception
            raise failed("refused the model", error) from error
        self._session._model_bytes = None  # kept for the fallback that is turned off: the weights once more
        self.placement = placement(self._session)
        if provider not in self._session.get_providers() and provider not in self.placement:
            why = f" ({said.getvalue().strip().splitlines()[0]})" if said.getvalue().strip() else ""
            raise DeviceMissing(
                f"ONNX Runtime could not start {provider} on {place}{why}; "
                f"next: `onnxplain doctor --on {place}` tells what is missing"
            )
        if provider != CPU_PROVIDER:
            tell(provider, on_cpu(self._session))
        told = dict(options or {})
        self.own_memory = provider == PROVIDERS[CUDA]
        self._device = ("cuda", int(told.get("device_id", place.device))) if self.own_memory else ("cpu", 0)
        self._records = told.get("enable_cuda_graph", "0").lower() in ("1", "true")
        self._graphs = itertools.count(1)  # 0 is the runtime's own
        self.inputs: Mapping[str, TensorSpec] = specs(self._session.get_inputs())
        self.outputs: Mapping[str, TensorSpec] = specs(self._session.get_outputs())
        self.facts: Mapping[str, Any] = {
            "runtime": "onnxruntime",
            "version": ort.__version__,
            "provider": provider,
            "nodes": dict(self.placement),
        }

    def __call__(self, feeds: Mapping[str, Array], /) -> Mapping[str, Array]:
        if self._session is None:
            raise ExecutionError("this executor is closed")
        check_feeds(self.inputs, feeds)
        try:
            values = self._session.run(None, dict(feeds), self._run_options(kept=False))
        except Exception as error:
            raise failed("failed while running the model", error) from error
        return dict(zip(self.outputs, values, strict=True))

    def _run_options(self, *, kept: bool) -> Any:
        """None, but where the session makes CUDA graphs: one belongs to the addresses that it was recorded with."""
        if not self._records:
            return None
        options = imported().RunOptions()
        options.add_run_config_entry("gpu_graph_id", str(next(self._graphs)) if kept else "-1")  # -1: no recording
        return options

    def buffer(self, spec: TensorSpec, /) -> OrtBuffer:
        try:
            value = imported().OrtValue.ortvalue_from_shape_and_type(spec.shape, spec.dtype.type, *self._device)
        except Exception as error:
            raise failed(f"gave no buffer of {spec}", error) from error
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
                raise failed("failed while running the model", error) from error

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


def frugal(settings: Any) -> None:
    """Let memory on the CPU be held as long as the value in it lives, and no longer.

    A pattern is one block for all values of a call, beside those of the first call, which are never returned. Reuse is
    planned ahead: the block of a dead value waits for the next one of its size, which on the way back may be hundreds
    of nodes away. The arena finds blocks as fast; a third to two thirds of the memory is saved.
    """
    settings.enable_mem_pattern = False
    settings.enable_mem_reuse = False


def chosen(
    ort: Any, settings: Any, place: Place, provider: str, options: dict[str, str], tf32: bool
) -> list[tuple[str, dict[str, str]]] | None:
    """The providers to create a session with, by name; None for a plugin's devices, which `settings` is given."""
    if LIBRARY in options:
        plugin(ort, settings, place, provider, options)
        return None
    if provider not in ort.get_available_providers():
        if place.runtime == CUDA:
            raise BackendMissing("onnxruntime with CUDA (this one is for the CPU only)", CUDA)
        raise DeviceMissing(
            f"this build of ONNX Runtime has no {provider}, only {', '.join(ort.get_available_providers())}; "
            f"next: install the package that has it, or name its plugin with --provider-option {LIBRARY}=FILE"
        )
    if place.runtime == CPU:
        if options:
            raise UsageError(f"provider options: the CPU has none, got {', '.join(options)}; next: leave them out")
        return [(provider, {})]
    if place.runtime == CUDA:
        # CUDA from PyPI's packages is on no search path of the loader.
        ort.preload_dlls(directory="")
        options = {"device_id": str(place.device), "use_tf32": str(int(tf32))} | options
    return [(provider, options), (CPU_PROVIDER, {})]


def plugin(ort: Any, settings: Any, place: Place, provider: str, options: dict[str, str]) -> None:
    """Register a plugin's library and give the session its device."""
    library = options.pop(LIBRARY)

    def devices() -> list[Any]:
        return [device for device in ort.get_ep_devices() if device.ep_name == provider]

    if not devices():
        try:
            ort.register_execution_provider_library(provider, os.path.abspath(library))
        except Exception as error:
            raise DeviceMissing(f"{library}: ONNX Runtime cannot load it as a provider: {first_line(error)}") from error
        if not devices():
            ort.unregister_execution_provider_library(provider)
    if place.device >= len(devices()):
        raise DeviceMissing(
            f"{library}: it finds {len(devices())} devices of {provider} on this machine, and {place} was asked for; "
            "next: check which hardware it is for"
        )
    settings.add_provider_for_devices([devices()[place.device]], options)


def placement(session: Any) -> Counter[str]:
    """How many nodes of the optimised graph each provider runs."""
    count: Counter[str] = Counter()
    for part in session.get_provider_graph_assignment_info():
        count[part.ep_name] += len(part.get_nodes())
    return count


def on_cpu(session: Any) -> Counter[str]:
    """How many nodes of each operator the CPU runs."""
    parts = [part for part in session.get_provider_graph_assignment_info() if part.ep_name == CPU_PROVIDER]
    return Counter(node.op_type for part in parts for node in part.get_nodes())


def tell(provider: str, left: Counter[str]) -> None:
    """Log which nodes a provider left to the CPU: a warning, unless they only work out shapes."""
    if left:
        ops = ", ".join(f"{op} x{count}" for op, count in sorted(left.items()))
        level = logging.INFO if left.keys() <= SHAPES else logging.WARNING
        log.log(level, "%s leaves %d nodes to the CPU: %s", provider, left.total(), ops)


def failed(what: str, error: Exception) -> BackendFailed:
    """The runtime's error as one of ours."""
    kind = OutOfMemory if any(words in str(error).lower() for words in OUT_OF_MEMORY) else BackendFailed
    return kind(f"onnxruntime {what}: {first_line(error)}")


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
