"""Cotangents of strided convolutions in parts: put together late, where that is sound, and the same gradient always."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from frameworks import framework
from onnx_ir.passes import common as passes

from onnxplain.adapters.gradient.differentiate import differentiate
from onnxplain.adapters.gradient.expr import PREFIX, Emit, Expr, op
from onnxplain.adapters.gradient.parts import Grid, put_together_late
from onnxplain.adapters.gradient.rules.mask import bounds_of
from onnxplain.engine.executors.reference import ReferenceExecutor

WIDE, FEW = 8, 3


def block(
    middle: str = "b = Clip(a, low, high)", *, kernel: int = 3, stride: int = 2, pads: str = "1,1,1,1"
) -> onnx.ModelProto:
    """An inverted residual block up to its strided convolution, from x (N, 3, 9, 8), in double precision."""
    text = f"""
        <ir_version: 8, opset_import: ["": 18]>
        block (double[N, {FEW}, 9, 8] x) => (double[N, {WIDE}, H, W] y) {{
            a = Conv(x, expand)
            {middle}
            y = Conv<group = {WIDE}, strides = [{stride}, {stride}], pads = [{pads}]>(b, depthwise)
        }}
    """
    model = onnx.parser.parse_model(text)
    rng = np.random.default_rng(kernel)
    weights = {
        "expand": rng.normal(size=(WIDE, FEW, 1, 1)),
        "depthwise": rng.normal(size=(WIDE, 1, kernel, kernel)),
        "low": np.asarray(-0.5),
        "high": np.asarray(0.75),
        "gain": rng.normal(size=(WIDE, 1, 1)),
        "row": rng.normal(size=8),
        "shift": np.array([0, 0, 1, 0, 0, 0, -1, 0]),
    }
    model.graph.initializer.extend(onnx.numpy_helper.from_array(w, name) for name, w in weights.items())
    return model


def gradient(model: onnx.ModelProto, x: np.ndarray, g: np.ndarray) -> tuple[np.ndarray, Counter[str], list[int]]:
    """The gradient, the operators of the backward half, and how many channels the parts have that it joins."""
    made = differentiate(model, of=["y"], wrt=["x"])
    backward = [node for node in made.graph.node if node.name.startswith(PREFIX)]
    shapes = {v.name: v.type.tensor_type.shape.dim for v in made.graph.value_info}
    joined = [shapes[node.input[0]][1].dim_value for node in backward if node.op_type == "Concat"]
    return ReferenceExecutor(made)({"x": x, "grad_y": g})["grad_x"], Counter(n.op_type for n in backward), joined


SETTINGS = [(3, 2, "1,1,1,1"), (3, 2, "0,0,1,1"), (5, 2, "1,2,2,2"), (4, 3, "0,2,3,1"), (2, 2, "0,0,0,0")]


@pytest.mark.parametrize(("kernel", "stride", "pads"), SETTINGS)
def test_a_block_of_mobile_nets_against_autograd(kernel: int, stride: int, pads: str) -> None:
    """In float64, to 1e-12: some hundred products of numbers near 1. Only few channels are joined."""
    torch = framework("torch")
    model = block(kernel=kernel, stride=stride, pads=pads)
    weights = {w.name: torch.from_numpy(onnx.numpy_helper.to_array(w).copy()) for w in model.graph.initializer}
    rng = np.random.default_rng(0)
    x = torch.from_numpy(rng.normal(size=(2, FEW, 9, 8))).requires_grad_()
    top, left, bottom, right = (int(p) for p in pads.split(","))
    b = torch.nn.functional.conv2d(x, weights["expand"]).clamp(-0.5, 0.75)
    b = torch.nn.functional.pad(b, (left, right, top, bottom))
    y = torch.nn.functional.conv2d(b, weights["depthwise"], stride=stride, groups=WIDE)
    g = rng.normal(size=tuple(y.shape))
    (want,) = torch.autograd.grad(y, x, torch.from_numpy(g))
    got, ops, joined = gradient(model, x.detach().numpy(), g)
    np.testing.assert_allclose(got, want.numpy(), rtol=0, atol=1e-12)
    assert (ops["ConvTranspose"], joined) == (0, [FEW])


OTHERS = {  # what stands between both convolutions, and how many channels the parts have when they are joined
    "one mask": ("b = Relu(a)", FEW),
    "a gain for each channel": ("c = Relu(a) b = Mul(c, gain)", FEW),
    "a number": ("c = Relu(a) b = Mul(low, c)", FEW),
    "nothing": ("b = Identity(a)", FEW),
    "two readers": ("c = Relu(a) d = Sigmoid(a) b = Add(c, d)", WIDE),
    "a row of gains": ("c = Relu(a) b = Mul(c, row)", WIDE),
    "another pixel": ("c = Relu(a) b = Pad(c, shift)", WIDE),
}


@pytest.mark.parametrize("name", OTHERS)
def test_parts_go_as_far_as_they_may(name: str) -> None:
    """The gradient is that of the model with weights that come at run time, where nothing is in parts."""
    middle, channels = OTHERS[name]
    model = block(middle)
    rng = np.random.default_rng(1)
    x, g = rng.normal(size=(2, FEW, 9, 8)), rng.normal(size=(2, WIDE, 5, 4))
    got, ops, joined = gradient(model, x, g)
    kernel = next(w for w in model.graph.initializer if w.name == "depthwise")
    model.graph.initializer.remove(kernel)
    model.graph.input.append(onnx.helper.make_tensor_value_info("depthwise", kernel.data_type, kernel.dims))
    whole = ReferenceExecutor(differentiate(model, of=["y"], wrt=["x"]))
    feeds = {"x": x, "grad_y": g, "depthwise": onnx.numpy_helper.to_array(kernel)}
    np.testing.assert_allclose(got, whole(feeds)["grad_x"], rtol=0, atol=1e-12)
    assert (ops["ConvTranspose"], joined) == (0, [channels])


def test_what_is_asked_for_is_put_together_where_it_is() -> None:
    """An output on the way, such as the cotangent of a layer: it has all channels, and so nothing moves."""
    graph = ir.from_proto(block()).graph
    x = Expr(Emit(graph), graph.inputs[0])
    grid = Grid(stride=2, offsets=(1, 1), counts=(5, 5), sizes=(9, 8))
    whole = grid.together(grid.apart(x)) * 2.0
    back = op("Identity", op("Conv", whole, np.ones((1, FEW, 1, 1))))
    for outputs, channels in (([whole, back], FEW), ([back], 1)):
        graph.outputs[:] = [e.value for e in outputs]
        put_together_late(ir.Model(graph, ir_version=8))
        passes.RemoveUnusedNodesPass()(ir.Model(graph, ir_version=8))
        (joined,) = [node for node in graph if node.op_type == "Concat"]
        assert joined.inputs[0].shape[1] == channels


def test_a_mask_between_two_bounds_can_be_read_off_the_graph() -> None:
    """Whoever rewrites a finished model, to compute in half precision, finds the bounds again."""
    text = """
        <ir_version: 8, opset_import: ["": 18]>
        clip (float[N, 4, 3, 3] x) => (float[N, 4, 3, 3] y) <float low = {0.25}, float high = {6}> {
            y = Clip(x, low, high)
        }
    """
    made = ir.from_proto(differentiate(onnx.parser.parse_model(text)))
    found = [bound for node in made.graph if (bound := bounds_of(node)) is not None]
    assert [(y.name, low, high) for y, low, high in found] == [("y", 0.25, 6.0)]
