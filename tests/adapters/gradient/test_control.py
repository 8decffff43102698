"""Control flow whose course is known is written out, and the rest is a gap that says what to do."""

from __future__ import annotations

import numpy as np
import onnx
import onnx.parser
import pytest
from conformance.samples.sample import directions, slope

from onnxplain.adapters.gradient import control
from onnxplain.adapters.gradient.differentiate import coverage, differentiate
from onnxplain.adapters.gradient.prepare import prepare
from onnxplain.engine.executors.onnxruntime import OnnxRuntimeExecutor
from onnxplain.engine.executors.reference import ReferenceExecutor
from onnxplain.errors import NotDifferentiable

RNG = np.random.default_rng(6)


def model(body: str, opset: int = 18) -> onnx.ModelProto:
    return onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["" : {opset}]> {body}')


def adjoint_gap(proto: onnx.ModelProto, **feeds: np.ndarray) -> float:
    """How far <ȳ, J v> is from <Jᵀ ȳ, v>, with J v taken from the model as it was given."""
    forward = OnnxRuntimeExecutor(proto, threads=1, optimise=False)  # ONNX's own evaluator has half of Scan and Loop
    change = slope(forward, feeds, along := directions(RNG, feeds))
    cotangents = directions(RNG, change)
    back = ReferenceExecutor(differentiate(proto))({**feeds, **{f"grad_{y}": g for y, g in cotangents.items()}})
    there = sum((cotangents[y] * change[y]).sum() for y in change)
    here = sum((back[f"grad_{x}"] * v).sum() for x, v in along.items())
    return float(abs(there - here) / sum(np.abs(cotangents[y] * change[y]).sum() for y in change))


WRITTEN = {
    "If: then": """g (double[N, 3] x) => (double[N, 3] y) <bool yes = {1}, double[3] w = {1, 2, 3}>
        { h = Tanh(x)
          y = If(yes) <then_branch = t () => (double[N, 3] a) { a = Mul(h, w) },
                       else_branch = e () => (double[N, 3] b) { b = Neg(h) }> }""",
    "If: else, with a weight of its own": """g (double[N, 3] x) => (double[N, 3] y) <bool no = {0}>
        { h = Tanh(x)
          y = If(no) <then_branch = t () => (double[N, 3] a) { a = Neg(h) },
                      else_branch = e () => (double[N, 3] b) <double[3] w = {1, 2, 3}> { c = Mul(h, w) b = Add(c, x) }>
        }""",
    "If: a condition computed from shapes": """g (double[N, 1, 3] x) => (double[N, 3] y) <int64[1] one = {1}>
        { s = Shape <start = 1, end = 2> (x) c = Equal(s, one) h = Tanh(x)
          y = If(c) <then_branch = t () => (double[N, 3] a) { a = Squeeze(h, one) },
                     else_branch = e () => (double[N, 1, 3] b) { b = Identity(h) }> }""",
    "If: a branch that gives what it reads, twice": """g (double[N, 3] x) => (double[N, 3] y, double[N, 3] z)
        <bool yes = {1}>
        { h = Tanh(x)
          y, z = If(yes) <then_branch = t () => (double[N, 3] a, double[N, 3] b) { a = Identity(h) b = Identity(a) },
                          else_branch = e () => (double[N, 3] c, double[N, 3] d) { c = Neg(h) d = Neg(c) }> }""",
    "If in If": """g (double[N, 3] x) => (double[N, 3] y) <bool yes = {1}, bool no = {0}>
        { y = If(yes) <then_branch = t () => (double[N, 3] a)
            { k = Tanh(x)
              a = If(no) <then_branch = tt () => (double[N, 3] a1) { a1 = Neg(k) },
                          else_branch = te () => (double[N, 3] a2) { a2 = Mul(k, x) }> },
            else_branch = e () => (double[N, 3] b) { b = Neg(x) }> }""",
    "Scan: state and slices": """g (double[N, 3] x, double[4, N, 3] s) => (double[N, 3] y, double[4, N, 3] ys)
        { h = Tanh(x)
          y, ys = Scan <num_scan_inputs = 1, body = b (double[N, 3] a, double[N, 3] e) =>
            (double[N, 3] c, double[N, 3] d) { p = Tanh(e) q = Mul(a, p) c = Add(q, h) d = Mul(c, e) }> (x, s) }""",
    "Scan: axes and directions": """g (double[N, 3] x, double[N, 4, 3] s, double[4, N, 3] t)
        => (double[N, 3] y, double[N, 4, 3] ys, double[4, N, 3] zs)
        { y, ys, zs = Scan <num_scan_inputs = 2, scan_input_axes = [-2, 0], scan_input_directions = [1, 0],
            scan_output_axes = [1, -3], scan_output_directions = [0, 1],
            body = b (double[N, 3] a, double[N, 3] e, double[N, 3] f)
                => (double[N, 3] c, double[N, 3] d, double[N, 3] g)
            { p = Tanh(e) q = Mul(a, p) c = Add(q, f) d = Mul(c, e) g = Sub(c, f) }> (x, s, t) }""",
    "Scan: one slice, and no state": """g (double[1, N, 3] s) => (double[1, N, 3] ys)
        { ys = Scan <num_scan_inputs = 1, body = b (double[N, 3] e) => (double[N, 3] d) { d = Tanh(e) }> (s) }""",
    "Loop: a number of turns": """g (double[N, 3] x) => (double[N, 3] y, double[4, N, 3] ys) <int64 four = {4}>
        { h = Exp(x)
          y, ys = Loop (four, , x) <body = b (int64 i, bool c, double[N, 3] a)
                => (bool k, double[N, 3] d, double[N, 3] e)
            { k = Identity(c) f = Cast <to = 11> (i) p = Mul(a, f) q = Tanh(p) d = Add(q, h) e = Neg(d) }> }""",
    "Loop: a condition that is computed": """g (double[N, 3] x) => (double[N, 3] y) <bool yes = {1}, int64 three = {3}>
        { y = Loop ( , yes, x) <body = b (int64 i, bool c, double[N, 3] a) => (bool k, double[N, 3] d)
            { n = Mul(i, i) k = Less(n, three) d = Tanh(a) }> }""",
    "Loop: whichever comes first": """g (double[N, 3] x) => (double[N, 3] y)
        <bool yes = {1}, int64 two = {2}, int64 many = {1000000}>
        { y = Loop (many, yes, x) <body = b (int64 i, bool c, double[N, 3] a) => (bool k, double[N, 3] d)
            { k = Less(i, two) d = Tanh(a) }> }""",
    "Loop: not once": """g (double[N, 3] x) => (double[N, 3] y) <bool no = {0}, int64 two = {2}>
        { h = Exp(x)
          y = Loop (two, no, h) <body = b (int64 i, bool c, double[N, 3] a) => (bool k, double[N, 3] d)
            { k = Identity(c) d = Tanh(a) }> }""",
    "If in Loop, by the number of the turn": """g (double[N, 3] x) => (double[N, 3] y)
        <int64 three = {3}, int64 one = {1}>
        { y = Loop (three, , x) <body = b (int64 i, bool c, double[N, 3] a) => (bool k, double[N, 3] d)
            { k = Identity(c) e = Equal(i, one)
              d = If(e) <then_branch = t () => (double[N, 3] a1) { a1 = Exp(a) },
                         else_branch = f () => (double[N, 3] a2) <double w = {0.5}>
                           { z = Tanh(a) a2 = Mul(z, w) }> }> }""",
    "Loop in Loop": """g (double[N, 3] x) => (double[N, 3] y) <int64 two = {2}>
        { y = Loop (two, , x) <body = b (int64 i, bool c, double[N, 3] a) => (bool k, double[N, 3] d)
            { k = Identity(c)
              d = Loop (two, , a) <body = bb (int64 ii, bool cc, double[N, 3] aa) => (bool kk, double[N, 3] dd)
                { kk = Identity(cc) p = Tanh(aa) dd = Add(p, x) }> }> }""",
}


def point(proto: onnx.ModelProto) -> dict[str, np.ndarray]:
    """Values for the inputs, with a batch of two."""
    shapes = {v.name: [d.dim_value or 2 for d in v.type.tensor_type.shape.dim] for v in proto.graph.input}
    return {name: RNG.normal(size=shape) * 0.7 for name, shape in shapes.items()}


@pytest.mark.parametrize("what", WRITTEN)
def test_the_gradient_of_what_is_written_out_is_the_adjoint_of_the_derivative(what: str) -> None:
    """<ȳ, J v> = <Jᵀ ȳ, v>, with J v from the control flow itself; and nothing of it is left, nor of its inside."""
    proto = model(WRITTEN[what])
    assert adjoint_gap(proto, **point(proto)) < 1e-9
    made = differentiate(proto)
    assert not {"If", "Scan", "Loop"} & {node.op_type for node in made.graph.node}
    names = [name for node in made.graph.node for name in node.output]
    assert len(names) == len(set(names))
    assert coverage(proto).complete


@pytest.mark.parametrize("what", WRITTEN)
def test_what_is_written_out_gives_the_same_values_bit_for_bit(what: str) -> None:
    """On the runtime, in float64, which has the operators in question."""
    proto = model(WRITTEN[what])
    feeds = point(proto)
    made = differentiate(proto)
    zeros = {
        f"grad_{v.name}": np.zeros([d.dim_value or 2 for d in v.type.tensor_type.shape.dim]) for v in made.graph.output
    }
    wanted = {v.name for v in made.graph.input}
    before = OnnxRuntimeExecutor(proto, threads=1, optimise=False)(feeds)
    after = OnnxRuntimeExecutor(made, threads=1, optimise=False)(
        feeds | {name: z for name, z in zeros.items() if name in wanted}
    )
    for name, values in before.items():
        np.testing.assert_array_equal(after[name], values)


LEFT = {
    "its condition depends on the input": """g (double[N, 3] x) => (double[N, 3] y) <double zero = {0}>
        { s = ReduceSum <keepdims = 0> (x) c = Greater(s, zero)
          y = If(c) <then_branch = t () => (double[N, 3] a) { a = Neg(x) },
                     else_branch = e () => (double[N, 3] b) { b = Exp(x) }> }""",
    "how often it runs depends on the input": """g (double[N, 3] x) => (double[N, 3] y)
        { s = ReduceSum <keepdims = 0> (x) m = Cast <to = 7> (s)
          y = Loop (m, , x) <body = b (int64 i, bool c, double[N, 3] a) => (bool k, double[N, 3] d)
            { k = Identity(c) d = Tanh(a) }> }""",
    "when it ends depends on the input": """g (double[N, 3] x) => (double[N, 3] y)
        <int64 nine = {9}, bool yes = {1}, double zero = {0}>
        { y = Loop (nine, yes, x) <body = b (int64 i, bool c, double[N, 3] a) => (bool k, double[N, 3] d)
            { d = Sin(a) s = ReduceSum <keepdims = 0> (d) k = Greater(s, zero) }> }""",
    "it never ends": """g (double[N, 3] x) => (double[N, 3] y)
        { y = Loop ( , , x) <body = b (int64 i, bool c, double[N, 3] a) => (bool k, double[N, 3] d)
            { k = Identity(c) d = Tanh(a) }> }""",
    "the length of its sequence is not fixed": """g (double[N, 3] x) => (double[N, 3] ys)
        { ys = Scan <num_scan_inputs = 1, body = b (double[3] e) => (double[3] d) { d = Tanh(e) }> (x) }""",
    "1000000 turns of 2 nodes: more than": """g (double[N, 3] x) => (double[N, 3] y) <int64 many = {1000000}>
        { y = Loop (many, , x) <body = b (int64 i, bool c, double[N, 3] a) => (bool k, double[N, 3] d)
            { k = Identity(c) d = Tanh(a) }> }""",
    "it does not run once": """g (double[N, 3] x) => (double[M, N, 3] ys) <int64 none = {0}, bool yes = {1}>
        { ys = Loop (none, yes) <body = b (int64 i, bool c) => (bool k, double[N, 3] d)
            { k = Identity(c) d = Tanh(x) }> }""",
}


@pytest.mark.parametrize("why", LEFT)
def test_what_depends_on_the_data_is_a_gap_that_says_so(why: str) -> None:
    """And the graph is as it was: nothing half written."""
    proto = model(LEFT[why])
    with pytest.raises(NotDifferentiable, match=why):
        differentiate(proto)
    (found,) = coverage(proto).gaps
    assert found.why.startswith(why)
    left = prepare(proto).graph
    assert len(left) <= len(proto.graph.node)


def test_a_loop_that_would_become_too_long_is_given_up_on_the_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the end is only known turn by turn."""
    monkeypatch.setattr(control, "MOST_NODES", 20)
    with pytest.raises(NotDifferentiable, match="more than 20 in all"):
        differentiate(model(WRITTEN["Loop: a condition that is computed"].replace("three = {3}", "three = {300}")))


def test_a_long_loop_is_written_out_without_recursion() -> None:
    """1500 turns, more than Python's stack is deep; d/dx of x + 1500 * 0.5."""
    proto = model(
        """g (float[N] x) => (float[N] y) <int64 many = {1500}, float half = {0.5}>
        { y = Loop (many, , x) <body = b (int64 i, bool c, float[N] a) => (bool k, float[N] d)
            { k = Identity(c) d = Add(a, half) }> }"""
    )
    made = differentiate(proto)
    assert sum(node.op_type == "Add" for node in made.graph.node) == 1500
    out = OnnxRuntimeExecutor(made, threads=1)({"x": np.ones(2, np.float32), "grad_y": np.full(2, 3, np.float32)})
    np.testing.assert_array_equal(out["y"], [751, 751])
    np.testing.assert_array_equal(out["grad_x"], [3, 3])


def test_weights_of_a_body_are_not_copied_with_it() -> None:
    """Ten turns, one initializer."""
    proto = model(
        """g (double[N, 40] x) => (double[N, 40] y) <int64 ten = {10}>
        { y = Loop (ten, , x) <body = b (int64 i, bool c, double[N, 40] a) => (bool k, double[N, 40] d)
            { k = Identity(c) d = MatMul(a, w) }> }"""
    )
    body = proto.graph.node[0].attribute[0].g
    body.initializer.append(onnx.numpy_helper.from_array(RNG.normal(size=(40, 40)) / 8, "w"))
    assert sum(tuple(w.dims) == (40, 40) for w in differentiate(proto).graph.initializer) == 2  # and its transpose
    assert adjoint_gap(proto, x=RNG.normal(size=(2, 40))) < 1e-9
