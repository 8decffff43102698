"""Models that are broken or meant to break us: a result or an error of few lines, in bounded memory and time.

Every model is opened as a user would open it, by `differentiate`, `gradient_model` and `onnxplain inspect`, in a
process with limits (see `sandbox`).
"""

from __future__ import annotations

import itertools
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import pytest
from adapters.gradient.sandbox import Outcome, Sandbox
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import AttributeProto, TensorProto, helper, numpy_helper
from tiny import classifier

import onnxplain as ox
from onnxplain.engine.executors.reference import ReferenceExecutor
from onnxplain.errors import InvalidModel

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


def graph_of_conv(**attributes: object) -> onnx.ModelProto:
    model = parse(
        "net (float[N, 3, 8, 8] x) => (float[N, ?, ?, ?] y) { y = Conv(x, w) }", w=np.ones((3, 3, 3, 3), np.float32)
    )
    model.graph.node[0].attribute.extend(helper.make_attribute(name, value) for name, value in attributes.items())
    return model


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
    return graph_of([helper.make_node("Relu", [a], [b]) for a, b in itertools.pairwise(names)])


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


def with_attribute(attribute: AttributeProto) -> onnx.ModelProto:
    return graph_of([onnx.NodeProto(op_type="Elu", input=["x"], output=["y"], attribute=[attribute])])


def with_rows(rows: int, *, empty: bool = False) -> onnx.ModelProto:
    """A classifier whose last weight says that it has so many rows."""
    model = classifier()
    model.graph.initializer[1].dims[0] = rows
    if empty:
        model.graph.initializer[1].ClearField("raw_data")
    return model


def typed(kind: int) -> onnx.ModelProto:
    model = net()
    model.graph.input[0].type.tensor_type.elem_type = kind
    return model


def named(name: str) -> onnx.ModelProto:
    nodes = [helper.make_node("Relu", ["x"], ["h"], name=name), helper.make_node("Odd", ["h"], ["y"], name=name)]
    return graph_of(nodes)


def strangers(count: int) -> onnx.ModelProto:
    names = ["x", *(f"v{i}" for i in range(count - 1)), "y"]
    pairs = enumerate(itertools.pairwise(names))
    return graph_of([helper.make_node(f"Odd{i}", [a], [b], domain=f"own{i}") for i, (a, b) in pairs])


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
    "weights that do not fit": lambda: net("y = MatMul(x, w)", w=np.zeros((4, 5), np.float32)),
    "weights of another type": lambda: net("y = Add(x, w)", w=np.zeros(3)),
    "fewer data than the shape says": lambda: with_weight(dims=[3], raw_data=b"\0" * 8),
    "more data than the shape says": lambda: with_weight(dims=[3], raw_data=b"\0" * 80),
    "a huge shape without data": lambda: with_weight(dims=[2**40]),
    "a shape whose size overflows": lambda: with_weight(dims=[2**32, 2**32, 2**32]),
    "a classifier with more weights than data": lambda: with_rows(2**31),
    "a classifier with weights larger than the world": lambda: with_rows(2**62, empty=True),
    "a group that does not divide the channels": lambda: graph_of_conv(group=2**31),
    "strides of zero": lambda: graph_of_conv(strides=[0, 0]),
    "padding that leaves less than nothing": lambda: net(
        "p = Constant<value_ints = [0, -2147483648, 0, 0]>() h = Pad(x, p) s = Shape(x)"
        " z = Constant<value_ints = [0]>()"
        " y = Slice(h, z, s)"
    ),
    "a weight without a name": lambda: graph_of([helper.make_node("Relu", ["x"], ["y"])], (tensor(name=""),)),
    "a negative dimension": lambda: with_weight(dims=[-3], raw_data=b""),
    "a tensor of strings": lambda: with_weight(data_type=TensorProto.STRING, dims=[1], string_data=[b"one"]),
    "an unknown type of data": lambda: with_weight(data_type=999, dims=[1]),
    "a function that calls itself": recursive,
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
    "a reference to no attribute": lambda: with_attribute(AttributeProto(name="alpha", type=1, ref_attr_name="a")),
    "an attribute of another type": lambda: with_attribute(AttributeProto(name="alpha", type=3, s=b"one")),
    "an attribute of no type": lambda: with_attribute(AttributeProto(name="alpha")),
}

# Models that may be valid: anything but a crash
HEAVY: dict[str, Callable[[], onnx.ModelProto]] = {
    "a chain of 10^6 nodes": lambda: chain(10**6),
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
        "net (float[1000000] x) => (float[300000] y) { y = Gather(x, w) }",
        w=np.random.default_rng(0).integers(0, 10**6, 300000),
    ),
    "a split into 10^4 parts": lambda: graph_of(
        [
            helper.make_node("Split", ["x"], [f"p{i}" for i in range(10**4)], axis=1, num_outputs=10**4),
            helper.make_node("Identity", ["p0"], ["y"]),
        ]
    ),
    "a name of a million letters": lambda: named("n" * 10**6),
    "a name that is no text": lambda: named("a\nb\x1b[2Jc\0d"),
    "10^4 operators that nobody knows": lambda: strangers(10**4),
}


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


def declared(kind: int, dims: tuple[object, ...]) -> onnx.ModelProto:
    model = net("h = Relu(x) y = Tanh(h)")
    model.graph.value_info.append(helper.make_tensor_value_info("h", kind, dims))
    return model


@pytest.mark.parametrize(
    ("kind", "dims"), [(FLOAT, ("N", 4)), (FLOAT, ("N", 3, 4)), (FLOAT, ()), (INT64, ("N", 3))], ids=str
)
def test_a_declaration_that_cannot_be_is_refused(kind: int, dims: tuple[object, ...]) -> None:
    with pytest.raises(InvalidModel, match=r"about 'h': declared \w+ \[.*, computed float \[N, 3\]"):
        ox.differentiate(declared(kind, dims))


@pytest.mark.parametrize("dims", [("M", 3), (7, 3), (None, None), ("N", "C")], ids=str)
def test_a_declaration_that_may_be_true_counts_for_nothing(dims: tuple[object, ...]) -> None:
    """Exporters write down the batch that they traced, or other names: what follows from the operators holds."""
    made = ox.differentiate(declared(FLOAT, dims))
    ones = np.ones((2, 3), np.float32)
    gradient = ReferenceExecutor(made)({"x": ones, "grad_y": ones})["grad_x"]
    np.testing.assert_allclose(gradient, 1 - np.tanh(ones) ** 2, rtol=1e-6)


# Files


def with_external(folder: Path, entries: dict[str, str]) -> Path:
    """A model beside which its weight lies, if it does."""
    model = net("y = Add(x, w)")
    weight = tensor(dims=[3], data_location=TensorProto.EXTERNAL)
    for key, value in entries.items():
        weight.external_data.add(key=key, value=value)
    model.graph.initializer.append(weight)
    path = folder / "model.onnx"
    path.write_bytes(model.SerializeToString())
    return path


def a_pipe(folder: Path) -> dict[str, str]:
    os.mkfifo(folder / "w")
    return {"location": "w"}


def a_folder(folder: Path) -> dict[str, str]:
    (folder / "w").mkdir()
    return {"location": "w"}


def data(folder: Path, **more: str) -> dict[str, str]:
    (folder / "w").write_bytes(np.ones(3, np.float32).tobytes())
    return {"location": "w", **more}


def a_link(folder: Path, target: str) -> dict[str, str]:
    (folder / "w").symlink_to(target)
    return {"location": "w"}


def a_linked_folder(folder: Path) -> dict[str, str]:
    (folder.parent / "elsewhere").mkdir()
    (folder / "sub").symlink_to(folder.parent / "elsewhere")
    data(folder.parent / "elsewhere")
    return {"location": "sub/w"}


def beside(folder: Path) -> str:
    data(folder.parent)
    return str(folder.parent / "w")


EXTERNAL: dict[str, Callable[[Path], dict[str, str]]] = {
    "missing": lambda folder: {"location": "w"},
    "a folder": a_folder,
    "a pipe that nobody writes to": a_pipe,
    "no place": lambda folder: {},
    "an empty place": lambda folder: {"location": ""},
    "absolute": lambda folder: {"location": beside(folder)},
    "above": lambda folder: {"location": beside(folder) and "../w"},
    "above by a detour": lambda folder: {"location": beside(folder) and "sub/../../w"},
    "above in the spelling of Windows": lambda folder: {"location": beside(folder) and "..\\w"},
    "a link out of the folder": lambda folder: a_link(folder, beside(folder)),
    "a link to endless zeros": lambda folder: a_link(folder, "/dev/zero"),
    "a link to itself": lambda folder: a_link(folder, "w"),
    "a folder that is a link": a_linked_folder,
    "a name with a zero byte": lambda folder: {"location": "w\0"},
    "a name that is too long": lambda folder: {"location": "w" * 5000},
    "shorter than it says": lambda folder: data(folder, length="4"),
    "an offset behind the end": lambda folder: data(folder, offset="1099511627776"),
    "a negative offset": lambda folder: data(folder, offset="-4"),
    "an offset that is no number": lambda folder: data(folder, offset="four"),
    "a length that is no number": lambda folder: data(folder, length="1e400"),
}


@pytest.mark.parametrize("what", EXTERNAL)
def test_external_data_that_cannot_be_had_is_refused(what: str, sandbox: Sandbox, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    path = with_external(folder, EXTERNAL[what](folder))
    refused(sandbox.open(path))


def test_external_data_beside_the_model_is_read(sandbox: Sandbox, tmp_path: Path) -> None:
    outcomes = sandbox.open(with_external(tmp_path, data(tmp_path, offset="0", length="12")))
    assert [outcome.what for outcome in outcomes] == ["done"] * len(outcomes)


CONTENTS = {
    "nothing": b"",
    "zeros": bytes(10**6),
    "a graph in a graph in a graph": b"\x3a\xff\xff\xff\xff\x0f" * 10**4,
    "a length without end": b"\x3a\xff\xff\xff\xff\xff\xff\xff\xff\x7f",
    "groups that never end": b"\x0b" * 10**6,
    "metadata that nests": onnx.ModelProto(
        metadata_props=[onnx.StringStringEntryProto(key=key, value="[" * 10**6)
                        for key in ("onnxplain.gradient_model", "onnxplain.preprocess", "onnxplain.objectives")]
    ).SerializeToString() + net().SerializeToString(),
}  # fmt: skip


@pytest.mark.parametrize("what", CONTENTS)
def test_a_file_of_anything_is_opened_or_refused(what: str, sandbox: Sandbox, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(CONTENTS[what])
    sound(sandbox.open(path))


# At random


def mixed() -> onnx.ModelProto:
    """A classifier of operators that take shapes, axes and branches."""
    return onnx.parser.parse_model("""<ir_version: 10, opset_import: ["" : 18, "own" : 1]>
        mixed (float[N, 3, 4, 4] x) => (float[N, 5] z)
        <float[48, 5] w, int64[2] s = {0, -1}, int64[1] one = {1}, int64[1] nine = {9},
         int64[1] zero = {0}, bool yes = {1}>
        {
            a = Slice(x, zero, nine, one)
            b = own.twice(a)
            c = If (yes) <
                then_branch = yes_graph () => (float[N, 3, 4, 4] t) { t = Relu(b) },
                else_branch = no_graph () => (float[N, 3, 4, 4] u) { u = Tanh(b) }
            >
            d = Concat<axis = 1>(c, c)
            e, f = Split<axis = 1, num_outputs = 2>(d)
            g = Reshape(e, s)
            z = MatMul(g, w)
        }
        <domain: "own", opset_import: ["" : 18]> twice (p) => (q) { q = Add(p, p) }""")


def vision() -> onnx.ModelProto:
    """A classifier of operators whose attributes and operands say how large things get."""
    return parse(
        """vision (float[N, 3, 8, 8] x) => (float[N, 5] z)
        <int64[8] p = {0, 0, 1, 1, 0, 0, 1, 1}, float[4] s = {1.0, 1.0, 2.0, 2.0}, int64[1] k = {3}, int64 d = {5},
         float[2] v = {0.0, 1.0}, int64[2] i = {0, 2}, int64[4] r = {1, 2, 1, 1}, int64[2] e = {1, 1}> {
            a = Conv<kernel_shape = [3, 3], pads = [1, 1, 1, 1], strides = [1, 1], dilations = [1, 1], group = 1>(x, w)
            b = MaxPool<kernel_shape = [3, 3], strides = [2, 2], pads = [1, 1, 1, 1], ceil_mode = 0>(a)
            c = Pad(b, p)
            t = Resize<mode = "linear">(c, , s)
            f = AveragePool<kernel_shape = [2, 2], strides = [2, 2], count_include_pad = 1>(t)
            g = Gather<axis = 1>(f, i)
            h = Tile(g, r)
            j = ReduceMean<keepdims = 0>(h, q)
            l, m = TopK<axis = 1>(j, k)
            n = OneHot<axis = -1>(m, d, v)
            o = ReduceSum<keepdims = 0>(n, u)
            y = Gemm<transB = 1>(l, c5)
            ee = Expand(o, e)
            z = Add(y, ee)
        }""",
        w=np.ones((4, 3, 3, 3), np.float32),
        c5=np.ones((5, 3), np.float32),
        q=np.asarray([2, 3]),
        u=np.asarray([1]),
    )


SEEDS = {"plain": classifier(), "mixed": mixed(), "vision": vision()}
SEEDS["mixed"].graph.initializer[0].raw_data = np.ones((48, 5), np.float32).tobytes()
NUMBERS = [-(2**63), -(2**31), -2, -1, 0, 1, 2, 3, 5, 1000, 2**16, 2**31, 2**40, 2**63 - 1]


@settings(max_examples=100)
@given(
    seed=st.sampled_from(sorted(SEEDS)),
    flips=st.lists(st.tuples(st.integers(0, 2**16), st.integers(1, 255)), max_size=4),
    kept=st.none() | st.integers(0, 2**16),
)
def test_bytes_that_are_changed_or_cut_off(
    seed: str,
    flips: list[tuple[int, int]],
    kept: int | None,
    sandbox: Sandbox,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    content = bytearray(SEEDS[seed].SerializeToString())
    for place, bits in flips:
        content[place % len(content)] ^= bits
    path = tmp_path_factory.getbasetemp() / "bytes.onnx"
    path.write_bytes(content[: None if kept is None else kept % len(content)])
    sound(sandbox.open(path))


DIMS = [-(2**63), -1, 0, 1, 7, 2**31, 2**40, 2**63 - 1]
WORDS = ["", "x", "z", "logits", "w", "a", "b", "c", "t", "nobody", "\n", "own", "ai.onnx.ml", "Relu", "Loop", "MatMul"]
EDITS = (
    "dims of a weight", "type of a weight", "no data", "input of a node", "output of a node", "no node", "two nodes",
    "operator", "domain", "attribute", "shape of an input", "name of an input", "name of an output", "opset",
    "number in an attribute", "number in a weight", "declared shape", "input twice", "inputs in another order",
)  # fmt: skip


def edit(model: onnx.ModelProto, what: str, pick: Callable[..., object]) -> None:
    """One change to a model; `pick` chooses from a list."""
    graph = model.graph
    graphs = [graph, *(a.g for node in graph.node for a in node.attribute if a.HasField("g"))]
    node = pick([node for one in graphs for node in one.node] or [onnx.NodeProto()])
    weight = pick(graph.initializer or [TensorProto()])
    end = pick([*graph.input, *graph.output] or [onnx.ValueInfoProto()])
    match what:
        case "dims of a weight" if weight.dims:
            weight.dims[pick(range(len(weight.dims)))] = pick(DIMS)
        case "type of a weight":
            weight.data_type = pick([0, 1, 7, 8, 9, 10, 11, 16, 17, 99])
        case "no data":
            weight.ClearField("raw_data")
        case "input of a node" if node.input:
            node.input[pick(range(len(node.input)))] = pick(WORDS)
        case "output of a node" if node.output:
            node.output[pick(range(len(node.output)))] = pick(WORDS)
        case "no node" if graph.node:
            del graph.node[pick(range(len(graph.node)))]
        case "two nodes" if graph.node:
            graph.node.append(node)
        case "operator":
            node.op_type = pick(WORDS)
        case "domain":
            node.domain = pick(WORDS)
        case "attribute" if node.attribute:
            attribute = pick(node.attribute)
            attribute.i, attribute.ints[:] = pick(DIMS), pick([[], DIMS, DIMS[:1], attribute.ints])
            attribute.type = pick([0, 1, 2, 3, 4, 5, 7, 10, attribute.type])
        case "shape of an input" if end.type.tensor_type.shape.dim:
            pick(end.type.tensor_type.shape.dim).dim_value = pick(DIMS)
        case "name of an input":
            end.name = pick(WORDS)
        case "name of an output" if graph.output:
            graph.output[0].name = pick(WORDS)
        case "number in an attribute" if numbers := [
            a for a in node.attribute if a.ints or a.type == AttributeProto.INT
        ]:
            attribute = pick(numbers)
            if attribute.ints:
                attribute.ints[pick(range(len(attribute.ints)))] = pick(NUMBERS)
            else:
                attribute.i = pick(NUMBERS)
        case "number in a weight" if whole := [w for w in graph.initializer if w.int64_data]:
            weight = pick(whole)
            weight.int64_data[pick(range(len(weight.int64_data)))] = pick(NUMBERS)
        case "declared shape" if node.output:
            shape = [pick(["N", *DIMS]) for _ in range(pick([0, 1, 2, 4]))]
            graph.value_info.append(helper.make_tensor_value_info(pick(node.output), pick([1, 7, 10]), shape))
        case "input twice":
            graph.input.append(pick(graph.input))
        case "inputs in another order":
            node.input[:] = [*node.input[1:], *node.input[:1]]
        case "opset":
            pick(model.opset_import).version = pick(DIMS)


@settings(max_examples=150)
@given(
    seed=st.sampled_from(sorted(SEEDS)), edits=st.lists(st.sampled_from(EDITS), min_size=1, max_size=3), data=st.data()
)
def test_graphs_that_are_edited(
    seed: str, edits: list[str], data: st.DataObject, sandbox: Sandbox, tmp_path_factory: pytest.TempPathFactory
) -> None:
    model = onnx.ModelProto()
    model.CopyFrom(SEEDS[seed])
    for what in edits:
        edit(model, what, lambda choices: choices[data.draw(st.integers(0, len(choices) - 1))])
    path = tmp_path_factory.getbasetemp() / "graph.onnx"
    path.write_bytes(model.SerializeToString())
    sound(sandbox.open(path))
