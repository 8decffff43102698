"""Executors whose inputs and outputs stay in "the memory of a device": arrays that count what crosses the bus."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
import toys
from numpy.typing import NDArray

from onnxplain.adapters.gradient.steps import line_step, walk_step
from onnxplain.engine.drive import GRADIENT, LINE, LOGITS, WALK, Model
from onnxplain.engine.executors.onnxruntime import OnnxRuntimeExecutor
from onnxplain.engine.executors.protocol import (
    Buffer,
    Closing,
    Executor,
    TensorSpec,
    check_binding,
)
from onnxplain.errors import ExecutionError, FeedMismatch, OutOfMemory

Array = NDArray[Any]


class Bus:
    """What has crossed it: (bytes, shape) of each transfer, one list a direction."""

    def __init__(self) -> None:
        self.up: list[tuple[int, tuple[int, ...]]] = []
        self.down: list[tuple[int, tuple[int, ...]]] = []


class ArrayBuffer:
    """A buffer that begins with garbage."""

    def __init__(self, spec: TensorSpec, bus: Bus) -> None:
        self.spec, self.bus = spec, bus
        self.array = np.full(spec.shape, np.nan if spec.dtype.kind == "f" else 1).astype(spec.dtype)  # type: ignore[arg-type]

    def write(self, values: Array, /) -> None:
        if not self.spec.admits(values):
            raise FeedMismatch(f"expected {self.spec}")
        self.bus.up.append((values.nbytes, values.shape))
        self.array[...] = values

    def read(self) -> Array:
        self.bus.down.append((self.array.nbytes, self.array.shape))
        return self.array.copy()


class Bindable(Closing):
    """Any executor, with `bind`. It has no memory for calls, nor for buffers, of more than `most` rows."""

    own_memory = True

    def __init__(self, executor: Executor, bus: Bus | None = None, most: int = 10**9) -> None:
        self.executor, self.bus, self.most = executor, bus or Bus(), most
        self.inputs, self.outputs, self.facts = executor.inputs, executor.outputs, executor.facts
        self.kept = 0
        self.open = True

    def __call__(self, feeds: Mapping[str, Array], /) -> Mapping[str, Array]:
        if len(next(iter(feeds.values()))) > self.most:
            raise OutOfMemory("too many rows")
        return self.executor(feeds)

    def buffer(self, spec: TensorSpec, /) -> ArrayBuffer:
        if int(spec.shape[0] or 0) > self.most:
            raise OutOfMemory("no room for so many rows")
        return ArrayBuffer(spec, self.bus)

    def bind(self, buffers: Mapping[str, Buffer], /, *, kept: bool = False) -> Callable[[], None]:
        ours: dict[str, Any] = dict(buffers)
        check_binding(self.inputs, self.outputs, {name: (b.spec, id(b)) for name, b in ours.items()})
        self.kept += kept

        def call() -> None:
            if not self.open:
                raise ExecutionError("closed")
            for name, array in self({name: ours[name].array for name in self.inputs}).items():
                ours[name].array[...] = array

        return call

    def close(self) -> None:
        self.open = False
        self.executor.close()


def steps(shape: tuple[int, ...], dtype: Any) -> dict[str, Callable[[], Executor]]:
    """The step models in ONNX Runtime."""
    make = {WALK: walk_step, LINE: line_step}
    return {role: partial(OnnxRuntimeExecutor, made(shape, np.dtype(dtype)), threads=1) for role, made in make.items()}


def model_of(
    toy: toys.Toy, dtype: Any = np.float64, batch_size: int = 8, bus: Bus | None = None, most: int = 10**9
) -> Model:
    """A toy whose walks and lines stay on the device."""
    return joined(*toys.executors(toy, dtype), batch_size=batch_size, bus=bus, most=most)


def joined(
    forward: Executor, backward: Executor, batch_size: int = 8, bus: Bus | None = None, most: int = 10**9, **more: Any
) -> Model:
    """A classifier and its gradient model, on the device; `more` are step models in place of the right ones."""
    spec = next(iter(forward.inputs.values()))
    made = {**steps(spec.shape[1:], spec.dtype), **more}  # type: ignore[arg-type]
    start: dict[str, Any] = {LOGITS: lambda: Bindable(forward, bus), GRADIENT: lambda: Bindable(backward, bus, most)}
    start |= {role: lambda role=role: Bindable(made[role](), bus) for role in (WALK, LINE)}
    return Model(start, batch_size=batch_size)
