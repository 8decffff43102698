"""How models are run: where, how precisely, with how many threads. It starts the one runtime that was asked for."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cache as once
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from onnxplain.engine.arguments import check_running
from onnxplain.engine.batching import LARGEST
from onnxplain.engine.executors.nvidia import surely_none
from onnxplain.engine.executors.place import CPU, NUMBERED, OPENVINO, Place
from onnxplain.engine.executors.protocol import Executor
from onnxplain.errors import BackendMissing, DeviceMissing, UsageError

if TYPE_CHECKING:
    import onnx


log = logging.getLogger(__name__)


class Precision(StrEnum):
    """What numbers a model is computed in."""

    FP32 = "fp32"
    TF32 = "tf32"  # float32 whose products are rounded to 10 bits, on GPUs: a switch of the runtime
    FP16 = "fp16"  # these two are in the graph, see `adapters.gradient.precision`
    BF16 = "bf16"

    @classmethod
    def parse(cls, text: str) -> Precision:
        """Raises `UsageError`."""
        if text not in cls.__members__.values():
            raise UsageError(f"precision {text!r} is unknown; next: use one of {', '.join(cls)}")
        return cls(text)


@dataclass(frozen=True, kw_only=True)
class Setup:
    """How models are run.

    `threads` are those of the runtime inside one operator (0: it decides). `options` are the runtime's own, by their
    names there. `cache` is a folder for what takes long to build (None: nothing is kept). `batch_size` is the largest
    batch that the runtime has to be ready for, where it has to know.
    """

    place: Place = field(default_factory=lambda: Place(CPU))
    threads: int = 0
    precision: Precision = Precision.FP32
    options: Mapping[str, str] = field(default_factory=dict)
    cache: Path | None = None
    batch_size: int = 8

    @classmethod
    def of(
        cls,
        *,
        on: str = CPU,
        precision: str = "fp32",
        threads: int = 0,
        provider_options: Mapping[str, str] | None = None,
        cache: str | os.PathLike[str] | None = "auto",
        batch_size: int | Literal["auto"] = 8,
    ) -> Setup:
        """A setup from words, as `open` takes them. Raises `UsageError`."""
        check_running(
            on=on,
            precision=precision,
            threads=threads,
            provider_options=provider_options,
            cache=cache,
            batch_size=batch_size,
        )
        warn_of_threads(int(threads))
        return cls(
            place=Place.parse(on),
            threads=int(threads),
            precision=Precision.parse(precision),
            options=dict(provider_options or {}),
            cache=cache_folder() if cache == "auto" else None if cache is None else Path(cache),
            batch_size=LARGEST if batch_size == "auto" else int(batch_size),
        )

    def __post_init__(self) -> None:
        if self.precision is Precision.TF32 and self.place.runtime in (CPU, OPENVINO):
            raise UsageError(f"precision tf32: there is none on {self.place}; next: use fp32, or a GPU")
        if self.precision is Precision.BF16 and self.place.runtime == CPU:
            raise UsageError(
                "precision bf16: ONNX Runtime has no convolutions of it on the CPU; next: use fp32, or --on openvino"
            )

    def start(self, model: onnx.ModelProto | bytes, *, folder: str | os.PathLike[str] | None = None) -> Executor:
        """A model ready to run. `folder` is where weights lie that it has in files of their own.

        Raises:
            BackendMissing: the runtime is not installed.
            DeviceMissing: there is no such device, or its driver does not fit.
            BackendFailed: the runtime refuses the model.
            OutputError: a cache folder that is needed cannot be written to.
        """
        try:
            return self._started(model, folder)
        except BackendMissing as error:
            if self.place.runtime in NUMBERED and surely_none():  # then to install it would not help
                raise DeviceMissing(
                    f"{self.place}: there is no NVIDIA GPU in this machine; next: use --on cpu, or see what "
                    "`onnxplain doctor` says of this machine"
                ) from error
            raise

    def _started(self, model: onnx.ModelProto | bytes, folder: str | os.PathLike[str] | None) -> Executor:
        match self.place.runtime:
            case "openvino":
                from onnxplain.engine.executors.openvino import OpenVinoExecutor

                return OpenVinoExecutor(model, threads=self.threads, options=self.options, folder=folder)
            case "tensorrt" | "tensorrt-rtx":
                from onnxplain.engine.executors.tensorrt import TensorRTExecutor

                return TensorRTExecutor.build(
                    model,
                    place=self.place,
                    most_rows=self.batch_size,
                    tf32=self.precision is Precision.TF32,
                    options=self.options,
                    cache=self.cache,
                    folder=folder,
                )
            case _:
                from onnxplain.engine.executors.onnxruntime import OnnxRuntimeExecutor

                return OnnxRuntimeExecutor(
                    model,
                    place=self.place,
                    threads=self.threads,
                    tf32=self.precision is Precision.TF32,
                    options=self.options,
                    folder=folder,
                )


@once
def warn_of_threads(threads: int) -> None:
    """Say that there are fewer cores than threads, which then are slower than as many as there are cores."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or threads
    if threads > cores:
        log.warning("%d threads are more than the %d cores that this process may use, and slower", threads, cores)


def cache_folder() -> Path:
    """Where this platform keeps what can be made again."""
    from platformdirs import user_cache_path

    return user_cache_path("onnxplain")
