"""ONNX's reference evaluator as an executor: slow, in float64 where the model is; the oracle of our tests."""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self

import numpy as np
import onnx
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

from onnxplain.engine.executors.protocol import Array, TensorSpec, check_feeds
from onnxplain.errors import ExecutionError


class Erf(OpRun):  # type: ignore[misc]
    """Erf to the last bits: the evaluator's own is good to about 1e-8 only."""

    op_domain = ""

    def _run(self, x: Array) -> tuple[Array]:
        return (np.vectorize(math.erf, otypes=[x.dtype])(x),)


def specs(values: Any) -> dict[str, TensorSpec]:
    """Tensor specs of a graph's inputs or outputs."""

    def spec(value: onnx.ValueInfoProto) -> TensorSpec:
        kind = value.type.tensor_type
        shape = tuple(d.dim_value if d.HasField("dim_value") else d.dim_param or None for d in kind.shape.dim)
        return TensorSpec(np.dtype(onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type)), shape)

    return {value.name: spec(value) for value in values}


class ReferenceExecutor:
    """`onnx.reference.ReferenceEvaluator` behind the executor protocol."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self._evaluator: ReferenceEvaluator | None = ReferenceEvaluator(model, new_ops=[Erf])
        constants = {tensor.name for tensor in model.graph.initializer}
        self.inputs: Mapping[str, TensorSpec] = specs(v for v in model.graph.input if v.name not in constants)
        self.outputs: Mapping[str, TensorSpec] = specs(model.graph.output)

    def __call__(self, feeds: Mapping[str, Array], /) -> Mapping[str, Array]:
        if self._evaluator is None:
            raise ExecutionError("this executor is closed")
        check_feeds(self.inputs, feeds)
        return dict(zip(self.outputs, self._evaluator.run(None, dict(feeds)), strict=True))

    def close(self) -> None:
        self._evaluator = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None:
        self.close()
