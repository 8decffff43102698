"""Where a model runs, as users write it: a runtime and the number of its device."""

from __future__ import annotations

import re
from dataclasses import dataclass

from onnxplain.errors import UsageError

CPU, CUDA, TENSORRT, TENSORRT_RTX, OPENVINO = "cpu", "cuda", "tensorrt", "tensorrt-rtx", "openvino"
RUNTIMES = (CPU, CUDA, TENSORRT, TENSORRT_RTX, OPENVINO)  # `cpu` and `cuda` are ONNX Runtime's
NUMBERED = (CUDA, TENSORRT, TENSORRT_RTX)  # those that a machine may have several devices for
ALSO = {"CPUExecutionProvider": CPU, "CUDAExecutionProvider": CUDA}  # as ONNX Runtime calls them
PROVIDER = re.compile(r"[A-Za-z][A-Za-z0-9]*ExecutionProvider")  # the name of one of ONNX Runtime's providers
MOST_DEVICES = 1024


@dataclass(frozen=True)
class Place:
    """A runtime, one of `RUNTIMES` or the name of a provider of ONNX Runtime, and which of its devices."""

    runtime: str
    device: int = 0

    @classmethod
    def parse(cls, text: str) -> Place:
        """`cpu`, `cuda`, `cuda:1`, `OpenVINOExecutionProvider`, ... Raises `UsageError`."""
        runtime, colon, number = text.partition(":")
        runtime = ALSO.get(runtime, runtime)
        known = runtime in RUNTIMES or PROVIDER.fullmatch(runtime)
        if not known:
            raise UsageError(
                f"device {text!r} is unknown; next: use one of {', '.join(RUNTIMES)}, with :N for the Nth of several "
                f"GPUs, or the name of another provider of ONNX Runtime, such as CoreMLExecutionProvider"
            )
        if not colon:
            return cls(runtime)
        if runtime in RUNTIMES and runtime not in NUMBERED:
            raise UsageError(f"device {text!r}: {runtime} has no numbered devices; next: write {runtime}")
        if not (number.isascii() and number.isdecimal() and int(number) < MOST_DEVICES):
            raise UsageError(f"device {text!r}: expected a number behind the colon; next: write {runtime}:0")
        return cls(runtime, int(number))

    def __str__(self) -> str:
        return f"{self.runtime}:{self.device}" if self.device else self.runtime
