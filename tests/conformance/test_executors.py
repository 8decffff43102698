"""Every executor passes the check that ships, and the check catches executors that are wrong on purpose."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

import numpy as np
import onnx
import onnx.parser
import pytest
from frameworks import runtime

from onnxplain.engine.executors.conformance import check_executor
from onnxplain.engine.executors.function import FunctionExecutor
from onnxplain.engine.executors.onnxruntime import OnnxRuntimeExecutor
from onnxplain.engine.executors.protocol import Array, Executor, TensorSpec
from onnxplain.engine.executors.reference import AveragePool, ConvTranspose, MaxPool, Pad, ReferenceExecutor
from onnxplain.errors import BackendFailed

MODEL = onnx.parser.parse_model(
    """<ir_version: 10, opset_import: ["" : 18]>
    tiny (float[N, 2, 3] x, int64[N] code) => (float[N, 3] y, float[N, 2, 3] z)
    {
        total = ReduceSum<keepdims = 0>(x, one)
        axes = Constant<value_ints = [1]>()
        column = Unsqueeze(code, axes)
        number = Cast<to = 1>(column)
        y = Add(total, number)
        z = Tanh(x)
    }"""
)
MODEL.graph.initializer.append(onnx.numpy_helper.from_array(np.asarray([1]), "one"))

F32, I64 = np.dtype(np.float32), np.dtype(np.int64)
INPUTS = {"x": TensorSpec(F32, ("N", 2, 3)), "code": TensorSpec(I64, ("N",))}
OUTPUTS = {"y": TensorSpec(F32, ("N", 3)), "z": TensorSpec(F32, ("N", 2, 3))}


def tiny(feeds: Mapping[str, Array]) -> dict[str, Array]:
    x, code = feeds["x"], feeds["code"]
    return {"y": x.sum(axis=1) + code[:, None].astype(np.float32), "z": np.tanh(x)}


def function() -> FunctionExecutor:
    return FunctionExecutor(tiny, INPUTS, OUTPUTS)


EXECUTORS: dict[str, Callable[[], Executor]] = {
    "function": function,
    "reference": lambda: ReferenceExecutor(MODEL),
    "onnxruntime": lambda: OnnxRuntimeExecutor(MODEL, threads=1),
    "onnxruntime, unoptimised": lambda: OnnxRuntimeExecutor(MODEL, threads=1, optimise=False),
    "openvino": lambda: openvino(MODEL),
}


def openvino(model: onnx.ModelProto) -> Executor:
    runtime("openvino", '"onnxplain[openvino]"')
    from onnxplain.engine.executors.openvino import OpenVinoExecutor

    return OpenVinoExecutor(model, threads=1)


@pytest.mark.parametrize("make", EXECUTORS.values(), ids=EXECUTORS.keys())
def test_an_executor_keeps_the_protocol(make: Callable[[], Executor]) -> None:
    """Specs, refusals, rows, memory, closing, neighbours: all that `check_executor` says."""
    check_executor(make)
    with make() as executor:
        assert isinstance(executor, Executor)
        assert unnamed(executor.inputs) == unnamed(INPUTS)
        assert unnamed(executor.outputs) == unnamed(OUTPUTS)
        assert executor.facts["runtime"]
        assert "version" in executor.facts


def unnamed(specs: Mapping[str, TensorSpec]) -> dict[str, TensorSpec]:
    """Without the names of free dimensions, which not every runtime keeps."""
    free = {name: tuple(d if isinstance(d, int) else None for d in spec.shape) for name, spec in specs.items()}
    return {name: TensorSpec(spec.dtype, free[name]) for name, spec in specs.items()}


@pytest.mark.parametrize("make", EXECUTORS.values(), ids=EXECUTORS.keys())
def test_executors_agree_with_one_another(make: Callable[[], Executor]) -> None:
    """One model, the same numbers: exact sums of three, and tanh to one unit in the last place or two."""
    rng = np.random.default_rng(0)
    feeds = {"x": rng.normal(size=(4, 2, 3)).astype(np.float32), "code": np.arange(4)}
    with make() as executor:
        for name, want in tiny(feeds).items():
            np.testing.assert_allclose(executor(feeds)[name], want, rtol=0, atol=2.5e-7)


class Wrong(FunctionExecutor):
    """A right executor to spoil."""

    def __init__(self) -> None:
        super().__init__(tiny, INPUTS, OUTPUTS)


class WrongName(Wrong):
    def __call__(self, feeds: Mapping[str, Array], /) -> Mapping[str, Array]:
        return {"logits" if name == "y" else name: array for name, array in super().__call__(feeds).items()}


class WrongOrder(Wrong):
    def __call__(self, feeds: Mapping[str, Array], /) -> Mapping[str, Array]:
        return dict(reversed(super().__call__(feeds).items()))


class WrongDtype(Wrong):
    def __call__(self, feeds: Mapping[str, Array], /) -> Mapping[str, Array]:
        return {name: array.astype(np.float64) for name, array in super().__call__(feeds).items()}


class WrongShape(Wrong):
    def __call__(self, feeds: Mapping[str, Array], /) -> Mapping[str, Array]:
        return {name: array[..., None] for name, array in super().__call__(feeds).items()}


class NotAnArray(Wrong):
    def __call__(self, feeds: Mapping[str, Array], /) -> Mapping[str, Array]:
        return {name: array.tolist() for name, array in super().__call__(feeds).items()}


class TakesAnything(Wrong):
    def __call__(self, feeds: Mapping[str, Array], /) -> Mapping[str, Array]:
        return tiny({name: np.asarray(feeds[name], spec.dtype) for name, spec in self.inputs.items()})


class AnotherError(Wrong):
    def __call__(self, feeds: Mapping[str, Array], /) -> Mapping[str, Array]:
        if feeds.keys() != INPUTS.keys():
            raise TypeError("what is this?")
        return super().__call__(feeds)


class CastsQuietly(Wrong):
    def __call__(self, feeds: Mapping[str, Array], /) -> Mapping[str, Array]:
        known = {n: a.astype(INPUTS[n].dtype) if n in INPUTS else a for n, a in feeds.items()}
        return super().__call__(known)


class DependsOnTheBatch(Wrong):
    def __call__(self, feeds: Mapping[str, Array], /) -> Mapping[str, Array]:
        out = dict(super().__call__(feeds))
        out["y"] = out["y"] - out["y"].mean(axis=0, keepdims=True)
        return out


class ForgetsTheLastRow(Wrong):
    def __call__(self, feeds: Mapping[str, Array], /) -> Mapping[str, Array]:
        out = dict(super().__call__(feeds))
        if len(out["y"]) > 1:
            out["y"][-1] = 0
        return out


class OverwritesItsInput(Wrong):
    def __call__(self, feeds: Mapping[str, Array], /) -> Mapping[str, Array]:
        out = super().__call__(feeds)
        feeds["x"][:] = 0
        return out


class ReturnsAView(Wrong):
    def __call__(self, feeds: Mapping[str, Array], /) -> Mapping[str, Array]:
        super().__call__(feeds)
        return {"y": feeds["x"].sum(axis=1), "z": feeds["x"][:]}


class Remembers(Wrong):
    """Leaks from call to call."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def __call__(self, feeds: Mapping[str, Array], /) -> Mapping[str, Array]:
        out = dict(super().__call__(feeds))
        self.calls += 1
        return {**out, "y": out["y"] + np.float32(self.calls)}


class Drifts(Wrong):
    """Leaks, but only once it has been refused something."""

    def __init__(self) -> None:
        super().__init__()
        self.refused = 0

    def __call__(self, feeds: Mapping[str, Array], /) -> Mapping[str, Array]:
        try:
            out = dict(super().__call__(feeds))
        except ValueError:
            self.refused += 1
            raise
        return {**out, "y": out["y"] + np.float32(self.refused)}


class NeverCloses(Wrong):
    def close(self) -> None:
        pass


class ClosesOnce(Wrong):
    def close(self) -> None:
        if self._fn is None:
            raise RuntimeError("already closed")
        super().close()


class WrongErrorAfterClose(Wrong):
    def __call__(self, feeds: Mapping[str, Array], /) -> Mapping[str, Array]:
        if self._fn is None:
            raise AttributeError("NoneType")
        return super().__call__(feeds)


class SharesItsBuffers(Wrong):
    """All executors write into one buffer: right alone, wrong in company."""

    seen: dict[int, Array] = {}  # noqa: RUF012  (the mistake itself)

    def __call__(self, feeds: Mapping[str, Array], /) -> Mapping[str, Array]:
        out = dict(super().__call__(feeds))
        self.seen.setdefault(len(feeds["x"]), out["y"])
        return {**out, "y": out["y"] if self.seen[len(feeds["x"])] is out["y"] else out["y"] + np.float32(1)}


class ClosesTheOther(Wrong):
    """All executors hang on one runtime: closing one closes them all."""

    open = True

    def __init__(self) -> None:
        super().__init__()
        type(self).open = True

    def close(self) -> None:
        type(self).open = False

    def __call__(self, feeds: Mapping[str, Array], /) -> Mapping[str, Array]:
        if not self.open:
            self._fn = None
        return super().__call__(feeds)


class EntersAnother(Wrong):
    def __enter__(self) -> FunctionExecutor:  # type: ignore[override]
        return function()


WRONG = [
    *(WrongName, WrongOrder, WrongDtype, WrongShape, NotAnArray, TakesAnything, AnotherError, CastsQuietly),
    *(
        DependsOnTheBatch,
        ForgetsTheLastRow,
        OverwritesItsInput,
        ReturnsAView,
        Remembers,
        Drifts,
        NeverCloses,
        ClosesOnce,
    ),
    *(WrongErrorAfterClose, SharesItsBuffers, ClosesTheOther, EntersAnother),
]


def test_the_executor_to_spoil_is_right() -> None:
    """Else every spoiled one would look caught."""
    check_executor(Wrong)


@pytest.mark.parametrize("wrong", WRONG, ids=lambda wrong: wrong.__name__)
def test_a_wrong_executor_is_caught(wrong: Callable[[], Executor]) -> None:
    """Each mistake by itself is enough."""
    with pytest.raises(AssertionError):
        check_executor(wrong)


def test_specs_can_be_any_mapping() -> None:
    """A read-only mapping will do."""
    check_executor(lambda: FunctionExecutor(tiny, MappingProxyType(INPUTS), MappingProxyType(OUTPUTS)))


def test_what_onnx_runtime_refuses_is_an_error_of_ours() -> None:
    """A model that it cannot open, and a call that fails inside: one line each."""
    with pytest.raises(BackendFailed, match="refused the model") as caught:
        OnnxRuntimeExecutor(b"no model")
    assert "\n" not in str(caught.value)
    reshape = onnx.parser.parse_model(
        """<ir_version: 10, opset_import: ["" : 18]>
        bad (float[N, M] x) => (float[3, K] y) { three = Constant<value_ints = [3, -1]>() y = Reshape(x, three) }"""
    )
    with (
        OnnxRuntimeExecutor(reshape, threads=1) as executor,
        pytest.raises(BackendFailed, match="failed while") as caught,
    ):
        executor({"x": np.zeros((2, 2), np.float32)})
    assert "\n" not in str(caught.value)


# The reference evaluator's operators that we bring ourselves, against another runtime.

CASES = [
    (
        "ConvTranspose",
        [(2, 4, 5, 6), (4, 3, 3, 2)],
        {"group": 2, "strides": [2, 3], "pads": [1, 0, 0, 1], "dilations": [2, 1]},
    ),
    ("ConvTranspose", [(2, 3, 5), (3, 2, 3), (2,)], {"strides": [3], "pads": [1, 1], "output_padding": [2]}),
    ("ConvTranspose", [(2, 3, 4, 5), (3, 2, 3, 4)], {"strides": [2, 3], "auto_pad": "SAME_UPPER"}),
    ("ConvTranspose", [(2, 3, 4, 5), (3, 2, 3, 4)], {"strides": [2, 2], "auto_pad": "SAME_LOWER"}),
    ("ConvTranspose", [(2, 3, 4, 5), (3, 2, 3, 4)], {"strides": [2, 3], "auto_pad": "VALID"}),
    ("ConvTranspose", [(2, 3, 3, 4), (3, 2, 3, 4)], {"strides": [2, 2], "output_shape": [6, 7]}),
    (
        "ConvTranspose",
        [(2, 3, 3, 4), (3, 2, 3, 3)],
        {"strides": [2, 2], "output_shape": [8, 9], "output_padding": [1, 0]},
    ),
    ("MaxPool", [(2, 3, 7, 8)], {"kernel_shape": [2, 3], "strides": [2, 2], "auto_pad": "SAME_LOWER"}),
    ("MaxPool", [(2, 3, 8, 8)], {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 0, 1, 0], "ceil_mode": 1}),
    ("MaxPool", [(1, 2, 9, 9)], {"kernel_shape": [2, 2], "strides": [3, 3], "dilations": [2, 3], "ceil_mode": 1}),
    ("AveragePool", [(2, 3, 7, 8)], {"kernel_shape": [2, 3], "strides": [2, 2], "auto_pad": "SAME_UPPER"}),
    ("AveragePool", [(2, 3, 8, 7)], {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1], "ceil_mode": 1}),
    (
        "AveragePool",
        [(2, 3, 8, 7)],
        {"kernel_shape": [3, 2], "strides": [2, 2], "pads": [1, 1, 1, 0], "ceil_mode": 1, "count_include_pad": 1},
    ),
]


@pytest.mark.parametrize(("op", "shapes", "attributes"), CASES, ids=lambda value: str(value).replace(" ", ""))
def test_the_reference_executor_s_own_operators_agree_with_onnx_runtime(op, shapes, attributes) -> None:
    """Float32 against float64: at most 36 products of normal numbers are added, 36 · eps · 3 of each other's size."""
    assert {c.__name__ for c in (AveragePool, ConvTranspose, MaxPool, Pad)} >= {op}
    rng = np.random.default_rng(0)
    names = [f"x{i}" for i in range(len(shapes))]
    feeds = {name: rng.normal(size=shape).astype(np.float32) for name, shape in zip(names, shapes, strict=True)}

    def model(kind: int) -> onnx.ModelProto:
        make = onnx.helper.make_tensor_value_info
        graph = onnx.helper.make_graph(
            [onnx.helper.make_node(op, names, ["y"], **attributes)],
            "one",
            [make(name, kind, shape) for name, shape in zip(names, shapes, strict=True)],
            [make("y", kind, None)],
        )
        proto = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=10)
        return onnx.shape_inference.infer_shapes(proto, strict_mode=True)

    got = ReferenceExecutor(model(onnx.TensorProto.DOUBLE))({n: a.astype(np.float64) for n, a in feeds.items()})["y"]
    want = OnnxRuntimeExecutor(model(onnx.TensorProto.FLOAT), threads=1)(feeds)["y"]
    np.testing.assert_allclose(got, want, rtol=0, atol=36 * 3 * np.finfo(np.float32).eps)
