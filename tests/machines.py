"""Machines that are not here: facts as `onnxplain.doctor` gathers them. Error texts are those that were printed by
onnxruntime-gpu 1.31.1, onnxruntime 1.32.0 and its plugins, and tensorrt-cu13-bindings 11.4 on a machine without a GPU,
unless a test says where it has them from."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from onnxplain.doctor.asking import Answer
from onnxplain.doctor.facts import Facts
from onnxplain.doctor.machine import Machine

PC = Machine(
    system="Linux 6.8.0 (Debian GNU/Linux 12 (bookworm))",
    architecture="x86_64",
    python="3.11.7 (CPython)",
    cores=8,
    memory=32 << 30,
    features=("AVX2",),
    jetson=None,
    nvidia=False,
    container=False,
)
NO_DRIVER = {
    "missing": "libcuda.so.1: cannot open shared object file: No such file or directory",
    "error": None,
    "cuda": None,
    "version": None,
    "gpus": [],
}
CPU_ONLY = {"version": "1.32.0", "cuda": None, "providers": ["AzureExecutionProvider", "CPUExecutionProvider"]}
WITH_CUDA = {
    "version": "1.31.1",
    "cuda": "13.0",
    "providers": ["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"],
}
NOT_STARTED = Answer(
    error="DeviceMissing: ONNX Runtime could not start CUDAExecutionProvider on cuda; next: `onnxplain doctor --on "
    "cuda` tells what is missing",
    log="2026-11-25 15:12:51.613531884 [E:onnxruntime:Default, provider_bridge_ort.cc:2458 operator()] "
    "/onnxruntime_src/onnxruntime/core/session/provider_bridge_ort.cc:2043 onnxruntime::Provider& "
    "onnxruntime::ProviderLibrary::Get() [ONNXRuntimeError] : 1 : FAIL : Failed to load library "
    "/venv/onnxruntime/capi/libonnxruntime_providers_cuda.so with error: libcuda.so.1: cannot open shared object file: "
    "No such file or directory",
)
NEEDS = {
    "cuda": ("libcublasLt.so.13", "libcublas.so.13", "libcurand.so.10", "libcudart.so.13", "libcuda.so.1"),
    "tensorrt": ("libcublas.so.13", "libnvinfer.so.10", "libnvonnxparser.so.10", "libcudart.so.13", "libcudnn.so.9"),
}
RTX = {"version": "1.7.1.116", "targets": ["SM120", "SM121", "SM75", "SM80", "SM86", "SM89"]}


def gpu(name: str, major: int, minor: int) -> dict[str, Any]:
    return {"name": name, "capability": [major, minor], "memory": 85029158912}


H100 = gpu("NVIDIA H100 80GB HBM3", 9, 0)
RTX_4090 = gpu("NVIDIA GeForce RTX 4090", 8, 9)
V100 = gpu("Tesla V100-SXM2-16GB", 7, 0)


def driver(*gpus: dict[str, Any], cuda: tuple[int, int] = (13, 0), version: str | None = "580.65.06") -> Answer:
    return Answer(value=NO_DRIVER | {"missing": None, "cuda": list(cuda), "version": version, "gpus": list(gpus)})


def plain() -> Facts:
    """A PC without a GPU, as `pip install "onnxplain[cpu]"` leaves it."""
    return Facts(
        machine=PC,
        packages={"onnxruntime": "1.32.0"},
        modules=frozenset({"onnxruntime"}),
        driver=Answer(value=NO_DRIVER),
        runtime=Answer(value=CPU_ONLY),
        trials={"cpu": Answer(value={"runtime": "onnxruntime"})},
    )


def with_gpu(*gpus: dict[str, Any], **how: Any) -> Facts:
    """A PC with GPUs and their driver, and the same packages."""
    facts = plain()
    return replace(facts, machine=replace(facts.machine, nvidia=True), driver=driver(*gpus, **how))


def with_onnxruntime_gpu(facts: Facts, *missing: str) -> Facts:
    """onnxruntime-gpu in place of onnxruntime; `missing` are the libraries that it does not find."""
    return replace(
        facts,
        packages={"onnxruntime-gpu": "1.31.1"},
        runtime=Answer(value=WITH_CUDA),
        needs=NEEDS,
        missing={
            name: Answer(value=[m for m in missing if m in (*needs, "libcudnn.so.9")]) for name, needs in NEEDS.items()
        },
        trials={"cpu": Answer(value={}), "cuda": NOT_STARTED, "TensorrtExecutionProvider": NOT_STARTED},
    )
