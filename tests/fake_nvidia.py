"""A machine with GPUs that are not there: CUDA's runtime and TensorRT, as far as our executor calls them.

Engines compute with ONNX's reference evaluator, in memory that only the fake CUDA hands out. The device does nothing
before its stream is waited for, so whoever reads too early, or changes the memory on the host too soon, gets other
numbers. What real libraries forbid, or answer with a crash, raises `Misuse` here. Names, arguments, return values and
the texts of errors are those of cuda-bindings 13, of TensorRT 10 and 11 and of TensorRT for RTX 1.7.
"""

from __future__ import annotations

import ctypes
import json
import sys
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import IntEnum
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx

from onnxplain.engine.executors.reference import ReferenceExecutor

CudaError = IntEnum(
    "cudaError_t",
    {
        **{"cudaSuccess": 0, "cudaErrorInvalidValue": 1, "cudaErrorMemoryAllocation": 2, "cudaErrorNoDevice": 100},
        **{"cudaErrorInsufficientDriver": 35, "cudaErrorInvalidDevice": 101, "cudaErrorIllegalAddress": 700},
    },
)
CopyKind = IntEnum("cudaMemcpyKind", {"cudaMemcpyHostToDevice": 1, "cudaMemcpyDeviceToHost": 2})
Severity = IntEnum("Severity", "INTERNAL_ERROR ERROR WARNING INFO VERBOSE", start=0)
DataType = IntEnum("DataType", "FLOAT HALF INT8 INT32 BOOL UINT8 FP8 BF16 INT64", start=0)
TensorIOMode = IntEnum("TensorIOMode", "NONE INPUT OUTPUT", start=0)
TensorLocation = IntEnum("TensorLocation", "DEVICE HOST", start=0)
MemoryPoolType = IntEnum("MemoryPoolType", {"WORKSPACE": 0})
Capability = IntEnum(
    "ComputeCapability", {"NONE": 0, "CURRENT": 1, "SM75": 75, "SM80": 80, "SM86": 86, "SM89": 89, "SM120": 120}
)
TYPES = {  # of ONNX, as TensorRT's parser takes them: float64 becomes float32, and nobody is told
    onnx.TensorProto.FLOAT: DataType.FLOAT,
    onnx.TensorProto.DOUBLE: DataType.FLOAT,
    onnx.TensorProto.FLOAT16: DataType.HALF,
    onnx.TensorProto.BFLOAT16: DataType.BF16,
    onnx.TensorProto.INT64: DataType.INT64,
    onnx.TensorProto.INT32: DataType.INT32,
    onnx.TensorProto.BOOL: DataType.BOOL,
}
NUMPY = {"FLOAT": "float32", "HALF": "float16", "INT64": "int64", "INT32": "int32", "BOOL": "bool", "BF16": "uint16"}
MAGIC = {"tensorrt": b"ftrt", "tensorrt_rtx": b"vtrt"}
PER_ROW = 1000  # bytes of device memory that a context takes for each row


class Misuse(AssertionError):
    """What the real libraries forbid, or do not survive."""


@dataclass
class Device:
    name: str = "NVIDIA L4"
    major: int = 8
    minor: int = 9
    memory: int = 1 << 30
    used: int = 0


@dataclass
class Machine:
    """GPUs, what is allocated on them, and what shall go wrong."""

    devices: list[Device] = field(default_factory=lambda: [Device()])
    driver: int = 13000
    error: str = ""  # the name of an error that everything but the driver's version answers with
    seconds: float = 0.0  # that a build takes
    log: Path | None = None  # a file that gets a line for each build
    most_rows_to_build: int = 1 << 20  # more are too many for the device's memory
    refused: Iterable[str] = ()  # operators that the parser does not know
    run_says: str = ""  # an error that the next run ends with at once
    sync_error: str = ""  # the name of an error that the next wait ends with
    builds: list[dict[str, Any]] = field(default_factory=list)
    timings: list[bytes] = field(default_factory=list)  # what builders were given
    device_memory: dict[int, tuple[int, np.ndarray]] = field(default_factory=dict)
    host_memory: dict[int, Any] = field(default_factory=dict)
    streams: dict[int, Stream] = field(default_factory=dict)
    freed: int = 0
    contexts: int = 0
    thread: Any = field(default_factory=threading.local)

    def install(self, put: Any, *, version: str = "11.4.0.106", module: str = "tensorrt") -> None:
        """`put(modules, name, module)`: as `monkeypatch.setitem`, or for good."""
        for name in ("tensorrt", "tensorrt_rtx"):
            put(sys.modules, name, tensorrt(self, version, module) if name == module else None)
        for name in ("cuda", "cuda.bindings"):
            put(sys.modules, name, ModuleType(name))
        put(sys.modules, "cuda.bindings.runtime", cuda(self))

    @property
    def device(self) -> int:
        return int(getattr(self.thread, "device", 0))

    def nothing_is_left(self) -> bool:
        return not (self.device_memory or self.host_memory or self.streams or self.contexts) and not any(
            device.used for device in self.devices
        )

    def take(self, number: int, size: int) -> bool:
        device = self.devices[number]
        if device.used + size > device.memory:
            return False
        device.used += size
        return True

    def bytes_at(self, address: int, size: int) -> np.ndarray:
        """Device memory, if it is there."""
        if address not in self.device_memory:
            raise Misuse(f"{address:#x} is no memory of the device")
        number, memory = self.device_memory[address]
        if number != self.device:
            raise Misuse(f"memory of device {number} used by device {self.device}")
        if size > len(memory):
            raise Misuse(f"{size} bytes of {len(memory)}")
        return memory[:size]


class Stream:
    def __init__(self, device: int) -> None:
        self.device = device
        self.todo: list[Any] = []

    def __int__(self) -> int:
        return id(self)


def cuda(machine: Machine) -> ModuleType:
    """`cuda.bindings.runtime`."""
    module = ModuleType("cuda.bindings.runtime")
    lock = threading.Lock()
    addresses = iter(range(0x7F0000000000, 0x7FF000000000, 1 << 32))

    def answer(*values: Any, error: str = "cudaSuccess") -> tuple[Any, ...]:
        error = machine.error or error
        return (CudaError[error], *(values if error == "cudaSuccess" else [None for _ in values]))

    def device_count() -> Any:
        return answer(len(machine.devices), error="cudaSuccess" if machine.devices else "cudaErrorNoDevice")

    def set_device(number: int) -> Any:
        if not 0 <= number < len(machine.devices):
            return answer(error="cudaErrorInvalidDevice")
        machine.thread.device = number
        return answer()

    def properties(number: int) -> Any:
        device = machine.devices[number]
        about = ModuleType("cudaDeviceProp")
        about.name = device.name.encode() + b"\0" * 8  # type: ignore[attr-defined]
        about.major, about.minor = device.major, device.minor  # type: ignore[attr-defined]
        return answer(about)

    def malloc(size: int) -> Any:
        with lock:
            if not machine.take(machine.device, size):
                return answer(0, error="cudaErrorMemoryAllocation")
            address = next(addresses)
            machine.device_memory[address] = (machine.device, np.full(size, 0xAB, np.uint8))
        return answer(address)

    def free(address: int) -> Any:
        with lock:
            if address not in machine.device_memory:
                raise Misuse(f"{address:#x} freed twice, or never given")
            number, memory = machine.device_memory.pop(address)
            machine.devices[number].used -= len(memory)
            machine.freed += 1
        return answer()

    def malloc_host(size: int) -> Any:
        block = (ctypes.c_char * size)()
        machine.host_memory[ctypes.addressof(block)] = block
        return answer(ctypes.addressof(block))

    def free_host(address: int) -> Any:
        if address not in machine.host_memory:
            raise Misuse("memory of the host freed twice, or never given")
        del machine.host_memory[address]
        return answer()

    def create_stream() -> Any:
        stream = Stream(machine.device)
        machine.streams[int(stream)] = stream
        return answer(stream)

    def destroy(stream: Stream) -> Any:
        if stream.todo:
            raise Misuse("a stream is destroyed with work left in it")
        del machine.streams[int(stream)]
        return answer()

    def synchronise(stream: Stream) -> Any:
        todo, stream.todo = stream.todo, []
        for work in todo:
            work()
        error, machine.sync_error = machine.sync_error, ""
        return answer(error=error or "cudaSuccess")

    def copy(target: int, source: int, size: int, kind: Any, stream: Stream) -> Any:
        on_device, on_host = (target, source) if kind == CopyKind.cudaMemcpyHostToDevice else (source, target)
        if not any(at <= on_host and on_host + size <= at + len(b) for at, b in machine.host_memory.items()):
            raise Misuse("memory of the host that is not page-locked")
        here = machine.bytes_at(on_device, size)

        def work() -> None:
            if kind == CopyKind.cudaMemcpyHostToDevice:
                ctypes.memmove(here.ctypes.data, on_host, size)
            else:
                ctypes.memmove(on_host, here.ctypes.data, size)

        stream.todo.append(work)
        return answer()

    vars(module).update(
        cudaError_t=CudaError,
        cudaMemcpyKind=CopyKind,
        cudaDriverGetVersion=lambda: (CudaError.cudaSuccess, machine.driver),
        cudaGetDeviceCount=device_count,
        cudaGetDeviceProperties=properties,
        cudaGetLastError=lambda: (CudaError.cudaSuccess,),
        cudaSetDevice=set_device,
        cudaMalloc=malloc,
        cudaFree=free,
        cudaMallocHost=malloc_host,
        cudaFreeHost=free_host,
        cudaStreamCreate=create_stream,
        cudaStreamDestroy=destroy,
        cudaStreamSynchronize=synchronise,
        cudaMemcpyAsync=copy,
    )
    return module


class HostMemory(bytes):
    """`IHostMemory`: bytes, as far as anybody looks."""

    @property
    def nbytes(self) -> int:
        return len(self)


@dataclass
class Tensor:
    name: str
    dtype: DataType
    shape: tuple[int, ...]

    @classmethod
    def of(cls, value: onnx.ValueInfoProto) -> Tensor:
        kind = value.type.tensor_type
        shape = tuple(d.dim_value if d.HasField("dim_value") else -1 for d in kind.shape.dim)
        return cls(value.name, TYPES[kind.elem_type], shape)


def tensorrt(machine: Machine, version: str, name: str) -> ModuleType:
    """`tensorrt` or `tensorrt_rtx`."""
    module = ModuleType(name)
    rtx, major = name == "tensorrt_rtx", int(version.split(".")[0])
    old = not rtx and major <= 10
    creation = {"STRONGLY_TYPED": 1} if not old else {"EXPLICIT_BATCH": 0, "STRONGLY_TYPED": 1}
    Creation = IntEnum("NetworkDefinitionCreationFlag", creation)
    Flag = IntEnum("BuilderFlag", {"TF32": 7, **({"FP16": 0, "INT8": 1} if old else {})})

    class ILogger:
        def __init__(self) -> None:
            self.started = True

    ILogger.Severity = Severity  # type: ignore[attr-defined]

    loggers: list[Any] = []

    def say(logger: Any, severity: Severity, text: str) -> None:
        if not getattr(logger, "started", False):
            raise Misuse("the logger's own __init__ was not called")
        loggers.append(logger)
        if logger is not loggers[0]:
            raise Misuse("another logger, of which TensorRT warns")
        logger.log(severity, text)

    class INetworkDefinition:
        def __init__(self, flags: int) -> None:
            if old and flags != 0b11:
                raise Misuse("TensorRT 10: not an explicit batch, or weakly typed")
            if not old and flags:
                raise Misuse(f"flags {flags:b} where there are none")
            self.inputs: list[Tensor] = []
            self.outputs: list[Tensor] = []
            self.model: onnx.ModelProto | None = None

        num_inputs = property(lambda self: len(self.inputs))

        def get_input(self, i: int) -> Tensor:
            return self.inputs[i]

    class ParserError:
        def __init__(self, node: str, operator: str, text: str) -> None:
            self._node, self._operator, self._text = node, operator, text

        def node_name(self) -> str:
            return self._node

        def node_operator(self) -> str:
            return self._operator

        def desc(self) -> str:
            return self._text

    class OnnxParser:
        def __init__(self, network: INetworkDefinition, logger: Any) -> None:
            self.network, self.logger, self.errors = network, logger, []

        num_errors = property(lambda self: len(self.errors))

        def get_error(self, i: int) -> ParserError:
            return self.errors[i]

        def parse(self, data: bytes, path: str | None = None) -> bool:
            model = onnx.load_model_from_string(data)
            try:
                onnx.external_data_helper.load_external_data_for_model(model, str(Path(path or ".").parent))
            except (OSError, onnx.checker.ValidationError):
                names = ", ".join(t.name for t in model.graph.initializer if t.external_data)
                self.errors.append(ParserError("", "", f"Failed to import initializer: {names}"))
            for node in model.graph.node:
                if node.domain or node.op_type in machine.refused:
                    self.errors.append(ParserError(node.name, node.op_type, "Plugin not found"))
                    say(self.logger, Severity.ERROR, f"While parsing node {node.name}")
            if self.errors:
                return False
            weights = {tensor.name for tensor in model.graph.initializer}
            self.network.inputs = [Tensor.of(v) for v in model.graph.input if v.name not in weights]
            self.network.outputs = [Tensor.of(v) for v in model.graph.output]
            self.network.model = model
            say(self.logger, Severity.INFO, "parsed")
            return True

    class IOptimizationProfile:
        def __init__(self) -> None:
            self.shapes: dict[str, list[tuple[int, ...]]] = {}

        def set_shape(self, name: str, *shapes: tuple[int, ...]) -> None:
            least, best, most = shapes
            if not all(a <= b <= c for a, b, c in zip(least, best, most, strict=True)):
                raise ValueError("Shape provided for min is inconsistent with other shapes.")
            self.shapes[name] = [least, best, most]

    class IBuilderConfig:
        def __init__(self) -> None:
            self.flags = {Flag.TF32}  # on by default
            self.profiles: list[IOptimizationProfile] = []
            self.workspace: int | None = None
            self.builder_optimization_level = 3
            self.timing: bytes | None = None
            if rtx:
                self.num_compute_capabilities = 0
                self.targets: list[str] = []

        def set_flag(self, flag: Any) -> None:
            self.flags.add(flag)

        def clear_flag(self, flag: Any) -> None:
            self.flags.discard(flag)

        def set_memory_pool_limit(self, pool: Any, size: int) -> None:
            assert pool == MemoryPoolType.WORKSPACE
            self.workspace = size

        def add_optimization_profile(self, profile: IOptimizationProfile) -> int:
            self.profiles.append(profile)
            return len(self.profiles) - 1

        def set_compute_capability(self, capability: Any, index: int) -> bool:
            if not 0 <= index < self.num_compute_capabilities:
                return False
            self.targets = [capability.name]
            return True

        def create_timing_cache(self, data: bytes) -> Any:
            if rtx:
                raise DeprecationWarning("Timing cache operations are no-ops in TensorRT-RTX.")
            return None if data and not data.startswith(b"timing") else data

        def set_timing_cache(self, cache: bytes, ignore_mismatch: bool) -> bool:
            device = machine.devices[machine.device].name.encode()
            if cache and device not in cache and not ignore_mismatch:
                return False
            self.timing = cache
            machine.timings.append(cache)
            return True

        def get_timing_cache(self) -> Any:
            if rtx:
                raise DeprecationWarning("Timing cache operations are no-ops in TensorRT-RTX.")
            cache = ModuleType("ITimingCache")
            device = machine.devices[machine.device].name.encode()
            cache.serialize = lambda: HostMemory(b"timing " + device)  # type: ignore[attr-defined]
            return None if self.timing is None else cache

    if not rtx:
        del IBuilderConfig.set_compute_capability

    class Builder:
        def __init__(self, logger: Any) -> None:
            if not rtx and not machine.devices:
                raise TypeError("pybind11::init(): factory function returned nullptr")
            self.logger = logger

        def create_network(self, flags: int = 0) -> INetworkDefinition:
            return INetworkDefinition(flags)

        def create_builder_config(self) -> IBuilderConfig:
            return IBuilderConfig()

        def create_optimization_profile(self) -> IOptimizationProfile:
            return IOptimizationProfile()

        def build_serialized_network(self, network: INetworkDefinition, config: IBuilderConfig) -> HostMemory | None:
            free = [tensor.name for tensor in network.inputs if -1 in tensor.shape]
            if free and (not config.profiles or set(config.profiles[0].shapes) != set(free)):
                say(self.logger, Severity.ERROR, "Network has dynamic or shape inputs, but no optimization profile")
                return None
            shapes = config.profiles[0].shapes if config.profiles else {}
            most = max([shape[2][0] for shape in shapes.values()], default=1)
            time.sleep(machine.seconds)
            if most > machine.most_rows_to_build:
                say(self.logger, Severity.ERROR, "[allocate] Error Code 1: Cuda Runtime (out of memory)")
                say(
                    self.logger,
                    Severity.WARNING,
                    f"Requested amount of GPU memory ({most} bytes) could not be allocated.",
                )
                say(self.logger, Severity.ERROR, "Error Code 10: Could not find any implementation for node {x}")
                return None
            built = {
                "tf32": Flag.TF32 in config.flags,
                "workspace": config.workspace,
                "level": config.builder_optimization_level,
                "shapes": shapes,
                "targets": getattr(config, "targets", None),
            }
            if rtx and not config.num_compute_capabilities == len(built["targets"]) == 1:
                raise Misuse("no compute capability")
            machine.builds.append(built)
            if machine.log is not None:
                with open(machine.log, "a") as file:
                    file.write("built\n")
            return HostMemory(serialised(network, shapes, built["targets"]))

    def serialised(network: INetworkDefinition, shapes: Any, targets: list[str] | None) -> bytes:
        assert network.model is not None
        device = machine.devices[machine.device] if machine.devices else Device()
        number = int(targets[0][2:]) if targets and targets != ["CURRENT"] else 0
        header = {
            "version": version,
            "capability": f"{number // 10}.{number % 10}" if number else f"{device.major}.{device.minor}",
            "shapes": shapes,
            "tensors": [[t.name, t.dtype.name, list(t.shape), 1] for t in network.inputs]
            + [[t.name, t.dtype.name, list(t.shape), 2] for t in network.outputs],
        }
        text, body = json.dumps(header).encode(), network.model.SerializeToString()
        return MAGIC[name] + len(text).to_bytes(8, "little") + len(body).to_bytes(8, "little") + text + body

    class Runtime:
        def __init__(self, logger: Any) -> None:
            self.logger = logger

        def deserialize_cuda_engine(self, data: bytes) -> ICudaEngine | None:
            def refuse(text: str) -> None:
                say(self.logger, Severity.ERROR, f"IRuntime::deserializeCudaEngine: Error Code 1: ({text})")
                say(self.logger, Severity.ERROR, "Error Code 4: Internal Error (Engine deserialization failed.)")

            if data[:4] != MAGIC[name]:
                return refuse("Serialization assertion header.magicTag == kEXPECTED_MAGIC_TAG failed.")
            text, body = (int.from_bytes(data[at : at + 8], "little") for at in (4, 12))
            if len(data) != 20 + text + body:
                return refuse("Serialization assertion plan.header.size == blobSize failed.")
            header, device = json.loads(data[20 : 20 + text]), machine.devices[machine.device]
            if header["version"] != version:
                return refuse(f"expecting library version {version} got {header['version']}, please rebuild.")
            if header["capability"] != f"{device.major}.{device.minor}":
                return refuse(
                    f"The engine plan file is generated on an incompatible device, expecting compute "
                    f"{device.major}.{device.minor} got compute {header['capability']}, please rebuild."
                )
            return ICudaEngine(self.logger, header, onnx.load_model_from_string(data[20 + text :]))

    class ICudaEngine:
        def __init__(self, logger: Any, header: dict[str, Any], model: onnx.ModelProto) -> None:
            self.logger, self.model, self.device = logger, model, machine.device
            self.tensors = {n: (DataType[kind], tuple(s), TensorIOMode(mode)) for n, kind, s, mode in header["tensors"]}
            self.shapes = {n: [tuple(s) for s in shapes] for n, shapes in header["shapes"].items()}

        num_io_tensors = property(lambda self: len(self.tensors))

        def get_tensor_name(self, i: int) -> str:
            return list(self.tensors)[i]

        def get_tensor_dtype(self, name: str) -> DataType:
            return self.tensors[name][0]

        def get_tensor_shape(self, name: str) -> tuple[int, ...]:
            return self.tensors[name][1]

        def get_tensor_mode(self, name: str) -> TensorIOMode:
            return self.tensors[name][2]

        def get_tensor_location(self, name: str) -> TensorLocation:
            return TensorLocation.DEVICE

        def get_tensor_profile_shape(self, name: str, profile: int) -> list[tuple[int, ...]]:
            assert profile == 0
            return self.shapes[name]

        def create_execution_context(self) -> IExecutionContext | None:
            rows = max([shapes[2][0] for shapes in self.shapes.values()], default=1)
            if not machine.take(machine.device, rows * PER_ROW):
                say(
                    self.logger, Severity.ERROR, "[ExecutionContext] Error Code 2: OutOfMemory (no further information)"
                )
                return None
            return IExecutionContext(self, rows * PER_ROW)

    class IExecutionContext:
        def __init__(self, engine: ICudaEngine, size: int) -> None:
            self.engine, self.size = engine, size
            self.evaluator = ReferenceExecutor(engine.model)
            self.addresses: dict[str, int] = {}
            self.shapes = {n: s for n, (_, s, _) in engine.tensors.items() if -1 not in s}
            machine.contexts += 1

        def __del__(self) -> None:
            machine.contexts -= 1
            machine.devices[self.engine.device].used -= self.size

        def set_tensor_address(self, name: str, address: int) -> bool:
            self.addresses[name] = address
            return name in self.engine.tensors

        def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
            _, given, mode = self.engine.tensors[name]
            if mode != TensorIOMode.INPUT or len(shape) != len(given):
                return False
            if name in self.engine.shapes:
                least, _, most = self.engine.shapes[name]
                if not all(a <= b <= c for a, b, c in zip(least, shape, most, strict=True)):
                    say(self.engine.logger, Severity.ERROR, f"Supplied shape {shape} is not in range of the profile")
                    return False
            elif shape != given:
                return False
            self.shapes[name] = shape
            return True

        def get_tensor_shape(self, name: str) -> tuple[int, ...]:
            if name in self.shapes:
                return self.shapes[name]
            return self._compute({n: np.zeros(self.shapes[n], self._dtype(n)) for n in self._inputs()})[name].shape

        def _inputs(self) -> list[str]:
            return [name for name, (_, _, mode) in self.engine.tensors.items() if mode == TensorIOMode.INPUT]

        def _dtype(self, name: str) -> np.dtype[Any]:
            return np.dtype(NUMPY[self.engine.tensors[name][0].name])

        def _compute(self, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
            wanted = self.evaluator.inputs
            answer = self.evaluator({n: feed.astype(wanted[n].dtype) for n, feed in feeds.items()})
            return {name: array.astype(self._dtype(name)) for name, array in answer.items()}

        def _memory(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
            size = int(np.prod(shape, dtype=int)) * self._dtype(name).itemsize
            return machine.bytes_at(self.addresses[name], size).view(self._dtype(name)).reshape(shape)

        def execute_async_v3(self, stream_handle: int) -> bool:
            stream = machine.streams[stream_handle]
            if not self.engine.device == machine.device == stream.device:
                raise Misuse("engine, stream and thread are on different devices")
            text, machine.run_says = machine.run_says, ""
            if text:
                say(self.engine.logger, Severity.ERROR, text)
                return False
            inputs = {name: self._memory(name, self.shapes[name]) for name in self._inputs()}
            outputs = {n: self._memory(n, self.get_tensor_shape(n)) for n in self.engine.tensors if n not in inputs}

            def work() -> None:
                for name, array in self._compute(inputs).items():
                    outputs[name][...] = array

            stream.todo.append(work)
            return True

    vars(module).update(
        __version__=version,
        ILogger=ILogger,
        INetworkDefinition=INetworkDefinition,
        IOptimizationProfile=IOptimizationProfile,
        IBuilderConfig=IBuilderConfig,
        ICudaEngine=ICudaEngine,
        IExecutionContext=IExecutionContext,
        ParserError=ParserError,
        Builder=Builder,
        OnnxParser=OnnxParser,
        Runtime=Runtime,
        NetworkDefinitionCreationFlag=Creation,
        BuilderFlag=Flag,
        MemoryPoolType=MemoryPoolType,
        TensorIOMode=TensorIOMode,
        TensorLocation=TensorLocation,
        DataType=DataType,
    )
    if rtx:
        vars(module)["ComputeCapability"] = Capability
    return module
