"""One line for every operator with a gradient rule and every attribute that changes its formula.

Inputs are drawn away from kinks and poles. `const` makes an input an initializer; integers and masks always are. The
law that a sample is held against is `adjoint_gap`; the derivation of its tolerance stands at `TOLERANCE`.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from onnxplain.adapters.gradient.differentiate import differentiate
from onnxplain.adapters.gradient.registry import DEFAULT, Rules
from onnxplain.engine.executors.reference import ReferenceExecutor

Array = NDArray[Any]

H = 1e-3
# The five-point stencil is off by h^4/30 f^(5) and by rounding, about 2 eps |f| / h; directions have elements below 1.
# The samples keep |f^(5)| below 10^3 and |f| near 1: 4e-11 and 4e-13 of each output. 1e-9 leaves room for the sums.
TOLERANCE = 1e-9


@dataclass(frozen=True, eq=False)
class Const:
    """An input that is an initializer."""

    values: Array


@dataclass(frozen=True, eq=False)
class Sample:
    """A node: operator, inputs (None where one is absent), attributes.

    `wrt`: the inputs to differentiate with respect to; by default every float input that is no constant. `free`: those
    whose leading dimension becomes symbolic in the symbolic variant. `outputs`: how many outputs the node has, and
    `of` which of them carry a cotangent.
    """

    op: str
    inputs: tuple[Any, ...]
    attributes: Mapping[str, Any] = field(default_factory=dict)
    wrt: tuple[int, ...] | None = None
    free: tuple[int, ...] = (0,)
    outputs: int = 1
    of: tuple[int, ...] = (0,)
    label: str = ""
    opset: int = 18
    tolerance: float = TOLERANCE

    @property
    def id(self) -> str:
        shapes = "_".join("x".join(map(str, np.shape(getattr(i, "values", i)))) for i in self.inputs if i is not None)
        attributes = ",".join(f"{k}={v}".replace(" ", "") for k, v in self.attributes.items())
        return ":".join(part for part in (self.op, shapes, attributes, self.label) if part)

    @property
    def fed(self) -> tuple[int, ...]:
        """The inputs that are inputs of the graph."""
        return tuple(i for i, x in enumerate(self.inputs) if isinstance(x, np.ndarray) and x.dtype.kind == "f")

    @property
    def wanted(self) -> tuple[int, ...]:
        return self.fed if self.wrt is None else self.wrt

    def feeds(self, dtype: Any = np.float64) -> dict[str, Array]:
        """The point, the same for every dtype: what float32 can say."""
        return {f"x{i}": self.inputs[i].astype(np.float32).astype(dtype) for i in self.fed}

    def model(self, dtype: Any = np.float64, symbolic: bool = False) -> onnx.ModelProto:
        """The node as a model."""
        names = ["" if x is None else f"x{i}" for i, x in enumerate(self.inputs)]
        constants, inputs = [], []
        for i, x in enumerate(self.inputs):
            if i in self.fed:
                shape = ["N", *x.shape[1:]] if symbolic and i in self.free else list(x.shape)
                kind = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
                inputs.append(onnx.helper.make_tensor_value_info(names[i], kind, shape))
            elif x is not None:
                values = np.asarray(getattr(x, "values", x))
                values = values.astype(np.float32).astype(dtype) if values.dtype.kind == "f" else values
                constants.append(onnx.numpy_helper.from_array(values, names[i]))
        ys = [f"y{i}" for i in range(self.outputs)]
        proto = onnx.helper.make_node(self.op, names, ys, **self.attributes)
        typed = infer(proto, inputs, constants, self.opset)
        graph = onnx.helper.make_graph([proto], "sample", inputs, [typed[f"y{i}"] for i in self.of], constants)
        return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", self.opset)], ir_version=10)


def infer(proto: Any, inputs: Any, constants: Any, opset: int) -> dict[str, onnx.ValueInfoProto]:
    """The outputs of one node with the types that ONNX infers."""
    bare = [onnx.helper.make_empty_tensor_value_info(name) for name in proto.output]
    graph = onnx.helper.make_graph([proto], "one", inputs, bare, constants)
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", opset)], ir_version=10)
    inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)
    return {v.name: v for v in inferred.graph.output}


def directions(rng: np.random.Generator, arrays: Mapping[str, Array]) -> dict[str, Array]:
    """A random direction for each array: elements of either sign, between 1/2 and 1, so that each of them tells."""
    return {name: rng.uniform(0.5, 1, a.shape) * rng.choice([-1, 1], a.shape) for name, a in arrays.items()}


def slope(forward: Any, feeds: Mapping[str, Array], along: Mapping[str, Array], h: float = H) -> dict[str, Array]:
    """J v by the five-point stencil."""

    def at(k: int) -> dict[str, Array]:
        return dict(forward({**feeds, **{name: feeds[name] + k * h * v for name, v in along.items()}}))

    a, b, c, d = at(-2), at(-1), at(1), at(2)
    return {name: (a[name] - 8 * b[name] + 8 * c[name] - d[name]) / (12 * h) for name in a}


def adjoint_gap(sample: Sample, rules: Rules = DEFAULT, seed: int = 0, symbolic: bool = False) -> float:
    """How far <ȳ, J v> is from <Jᵀ ȳ, v>, relative to the sizes of the sums, for random v and ȳ in float64."""
    model = sample.model(symbolic=symbolic)
    wanted = [f"x{i}" for i in sample.wanted]
    backward = ReferenceExecutor(differentiate(model, wrt=wanted, rules=rules))
    forward = ReferenceExecutor(model)
    feeds = sample.feeds()
    rng = np.random.default_rng([seed, zlib.crc32(sample.id.encode())])
    along = directions(rng, {name: feeds[name] for name in wanted})
    change = slope(forward, feeds, along)
    cotangents = directions(rng, change)
    back = backward({**feeds, **{f"grad_{name}": g for name, g in cotangents.items()}})
    there = [cotangents[name] * change[name] for name in change]
    here = [back[f"grad_{name}"] * along[name] for name in wanted]
    for name in wanted:
        assert back[f"grad_{name}"].shape == feeds[name].shape, f"grad_{name} has another shape than {name}"
    size = sum(np.abs(part).sum() for part in there) + sum(np.abs(part).sum() for part in here)
    assert size > 0, "a sample whose derivative is zero tells nothing"
    return float(abs(sum(p.sum() for p in there) - sum(p.sum() for p in here)) / size)


def normal(*shape: int) -> Array:
    return np.random.default_rng([1, *shape]).normal(size=shape)


def other(*shape: int) -> Array:
    """Normal, and not what `normal` gives for the same shape."""
    return np.random.default_rng([2, *shape]).normal(size=shape)


def between(low: float, high: float, *shape: int) -> Array:
    return np.random.default_rng([3, *shape]).uniform(low, high, shape)


def away_from(kinks: Sequence[float], *shape: int, reach: float = 3.0) -> Array:
    """Uniform in [-reach, reach] without a margin of 0.05 around each kink, and with elements on every side."""
    x = np.random.default_rng([4, *shape]).uniform(-reach, reach, shape)
    for kink in kinks:
        x = np.where(np.abs(x - kink) < 0.05, kink + np.where(x < kink, -0.1, 0.1), x)
    return x


def distinct(*shape: int) -> Array:
    """All elements at least 0.05 apart, in random order."""
    x = np.random.default_rng([5, *shape]).permutation(int(np.prod(shape)))
    return ((x - x.mean()) * 0.05).reshape(shape)


def ints(*values: int) -> Array:
    return np.asarray(values, np.int64)


def scalar(value: float) -> Const:
    return Const(np.asarray(value, np.float64))


def weights(*shape: int) -> Const:
    return Const(other(*shape))


def node(op: str, *inputs: Any, **more: Any) -> Sample:
    """A sample with the operator's attributes as keywords; the fields of `Sample` keep their names."""
    ours = {k: more.pop(k) for k in ("wrt", "free", "outputs", "of", "label", "opset", "tolerance") if k in more}
    return Sample(op, tuple(inputs), more, **ours)


SMOOTH = [
    node("Identity", normal(3, 4)),
    node("Neg", normal(3, 4)),
    node("Exp", normal(3, 4)),
    node("Log", between(1, 2, 3, 4)),
    node("Sqrt", between(1, 2, 3, 4)),
    node("Reciprocal", np.concatenate([between(1, 2, 3, 4), -between(1, 2, 3, 5)], axis=1)),
    node("Tanh", normal(3, 4)),
    node("Sigmoid", normal(3, 4)),
    node("Softplus", normal(3, 4)),
    node("Erf", normal(3, 4)),
    node("Cast", normal(3, 4), to=onnx.TensorProto.DOUBLE),
    node("Dropout", normal(3, 4), label="inference"),
    node("Dropout", normal(3, 4), scalar(0.3), np.asarray(False), label="explicit"),
    node("Dropout", normal(3, 4), scalar(0.3), outputs=2, label="mask"),
]

KINKED = [
    node("Relu", away_from([0], 3, 8)),
    node("Abs", away_from([0], 3, 8)),
    node("LeakyRelu", away_from([0], 3, 8)),
    node("LeakyRelu", away_from([0], 3, 8), alpha=-0.3),
    # The evaluator reads the defaults 0.2 and 1/6 as float32, which is 1.5e-8 and 3e-8 of the slope.
    node("HardSigmoid", away_from([-2.5, 2.5], 3, 8, reach=4), tolerance=2e-8),
    node("HardSigmoid", away_from([-1.5, 2.5], 3, 8, reach=4), alpha=0.25, beta=0.375),
    node("HardSwish", away_from([-3, 3], 3, 16, reach=5), tolerance=4e-8),
    node("Clip", away_from([0, 2], 3, 8), scalar(0), scalar(2)),
    node("Clip", away_from([0, 2], 3, 8), Const(np.zeros(1)), Const(np.full(1, 2.0)), label="bounds of one element"),
    node("Clip", away_from([-1], 3, 8), scalar(-1), label="low"),
    node("Clip", away_from([1], 3, 8), None, scalar(1), label="high"),
    node("Clip", normal(3, 8), label="open"),
    node("Where", np.random.default_rng(0).integers(0, 2, (3, 4)).astype(bool), normal(3, 4), other(3, 4), free=()),
    node("Where", np.asarray([True, False, True, False]), normal(3, 4), other(2, 1, 4), free=()),
    node("Where", np.random.default_rng(0).integers(0, 2, (2, 3, 4)).astype(bool), normal(3, 1), scalar(0.0), free=()),
]

ARITHMETIC = [
    node("Add", normal(3, 4), other(3, 4), free=(0, 1)),
    node("Add", normal(3, 4), other(4)),
    node("Add", normal(3, 1, 4), other(2, 1), free=(0,)),
    node("Add", normal(4), other(2, 3, 4), free=(1,)),
    node("Add", normal(2, 3, 4), other(), label="scalar"),
    node("Sub", normal(3, 4), other(3, 4), free=(0, 1)),
    node("Sub", normal(1, 4), other(2, 3, 1), free=(1,)),
    node("Sub", weights(3, 4), normal(2, 3, 4), free=(1,)),
    node("Mul", normal(3, 4), other(3, 4), free=(0, 1)),
    node("Mul", normal(2, 3, 4, 5), other(2, 3, 1, 1), free=(0, 1), label="gate"),
    node("Mul", normal(3, 4), other(2, 1, 1, 4), free=()),
    node("Mul", normal(3, 4), weights(4)),
    node("Div", normal(3, 4), between(1, 2, 3, 4), free=(0, 1)),
    node("Div", normal(3, 4), -between(1, 2, 4)),
    node("Div", normal(3, 1), between(1, 2, 2, 1, 4), free=()),
    node("Div", Const(other(4)), between(1, 2, 3, 4), free=(1,)),
    node("Sum", normal(3, 4), other(3, 4), other(4), free=(0, 1)),
    node("Sum", normal(3, 4)),
    node("Expand", normal(3, 1, 4), ints(3, 5, 4), free=()),
    node("Expand", normal(3, 1), ints(2, 3, 4), free=()),
    node("Expand", normal(3, 4), ints(1, 1), free=()),
    node("Expand", normal(3, 1), ints(1, 4)),
]

PRODUCTS = [
    node("MatMul", normal(3, 4), other(4, 5)),
    node("MatMul", normal(3, 4), weights(4, 4), label="square"),
    node("MatMul", normal(2, 1, 3, 4), other(7, 4, 5)),
    node("MatMul", normal(2, 3, 4), other(4, 5)),
    node("MatMul", normal(3, 4), other(2, 4, 5), free=()),
    node("MatMul", normal(2, 5, 3, 4), other(2, 5, 4, 6), free=(0, 1)),
    node("MatMul", weights(5, 3), normal(2, 3, 4), free=(1,)),
    node("MatMul", normal(4), other(4), free=()),
    node("MatMul", normal(4), other(4, 5), free=()),
    node("MatMul", normal(4), other(2, 3, 4, 5), free=(1,)),
    node("MatMul", normal(3, 4), other(4)),
    node("MatMul", normal(2, 6, 3, 4), other(4)),
    node("Gemm", normal(3, 4), other(4, 5)),
    node("Gemm", normal(3, 4), weights(4, 5), weights(5)),
    node("Gemm", normal(3, 4), weights(4, 4), transB=1, label="square"),
    node("Gemm", normal(3, 4), other(4, 5), normal(3, 5), alpha=0.5, beta=-2.0, free=(0, 2)),
    node("Gemm", normal(3, 4), other(5, 4), normal(5), alpha=0.5, beta=-2.0, transB=1),
    node("Gemm", normal(4, 3), other(4, 5), normal(3, 1), alpha=1.5, beta=0.25, transA=1, free=()),
    node("Gemm", normal(4, 3), other(5, 4), normal(), alpha=-0.5, transA=1, transB=1, free=()),
    node("Gemm", weights(3, 4), normal(4, 5), transA=0, free=()),
]


def conv(x: tuple[int, ...], w: tuple[int, ...], **more: Any) -> Sample:
    return node("Conv", normal(*x), weights(*w), **more)


CONVOLUTIONS = [
    conv((2, 3, 8), (4, 3, 3)),
    conv((2, 3, 9), (4, 3, 3), strides=[2], pads=[1, 1]),
    conv((2, 3, 9), (4, 3, 3), strides=[3], dilations=[2], pads=[3, 0]),
    conv((2, 3, 6, 7), (4, 3, 1, 1)),
    conv((2, 3, 6, 7), (3, 3, 3, 3), pads=[1, 1, 1, 1], label="square"),
    conv((2, 3, 6, 7), (4, 3, 3, 2), pads=[0, 1, 2, 0]),
    conv((2, 3, 6, 7), (4, 3, 3, 3), dilations=[2, 1], pads=[2, 1, 2, 1]),
    conv((2, 3, 6, 7), (4, 3, 2, 3), pads=[3, 4, 2, 3], label="wide pads"),
    conv((2, 3, 6, 7), (4, 3, 1, 1), pads=[2, 1, 0, 3], label="wide pads"),
    conv((2, 3, 9, 8), (4, 3, 3, 3), strides=[2, 2], pads=[1, 1, 1, 1]),
    conv((2, 3, 9, 8), (4, 3, 3, 3), strides=[2, 2]),
    conv((2, 3, 9, 8), (4, 3, 1, 1), strides=[2, 2]),
    conv((2, 3, 9, 8), (4, 3, 1, 1), strides=[3, 2], pads=[2, 0, 1, 3], label="wide pads"),
    conv((2, 3, 9, 8), (4, 3, 3, 2), strides=[2, 3], pads=[0, 1, 1, 0]),
    conv((2, 3, 9, 8), (4, 3, 2, 2), strides=[3, 3], label="gaps"),
    conv((2, 3, 12, 12), (4, 3, 7, 7), strides=[4, 4], pads=[2, 2, 2, 2], label="left over"),
    conv((2, 3, 9, 10), (4, 3, 3, 2), strides=[2, 1], dilations=[2, 3], pads=[2, 1, 0, 2]),
    conv((2, 3, 9, 10), (4, 3, 2, 2), strides=[2, 2], dilations=[3, 3], pads=[1, 1, 1, 1], label="even dilation"),
    conv((2, 4, 6, 6), (4, 1, 3, 3), group=4, pads=[1, 1, 1, 1], label="depthwise"),
    conv((2, 4, 7, 7), (8, 1, 3, 3), group=4, pads=[1, 1, 1, 1], strides=[2, 2], label="depthwise"),
    conv((2, 4, 6, 6), (6, 2, 3, 3), group=2, pads=[1, 0, 1, 0]),
    conv((2, 4, 7, 6), (6, 2, 3, 3), group=2, strides=[2, 1], dilations=[1, 2], pads=[0, 2, 1, 1]),
    conv((2, 3, 7, 8), (4, 3, 3, 3), auto_pad="SAME_UPPER", strides=[2, 2]),
    conv((2, 3, 7, 8), (4, 3, 2, 4), auto_pad="SAME_LOWER", strides=[1, 2]),
    conv((2, 3, 7, 8), (4, 3, 2, 2), auto_pad="SAME_LOWER"),
    conv((2, 3, 7, 8), (4, 3, 2, 4), auto_pad="SAME_UPPER", kernel_shape=[2, 4]),
    conv((2, 3, 7, 8), (4, 3, 3, 3), auto_pad="VALID", strides=[2, 1]),
    conv((1, 2, 5, 4, 6), (3, 2, 2, 3, 2), pads=[1, 1, 0, 0, 1, 1]),
    conv((1, 2, 5, 6, 7), (4, 1, 3, 2, 3), group=2, strides=[2, 2, 1], dilations=[1, 2, 2], pads=[1, 0, 2, 1, 1, 1]),
    node("Conv", normal(2, 3, 6, 6), weights(4, 3, 3, 3), normal(4), pads=[1, 1, 1, 1], label="bias"),
    node("Conv", normal(2, 3, 6, 6), other(4, 3, 3, 3), wrt=(0,), pads=[1, 1, 0, 0], label="run-time weights"),
    node("Conv", normal(2, 3, 7, 6), other(4, 3, 3, 3), wrt=(0,), strides=[2, 2], label="run-time weights"),
]


def max_pool(*x: int, **more: Any) -> Sample:
    return node("MaxPool", distinct(*x), **more)


def average_pool(*x: int, **more: Any) -> Sample:
    return node("AveragePool", normal(*x), **more)


POOLS = [
    max_pool(2, 3, 8, kernel_shape=[2], strides=[2]),
    max_pool(2, 3, 8, kernel_shape=[3]),
    max_pool(1, 2, 6, 6, kernel_shape=[2, 2], strides=[2, 2]),
    max_pool(1, 2, 7, 7, kernel_shape=[2, 2], strides=[2, 2], label="left over"),
    max_pool(1, 2, 7, 7, kernel_shape=[3, 3], strides=[2, 2], label="overlap"),
    max_pool(1, 2, 7, 8, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1]),
    max_pool(1, 2, 7, 8, kernel_shape=[3, 2], strides=[1, 2], pads=[0, 1, 2, 0]),
    max_pool(1, 2, 8, 8, kernel_shape=[3, 3], strides=[2, 2], ceil_mode=1),
    max_pool(1, 2, 8, 7, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1], ceil_mode=1),
    max_pool(1, 2, 9, 9, kernel_shape=[2, 3], dilations=[3, 2], strides=[1, 2], pads=[1, 2, 1, 1]),
    max_pool(1, 2, 9, 9, kernel_shape=[2, 2], dilations=[2, 2], strides=[3, 3], ceil_mode=1),
    max_pool(1, 2, 7, 8, kernel_shape=[3, 3], strides=[2, 2], auto_pad="SAME_UPPER"),
    max_pool(1, 2, 7, 8, kernel_shape=[2, 3], strides=[2, 2], auto_pad="SAME_LOWER"),
    max_pool(1, 2, 7, 8, kernel_shape=[3, 3], strides=[2, 2], auto_pad="VALID"),
    max_pool(1, 2, 7, 8, kernel_shape=[1, 1], strides=[3, 2], label="gaps"),
    max_pool(1, 2, 7, 8, kernel_shape=[1, 1], label="identity"),
    max_pool(1, 2, 4, 4, 5, kernel_shape=[2, 2, 3], strides=[2, 1, 2], pads=[0, 1, 1, 0, 0, 1]),
    max_pool(1, 2, 7, 7, kernel_shape=[3, 3], strides=[2, 2], outputs=2, label="with indices"),
    average_pool(2, 3, 8, kernel_shape=[2], strides=[2]),
    average_pool(1, 2, 6, 6, kernel_shape=[2, 2], strides=[2, 2]),
    average_pool(1, 2, 7, 7, kernel_shape=[3, 3], strides=[2, 2], label="overlap"),
    average_pool(1, 2, 7, 7, kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
    average_pool(1, 2, 7, 7, kernel_shape=[3, 3], pads=[1, 1, 1, 1], count_include_pad=1),
    average_pool(1, 2, 7, 8, kernel_shape=[3, 2], strides=[2, 1], pads=[0, 1, 2, 0]),
    average_pool(1, 2, 7, 8, kernel_shape=[3, 2], strides=[2, 1], pads=[0, 1, 2, 0], count_include_pad=1),
    average_pool(1, 2, 8, 8, kernel_shape=[3, 3], strides=[2, 2], ceil_mode=1),
    average_pool(1, 2, 8, 7, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1], ceil_mode=1),
    average_pool(1, 2, 8, 7, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1], ceil_mode=1, count_include_pad=1),
    average_pool(1, 2, 9, 9, kernel_shape=[2, 3], dilations=[3, 2], strides=[1, 2], pads=[1, 2, 1, 1], opset=19),
    average_pool(1, 2, 7, 8, kernel_shape=[3, 3], strides=[2, 2], auto_pad="SAME_UPPER"),
    average_pool(1, 2, 7, 8, kernel_shape=[2, 3], strides=[2, 2], auto_pad="SAME_LOWER"),
    average_pool(1, 2, 7, 8, kernel_shape=[3, 3], strides=[2, 2], auto_pad="VALID"),
    average_pool(1, 2, 7, 8, kernel_shape=[1, 1], strides=[3, 2], label="gaps"),
    average_pool(1, 2, 4, 4, 5, kernel_shape=[2, 2, 3], strides=[2, 1, 2], pads=[0, 1, 1, 0, 0, 1]),
    node("GlobalAveragePool", normal(2, 3, 4, 5)),
    node("GlobalAveragePool", normal(2, 3, 4)),
    node("GlobalAveragePool", normal(2, 3, 4, 2, 3)),
]

REDUCTIONS = [
    node("ReduceSum", normal(2, 3, 4), ints(1)),
    node("ReduceSum", normal(2, 3, 4), ints(-1, 1), keepdims=0),
    node("ReduceSum", normal(2, 3, 4), label="all"),
    node("ReduceSum", normal(2, 3, 4), keepdims=0, label="all", free=()),
    node("ReduceSum", normal(2, 3, 4), ints(0), keepdims=0),
    node("ReduceSum", normal(2, 3, 4), noop_with_empty_axes=1),
    node("ReduceSum", normal(2, 3, 4), ints(), noop_with_empty_axes=1, keepdims=0, label="empty"),
    node("ReduceMean", normal(2, 3, 4), ints(1)),
    node("ReduceMean", normal(2, 3, 4, 5), ints(2, 3), keepdims=0),
    node("ReduceMean", normal(2, 3, 4), free=(), label="all"),
    node("ReduceMean", normal(2, 3, 4), free=(), keepdims=0, label="all"),
    node("ReduceMean", normal(2, 3, 4), noop_with_empty_axes=1),
    node("Softmax", normal(2, 3, 4)),
    node("Softmax", normal(2, 3, 4), axis=1),
    node("Softmax", normal(2, 3, 4), axis=0),
    node("LogSoftmax", normal(2, 3, 4)),
    node("LogSoftmax", normal(2, 3, 4), axis=-2),
    node("LogSoftmax", normal(2, 3, 4), axis=0),
]

NORMALISATIONS = [
    node(
        "BatchNormalization", normal(2, 3, 4, 4), weights(3), Const(normal(3)), Const(other(3)), Const(between(1, 2, 3))
    ),
    node("BatchNormalization", normal(2, 3), weights(3), Const(normal(3)), Const(other(3)), Const(between(1, 2, 3))),
    node(
        "BatchNormalization",
        *(normal(2, 3, 4), weights(3), Const(normal(3)), Const(other(3)), Const(between(0.1, 0.2, 3))),
        epsilon=0.5,
    ),
    node("BatchNormalization", normal(2, 3, 4), *(between(1, 2, 3) for _ in range(4)), wrt=(0,), label="run-time"),
    node("LayerNormalization", normal(2, 3, 8), weights(8), Const(normal(8))),
    node("LayerNormalization", normal(2, 3, 8), other(8), normal(8), label="parameters"),
    node("LayerNormalization", normal(2, 3, 8), weights(8), epsilon=0.5),
    node("LayerNormalization", normal(2, 3, 4, 5), other(4, 5), normal(4, 5), axis=2),
    node("LayerNormalization", normal(2, 3, 4, 5), other(5), normal(5), axis=-2, label="broadcast scale"),
    node("LayerNormalization", normal(2, 3, 8), weights(8), Const(normal(8)), axis=1, label="scale of the last axis"),
]

MOVES = [
    node("Reshape", normal(2, 3, 4), ints(2, 12)),
    node("Reshape", normal(2, 3, 4), ints(-1, 4, 3)),
    node("Reshape", normal(2, 3, 4), ints(0, -1), label="zero"),
    node("Reshape", normal(2, 3, 4), ints(0, 0, 2, 2)),
    node("Flatten", normal(2, 3, 4)),
    node("Flatten", normal(2, 3, 4), axis=2),
    node("Flatten", normal(2, 3, 4), axis=0),
    node("Flatten", normal(2, 3, 4), axis=-1),
    node("Squeeze", normal(2, 1, 4, 1), ints(1, 3)),
    node("Squeeze", normal(2, 1, 4, 1), ints(-1)),
    node("Squeeze", normal(2, 1, 4, 1), free=(), label="all"),
    node("Unsqueeze", normal(2, 3), ints(1, 3)),
    node("Unsqueeze", normal(2, 3), ints(0, -1), label="ends"),
    node("Transpose", normal(2, 3, 4)),
    node("Transpose", normal(2, 3, 4), perm=[0, 2, 1]),
    node("Transpose", normal(2, 3, 4), perm=[1, 2, 0]),
    node("Transpose", normal(2, 3, 4, 5), perm=[2, 0, 3, 1]),
    node("Concat", normal(2, 3, 4), other(2, 1, 4), normal(2, 2, 4), axis=1, free=(0, 1, 2)),
    node("Concat", normal(2, 3, 4), weights(2, 3, 1), axis=-1, free=()),
    node("Concat", normal(2, 3), axis=1),
    node("Concat", normal(2, 3), other(1, 3), axis=0, free=()),
    node("Split", normal(2, 6), axis=1, num_outputs=3, outputs=3, of=(0, 1, 2)),
    node("Split", normal(2, 7), axis=-1, num_outputs=3, outputs=3, of=(0, 1, 2), label="uneven"),
    node("Split", normal(2, 6), ints(1, 3, 2), axis=1, outputs=3, of=(0, 1, 2)),
    node("Split", normal(2, 6), ints(1, 3, 2), axis=1, outputs=3, of=(1,), label="middle"),
    node("Split", normal(2, 6), ints(1, 3, 2), axis=1, outputs=3, of=(0, 2), label="ends"),
    node("Split", normal(4, 3), num_outputs=2, outputs=2, of=(1,), free=(), label="second"),
    node("Split", normal(4, 3), ints(3), axis=1, outputs=1, label="one"),
    node("Slice", normal(2, 6), ints(1), ints(4), ints(1)),
    node("Slice", normal(2, 6), ints(1), ints(100), ints(-1), ints(2)),
    node("Slice", normal(2, 7, 6), ints(0, 1), ints(7, 6), ints(1, 2), ints(3, 2)),
    node("Slice", normal(2, 7), ints(-2), ints(-100), ints(1), ints(-2)),
    node("Slice", normal(2, 7), ints(-1), ints(-(2**63)), ints(1), ints(-1), label="reversed"),
    node("Slice", normal(2, 7), ints(5), ints(0), ints(1), ints(-3), label="backwards by 3"),
    node("Slice", normal(3, 4), ints(0, 1), ints(2, 3), free=(), label="no axes"),
    node("Slice", normal(3, 4), ints(0, 1), ints(2**63 - 1, 3), label="all of the batch"),
    node("Slice", normal(2, 7), ints(-4), ints(-1), ints(1)),
    node("Slice", normal(2, 7), ints(6), ints(7), ints(1), ints(5), label="one element"),
    node("Pad", normal(2, 3, 4), ints(0, 1, 2, 0, 0, 3)),
    node("Pad", normal(2, 3, 4), ints(0, 1, 2, 0, 0, 3), scalar(1.5)),
    node("Pad", normal(2, 5, 6), ints(0, -1, 2, 0, -2, -1), label="crop"),
    node("Pad", normal(2, 5, 6), ints(-1, 2), scalar(0), ints(2), label="axes"),
    node("Pad", normal(2, 5, 6), ints(1, 0, 2, -1), None, ints(-1, 1), label="axes"),
    node("Pad", normal(2, 3), ints(0, 0, 0, 0), label="nothing"),
]

SAMPLES = [
    *(*SMOOTH, *KINKED, *ARITHMETIC, *PRODUCTS, *CONVOLUTIONS, *POOLS, *REDUCTIONS),
    *(*NORMALISATIONS, *MOVES),
]


def of_op(*ops: str) -> list[Sample]:
    """The samples of some operators."""
    return [sample for sample in SAMPLES if sample.op in ops]


# MaxPool where many elements are equal: the adjoint law says nothing at a kink, so the choice is written out.


TIED = [
    {"kernel_shape": [2, 2], "strides": [2, 2]},
    {"kernel_shape": [3, 3], "strides": [2, 2]},
    {"kernel_shape": [3, 3]},
    {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]},
    {"kernel_shape": [3, 3], "strides": [2, 2], "ceil_mode": 1},
    {"kernel_shape": [3, 2], "strides": [2, 1], "pads": [1, 0, 1, 1], "ceil_mode": 1},
    {"kernel_shape": [2, 3], "dilations": [2, 2], "pads": [1, 1, 0, 2]},
    {"kernel_shape": [3, 3], "strides": [3, 2], "dilations": [2, 1], "pads": [1, 1, 1, 1]},
]


def sparse(*shape: int) -> Array:
    """What comes out of a Relu: half of it is 0, and many of the others are equal."""
    return np.maximum(np.random.default_rng([6, *shape]).integers(-3, 4, shape), 0).astype(np.float64)


def first_maxima(x: Array, g: Array, attributes: Mapping[str, Any]) -> Array:
    """ȳ of each window to its first maximum in row-major order, one window after the other."""
    kernel, pads = attributes["kernel_shape"], attributes.get("pads", [0, 0, 0, 0])
    strides, dilations = attributes.get("strides", [1, 1]), attributes.get("dilations", [1, 1])
    out = np.zeros_like(x)
    for n, c, i, j in np.ndindex(*g.shape):
        best = None
        for a, b in np.ndindex(*kernel):
            row = i * strides[0] + a * dilations[0] - pads[0]
            column = j * strides[1] + b * dilations[1] - pads[1]
            inside = 0 <= row < x.shape[2] and 0 <= column < x.shape[3]
            if inside and (best is None or x[n, c, row, column] > x[n, c, *best]):
                best = (row, column)
        assert best is not None
        out[n, c, *best] += g[n, c, i, j]
    return out


def tie_gap(attributes: Mapping[str, Any], rules: Rules = DEFAULT) -> float:
    """How far the gradient of a MaxPool over sparse data is from that of the first maxima; 0 if it is right."""
    x = sparse(2, 3, 8, 9)
    sample = node("MaxPool", x, **attributes)
    backward = ReferenceExecutor(differentiate(sample.model(), rules=rules))
    shape = [d if isinstance(d, int) else 2 for d in backward.outputs["y0"].shape]
    g = np.random.default_rng(8).integers(1, 100, shape).astype(np.float64)  # integers: sums are exact in any order
    return float(np.abs(backward({"x0": x, "grad_y0": g})["grad_x0"] - first_maxima(x, g, attributes)).max())


def chain_gap(rules: Rules = DEFAULT, inner: str = "Softmax") -> float:
    """The adjoint gap of ReduceSum(inner(x)): what `inner` gets is a cotangent with a 1 in place of an axis."""
    make = onnx.helper.make_tensor_value_info
    nodes = [
        onnx.helper.make_node(inner, ["x"], ["h"], axis=1),
        onnx.helper.make_node("ReduceSum", ["h", "axes"], ["s"], keepdims=1),
    ]
    axes = onnx.numpy_helper.from_array(ints(1), "axes")
    shapes = [make("x", onnx.TensorProto.DOUBLE, [2, 3]), make("s", onnx.TensorProto.DOUBLE, [2, 1])]
    model = onnx.helper.make_model(
        onnx.helper.make_graph(nodes, "chain", shapes[:1], shapes[1:], [axes]),
        opset_imports=[onnx.helper.make_opsetid("", 18)],
        ir_version=10,
    )
    x = normal(2, 3)
    along = directions(np.random.default_rng(0), {"x": x})
    change = slope(ReferenceExecutor(model), {"x": x}, along)["s"]
    back = ReferenceExecutor(differentiate(model, rules=rules))({"x": x, "grad_s": np.ones((2, 1))})["grad_x"]
    return float(np.abs((back * along["x"]).sum(1, keepdims=True) - change).max())
