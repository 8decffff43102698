"""What a sample is, the law that it is held against, and what its inputs are drawn from.

The law is `adjoint_gap`; the derivation of its tolerance stands at `TOLERANCE`.
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
    """An input that is an initializer, in the model's float type if it is float64 here."""

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
                values = values.astype(np.float32).astype(dtype) if values.dtype == np.float64 else values
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
    for v in inferred.graph.output:
        if not v.type.tensor_type.elem_type:  # ONNX says nothing of GroupNormalization: it is as what it normalises
            v.type.CopyFrom(inputs[0].type)
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
