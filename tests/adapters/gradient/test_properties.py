"""Windows and indices of any shape, against PyTorch's autograd in float64. Hypothesis draws them, always the same.

What is compared is the whole vector Jᵀ ȳ. Convolutions and means round (1e-12 of the largest element covers the sums of
a few hundred products); everything else only moves numbers, and integers add up exactly in any order.
"""

from __future__ import annotations

from typing import Any
from unittest.mock import patch

import numpy as np
import onnx
from frameworks import framework
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

torch = framework("torch")

import torch.nn.functional as F  # noqa: E402, N812

from onnxplain.adapters.gradient.differentiate import differentiate  # noqa: E402
from onnxplain.adapters.gradient.rules import conv  # noqa: E402
from onnxplain.engine.executors.reference import ReferenceExecutor  # noqa: E402

few = settings(max_examples=40, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck))
small, seeds, parts = st.integers(1, 3), st.integers(0, 2**32 - 1), st.sampled_from([0, conv.SMALL_MAP])
DOUBLE = onnx.TensorProto.DOUBLE


def pulled_back(op: str, feeds: dict[str, np.ndarray], constants: dict[str, Any], seed: int, **attributes: Any):
    """y, ȳ (whole numbers) and Jᵀ ȳ of one node with respect to its fed inputs, which come first."""
    make = onnx.helper.make_tensor_value_info
    node = onnx.helper.make_node(op, [*feeds, *constants], ["y"], **attributes)
    inputs = [make(name, DOUBLE, ["N", *a.shape[1:]] if a.ndim == 4 else a.shape) for name, a in feeds.items()]
    frozen = [onnx.numpy_helper.from_array(np.asarray(a), name) for name, a in constants.items()]
    graph = onnx.helper.make_graph([node], "one", inputs, [onnx.helper.make_empty_tensor_value_info("y")], frozen)
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 22)], ir_version=10)
    model = onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)
    y = ReferenceExecutor(model)(feeds)["y"]
    g = np.random.default_rng(seed).integers(-9, 10, y.shape).astype(np.float64)
    out = ReferenceExecutor(differentiate(model))({**feeds, "grad_y": g})
    return y, g, [out[f"grad_{name}"] for name in feeds]


def autograd(function: Any, arrays: list[np.ndarray], g: np.ndarray) -> tuple[np.ndarray, list[np.ndarray]]:
    """The same by PyTorch."""
    points = [torch.from_numpy(a.copy()).requires_grad_() for a in arrays]
    y = function(*points)
    y.backward(torch.from_numpy(g))
    return y.detach().numpy(), [p.grad.numpy() for p in points]


def near(got: np.ndarray, want: np.ndarray) -> None:
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-12 * max(np.abs(want).max(), 1))


@st.composite
def geometry(draw: Any, pooling: bool) -> dict[str, Any]:
    """Sizes for a window in two dimensions. Pools pad by half a kernel at most, as PyTorch demands."""
    kernel, stride, dilation = ([draw(st.integers(1, top)) for _ in range(2)] for top in (4, 3, 3))
    pads = [draw(st.integers(0, k // 2 if pooling else k + 1)) for k in kernel]
    least = [d * (k - 1) + 1 - 2 * p for d, k, p in zip(dilation, kernel, pads, strict=True)]
    size = [max(low, 1) + draw(st.integers(0, 6)) for low in least]
    return {"kernel": kernel, "stride": stride, "dilation": dilation, "pads": pads, "size": size}


@few
@given(geometry(pooling=False), st.sampled_from([1, 1, 2, 4]), small, small, st.tuples(small, small), seeds, parts)
def test_any_convolution(
    shape: dict, group: int, each: int, outs: int, extra: tuple[int, int], seed: int, small_map: int
) -> None:
    """Any kernel, stride, dilation, groups, and padding that differs from end to end; of small maps and large ones."""
    rng = np.random.default_rng(seed)
    x, w = rng.normal(size=(2, each * group, *shape["size"])), rng.normal(size=(outs * group, each, *shape["kernel"]))
    before, after = shape["pads"], [p + e - 1 for p, e in zip(shape["pads"], extra, strict=True)]
    attributes = {"strides": shape["stride"], "dilations": shape["dilation"], "group": group, "pads": [*before, *after]}
    with patch.object(conv, "SMALL_MAP", small_map):
        y, g, (gradient,) = pulled_back("Conv", {"x": x}, {"w": w}, seed, **attributes)

    def same(x: Any) -> Any:
        padded = F.pad(x, (before[1], after[1], before[0], after[0]))
        return F.conv2d(padded, torch.from_numpy(w), None, shape["stride"], 0, shape["dilation"], group)

    theirs, (want,) = autograd(same, [x], g)
    near(y, theirs)
    near(gradient, want)


@few
@given(geometry(pooling=True), st.booleans(), st.booleans(), seeds)
def test_any_max_pool_also_among_equals(shape: dict, ceil: bool, sparse: bool, seed: int) -> None:
    """Exactly PyTorch's, on data with many ties as on data without: the first maximum takes all."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(2, 2, *shape["size"]))
    x = np.maximum(np.rint(2 * x), 0) if sparse else x
    attributes = {"kernel_shape": shape["kernel"], "strides": shape["stride"], "dilations": shape["dilation"]}
    attributes |= {"pads": 2 * shape["pads"], "ceil_mode": int(ceil)}
    y, g, (gradient,) = pulled_back("MaxPool", {"x": x}, {}, seed, **attributes)
    how = (shape["kernel"], shape["stride"], shape["pads"], shape["dilation"], ceil)
    theirs, (want,) = autograd(lambda x: F.max_pool2d(x, *how), [x], g)
    np.testing.assert_array_equal(y, theirs)
    np.testing.assert_array_equal(gradient, want)


@few
@given(geometry(pooling=True), st.booleans(), st.booleans(), seeds)
def test_any_average_pool(shape: dict, ceil: bool, counted: bool, seed: int) -> None:
    """With padding counted or not, and with windows that reach beyond it."""
    size = [max(s, k) for s, k in zip(shape["size"], shape["kernel"], strict=True)]
    x = np.random.default_rng(seed).normal(size=(2, 2, *size))
    attributes = {"kernel_shape": shape["kernel"], "strides": shape["stride"], "pads": 2 * shape["pads"]}
    attributes |= {"ceil_mode": int(ceil), "count_include_pad": int(counted)}
    y, g, (gradient,) = pulled_back("AveragePool", {"x": x}, {}, seed, **attributes)
    how = (shape["kernel"], shape["stride"], shape["pads"], ceil, counted)
    theirs, (want,) = autograd(lambda x: F.avg_pool2d(x, *how), [x], g)
    near(y, theirs)
    near(gradient, want)


@few
@given(st.integers(1, 9), st.integers(-12, 12), st.integers(-12, 12), st.integers(-4, 4).filter(bool), seeds)
def test_any_slice(size: int, start: int, end: int, step: int, seed: int) -> None:
    """Starts and ends on either side of either end, steps of either sign: the places that NumPy takes."""
    x = np.random.default_rng(seed).normal(size=(2, 3, size, 2))
    places = np.arange(size)[start:end:step].copy()
    assume(len(places))
    assume(step > 0 or start >= -size)  # the evaluator does not clamp this as ONNX says: see test_sweep.py
    constants = {name: np.asarray([v], np.int64) for name, v in {"s": start, "e": end, "a": 2, "t": step}.items()}
    y, g, (gradient,) = pulled_back("Slice", {"x": x}, constants, seed)
    theirs, (want,) = autograd(lambda x: x[:, :, torch.from_numpy(places)], [x], g)
    np.testing.assert_array_equal(y, theirs)
    np.testing.assert_array_equal(gradient, want)


@few
@given(st.lists(st.integers(-2, 3), min_size=4, max_size=4), st.floats(-3, 3), seeds)
def test_any_padding(widths: list[int], value: float, seed: int) -> None:
    """Widths of either sign on two axes."""
    x = np.random.default_rng(seed).normal(size=(2, 3, 5, 6))
    top, bottom, left, right = widths
    pads = np.asarray([0, 0, top, left, 0, 0, bottom, right], np.int64)
    y, g, (gradient,) = pulled_back("Pad", {"x": x}, {"pads": pads, "value": np.float64(value)}, seed)
    theirs, (want,) = autograd(lambda x: F.pad(x, (left, right, top, bottom), value=value), [x], g)
    np.testing.assert_array_equal(y, theirs)
    np.testing.assert_array_equal(gradient, want)


@few
@given(st.lists(st.tuples(st.integers(1, 3), st.sampled_from("ab=")), min_size=1, max_size=3), st.integers(0, 2), seeds)
def test_any_broadcast_is_that_of_the_operand_written_out(dims: list, missing: int, seed: int) -> None:
    """Each operand may have a 1 in place of a dimension, and one of them may lack leading ones."""
    rng = np.random.default_rng(seed)
    a = rng.integers(-5, 6, [1 if who == "a" else d for d, who in dims]).astype(np.float64)
    b = rng.integers(-5, 6, [1 if who == "b" else d for d, who in dims][min(missing, len(dims)) :]).astype(np.float64)
    _, g, gradients = pulled_back("Mul", {"a": a, "b": b}, {}, seed)
    _, want = autograd(lambda a, b: a * b, [a, b], g)
    for mine, theirs in zip(gradients, want, strict=True):
        np.testing.assert_array_equal(mine, theirs)
