"""DeepLIFT multipliers: Σ m (x - x') = F(x) - F(x') through every operator, and the multipliers themselves on paper.

All in float64, by ONNX's reference evaluator, and from forward values alone.
"""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx
import onnx.parser
import pytest

import onnxplain as ox
from onnxplain.adapters.gradient.classifier import forward_model, gradient_model
from onnxplain.adapters.gradient.expr import op
from onnxplain.adapters.gradient.registry import ALLOWED, DEFAULT, Entry, Rules
from onnxplain.adapters.gradient.rules import deeplift
from onnxplain.adapters.gradient.rules.deeplift import DEEPLIFT
from onnxplain.engine.executors.reference import ReferenceExecutor
from onnxplain.engine.requests import Kind
from onnxplain.errors import NotDifferentiable, UsageError

Array = np.ndarray[Any, Any]
SHAPE = (3, 4, 4)
DRAW = np.random.default_rng(0)
X, REFERENCE = (np.random.default_rng(seed).normal(size=(2, *SHAPE)) for seed in (1, 2))
WEIGHTS = {
    "w": DRAW.normal(size=(3, 3, 3, 3)) / 3,
    "w2": DRAW.normal(size=(3, 3, 3, 3)) / 3,
    "b": DRAW.normal(size=3) / 3,
    "v": DRAW.normal(size=(4, 4)) / 2,
    "scale": DRAW.random(3) + 0.5,
    "scale4": DRAW.random(4) + 0.5,
    "shift": DRAW.normal(size=3),
    "shift4": DRAW.normal(size=4),
    "var": DRAW.random(3) + 0.5,
    "slope": DRAW.random((3, 1, 1)),
    "rows16": np.array([0, 3, 16]),
    **{f"w{name}": DRAW.normal(size=(1, 4 * gates, 16)) / 4 for name, gates in (("l", 4), ("g", 3), ("r", 1))},
    **{f"r{name}": DRAW.normal(size=(1, 4 * gates, 4)) / 2 for name, gates in (("l", 4), ("g", 3), ("r", 1))},
    "low": np.array(-0.5),
    "high": np.array(0.6),
    "two": np.array(2.0),
    "slope1": np.full((1, 1, 1), 0.3),
    "three": np.array(3.0),
    "one": np.array(1.0),
    "half": np.array(0.5),
    "places": np.array([2, 0, 2]),
    "last": np.array([3]),
    "plane": np.array([2, 3]),
    "flat": np.array([0, -1]),
    "pads": np.array([0, 0, 1, 0, 0, 0, 0, 2]),
    "start": np.array([1]),
    "end": np.array([4]),
}

# y of x, or of a = a convolution of x: whatever classifiers are made of.
FUNCTIONS = {
    **{name: f"y = {name}(a)" for name in (
        "Relu", "LeakyRelu", "Elu", "Selu", "Sigmoid", "Tanh", "Softplus", "HardSigmoid", "HardSwish", "Mish", "Abs",
        "Softsign", "Erf", "Exp", "Sin", "Cos", "Atan", "ThresholdedRelu", "Shrink", "Sinh", "Cosh", "Asinh",
    )},
    "Gelu": "y = Gelu(a)",
    "Gelu tanh": 'y = Gelu<approximate = "tanh">(a)',
    "Clip": "y = Clip(a, low, high)",
    "PRelu": "y = PRelu(a, slope)",
    "Pow 2": "y = Pow(a, two)",
    "Pow 3": "y = Pow(a, three)",
    "Max with a constant": "y = Max(a, low)",
    "Min with a constant": "y = Min(high, a)",
    "Sqrt": "e = Exp(a) y = Sqrt(e)",
    "Log": "e = Exp(a) f = Add(e, one) y = Log(f)",
    "Reciprocal": "e = Exp(a) f = Add(e, one) y = Reciprocal(f)",
}  # fmt: skip
LINEAR = {
    "Conv": "y = Conv(x, w, b)",
    "ConvTranspose": "y = ConvTranspose<strides = [2, 2]>(x, w, b)",
    "MatMul": "y = MatMul(x, v)",
    "BatchNormalization": "y = BatchNormalization(x, scale, shift, b, var)",
    "AveragePool": "y = AveragePool<kernel_shape = [3, 3], strides = [2, 2], pads = [1, 1, 1, 1]>(x)",
    "GlobalAveragePool": "y = GlobalAveragePool(x)",
    "shapes": "p = Transpose<perm = [0, 2, 3, 1]>(x) q = Slice(p, start, end, last) r = Gather<axis = 1>(x, places) "
    "s = Concat<axis = 1>(x, r) t = Pad(s, pads) y = ReduceMean<keepdims = 0>(t, last)",
    "Add and Sub": "p = Add(x, b3) q = Neg(x) r = Mul(q, half) y = Sub(p, r)",
}
PRODUCTS = {
    "Mul": "c = Sigmoid(a) y = Mul(x, c)",
    "Mul that broadcasts": "g = GlobalAveragePool(a) c = Sigmoid(g) y = Mul(x, c)",
    "square": "y = Mul(a, a)",
    "MatMul": "y = MatMul(x, a)",
    "Einsum": 'y = Einsum<equation = "nchw,nckw->nchk">(x, a)',
    "Div": "e = Exp(a) f = Add(e, one) y = Div(x, f)",
    "Div of a constant": "e = Exp(a) f = Add(e, one) y = Div(three, f)",
    "SiLU of pieces": "c = Sigmoid(a) y = Mul(a, c)",
}
MAXIMA = {
    "MaxPool": "y = MaxPool<kernel_shape = [2, 2], strides = [2, 2]>(a)",
    "MaxPool that overlaps": "y = MaxPool<kernel_shape = [3, 3], strides = [1, 1], pads = [1, 1, 1, 1]>(a)",
    "GlobalMaxPool": "y = GlobalMaxPool(a)",
    "ReduceMax": "y = ReduceMax<keepdims = 0>(a, plane)",
    "ReduceMin": "y = ReduceMin<keepdims = 1>(a, last)",
    "Max": "y = Max(x, a)",
    "Min": "y = Min(x, a)",
}
SEVERAL = {
    "Softmax": "s = Mul(a, three) y = Softmax<axis = 1>(s)",
    "LogSoftmax": "s = Mul(a, three) y = LogSoftmax(s)",
    "GroupNormalization": "y = GroupNormalization<num_groups = 3>(a, scale, shift)",
    "LayerNormalization": "y = LayerNormalization(x, scale4, shift4)",
    "InstanceNormalization": "y = InstanceNormalization(x, scale, shift)",
    "ReduceL2": "y = ReduceL2(a, last)",
    "ReduceLogSumExp": "y = ReduceLogSumExp(a, plane)",
    "attention": "k = Conv<pads = [1, 1, 1, 1]>(x, w2) t = Transpose<perm = [0, 1, 3, 2]>(k) s = MatMul(a, t) "
    "p = Softmax(s) y = MatMul(p, x)",
}
SINGLE = {"GroupNormalization", "ReduceL2"}  # whose bodies in ONNX compute in single precision
RECURRENT = {
    name: f"t = Reshape(x, rows16) q = Transpose<perm = [1, 0, 2]>(t) h, y0 = {name}<hidden_size = 4>(q, {weights}) "
    "y = Transpose<perm = [1, 0, 2]>(y0)"
    for name, weights in {"LSTM": "wl, rl", "GRU": "wg, rg", "RNN": "wr, rr"}.items()
}
CASES = {**FUNCTIONS, **LINEAR, **PRODUCTS, **MAXIMA, **SEVERAL, **RECURRENT}


def net(body: str, last: str = "rows = Flatten(y)") -> onnx.ModelProto:
    """Logits (N, 5): a linear function of what `body` makes of the image."""
    text = f'<ir_version: 10, opset_import: ["" : 21]> net (double[N, 3, 4, 4] x) => (double[N, 5] z) {{ {body} {last} '
    if "a" in body.replace("(", " ").replace(")", " ").replace(",", " ").split():
        text = text.replace("{ ", "{ a = Conv<pads = [1, 1, 1, 1]>(x, w, b) ", 1)
    given = WEIGHTS | {"b3": WEIGHTS["b"].reshape(3, 1, 1)}
    proto = onnx.parser.parse_model(text + "z = MatMul(rows, head) }")
    with_shapes = onnx.parser.parse_model(text.replace("double[N, 5] z", "double[N, k] rows") + "}")
    with_shapes.graph.initializer.extend(tensors(with_shapes, given))
    (out,) = onnx.shape_inference.infer_shapes(with_shapes).graph.output
    size = ReferenceExecutor(with_shapes)({"x": X})[out.name].shape[1]
    proto.graph.initializer.extend(tensors(proto, given | {"head": np.random.default_rng(5).normal(size=(size, 5))}))
    return proto


def tensors(proto: onnx.ModelProto, given: Mapping[str, Array]) -> list[onnx.TensorProto]:
    read = {name for node in proto.graph.node for name in node.input}
    return [onnx.numpy_helper.from_array(array, name) for name, array in given.items() if name in read]


def multipliers(
    proto: onnx.ModelProto, x: Array = X, reference: Array = REFERENCE, rules: Rules = DEEPLIFT, target: int = 1
) -> tuple[Array, Array]:
    """m, and the change of the logit, for each image."""
    made = gradient_model(proto, rules=rules)
    feeds = {
        "x": x,
        "onnxplain_reference": reference,
        "onnxplain_target": np.eye(5, dtype=np.float32)[[target] * len(x)],
        "onnxplain_objective": np.full(len(x), Kind.LOGIT, np.int64),
    }
    forward = ReferenceExecutor(forward_model(made))
    change = forward({"x": x})["logits"] - forward({"x": reference})["logits"]
    return ReferenceExecutor(made)(feeds)["gradient"], change[:, target]


def gap(proto: onnx.ModelProto, rules: Rules = DEEPLIFT, x: Array = X, reference: Array = REFERENCE) -> float:
    """How far Σ m Δx is from ΔF, relative to ΔF."""
    m, change = multipliers(proto, x, reference, rules)
    return float((np.abs((m * (x - reference)).sum(axis=(1, 2, 3)) - change) / np.abs(change)).max())


@pytest.mark.parametrize("name", CASES)
def test_the_change_is_kept(name: str) -> None:
    proto = net(CASES[name])
    assert gap(proto) < (1e-6 if name in SINGLE else 1e-10)
    used = {node.op_type for node in gradient_model(proto, rules=DEEPLIFT).graph.node}
    assert used <= ALLOWED | {node.op_type for node in proto.graph.node} | {"Identity"}


@pytest.mark.parametrize("name", CASES)
def test_without_a_change_it_is_the_gradient(name: str) -> None:
    """Where x = x', multipliers are derivatives: of maxima, of the first that is equal."""
    proto = net(CASES[name])
    feeds = {
        "x": X,
        "onnxplain_target": np.eye(5, dtype=np.float32)[[1, 1]],
        "onnxplain_objective": np.zeros(2, np.int64),
    }
    gradient = ReferenceExecutor(gradient_model(proto))(feeds)["gradient"]
    m, _ = multipliers(proto, X, X)
    least = 1e-6 if name in SINGLE else 1e-9
    np.testing.assert_allclose(m, gradient, rtol=0, atol=least * np.abs(gradient).max())


@pytest.mark.parametrize("name", LINEAR)
def test_linear_operators_have_their_gradient(name: str) -> None:
    """A = (x - x') ⊙ ∇F, whatever the reference."""
    m, _ = multipliers(net(LINEAR[name]))
    other, _ = multipliers(net(LINEAR[name]), REFERENCE, X * 3)
    np.testing.assert_allclose(m, other, rtol=0, atol=1e-12 * np.abs(m).max())


@pytest.mark.parametrize("name", FUNCTIONS)
def test_one_function_of_one_value_is_integrated_gradients(name: str) -> None:
    """F = f(⟨w, x⟩): from x' to x its argument goes straight, so that A is that of integrated gradients.

    Σ over the path of the gradient is Δf / Δ⟨w, x⟩ times w; so is m.
    """
    last = "s = Mul(x, c) a0 = ReduceSum<keepdims = 1>(s, axes)"
    body = FUNCTIONS[name].replace("(a", "(a0").replace(", a)", ", a0)").replace("slope", "slope1")
    size = "q = Flatten(y) p = Slice(q, zero, start, start)"
    proto = onnx.parser.parse_model(
        '<ir_version: 10, opset_import: ["" : 21]> net (double[N, 3, 4, 4] x) => (double[N, 5] z) '
        f"{{ {last} {body} {size} z = MatMul(p, head) }}"
    )
    c = np.random.default_rng(7).normal(size=(1, *SHAPE)) / 5
    head = np.random.default_rng(8).normal(size=(1, 5))
    given = WEIGHTS | {"c": c, "axes": np.array([1, 2, 3]), "zero": np.array([0]), "head": head}
    proto.graph.initializer.extend(tensors(proto, given))
    m, change = multipliers(proto)
    along = (c * (X - REFERENCE)).sum(axis=(1, 2, 3))
    np.testing.assert_allclose(m, (change / along).reshape(-1, 1, 1, 1) * c, rtol=1e-9)


def on_paper(body: str, x: Array, reference: Array, rules: Rules = DEEPLIFT) -> Array:
    """m of F = the sum of y, one image at a time."""
    proto = net(body)
    del proto.graph.initializer[[t.name for t in proto.graph.initializer].index("head")]
    size = int(np.prod(gradient_free(proto, x)))
    proto.graph.initializer.append(onnx.numpy_helper.from_array(np.ones((size, 5)), "head"))
    return multipliers(proto, x[None], reference[None], rules)[0][0]


def gradient_free(proto: onnx.ModelProto, x: Array) -> tuple[int, ...]:
    cut = onnx.ModelProto()
    cut.CopyFrom(proto)
    del cut.graph.node[-1]
    cut.graph.output[0].name = "rows"
    cut.graph.output[0].type.tensor_type.shape.dim[1].dim_param = "k"
    shape: tuple[int, ...] = ReferenceExecutor(cut)({"x": x[None]})["rows"].shape
    return shape


def test_a_product_is_shared_by_halves() -> None:
    """Δ(uv) of channels 0 and 1:  m = the mean of the other factor."""
    body = "f = Gather<axis = 1>(x, first) s = Gather<axis = 1>(x, second) y = Mul(f, s)"
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(WEIGHTS, "first", np.array([0]))
        patch.setitem(WEIGHTS, "second", np.array([1]))
        m = on_paper(body, X[0], REFERENCE[0])
    mean = (X[0] + REFERENCE[0]) / 2
    np.testing.assert_allclose(m, np.stack([mean[1], mean[0], 0 * mean[0]]), rtol=1e-12)


def maximum_on_paper(rules: Rules) -> None:
    """Windows of 2 x 2, worked out one by one."""
    x, reference = np.zeros(SHAPE), np.zeros(SHAPE)
    x[0, 0, :2] = 5, 1  # larger at the image: 5 against 3. All of 2 to the first, whose change is 5
    reference[0, 0, :2] = 0, 3
    x[1, 0, :2] = 1, 2  # larger at the reference: 2 against 4. All of -2 to the one that was 4, whose change is -3
    reference[1, 0, :2] = 4, 0
    m = on_paper("y = MaxPool<kernel_shape = [2, 2], strides = [2, 2]>(x)", x, reference, rules)
    assert m[0, 0, :2].tolist() == [2 / 5, 0]
    assert m[1, 0, :2].tolist() == pytest.approx([2 / 3, 0])


def minimum_on_paper(rules: Rules) -> None:
    """The same with all signs turned."""
    x, reference = np.full(SHAPE, 0.0), np.full(SHAPE, 0.0)
    x[0, 0] = -5, -1, 0, 0
    reference[0, 0] = 0, -3, 0, 0
    m = on_paper("y = ReduceMin<keepdims = 0>(x, last)", x, reference, rules)
    assert m[0, 0].tolist() == pytest.approx([2 / 5, 0, 0, 0])


def windows_on_paper(rules: Rules) -> None:
    """One element that wins in several windows gets what all of them have."""
    x, reference = np.zeros(SHAPE), np.zeros(SHAPE)
    x[0, 1, 1], reference[0, 1, 1] = 4, 1
    reference[0, 1, 2] = 2
    m = on_paper("y = MaxPool<kernel_shape = [2, 2], strides = [1, 1]>(x)", x, reference, rules)
    # four windows hold it; in two of them the reference has 2 instead of 1
    assert m[0, 1, 1] == pytest.approx((3 + 3 + 2 + 2) / 3)


@pytest.mark.parametrize("check", [maximum_on_paper, minimum_on_paper, windows_on_paper])
def test_an_extremum_belongs_to_the_winner_where_it_is_further_out(check: Callable[[Rules], None]) -> None:
    check(DEEPLIFT)


def test_softmax_of_two_is_the_sigmoid_of_their_difference() -> None:
    """p = σ(u - v): m is Δp / Δ(u - v), with both signs, if one of the two alone has changed."""
    x, reference = X[0].copy(), X[0].copy()
    reference[0] += 1.5
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(WEIGHTS, "pair", np.array([0, 1]))
        patch.setitem(WEIGHTS, "first", np.array([0]))
        m = on_paper(
            "u = Gather<axis = 1>(x, pair) s = Softmax<axis = 1>(u) y = Gather<axis = 1>(s, first)", x, reference
        )
    p, p0 = (1 / (1 + np.exp(one[1] - one[0])) for one in (x, reference))
    np.testing.assert_allclose(m[0], (p - p0) / -1.5, rtol=1e-10)


@pytest.mark.parametrize("size", [1e-3, 1.0, 300.0])
def test_softmax_of_any_size(size: float) -> None:
    """No overflow where one of the two halves lies far above the other."""
    proto = net("s = Mul(a, three) y = Softmax<axis = 1>(s)")
    m, change = multipliers(proto, X * size, REFERENCE)
    total = (m * (X * size - REFERENCE)).sum(axis=(1, 2, 3))
    np.testing.assert_allclose(total, change, rtol=1e-9)


def converted(proto: onnx.ModelProto, dtype: type) -> onnx.ModelProto:
    """The same net in another precision."""
    made = onnx.ModelProto()
    made.CopyFrom(proto)
    for value in (*made.graph.input, *made.graph.output):
        value.type.tensor_type.elem_type = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    for tensor in made.graph.initializer:
        array = onnx.numpy_helper.to_array(tensor)
        if array.dtype == np.float64:
            tensor.CopyFrom(onnx.numpy_helper.from_array(array.astype(dtype), tensor.name))
    return made


def test_float32_is_as_good_as_float32() -> None:
    """Where little changes, quotients of rounding errors do not get in: half of the pixels stay as they are."""
    proto = net("c = Sigmoid(a) d = Conv(c, w2) e = Tanh(d) f = MaxPool<kernel_shape = [2, 2]>(e) y = Softplus(f)")
    single = converted(proto, np.float32)
    reference = np.where(X > 0, X, REFERENCE) + 1e-7 * REFERENCE
    exact, _ = multipliers(proto, X, reference)
    rounded, _ = multipliers(single, X.astype(np.float32), reference.astype(np.float32))
    np.testing.assert_allclose(rounded, exact, rtol=0, atol=1e-3 * np.abs(exact).max())


def test_a_batch_is_explained_one_by_one() -> None:
    proto = net(CASES["attention"])
    both, _ = multipliers(proto)
    alone = [multipliers(proto, X[i : i + 1], REFERENCE[i : i + 1])[0][0] for i in range(2)]
    np.testing.assert_allclose(both, np.stack(alone), rtol=0, atol=1e-13)


def test_a_fixed_batch_and_channels_last() -> None:
    """Nothing is assumed of where the batch is: tokens go before it and back."""
    body = "t = Transpose<perm = [1, 0, 2, 3]>(a) s = Softmax<axis = 0>(t) r = Transpose<perm = [1, 2, 3, 0]>(s)"
    proto = net(f"{body} y = Relu(r)")
    assert gap(proto) < 1e-10
    fixed = onnx.ModelProto()
    fixed.CopyFrom(proto)
    for value in (fixed.graph.input[0], fixed.graph.output[0]):
        value.type.tensor_type.shape.dim[0].dim_value = 1
    assert gap(fixed, x=X[:1], reference=REFERENCE[:1]) < 1e-10


def test_half_precision() -> None:
    """A classifier of half precision: rules see float32 at the image and at the reference."""
    proto = net("c = Sigmoid(a) y = Mul(x, c)")
    half = converted(proto, np.float16)
    m, change = multipliers(half, X.astype(np.float32), REFERENCE.astype(np.float32))
    assert (m * (X - REFERENCE)).sum(axis=(1, 2, 3)) == pytest.approx(change, rel=2e-2)


def test_inner_layers_have_multipliers_too() -> None:
    """Σ m Δa = ΔF at a layer a as well."""
    proto = net("y = Relu(a)")
    made = gradient_model(proto, rules=DEEPLIFT, layers=["a"])
    run = ReferenceExecutor(made)
    common = {"onnxplain_target": np.eye(5, dtype=np.float32)[[1, 1]], "onnxplain_objective": np.zeros(2, np.int64)}
    there = run({"x": X, "onnxplain_reference": REFERENCE, **common})
    back = run({"x": REFERENCE, "onnxplain_reference": X, **common})
    change = (there["activation_0"] - back["activation_0"]) * there["activation_gradient_0"]
    assert change.sum(axis=(1, 2, 3)) == pytest.approx((there["logits"] - back["logits"])[:, 1], abs=1e-12)


# Rules that are wrong on purpose, and a case that must not let each of them pass.


def changed(name: str, rule: Any) -> Rules:
    return ChainMap({name: Entry(rule, DEEPLIFT[name].broadcastable, reference=True)}, DEEPLIFT)


def one_sided(g: Any, y: Any, x: Any, **attributes: Any) -> Any:
    """What wins at the image takes all."""
    return deeplift.quotient(
        DEFAULT["MaxPool"].rule(g * deeplift.change(y), y, x, **attributes), deeplift.change(x), x * 0.0
    )


MUTANTS = {
    "the derivative of a function": ("Sigmoid", DEFAULT["Sigmoid"].rule, "Sigmoid"),
    "the derivative at the reference": (
        "Tanh",
        lambda g, y, x: DEFAULT["Tanh"].rule(g, y.reference, x.reference),
        "Tanh",
    ),
    "turned round": ("Relu", lambda g, y, x: -deeplift.rescale(DEFAULT["Relu"].rule)(g, y, x)[0], "Relu"),
    "the gradient of a product": ("Mul", DEFAULT["Mul"].rule, "Mul"),
    "the gradient of a quotient": ("Div", DEFAULT["Div"].rule, "Div"),
    "the gradient of a product of matrices": ("MatMul", DEFAULT["MatMul"].rule, "attention"),
    "the gradient of softmax": ("Softmax", DEFAULT["Softmax"].rule, "Softmax"),
    "the gradient of a maximum": ("MaxPool", DEFAULT["MaxPool"].rule, "MaxPool"),
    "the gradient of a normalisation": (
        "InstanceNormalization",
        DEFAULT["InstanceNormalization"].rule,
        "InstanceNormalization",
    ),
}


@pytest.mark.parametrize("name", MUTANTS)
def test_wrong_rules_are_caught(name: str) -> None:
    op_type, rule, case = MUTANTS[name]
    assert gap(net(CASES[case]), changed(op_type, rule)) > 1e-3


def one_window(g: Any, y: Any, x: Any, **attributes: Any) -> Any:
    """An element that wins in several windows gets the mean of what they have."""
    right, _ = (*deeplift.extremum(DEFAULT["MaxPool"].rule)(g, y, x, **attributes), None)
    return right / op("Max", DEFAULT["MaxPool"].rule(y * 0.0 + 1.0, y, x, **attributes), 1.0)


@pytest.mark.parametrize(
    ("op_type", "rule", "check"),
    [
        ("MaxPool", one_sided, maximum_on_paper),
        ("MaxPool", one_window, windows_on_paper),
        ("ReduceMin", deeplift.extremum(DEFAULT["ReduceMin"].rule), minimum_on_paper),
    ],
)
def test_wrong_winners_are_caught(op_type: str, rule: Any, check: Callable[[Rules], None]) -> None:
    """These keep the change, and give it to others."""
    with pytest.raises(AssertionError):
        check(changed(op_type, rule))


# What is refused


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ("f = Floor(a) y = Sub(a, f)", "Sub.*in jumps"),
        ("c = Greater(a, low) y = Where(c, a, x)", "Where.*in jumps"),
        ("e = Exp(x) y = Pow(e, a)", "Pow.*several of its inputs"),
        ("y = ReduceProd(a, last)", "ReduceProd.*no multipliers"),
        ("y = LRN<size = 3>(a)", "LRN.*no multipliers"),
        ('y = Einsum<equation = "nchw,nchw,nchw->nchw">(x, a, a)', "Einsum.*several factors"),
    ],
)  # fmt: skip
def test_what_has_no_multipliers_is_refused(body: str, says: str) -> None:
    """And has a gradient nevertheless."""
    proto = net(body)
    with pytest.raises(NotDifferentiable, match=says):
        gradient_model(proto, rules=DEEPLIFT)
    gradient_model(proto)


def test_a_model_says_that_it_holds_multipliers() -> None:
    made = gradient_model(net("y = Relu(a)"), rules=DEEPLIFT)
    assert {p.key: p.value for p in made.metadata_props}["onnxplain.rules"] == "deeplift"
    names = ["x", "onnxplain_reference", "onnxplain_target", "onnxplain_objective"]
    assert [v.name for v in made.graph.input] == names
    assert [v.name for v in forward_model(made).graph.input] == ["x"]
    assert "onnxplain.rules" not in {p.key for p in gradient_model(net("y = Relu(a)")).metadata_props}


def test_where_there_can_be_no_reference() -> None:
    with pytest.raises(UsageError, match="gradient_model"):
        ox.differentiate(net("y = Relu(a)"), rules=DEEPLIFT)
    with pytest.raises(UsageError, match="bias_gradients"):
        gradient_model(net("y = Relu(a)"), rules=DEEPLIFT, bias_gradients=True)


def test_every_rule_of_the_gradient_has_an_answer() -> None:
    """Of each operator that has a gradient it is known what it is here: a multiplier, its body, or a refusal."""
    for name in DEFAULT:
        assert name in DEEPLIFT or deeplift.has_body("", name, deeplift.OPSET)
    assert not [name for name, entry in DEEPLIFT.items() if not entry.reference]
