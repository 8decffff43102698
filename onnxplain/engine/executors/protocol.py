"""What every runtime looks like from outside."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Protocol, Self, TypeAlias, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from onnxplain.errors import FeedMismatch

Array: TypeAlias = NDArray[Any]


@dataclass(frozen=True)
class TensorSpec:
    """dtype and shape of an input or output; a `str` (or None, if unnamed) in the shape is a free dimension."""

    dtype: np.dtype[Any]
    shape: tuple[int | str | None, ...]

    def admits(self, array: Array) -> bool:
        return self.fits(TensorSpec(array.dtype, array.shape))

    def fits(self, other: TensorSpec) -> bool:
        """Whether a tensor of the other spec, which has no free dimensions, is one of this."""
        return (
            other.dtype == self.dtype
            and len(other.shape) == len(self.shape)
            and all(not isinstance(want, int) or want == got for want, got in zip(self.shape, other.shape, strict=True))
        )

    def __str__(self) -> str:
        return f"{self.dtype.name}[{', '.join(str(d) if d is not None else '?' for d in self.shape)}]"


@runtime_checkable
class Executor(Protocol):
    """A model, ready to run on one device. Not thread-safe unless it says so.

    Calling it with one array per input returns one array per output. Outputs may be views into buffers that the next
    call overwrites: keep a copy of what you keep. After `close` (idempotent) a call raises `ExecutionError`. A call
    that the device has too little memory for raises `OutOfMemory`, and a smaller one may follow.

    `facts` says what runs it, for the record: `runtime` and its `version`, and what else tells one run from another.
    An executor that takes a limited number of rows has an attribute `most_rows`.
    """

    @property
    def inputs(self) -> Mapping[str, TensorSpec]: ...

    @property
    def outputs(self) -> Mapping[str, TensorSpec]: ...

    @property
    def facts(self) -> Mapping[str, Any]: ...

    def __call__(self, feeds: Mapping[str, Array], /) -> Mapping[str, Array]: ...

    def close(self) -> None: ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None: ...


class Buffer(Protocol):
    """An array in the memory of a device. It keeps its place there."""

    def write(self, values: Array, /) -> None:
        """Copy values of its dtype and shape from the host into all of it."""

    def read(self) -> Array:
        """A copy of all of it on the host."""
        ...


@runtime_checkable
class OnDevice(Executor, Protocol):
    """An executor whose inputs and outputs may stay in the memory of its device between calls.

    `own_memory` says whether that memory is another one than the host's. A buffer may be bound to every executor of the
    same runtime and device. The contents of a new one are undefined.
    """

    @property
    def own_memory(self) -> bool: ...

    def buffer(self, spec: TensorSpec, /) -> Buffer:
        """A new buffer of this dtype and shape, which has no free dimensions."""
        ...

    def bind(self, buffers: Mapping[str, Buffer], /, *, kept: bool = False) -> Callable[[], None]:
        """A call of the model that reads its inputs from these buffers and writes its outputs to them.

        Each input and each output has a buffer that fits it, else `FeedMismatch` is raised; one buffer may be that of
        several inputs, but no output's is that of anything else. Several bindings of one executor do not disturb one
        another. `kept` tells that this one will be called for as long as the executor lives, so that it is worth
        recording. The call returns when the outputs are there; after `close` it raises `ExecutionError`.
        """
        ...


class Closing:
    """Something to open with `with`: it closes at the end."""

    def close(self) -> None:
        raise NotImplementedError

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None:
        self.close()


def check_feeds(inputs: Mapping[str, TensorSpec], feeds: Mapping[str, Array]) -> None:
    """Raise `FeedMismatch` unless `feeds` has exactly the inputs, each of the right dtype and shape."""
    if feeds.keys() != inputs.keys():
        raise FeedMismatch(f"feeds: expected inputs {sorted(inputs)}, got {sorted(feeds)}")
    for name, spec in inputs.items():
        if not spec.admits(feeds[name]):
            got = TensorSpec(feeds[name].dtype, feeds[name].shape)
            raise FeedMismatch(f"input {name}: expected {spec}, got {got}")


def check_binding(
    inputs: Mapping[str, TensorSpec], outputs: Mapping[str, TensorSpec], bound: Mapping[str, tuple[TensorSpec, int]]
) -> None:
    """Raise `FeedMismatch` unless `bound` has exactly the inputs and outputs; each with its spec and its address."""
    ends = {**inputs, **outputs}
    if bound.keys() != ends.keys():
        raise FeedMismatch(f"buffers: expected inputs and outputs {sorted(ends)}, got {sorted(bound)}")
    for name, spec in ends.items():
        if not spec.fits(bound[name][0]):
            raise FeedMismatch(f"buffer {name}: expected {spec}, got {bound[name][0]}")
        shared = [other for other in ends if other != name and bound[other][1] == bound[name][1]]
        if name in outputs and shared:
            raise FeedMismatch(f"buffer {name}: an output may not share its buffer, but {shared[0]} has the same one")
