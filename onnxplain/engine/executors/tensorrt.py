"""TensorRT as an executor: an engine, built or loaded, on one NVIDIA GPU."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Self

import numpy as np
import onnx

from onnxplain.engine.executors.engine_cache import ENGINE, TIMING, WHAT, EngineCache, facts_of
from onnxplain.engine.executors.gpu import Buffer, Gpu, Stream
from onnxplain.engine.executors.place import TENSORRT, TENSORRT_RTX, Place
from onnxplain.engine.executors.protocol import Array, Closing, TensorSpec, check_feeds
from onnxplain.engine.executors.tensorrt_build import Library, Recipe, Timing, build
from onnxplain.errors import BackendFailed, ExecutionError, FeedMismatch, InputError, OutOfMemory

LOG = logging.getLogger(__name__)
DTYPES = {  # TensorRT's names of types; NumPy has none for BF16, FP8, FP4 and INT4
    **{"FLOAT": "float32", "HALF": "float16", "BOOL": "bool"},
    **{"INT64": "int64", "INT32": "int32", "INT8": "int8", "UINT8": "uint8"},
}


class TensorRTExecutor(Closing):
    """A serialised engine, ready to run on one GPU.

    `place` is `tensorrt` or `tensorrt-rtx`, and the GPU's number. `like`, if given, is the model that the engine must
    have been built from, as far as its inputs and outputs can tell. A free dimension has no name here.

    `most_rows` is how many rows the engine takes at a time, None if their number is fixed. The memory for them is taken
    here, once. If it is too little, an engine for fewer rows may fit.

    Raises:
        BackendMissing: TensorRT, or NVIDIA's bindings of CUDA, are not installed.
        DeviceMissing: there is no such GPU, its driver is too old, or TensorRT is of another major version.
        BackendFailed: the engine is for another GPU, version or model, or is none.
        OutOfMemory: the GPU has too little memory.
    """

    def __init__(
        self,
        engine: bytes,
        *,
        place: Place | None = None,
        like: onnx.ModelProto | None = None,
        source: str = "the engine",
    ) -> None:
        place = place or Place(TENSORRT)
        self._trt = Library(place.runtime)
        self._gpu = Gpu(place.device, place.runtime)
        with ExitStack() as stack:
            stack.callback(self._let_go)
            self._runtime: Any = self._trt.make("Runtime")
            self._engine: Any = self._deserialised(engine, source)
            self.inputs, self.outputs = self._specs(source)
            if like is not None:
                check_interface(self.inputs, self.outputs, like, source)
            self._least, self.most_rows = self._rows_of_the_profile()
            self._stream = stack.enter_context(Stream(self._gpu))
            self._context: Any = self._trt.need(self._engine.create_execution_context(), "create a context")
            self._buffers = {n: stack.enter_context(self._buffer(s)) for n, s in (self.inputs | self.outputs).items()}
            for name, buffer in self._buffers.items():
                self._trt.need(self._context.set_tensor_address(name, buffer.address), f"bind {name}")
            self._open: ExitStack | None = stack.pop_all()
        self.facts: Mapping[str, Any] = here(self._trt, self._gpu)

    @classmethod
    def build(
        cls,
        model: onnx.ModelProto | bytes,
        *,
        place: Place | None = None,
        most_rows: int = 8,
        tf32: bool = False,
        options: Mapping[str, str] | None = None,
        cache: str | os.PathLike[str] | None = None,
        folder: str | os.PathLike[str] | None = None,
    ) -> Self:
        """Build the engine of a model for this GPU, or take it from the folder `cache`.

        It takes 1 to `most_rows` rows, and is tuned for `most_rows`; for half as many, and so on, if the device has too
        little memory. `tf32` lets it round products. `options` are the builder's: `workspace`, the MiB of device memory
        that one layer may use besides, and `builder_optimization_level`, 0 to 5. `folder` is where weights lie that the
        model has in files of their own.

        Raises, besides what the constructor does:
            UsageError: an option is unknown or out of range.
            BackendFailed: TensorRT refuses the model.
            OutOfMemory: the device has too little memory for one row.
            OutputError: the engine has to be built, and the cache folder cannot be written to.
        """
        place, rows = place or Place(TENSORRT), most_rows
        data = model if isinstance(model, bytes) else model.SerializeToString(deterministic=True)
        proto = onnx.load_model_from_string(model) if isinstance(model, bytes) else model
        source = Source(data, proto, folder)
        while True:
            recipe = Recipe.parse(options or {}, most_rows=rows, tf32=tf32)
            try:
                return cls(engine_of(source, recipe, place, cache), place=place, like=proto)
            except OutOfMemory as error:
                if rows == 1 or not any(spec.shape[:1] == (None,) for spec in inputs_of(proto).values()):
                    raise
                LOG.warning("%s; built for %d rows, not %d", str(error), rows // 2, rows)  # it holds on to its frames
                rows //= 2

    @classmethod
    def load(
        cls,
        engine: str | os.PathLike[str] | bytes,
        *,
        place: Place | None = None,
        like: onnx.ModelProto | None = None,
    ) -> Self:
        """An engine that was built before, from its file or bytes; what some exporters put in front is left out.

        Raises, besides what the constructor does:
            InputError: the file cannot be read.
        """
        if isinstance(engine, bytes):
            return cls(plan_of(engine), place=place, like=like)
        try:
            data = Path(engine).read_bytes()
        except OSError as error:
            raise InputError(f"{os.fspath(engine)}: cannot be read ({error.strerror})") from error
        return cls(plan_of(data), place=place, like=like, source=os.fspath(engine))

    def __call__(self, feeds: Mapping[str, Array], /) -> Mapping[str, Array]:
        if self._open is None:
            raise ExecutionError("this executor is closed")
        check_feeds(self.inputs, feeds)
        rows = self._rows(feeds)
        self._gpu.use()
        try:
            for name in self.inputs:
                self._buffers[name].fill(feeds[name], self._stream)
            self._enqueue(rows)
            outputs = {
                n: self._buffers[n].read(with_rows(s.shape, rows), self._stream) for n, s in self.outputs.items()
            }
        finally:
            self._stream.wait()  # also after an error: what was begun still uses the buffers
        return outputs

    def close(self) -> None:
        if self._open is not None:
            stack, self._open = self._open, None
            for free in (self._gpu.use, stack.close):
                with suppress(BackendFailed):  # a device that failed frees nothing before the process ends
                    free()

    def _let_go(self) -> None:
        """In this order: each needs the next one."""
        self._context = self._engine = self._runtime = None

    def _deserialised(self, engine: bytes, source: str) -> Any:
        self._trt.begin()
        made = self._runtime.deserialize_cuda_engine(engine)
        if made is None:
            self._trt.check_memory(f"load {source}")
            why = self._trt.errors[0] if self._trt.errors else "it gave no reason"
            raise BackendFailed(
                f"{source}: {self._trt} on {self._gpu} cannot load this engine: {why}; next: an engine runs only with "
                f"the version of TensorRT and the kind of GPU that it was built for, so build it here from the model"
            )
        return made

    def _specs(self, source: str) -> tuple[dict[str, TensorSpec], dict[str, TensorSpec]]:
        """Inputs and outputs, as the engine itself has them."""
        trt, engine = self._trt.module, self._engine
        inputs: dict[str, TensorSpec] = {}
        outputs: dict[str, TensorSpec] = {}
        for name in map(engine.get_tensor_name, range(engine.num_io_tensors)):
            shape = tuple(None if d == -1 else int(d) for d in engine.get_tensor_shape(name))
            kind = engine.get_tensor_dtype(name).name
            if engine.get_tensor_location(name) != trt.TensorLocation.DEVICE or kind not in DTYPES or None in shape[1:]:
                raise BackendFailed(
                    f"{source}: {name} is {kind}{list(shape)}: only tensors on the device, of a type that NumPy has, "
                    "with no free dimension but the first, can be fed or read"
                )
            given = engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT
            (inputs if given else outputs)[name] = TensorSpec(np.dtype(DTYPES[kind]), shape)
        return inputs, outputs

    def _rows_of_the_profile(self) -> tuple[int, int | None]:
        """The fewest and the most rows."""
        free = [name for name, spec in self.inputs.items() if spec.shape[:1] == (None,)]
        profiles = [self._engine.get_tensor_profile_shape(name, 0) for name in free]
        if not profiles:
            return 0, None
        return max(int(least[0]) for least, _, _ in profiles), min(int(most[0]) for _, _, most in profiles)

    def _buffer(self, spec: TensorSpec) -> Buffer:
        return Buffer(self._gpu, spec.dtype, with_rows(spec.shape, self.most_rows or 0))

    def _rows(self, feeds: Mapping[str, Array]) -> int:
        """How many there are. Raises `FeedMismatch`."""
        counts = {name: len(feeds[name]) for name, spec in self.inputs.items() if spec.shape[:1] == (None,)}
        if not counts or self.most_rows is None:
            return 0
        if len(set(counts.values())) > 1:
            raise FeedMismatch(f"feeds: all inputs must have equally many rows, got {counts}")
        rows = next(iter(counts.values()))
        if not self._least <= rows <= self.most_rows:
            raise FeedMismatch(
                f"feeds: {rows} rows, but the engine was built for {self._least} to {self.most_rows}; "
                "next: use a smaller batch, or build the engine for a larger one"
            )
        return rows

    def _enqueue(self, rows: int) -> None:
        """Let the device compute outputs from what its buffers hold."""
        for name, spec in self.inputs.items():
            if not self._context.set_input_shape(name, with_rows(spec.shape, rows)):
                raise self._trt.failed(f"set the shape of {name}")
        for name, spec in self.outputs.items():
            shape = tuple(self._context.get_tensor_shape(name))
            if shape != with_rows(spec.shape, rows):  # there is no memory for more
                raise BackendFailed(
                    f"output {name}: {shape} for {rows} rows; an output must have as many as the inputs"
                )
        self._trt.begin()
        if not self._context.execute_async_v3(self._stream.handle):
            raise self._trt.failed(f"run {rows} rows")


@dataclass(frozen=True)
class Source:
    """What an engine is built from: a model, its bytes, and where weights lie that it has in files of their own."""

    data: bytes
    model: onnx.ModelProto
    folder: str | os.PathLike[str] | None


def engine_of(source: Source, recipe: Recipe, place: Place, cache: str | os.PathLike[str] | None) -> bytes:
    """The engine for a GPU that is here: from the cache, or built."""
    trt, gpu = Library(place.runtime), Gpu(place.device, place.runtime)
    if cache is None:
        return build(trt, source.data, recipe, source.folder)
    store, where = EngineCache(cache, place.runtime), here(trt, gpu)
    timing = None if place.runtime == TENSORRT_RTX else Timing(store, {WHAT: TIMING, **where})
    model = facts_of(source.data, source.model.graph, source.folder)
    facts = {WHAT: ENGINE, **where, **recipe.facts(), **model, "onnxplain": version("onnxplain")}
    return store.get_or_build(facts, lambda: build(trt, source.data, recipe, source.folder, timing=timing))


def plan_of(data: bytes) -> bytes:
    """The engine in a file: some exporters put 4 bytes of length (little-endian) and that many of JSON in front."""
    size = int.from_bytes(data[:4], "little")
    if size <= len(data) - 4 and data[4:5] == b"{":
        with suppress(ValueError):
            json.loads(data[4 : 4 + size])
            return data[4 + size :]
    return data


def check_interface(
    inputs: Mapping[str, TensorSpec], outputs: Mapping[str, TensorSpec], model: onnx.ModelProto, source: str
) -> None:
    """Raise `BackendFailed` unless inputs and outputs are the model's.

    Also an engine that was just built may differ: TensorRT makes float32 of float64, and says nothing.
    """
    results = {value.name: spec_of(value) for value in model.graph.output}
    for kind, have, want in (("inputs", inputs, inputs_of(model)), ("outputs", outputs, results)):
        if have.keys() != want.keys() or not all(fits(have[name], want[name]) for name in want):
            raise BackendFailed(
                f"{source}: its {kind} are {listed(have)}, the model's are {listed(want)}; "
                "next: build it from this model, in float32 or less"
            )


def inputs_of(model: onnx.ModelProto) -> dict[str, TensorSpec]:
    constants = {tensor.name for tensor in model.graph.initializer}
    return {value.name: spec_of(value) for value in model.graph.input if value.name not in constants}


def spec_of(value: onnx.ValueInfoProto) -> TensorSpec:
    kind = value.type.tensor_type
    shape = tuple(d.dim_value if d.HasField("dim_value") else None for d in kind.shape.dim)
    return TensorSpec(np.dtype(onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type)), shape)


def fits(engine: TensorSpec, model: TensorSpec) -> bool:
    """Whether the engine's tensor may be the model's: what the model leaves open, an engine may fix."""
    same_rank = len(engine.shape) == len(model.shape)
    fixed = ((m, e) for m, e in zip(model.shape, engine.shape, strict=False) if m is not None)
    return engine.dtype == model.dtype and (not model.shape or same_rank) and all(m == e for m, e in fixed)


def listed(specs: Mapping[str, TensorSpec]) -> str:
    return ", ".join(f"{name} {spec}" for name, spec in specs.items())


def with_rows(shape: Sequence[int | str | None], rows: int) -> tuple[int, ...]:
    return tuple(d if isinstance(d, int) else rows for d in shape)


def here(trt: Library, gpu: Gpu) -> dict[str, str]:
    """What runs an engine, and so what an engine is built for."""
    return {
        "runtime": trt.runtime,
        "version": trt.version,
        "device": gpu.name,
        "capability": gpu.capability,
        "cuda_driver": gpu.driver,
    }
