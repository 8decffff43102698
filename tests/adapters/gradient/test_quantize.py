"""Quantised models in QDQ form against PyTorch's fake quantisation: straight through, where nothing was clipped.

Both frameworks round a product with 1/s or a quotient by s: where x / s is within a few ulp of a half, they may differ.
The points here are none of those.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx
import onnx.parser
import pytest
from frameworks import framework
from onnx.helper import make_node, make_tensor_value_info

from onnxplain.adapters.gradient.classifier import gradient_model
from onnxplain.adapters.gradient.differentiate import coverage, differentiate
from onnxplain.adapters.gradient.registry import DEFAULT, Entry, Rules
from onnxplain.adapters.gradient.rules.quantize import STRAIGHT_THROUGH, spread
from onnxplain.engine.executors.onnxruntime import OnnxRuntimeExecutor
from onnxplain.errors import NotDifferentiable, UsageError

Array = np.ndarray[Any, Any]
FLOAT = onnx.TensorProto.FLOAT


class Net:
    """A small convolutional net, quantised: weights per channel, activations per tensor (one of them per channel)."""

    def __init__(self, signed: bool, per_channel: bool) -> None:
        rng = np.random.default_rng(0)
        self.whole = np.int8 if signed else np.uint8
        self.range = (-128, 127) if signed else (0, 255)
        self.zero = 0 if signed else 120
        self.arrays: dict[str, Array] = {}
        self.nodes: list[onnx.NodeProto] = []
        w, v = rng.normal(size=(4, 3, 3, 3)) * 0.3, rng.normal(size=(5, 144)) * 0.2
        scale = np.abs(w).max(axis=(1, 2, 3)) / 127
        self.weight("w", np.round(w / scale[:, None, None, None]), scale, axis=0)
        self.weight("v", np.clip(np.round(v / 0.01), -127, 127), 0.01)
        self.pair("x", 0.01, self.zero)
        self.nodes.append(make_node("Conv", ["x_back", "w"], ["c"]))
        if per_channel:
            zeros = [0, 0, 0, 0] if signed else [120, 128, 100, 140]
            self.pair("c", [0.01, 0.02, 0.008, 0.03], zeros, axis=1)
        else:
            self.pair("c", 0.015, self.zero)
        self.nodes.append(make_node("Tanh", ["c_back"], ["t"]))
        self.pair("t", 0.006, self.zero)
        self.nodes.append(make_node("Flatten", ["t_back"], ["f"]))
        self.nodes.append(make_node("Gemm", ["f", "v"], ["y"], transB=1))

    def weight(self, name: str, whole: Array, scale: Any, **axis: int) -> None:
        self.arrays |= {f"{name}_whole": whole.astype(np.int8), f"{name}_scale": np.asarray(scale, np.float32)}
        self.nodes.append(make_node("DequantizeLinear", [f"{name}_whole", f"{name}_scale"], [name], **axis))

    def pair(self, name: str, scale: Any, zero: Any, **axis: int) -> None:
        self.arrays |= {f"{name}_s": np.asarray(scale, np.float32), f"{name}_z": np.asarray(zero, self.whole)}
        how = [f"{name}_s", f"{name}_z"]
        self.nodes.append(make_node("QuantizeLinear", [name, *how], [f"{name}_whole"], **axis))
        self.nodes.append(make_node("DequantizeLinear", [f"{name}_whole", *how], [f"{name}_back"], **axis))

    def model(self) -> onnx.ModelProto:
        graph = onnx.helper.make_graph(
            self.nodes,
            "quantised",
            [make_tensor_value_info("x", FLOAT, ["N", 3, 8, 8])],
            [make_tensor_value_info("y", FLOAT, ["N", 5])],
            [onnx.numpy_helper.from_array(a, name) for name, a in self.arrays.items()],
        )
        return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=10)

    def torch(self, x: Any, straight: bool = False) -> Any:
        """The same net in PyTorch."""
        torch = framework("torch")

        def fake(x: Any, name: str) -> Any:
            s, z = torch.tensor(self.arrays[f"{name}_s"]), torch.tensor(self.arrays[f"{name}_z"].astype(np.int32))
            each = torch.fake_quantize_per_tensor_affine if not s.ndim else torch.fake_quantize_per_channel_affine
            y = each(x, s, z, *([1] if s.ndim else []), *self.range)
            return x + (y - x).detach() if straight else y

        w = self.arrays["w_whole"] * self.arrays["w_scale"][:, None, None, None]
        v = self.arrays["v_whole"] * self.arrays["v_scale"]
        c = fake(torch.conv2d(fake(x, "x"), torch.tensor(w)), "c")
        return fake(torch.tanh(c), "t").flatten(1) @ torch.tensor(v).T


NETS = [(signed, per_channel) for signed in (True, False) for per_channel in (True, False)]


def gap(net: Net, rules: Rules, straight: bool = False, optimise: bool = False) -> float:
    """The largest difference to autograd's gradient, relative to its largest element."""
    torch = framework("torch")
    rng = np.random.default_rng(1)
    x, g = rng.normal(size=(2, 3, 8, 8)).astype(np.float32), rng.normal(size=(2, 5)).astype(np.float32)
    image = torch.tensor(x, requires_grad=True)
    y = net.torch(image, straight)
    (want,) = torch.autograd.grad(y, image, torch.tensor(g))
    made = OnnxRuntimeExecutor(differentiate(net.model(), rules=rules), threads=1, optimise=optimise)
    out = made({"x": x, "grad_y": g})
    np.testing.assert_allclose(out["y"], y.detach().numpy(), rtol=0, atol=1e-5)
    assert straight or 0.1 < (want == 0).float().mean() < 0.5  # some of it was clipped
    return float(np.abs(out["grad_x"] - want.numpy()).max() / want.abs().max())


@pytest.mark.parametrize(("signed", "per_channel"), NETS)
def test_what_was_clipped_has_no_gradient_and_the_rest_goes_straight_through(signed: bool, per_channel: bool) -> None:
    """x̄ = ȳ where x was not clipped."""
    assert gap(Net(signed, per_channel), DEFAULT) < 1e-6
    if not per_channel:  # ONNX Runtime fuses Conv between quantised values, which it knows per tensor only
        assert gap(Net(signed, per_channel), DEFAULT, optimise=True) < 1e-6


@pytest.mark.parametrize(("signed", "per_channel"), NETS)
def test_a_table_of_rules_lets_the_gradient_through_what_was_clipped_too(signed: bool, per_channel: bool) -> None:
    """x̄ = ȳ."""
    assert gap(Net(signed, per_channel), STRAIGHT_THROUGH, straight=True) < 1e-6


def fixed(rule: Callable[..., Any]) -> Rules:
    return DEFAULT | {"QuantizeLinear": Entry(rule, broadcastable=True)}


def quantise_with(**wrong: Any) -> Rules:
    """The right rule with another argument."""
    right = DEFAULT["QuantizeLinear"].rule

    def rule(g: Any, y: Any, x: Any, scale: Any, zero: Any = None, **attributes: Any) -> Any:
        return right(g, y, x, scale, wrong.get("zero", zero), **attributes | wrong.get("attributes", {}))

    return fixed(rule)


MUTANTS: dict[str, tuple[Net, Rules]] = {
    "clipped too": (Net(True, False), STRAIGHT_THROUGH),
    "zero point forgotten": (Net(False, False), quantise_with(zero=None)),
    "scale forgotten": (
        Net(True, False),
        fixed(lambda *args, **a: (lambda: DEFAULT["QuantizeLinear"].rule(*args, **a)[0]() * args[3], None, None)),
    ),
    "scale forgotten on the way back": (
        Net(True, False),
        DEFAULT | {"DequantizeLinear": Entry(lambda g, y, x, s, z=None, **_: (g, None, None), broadcastable=True)},
    ),
    "scales in reverse": (
        Net(True, True),
        DEFAULT
        | {
            "DequantizeLinear": Entry(
                lambda g, y, x, s, z=None, *, axis=1, **_: (
                    g * spread(s if s.rank == 0 else s.slice(0, -1, np.iinfo(np.int64).min, -1), y, axis, 0),
                    None,
                    None,
                ),
                broadcastable=True,
            )
        },
    ),
}


@pytest.mark.parametrize("name", MUTANTS)
def test_a_wrong_rule_is_caught(name: str) -> None:
    """Each differs from autograd by more than a percent."""
    net, rules = MUTANTS[name]
    assert gap(net, rules) > 1e-2


def model(body: str, opset: int = 21, **arrays: Array) -> onnx.ModelProto:
    proto = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["" : {opset}]> {body}')
    proto.graph.initializer.extend(onnx.numpy_helper.from_array(a, name) for name, a in arrays.items())
    return proto


def run(proto: onnx.ModelProto, feeds: Mapping[str, Array]) -> Array:
    return OnnxRuntimeExecutor(differentiate(proto), threads=1, optimise=False)(feeds)["grad_x"]


def test_a_scale_may_belong_to_a_block() -> None:
    """Blocks of 3 along axis 1, the last one short; without zero points a value is kept within 127.5 scales."""
    s = np.asarray([[0.01, 0.02, 0.03], [0.02, 0.01, 0.005]], np.float32)
    proto = model(
        """g (float[2, 8] x) => (float[2, 8] y)
        { q = QuantizeLinear <axis = 1, block_size = 3, output_dtype = 3> (x, s)
          y = DequantizeLinear <axis = 1, block_size = 3> (q, s) }""",
        s=s,
    )
    x = np.random.default_rng(2).normal(size=(2, 8)).astype(np.float32) * 2
    g = np.ones((2, 8), np.float32)
    inside = np.abs(x) < 127.5 * np.repeat(s, 3, axis=1)[:, :8]
    assert 0.2 < inside.mean() < 0.8
    np.testing.assert_allclose(run(proto, {"x": x, "grad_y": g}), inside, rtol=1e-6)


@pytest.mark.parametrize(("kind", "low", "high"), [("uint16", 0, 65535), ("int16", -32768, 32767), ("int4", -8, 7)])
def test_other_ranges(kind: str, low: int, high: int) -> None:
    """One step inside each end, one beyond: the gradient is 1 and 0."""
    codes = {"uint16": onnx.TensorProto.UINT16, "int16": onnx.TensorProto.INT16, "int4": onnx.TensorProto.INT4}
    proto = model(
        f"""g (float[N] x) => (float[N] y) <float s = {{0.5}}>
        {{ q = QuantizeLinear <output_dtype = {codes[kind]}> (x, s) y = DequantizeLinear(q, s) }}"""
    )
    x = np.asarray([low - 1, low, low + 1, high - 1, high, high + 1], np.float32) * 0.5
    np.testing.assert_array_equal(run(proto, {"x": x, "grad_y": np.full(6, 2, np.float32)}), [0, 2, 2, 2, 2, 0])


REFUSED = {
    "QLinearMatMul": """g (float[N, 3] x) => (float[N, 2] y)
        { q = QuantizeLinear(x, s, z) p = QLinearMatMul(q, s, z, w, s, z, s, z) y = DequantizeLinear(p, s, z) }""",
    "MatMulInteger": """g (float[N, 3] x) => (float[N, 2] y)
        { q = QuantizeLinear(x, s, z) p = MatMulInteger(q, w) y = Cast <to = 1> (p) }""",
    "DynamicQuantizeLinear": """g (float[N, 3] x) => (float[N, 3] y)
        { q, a, b = DynamicQuantizeLinear(x) y = DequantizeLinear(q, a, b) }""",
}


@pytest.mark.parametrize("op", REFUSED)
def test_arithmetic_with_whole_numbers_is_refused_with_what_to_do(op: str) -> None:
    """Whatever stands around it."""
    arrays = {"s": np.float32(0.1), "z": np.int8(0), "w": np.ones((3, 2), np.int8)}
    proto = model(REFUSED[op], opset=18, **{name: np.asarray(a) for name, a in arrays.items()})
    with pytest.raises(NotDifferentiable, match="QDQ form"):
        differentiate(proto)
    assert op in {found.op for found in coverage(proto).gaps}


def test_a_whole_number_that_was_no_float_ends_a_derivative_as_before() -> None:
    """An index that is dequantised carries nothing."""
    proto = model(
        """g (float[N, 3] x) => (float[N, 3] y) <float s = {0.5}>
        { k = ArgMax <axis = 1> (x) i = Cast <to = 6> (k) d = DequantizeLinear(i, s) y = Mul(x, d) }""",
        opset=18,
    )
    x = np.asarray([[1, 3, 2], [5, 4, 3]], np.float32)
    np.testing.assert_array_equal(run(proto, {"x": x, "grad_y": x}), x * 0.5 * np.asarray([[1], [0]]))


@pytest.mark.parametrize("per_channel", [False, True])
def test_layers_and_bias_gradients_of_quantised_nets(per_channel: bool) -> None:
    """What rounding adds is accounted for: all terms sum to the logit. The layer is the convolution's, dequantised."""
    made = gradient_model(Net(True, per_channel).model(), layers="auto", bias_gradients=True)
    x = np.random.default_rng(0).normal(size=(3, 3, 8, 8)).astype(np.float32)
    t = np.eye(5, dtype=np.float32)[[1, 2, 3]]
    with OnnxRuntimeExecutor(made, optimise=False) as executor:
        out = executor({"x": x, "onnxplain_target": t, "onnxplain_objective": np.zeros(3, np.int64)})
    total = (out["gradient"] * x).sum((1, 2, 3)) + out["bias_sum"]
    np.testing.assert_allclose(total, out["value"], rtol=1e-4, atol=1e-5)
    assert out["activation_0"].shape == (3, 4, 6, 6)
    with pytest.raises(UsageError, match="does not hold floats"):
        gradient_model(Net(True, per_channel).model(), layers="c_whole")
