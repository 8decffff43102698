"""Weights drawn anew: the ones that were named, from the distribution that was there, and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import pytest
from onnx.reference import ReferenceEvaluator

import onnxplain as ox
from onnxplain.adapters.gradient import differentiate
from onnxplain.adapters.randomise import randomised, weight_layers
from onnxplain.errors import InvalidModel, UsageError

RNG = np.random.default_rng(3)
X = RNG.random((2, 3, 8, 8)).astype(np.float32)
BODY = """<ir_version: 10, opset_import: ["" : 18, "own" : 1]> net (float[N, 3, 8, 8] x) => (float[N, 4] z) {
    a = Conv<pads = [1, 1, 1, 1]>(x, w1, b1)
    n = BatchNormalization(a, scale, shift, mean, variance)
    b = Relu(n)
    c = Conv<pads = [1, 1, 1, 1]>(b, w2)
    d = Conv<pads = [1, 1, 1, 1]>(b, w3)
    e = Add(c, d)
    p = GlobalAveragePool(e)
    f = Flatten(p)
    m = MatMul(f, w4)
    z = Gemm(m, w5, b5)
}"""
SHAPES = {
    "w1": (6, 3, 3, 3), "b1": (6,), "scale": (6,), "shift": (6,), "mean": (6,), "variance": (6,), "w2": (6, 6, 3, 3),
    "w3": (6, 6, 3, 3), "w4": (6, 5), "w5": (5, 4), "b5": (4,),
}  # fmt: skip
LAYERS = ["z", "m", "d", "c", "a"]
WEIGHT_OF = {"z": "w5", "m": "w4", "d": "w3", "c": "w2", "a": "w1"}


def net(body: str = BODY, **weights: np.ndarray) -> onnx.ModelProto:
    proto = onnx.parser.parse_model(body)
    draw = np.random.default_rng(0)
    ours = {name: (draw.random(shape) + 0.1).astype(np.float32) for name, shape in SHAPES.items()} | weights
    read = {x for node in proto.graph.node for x in node.input}
    proto.graph.initializer.extend(onnx.numpy_helper.from_array(a, name) for name, a in ours.items() if name in read)
    return proto


def tensors(proto: onnx.ModelProto) -> dict[str, np.ndarray]:
    return {t.name: onnx.numpy_helper.to_array(t) for t in proto.graph.initializer}


def logits(proto: onnx.ModelProto) -> np.ndarray:
    return ReferenceEvaluator(proto).run(None, {proto.graph.input[0].name: X.astype(np.float32)})[0]


def changed(before: onnx.ModelProto, after: onnx.ModelProto) -> set[str]:
    old, new = tensors(before), tensors(after)
    assert old.keys() == new.keys()
    return {name for name in old if not np.array_equal(old[name], new[name])}


def test_layers_are_listed_from_the_logits_backwards() -> None:
    assert weight_layers(net()) == LAYERS


@pytest.mark.parametrize("count", range(6))
def test_a_cascade_changes_the_layers_that_it_names_and_nothing_else(count: int) -> None:
    """Weights of the others, all biases, all of the normalisation, the nodes, inputs and outputs are as before."""
    proto = net()
    made = randomised(proto, LAYERS[:count], seed=0)
    assert changed(proto, made) == {WEIGHT_OF[name] for name in LAYERS[:count]}
    assert [(n.op_type, list(n.input), list(n.output)) for n in made.graph.node] == [
        (n.op_type, list(n.input), list(n.output)) for n in proto.graph.node
    ]
    assert made.graph.input == proto.graph.input
    assert made.graph.output == proto.graph.output
    assert np.array_equal(logits(made), logits(proto)) == (count == 0)


def test_one_layer_alone() -> None:
    proto = net()
    for name in LAYERS:
        made = randomised(proto, [name], seed=0)
        assert changed(proto, made) == {WEIGHT_OF[name]}
        assert not np.allclose(logits(made), logits(proto))


def test_a_cascade_keeps_what_it_has_drawn() -> None:
    """What is drawn for a layer does not depend on which others are drawn, nor on their order."""
    proto = net()
    all_of_them, two = tensors(randomised(proto, LAYERS, 5)), tensors(randomised(proto, ["c", "z"], 5))
    for name in ("w2", "w5"):
        assert np.array_equal(all_of_them[name], two[name])
    assert not np.array_equal(all_of_them["w2"], all_of_them["w3"])  # of the same shape


def test_seeds() -> None:
    proto = net()
    once, again, other = (randomised(proto, LAYERS, seed).SerializeToString() for seed in (1, 1, 2))
    assert once == again
    assert once != other


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_the_draws_have_the_mean_and_deviation_of_the_tensor(dtype: type) -> None:
    """And its type: of 40 000 draws the mean is off by less than five standard errors, 5 σ/200."""
    old = RNG.normal(3, 0.25, (200, 200)).astype(dtype)
    kind = {np.float16: "float16", np.float32: "float", np.float64: "double"}[dtype]
    body = (
        f'<ir_version: 10, opset_import: ["" : 18]> n ({kind}[N, 200] x) => ({kind}[N, 200] z) {{ z = MatMul(x, w) }}'
    )
    new = tensors(randomised(net(body, w=old), ["z"], 0))["w"]
    assert new.dtype == dtype
    assert abs(new.mean(dtype=np.float64) - old.mean(dtype=np.float64)) < 5 * 0.25 / 200
    assert abs(new.std(dtype=np.float64) / 0.25 - 1) < 0.02
    assert abs(np.corrcoef(new.ravel(), old.ravel())[0, 1]) < 0.03


def test_weights_that_two_layers_read_are_drawn_once() -> None:
    """The layer nearer to the logits stands for both."""
    proto = net(BODY.replace("w3", "w2"))
    assert weight_layers(proto) == ["z", "m", "d", "a"]
    assert changed(proto, randomised(proto, ["d"], 0)) == {"w2"}
    with pytest.raises(UsageError, match="no layer with weights 'c'"):
        randomised(proto, ["c"], 0)


def test_weights_through_identity_and_transpose() -> None:
    body = BODY.replace("c = Conv", "i = Identity(w3) c = Conv").replace("(b, w2)", "(b, i)")
    assert weight_layers(net(body)) == ["z", "m", "d", "a"]
    turned = BODY.replace("m = MatMul(f, w4)", "t = Transpose<perm = [1, 0]>(v4) m = MatMul(f, t)")
    proto = net(turned, v4=RNG.random((5, 6)).astype(np.float32))
    assert weight_layers(proto) == LAYERS
    assert changed(proto, randomised(proto, ["m"], 0)) == {"v4"}


def test_constant_nodes_are_weights_too() -> None:
    proto = net()
    for tensor in [t for t in proto.graph.initializer if t.name in ("w4", "w2")]:
        proto.graph.node.insert(0, onnx.helper.make_node("Constant", [], [tensor.name], value=tensor))
        proto.graph.initializer.remove(tensor)
    assert weight_layers(proto) == LAYERS
    assert np.array_equal(logits(randomised(proto, LAYERS, 4)), logits(randomised(net(), LAYERS, 4)))


def test_layers_inside_functions() -> None:
    """They are written out; two calls of a function are two layers."""
    call = "m = own.dense(f, w4)", "z = own.dense(m, w5)"
    body = BODY.replace("m = MatMul(f, w4)", call[0]).replace("z = Gemm(m, w5, b5)", call[1])
    proto = net(body + ' <domain: "own", opset_import: ["" : 18]> dense (u, v) => (y) { y = MatMul(u, v) }')
    assert len(proto.functions) == 1
    assert weight_layers(proto)[2:] == LAYERS[2:]
    made = randomised(proto, weight_layers(proto)[:1], 0)
    assert changed(proto, made) == {"w5"}


def test_unnamed_nodes_and_equal_names() -> None:
    """Layers go by their outputs: nodes need no names, and may share one."""
    proto = net()
    for node in proto.graph.node:
        node.name = "node"
    assert weight_layers(proto) == LAYERS


def test_models_with_their_weights_beside_them(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    onnx.save(net(), path, save_as_external_data=True, location="m.data", size_threshold=0)
    before = (tmp_path / "m.data").read_bytes()
    assert weight_layers(path) == LAYERS
    made = randomised(path, LAYERS[:2], 7)
    assert tensors(made).keys() == tensors(net()).keys()
    assert changed(net(), made) == {"w4", "w5"}
    assert (tmp_path / "m.data").read_bytes() == before


def test_layers_of_another_output_are_left_out() -> None:
    """A training head is no step of the cascade."""
    body = BODY.replace("(float[N, 4] z)", "(float[N, 4] z, float[N, 5] aux)")
    body = body.replace("z = Gemm", "aux = MatMul(f, w6) z = Gemm")
    proto = net(body, w6=RNG.random((6, 5)).astype(np.float32))
    assert weight_layers(proto) == ["z", "aux", *LAYERS[1:]]
    assert weight_layers(proto, "z") == LAYERS
    with pytest.raises(UsageError, match="'y'"):
        weight_layers(proto, "y")


def test_the_given_model_stays_as_it_is() -> None:
    proto = net()
    model = ir.from_proto(net())
    before = proto.SerializeToString()
    randomised(proto, LAYERS, 0)
    randomised(model, LAYERS, 0)
    assert proto.SerializeToString() == before
    assert changed(net(), ir.to_proto(model)) == set()


def test_metadata_stays_and_the_result_can_be_explained() -> None:
    proto = net()
    onnx.helper.set_model_props(proto, {"onnxplain.labels": "x", "other": "y"})
    made = randomised(proto, LAYERS, 0)
    assert {p.key: p.value for p in made.metadata_props} == {"onnxplain.labels": "x", "other": "y"}
    assert ox.gradient_model(made).graph.output[2].name == "gradient"


def test_constant_weights_stay() -> None:
    proto = net(w4=np.ones((6, 5), np.float32))
    assert changed(proto, randomised(proto, ["m"], 0)) == set()


def quantised() -> onnx.ModelProto:
    body = BODY.replace("m = MatMul(f, w4)", "t = DequantizeLinear(q4, s4) m = MatMul(f, t)")
    return net(body, q4=RNG.integers(-9, 9, (6, 5)).astype(np.int8), s4=np.float32(0.1))


def foreign() -> onnx.ModelProto:
    return net(BODY.replace("m = MatMul", "m = own.MatMul"))


def control_flow() -> onnx.ModelProto:
    condition = "s = ReduceSum<keepdims = 0>(m) k = Cast<to = 9>(s)"
    branches = ", ".join(f"{name}_branch = {name} () => (float[N, 5] y) {{ y = Relu(m) }}" for name in ("then", "else"))
    body = BODY.replace("z = Gemm(m,", f"{condition} i = If(k) <{branches}> z = Gemm(i,")
    return net(body)


def no_weights() -> onnx.ModelProto:
    return onnx.parser.parse_model(
        '<ir_version: 10, opset_import: ["" : 18]> n (float[N, 4] x) => (float[N, 4] z) { z = Relu(x) }'
    )


@pytest.mark.parametrize(
    ("make", "error", "says"),
    [
        (quantised, InvalidModel, "DequantizeLinear.*quantised; next: give the model as it was before"),
        (foreign, InvalidModel, "own.MatMul.*not known which of its inputs are weights"),
        (control_flow, InvalidModel, "If.*its course depends on the image"),
        (no_weights, InvalidModel, "no layer with weights"),
        (lambda: ox.gradient_model(net()), UsageError, "give the classifier"),
    ],
)
def test_what_is_not_known_is_refused(make: Callable[[], onnx.ModelProto], error: type[Exception], says: str) -> None:
    for call in (weight_layers, lambda model: randomised(model, [], 0)):
        with pytest.raises(error, match=says):
            call(make())


def test_slips_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="no layer with weights 'zz'"):
        randomised(net(), ["zz"], 0)
    with pytest.raises(UsageError, match="expected a list of names"):
        randomised(net(), "z", 0)
    with pytest.raises(UsageError, match="seed"):
        randomised(net(), ["z"], -1)
    monkeypatch.setattr(differentiate, "MESSAGE", 1024)
    with pytest.raises(UsageError, match="2 GiB"):
        randomised(net(), ["z"], 0)
