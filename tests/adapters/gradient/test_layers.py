"""Inner layers as outputs: which value a name means, how it lies on the picture, what is chosen where none is named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
import pytest
import tiny

import onnxplain as ox
from onnxplain.adapters.gradient.classifier import gradient_model
from onnxplain.adapters.gradient.registry import ALLOWED
from onnxplain.engine.executors.reference import ReferenceExecutor
from onnxplain.errors import InvalidModel, UsageError
from onnxplain.models.preprocess import PreprocessSpec

HEAD = """<ir_version: 8, opset_import: ["" : 18]> net """
CONV = (
    HEAD
    + """(float[N, 2, 4, 4] x) => (float[N, 3] z)
<float[4, 2, 1, 1] w = {1, 2, -1, 1, 2, -2, 0.5, 1}, float[4] b = {0.1, -0.2, 0.3, 0},
 float[4, 3] v = {1, 0, 2, -1, 1, 0, 3, 1, 1, 0, 2, -1}>
{
  [first] a = Conv (x, w, b)
  [last] h = Relu (a)
  p = GlobalAveragePool (h)
  f = Flatten (p)
  z = MatMul (f, v)
}"""
)


def parsed(text: str) -> onnx.ModelProto:
    return onnx.parser.parse_model(text)


def layers_of(model: onnx.ModelProto) -> list[dict[str, Any]]:
    return json.loads({entry.key: entry.value for entry in model.metadata_props}["onnxplain.layers"])  # type: ignore[no-any-return]


def outputs(model: onnx.ModelProto, x: np.ndarray, classes: int = 3) -> dict[str, np.ndarray]:
    """Of the first class's logit."""
    t = np.zeros((len(x), classes), np.float32)
    t[:, 0] = 1
    name = model.graph.input[0].name
    return dict(
        ReferenceExecutor(model)({name: x, "onnxplain_target": t, "onnxplain_objective": np.zeros(len(x), np.int64)})
    )


X = np.random.default_rng(0).normal(size=(3, 2, 4, 4)).astype(np.float32)


def test_a_layer_is_its_activation_and_its_gradient() -> None:
    """By the value's name and by the node's; the gradient of a mean is a sixteenth of the weights."""
    made = gradient_model(parsed(CONV), layers=["h", "first"])
    assert [value.name for value in made.graph.output] == [
        *("logits", "value", "gradient", "activation_0", "activation_gradient_0"),
        *("activation_1", "activation_gradient_1"),
    ]
    onnx.checker.check_model(made, full_check=True)
    assert {value.name: value.type.tensor_type.shape.dim[0].dim_param for value in made.graph.output} == dict.fromkeys(
        (value.name for value in made.graph.output), "N"
    )
    out = outputs(made, X)
    a = np.einsum("ki,nihw->nkhw", np.float32([[1, 2], [-1, 1], [2, -2], [0.5, 1]]), X)
    a += np.float32([0.1, -0.2, 0.3, 0]).reshape(4, 1, 1)
    g = np.float32([1, -1, 3, 0]).reshape(1, 4, 1, 1) / 16
    np.testing.assert_allclose(out["activation_0"], np.maximum(a, 0), atol=1e-6)
    np.testing.assert_allclose(out["activation_gradient_0"], g + 0 * a, atol=1e-7)
    np.testing.assert_allclose(out["activation_1"], a, atol=1e-6)
    np.testing.assert_allclose(out["activation_gradient_1"], g * (a > 0), atol=1e-7)
    assert layers_of(made)[0] == {
        "name": "h", "node": "last", "operator": "Relu", "channels": 4, "grid": [4, 4], "channel_axis": 1,
        "prefix_tokens": 0,
    }  # fmt: skip


def test_what_else_the_model_gives_is_as_without_layers() -> None:
    plain, more = (gradient_model(parsed(CONV), **how) for how in ({}, {"layers": "auto", "bias_gradients": True}))
    a, b = outputs(plain, X), outputs(more, X)
    assert all((a[name] == b[name]).all() for name in a)
    assert {node.op_type for node in more.graph.node} <= ALLOWED | {node.op_type for node in plain.graph.node}


def test_a_model_without_layers_has_no_trace_of_them() -> None:
    made = gradient_model(parsed(CONV))
    assert [value.name for value in made.graph.output] == ["logits", "value", "gradient"]
    assert not {entry.key for entry in made.metadata_props} & {"onnxplain.layers", "onnxplain.bias_gradients"}


def after(text: str, inputs: str = "float[N, 2, 4, 4] x", weights: str = "") -> onnx.ModelProto:
    """A net that ends in the mean of `y` over all places, for each of three classes."""
    return parsed(
        f"""{HEAD}({inputs}) => (float[N, 3] z)
        <float[1, 3] v = {{1, 2, 3}}, int64[1] m = {{-1}}, int64[2] s = {{0, -1}},
         float[4, 2, 1, 1] w = {{1, 2, -1, 1, 2, -2, 0.5, 1}}{weights}>
        {{ {text} flat = Reshape (y, s) r = ReduceMean <keepdims = 1> (flat, m) z = MatMul (r, v) }}"""
    )


TOKENS = """, int64[3] t = {0, 4, -1}, float[1, 2, 4] c = {1, 2, 3, 4, 5, 6, 7, 8},
float[4, 5] u = {1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0}"""


@pytest.mark.parametrize(
    ("name", "axis", "prefix"), [("a", 1, 0), ("last", 3, 0), ("row", 1, 0), ("tokens", 2, 0), ("wide", 2, 0)]
)
def test_every_layout_becomes_channels_first(name: str, axis: int, prefix: int) -> None:
    """A convolution's output, the same with channels last, with its places in a row, and as tokens."""
    made = gradient_model(
        after(
            """a = Conv (x, w) last = Transpose <perm = [0, 2, 3, 1]> (a) row = Reshape (a, t)
            tokens = Transpose <perm = [0, 2, 1]> (row) wide = MatMul (tokens, u) q = Tanh (wide)
            l = Transpose <perm = [0, 3, 1, 2]> (last) k = Tanh (l) o = Flatten (k) i = Flatten (q)
            y = Concat <axis = 1> (o, i)""",
            weights=TOKENS,
        ),
        layers=[name],
    )
    (layer,) = layers_of(made)
    assert (layer["grid"], layer["channel_axis"], layer["prefix_tokens"]) == ([4, 4], axis, prefix)
    onnx.checker.check_model(made, full_check=True)
    out = outputs(made, X)
    a = np.einsum("ki,nihw->nkhw", np.float32([[1, 2], [-1, 1], [2, -2], [0.5, 1]]), X)
    if name == "wide":
        a = np.einsum("ko,nkhw->nohw", np.float32([1, 2, 3, 4, 5, 6, 7, 8, 9, 0] * 2).reshape(4, 5), a)
    np.testing.assert_allclose(out["activation_0"], a, atol=1e-5)
    assert out["activation_gradient_0"].shape == a.shape
    if name == "wide":
        slope = (1 - np.tanh(a) ** 2) / (4 * 16 + 5 * 16)
        np.testing.assert_allclose(out["activation_gradient_0"], slope, atol=1e-6)


def test_tokens_before_the_grid_are_dropped() -> None:
    """Four by four tokens behind two others, in a value with tokens, and in one with channels first."""
    made = gradient_model(
        after(
            """a = Conv (x, w) row = Reshape (a, t) tokens = Transpose <perm = [0, 2, 1]> (row)
            one = Shape <start = 0, end = 1> (x) size = Concat <axis = 0> (one, two) class = Expand (c, size)
            all = Concat <axis = 1> (class, tokens) y = Tanh (all)""",
            weights=TOKENS + ", int64[2] two = {2, 4}",
        ),
        layers=["all"],
    )
    assert layers_of(made)[0]["prefix_tokens"] == 2
    a = np.einsum("ki,nihw->nkhw", np.float32([[1, 2], [-1, 1], [2, -2], [0.5, 1]]), X)
    out = outputs(made, X)
    np.testing.assert_allclose(out["activation_0"], a, atol=1e-6)
    np.testing.assert_allclose(out["activation_gradient_0"], (1 - np.tanh(a) ** 2) / 72, atol=1e-6)


def test_a_grid_need_not_be_square() -> None:
    """Its height and width are those of the convolution that the tokens come from."""
    made = gradient_model(
        after(
            "a = Conv (x, w) row = Reshape (a, t) tokens = Transpose <perm = [0, 2, 1]> (row) y = Tanh (tokens)",
            "float[N, 2, 2, 8] x",
            TOKENS,
        ),
        layers=["tokens"],
    )
    assert layers_of(made)[0]["grid"] == [2, 8]


# what is chosen where none is named


@pytest.mark.parametrize(
    ("text", "chosen"),
    [
        ("a = Conv (x, w) y = Relu (a)", "y"),
        ("a = Conv (x, w) g = Sigmoid (a) y = Mul (a, g)", "y"),
        ("a = Conv (x, w) b = Relu (a) c = Tanh (a) d = Add (b, c) y = GlobalAveragePool (d)", "d"),
        ("a = Conv (x, w) b = Relu (a) y = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (b)", "b"),
        ("a = Conv (x, w) b = Conv (x, w) y = Concat <axis = 1> (a, b)", "y"),
        ("a = Conv (x, w) b = Tanh (x) c = Flatten (a) d = Flatten (b) y = Concat <axis = 1> (c, d)", "a"),
        ("a = Conv (x, w) p = GlobalAveragePool (a) q = Conv (p, o) g = Sigmoid (q) y = Mul (a, g)", "y"),
    ],
)
def test_the_last_convolution_and_what_it_leads_to(text: str, chosen: str) -> None:
    """Through activation, shortcut, concatenation and gate; not through pooling, and not where ways go around it."""
    o = ", float[4, 4, 1, 1] o = {1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1, 2, 3, 4, 5, 6}"
    assert layers_of(gradient_model(after(text, weights=o), layers="auto"))[0]["name"] == chosen


def test_none_to_choose() -> None:
    with pytest.raises(UsageError, match=r"no convolution and no attention.*name a layer"):
        gradient_model(after("y = Tanh (x)"), layers="auto")


# names that mean nothing, or nothing of use


SEVERAL = (
    HEAD
    + """(float[N, 2, 4, 4] x) => (float[N, 2] z, float[N, 2, 4, 4] beside)
<int64[1] m = {-1}, int64[3] t = {0, 2, -1}, float[2, 2, 1, 1] w = {1, 2, -1, 1}, float d = {0.5},
 float[2, 2] e = {1, 2, 3, 4}>
{
  [conv] a = Conv (x, w)
  [halves] b, c = Split <axis = 1, num_outputs = 2> (a)
  [whole] i = Cast <to = 7> (a)
  f = Cast <to = 1> (i)
  [mixed] g = Add (a, f)
  [folded] m3 = Neg (m2)
  [scaled] o = Mul (g, d)
  beside = Tanh (o)
  [attended] u = Transpose <perm = [0, 1, 3, 2]> (o)
  q = MatMul (o, u)
  s = Add (b, c)
  r = Reshape (q, t)
  j = Reshape (s, t2)
  v = ReduceMean <keepdims = 0> (r, m)
  j2 = ReduceMean <keepdims = 0> (j, m3)
  z0 = Add (v, j2)
  [final] z = MatMul (z0, e)
}"""
).replace("float d =", "int64[3] t2 = {0, 1, -1}, int64[1] m2 = {-2}, float d =")


@pytest.mark.parametrize(
    ("layers", "words"),
    [
        ("covn", ["no value or node of that name", "did you mean conv?", "onnxplain inspect"]),
        ("nothing like it", ["no value or node of that name", "inspect"]),
        (["conv", "a"], ["a is named twice"]),
        ("halves", ["makes several values", "b, c"]),
        ("whole", ["do not depend on the image through it"]),
        ("f", ["do not depend on the image through it"]),
        ("beside", ["the model has it", "behind the logits or beside"]),
        ("folded", ["the model has it", "constants are folded"]),
        ("w", ["the model has it"]),
        ("q", ["product of two values", "attention"]),
        ("v", ["no height and width", "(N, tokens, C)"]),
        ("final", ["no height and width"]),
        ("onnxplain_target", ["no value or node"]),
    ],
)
def test_names_that_are_refused(layers: str | list[str], words: list[str]) -> None:
    with pytest.raises(UsageError) as caught:
        gradient_model(parsed(SEVERAL), output="z", layers=layers)
    for word in words:
        assert word in str(caught.value)


def test_tokens_that_are_no_grid_are_refused() -> None:
    model = after("y = MatMul (x, u)", "float[N, 62, 4] x", TOKENS)
    with pytest.raises(UsageError, match="62 tokens are no grid"):
        gradient_model(model, layers="y")


def test_an_input_that_is_called_as_an_output_is_refused() -> None:
    text = CONV.replace("4, 4] x)", "4, 4] activation_0)").replace("Conv (x,", "Conv (activation_0,")
    with pytest.raises(InvalidModel, match="called activation_0"):
        gradient_model(parsed(text), layers="auto")


def test_names_of_outputs_inside_the_model_make_way() -> None:
    made = gradient_model(
        parsed(CONV.replace("h = Relu", "activation_0 = Relu").replace("(h)", "(activation_0)")), layers="a"
    )
    assert outputs(made, X)["activation_0"].min() < 0  # the convolution, not the Relu


# models of other kinds


def test_half_precision_comes_out_as_float32() -> None:
    """Whether the layer or the whole classifier is of it."""
    text = "i = Cast <to = 10> (x) k = Cast <to = 10> (w) a = Conv (i, k) b = Relu (a) y = Cast <to = 1> (b)"
    for inputs in ("float[N, 2, 4, 4] x", "float16[N, 2, 4, 4] x"):
        made = gradient_model(after(text, inputs), layers="b")
        out = outputs(made, X)
        assert out["activation_0"].dtype == out["activation_gradient_0"].dtype == np.float32
        a = np.einsum("ki,nihw->nkhw", np.float32([[1, 2], [-1, 1], [2, -2], [0.5, 1]]), X)
        np.testing.assert_allclose(out["activation_0"], np.maximum(a, 0), atol=2e-2)


def test_a_fixed_batch_of_one_that_cannot_be_freed() -> None:
    """A mean over everything, the batch too."""
    text = """a = Conv (x, w) b = Relu (a) o = ReduceMean <keepdims = 1> (b) y = Sub (b, o)"""
    model = after(text, "float[1, 2, 4, 4] x")
    made = gradient_model(model, layers="auto", bias_gradients=True)
    out = outputs(made, X[:1])
    assert out["activation_0"].shape == out["activation_gradient_0"].shape == (1, 4, 4, 4)
    assert out["bias_sum"].shape == (1,)


def test_channels_last_images() -> None:
    """A net that transposes first; and the image itself as a layer."""
    model = after("i = Transpose <perm = [0, 3, 1, 2]> (x) a = Conv (i, w) y = Relu (a)", "float[N, 4, 4, 2] x")
    made = gradient_model(model, layers=["auto", "i", "x"])
    assert [(layer["name"], layer["channel_axis"]) for layer in layers_of(made)] == [("y", 1), ("i", 1), ("x", 3)]
    out = outputs(made, np.moveaxis(X, 1, -1))
    np.testing.assert_array_equal(out["activation_2"], X)
    np.testing.assert_array_equal(out["activation_gradient_2"], out["activation_gradient_1"])
    np.testing.assert_array_equal(out["activation_gradient_2"], np.moveaxis(out["gradient"], -1, 1))


def test_layers_keep_their_place_when_preprocessing_is_folded_in(tmp_path: Path) -> None:
    """The activation of pixels is that of the normalised image; what is folded in is no layer."""
    spec = PreprocessSpec.from_dict(tiny.SPEC)
    made = gradient_model(tiny.classifier(), preprocess=spec, layers="auto", bias_gradients=True)
    plain = gradient_model(tiny.classifier(), layers="auto", bias_gradients=True)
    x = np.random.default_rng(0).random((2, 3, 8, 8), np.float32)
    space = spec.space(channel_axis=0)
    u = ((x - space.zero) / space.scale)[:, ::-1].copy()
    folded, direct = outputs(made, x, 5), outputs(plain, u, 5)
    for name in ("activation_0", "activation_gradient_0", "bias_sum", "value"):
        np.testing.assert_allclose(folded[name], direct[name], rtol=1e-4, atol=1e-5)
    inside = ((x - space.zero) * folded["gradient"]).sum((1, 2, 3)) + folded["bias_sum"]
    np.testing.assert_allclose(inside, folded["value"], rtol=1e-4)


def test_inspect_lists_layers_and_tells_the_choice(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    onnx.save(parsed(CONV), path)
    found = ox.inspect(path, preprocess=None)
    assert found.layer is not None
    assert found.layer["name"] == "h"
    assert [layer["name"] for layer in found.layers] == ["a", "h"]
    ox.write_gradient_model(path, tmp_path / "g.onnx", preprocess=None, layers="auto")
    again = ox.inspect(tmp_path / "g.onnx")
    assert [layer["name"] for layer in again.layers] == ["a", "h"]
    assert again.gradient_model is not None
    assert again.gradient_model["layers"] == ["h"]


ATTENTION = """a = Conv (x, w) row = Reshape (a, t) tokens = Transpose <perm = [0, 2, 1]> (row)
    [norm1] n = LayerNormalization (tokens, ones) {before}
    q = MatMul (rolled, u) k = Transpose <perm = [0, 2, 1]> (q) products = MatMul (q, k)
    p = Softmax (products) o = MatMul (p, q) more = MatMul (o, back) stream = Add (tokens, more)
    [norm2] y = LayerNormalization (stream, ones)"""


@pytest.mark.parametrize(
    "before",
    ["rolled = Identity (n)", "l, h = Split <axis = 1, num_outputs = 2> (n) rolled = Concat <axis = 1> (h, l)"],
)
def test_tokens_before_the_last_attention(before: str) -> None:
    """The norm, not its projection and not the tokens rolled round; and the patch embedding is not chosen."""
    weights = """, float[4] ones = {1, 1, 1, 1},
    float[5, 4] back = {1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0}"""
    made = gradient_model(after(ATTENTION.format(before=before), weights=TOKENS + weights), layers="auto")
    (layer,) = layers_of(made)
    assert (layer["node"], layer["name"]) == ("norm1", "n")
