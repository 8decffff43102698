"""Every gradient rule against laws that do not know how it was written.

The first law: the pull-back is the adjoint of the derivative, <ȳ, J v> = <Jᵀ ȳ, v>, with J v taken from forward values
alone. The samples are in `samples/`; `test_node_cases.py` takes ONNX's own node cases instead.
"""

from __future__ import annotations

from collections import Counter
from functools import cache

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from conformance.samples import SAMPLES
from conformance.samples.pool import TIED, tie_gap
from conformance.samples.sample import Const, Sample, adjoint_gap

from onnxplain.adapters.gradient.body import has_body
from onnxplain.adapters.gradient.classifier import gradient_model
from onnxplain.adapters.gradient.differentiate import differentiate
from onnxplain.adapters.gradient.registry import ALLOWED, DEFAULT, EXPANSIONS, REFUSED
from onnxplain.adapters.gradient.sweep import active_values, gaps
from onnxplain.engine.executors.onnxruntime import OnnxRuntimeExecutor
from onnxplain.engine.executors.reference import ReferenceExecutor

STRAIGHT = {"QuantizeLinear", "DequantizeLinear"}
NEWEST = onnx.defs.onnx_opset_version()
EPS32 = float(np.finfo(np.float32).eps)

SAMPLES_CLASSIFIER = onnx.parser.parse_model(
    """<ir_version: 10, opset_import: ["" : 18]>
    classifier (double[N, 3, 4] x) => (double[N, 12] z)
    { shape = Constant<value_ints = [-1, 12]>() h = Reshape(x, shape) n = Neg(h) c = Less(h, n) z = Where(c, h, n) }"""
)

# What samples, whose whole numbers are constant, cannot show: indices that only the run knows.
RUN_TIME = onnx.parser.parse_model(
    """<ir_version: 10, opset_import: ["" : 18]> hot (double[N, 3] x, double[2] v) => (double[N, 3] y)
    { i = ArgMax<axis = 1, keepdims = 0>(x) depth = Constant<value_int = 3>() y = OneHot(i, depth, v) }"""
)

every_sample = pytest.mark.parametrize("sample", SAMPLES, ids=lambda sample: sample.id)


@cache
def symbolic_gradient(sample: Sample) -> onnx.ModelProto:
    """The sample in float32, with a free batch where it allows one, differentiated."""
    return differentiate(sample.model(np.float32, symbolic=True), wrt=[f"x{i}" for i in sample.wanted])


def test_every_rule_has_a_sample_and_every_sample_its_own_name() -> None:
    """No sample, no rule. (A derivative that goes straight through is none: see `test_quantize.py` for those.)"""
    sampled = {sample.op for sample in SAMPLES}
    ours = set(DEFAULT) | set(EXPANSIONS)
    assert ours - STRAIGHT <= sampled
    assert all(has_body("", name, NEWEST) for name in sampled - ours)
    assert max(Counter(sample.id for sample in SAMPLES).values()) == 1


@pytest.mark.parametrize("kind", REFUSED)
def test_every_operator_that_is_refused_is_one_of_onnx_and_a_gap_for_its_own_reason(kind: str) -> None:
    """On a way from the input to the output, whatever types and attributes it has there."""
    domain, _, op_type = kind.rpartition(".")
    assert onnx.defs.has(op_type, domain) or domain == "com.microsoft"
    x = ir.val("x", ir.DataType.FLOAT, ["N", 3])
    node = ir.node(op_type, [x], domain=domain)
    active = active_values([node], [x], node.outputs)
    assert active == {x, *node.outputs}
    (found,) = gaps([node], active)
    assert (found.op, found.why) == (kind, REFUSED[kind])


@every_sample
def test_the_pull_back_is_the_adjoint_of_the_derivative(sample: Sample) -> None:
    """<ȳ, J v> = <Jᵀ ȳ, v> in float64."""
    assert adjoint_gap(sample) < sample.tolerance


@pytest.mark.parametrize("sample", [s for s in SAMPLES if s.free], ids=lambda sample: sample.id)
def test_the_pull_back_is_the_adjoint_with_a_free_batch(sample: Sample) -> None:
    """The same law for the graph that is built when the leading dimension is only a name."""
    assert adjoint_gap(sample, symbolic=True) < sample.tolerance


@pytest.mark.parametrize("attributes", TIED, ids=str)
def test_among_equal_maxima_the_first_takes_all(attributes: dict) -> None:
    """PyTorch's choice, exactly, on data as a Relu leaves it."""
    assert tie_gap(attributes) == 0


@every_sample
def test_a_differentiated_model_is_one_that_onnx_accepts(sample: Sample) -> None:
    """In strict mode, shapes inferred; and the forward node is as it was."""
    model = symbolic_gradient(sample)
    onnx.checker.check_model(model, full_check=True)
    assert model.graph.node[0].op_type == sample.op or sample.op == "Identity"


def test_rules_and_objectives_emit_exactly_the_allowed_operators() -> None:
    """Nothing else is emitted, and nothing is allowed that no sample emits and so no runtime was seen to run."""
    models = gradient_model(SAMPLES_CLASSIFIER), differentiate(RUN_TIME, wrt=["v"])
    emitted = {node.op_type for made in models for node in made.graph.node} - {"ArgMax"}
    for sample in SAMPLES:
        # masks have another form in float64
        double = differentiate(sample.model(), wrt=[f"x{i}" for i in sample.wanted])
        for forward, *backward in (symbolic_gradient(sample).graph.node, double.graph.node):
            own = set() if forward.op_type == sample.op else {forward.op_type}
            emitted |= {node.op_type for node in backward} | own
    assert emitted == ALLOWED


@every_sample
def test_onnx_runtime_gives_the_gradient_of_float64_and_the_forward_values_bit_for_bit(sample: Sample) -> None:
    """In float32: outputs as without the backward half; gradients at float noise.

    A gradient is a sum of n products, each with a few roundings on the way: n · 8 eps of the sum of their magnitudes
    at the worst, √n of that in practice. The samples have n ≤ 200, and cancellation up to ten: 64 eps of the largest
    element is what the largest of them needs.
    """
    model, feeds = symbolic_gradient(sample), sample.feeds(np.float32)
    forward = OnnxRuntimeExecutor(sample.model(np.float32, symbolic=True), threads=1, optimise=False)
    backward = OnnxRuntimeExecutor(model, threads=1, optimise=False)
    exact = ReferenceExecutor(differentiate(sample.model(), wrt=[f"x{i}" for i in sample.wanted]))
    plain = forward(feeds)
    rng = np.random.default_rng(7)
    cotangents = {f"grad_{name}": rng.uniform(-1, 1, y.shape).astype(y.dtype) for name, y in plain.items()}
    out = backward({**feeds, **cotangents})
    for name, y in plain.items():
        np.testing.assert_array_equal(out[name], y)
    precise = exact({**sample.feeds(), **{name: g.astype(np.float64) for name, g in cotangents.items()}})
    for i in sample.wanted:
        got, want = out[f"grad_x{i}"], precise[f"grad_x{i}"]
        np.testing.assert_allclose(got, want, rtol=0, atol=64 * EPS32 * np.abs(want).max())


TINY = float(np.finfo(np.float32).smallest_subnormal)
EDGES = [  # operator, bounds, and where its slope in float32 jumps
    ("Relu", (), 0.0),
    ("Clip", (0.0, 6.0), 0.0),
    ("Clip", (0.0, 6.0), 6.0),
    ("Clip", (-0.1, 1e-7), 1e-7),
    ("Clip", (-1e30, 3.0), -1e30),
    ("Clip", (-1.0, 1e-25), 1e-25),
    ("Clip", (-1.0, 0.0), -1.0),
    ("Clip", (-1.0, 0.0), 0.0),
    ("Clip", (0.0, TINY), 0.0),
    ("Clip", (0.0, 2 * TINY), 2 * TINY),
    ("Clip", (-3e38, 3e38), 3e38),
    ("Clip", (6.0, 6.0), 6.0),
    ("Clip", (6.0, 5.0), 5.0),
]


@pytest.mark.parametrize(("op", "bounds", "edge"), EDGES, ids=str)
def test_masks_are_exact_next_to_a_kink_in_float32(op: str, bounds: tuple[float, ...], edge: float) -> None:
    """One float away from a bound, and at it: the slope is 1 strictly inside, 0 elsewhere, whatever makes the mask."""
    low, high = (*bounds, 0.0, np.inf)[:2] if bounds else (0.0, np.inf)
    near = np.asarray(
        [edge, np.nextafter(np.float32(edge), -np.inf), np.nextafter(np.float32(edge), np.inf)], np.float32
    )
    far = [edge - 1, edge + 1, 1e38, -1e38, 1e-30, -1e-30, TINY, -TINY, 0.0]
    x = np.concatenate([near, np.asarray(far, np.float32)])[None]
    for picture in (x, np.repeat(x[:, None, :, None], 16, axis=1)):
        constants = [Const(np.asarray(b)) for b in bounds]
        model = differentiate(Sample(op, (picture, *constants), free=()).model(np.float32))
        if picture.ndim == 4:
            model = between_convolutions(model)
        g = np.full(picture.shape, 3.0, np.float32)
        for optimise in (False, True):
            out = OnnxRuntimeExecutor(model, threads=1, optimise=optimise)({"x0": picture, "grad_y0": g})["grad_x0"]
            inside = (picture > np.float32(low)) & (picture < np.float32(high))
            np.testing.assert_array_equal(out, np.where(inside, g, 0))


def between_convolutions(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same with a convolution by 1 of each channel behind both inputs: what follows is in the blocked layout."""
    graph = model.graph
    one = onnx.numpy_helper.from_array(np.ones((16, 1, 1, 1), np.float32), "one")
    graph.initializer.append(one)
    for name in ("x0", "grad_y0"):
        for node in graph.node:
            node.input[:] = [f"blocked_{name}" if given == name else given for given in node.input]
        graph.node.insert(0, onnx.helper.make_node("Conv", [name, "one"], [f"blocked_{name}"], group=16))
    onnx.checker.check_model(model, full_check=True)
    return model


@every_sample
def test_no_weight_feeds_both_directions(sample: Sample) -> None:
    """Some runtimes pack a weight once for two uses and get one of them wrong; small constants may be shared."""
    model = symbolic_gradient(sample)
    weights = {w.name for w in model.graph.initializer if np.prod(w.dims) > 1 and w.data_type == onnx.TensorProto.FLOAT}
    forward, *emitted = model.graph.node
    heavy = {"Conv", "ConvTranspose", "Gemm", "MatMul"}
    used = {name for node in emitted if node.op_type in heavy for name in node.input}
    if forward.op_type in heavy:
        assert not weights & set(forward.input) & used
