"""What the sweep promises about whole graphs: laws of differentiation, and gaps that are reported all at once."""

from __future__ import annotations

import numpy as np
import onnx
import onnx.compose
import onnx.parser
import onnx_ir as ir
import pytest

from onnxplain.adapters.gradient.differentiate import coverage, differentiate
from onnxplain.adapters.gradient.registry import DEFAULT
from onnxplain.engine.executors.onnxruntime import OnnxRuntimeExecutor
from onnxplain.engine.executors.reference import ReferenceExecutor
from onnxplain.errors import InvalidModel, NotDifferentiable, UsageError

RNG = np.random.default_rng(5)
HEADER = '<ir_version: 10, opset_import: ["" : {opset}]>'


def model(body: str, opset: int = 18, **initializers: np.ndarray) -> onnx.ModelProto:
    """A model in ONNX's textual form; `initializers` by name."""
    proto = onnx.parser.parse_model(HEADER.format(opset=opset) + body)
    proto.graph.initializer.extend(onnx.numpy_helper.from_array(a, name) for name, a in initializers.items())
    return proto


NET = model(
    """
    net (double[N, 2, 4, 4] x) => (double[N, 3] z)
    {
        a = Conv<pads = [1, 1, 1, 1]>(x, w)
        b = Tanh(a)
        c = MaxPool<kernel_shape = [2, 2], strides = [2, 2]>(b)
        d = Flatten(c)
        z = Gemm<transB = 1>(d, v)
    }""",
    w=RNG.normal(size=(3, 2, 3, 3)),
    v=RNG.normal(size=(3, 12)),
)


def run(proto: onnx.ModelProto, **feeds: np.ndarray) -> dict[str, np.ndarray]:
    return dict(ReferenceExecutor(proto)(feeds))


def test_the_pull_back_is_linear_in_the_cotangent() -> None:
    """J^T (2 g + 3 h) = 2 J^T g + 3 J^T h."""
    backward, x = differentiate(NET), RNG.normal(size=(2, 2, 4, 4))
    g, h = RNG.normal(size=(2, 2, 3))
    parts = [run(backward, x=x, grad_z=v)["grad_x"] for v in (g, h, 2 * g + 3 * h)]
    np.testing.assert_allclose(parts[2], 2 * parts[0] + 3 * parts[1], rtol=0, atol=1e-13)


def test_differentiate_keeps_every_input_and_output() -> None:
    """Names, types and order; and the forward values, bit for bit."""
    backward, x = differentiate(NET), RNG.normal(size=(2, 2, 4, 4))
    assert [v.name for v in backward.graph.input] == ["x", "grad_z"]
    assert [v.name for v in backward.graph.output] == ["z", "grad_x"]
    assert backward.graph.input[0] == NET.graph.input[0]
    for given, kept in zip(NET.graph.output, backward.graph.output, strict=False):
        assert given.type.tensor_type.elem_type == kept.type.tensor_type.elem_type
    np.testing.assert_array_equal(run(backward, x=x, grad_z=np.zeros((2, 3)))["z"], run(NET, x=x)["z"])


def test_the_derivative_of_a_composition_is_the_product() -> None:
    """J(f after g)^T = J(g)^T J(f)^T, with the two halves differentiated apart."""
    weights = {i.name: onnx.numpy_helper.to_array(i) for i in NET.graph.initializer}
    inner = model(
        "inner (double[N, 2, 4, 4] x) => (double[N, 3, 4, 4] b) { a = Conv<pads = [1, 1, 1, 1]>(x, w) b = Tanh(a) }",
        w=weights["w"],
    )
    outer = model(
        """outer (double[N, 3, 4, 4] b) => (double[N, 3] z)
        { c = MaxPool<kernel_shape = [2, 2], strides = [2, 2]>(b) d = Flatten(c) z = Gemm<transB = 1>(d, v) }""",
        v=weights["v"],
    )
    x, g = RNG.normal(size=(2, 2, 4, 4)), RNG.normal(size=(2, 3))
    b = run(inner, x=x)["b"]
    between = run(differentiate(outer), b=b, grad_z=g)["grad_b"]
    product = run(differentiate(inner), x=x, grad_b=between)["grad_x"]
    np.testing.assert_allclose(run(differentiate(NET), x=x, grad_z=g)["grad_x"], product, rtol=0, atol=1e-14)


@pytest.mark.parametrize("rows", [1, 3, 8])
def test_each_row_of_a_batch_is_that_row_alone(rows: int) -> None:
    """One graph with a symbolic batch, for batches of 1, 3 and 8; on the runtime too, bit for bit."""
    x, g = RNG.normal(size=(rows, 2, 4, 4)), RNG.normal(size=(rows, 3))
    backward = differentiate(NET)
    whole = run(backward, x=x, grad_z=g)["grad_x"]
    for i in range(rows):
        alone = run(backward, x=x[i : i + 1], grad_z=g[i : i + 1])["grad_x"]
        np.testing.assert_allclose(whole[i], alone[0], rtol=0, atol=1e-14)


def test_repeats_may_follow_from_the_batch() -> None:
    """As tracing writes `x.repeat(1, len(y) // len(x))`: a one-hot row of a quotient of two batches, which is fixed."""
    proto = model(
        """repeated (double[N, 3, 2] x) => (double[N, 6, 2] y)
        {
            whole = Concat<axis = 0>(x, x)
            rows = Shape<start = 0, end = 1>(whole)
            batch = Shape<start = 0, end = 1>(x)
            count = Div(rows, batch)
            values = Concat<axis = 0>(one, count)
            hot = OneHot(one, three, values)
            repeats = Reshape(hot, flat)
            copies = Tile(x, repeats)
            y = Neg(copies)
        }""",
        one=np.array([1]),
        three=np.array(3),
        flat=np.array([-1]),
    )
    x, g = RNG.normal(size=(2, 3, 2)), RNG.normal(size=(2, 6, 2))
    np.testing.assert_array_equal(run(differentiate(proto), x=x, grad_y=g)["grad_x"], -(g[:, :3] + g[:, 3:]))


def test_an_input_that_several_ways_lead_from_gets_their_sum() -> None:
    """x used three times, once through itself."""
    proto = model(
        "three (double[N, 3] x) => (double[N, 3] y) { a = Mul(x, x) b = Tanh(x) c = Add(a, b) y = Sub(c, x) }"
    )
    x, g = RNG.normal(size=(2, 2, 3))
    expected = g * (2 * x + 1 - np.tanh(x) ** 2 - 1)
    np.testing.assert_allclose(run(differentiate(proto), x=x, grad_y=g)["grad_x"], expected, rtol=0, atol=1e-14)


TWO = model("two (double[N, 3] a, double[N, 3] b) => (double[N, 3] s, double[N, 3] p) { s = Exp(a) p = Mul(a, b) }")


def test_several_outputs_add_up_and_an_unused_input_gets_zeros() -> None:
    """grad_x is the sum over the outputs in `of`; whatever no output of `of` depends on gets zeros in its shape."""
    a, b, g, h = RNG.normal(size=(4, 2, 3))
    both = run(differentiate(TWO), a=a, b=b, grad_s=g, grad_p=h)
    np.testing.assert_allclose(both["grad_a"], g * np.exp(a) + h * b, rtol=0, atol=1e-14)
    np.testing.assert_allclose(both["grad_b"], h * a, rtol=0, atol=1e-14)
    first = run(differentiate(TWO, of=["s"]), a=a, b=b, grad_s=g)
    np.testing.assert_array_equal(first["grad_b"], np.zeros((2, 3)))
    assert set(first) == {"s", "p", "grad_a", "grad_b"}
    assert [v.name for v in differentiate(TWO, of=["p"], wrt=["b"]).graph.output] == ["s", "p", "grad_b"]


def test_an_output_that_is_an_input_passes_its_cotangent_on() -> None:
    """y = x; and x as an intermediate result that is an output too."""
    proto = model("both (double[N, 3] x) => (double[N, 3] h, double[N, 3] y) { h = Tanh(x) y = Exp(h) }")
    x, g, k = RNG.normal(size=(3, 2, 3))
    out = run(differentiate(proto), x=x, grad_h=g, grad_y=k)
    h = np.tanh(x)
    np.testing.assert_allclose(out["grad_x"], (g + k * np.exp(h)) * (1 - h * h), rtol=0, atol=1e-14)


def test_constant_parts_and_indices_are_not_differentiated() -> None:
    """ArgMax and Shape end a way; what depends on the input through them alone has no gradient."""
    proto = model(
        """ends (double[N, 3] x) => (double[N, 3] y)
        { k = ArgMax<axis = 1>(x) f = Cast<to = 11>(k) y = Mul(x, f) }"""
    )
    x, g = RNG.normal(size=(2, 4, 3))
    expected = g * x.argmax(1)[:, None]
    np.testing.assert_allclose(run(differentiate(proto), x=x, grad_y=g)["grad_x"], expected, rtol=0, atol=1e-14)
    found = coverage(proto)
    assert found.zero == {"ArgMax": 1}
    assert found.rules == {"Mul": 1}
    assert found.complete


GAPPY = model(
    """
    gappy (double[N, 2, 4, 4] x) => (double[N, 2, 4, 4] y)
    {
        a = Sin(x) b = Sin(a) c = Det(b) d = Unsqueeze(c, tail)
        e = Add(b, d) f = ScatterElements<reduction = "max">(e, place, value) y = Cos(f)
    }""",
    tail=np.asarray([2, 3]),
    place=np.zeros((1, 1, 1, 1), np.int64),
    value=np.zeros((1, 1, 1, 1)),
)


def test_all_gaps_come_in_one_error_with_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Operators without a rule, each with how often and where; and a refused case that lies behind one."""
    for op in ("Sin", "Cos", "Det"):
        monkeypatch.delitem(DEFAULT, op)
    with pytest.raises(NotDifferentiable) as caught:
        differentiate(GAPPY)
    assert {gap.op for gap in caught.value.gaps} == {"Sin", "Cos", "Det", "ScatterElements"}
    assert len(caught.value.gaps) == 5
    text = str(caught.value)
    assert "4 operators without" in text
    assert "Sin x2" in text
    assert "Det x1" in text
    found = coverage(GAPPY)
    assert {gap.op for gap in found.gaps} == {"Sin", "Cos", "Det"}
    assert not found.complete
    assert found.rules == {"Add": 1, "Unsqueeze": 1, "ScatterElements": 1}


def test_cases_that_a_rule_refuses_are_collected_too() -> None:
    """Two different refusals in one model, in one error, with their reasons."""
    proto = model(
        """refused (double[3, 2] x) => (double[3, 2] y, double[3, 2] z) {
            y = ScatterElements<reduction = "mul">(x, place, value)
            z = ScatterElements(x, place, value)
        }""",
        place=np.zeros((2, 1), np.int64),
        value=np.zeros((2, 1)),
    )
    with pytest.raises(NotDifferentiable) as caught:
        differentiate(proto)
    assert {gap.why.partition(",")[0] for gap in caught.value.gaps} == {"reduction mul", "indices that repeat"}


def test_a_gap_that_is_not_on_the_way_does_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    """An operator without a rule beside the way from input to output."""
    monkeypatch.delitem(DEFAULT, "Sin")
    proto = model("beside (double[N, 3] x, double[N, 3] k) => (double[N, 3] y) { s = Sin(k) y = Mul(x, s) }")
    x, k, g = RNG.normal(size=(3, 2, 3))
    out = run(differentiate(proto, wrt=["x"]), x=x, k=k, grad_y=g)["grad_x"]
    np.testing.assert_allclose(out, g * np.sin(k), rtol=0, atol=1e-14)


def test_operators_of_other_domains_are_gaps_by_their_full_name() -> None:
    """com.microsoft's Gelu is not ONNX's."""
    proto = model("other (float[N, 3] x) => (float[N, 3] y) { y = com.microsoft.Gelu(x) }")
    proto.opset_import.append(onnx.helper.make_opsetid("com.microsoft", 1))
    proto.graph.output[0].CopyFrom(onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["N", 3]))
    with pytest.raises(NotDifferentiable, match=r"com\.microsoft\.Gelu x1"):
        differentiate(proto)


def test_unknown_names_and_models_without_floats_are_refused() -> None:
    """`of` and `wrt` that the model does not have; nothing to differentiate."""
    with pytest.raises(UsageError, match="'q'"):
        differentiate(TWO, of=["q"])
    with pytest.raises(UsageError, match="'q'"):
        differentiate(TWO, wrt=["q"])
    ints = model("ints (int64[N] x) => (int64[N] y) { y = Add(x, x) }")
    with pytest.raises(InvalidModel, match="no float"):
        differentiate(ints)


def test_a_chain_of_twenty_thousand_nodes_needs_no_recursion() -> None:
    """Twenty thousand times x -> -x."""
    length = 20_000
    nodes = [onnx.helper.make_node("Neg", [f"v{i}"], [f"v{i + 1}"]) for i in range(length)]
    make = onnx.helper.make_tensor_value_info
    ends = [make(name, onnx.TensorProto.FLOAT, ["N", 2]) for name in ("v0", f"v{length}")]
    graph = onnx.helper.make_graph(nodes, "chain", ends[:1], ends[1:])
    proto = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=10)
    backward = differentiate(proto)
    assert sum(node.op_type == "Neg" for node in backward.graph.node) == 2 * length


def test_names_that_we_would_use_may_be_taken() -> None:
    """A model with its own `grad_x` inside."""
    proto = model("taken (double[N, 3] x) => (double[N, 3] y) { grad_x = Tanh(x) y = Exp(grad_x) }")
    x, g = RNG.normal(size=(2, 2, 3))
    out = run(differentiate(proto), x=x, grad_y=g)
    h = np.tanh(x)
    np.testing.assert_allclose(out["grad_x"], g * np.exp(h) * (1 - h * h), rtol=0, atol=1e-14)


def test_weights_and_values_named_like_a_cotangent_make_way() -> None:
    """A weight called `grad_y`, a value called `grad_x`."""
    proto = model(
        "taken (double[N, 3] x) => (double[N, 3] y) { grad_x = Tanh(x) y = Mul(grad_x, grad_y) }", grad_y=np.arange(3.0)
    )
    x, g = RNG.normal(size=(2, 2, 3))
    out = run(differentiate(proto), x=x, grad_y=g)
    np.testing.assert_allclose(out["grad_x"], g * np.arange(3.0) * (1 - np.tanh(x) ** 2), rtol=0, atol=1e-14)


def test_second_derivatives_come_from_differentiating_twice() -> None:
    """The Hessian of a sum of exp(x) is exp(x) on the diagonal; clashing names are an error, renamed ones are not."""
    once = differentiate(model("square (double[N, 3] x) => (double[N, 3] y) { y = Exp(x) }"))
    with pytest.raises(UsageError, match="rename it"):
        differentiate(once)
    renamed = onnx.compose.add_prefix(once, "first_")
    twice = differentiate(renamed, of=["first_grad_x"], wrt=["first_x"])
    x, g, h = RNG.normal(size=(3, 2, 3))
    out = run(twice, first_x=x, first_grad_y=g, grad_first_grad_x=h)
    np.testing.assert_allclose(out["grad_first_x"], g * h * np.exp(x), rtol=0, atol=1e-14)


def test_the_given_model_is_not_changed() -> None:
    """Neither a proto nor an onnx-ir model."""
    before = NET.SerializeToString(deterministic=True)
    theirs = ir.from_proto(NET)
    differentiate(NET)
    differentiate(theirs)
    coverage(NET)
    assert NET.SerializeToString(deterministic=True) == before
    assert ir.to_proto(theirs).SerializeToString(deterministic=True) == ir.to_proto(
        ir.from_proto(NET)
    ).SerializeToString(deterministic=True)


def test_a_backward_slice_that_starts_before_the_beginning_is_read_as_onnx_says() -> None:
    """ONNX clamps such a start to the first element; ONNX Runtime does, the evaluator and NumPy do not."""
    proto = model(
        "early (double[N, 3] x) => (double[N, 1] y) { y = Slice(x, s, e, a, t) }",
        **{name: np.asarray([value]) for name, value in {"s": -9, "e": -99, "a": 1, "t": -1}.items()},
    )
    x = RNG.normal(size=(2, 3))
    out = OnnxRuntimeExecutor(differentiate(proto), threads=1)({"x": x, "grad_y": np.asarray([[2.0], [3.0]])})
    np.testing.assert_array_equal(out["y"], x[:, :1])
    np.testing.assert_array_equal(out["grad_x"], [[2, 0, 0], [3, 0, 0]])


def test_a_pool_whose_size_runtimes_and_the_opset_disagree_on_is_refused() -> None:
    """ceil_mode before opset 22 counts a last window that lies behind the image."""
    body = """odd (double[N, 1, 2, 2] x) => (double[N, 1, H, W] y)
    { y = MaxPool<kernel_shape = [1, 1], strides = [2, 2], ceil_mode = 1>(x) }"""
    with pytest.raises(NotDifferentiable, match="last window behind the image"):
        differentiate(model(body))
    out = run(differentiate(model(body, opset=22)), x=np.ones((1, 1, 2, 2)), grad_y=np.full((1, 1, 1, 1), 3.0))
    np.testing.assert_array_equal(out["grad_x"], [[[[3, 0], [0, 0]]]])


@pytest.mark.parametrize("dims", ["NM", "??"])
def test_rows_that_may_have_been_broadcast_are_refused_and_not_guessed(dims: str) -> None:
    """Two inputs with batches of different names, or of none: whether one of them is 1 is not known before run time."""
    a, b = dims
    proto = model(f"unknown (double[{a}, 3] a, double[{b}, 3] b) => (double[K, 3] y) {{ y = Mul(a, b) }}")
    with pytest.raises(NotDifferentiable, match="Incompatible dimensions"):
        differentiate(proto)


# Branches that must not be dropped: what is not known to end a derivative is a gap.
BRANCHES = {
    "an operator of another domain, of a type that nobody knows": (
        '["" : 18, "com.example" : 1]',
        "b = com.example.Gelu(a) y = Add(a, b)",
        "com.example.Gelu",
    ),
    "a namesake of an operator without gradient": (
        '["" : 18, "com.example" : 1]',
        "b = com.example.Round(a) y = Add(a, b)",
        "com.example.Round",
    ),
    "something done to a quantised value": (
        '["" : 18]',
        """one = Constant<value_float = 0.1>() zero = Constant<value = int8 {0}>()
        q = QuantizeLinear(a, one, zero) r = Identity(q) b = DequantizeLinear(r, one, zero) y = Add(a, b)""",
        "Identity",
    ),
    "a quantised value read as a whole number": (
        '["" : 18]',
        """one = Constant<value_float = 0.1>() zero = Constant<value = int8 {0}>()
        q = QuantizeLinear(a, one, zero) b = Cast<to = 1>(q) y = Add(a, b)""",
        "Cast",
    ),
    "whole numbers that an operator without a rule gives": (
        '["" : 18]',
        """one = Constant<value_float = 0.1>() zero = Constant<value = uint8 {0}>() q, s, z = DynamicQuantizeLinear(a)
        r = Identity(q) b = DequantizeLinear(r, one, zero) y = Add(a, b)""",
        "DynamicQuantizeLinear",
    ),
    "a branch that reads a value from outside": (
        '["" : 18]',
        """total = ReduceSum<keepdims = 0>(a) zero = Constant<value_float = 0.0>() yes = Greater(total, zero)
        b = If(yes) <then_branch = t () => (float[N, 3] s) { s = Mul(a, a) },
                     else_branch = e () => (float[N, 3] r) { r = Neg(a) }> y = Add(a, b)""",
        "If",
    ),
}


@pytest.mark.parametrize("what", BRANCHES)
def test_no_branch_is_dropped(what: str) -> None:
    """A gradient without it would look exactly like a right one."""
    opsets, body, op = BRANCHES[what]
    proto = onnx.parser.parse_model(
        f"<ir_version: 8, opset_import: {opsets}> g (float[N, 3] x) => (float[N, 3] y) {{ a = Tanh(x) {body} }}"
    )
    with pytest.raises(NotDifferentiable) as caught:
        differentiate(proto)
    assert op in {gap.op for gap in caught.value.gaps}
    assert op in {gap.op for gap in coverage(proto).gaps}


@pytest.mark.parametrize("op", ["Tanh", "BatchNormalization"])
def test_weights_that_are_computed_from_constants_get_a_copy_too(op: str) -> None:
    """As nets with standardised weights have them: the way back has an initializer of its own, and not the result."""
    size = 600  # more elements than what tells a shape ever has
    more = "BatchNormalization<training_mode = 1>(w0, s, b, m, v)" if op == "BatchNormalization" else "Tanh(w0)"
    outputs = "w, m2, v2" if op == "BatchNormalization" else "w"
    proto = model(
        f"net (float[N, {size}] x) => (float[N, {size}] y) {{ {outputs} = {more} y = MatMul(x, w) }}",
        w0=RNG.normal(size=(size, size)).astype(np.float32),
        **{name: np.ones(size, np.float32) for name in "sbmv"},
    )
    made = differentiate(proto)
    (w,) = [node.input[1] for node in made.graph.node if node.op_type == "MatMul" and node.output[0] == "y"]
    (back,) = [node for node in made.graph.node if node.op_type == "MatMul" and node.output[0] != "y"]
    assert w not in back.input
    assert back.input[1] in {tensor.name for tensor in made.graph.initializer}


def test_a_constant_weight_that_cannot_be_computed_is_refused() -> None:
    """Feeding both directions with it is what OpenVINO gets wrong."""
    proto = model(
        "net (float[N, 600] x) => (float[N, 600] y) { w = Sinh(w0) y = MatMul(x, w) }",
        w0=RNG.normal(size=(600, 600)).astype(np.float32),
    )
    with pytest.raises(NotDifferentiable, match="fold the constants"):
        differentiate(proto)
