"""Reductions, normalisations and operators with ties against PyTorch's autograd in float64, as in `test_properties.py`.

PyTorch has no operator for some of them (LRN of even sizes, `prod` over several axes): there its autograd
differentiates the definition, written out.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx
import pytest
from frameworks import framework
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

torch = framework("torch")

import torch.nn.functional as F  # noqa: E402, N812

from onnxplain.adapters.gradient.differentiate import differentiate  # noqa: E402
from onnxplain.engine.executors.onnxruntime import OnnxRuntimeExecutor  # noqa: E402
from onnxplain.engine.executors.reference import ReferenceExecutor  # noqa: E402
from onnxplain.errors import NotDifferentiable  # noqa: E402

few = settings(max_examples=40, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck))
seeds, sizes = st.integers(0, 2**32 - 1), st.integers(1, 4)


def one_node(
    op: str,
    feeds: Mapping[str, np.ndarray],
    constants: Mapping[str, Any],
    attributes: Mapping[str, Any],
    opset: int = 18,
    free: bool = True,
    outputs: int = 1,
) -> onnx.ModelProto:
    """A node as a model; the leading dimension of its first input is free."""

    def typed(name: str, array: np.ndarray) -> onnx.ValueInfoProto:
        shape = ["N", *array.shape[1:]] if free and array is next(iter(feeds.values())) else array.shape
        return onnx.helper.make_tensor_value_info(name, onnx.helper.np_dtype_to_tensor_dtype(array.dtype), shape)

    inputs = [typed(name, array) for name, array in feeds.items()]
    frozen = [onnx.numpy_helper.from_array(np.asarray(a), name) for name, a in constants.items()]
    names = [f"y{i}" for i in range(outputs)]
    node = onnx.helper.make_node(op, [*feeds, *constants], names, **attributes)
    bare = [onnx.helper.make_empty_tensor_value_info(name) for name in names]
    graph = onnx.helper.make_graph([node], "one", inputs, bare, frozen)
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", opset)], ir_version=10)
    model = onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)
    if not model.graph.output[0].type.tensor_type.elem_type:  # ONNX says nothing of GroupNormalization
        model.graph.output[0].type.CopyFrom(inputs[0].type)
    return model


def agree(
    op: str,
    feeds: Mapping[str, np.ndarray],
    same: Callable[..., Any],
    seed: int,
    constants: Mapping[str, Any] | None = None,
    opset: int = 18,
    free: bool = True,
    **attributes: Any,
) -> None:
    """y and Jᵀ ȳ of a node, for whole numbers ȳ, are those of PyTorch's `same`."""
    model = one_node(op, feeds, constants or {}, attributes, opset, free)
    y = ReferenceExecutor(model)(feeds)["y0"]
    points = [torch.from_numpy(a.copy()).requires_grad_() for a in feeds.values()]
    theirs = same(*points)
    near(y, theirs.detach().numpy())
    g = np.random.default_rng(seed).integers(-9, 10, y.shape).astype(np.float64)
    theirs.backward(torch.from_numpy(g))
    out = ReferenceExecutor(differentiate(model))({**feeds, "grad_y0": g})
    for name, point in zip(feeds, points, strict=True):
        near(out[f"grad_{name}"], point.grad.numpy())


def near(got: np.ndarray, want: np.ndarray) -> None:
    """A reciprocal of a small norm magnifies rounding: a thousand roundings of the largest element."""
    assert got.shape == want.shape
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-12 * max(np.abs(want).max(initial=0), 1))


def product(x: Any, axes: tuple[int, ...], keepdims: bool) -> Any:
    """One axis after the other: PyTorch multiplies along one only."""
    kept = [d for a, d in enumerate(x.shape) if a not in axes]
    for axis in axes:
        x = x.prod(dim=axis, keepdim=True)
    return x if keepdims else x.reshape(kept)


REDUCTIONS: dict[str, Callable[..., Any]] = {
    "ReduceL1": lambda x, axes, keepdims: x.abs().sum(axes, keepdims),
    "ReduceL2": lambda x, axes, keepdims: torch.linalg.vector_norm(x, 2, axes, keepdims),
    "ReduceLogSum": lambda x, axes, keepdims: x.sum(axes, keepdims).log(),
    "ReduceLogSumExp": lambda x, axes, keepdims: torch.logsumexp(x, axes, keepdims),
    "ReduceMax": lambda x, axes, keepdims: x.amax(axes, keepdims),
    "ReduceMin": lambda x, axes, keepdims: x.amin(axes, keepdims),
    "ReduceProd": product,
    "ReduceSum": lambda x, axes, keepdims: x.sum(axes, keepdims),
    "ReduceSumSquare": lambda x, axes, keepdims: (x * x).sum(axes, keepdims),
}


@st.composite
def reductions(draw: Any) -> tuple[list[int], list[int], bool, bool]:
    """A shape, axes of either sign, whether they are kept, and whether none of them means none."""
    shape = draw(st.lists(sizes, min_size=1, max_size=4))
    axes = draw(st.lists(st.sampled_from(range(len(shape))), unique=True))
    signed = [a - len(shape) if draw(st.booleans()) else a for a in axes]
    return shape, signed, draw(st.booleans()), draw(st.booleans())


@pytest.mark.parametrize("op", REDUCTIONS)
@few
@given(how=reductions(), coarse=st.booleans(), seed=seeds)
def test_any_reduction(op: str, how: tuple[list[int], list[int], bool, bool], coarse: bool, seed: int) -> None:
    """Over any axes of any shape, on data with many zeros and ties as on data without."""
    shape, axes, keepdims, none_is_none = how
    rng = np.random.default_rng(seed)
    x = rng.integers(-1, 2, shape).astype(np.float64) if coarse else rng.normal(size=shape)
    x = np.abs(x) + 1 if op == "ReduceLogSum" else x
    over = tuple(sorted(a % len(shape) for a in axes)) or tuple(range(len(shape)))

    def same(x: Any) -> Any:
        if not axes and none_is_none:  # what is not a sum remains: over an axis of one element
            return REDUCTIONS[op](x[..., None], (x.ndim,), False)
        return REDUCTIONS[op](x, over, keepdims)

    attributes = {"keepdims": int(keepdims), "noop_with_empty_axes": int(none_is_none)}
    agree(op, {"x": x}, same, seed, {"axes": np.asarray(axes, np.int64)}, **attributes)


@few
@given(st.lists(st.tuples(sizes, st.sampled_from("ab=")), min_size=1, max_size=3), st.booleans(), seeds)
def test_the_larger_of_two_with_ties(dims: list[tuple[int, str]], least: bool, seed: int) -> None:
    """Equal operands share half and half, and each may be broadcast."""
    rng = np.random.default_rng(seed)
    a = rng.integers(-1, 2, [1 if who == "a" else d for d, who in dims]).astype(np.float64)
    b = rng.integers(-1, 2, [1 if who == "b" else d for d, who in dims]).astype(np.float64)
    same = torch.minimum if least else torch.maximum
    agree("Min" if least else "Max", {"a": a, "b": b}, same, seed, free=False)


@few
@given(st.integers(1, 4), st.booleans(), seeds)
def test_the_largest_of_several_with_ties(count: int, least: bool, seed: int) -> None:
    """All that are equal get the same, as by `amax` over all of them stacked."""
    arrays = np.random.default_rng(seed).integers(-1, 2, (count, 3, 4)).astype(np.float64)

    def same(*xs: Any) -> Any:
        stacked = torch.stack(xs)
        return stacked.amin(0) if least else stacked.amax(0)

    agree("Min" if least else "Max", {f"x{i}": x for i, x in enumerate(arrays)}, same, seed, free=False)


@few
@given(st.lists(sizes, min_size=1, max_size=3), st.booleans(), seeds)
def test_a_global_max_pool_picks_the_first(spatial: list[int], coarse: bool, seed: int) -> None:
    """As PyTorch's adaptive pools do, also among equals."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(2, 3, *spatial))
    x = np.maximum(np.rint(2 * x), 0) if coarse else x
    pool = (F.adaptive_max_pool1d, F.adaptive_max_pool2d, F.adaptive_max_pool3d)[len(spatial) - 1]
    agree("GlobalMaxPool", {"x": x}, lambda x: pool(x, 1), seed)


@few
@given(st.lists(sizes, min_size=1, max_size=3), st.integers(0, 2), st.booleans(), st.booleans(), st.booleans(), seeds)
def test_any_cumulation(shape: list[int], axis: int, products: bool, exclusive: bool, reverse: bool, seed: int) -> None:
    """Sums and products, from either end, with or without the element itself, and with zeros."""
    x = np.random.default_rng(seed).integers(-1, 3, shape).astype(np.float64)
    axis = min(axis, len(shape) - 1)
    attributes = {"exclusive": int(exclusive), "reverse": int(reverse)}

    def same(x: Any) -> Any:
        x = x.flip(axis) if reverse else x
        y = x.cumprod(axis) if products else x.cumsum(axis)
        if exclusive:
            first = torch.ones_like(y.narrow(axis, 0, 1)) if products else torch.zeros_like(y.narrow(axis, 0, 1))
            y = torch.cat([first, y.narrow(axis, 0, y.shape[axis] - 1)], axis) + 0 * x
        return y.flip(axis) if reverse else y

    # The products along a free dimension are refused, so none is free here.
    op, opset = ("CumProd", 26) if products else ("CumSum", 18)
    agree(op, {"x": x}, same, seed, {"axis": np.asarray(axis)}, opset=opset, free=False, **attributes)


epsilons = st.sampled_from([1e-5, 0.125]).map(lambda e: float(np.float32(e)))  # attributes are float32


@few
@given(st.lists(sizes, min_size=1, max_size=2), st.integers(1, 3), st.integers(1, 3), epsilons, seeds)
def test_any_group_normalization(spatial: list[int], groups: int, each: int, epsilon: float, seed: int) -> None:
    """With respect to the image, the scale and the offset."""
    rng, channels = np.random.default_rng(seed), groups * each
    x = rng.normal(size=(2, channels, *spatial[:-1], spatial[-1] + 1))  # PyTorch refuses groups of one element
    feeds = {"x": x, "s": rng.normal(size=channels), "b": rng.normal(size=channels)}

    def same(x: Any, s: Any, b: Any) -> Any:
        return F.group_norm(x, groups, s, b, epsilon)

    agree("GroupNormalization", feeds, same, seed, opset=21, num_groups=groups, epsilon=epsilon)


@few
@given(st.lists(sizes, min_size=1, max_size=3), st.integers(1, 3), epsilons, seeds)
def test_any_instance_normalization(spatial: list[int], channels: int, epsilon: float, seed: int) -> None:
    """With respect to the image, the scale and the offset."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(2, channels, *spatial[:-1], spatial[-1] + 1))
    feeds = {"x": x, "s": rng.normal(size=channels), "b": rng.normal(size=channels)}

    def same(x: Any, s: Any, b: Any) -> Any:
        return F.instance_norm(x, None, None, s, b, eps=epsilon)

    agree("InstanceNormalization", feeds, same, seed, epsilon=epsilon)


@st.composite
def layers(draw: Any) -> tuple[list[int], int, tuple[int, ...]]:
    """A shape, the first axis to normalise, which is not the batch, and the shape of a scale that may be broadcast."""
    shape = draw(st.lists(sizes, min_size=2, max_size=4))
    axis = draw(st.integers(1, len(shape) - 1))
    scale = [d if draw(st.booleans()) else 1 for d in shape[axis:]][draw(st.integers(0, len(shape) - axis - 1)) :]
    return shape, axis - len(shape) if draw(st.booleans()) else axis, tuple(scale)


@few
@given(layers(), epsilons, seeds)
def test_any_layer_normalization(layer: tuple[list[int], int, tuple[int, ...]], epsilon: float, seed: int) -> None:
    """With respect to the image, the scale and the offset, which may be broadcast."""
    shape, axis, scale = layer
    rng = np.random.default_rng(seed)
    feeds = {"x": rng.normal(size=shape), "s": rng.normal(size=scale), "b": rng.normal(size=scale)}

    def same(x: Any, s: Any, b: Any) -> Any:
        return F.layer_norm(x, x.shape[axis:], None, None, epsilon) * s + b

    agree("LayerNormalization", feeds, same, seed, opset=18, axis=axis, epsilon=epsilon)


@few
@given(layers(), epsilons, seeds)
def test_any_rms_normalization(layer: tuple[list[int], int, tuple[int, ...]], epsilon: float, seed: int) -> None:
    """With respect to the image and the scale."""
    shape, axis, scale = layer
    rng = np.random.default_rng(seed)
    feeds = {"x": rng.normal(size=shape), "s": rng.normal(size=scale)}

    def same(x: Any, s: Any) -> Any:
        return F.rms_norm(x, x.shape[axis:], None, epsilon) * s

    agree("RMSNormalization", feeds, same, seed, opset=23, axis=axis, epsilon=epsilon)


@few
@given(st.integers(1, 2), st.sets(st.integers(0, 2), min_size=1), seeds)
def test_the_statistics_that_a_layer_normalization_gives(axis: int, which: set[int], seed: int) -> None:
    """Its mean and inverse deviation as outputs: always float32, so that a float32 model is what is compared."""
    rng = np.random.default_rng(seed)
    feeds = {"x": rng.normal(size=(2, 3, 5)).astype(np.float32)}
    scale = rng.normal(size=5).astype(np.float32)
    model = one_node("LayerNormalization", feeds, {"s": scale}, {"axis": axis, "epsilon": 0.125}, outputs=3)
    x = torch.from_numpy(feeds["x"].astype(np.float64)).requires_grad_()
    axes = tuple(range(axis, 3))
    mean, var = x.mean(axes, True), x.var(axes, correction=0, keepdim=True)
    r = 1 / (var + 0.125).sqrt()
    theirs = [(x - mean) * r * torch.from_numpy(scale.astype(np.float64)), mean, r]
    gs = {i: rng.integers(-9, 10, theirs[i].shape).astype(np.float32) for i in which}
    sum((theirs[i] * torch.from_numpy(g)).sum() for i, g in gs.items()).backward()
    backward = OnnxRuntimeExecutor(differentiate(model, of=[f"y{i}" for i in which]), threads=1)
    got = backward({**feeds, **{f"grad_y{i}": g for i, g in gs.items()}})["grad_x"]
    np.testing.assert_allclose(got, x.grad.numpy(), rtol=0, atol=1e-4)


@few
@given(st.lists(sizes, max_size=2), st.integers(1, 3), epsilons, seeds)
def test_any_batch_normalization(spatial: list[int], channels: int, epsilon: float, seed: int) -> None:
    """With respect to all of its inputs: the image, the scale, the offset, the mean and the variance."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(2, channels, *spatial))
    feeds = {"x": x, **{name: rng.normal(size=channels) for name in "sbm"}, "v": rng.uniform(0.5, 2, channels)}

    def same(x: Any, s: Any, b: Any, m: Any, v: Any) -> Any:
        s, b, m, v = (part.reshape(-1, *[1] * len(spatial)) for part in (s, b, m, v))
        return (x - m) / (v + epsilon).sqrt() * s + b

    agree("BatchNormalization", feeds, same, seed, epsilon=epsilon)


@few
@given(st.integers(1, 6), st.integers(1, 8), st.integers(0, 2), st.floats(0.25, 2, width=32), seeds)
def test_a_local_response_of_any_size(channels: int, size: int, spatial: int, beta: float, seed: int) -> None:
    """Even sizes look further ahead than back, and windows may be wider than there are channels."""
    x = np.random.default_rng(seed).normal(size=(2, channels, *(2, 3)[:spatial]))

    def same(x: Any) -> Any:
        flat = x.reshape(2, channels, -1)
        before = (size - 1) // 2
        padded = F.pad(flat * flat, (0, 0, before, size - 1 - before))
        total = sum(padded[:, a : a + channels] for a in range(size))
        return (flat / (0.5 + 0.75 / size * total) ** beta).reshape(x.shape)

    agree("LRN", {"x": x}, same, seed, size=size, alpha=0.75, beta=beta, bias=0.5)


def test_a_local_response_of_odd_size_is_pytorch_s() -> None:
    """Where PyTorch has the operator, it means the same."""
    x = np.random.default_rng(0).normal(size=(2, 7, 3, 4))
    same = torch.nn.LocalResponseNorm(5, alpha=0.5, beta=0.75, k=2.0)
    agree("LRN", {"x": x}, same, 0, size=5, alpha=0.5, beta=0.75, bias=2.0)


@few
@given(st.lists(sizes, min_size=1, max_size=3), st.integers(0, 2), st.sampled_from([1, 2]), seeds)
def test_any_lp_normalization(shape: list[int], axis: int, p: int, seed: int) -> None:
    """Along any axis."""
    x = np.random.default_rng(seed).normal(size=shape)
    axis = min(axis, len(shape) - 1)
    agree("LpNormalization", {"x": x}, lambda x: F.normalize(x, p, axis, eps=0), seed, axis=axis, p=p)


def test_where_a_norm_is_zero_so_is_its_gradient() -> None:
    """A row of zeros beside one that is not: PyTorch's choice for the norm; for a unit vector any is arbitrary."""
    x = np.asarray([[0.0, 0.0, 0.0], [1.0, -2.0, 0.0]])
    for p in (1, 2):
        model = one_node("LpNormalization", {"x": x}, {}, {"axis": 1, "p": p})
        out = ReferenceExecutor(differentiate(model))({"x": x, "grad_y0": np.ones((2, 3))})["grad_x"]
        assert (out[0] == 0).all()
        assert (out[1] != 0).any()
    agree("GlobalLpPool", {"x": x[:, None]}, lambda x: x.norm(2, 2, True), 0)
    agree("LpPool", {"x": x[:, None]}, lambda x: F.unfold(x[:, None], (1, 2)).norm(2, 1)[:, None], 0, kernel_shape=[2])


@few
@given(st.integers(1, 3), st.integers(1, 3), st.integers(1, 3), st.booleans(), st.integers(1, 4), seeds)
def test_any_lp_pool(kernel: int, stride: int, dilation: int, padded: bool, p: int, seed: int) -> None:
    """PyTorch's own neither pads nor dilates: columns of windows do."""
    x = np.random.default_rng(seed).normal(size=(2, 1, 7, 6))
    before = int(padded and kernel > 1)

    def same(x: Any) -> Any:
        columns = F.unfold(x, kernel, dilation, before, stride).abs() ** p
        room = [size + 2 * before - dilation * (kernel - 1) - 1 for size in (7, 6)]
        return (columns.sum(1) ** (1 / p)).reshape(2, 1, *(r // stride + 1 for r in room))

    attributes = {"strides": [stride] * 2, "dilations": [dilation] * 2, "pads": [before] * 4, "p": p}
    agree("LpPool", {"x": x}, same, seed, kernel_shape=[kernel] * 2, **attributes)


@few
@given(
    st.lists(st.tuples(sizes, st.integers(1, 3), st.integers(1, 2), st.integers(0, 2)), min_size=1, max_size=2),
    st.sampled_from([1, 2, 3]),
    st.integers(0, 4),
    seeds,
)
def test_the_weights_of_any_convolution(
    windows: list[tuple[int, int, int, int]], group: int, more: int, seed: int
) -> None:
    """Any kernel, stride, dilation, padding and groups, with a free batch, beside image and offset."""
    rng = np.random.default_rng(seed)
    kernel, strides, dilations, pads = (list(parts) for parts in zip(*windows, strict=True))
    size = [max(d * (k - 1) + 1 - 2 * p, 1) + more for k, d, p in zip(kernel, dilations, pads, strict=True)]
    feeds = {
        "x": rng.normal(size=(3, 2 * group, *size)),
        "w": rng.normal(size=(2 * group, 2, *kernel)),
        "b": rng.normal(size=2 * group),
    }
    convolution = (F.conv1d, F.conv2d)[len(windows) - 1]

    def same(x: Any, w: Any, b: Any) -> Any:
        return convolution(x, w, b, strides, pads, dilations, group)

    attributes = {"strides": strides, "dilations": dilations, "pads": pads * 2, "group": group}
    agree("Conv", feeds, same, seed, **attributes)


@few
@given(st.integers(1, 4), st.booleans(), seeds)
def test_any_small_determinant(n: int, singular: bool, seed: int) -> None:
    """Of whole numbers, and of matrices that have no inverse."""
    x = np.random.default_rng(seed).integers(-3, 4, (3, n, n)).astype(np.float64)
    if singular:
        x[:, -1] = x[:, 0] if n > 1 else 0

    def same(x: Any) -> Any:
        return sum_over_permutations(x)

    agree("Det", {"x": x}, same, seed)


def sum_over_permutations(x: Any) -> Any:
    """The determinant by Leibniz, whose derivative asks for no inverse."""
    n = x.shape[-1]
    total = torch.zeros(x.shape[:-2], dtype=x.dtype)
    for order in itertools.permutations(range(n)):
        sign = round(np.linalg.det(np.eye(n)[list(order)]))
        total = total + sign * math.prod(x[..., i, j] for i, j in enumerate(order))
    return total


@few
@given(st.floats(-3, 3), st.lists(st.integers(-3, 3), min_size=4, max_size=4), st.booleans(), seeds)
def test_any_power(exponent: float, whole: list[int], tensor: bool, seed: int) -> None:
    """Positive bases with any exponent; whole exponents with bases of either sign, and zero where that has a slope."""
    x = np.random.default_rng(seed).integers(-2, 3, (3, 4)).astype(np.float64)
    if tensor:
        powers = np.asarray(whole)
        x[:, powers < 0] = np.abs(x[:, powers < 0]) + 1
        agree("Pow", {"x": x}, lambda x: x ** torch.from_numpy(powers), seed, {"p": powers})
    else:
        x = np.abs(x) + 0.5
        agree("Pow", {"x": x}, lambda x: x**exponent, seed, {"p": np.float64(exponent)})
        agree("Pow", {"x": x, "p": np.asarray(exponent)}, lambda x, p: x**p, seed)


def test_windows_that_leave_gaps_under_same_padding_are_refused() -> None:
    """ONNX Runtime crops there, by a different rule for each operator, where others do not pad."""
    x = np.zeros((1, 1, 9, 9))
    for op, constants, attributes in (
        ("AveragePool", {}, {"kernel_shape": [1, 1]}),
        ("LpPool", {}, {"kernel_shape": [1, 1]}),
        ("MaxPool", {}, {"kernel_shape": [1, 1]}),
        ("Conv", {"w": np.ones((1, 1, 1, 1))}, {}),
    ):
        model = one_node(op, {"x": x}, constants, {"strides": [3, 3], "auto_pad": "SAME_UPPER", **attributes})
        with pytest.raises(NotDifferentiable, match="leave gaps"):
            differentiate(model)
