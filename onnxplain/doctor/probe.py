"""Questions that may crash or hang, asked in a process of their own: `python probe.py QUESTION ARGUMENT...`.

A runtime, a driver and their libraries are other people's native code, and may be broken. So whoever wants to know runs
this file, which imports what it needs when it is asked, and prints one line of JSON: `{"answer": ...}` or
`{"error": ..., "causes": [...]}`. What libraries print goes to stderr. See `onnxplain.doctor.asking`.
"""

from __future__ import annotations

import ctypes
import json
import os
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # which ONNX Runtime would write and send, from its import on
WINDOWS = sys.platform == "win32"
CUDA_LIBRARY = "nvcuda.dll" if WINDOWS else "libcuda.so.1"
MANAGEMENT_LIBRARY = "nvml.dll" if WINDOWS else "libnvidia-ml.so.1"
# A convolution, which CUDA leaves to cuDNN, and a root, for which a runtime needs a kernel of its own.
MODEL = """<ir_version: 8, opset_import: ["" : 17]>
probe (float[N, 1, 2, 2] x) => (float[N, 1, 1, 1] y) <float[1, 1, 2, 2] w = {1, 2, 3, 3}>
{ z = Conv(x, w) y = Sqrt(z) }"""
EXPECTED = 3.0  # for ones


def driver() -> dict[str, Any]:
    """NVIDIA's driver: the CUDA version that it is for, its own version, its GPUs. CUDA's error, if it has one."""
    found: dict[str, Any] = {"missing": None, "error": None, "cuda": None, "version": None, "gpus": []}
    try:
        cuda = ctypes.CDLL(CUDA_LIBRARY)
    except OSError as error:
        return found | {"missing": str(error)}
    number = ctypes.c_int()
    code = cuda.cuInit(0)
    if cuda.cuDriverGetVersion(ctypes.byref(number)) == 0:
        found["cuda"] = [number.value // 1000, number.value % 1000 // 10]
    found["version"] = driver_version()
    if code:
        name = ctypes.c_char_p()
        cuda.cuGetErrorName(code, ctypes.byref(name))
        return found | {"error": name.value.decode() if name.value else f"CUDA error {code}"}
    cuda.cuDeviceGetCount(ctypes.byref(number))
    return found | {"gpus": [gpu(cuda, index) for index in range(number.value)]}


def driver_version() -> str | None:
    """The driver's own version, such as 580.65.06."""
    try:
        management = ctypes.CDLL(MANAGEMENT_LIBRARY)
    except OSError:
        return None  # a Jetson has none
    version = ctypes.create_string_buffer(96)
    if management.nvmlInit_v2() or management.nvmlSystemGetDriverVersion(version, len(version)):
        return None
    return version.value.decode()


def gpu(cuda: ctypes.CDLL, index: int) -> dict[str, Any]:
    """Name, compute capability and memory (bytes) of a GPU."""
    major, minor, handle = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
    name, memory = ctypes.create_string_buffer(256), ctypes.c_size_t()
    cuda.cuDeviceGet(ctypes.byref(handle), index)
    cuda.cuDeviceGetName(name, len(name), handle)
    cuda.cuDeviceGetAttribute(ctypes.byref(major), 75, handle)  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR
    cuda.cuDeviceGetAttribute(ctypes.byref(minor), 76, handle)
    cuda.cuDeviceTotalMem_v2(ctypes.byref(memory), handle)
    return {"name": name.value.decode(), "capability": [major.value, minor.value], "memory": memory.value}


def onnxruntime() -> dict[str, Any]:
    """ONNX Runtime: its version, the CUDA version that it is built for, its providers."""
    ort = import_module("onnxruntime")
    if ort.__file__ is None:  # a folder that another package has left
        raise ImportError(f"{next(iter(ort.__path__))} has no __init__.py")
    return {
        "version": ort.__version__,
        "cuda": getattr(ort, "cuda_version", "") or None,
        "providers": ort.get_available_providers(),
    }


def libraries(*names: str) -> list[str]:
    """Which of these shared libraries cannot be loaded, once ONNX Runtime has loaded those of PyPI's packages."""
    import_module("onnxruntime").preload_dlls(directory="")
    missing = []
    for name in names:
        try:
            ctypes.CDLL(name)
        except OSError:
            missing.append(name)
    return missing


def plugin(module: str) -> dict[str, Any]:
    """A provider of ONNX Runtime that comes as a plugin: its name, its file, how many devices it finds, its error."""
    ort, package = import_module("onnxruntime"), import_module(module)
    found = {"provider": package.get_ep_name(), "library": package.get_library_path(), "devices": 0, "error": None}
    try:
        ort.register_execution_provider_library(found["provider"], found["library"])
    except Exception as error:
        return found | {"error": worded(error)}
    return found | {"devices": sum(device.ep_name == found["provider"] for device in ort.get_ep_devices())}


def trial(place: str, *options: str) -> dict[str, Any]:
    """Run a small model on a place, through the executor that every command uses; what that says of itself."""
    import numpy as np
    from onnx.parser import parse_model

    from onnxplain.engine.executors.place import Place
    from onnxplain.engine.executors.setup import Setup

    setup = Setup(place=Place.parse(place), options=dict(o.split("=", 1) for o in options), batch_size=1)
    with setup.start(parse_model(MODEL)) as executor:
        y = executor({"x": np.ones((1, 1, 2, 2), np.float32)})["y"].item()
        if abs(y - EXPECTED) > 1e-2:  # not more exact than half precision
            raise ArithmeticError(f"it computed {y} for {EXPECTED}")
        return dict(executor.facts)


def tensorrt_rtx() -> dict[str, Any]:
    """TensorRT for RTX as far as it goes without a GPU: its builder, which reads a model, and what GPUs it is for."""
    from onnx.parser import parse_model

    trt = import_module("tensorrt_rtx")
    logger = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(logger)  # a network lives no longer than its builder
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, logger)
    if not parser.parse(parse_model(MODEL).SerializeToString()):
        raise RuntimeError(parser.get_error(0).desc())
    return {"version": trt.__version__, "targets": [name for name in dir(trt.ComputeCapability) if name[:2] == "SM"]}


QUESTIONS: dict[str, Callable[..., Any]] = {
    question.__name__: question for question in (driver, onnxruntime, libraries, plugin, tensorrt_rtx, trial)
}


def main(question: str, *arguments: str) -> None:
    """Print the answer as JSON where stdout was, and whatever else is printed on stderr."""
    stdout = os.dup(1)
    os.dup2(2, 1)
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
    import_module("onnxplain")  # this one, wherever it lies, and nothing else from there
    del sys.path[0]
    try:
        said = {"answer": QUESTIONS[question](*arguments)}
    except Exception as error:  # anything, and all of it is an answer
        said = {"error": worded(error), "causes": causes(error)}
    os.write(stdout, f"{json.dumps(said, default=str)}\n".encode())


def worded(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def causes(error: BaseException) -> list[str]:
    """What an error came from, the first cause last."""
    found = []
    cause = error.__cause__
    while cause is not None:
        found.append(worded(cause))
        cause = cause.__cause__
    return found


if __name__ == "__main__":
    main(*sys.argv[1:])
