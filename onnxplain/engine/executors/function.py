"""A plain Python function as an executor: analytic models in tests, and models that live elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from onnxplain.engine.executors.protocol import Array, Closing, TensorSpec, check_feeds
from onnxplain.errors import ExecutionError


class FunctionExecutor(Closing):
    """`fn(feeds) -> outputs`, with the specs that it promises to keep."""

    def __init__(
        self,
        fn: Callable[[Mapping[str, Array]], Mapping[str, Array]],
        inputs: Mapping[str, TensorSpec],
        outputs: Mapping[str, TensorSpec],
    ) -> None:
        self._fn: Callable[[Mapping[str, Array]], Mapping[str, Array]] | None = fn
        self.inputs = inputs
        self.outputs = outputs
        self.facts: Mapping[str, Any] = {"runtime": "function", "version": ""}

    def __call__(self, feeds: Mapping[str, Array], /) -> Mapping[str, Array]:
        if self._fn is None:
            raise ExecutionError("this executor is closed")
        check_feeds(self.inputs, feeds)
        return self._fn(feeds)

    def close(self) -> None:
        self._fn = None
