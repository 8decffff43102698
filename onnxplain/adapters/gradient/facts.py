"""What is known of a value before anything runs: its type, its shape, and itself where it follows from shapes.

Exporters write graphs that compute shapes at run time, from the batch that comes in. To know what comes of it, each
free dimension is given two trial sizes, and ONNX's own inference is run for both of them, node by node, small values
being computed on the way. What is the same in both trials is constant; what differs depends on a free dimension, and
gets a name for it: "N", "49*N".
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeAlias

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray
from onnx.reference.ops import load_op

Array: TypeAlias = NDArray[Any]
Dim: TypeAlias = int | str | None

SMALL = 1024  # elements: what is larger is no shape, axis or scale
WHOLE = 2**18  # elements: what is larger is no index that follows from shapes
LARGE = 2**28  # elements: what is larger is no weight, however it is written

# The trial sizes of free dimensions, a pair for each: primes that no layer is likely to have.
PRIMES = (211, 307, 223, 311, 227, 313, 229, 317, 233, 331, 239, 337, 241, 347, 251, 349, 257, 353, 263, 359)

# What shape arithmetic is made of. Nothing else is computed here.
COMPUTED = frozenset(
    (
        "Abs", "Add", "And", "Cast", "Ceil", "Clip", "Concat", "ConstantOfShape", "Cos", "CumSum", "Div", "Equal",
        "Expand", "Flatten", "Floor", "Gather", "Greater", "GreaterOrEqual", "Identity", "Less", "LessOrEqual", "Max",
        "Min", "Mod", "Mul", "Neg", "Not", "OneHot", "Or", "Pow", "Range", "Reciprocal", "ReduceMax", "ReduceMin",
        "ReduceProd", "ReduceSum", "Reshape", "Round", "Shape", "Sign", "Size", "Slice", "Split", "Sqrt", "Squeeze",
        "Sub", "Tile", "Transpose", "Unsqueeze", "Where", "Xor",
    )
)  # fmt: skip
# And of this, weights that are written as what they are made of.
WEIGHTS = frozenset(
    (
        "BatchNormalization", "DequantizeLinear", "Dropout", "Exp", "Gemm", "InstanceNormalization",
        "LayerNormalization", "Log", "LpNormalization", "MatMul", "Mean", "Pad", "QuantizeLinear", "ReduceL1",
        "ReduceL2", "ReduceMean", "ReduceSumSquare", "Relu", "Sigmoid", "Softmax", "Softplus", "Sum", "Tanh", "Trilu",
    )
)  # fmt: skip
# Operators of which ONNX's inference says nothing, or not the shape: their output is like their first input.
SILENT = {"GroupNormalization", "MeanVarianceNormalization"}
RANDOM = {"Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike"}


class Impossible(Exception):
    """A shape that cannot be. ONNX's inference makes such out of attributes, and some of it ends the process then."""


@dataclass(frozen=True, eq=False)
class Trial:
    """A value at one size of the free dimensions: its dtype, shape and content, as far as they are known."""

    dtype: ir.DataType | None
    shape: tuple[int | None, ...] | None
    data: Array | None = None

    @property
    def key(self) -> tuple[Any, ...]:
        return self.dtype, self.shape, None if self.data is None else self.data.tobytes()

    @property
    def small(self) -> bool:
        """Whether the value is worth computing."""
        most = WHOLE if self.dtype is not None and self.dtype.is_integer() else SMALL
        return self.elements is not None and self.elements <= most

    @property
    def elements(self) -> int | None:
        if self.shape is None or None in self.shape:
            return None
        return math.prod(self.shape)  # type: ignore[arg-type]

    def proto(self) -> onnx.TypeProto:
        shape = None if self.shape is None else list(self.shape)
        return onnx.helper.make_tensor_type_proto(int(self.dtype or ir.DataType.UNDEFINED), shape)


Trials: TypeAlias = tuple[Trial, Trial]


class Facts:
    """The facts of one graph. `infer` is called for its nodes in topological order, and for nodes that are added."""

    def __init__(self, opset: int) -> None:
        self.opset = opset
        self.trials: dict[ir.Value, Trials] = {}
        self.fixed: set[ir.Value] = set()  # computed from constants alone
        self._sizes: dict[str, tuple[int, int]] = {}  # of each name that a dimension has
        self._names: dict[tuple[int, int], str] = {}
        self._free: list[str] = []
        self._known: dict[tuple[Any, ...], list[Trial]] = {}

    def of(self, value: ir.Value) -> Trials:
        """The trials of a value; of inputs and constants they are what they are declared to be."""
        if value not in self.trials:
            self.trials[value] = self._declared(value)
        return self.trials[value]

    def data(self, value: ir.Value) -> Array | None:
        """A small value that is the same in both trials."""
        a, b = self.of(value)
        same = a.data is not None and b.data is not None and np.array_equal(a.data, b.data, equal_nan=True)
        return a.data if same else None

    def counts(self, value: ir.Value, size: ir.Value, axis: int) -> bool:
        """Whether a value is 0, 1, 2, ... in order, one for each place along an axis of another, for any batch."""
        return all(
            trial.data is not None
            and over.shape is not None
            and trial.data.size == over.shape[axis]
            and np.array_equal(trial.data.ravel(), np.arange(trial.data.size))
            for trial, over in zip(self.of(value), self.of(size), strict=True)
        )

    def compute(self, value: ir.Value) -> Array | None:
        """A value that is fixed, computed now; None if it is not fixed, or cannot be computed here, or is too large."""
        found: dict[ir.Value, Array | None] = {}
        room = LARGE  # for all that is computed on the way: it is in memory at once
        waiting = [value]
        while waiting:  # no recursion: chains may be long
            top = waiting[-1]
            node = top.producer()
            if top in found:
                waiting.pop()
            elif top.const_value is not None:
                found[top] = top.const_value.numpy()
            elif top not in self.fixed or node is None:
                found[top] = None
            elif missing := [x for x in node.inputs if x is not None and x not in found]:
                waiting += missing
            else:
                xs = [None if x is None else found[x] for x in node.inputs]
                known = all(x is None or array is not None for x, array in zip(node.inputs, xs, strict=True))
                ys = evaluate(canonical(node), xs, self.opset) if known and self._fits(node, xs, room) else None
                found |= zip(node.outputs, ys if ys is not None else [None] * len(node.outputs), strict=True)
                room -= sum(y.size for y in ys or ())
        return found[value]

    def _fits(self, node: ir.Node, xs: Sequence[Array | None], room: int) -> bool:
        """Whether the outputs of a node of those inputs are small enough to be computed."""
        given = [
            None if v is None or x is None else Trial(self.of(v)[0].dtype, x.shape, x if x.size <= SMALL else None)
            for v, x in zip(node.inputs, xs, strict=True)
        ]
        try:
            sizes = [y.elements for y in self._outputs(canonical(node), given)]
        except (onnx.defs.SchemaError, onnx.shape_inference.InferenceError):
            return False
        # The reference implementations of some operators are slow. What tells no size is no larger than its input.
        most = room if node.op_type in COMPUTED | WEIGHTS else min(room, WHOLE)
        return all(size <= most if size is not None else node.op_type not in COMPUTED for size in sizes)

    def infer(self, node: ir.Node) -> None:
        """Type the outputs of a node. Raises `InferenceError` or `SchemaError` where ONNX does, and `Impossible`."""
        given = [None if x is None else self.of(x) for x in node.inputs]
        proto = canonical(node)
        first = self._outputs(proto, [None if pair is None else pair[0] for pair in given])
        alike = all(pair is None or pair[0] is pair[1] for pair in given)
        second = first if alike else self._outputs(proto, [None if pair is None else pair[1] for pair in given])
        for value, a, b in zip(node.outputs, first, second, strict=True):
            if any(d is not None and d < 0 for trial in (a, b) for d in trial.shape or ()):
                raise Impossible(f"{node.name or node.op_type} makes {value.name} of shape {list(a.shape or ())}")
            self._settle(value, a, b)
        if node.op_type not in RANDOM and all(
            x is None or x.const_value is not None or x in self.fixed for x in node.inputs
        ):
            self.fixed.update(node.outputs)

    def _declared(self, value: ir.Value) -> Trials:
        tensor = value.const_value
        if tensor is not None:
            data = tensor.numpy().copy() if tensor.size <= SMALL and tensor.dtype != ir.DataType.STRING else None
            trial = Trial(tensor.dtype, tuple(tensor.shape.numpy()), data)
            return trial, trial
        if value.shape is None:
            trial = Trial(value.dtype, None)
            return trial, trial
        dims = [d if isinstance(d, int) else d.value for d in value.shape]
        if all(isinstance(d, int) for d in dims):
            trial = Trial(value.dtype, tuple(dims))  # type: ignore[arg-type]
            return trial, trial
        sizes = [(d, d) if isinstance(d, int) else (None, None) if d is None else self._size(d) for d in dims]
        return Trial(value.dtype, tuple(a for a, _ in sizes)), Trial(value.dtype, tuple(b for _, b in sizes))

    def _size(self, name: str) -> tuple[int, int]:
        """The trial sizes of a dimension by its name."""
        if name not in self._sizes:
            i = 2 * len(self._free)
            pair = (PRIMES[i], PRIMES[i + 1]) if i + 1 < len(PRIMES) else (1000 + i, 3000 + i * i)
            self._free.append(name)
            self._sizes[name], self._names[pair] = pair, name
        return self._sizes[name]

    def _name(self, a: int, b: int) -> str:
        """The name of a dimension that is a in one trial and b in the other: affine in a free dimension, if it is."""
        if (a, b) not in self._names:
            name = f"{a}_or_{b}"
            for free in self._free:
                p, q = self._sizes[free]
                factor, rest = divmod(b - a, q - p)
                if not rest:
                    more = a - factor * p
                    name = f"{factor}*{free}" + (f"{more:+d}" if more else "")
                    break
            self._names[a, b], self._sizes[name] = name, (a, b)
        return self._names[a, b]

    def _settle(self, value: ir.Value, a: Trial, b: Trial) -> None:
        """Write down what both trials say of a value."""
        if a.dtype is not None and a.dtype != value.dtype:
            value.type = ir.TensorType(a.dtype)
        if a.shape is None or b.shape is None or len(a.shape) != len(b.shape):
            a = b = Trial(a.dtype, None)
            value.shape = None
        else:
            value.shape = ir.Shape(
                [
                    None if i is None or j is None else i if i == j else self._name(i, j)
                    for i, j in zip(a.shape, b.shape, strict=True)
                ]
            )
        self.trials[value] = (a, b)

    def _outputs(self, proto: onnx.NodeProto, xs: Sequence[Trial | None]) -> list[Trial]:
        key = (proto.SerializeToString(deterministic=True), *(None if x is None else x.key for x in xs))
        if key not in self._known:
            self._known[key] = self._infer(proto, xs)
        return self._known[key]

    def _infer(self, proto: onnx.NodeProto, xs: Sequence[Trial | None]) -> list[Trial]:
        """ONNX's inference for one node, and its value if it is small and all that it needs is known."""
        if any(x is not None and x.dtype is None for x in xs):
            return [Trial(None, None) for _ in proto.output]
        types = {name: x.proto() for name, x in zip(proto.input, xs, strict=True) if x is not None}
        data = {
            name: onnx.numpy_helper.from_array(x.data, name)
            for name, x in zip(proto.input, xs, strict=True)
            if x is not None and x.data is not None
        }
        schema = onnx.defs.get_schema(proto.op_type, self.opset, "")
        imports = [onnx.helper.make_opsetid("", self.opset)]
        inferred = onnx.shape_inference.infer_node_outputs(schema, proto, types, data, opset_imports=imports)
        found = [trial_of(inferred.get(name)) for name in proto.output]
        if proto.op_type in SILENT and xs[0] is not None:
            found = [Trial(xs[0].dtype, xs[0].shape)]
        arrays = self._compute(proto, xs) if all(y.small for y in found) else None
        if arrays is None:
            return found
        return [Trial(y.dtype, array.shape, array) for y, array in zip(found, arrays, strict=True)]

    def _compute(self, proto: onnx.NodeProto, xs: Sequence[Trial | None]) -> list[Array] | None:
        if proto.op_type not in COMPUTED:
            return None
        (x, *_) = (*xs, None)
        if proto.op_type in ("Shape", "Size") and x is not None and x.shape is not None and None not in x.shape:
            return [shape_or_size(proto, x.shape)]  # type: ignore[arg-type]
        if any(x is not None and x.data is None for x in xs):
            return None
        return evaluate(proto, [None if x is None else x.data for x in xs], self.opset)


def canonical(node: ir.Node) -> onnx.NodeProto:
    """A node as a message, with names that do not depend on the graph around it."""
    proto = onnx.NodeProto(op_type=node.op_type)
    proto.input.extend("" if x is None else f"x{i}" for i, x in enumerate(node.inputs))
    proto.output.extend(f"y{i}" for i in range(len(node.outputs)))
    proto.attribute.extend(ir.serde.serialize_attribute(attribute) for attribute in node.attributes.values())
    return proto


def trial_of(kind: onnx.TypeProto | None) -> Trial:
    if kind is None or not kind.HasField("tensor_type"):
        return Trial(None, None)
    tensor = kind.tensor_type
    dtype = ir.DataType(tensor.elem_type) if tensor.elem_type else None
    if not tensor.HasField("shape"):
        return Trial(dtype, None)
    return Trial(dtype, tuple(d.dim_value if d.HasField("dim_value") else None for d in tensor.shape.dim))


def shape_or_size(proto: onnx.NodeProto, shape: tuple[int, ...]) -> Array:
    if proto.op_type == "Size":
        return np.asarray(math.prod(shape), np.int64)
    ends = {attribute.name: attribute.i for attribute in proto.attribute}
    return np.asarray(shape[ends.get("start", 0) : ends.get("end", len(shape))], np.int64)


def evaluate(proto: onnx.NodeProto, xs: Sequence[Array | None], opset: int) -> list[Array] | None:
    """The outputs of one node by ONNX's reference implementation; None if it has none, or fails."""
    with np.errstate(all="ignore"):
        if proto.op_type == "Div" and all(x is not None and x.dtype.kind in "iu" for x in xs):
            return quotient(*xs)  # type: ignore[arg-type]
        try:
            run = implementation(proto.op_type, opset)(
                proto, {"log": lambda *_: None, "opsets": {"": opset}, "verbose": 0, "new_ops": None}
            )
            return [np.asarray(y) for y in run.run(*xs)]
        except Exception:  # it raises whatever NumPy raises
            return None


@cache
def implementation(op_type: str, opset: int) -> Any:
    """ONNX's reference implementation; of the next opset that has one, since some begin later than their operator."""
    for version in range(opset, onnx.defs.onnx_opset_version() + 1):
        with suppress(RuntimeError):
            return load_op("", op_type, version)
    return load_op("", op_type, opset)


def quotient(a: Array, b: Array) -> list[Array] | None:
    """Whole numbers divided: ONNX rounds towards zero, its reference implementation towards minus infinity."""
    if not np.all(b):
        return None
    down = a // b
    return [np.asarray(down + ((down * b != a) & ((a < 0) != (b < 0))), a.dtype)]
