"""What every runtime looks like from outside."""

from __future__ import annotations

from collections.abc import Mapping
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
        return (
            array.dtype == self.dtype
            and array.ndim == len(self.shape)
            and all(not isinstance(want, int) or want == got for want, got in zip(self.shape, array.shape, strict=True))
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
