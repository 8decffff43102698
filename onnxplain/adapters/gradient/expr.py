"""Values of a graph with operators: a rule is written as a formula, and out come ONNX nodes.

Every value knows its dtype and shape the moment it exists. Shapes are tuples of ints, with a `str` for a symbolic
dimension (the batch) and None for one that nothing is known of.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeAlias

import numpy as np
import onnx
import onnx_ir as ir

from onnxplain.adapters.gradient.facts import SMALL, Array, Dim, Facts, Impossible

Operand: TypeAlias = "Expr | Array | Sequence[int] | float | None"

FACTS = "onnxplain.facts"  # of a graph, in its `meta`
MOST = 500_000  # nodes that a graph may get: about two minutes, and 4 GiB
PREFIX = "onnxplain/"  # of every name that we make; forward names are kept


class UnsupportedCase(Exception):
    """A rule exists, but not for these attributes or shapes. The sweep turns it into a gap of the report."""


class Emit:
    """Where the nodes of new values go: the end of a graph."""

    def __init__(self, graph: ir.Graph) -> None:
        self.graph = graph
        self.opset = graph.opset_imports[""]
        self.facts: Facts = graph.meta.setdefault(FACTS, Facts(self.opset))
        self.references: dict[ir.Value, ir.Value] = {}  # of what depends on the image, if the graph has a reference
        self._constants: dict[tuple[Any, ...], Expr] = {}
        self.transposed: dict[ir.Value, Expr] = {}  # of constants; a recurrent network has one in every step
        self._count = 0
        self._recordings: list[list[ir.Node]] = []
        self._taken = {value.name for node in graph for value in node.outputs} | {node.name for node in graph}
        self._taken |= {value.name for value in (*graph.inputs, *graph.initializers.values())}

    @contextmanager
    def recording(self) -> Iterator[list[ir.Node]]:
        """A list that holds, at the end of the block, the nodes that were emitted in it."""
        nodes: list[ir.Node] = []
        self._recordings.append(nodes)
        try:
            yield nodes
        finally:
            self._recordings.pop()

    def name(self, stem: str) -> str:
        """A new name. (The model may be one that we made.)"""
        while True:
            self._count += 1
            name = f"{PREFIX}{stem}_{self._count}"
            if name not in self._taken:
                return name

    def constant(self, array: Array) -> Expr:
        """A constant as an initializer; small ones are shared by value.

        Weights are never shared: a runtime that packs them once for two uses gives wrong results (OpenVINO does). An
        array may be a view of weights that lie in a file: it is put in order when the model is written.
        """
        key = (array.dtype, array.shape, array.tobytes()) if array.size <= SMALL else None
        if key is not None and key in self._constants:
            return self._constants[key]
        name = self.name("constant")
        if array.size <= SMALL:
            tensor: ir.TensorProtocol = ir.tensor(np.asarray(array, order="C"), name=name)
        else:
            make = partial(in_order, array, name)
            tensor = ir.LazyTensor(make, ir.DataType.from_numpy(array.dtype), ir.Shape(array.shape), name=name)
        value = ir.Value(name=name, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype), const_value=tensor)
        self.graph.register_initializer(value)
        expr = Expr(self, value)
        if key is not None:
            self._constants[key] = expr
        return expr

    def node(
        self, op_type: str, inputs: Sequence[Expr | None], attributes: Mapping[str, Any], outputs: int
    ) -> list[Expr]:
        """The outputs of a new node; those of a node whose value is known now become constants instead."""
        if self._count + outputs > MOST:
            raise UnsupportedCase(f"the gradient takes more than {MOST:,} operators; next: give a smaller model")
        names = [self.name(op_type) for _ in range(outputs)]
        node = ir.node(
            op_type,
            [None if x is None else x.value for x in inputs],
            {k: v for k, v in attributes.items() if v is not None},
            outputs=[ir.Value(name=name) for name in names],
            name=names[0],
        )
        try:
            self.facts.infer(node)
        except (onnx.shape_inference.InferenceError, Impossible) as error:
            shapes = " and ".join(str(list(x.shape)) for x in inputs if x is not None)
            raise UnsupportedCase(f"{op_type} of {shapes}: {' '.join(str(error).split())}") from error
        known = [self.facts.data(value) for value in node.outputs]
        if all(data is not None and data.size <= SMALL for data in known):
            return [self.constant(data) for data in known if data is not None]
        self.graph.append(node)
        for nodes in self._recordings:
            nodes.append(node)
        return [Expr(self, value) for value in node.outputs]


def in_order(array: Array, name: str) -> ir.TensorProtocol:
    """A view of weights as a tensor of its own; of a file that they are mapped from, the memory is given back."""
    tensor = ir.tensor(np.ascontiguousarray(array), name=name)
    base: Any = array
    while isinstance(base, np.ndarray | memoryview):
        base = base.obj if isinstance(base, memoryview) else base.base
    if isinstance(base, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):  # Windows has none
        base.madvise(mmap.MADV_DONTNEED)
    return tensor


class Expr:
    """A value of the graph. Operators emit nodes; numbers take the dtype of the tensors beside them."""

    __slots__ = ("emit", "value")

    def __init__(self, emit: Emit, value: ir.Value) -> None:
        self.emit = emit
        self.value = value

    @property
    def shape(self) -> tuple[Dim, ...]:
        if self.value.shape is None:
            raise UnsupportedCase(f"the rank of {self.value.name} is not known")
        return tuple(d if isinstance(d, int) else d.value for d in self.value.shape)

    @property
    def rank(self) -> int:
        return len(self.shape)

    @property
    def dtype(self) -> np.dtype[Any]:
        assert self.value.dtype is not None
        return np.dtype(self.value.dtype.numpy())

    @property
    def constant(self) -> Array | None:
        """The value, if it is known now.

        One that is constant but cannot be computed here is refused: taken for something that changes, it would feed
        both directions, and OpenVINO, which computes it beforehand and packs it once, gives one of them wrong.
        """
        if self.value.const_value is not None:
            return self.value.const_value.numpy()
        data = self.emit.facts.data(self.value)
        if data is None and self.value in self.emit.facts.fixed:
            data = self.emit.facts.compute(self.value)
            if data is None:
                raise UnsupportedCase(
                    f"{self.value.name} is computed from constants, in a way that is not computed beforehand here; "
                    "next: fold the constants of the model"
                )
        return data

    @property
    def reference(self) -> Expr:
        """The same value at the reference: itself, if it does not depend on the image."""
        return Expr(self.emit, self.emit.references.get(self.value, self.value))

    @property
    def varies(self) -> bool:
        """Whether the value depends on the image, in a graph that has a reference."""
        return self.value in self.emit.references

    def size(self, axis: int) -> int:
        """A dimension that must be known now."""
        dim = self.shape[axis]
        if not isinstance(dim, int):
            raise UnsupportedCase(f"dimension {axis} of {self.value.name} is not fixed ({dim})")
        return dim

    def __add__(self, other: Operand) -> Expr:
        return op("Add", self, other)

    __radd__ = __add__

    def __sub__(self, other: Operand) -> Expr:
        return op("Sub", self, other)

    def __rsub__(self, other: Operand) -> Expr:
        return op("Sub", other, self)

    def __mul__(self, other: Operand) -> Expr:
        return op("Mul", self, other)

    __rmul__ = __mul__

    def __truediv__(self, other: Operand) -> Expr:
        return op("Div", self, other)

    def __rtruediv__(self, other: Operand) -> Expr:
        return op("Div", other, self)

    def __neg__(self) -> Expr:
        return op("Neg", self)

    def __matmul__(self, other: Operand) -> Expr:
        return op("MatMul", self, other)

    def __lt__(self, other: Operand) -> Expr:
        return op("Less", self, other)

    def __gt__(self, other: Operand) -> Expr:
        return op("Greater", self, other)

    def __and__(self, other: Operand) -> Expr:
        return op("And", self, other)

    @property
    def mT(self) -> Expr:
        """The last two axes swapped; of a constant, a new constant in the opposite memory order."""
        if self.constant is not None:
            known = self.emit.transposed
            if self.value not in known:
                known[self.value] = self.emit.constant(np.swapaxes(self.constant, -1, -2))
            return known[self.value]
        return self.transpose((*range(self.rank - 2), self.rank - 1, self.rank - 2))

    def cast(self, dtype: ir.DataType) -> Expr:
        return self if self.value.dtype == dtype else op("Cast", self, to=int(dtype))

    def transpose(self, perm: Sequence[int]) -> Expr:
        return op("Transpose", self, perm=list(perm))

    def sum(self, axes: Sequence[int], keepdims: bool = False) -> Expr:
        return op("ReduceSum", self, list(axes), keepdims=int(keepdims)) if axes else self

    def mean(self, axes: Sequence[int], keepdims: bool = True) -> Expr:
        return op("ReduceMean", self, list(axes), keepdims=int(keepdims)) if axes else self

    def reshape(self, shape: Sequence[Dim]) -> Expr:
        """Reshape to a shape with one symbolic dimension at the most."""
        if tuple(shape) == self.shape:
            return self
        if 0 in shape:
            raise UnsupportedCase("a tensor without elements")  # and a 0 would mean "as it was"
        if sum(not isinstance(d, int) for d in shape) > 1:
            raise UnsupportedCase(f"more than one dimension of {list(shape)} is not fixed")
        out = op("Reshape", self, [d if isinstance(d, int) else -1 for d in shape])
        out.value.shape = ir.Shape(shape)
        return out

    def like(self, other: Expr) -> Expr:
        """Reshape to the shape of `other`, which is read at run time where it is not fixed now."""
        if sum(not isinstance(d, int) for d in other.shape) <= 1:
            return self.reshape(other.shape)
        out = op("Reshape", self, op("Shape", other))
        out.value.shape = other.value.shape
        return out

    def expand(self, other: Expr) -> Expr:
        """Broadcast to the shape of `other`."""
        if self.shape == other.shape:
            return self
        # Expand broadcasts both ways, so a 1 stands for every dimension that is already right.
        pairs = list(zip(self.shape, other.shape, strict=True))
        if all(isinstance(b, int) or a == b for a, b in pairs):
            target: Operand = [1 if a == b else b for a, b in pairs]  # type: ignore[misc]
        else:
            target = op("Shape", other)
        out = op("Expand", self, target)
        out.value.shape = other.value.shape
        return out

    def slice(self, axis: int, start: int, stop: int, step: int = 1) -> Expr:
        """x[..., start:stop:step, ...] along one axis, with `stop` as ONNX reads it."""
        if (start, stop, step) == (0, self.shape[axis], 1):
            return self
        return op("Slice", self, [start], [stop], [axis], [step])

    def pad(self, axis: int, before: int, after: int, value: float = 0.0) -> Expr:
        """Pad one axis with a constant. A negative width crops, by Slice: runtimes differ on negative padding."""
        if before < 0 or after < 0:
            kept = self.slice(axis, max(-before, 0), self.size(axis) + min(after, 0))
            return kept.pad(axis, max(before, 0), max(after, 0), value)
        if before == after == 0:
            return self
        widths = [0] * (2 * self.rank)
        widths[axis], widths[axis + self.rank] = before, after
        return op("Pad", self, widths, value)

    def zero(self) -> Expr:
        """A single zero of the same rank: a cotangent that costs nothing until something needs its full shape."""
        return self.emit.constant(np.zeros((1,) * self.rank, self.dtype))

    def zeros(self) -> Expr:
        """Zeros of the same shape."""
        out = op("Expand", self.emit.constant(np.zeros(1, self.dtype)), op("Shape", self))
        out.value.shape = self.value.shape
        return out

    def interleave(self, axis: int, others: Sequence[Expr]) -> Expr:
        """The elements of self and others in turn along one axis: self[0], others[0][0], ..., self[1], ..."""
        parts = [self, *others]
        if len(parts) == 1:
            return self
        shape = self.shape
        stacked = op("Concat", *(p.reshape((*shape[: axis + 1], 1, *shape[axis + 1 :])) for p in parts), axis=axis + 1)
        return stacked.reshape((*shape[:axis], self.size(axis) * len(parts), *shape[axis + 1 :]))


def op(op_type: str, *operands: Operand, **attributes: Any) -> Expr:
    """Emit one node with one output. Operands that are no `Expr` become constants (see `literal`)."""
    return ops(op_type, *operands, outputs=1, **attributes)[0]


def ops(op_type: str, *operands: Operand, outputs: int, **attributes: Any) -> list[Expr]:
    """Emit one node with several outputs."""
    exprs = [x for x in operands if isinstance(x, Expr)]
    emit = exprs[0].emit
    # Never the dtype of a mask: Where(mask, g, 0) wants a zero of g's kind.
    dtype = next((x.dtype for x in exprs if x.dtype != np.bool_), exprs[0].dtype)
    inputs = [x if x is None or isinstance(x, Expr) else emit.constant(literal(x, dtype)) for x in operands]
    return emit.node(op_type, inputs, attributes, outputs)


def literal(x: Any, dtype: np.dtype[Any]) -> Array:
    """Arrays as they are, lists of ints as int64 (axes, shapes), numbers in the given dtype."""
    if isinstance(x, np.ndarray):
        return x
    return np.asarray(x, np.int64) if isinstance(x, list | tuple) else np.asarray(x, dtype)


def where(condition: Expr, a: Operand, b: Operand) -> Expr:
    return op("Where", condition, a, b)


def concat(parts: Sequence[Expr], axis: int) -> Expr:
    return parts[0] if len(parts) == 1 else op("Concat", *parts, axis=axis)


def add_all(parts: Sequence[Expr]) -> Expr:
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    return total
