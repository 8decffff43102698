"""Formulas become nodes: dtypes and shapes are known at once, and no node is made for nothing."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from onnxplain.adapters.gradient.expr import SMALL, Emit, Expr, UnsupportedCase, add_all, concat, op, where
from onnxplain.engine.executors.reference import ReferenceExecutor

X = np.random.default_rng(0).normal(size=(2, 3, 4))


def start(*shape: int | str | None, dtype: ir.DataType = ir.DataType.DOUBLE) -> Expr:
    """The input of an empty graph."""
    x = ir.Value(name="x", shape=ir.Shape(list(shape) or ["N", 3, 4]), type=ir.TensorType(dtype))
    return Expr(Emit(ir.Graph([x], [], nodes=[], opset_imports={"": 18}, name="g")), x)


def run(y: Expr, x: np.ndarray = X) -> np.ndarray:
    """The value of an expression."""
    y.emit.graph.outputs[:] = [y.value]
    proto = ir.to_proto(ir.Model(y.emit.graph, ir_version=10))
    onnx.checker.check_model(proto, full_check=True)
    (out,) = ReferenceExecutor(proto)({"x": x}).values()
    return out


FORMULAS = {
    "arithmetic": (lambda x: 2 * x + x / 4 - (1 - x) * x - 3, lambda x: 2 * x + x / 4 - (1 - x) * x - 3),
    "division": (lambda x: 1 / (x * x + 1), lambda x: 1 / (x * x + 1)),
    "negation": (lambda x: -x, lambda x: -x),
    "selection": (lambda x: where((x > 0.0) & (x < 1.0), x, 0.0), lambda x: np.where((x > 0) & (x < 1), x, 0)),
    "sum": (lambda x: x.sum([1]), lambda x: x.sum(1)),
    "sum, kept": (lambda x: x.sum([0, 2], keepdims=True), lambda x: x.sum((0, 2), keepdims=True)),
    "mean": (lambda x: x.mean([1, 2]), lambda x: x.mean((1, 2), keepdims=True)),
    "product": (lambda x: x @ x.mT, lambda x: x @ x.transpose(0, 2, 1)),
    "transpose": (lambda x: x.transpose([2, 0, 1]), lambda x: x.transpose(2, 0, 1)),
    "reshape": (lambda x: x.reshape(["N", 12]), lambda x: x.reshape(2, 12)),
    "slice": (lambda x: x.slice(2, 1, 4, 2), lambda x: x[:, :, 1:4:2]),
    "pad": (lambda x: x.pad(1, 2, 1, 7.0), lambda x: np.pad(x, [(0, 0), (2, 1), (0, 0)], constant_values=7)),
    "crop": (lambda x: x.pad(2, -1, -2), lambda x: x[:, :, 1:2]),
    "crop and pad": (lambda x: x.pad(2, -1, 2), lambda x: np.pad(x[:, :, 1:], [(0, 0), (0, 0), (0, 2)])),
    "zeros": (lambda x: x.zeros(), np.zeros_like),
    "interleave": (lambda x: x.interleave(1, [-x]), lambda x: np.stack([x, -x], 2).reshape(2, 6, 4)),
    "concat": (lambda x: concat([x, x], 2), lambda x: np.concatenate([x, x], 2)),
    "total": (lambda x: add_all([x, x, x]), lambda x: 3 * x),
    "expand": (lambda x: x.sum([1], keepdims=True).expand(x), lambda x: np.repeat(x.sum(1, keepdims=True), 3, 1)),
}


@pytest.mark.parametrize("name", FORMULAS)
def test_a_formula_is_what_it_says_in_numpy(name: str) -> None:
    """Values, dtype, and the shape that was known before anything ran."""
    ours, numpys = FORMULAS[name]
    y = ours(start())
    want = numpys(X)
    assert y.dtype == np.float64
    assert tuple(2 if d == "N" else d for d in y.shape) == want.shape
    np.testing.assert_allclose(run(y), want, rtol=0, atol=1e-14)


def test_numbers_take_the_dtype_of_the_tensors_around_them() -> None:
    """float32 stays float32, and a mask never gives its own dtype away."""
    x = start("N", 3, dtype=ir.DataType.FLOAT)
    for y in (x * 2, 1 - x, where(x > 0.5, x, 0.0), where(x > 0.5, 0.0, x), x.pad(1, 1, 1, -1.0)):
        assert y.dtype == np.float32


def test_nothing_is_emitted_for_nothing() -> None:
    """The same shape, an empty sum, a slice of everything, a border of no width, one part."""
    x = start()
    same = [
        x.reshape(x.shape),
        x.sum([]),
        x.slice(1, 0, 3),
        x.pad(1, 0, 0),
        x.expand(x),
        concat([x], 1),
        x.interleave(1, []),
    ]
    assert all(y is x for y in same)
    assert len(x.emit.graph) == 0


def test_small_constants_are_shared_and_large_ones_never() -> None:
    """By value, dtype and shape; a weight gets an initializer of its own each time."""
    emit = start().emit
    assert emit.constant(np.ones(3)).value is emit.constant(np.ones(3)).value
    assert emit.constant(np.ones(3)).value is not emit.constant(np.ones(3, np.float32)).value
    assert emit.constant(np.ones(3)).value is not emit.constant(np.ones((3, 1))).value
    assert emit.constant(np.zeros(1)).value is not emit.constant(-np.zeros(1)).value
    assert emit.constant(np.ones(SMALL + 1)).value is not emit.constant(np.ones(SMALL + 1)).value


def test_the_transpose_of_a_constant_is_a_constant_in_the_opposite_order() -> None:
    """No Transpose node between one weight and two directions."""
    x = start("N", 3)
    w = x.emit.constant(np.arange(6.0).reshape(3, 2))
    turned = w.mT
    assert turned.constant is not None
    np.testing.assert_array_equal(turned.constant, np.arange(6.0).reshape(3, 2).T)
    assert len(x.emit.graph) == 0


REFUSED = {
    "size of a free dimension": lambda x: x.size(0),
    "crop of a free dimension": lambda x: x.pad(0, -1, 0),
    "two free dimensions": lambda x: x.reshape(["N", "M", 1]),
    "no elements": lambda x: x.reshape(["N", 0]),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_known_is_refused(name: str) -> None:
    """As `UnsupportedCase`, which the sweep reports."""
    with pytest.raises(UnsupportedCase):
        REFUSED[name](start())


def test_a_value_without_a_rank_is_refused() -> None:
    """Nothing can be said about its shape."""
    x = start()
    x.value.shape = None
    with pytest.raises(UnsupportedCase, match="rank"):
        x.sum([0]).reshape(x.shape)


def test_an_operator_that_does_not_exist_is_an_error_at_once() -> None:
    """Not when the graph is run."""
    with pytest.raises(Exception, match="Frobnicate"):
        op("Frobnicate", start())
