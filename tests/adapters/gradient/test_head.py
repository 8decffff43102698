"""Heads: where the logits are found, what is cut off behind them, and what the objectives of a sigmoid head are."""

from __future__ import annotations

import json

import numpy as np
import onnx
import onnx.parser
import pytest
from onnx import TensorProto, helper

from onnxplain.adapters.gradient.classifier import gradient_model
from onnxplain.engine.executors.onnxruntime import OnnxRuntimeExecutor
from onnxplain.engine.executors.reference import ReferenceExecutor
from onnxplain.engine.requests import Head, Kind, Objective
from onnxplain.errors import InvalidModel, UsageError

RNG = np.random.default_rng(5)
W = RNG.normal(size=(12, 4))
X = RNG.normal(size=(3, 3, 2, 2))


def net(tail: str, outputs: str = "float[N, 4] y", classes: int = 4, dtype: str = "float") -> onnx.ModelProto:
    """z = flatten(x) W, and what stands behind it."""
    proto = onnx.parser.parse_model(
        f'<ir_version: 8, opset_import: ["" : 18, "ai.onnx.ml" : 3]> net ({dtype}[N, 3, 2, 2] x) => ({outputs}) '
        f"{{ f = Flatten(x) z = MatMul(f, w) {tail} }}"
    )
    weights = W[:, :classes].astype(np.float32 if dtype == "float" else np.float64)
    proto.graph.initializer.append(onnx.numpy_helper.from_array(weights, "w"))
    shapes = {"flat": [-1, 4], "tall": [-1, 4, 1, 1], "one": [-1], "last": [-1, 1, 1, 4], "axes": [2, 3]}
    proto.graph.initializer.extend(onnx.numpy_helper.from_array(np.array(s, np.int64), n) for n, s in shapes.items())
    return proto


def meta(model: onnx.ModelProto) -> dict[str, str]:
    return {entry.key: entry.value for entry in model.metadata_props}


def notes(model: onnx.ModelProto) -> str:
    return "; ".join(json.loads(meta(model)["onnxplain.notes"]))


def logits(model: onnx.ModelProto) -> np.ndarray:
    feeds = {"x": X.astype(np.float32)}
    classes = model.graph.input[1].type.tensor_type.shape.dim[1].dim_value
    feeds |= {"onnxplain_target": np.zeros((3, classes), np.float32), "onnxplain_objective": np.zeros(3, np.int64)}
    return np.asarray(OnnxRuntimeExecutor(model, optimise=False)(feeds)["logits"])


Z = X.reshape(3, 12).astype(np.float32) @ W.astype(np.float32)

CUT = {
    "softmax": ("y = Softmax(z)", "softmax", "Softmax"),
    "log softmax": ("y = LogSoftmax<axis = 1>(z)", "softmax", "LogSoftmax"),
    "sigmoid": ("y = Sigmoid(z)", "sigmoid", "Sigmoid"),
    "the log of a softmax": ("p = Softmax(z) y = Log(p)", "softmax", "Log"),
    "what moves elements": (
        "t = Reshape(z, tall) p = Softmax<axis = 1>(t) s = Squeeze(p, axes) i = Identity(s) y = Reshape(i, flat)",
        "softmax", "Squeeze",
    ),
    "a cast": ("p = Softmax(z) d = Cast<to = 11>(p) y = Cast<to = 1>(d)", "softmax", "Cast"),
    "channels last": ("t = Reshape(z, last) p = Softmax(t) y = Flatten(p)", "softmax", "Flatten"),
}  # fmt: skip


@pytest.mark.parametrize("what", CUT)
def test_what_stands_behind_the_logits_is_cut_off_and_told(what: str) -> None:
    """The logits are what goes into the activation; the head is recorded, and so is what was cut."""
    tail, head, told = CUT[what]
    made = gradient_model(net(tail))
    np.testing.assert_allclose(logits(made), Z, rtol=1e-5, atol=1e-6)
    assert meta(made)["onnxplain.head"] == head
    assert "cut off behind the logits" in notes(made)
    assert told in notes(made)
    np.testing.assert_array_equal(logits(made), logits(gradient_model(net("y = Identity(z)"))))


def test_a_saturated_softmax_is_not_differentiated_through() -> None:
    """Logits of a thousand: the gradient of a logit is that of the plain classifier, and not zero."""
    ends = []
    for tail in ("k = Constant<value_float = 1000.0>() y = Mul(z, k)",
                 "k = Constant<value_float = 1000.0>() l = Mul(z, k) y = Softmax(l)"):  # fmt: skip
        made = gradient_model(net(tail))
        feeds = {"x": X.astype(np.float32), "onnxplain_target": np.eye(4, dtype=np.float32)[:3]}
        out = OnnxRuntimeExecutor(made, optimise=False)(feeds | {"onnxplain_objective": np.zeros(3, np.int64)})
        ends.append(out["gradient"])
    np.testing.assert_array_equal(*ends)
    assert np.abs(ends[0]).min() > 0


@pytest.mark.parametrize(
    ("tail", "declared", "classes"),
    [
        ("y = Reshape(z, tall)", "float[N, 4, 1, 1] y", 4),
        ("y = Reshape(z, last)", "float[N, 1, 1, 4] y", 4),
        ("y = Identity(z)", "float[N, 1] y", 1),
        ("y = Reshape(z, one)", "float[N] y", 1),
        ("p = Sigmoid(z) y = Reshape(p, one)", "float[N] y", 1),
    ],
)
def test_logits_with_axes_of_length_one_become_n_by_k(tail: str, declared: str, classes: int) -> None:
    """Fully convolutional heads, and a single label that was squeezed. One output is a sigmoid."""
    made = gradient_model(net(tail, declared, classes))
    assert logits(made).shape == (3, classes)
    np.testing.assert_allclose(logits(made), Z[:, :classes], rtol=1e-5, atol=1e-6)
    assert meta(made)["onnxplain.head"] == ("softmax" if classes > 1 else "sigmoid")


CHOSEN = {
    "probabilities beside logits": ("p = Softmax(z)", "float[N, 4] z, float[N, 4] p", "z"),
    "two ways to say the same": ("p = Softmax(z) l = LogSoftmax(z)", "float[N, 4] l, float[N, 4] p", "z"),
    "features and probabilities": ("p = Softmax(z)", "float[N, 12] f, float[N, 4] p", "z"),
    "features that are no vector": ("y = Identity(z)", "float[N, 4] y, float[N, 3, 2, 2] r", "y"),
    "the best classes": (
        "k = Constant<value_ints = [2]>() best, at = TopK(z, k) p = Softmax(z)",
        "float[N, 2] best, int64[N, 2] at, float[N, 4] p", "z",
    ),
    "a label as a float": (
        "k = ArgMax<axis = 1>(z) label = Cast<to = 1>(k)", "float[N, 4] z, float[N, 1] label", "z",
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", CHOSEN)
def test_one_of_several_outputs_is_chosen_where_that_is_sound(what: str) -> None:
    """And the others are named."""
    tail, outputs, _ = CHOSEN[what]
    if " r" in outputs:
        tail += " r = Relu(x)"
    made = gradient_model(net(tail, outputs))
    np.testing.assert_allclose(logits(made), Z, rtol=1e-5, atol=1e-6)
    assert "left out: output" in notes(made)


@pytest.mark.parametrize(
    ("tail", "outputs"),
    [
        ("a = Relu(z)", "float[N, 4] z, float[N, 4] a"),
        ("", "float[N, 12] f, float[N, 4] z"),
        ("p = Softmax(z) h = Relu(f) v = MatMul(h, w) q = Softmax(v)", "float[N, 4] p, float[N, 4] q"),
    ],
)
def test_outputs_that_leave_a_choice_are_asked_about(tail: str, outputs: str) -> None:
    """Nothing tells which of them is meant; naming one does."""
    model = net(tail, outputs)
    with pytest.raises(InvalidModel, match="name the logits"):
        gradient_model(model)
    assert gradient_model(model, output=model.graph.output[1].name).graph.output


def test_a_zipmap_is_the_tensor_that_it_was_made_of() -> None:
    """As scikit-learn exports them: labels, and a dictionary of probabilities for each sample."""
    model = net("label = ArgMax<axis = 1, keepdims = 0>(z) p = Softmax(z)", "int64[N] label")
    labels = {"classlabels_int64s": list(range(4))}
    model.graph.node.append(helper.make_node("ZipMap", ["p"], ["maps"], "zip", domain="ai.onnx.ml", **labels))
    kind = helper.make_map_type_proto(TensorProto.INT64, helper.make_tensor_type_proto(TensorProto.FLOAT, []))
    model.graph.output.append(helper.make_value_info("maps", helper.make_sequence_type_proto(kind)))
    onnx.checker.check_model(model)
    made = gradient_model(model)
    np.testing.assert_allclose(logits(made), Z, rtol=1e-5, atol=1e-6)
    assert [entry.domain for entry in made.opset_import] == [""]
    assert "zip" in notes(made)
    assert "label int64[N]" in notes(made)


def test_the_head_can_be_said() -> None:
    """Logits do not tell whether classes exclude each other."""
    assert meta(gradient_model(net("y = Identity(z)")))["onnxplain.head"] == "softmax"
    assert meta(gradient_model(net("y = Identity(z)"), head="sigmoid"))["onnxplain.head"] == "sigmoid"
    assert meta(gradient_model(net("y = Sigmoid(z)"), head="softmax"))["onnxplain.head"] == "softmax"
    with pytest.raises(UsageError, match="'relu' is unknown"):
        gradient_model(net("y = Identity(z)"), head="relu")
    with pytest.raises(UsageError, match="one class is always 1"):
        gradient_model(net("y = Identity(z)", "float[N, 1] y", 1), head="softmax")
    with pytest.raises(InvalidModel, match="over one class is always 1"):
        gradient_model(net("y = Softmax(z)", "float[N, 1] y", 1))


def test_probabilities_that_pass_for_logits_are_told() -> None:
    """A mean of two softmaxes has no logits; the gradient goes through them, and the note says so."""
    made = gradient_model(net("p = Softmax(z) n = Neg(z) q = Softmax(n) y = Mean(p, q)"))
    assert "computed from a Softmax" in notes(made)
    assert "vanishes" in notes(made)


@pytest.mark.parametrize("axis", [0, 2])
def test_a_softmax_over_anything_but_the_classes_is_refused(axis: int) -> None:
    tail = f"t = Reshape(z, tall) y = Softmax<axis = {axis}>(t)"
    with pytest.raises(InvalidModel, match=f"of axis {axis}"):
        gradient_model(net(tail, "float[N, 4, 1, 1] y"))


def sigmoid(z: np.ndarray) -> np.ndarray:
    return np.where(z > 0, 1 / (1 + np.exp(-np.abs(z))), np.exp(-np.abs(z)) / (1 + np.exp(-np.abs(z))))


def by_hand(kind: Kind, z: np.ndarray, t: np.ndarray) -> float:
    """The objectives of a sigmoid head, from their formulas."""
    p = sigmoid(z)
    log_p, log_not_p = (
        -np.log1p(np.exp(-np.abs(z))) + np.minimum(z, 0),
        -np.log1p(np.exp(-np.abs(z))) + np.minimum(-z, 0),
    )
    match kind:
        case Kind.LOGIT:
            return float(t @ z)
        case Kind.PROB:
            return float(t @ p)
        case Kind.LOGPROB:
            return float(t @ log_p)
        case Kind.CE:
            return -float(t @ log_p)
        case Kind.SOFT_CE:
            return -float(t @ log_p + (1 - t) @ log_not_p)
        case Kind.LOGIT_L2:
            return float(((z - t) ** 2).sum() / 2)
        case Kind.CE_ON_PROBS:
            return -float(t @ np.log(sigmoid(p)))
        case Kind.PROB_ON_PROBS:
            return float(t @ sigmoid(p))


@pytest.mark.parametrize("kind", Kind)
@pytest.mark.parametrize("classes", [1, 4])
def test_objectives_of_a_sigmoid_head(kind: Kind, classes: int) -> None:
    """In the graph, in `Objective` and by hand; the gradient is the slope of the value (five points, float64)."""
    made = gradient_model(net("y = Sigmoid(z)", f"double[N, {classes}] y", classes, "double"))
    backward = ReferenceExecutor(made)
    t = RNG.uniform(size=(1, classes)).astype(np.float32)
    more = {"onnxplain_target": t, "onnxplain_objective": np.asarray([kind], np.int64)}
    x, v = X[:1], RNG.normal(size=(1, 3, 2, 2))
    out = backward({"x": x, **more})
    want = by_hand(kind, out["logits"][0], t[0].astype(np.float64))
    assert out["value"][0] == pytest.approx(want, rel=1e-9)
    assert Objective(kind, t[0], Head.SIGMOID).value(out["logits"])[0] == pytest.approx(want, rel=1e-9)
    h = 1e-3
    at = {k: backward({"x": x + k * h * v, **more})["value"][0] for k in (-2, -1, 1, 2)}
    slope = (at[-2] - 8 * at[-1] + 8 * at[1] - at[2]) / (12 * h)
    assert (out["gradient"] * v).sum() == pytest.approx(slope, rel=1e-7, abs=1e-9)


def test_a_saturated_sigmoid_overflows_nowhere() -> None:
    """Logits of ±200 in float32: log σ(-200) is -200 and its slope 1; a softmax head next to it is not disturbed."""
    model = net("k = Constant<value_floats = [200.0, -200.0, 0.0, 1.0]>() o = Mul(z, k) y = Sigmoid(o)")
    made = OnnxRuntimeExecutor(gradient_model(model), optimise=False)
    x = np.zeros((1, 3, 2, 2), np.float32)
    x[0].reshape(-1)[:] = np.linalg.lstsq(W.T, np.ones(4), rcond=None)[0]  # z = 1
    for kind in Kind:
        for target in np.eye(4, dtype=np.float32):
            feeds = {"x": x, "onnxplain_target": target[None], "onnxplain_objective": np.asarray([kind], np.int64)}
            out = made(feeds)
            assert all(np.isfinite(value).all() for value in out.values())
            if kind is Kind.LOGPROB:
                want = {0: 0, 1: -200, 2: np.log(0.5), 3: np.log(sigmoid(np.array(1.0)))}[int(target.argmax())]
                assert out["value"][0] == pytest.approx(want, rel=1e-5, abs=1e-6)
