"""Models that are broken or meant to break us: a result or an error of few lines, in bounded memory and time.

Every model is opened as a user would open it, by `differentiate`, `gradient_model` and `onnxplain inspect`, in a process
with limits (see `sandbox`).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import pytest
from adapters.gradient.sandbox import ENTRIES, Outcome, Sandbox
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import AttributeProto, TensorProto, helper, numpy_helper
from tiny import classifier

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the limits of the sandbox are Linux's")

LINES = 12  # of a message
FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    with Sandbox() as sandbox:
        yield sandbox


def sound(outcomes: list[Outcome]) -> None:
    """A result, or an error that is raised on purpose and says what it has to say in few lines."""
    for outcome in outcomes:
        assert outcome.expected, f"{outcome.entry}: {outcome.what}"
        assert outcome.lines <= LINES, f"{outcome.entry} says {outcome.lines} lines: {outcome.what}"


def refused(outcomes: list[Outcome]) -> None:
    """By each entry point that builds something: `inspect` only tells of it."""
    sound(outcomes)
    for outcome in outcomes:
        assert outcome.what != "done" or outcome.entry == "inspect", f"{outcome.entry} took it"


def parse(text: str, opset: int = 18, **initializers: np.ndarray) -> onnx.ModelProto:
    model = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["" : {opset}, "own" : 1]>' + text)
    model.graph.initializer.extend(numpy_helper.from_array(a, name) for name, a in initializers.items())
    return model


def net(body: str = "y = Relu(x)", **initializers: np.ndarray) -> onnx.ModelProto:
    return parse(f"net (float[N, 3] x) => (float[N, 3] y) {{ {body} }}", **initializers)


def graph_of(nodes: list[onnx.NodeProto], initializers: tuple[onnx.TensorProto, ...] = ()) -> onnx.ModelProto:
    """Nodes between x and y, both (N, 3)."""
    ends = [helper.make_tensor_value_info(name, FLOAT, ["N", 3]) for name in ("x", "y")]
    graph = helper.make_graph(nodes, "net", ends[:1], ends[1:], list(initializers))
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def tensor(**fields: object) -> onnx.TensorProto:
    return TensorProto(**{"name": "w", "data_type": FLOAT, **fields})


def with_weight(**fields: object) -> onnx.ModelProto:
    """x + w, and w as strange as may be."""
    return graph_of([helper.make_node("Add", ["x", "w"], ["y"])], (tensor(**fields),))


# Graphs that are wrong


def nested(depth: int) -> onnx.ModelProto:
    """An If in a branch of an If in a branch of an If."""
    value = helper.make_tensor_value_info("inner", FLOAT, None)
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["inner"])], "leaf", [], [value])
    for i in range(depth):
        node = helper.make_node("If", ["c"], ["inner"], then_branch=graph, else_branch=graph if i == 0 else None)
        graph = helper.make_graph([node], f"level{i}", [], [value])
    node = helper.make_node("If", ["c"], ["y"], then_branch=graph)
    return graph_of([node], (numpy_helper.from_array(np.asarray(True), "c"),))


def calls(levels: int, width: int) -> onnx.ModelProto:
    """A function that calls a function that calls ..., each of them several times."""
    model = net("y = own.f0(x)")
    for i in range(levels):
        nodes = [helper.make_node(f"f{i + 1}", [f"t{j}"], [f"t{j + 1}"], domain="own") for j in range(width)]
        model.functions.append(helper.make_function("own", f"f{i}", ["t0"], [f"t{width}"], nodes, model.opset_import))
    leaf = [helper.make_node("Relu", ["t"], ["u"])]
    model.functions.append(helper.make_function("own", f"f{levels}", ["t"], ["u"], leaf, model.opset_import))
    return model


def chain(count: int) -> onnx.ModelProto:
    names = ["x", *(f"v{i}" for i in range(count - 1)), "y"]
    return graph_of([helper.make_node("Relu", [a], [b]) for a, b in zip(names, names[1:], strict=False)])


def many_inputs(count: int) -> onnx.ModelProto:
    model = graph_of([helper.make_node("Sum", ["x", *(f"x{i}" for i in range(count))], ["y"])])
    more = [helper.make_tensor_value_info(f"x{i}", FLOAT, ["N", 3]) for i in range(count)]
    model.graph.input.extend(more)
    return model


def named_twice() -> onnx.ModelProto:
    model = net("a = Relu(x) y = Tanh(a)")
    model.graph.input.append(model.graph.input[0])
    return model


def recursive() -> onnx.ModelProto:
    model = net("y = own.f(x)")
    node = helper.make_node("f", ["t"], ["u"], domain="own")
    model.functions.append(helper.make_function("own", "f", ["t"], ["u"], [node], model.opset_import))
    return model


def sparse() -> onnx.ModelProto:
    values, places = numpy_helper.from_array(np.ones(2, np.float32), "w"), numpy_helper.from_array(np.asarray([0, 99]))
    model = graph_of([helper.make_node("Add", ["x", "w"], ["y"])])
    model.graph.sparse_initializer.append(helper.make_sparse_tensor(values, places, [3]))
    return model


def long_attribute() -> onnx.ModelProto:
    return graph_of([helper.make_node("Transpose", ["x"], ["y"], perm=range(10**6))])


def with_shape(*dims: object) -> onnx.ModelProto:
    model = net("h = Relu(x) y = Tanh(h)")
    model.graph.value_info.append(helper.make_tensor_value_info("h", FLOAT, dims))
    return model


def opset(version: int) -> onnx.ModelProto:
    model = net()
    model.opset_import[0].version = version
    return model


def wrong_attribute() -> onnx.ModelProto:
    node = helper.make_node("Concat", ["x", "x"], ["y"])
    node.attribute.append(AttributeProto(name="axis", type=AttributeProto.STRING, s=b"one"))
    return graph_of([node])


def typed(kind: int) -> onnx.ModelProto:
    model = net()
    model.graph.input[0].type.tensor_type.elem_type = kind
    return model


BROKEN: dict[str, Callable[[], onnx.ModelProto]] = {
    "a cycle": lambda: net("a = Add(x, b) b = Relu(a) y = Relu(b)"),
    "a cycle of one node": lambda: net("a = Add(x, a) y = Relu(a)"),
    "a name that is given twice": lambda: net("a = Relu(x) a = Tanh(x) y = Relu(a)"),
    "an output with the name of the input": lambda: net("x = Relu(x) y = Tanh(x)"),
    "an input that is listed twice": named_twice,
    "two weights of one name": lambda: graph_of(
        [helper.make_node("Add", ["x", "w"], ["y"])], (tensor(float_data=[1.0]), tensor(float_data=[2.0]))
    ),
    "an output that nothing makes": lambda: net("a = Relu(x)"),
    "an undefined value": lambda: net("y = Add(x, q)"),
    "a declared shape of another rank": lambda: with_shape("N", 3, 4),
    "a declared shape of another size": lambda: with_shape("N", 4),
    "weights that do not fit": lambda: net("y = MatMul(x, w)", w=np.zeros((4, 5), np.float32)),
    "weights of another type": lambda: net("y = Add(x, w)", w=np.zeros(3)),
    "fewer data than the shape says": lambda: with_weight(dims=[3], raw_data=b"\0" * 8),
    "more data than the shape says": lambda: with_weight(dims=[3], raw_data=b"\0" * 80),
    "a huge shape without data": lambda: with_weight(dims=[2**40]),
    "a shape whose size overflows": lambda: with_weight(dims=[2**32, 2**32, 2**32]),
    "a negative dimension": lambda: with_weight(dims=[-3], raw_data=b""),
    "a tensor of strings": lambda: with_weight(data_type=TensorProto.STRING, dims=[1], string_data=[b"one"]),
    "an unknown type of data": lambda: with_weight(data_type=999, dims=[1]),
    "a function that calls itself": recursive,
    "an attribute of another type": wrong_attribute,
    "an attribute of a million numbers": long_attribute,
    "a sparse weight out of bounds": sparse,
    "an input of unknown type": lambda: typed(0),
    "an input of a type that is none": lambda: typed(999),
    "an input of strings": lambda: typed(TensorProto.STRING),
    "an opset from the future": lambda: opset(2**40),
    "an opset before the first": lambda: opset(-1),
    "no node at all": lambda: graph_of([]),
    "an If without branches": lambda: graph_of([helper.make_node("If", ["x"], ["y"])]),
    "a Loop without a body": lambda: graph_of([helper.make_node("Loop", ["", "", "x"], ["y"])]),
    "a reference to no attribute": lambda: graph_of(
        [onnx.NodeProto(op_type="Elu", input=["x"], output=["y"], attribute=[AttributeProto(name="alpha", type=1, ref_attr_name="a")])]
    ),
}  # fmt: skip

# Models that may be valid: anything but a crash
HEAVY: dict[str, Callable[[], onnx.ModelProto]] = {
    "a chain of 10^4 nodes": lambda: chain(10**4),
    "10^4 inputs": lambda: many_inputs(10**4),
    "branches in branches": lambda: nested(30),
    "functions that multiply": lambda: calls(12, 10),
    "a constant that would fill the memory": lambda: net(
        "s = Constant<value_ints = [1099511627776]>() c = ConstantOfShape(s) m = ReduceMean(c) y = Add(x, m)"
    ),
    "an expansion that would fill the memory": lambda: net(
        "s = Constant<value_ints = [1048576, 1048576]>() o = Constant<value_float = 1.0>() c = Expand(o, s)"
        " m = ReduceMean(c) y = Add(x, m)"
    ),
    "a range without end": lambda: net(
        "a = Constant<value_float = 0.0>() b = Constant<value_float = 1e30>() d = Constant<value_float = 1.0>()"
        " r = Range(a, b, d) m = ReduceMean(r) y = Add(x, m)"
    ),
    "a Tile that would fill the memory": lambda: net(
        "s = Constant<value_ints = [1099511627776, 1048576]>() t = Tile(x, s) m = ReduceMean(t) y = Add(x, m)"
    ),
    "a Pad that would fill the memory": lambda: net(
        "p = Constant<value_ints = [1099511627776, 0, 0, 0]>() t = Pad(x, p) m = ReduceMean(t) y = Add(x, m)"
    ),
    "a kernel larger than the world": lambda: parse(
        "net (float[N, 3, 8, 8] x) => (float[N, 5] y)"
        " { y = MaxPool<kernel_shape = [1099511627776, 3], pads = [1099511627776, 1, 1099511627776, 1]>(x) }"
    ),
    "a pool of a million taps": lambda: parse(
        "net (float[N, 3, 1100, 1100] x) => (float[N, 3, ?, ?] y) { y = MaxPool<kernel_shape = [1024, 1024]>(x) }"
    ),
    "a gather of many places": lambda: parse(
        "net (float[1000000] x) => (float[300000] y) { y = Gather(x, w) }", w=np.arange(300000)
    ),
    "a split into 10^4 parts": lambda: graph_of(
        [
            helper.make_node("Split", ["x"], [f"p{i}" for i in range(10**4)], axis=1, num_outputs=10**4),
            helper.make_node("Identity", ["p0"], ["y"]),
        ]
    ),
    "a name of a million letters": lambda: graph_of(
        [helper.make_node("Relu", ["x"], ["h"], name="n" * 10**6), helper.make_node("Odd", ["h"], ["y"], name="n" * 10**6)]
    ),
    "10^4 operators that nobody knows": lambda: graph_of(
        [helper.make_node(f"Odd{i}", ["x" if i == 0 else f"v{i - 1}"], ["y" if i == 9999 else f"v{i}"], domain=f"own{i}")
         for i in range(10**4)]
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", BROKEN)
def test_a_broken_model_is_refused(what: str, sandbox: Sandbox, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(BROKEN[what]().SerializeToString())
    refused(sandbox.open(path))


@pytest.mark.parametrize("what", HEAVY)
def test_a_heavy_model_is_opened_or_refused(what: str, sandbox: Sandbox, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(HEAVY[what]().SerializeToString())
    sound(sandbox.open(path))
