"""Half precision in the graph: what is narrow, what comes of it, and that mistakes in it are found.

ONNX Runtime's CPU rounds too little, so numbers come from the twin that rounds (see `rounding`), but for the tests that
run the typed graph itself.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import pytest
import tiny
from conformance.samples import SAMPLES
from frameworks import framework, runtime
from onnx import TensorProto, numpy_helper
from rounding import in_dtype, rounding_twin, way_back_in_float32

torch = framework("torch")

import torch_nets  # noqa: E402
from torch import nn  # noqa: E402

import onnxplain as ox  # noqa: E402
from onnxplain.adapters.gradient import narrow, precision  # noqa: E402
from onnxplain.adapters.gradient.classifier import (  # noqa: E402
    forward_model,
    gradient_graph,
    gradient_model,
    logits_model,
)
from onnxplain.adapters.gradient.differentiate import differentiate  # noqa: E402
from onnxplain.adapters.gradient.objective import COTANGENT  # noqa: E402
from onnxplain.adapters.gradient.portability import unsupported  # noqa: E402
from onnxplain.adapters.gradient.precision import HALVES, PRECISION_KEY, in_precision  # noqa: E402
from onnxplain.adapters.gradient.rules.deeplift import DEEPLIFT  # noqa: E402
from onnxplain.adapters.onnx_file import properties  # noqa: E402
from onnxplain.engine.executors.onnxruntime import OnnxRuntimeExecutor  # noqa: E402
from onnxplain.engine.executors.reference import ReferenceExecutor  # noqa: E402
from onnxplain.engine.executors.setup import Precision  # noqa: E402
from onnxplain.engine.requests import Kind  # noqa: E402
from onnxplain.errors import UsageError  # noqa: E402

Array = np.ndarray
SHAPE = (3, 16, 16)
FP16, BF16 = Precision.FP16, Precision.BF16
UNIT = {FP16: 2.0**-11, BF16: 2.0**-8}  # the largest relative error of a rounding
FLOAT, TYPES = TensorProto.FLOAT, (TensorProto.FLOAT16, TensorProto.BFLOAT16)
both = pytest.mark.parametrize("wanted", [FP16, BF16])


@cache
def classifier(name: str) -> onnx.ModelProto:
    net = torch_nets.build(torch_nets.SMALL[name]).float()
    return torch_nets.to_onnx(net, SHAPE, dynamo=name == "transformer", dtype=torch.float32)


def feeds(kind: Kind = Kind.LOGIT, rows: int = 2, seed: int = 0) -> dict[str, Array]:
    return {
        "input": np.random.default_rng(seed).normal(size=(rows, *SHAPE)).astype(np.float32),
        "onnxplain_target": np.eye(10, dtype=np.float32)[:rows],
        "onnxplain_objective": np.full(rows, kind, np.int64),
    }


def run(model: onnx.ModelProto, given: dict[str, Array]) -> dict[str, Array]:
    with OnnxRuntimeExecutor(rounding_twin(model), threads=1) as executor:
        return {name: array.astype(np.float64) for name, array in executor(given).items()}


def turned(mine: Array, theirs: Array) -> float:
    """1 - cosine, of the row where it is largest; 0 where both are zero."""
    a, b = (x.reshape(len(x), -1) for x in (mine, theirs))
    lengths = np.sqrt((a * a).sum(1) * (b * b).sum(1))
    assert (a.any(1) == b.any(1)).all()
    return float(((lengths - (a * b).sum(1)) / np.where(lengths == 0, 1, lengths)).max())


def types_of(model: onnx.ModelProto) -> dict[str, int]:
    inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True)
    values = [*inferred.graph.value_info, *inferred.graph.input, *inferred.graph.output]
    types = {value.name: value.type.tensor_type.elem_type for value in values}
    return types | {tensor.name: tensor.data_type for tensor in model.graph.initializer}


def narrow_operators(model: onnx.ModelProto) -> Counter[str]:
    """How many nodes of each operator read or make half precision, casts aside."""
    types = types_of(model)
    nodes = [node for node in model.graph.node if node.op_type != "Cast"]
    return Counter(n.op_type for n in nodes if any(types.get(name) in TYPES for name in (*n.input, *n.output)))


# The graph


@both
@pytest.mark.parametrize("name", torch_nets.SMALL)
def test_the_graph_is_sound_and_its_seams_are_float32(name: str, wanted: Precision) -> None:
    """Strictly checked; types as before at its ends; heavy operators narrow, reductions wide; no cast too many."""
    before = gradient_model(classifier(name), layers="auto", bias_gradients=True)
    after = in_precision(before, wanted)
    onnx.checker.check_model(after, full_check=True)
    for ends in ("input", "output"):
        assert [(v.name, v.type) for v in getattr(after.graph, ends)] == [
            (v.name, v.type) for v in getattr(before.graph, ends)
        ]
    types, wide = types_of(after), Counter(node.op_type for node in after.graph.node)
    found = narrow_operators(after)
    wide.subtract(found)
    assert not set(found) & {"Softmax", "LogSoftmax", "Exp", "Erf", "Sqrt", "Pow"}
    assert not set(found) & {"GlobalAveragePool", "BatchNormalization", "LayerNormalization"}
    assert not any(op.startswith("Reduce") for op in found)
    assert found["Conv"] >= 1
    assert wide["Conv"] == 0
    assert (wide["ConvTranspose"] == 0) or wanted is BF16  # CUDA has none in bfloat16
    assert wide["MatMul"] == 6  # the sums over classes in the objective
    casts = [(node.input[0], types[node.output[0]]) for node in after.graph.node if node.op_type == "Cast"]
    assert len(set(casts)) == len(casts)
    made = {node.output[0]: node for node in after.graph.node}
    for name_, _ in casts:
        chain = made.get(name_)
        assert chain is None or chain.op_type != "Cast" or types[chain.input[0]] == TensorProto.BOOL


@both
@pytest.mark.parametrize("name", torch_nets.SMALL)
def test_runtimes_have_all_operators_in_that_type(name: str, wanted: Precision) -> None:
    """By the tables: all of them, but for MaxPool, of which CUDA has no version 22, the first of bfloat16."""
    after = ir.from_proto(in_precision(gradient_model(classifier(name)), wanted))
    lagging = {"MaxPool"} if wanted is BF16 else set()
    assert {left.op for left in unsupported(after, "cuda")} <= lagging
    assert not unsupported(after, "tensorrt")


@both
def test_whatever_rules_emit_can_be_converted(wanted: Precision) -> None:
    """The gradients of a fifth of the samples, strictly checked by `in_precision` itself."""
    for sample in SAMPLES[::5]:
        made = differentiate(sample.model(np.float32, symbolic=sample.free), wrt=[f"x{i}" for i in sample.wanted])
        assert properties(in_precision(made, wanted))[PRECISION_KEY] == wanted


def test_weights_are_halved() -> None:
    before = gradient_model(classifier("vgg"))
    after = in_precision(before, FP16)
    weights = [tensor for tensor in after.graph.initializer if np.prod(tensor.dims) > 64]
    assert {tensor.data_type for tensor in weights} == {TensorProto.FLOAT16, FLOAT}
    (wide,) = [tensor for tensor in weights if tensor.data_type == FLOAT]  # of the layer that makes the logits
    assert sorted(wide.dims) == [10, 24]


@both
def test_the_forward_half_alone_and_that_of_the_gradient_model_are_the_same(wanted: Precision) -> None:
    given = {"input": feeds()["input"]}
    alone = in_precision(logits_model(classifier("vgg")), wanted)
    cut = in_precision(forward_model(gradient_model(classifier("vgg"))), wanted)
    assert narrow_operators(alone)["Conv"] == 4
    np.testing.assert_array_equal(run(alone, given)["logits"], run(cut, given)["logits"])
    np.testing.assert_array_equal(
        run(alone, given)["logits"], run(in_precision(gradient_model(classifier("vgg")), wanted), feeds())["logits"]
    )


def test_what_it_does_to_models_that_it_need_not_change() -> None:
    """Nothing for float32, nothing a second time, and the model that was given stays as it was."""
    before = gradient_model(classifier("plain"))
    copy = onnx.ModelProto()
    copy.CopyFrom(before)
    after = in_precision(before, FP16)
    assert before == copy
    assert in_precision(before, Precision.FP32) is before
    assert in_precision(before, Precision.TF32) is before
    assert in_precision(after, FP16) is after
    assert properties(after)[PRECISION_KEY] == "fp16"
    assert PRECISION_KEY not in properties(before)
    for other in (BF16, Precision.FP32, Precision.TF32):
        with pytest.raises(UsageError, match="computes in fp16"):
            in_precision(after, other)


def test_a_model_of_onnx_ir_stays_one() -> None:
    before = gradient_graph(classifier("plain"))
    after = in_precision(before, FP16)
    assert isinstance(after, ir.Model)
    assert PRECISION_KEY not in before.metadata_props
    proto = in_precision(gradient_model(classifier("plain")), FP16)
    np.testing.assert_array_equal(run(ir.to_proto(after), feeds())["gradient"], run(proto, feeds())["gradient"])


def test_weights_may_lie_in_files(tmp_path: Path) -> None:
    before = gradient_model(classifier("vgg"))
    want = run(in_precision(before, FP16), feeds())["gradient"]
    onnx.save(before, tmp_path / "g.onnx", save_as_external_data=True, location="w", size_threshold=0)
    outside = onnx.load(tmp_path / "g.onnx", load_external_data=False)
    after = in_precision(outside, FP16, folder=tmp_path)
    np.testing.assert_array_equal(run(after, feeds())["gradient"], want)


def test_a_file_in_half_precision_is_opened_as_any_other(tmp_path: Path) -> None:
    """Its gradient model and the forward half that is cut out of it."""
    after = in_precision(gradient_model(classifier("plain")), FP16)
    onnx.save(after, tmp_path / "g.onnx")
    x = feeds()["input"]
    with OnnxRuntimeExecutor(after, threads=1) as executor:
        want = executor(feeds())
    with ox.open(tmp_path / "g.onnx", precision="fp16", threads=1) as explainer:
        np.testing.assert_array_equal(explainer.gradients(x, target=[0, 1]).gradient, want["gradient"])
        np.testing.assert_array_equal(explainer.logits(x), want["logits"])


def test_models_that_have_no_such_form_are_refused() -> None:
    with pytest.raises(UsageError, match="multipliers"):
        in_precision(gradient_model(classifier("plain"), rules=DEEPLIFT), FP16)
    old = gradient_graph(classifier("plain"))
    for node in old.graph:
        for y in node.outputs:
            if y.name == COTANGENT:
                y.name = "of_another_name"
    with pytest.raises(UsageError, match="another version"):
        in_precision(old, FP16)


# Numbers


def whole_net() -> nn.Module:
    """A residual net of small whole numbers, which half precision computes without rounding: with ties and kinks."""
    first = nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.ReLU(), nn.MaxPool2d(3, 2, 1))
    body = nn.Sequential(nn.Conv2d(4, 4, 3, 1, 1), nn.ReLU6(), nn.Conv2d(4, 4, 1))
    net = nn.Sequential(
        *(first, torch_nets.Sum(body, nn.Identity(), nn.ReLU()), nn.AvgPool2d(2)),
        *(nn.Conv2d(4, 8, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10)),
    )
    draw = np.random.default_rng(8)
    with torch.no_grad():
        for parameter in net.parameters():
            values = draw.integers(-1, 2, size=parameter.shape) * (draw.random(parameter.shape) < 0.8)
            parameter.copy_(torch.tensor(values))
    return net.double().eval().requires_grad_(False)


def whole_images() -> Array:
    return np.random.default_rng(2).integers(-1, 2, size=(4, *SHAPE)).astype(np.float32)


def exactness(wanted: Precision) -> None:
    """Assert that, where nothing has to be rounded, the gradient is that of PyTorch in float64, to the last bit."""
    net = whole_net()
    x = torch.tensor(whole_images().astype(np.float64), requires_grad=True)
    targets = np.arange(4)
    z = net(x)
    (want,) = torch.autograd.grad(z[range(4), targets].sum(), x)
    assert all(row.any() for row in want)
    model = in_precision(gradient_model(torch_nets.to_onnx(net.float(), SHAPE, dtype=torch.float32)), wanted)
    refuse_attributes_beyond(model)
    out = run(
        model,
        {
            "input": whole_images(),
            "onnxplain_target": np.eye(10, dtype=np.float32)[targets],
            "onnxplain_objective": np.zeros(4, np.int64),
        },
    )
    np.testing.assert_array_equal(out["logits"], z.detach().numpy())
    np.testing.assert_array_equal(out["gradient"], want.numpy())


def refuse_attributes_beyond(model: onnx.ModelProto) -> None:
    """Assert that no node that computes in half precision has an attribute that it cannot hold."""
    types = types_of(model)
    for node in model.graph.node:
        for half in {types[name] for name in node.input if name} & set(TYPES):
            numbers = [a.f for a in node.attribute if a.type == onnx.AttributeProto.FLOAT]
            assert all(abs(number) <= float(ir.DataType(half).max) for number in numbers), node.op_type


def attributes(wanted: Precision) -> None:
    """The same of a net whose masks are HardSigmoids in float32."""
    before = gradient_model(classifier("vgg"))
    assert any(node.op_type == "HardSigmoid" for node in before.graph.node)
    refuse_attributes_beyond(in_precision(before, wanted))


@both
def test_no_attribute_is_beyond_the_type(wanted: Precision) -> None:
    attributes(wanted)


@both
def test_without_rounding_it_is_exact(wanted: Precision) -> None:
    exactness(wanted)


def flattened_limits(steps: int, wanted: Precision) -> float:
    """How far a gradient may turn by so many roundings.

    Each turns it by its unit u at the most, independently of the others: by u √n together, and 1 - cosine is half the
    square of that.
    """
    return steps * UNIT[wanted] ** 2 / 2


@both
@pytest.mark.parametrize("kind", [Kind.LOGIT, Kind.PROB])
@pytest.mark.parametrize("name", ["plain", "transformer"])
def test_smooth_nets_keep_their_gradient(name: str, kind: Kind, wanted: Precision) -> None:
    """All roundings together, both ways; "plain" has a Relu, of which none is near its kink for these images."""
    before = gradient_model(classifier(name))
    after = in_precision(before, wanted)
    steps = narrow_operators(after).total()
    want, got = run(before, feeds(kind)), run(after, feeds(kind))
    assert turned(got["gradient"], want["gradient"]) <= flattened_limits(steps, wanted)
    size = np.linalg.norm(got["gradient"]) / np.linalg.norm(want["gradient"])
    assert abs(size - 1) <= np.sqrt(steps) * UNIT[wanted]


@both
@pytest.mark.parametrize("name", torch_nets.SMALL)
def test_the_way_back_turns_the_gradient_by_its_roundings_alone(name: str, wanted: Precision) -> None:
    """Against a way back in float32 from the same rounded activations, so that no kink lies between the two."""
    before = gradient_model(classifier(name), layers="auto", bias_gradients=True)
    after = in_precision(before, wanted)
    steps = narrow_operators(after).total()
    given = feeds(Kind.LOGPROB)
    with way_back_in_float32():
        want, got = run(in_precision(before, wanted), given), run(after, given)
    for output in want:
        assert np.isfinite(got[output]).all()
        if output == "gradient" or output.startswith("activation_gradient"):
            assert turned(got[output], want[output]) <= flattened_limits(steps, wanted), output
            size = np.linalg.norm(got[output]) / np.linalg.norm(want[output])
            assert abs(size - 1) <= np.sqrt(steps) * UNIT[wanted], output
        if output.startswith("bias_gradient"):  # a difference of products
            assert turned(got[output], want[output]) <= 10 * flattened_limits(steps, wanted), output


@pytest.mark.parametrize("name", ["plain", "transformer"])
def test_float16_as_onnx_runtime_runs_it(name: str) -> None:
    """The typed graph itself, which its CPU computes more precisely than a device does."""
    before = gradient_model(classifier(name))
    after = in_precision(before, FP16)
    with OnnxRuntimeExecutor(before, threads=1) as single, OnnxRuntimeExecutor(after, threads=1) as half:
        want, got = single(feeds()), half(feeds())
    assert {array.dtype for array in got.values()} == {np.dtype(np.float32)}
    limit = flattened_limits(narrow_operators(after).total(), FP16)
    assert turned(got["gradient"].astype(float), want["gradient"].astype(float)) <= limit


@both
def test_the_reference_evaluator_agrees_with_the_twin(wanted: Precision) -> None:
    """It has all operators in both types, and products in their own precision where NumPy has them so."""
    after = in_precision(gradient_model(tiny.classifier()), wanted)
    x = np.random.default_rng(0).random((2, 3, 8, 8), np.float32)
    given = {"x": x, "onnxplain_target": np.eye(5, dtype=np.float32)[:2], "onnxplain_objective": np.ones(2, np.int64)}
    got, want = ReferenceExecutor(after)(given), run(after, given)
    assert turned(got["gradient"].astype(float), want["gradient"]) <= flattened_limits(100, wanted)


@both
@pytest.mark.parametrize("name", ["residual", "transformer"])
def test_openvino_runs_it(name: str, wanted: Precision) -> None:
    """Both types, with float32 for what the graph leaves in it."""
    ov = runtime("openvino", "openvino")
    after = in_precision(gradient_model(classifier(name)), wanted)
    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}
    core, given = ov.Core(), feeds()
    compiled = core.compile_model(core.read_model(after.SerializeToString()), "CPU", settings)
    values = compiled([given[next(n for n in port.get_names() if n in given)] for port in compiled.inputs])
    got = values[[y.name for y in after.graph.output].index("gradient")]
    assert got.dtype == np.float32
    assert turned(got.astype(float), run(after, given)["gradient"]) <= (1e-2 if wanted is FP16 else 0.1)


# The scale


def sure(margin: float) -> onnx.ModelProto:
    """The net "plain", one of whose logits is above the others by so much that their probabilities are next to 0."""
    proto = onnx.ModelProto()
    proto.CopyFrom(classifier("plain"))
    last = next(node for node in proto.graph.node if "logits" in node.output)
    bias = next(tensor for tensor in proto.graph.initializer if tensor.name == last.input[2])
    values = numpy_helper.to_array(bias).copy()
    values[5] += margin
    bias.CopyFrom(numpy_helper.from_array(values, bias.name))
    return proto


def probable(wanted: Precision) -> None:
    """Assert that the gradient of a probability of 1e-12 is as precise as another."""
    before = gradient_model(sure(30.0))
    after = in_precision(before, wanted)
    given = feeds(Kind.PROB)
    want, got = run(before, given), run(after, given)
    assert 0 < want["value"].max() < 1e-11
    # ∂p/∂u of p ~ e^-30 takes the rounding of the difference of two logits: a factor, for all of a row.
    assert turned(got["gradient"], want["gradient"]) <= flattened_limits(narrow_operators(after).total(), wanted)


@both
def test_small_cotangents_do_not_underflow(wanted: Precision) -> None:
    probable(wanted)


def test_without_the_scale_they_would(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "scale", lambda emit, cotangent: None)
    with pytest.raises(AssertionError), np.errstate(invalid="ignore"):
        probable(FP16)


@both
def test_a_row_without_a_cotangent_has_no_gradient(wanted: Precision) -> None:
    """Zero, and not NaN; and the rows beside it are what they are without it."""
    model = in_precision(gradient_model(classifier("residual"), layers="auto", bias_gradients=True), wanted)
    given = feeds(rows=3)
    given["onnxplain_target"][1] = 0
    got = run(model, given)
    others = run(model, {name: array[[0, 2]] for name, array in given.items()})
    for name in ("gradient", "activation_gradient_0", "bias_gradient_0", "bias_sum"):
        assert not got[name][1].any(), name
        np.testing.assert_allclose(got[name][[0, 2]], others[name], rtol=1e-5, atol=1e-12)


@pytest.mark.parametrize("factor", [1e-30, 1e-3, 1.0, 1e6, 1e30])
def test_the_gradient_is_proportional_to_the_target(factor: float) -> None:
    model = in_precision(gradient_model(classifier("residual")), FP16)
    given = feeds()
    want = run(model, given)["gradient"] * factor
    given["onnxplain_target"] = (given["onnxplain_target"] * factor).astype(np.float32)
    np.testing.assert_allclose(run(model, given)["gradient"], want, rtol=1e-6, atol=1e-7 * np.abs(want).max())


# Constants


def one_conv(weight: float, *rest: str) -> onnx.ModelProto:
    """y = w x, and what is done with that, by a 1x1 convolution for each of ten classes."""
    body = " ".join(rest) or "h = Identity(a)"
    proto = onnx.parser.parse_model(
        f"""<ir_version: 10, opset_import: ["" : 18]> net (float[N, 10, 2, 2] x) => (float[N, 10] y)
        {{ a = Conv(x, w) {body} r = Relu(h) p = GlobalAveragePool(r) y = Flatten(p) }}"""
    )
    w = np.eye(10, dtype=np.float32).reshape(10, 10, 1, 1) * np.float32(weight)
    proto.graph.initializer.append(numpy_helper.from_array(w, "w"))
    return proto


def one_conv_feeds(value: float = 1.0) -> dict[str, Array]:
    return {
        "x": np.full((1, 10, 2, 2), value, np.float32),
        "onnxplain_target": np.eye(10, dtype=np.float32)[:1],
        "onnxplain_objective": np.zeros(1, np.int64),
    }


@pytest.mark.parametrize("weight", [1e6, 1e-6])
def test_constants_beyond_float16_keep_their_convolution_in_float32(weight: float) -> None:
    """It holds nothing above 65504, and below 6e-5 with fewer digits. Bfloat16 does."""
    before = gradient_model(one_conv(weight))
    after = in_precision(before, FP16)
    assert narrow_operators(after)["Conv"] == 0
    assert "products stay in float32" in properties(after)["onnxplain.notes"]
    np.testing.assert_allclose(run(after, one_conv_feeds(1.0))["gradient"][0, 0], weight / 4, rtol=1e-3)
    assert narrow_operators(in_precision(before, BF16))["Conv"] >= 1
    assert narrow_operators(in_precision(gradient_model(one_conv(1.0)), FP16))["Conv"] >= 1


@pytest.mark.parametrize(("bound", "is_narrow"), [(6.0, True), (0.1, False)])
def test_a_bound_that_would_be_rounded_stays_what_it_is(bound: float, is_narrow: bool) -> None:
    """Else x would be cut off at another number than that which the mask compares with, and its gradient pass."""
    proto = one_conv(1.0, "h = Clip(a, low, high)")
    proto.graph.initializer.extend(
        numpy_helper.from_array(np.float32(value), name) for name, value in (("low", 0.0), ("high", bound))
    )
    after = in_precision(gradient_model(proto), FP16)
    assert (narrow_operators(after)["Clip"] == 1) is is_narrow
    assert not run(after, one_conv_feeds(100.0))["gradient"].any()
    assert run(after, one_conv_feeds(bound / 2))["gradient"].any()


def test_the_lowest_number_of_a_pool_becomes_that_of_the_type() -> None:
    after = in_precision(gradient_model(classifier("dense")), FP16)
    scalars = [numpy_helper.to_array(t) for t in after.graph.initializer if not t.dims]
    assert np.finfo(np.float16).min in [s for s in scalars if s.dtype == np.float16]
    assert all(np.isfinite(s) for s in scalars if s.dtype == np.float16)


def test_the_variance_of_a_norm_is_not_rounded() -> None:
    """σ² = 1e-9 is nothing in float16: norms stay in float32, and so do their constants."""
    proto = onnx.parser.parse_model(
        """<ir_version: 10, opset_import: ["" : 18]> net (float[N, 10, 2, 2] x) => (float[N, 10] y)
        { a = Conv(x, w) b = BatchNormalization<epsilon = 1e-9>(a, s, o, o, v) r = Relu(b)
          p = GlobalAveragePool(r) y = Flatten(p) }"""
    )
    constants = {
        "w": np.eye(10).reshape(10, 10, 1, 1),
        "s": np.full(10, 1e-3),
        "o": np.zeros(10),
        "v": np.full(10, 1e-9),
    }
    proto.graph.initializer.extend(numpy_helper.from_array(a.astype(np.float32), n) for n, a in constants.items())
    after = in_precision(gradient_model(proto), FP16)
    assert narrow_operators(after)["Conv"] >= 1
    assert narrow_operators(after)["BatchNormalization"] == 0
    np.testing.assert_allclose(
        run(after, one_conv_feeds())["gradient"][0, 0], 1e-3 / np.sqrt(2e-9) / 4, rtol=4 * UNIT[FP16]
    )


def test_large_sums_do_not_overflow() -> None:
    """Σ over 4096 elements of 100 is 409 600, which float16 has no number for."""
    summed(FP16)


def summed(wanted: Precision) -> None:
    """Assert that a mean that is written as a sum, between two convolutions, is right."""
    proto = onnx.parser.parse_model(
        """<ir_version: 10, opset_import: ["" : 18]> net (float[N, 10, 64, 64] x) => (float[N, 10] y)
        { a = Conv(x, w) r = Relu(a) s = ReduceSum(r, axes) m = Mul(s, c) b = Conv(m, w) q = Relu(b)
          f = Flatten(q) y = Gemm(f, v) }"""
    )
    constants = {
        "w": np.eye(10, dtype=np.float32).reshape(10, 10, 1, 1),
        "v": np.eye(10, dtype=np.float32),
        "c": np.float32(1 / 4096),
    }
    proto.graph.initializer.extend(numpy_helper.from_array(a, n) for n, a in constants.items())
    proto.graph.initializer.append(numpy_helper.from_array(np.asarray([2, 3]), "axes"))
    given = one_conv_feeds() | {"x": np.full((1, 10, 64, 64), 100, np.float32)}
    out = run(in_precision(gradient_model(proto), wanted), given)
    np.testing.assert_allclose(out["logits"], np.full((1, 10), 100.0))
    np.testing.assert_allclose(out["gradient"][0, 0], np.full((64, 64), 1 / 4096))


def test_a_classifier_of_half_precision_keeps_its_own_and_gets_a_way_back_in_it() -> None:
    """The casts at its seams with the float32 way back are gone."""
    proto = in_dtype(classifier("plain"), TensorProto.FLOAT16)
    before = gradient_model(proto)
    after = in_precision(before, FP16)
    found = narrow_operators(after)
    heavy = Counter(node.op_type for node in after.graph.node if node.op_type in ("Conv", "ConvTranspose"))
    assert all(found[op] == count for op, count in heavy.items())
    assert found.total() > narrow_operators(before).total()
    want, got = run(before, feeds()), run(after, feeds())
    assert turned(got["gradient"], want["gradient"]) <= flattened_limits(100, FP16)


# Mistakes, which the tests above must find


def not_undone(emit: Any, cotangent: ir.Value) -> None:
    outputs = list(emit.graph.outputs)
    original(emit, cotangent)
    for at, y in enumerate(outputs):
        if y is not emit.graph.outputs[at]:
            emit.graph.outputs[at].name, y.name = f"{y.name}_", emit.graph.outputs[at].name
            emit.graph.outputs[at] = y


original = precision.scale


def wrong_masks(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(precision, "masks_as_comparisons", lambda emit: None)
    patch.setattr(narrow, "fits", lambda node, half: True)


def more_light(*names: str) -> Callable[[pytest.MonkeyPatch], None]:
    return lambda patch: patch.setattr(narrow, "LIGHT", narrow.LIGHT | set(names))


MISTAKES: dict[str, tuple[Callable[[pytest.MonkeyPatch], None], Callable[[Precision], None]]] = {
    "a reduction in float16": (more_light("ReduceSum"), summed),
    "the scale is not undone": (lambda patch: patch.setattr(precision, "scale", not_undone), exactness),
    "a mask in float16": (wrong_masks, attributes),
    "the objective in float16": (
        lambda patch: patch.setattr(precision, "descendants", lambda *args, **kw: set()),
        probable,
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_found(mistake: str, monkeypatch: pytest.MonkeyPatch) -> None:
    make, check = MISTAKES[mistake]
    check(FP16)
    make(monkeypatch)
    with pytest.raises(AssertionError), np.errstate(all="ignore"):
        check(FP16)


# TensorRT


@pytest.fixture(scope="module")
def tensorrt() -> Any:
    return runtime("tensorrt_rtx", "tensorrt-rtx-cu13")


@both
@pytest.mark.parametrize("name", ["residual", "depthwise", "transformer"])
def test_tensorrt_builds_an_engine(name: str, wanted: Precision, tensorrt: Any) -> None:
    """Ahead of time, strongly typed, for compute capability 8.9 (bfloat16 is there from 8.0 on)."""
    logger = tensorrt.Logger(tensorrt.Logger.ERROR)
    builder = tensorrt.Builder(logger)
    network = builder.create_network(0)
    parser = tensorrt.OnnxParser(network, logger)
    model = in_precision(gradient_model(classifier(name)), wanted)
    assert parser.parse(model.SerializeToString()), parser.get_error(0).desc()
    config, profile = builder.create_builder_config(), builder.create_optimization_profile()
    for i in range(network.num_inputs):
        x = network.get_input(i)
        profile.set_shape(x.name, *([rows, *list(x.shape)[1:]] for rows in (1, 2, 4)))
    config.add_optimization_profile(profile)
    config.num_compute_capabilities = 1
    config.set_compute_capability(tensorrt.ComputeCapability.SM89, 0)
    assert {network.get_output(i).dtype for i in range(network.num_outputs)} == {tensorrt.float32}
    assert builder.build_serialized_network(network, config) is not None


OPERATORS = sorted(narrow.HEAVY | narrow.LIGHT | narrow.MOVING | narrow.COMPARING | {"Div"})


@both
@pytest.mark.parametrize("op", OPERATORS)
def test_tensorrt_reads_what_is_said_to_be_had_in_a_type(op: str, wanted: Precision, tensorrt: Any) -> None:
    """Of each operator the samples that it reads in float32."""
    if not narrow.takes(op, 22, HALVES[wanted]):
        pytest.skip(f"{op} is not used in {wanted}")
    logger = tensorrt.Logger(tensorrt.Logger.INTERNAL_ERROR)
    builder = tensorrt.Builder(logger)

    def reads(model: onnx.ModelProto) -> bool:
        network = builder.create_network(0)
        return bool(tensorrt.OnnxParser(network, logger).parse(model.SerializeToString()))

    models = [sample.model(np.float32) for sample in SAMPLES if sample.op == op]
    read = [model for model in models if reads(model)]
    assert read or not models
    assert all(reads(in_dtype(model, int(HALVES[wanted]))) for model in read)
