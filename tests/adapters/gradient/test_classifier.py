"""Gradient models of classifiers: what goes in, what comes out, what is refused."""

from __future__ import annotations

import json

import numpy as np
import onnx
import onnx.parser
import pytest

from onnxplain.adapters.gradient.classifier import forward_model, gradient_model
from onnxplain.adapters.gradient.registry import DEFAULT
from onnxplain.engine.executors.onnxruntime import OnnxRuntimeExecutor
from onnxplain.engine.executors.reference import ReferenceExecutor
from onnxplain.engine.requests import Kind, Objective
from onnxplain.errors import InvalidModel, NotDifferentiable, UsageError
from onnxplain.models.preprocess import PreprocessSpec, normalise

RNG = np.random.default_rng(9)
SPEC = PreprocessSpec(size=(8, 8), image_mean=(0.485, 0.456, 0.406), image_std=(0.229, 0.224, 0.225))
BGR = PreprocessSpec(size=(8, 8), rescale_factor=1.0, image_mean=(123.0, 117.0, 104.0), do_flip_channel_order=True)

BODY = """
    {{
        h = Conv<pads = [1, 1, 1, 1], strides = [2, 2]>(x, w)
        r = Relu(h)
        p = GlobalAveragePool(r)
        f = Flatten(p)
        {out} = Gemm(f, v, c)
        {tail}
    }}"""
WEIGHTS = {"w": RNG.normal(size=(6, 3, 3, 3)), "v": RNG.normal(size=(6, 4)), "c": RNG.normal(size=4)}


def classifier(
    signature: str = "({t}[N, 3, 8, 8] x) => ({t}[N, 4] z)",
    *,
    out: str = "z",
    tail: str = "",
    dtype=np.float32,
    opset: int = 18,
) -> onnx.ModelProto:
    text = f'<ir_version: 10, opset_import: ["" : {opset}]> net ' + signature + BODY.format(out=out, tail=tail)
    proto = onnx.parser.parse_model(text.replace("{t}", "float" if dtype == np.float32 else "double"))
    constants = [onnx.numpy_helper.from_array(a.astype(dtype), name) for name, a in WEIGHTS.items()]
    proto.graph.initializer.extend(constants)
    return proto


def feeds(x: np.ndarray, kinds: list[Kind] | None = None, target: np.ndarray | None = None) -> dict[str, np.ndarray]:
    kinds = kinds or [Kind.LOGIT] * len(x)
    target = np.eye(4, dtype=np.float32)[np.arange(len(x)) % 4] if target is None else target
    return {"x": x, "onnxplain_target": target, "onnxplain_objective": np.asarray(kinds, np.int64)}


def unoptimised(proto: onnx.ModelProto) -> OnnxRuntimeExecutor:
    return OnnxRuntimeExecutor(proto, threads=1, optimise=False)


def names(values) -> list[str]:
    return [v.name for v in values]


def shape(value: onnx.ValueInfoProto) -> list[int | str]:
    return [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]


def test_inputs_and_outputs_are_those_of_a_gradient_model() -> None:
    """The image as the classifier has it, a target row and a code per sample; logits, value and gradient."""
    graph = gradient_model(classifier()).graph
    assert {v.name: shape(v) for v in graph.input} == {
        "x": ["N", 3, 8, 8],
        "onnxplain_target": ["N", 4],
        "onnxplain_objective": ["N"],
    }
    assert {v.name: shape(v) for v in graph.output} == {"logits": ["N", 4], "value": ["N"], "gradient": ["N", 3, 8, 8]}
    assert names(graph.input)[0] == "x"
    assert names(graph.output) == ["logits", "value", "gradient"]


@pytest.mark.parametrize("rows", [1, 3, 8])
def test_values_are_those_that_the_driver_computes_from_the_logits(rows: int) -> None:
    """`value` of every kind is `Objective.value` of the logits; a row of a batch is that row alone, bit for bit."""
    backward = unoptimised(gradient_model(classifier()))
    x = RNG.normal(size=(rows, 3, 8, 8)).astype(np.float32)
    for kind in Kind:
        t = RNG.normal(size=(rows, 4)).astype(np.float32)
        out = backward(feeds(x, [kind] * rows, t))
        want = [Objective(kind, row).value(z) for row, z in zip(t, out["logits"], strict=True)]
        np.testing.assert_allclose(out["value"], want, rtol=2e-5, atol=2e-6)  # float32 against float64: sums of four
        for i in range(rows):
            alone = backward(feeds(x[i : i + 1], [kind], t[i : i + 1]))
            for name in out:
                np.testing.assert_array_equal(out[name][i], alone[name][0])


def test_the_objective_of_a_neighbour_does_not_matter() -> None:
    """Kinds mixed in a batch give what each gives by itself."""
    backward = unoptimised(gradient_model(classifier()))
    kinds = list(Kind)
    x = RNG.normal(size=(len(kinds), 3, 8, 8)).astype(np.float32)
    t = RNG.normal(size=(len(kinds), 4)).astype(np.float32)
    mixed = backward(feeds(x, kinds, t))
    for i, kind in enumerate(kinds):
        pure = backward(feeds(x, [kind] * len(kinds), t))
        for name in mixed:
            np.testing.assert_array_equal(mixed[name][i], pure[name][i])


def test_a_saturated_neighbour_does_not_spoil_the_batch() -> None:
    """An image whose logits overflow makes NaN in its own row at the most."""
    backward = unoptimised(gradient_model(classifier()))
    x = RNG.normal(size=(2, 3, 8, 8)).astype(np.float32)
    clean = backward(feeds(x, [Kind.LOGIT, Kind.PROB]))
    x[1] = 1e38
    out = backward(feeds(x, [Kind.LOGIT, Kind.PROB]))
    for name in clean:
        np.testing.assert_array_equal(out[name][0], clean[name][0])


@pytest.mark.parametrize("spec", [SPEC, BGR], ids=["rgb", "bgr"])
def test_the_forward_half_is_the_classifier_fed_with_normalised_images(spec: PreprocessSpec) -> None:
    """Logits bit for bit: of the classifier on `normalise(x)`, of the gradient model, and of its forward half."""
    graph = gradient_model(classifier(), preprocess=spec)
    half = forward_model(graph)
    onnx.checker.check_model(half, full_check=True)
    assert names(half.graph.input) == ["x"]
    assert names(half.graph.output) == ["logits"]
    assert len(half.graph.node) < len(graph.graph.node)
    x = RNG.uniform(size=(3, 3, 8, 8)).astype(np.float32)
    want = unoptimised(classifier())({"x": normalise(x, spec)})["z"]
    np.testing.assert_array_equal(unoptimised(half)({"x": x})["logits"], want)
    np.testing.assert_array_equal(unoptimised(graph)(feeds(x))["logits"], want)


def test_the_gradient_is_the_slope_of_the_value_in_pixels() -> None:
    """Along a random direction, in float64, through the folded normalisation and the flip to BGR.

    The net is piecewise linear: a central difference is exact away from its kinks, up to rounding, 1e-16 of logits of
    about 1 over a step of 1e-9.
    """
    spec = PreprocessSpec(
        size=(8, 8), image_mean=(0.5, 0.4, 0.3), image_std=(0.2, 0.3, 0.4), do_flip_channel_order=True
    )
    backward = ReferenceExecutor(gradient_model(classifier(dtype=np.float64), preprocess=spec))
    x, v = RNG.uniform(size=(1, 3, 8, 8)), RNG.choice([-1.0, 1.0], size=(1, 3, 8, 8))
    h = 1e-9
    up, down = (backward(feeds(x + k * h * v))["value"] for k in (1, -1))
    slope = (up - down) / (2 * h)
    out = backward(feeds(x))
    np.testing.assert_allclose((out["gradient"] * v).sum(), slope[0], rtol=1e-5)


def test_what_is_in_the_metadata() -> None:
    """Provenance, the codes of the objectives, and the preprocessing with which the file explains itself."""
    plain = {p.key: p.value for p in gradient_model(classifier()).metadata_props}
    assert plain["onnxplain.gradient_model"] == "1"
    assert plain["onnxplain.space"] == "model"
    assert plain["onnxplain.head"] == "softmax"
    assert json.loads(plain["onnxplain.objectives"]) == {kind.name.lower(): int(kind) for kind in Kind}
    assert len(plain["onnxplain.source_sha256"]) == 64
    assert "onnxplain.preprocess" not in plain
    folded = {p.key: p.value for p in gradient_model(classifier(), preprocess=BGR).metadata_props}
    assert folded["onnxplain.space"] == "pixel"
    assert PreprocessSpec.from_dict(json.loads(folded["onnxplain.preprocess"])) == BGR
    assert folded["onnxplain.source_sha256"] == plain["onnxplain.source_sha256"]
    twice = [gradient_model(classifier()).SerializeToString(deterministic=True) for _ in range(2)]
    assert twice[0] == twice[1]


@pytest.mark.parametrize("op", ["Softmax<axis = 1>", "Softmax", "LogSoftmax", "Softmax<axis = -1>"])
def test_a_softmax_at_the_end_is_cut_off(op: str) -> None:
    """The logits are what goes into it."""
    with_head = classifier("(float[N, 3, 8, 8] x) => (float[N, 4] p_out)", out="z", tail=f"p_out = {op}(z)")
    x = RNG.normal(size=(2, 3, 8, 8)).astype(np.float32)
    plain = unoptimised(gradient_model(classifier()))(feeds(x))
    out = unoptimised(gradient_model(with_head))(feeds(x))
    for name in plain:
        np.testing.assert_array_equal(out[name], plain[name])


def test_output_names_the_logits_among_several() -> None:
    """Without it, two float outputs are an error that lists them."""
    two = classifier("(float[N, 3, 8, 8] x) => (float[N, 4] z, float[N, 6] f)")
    with pytest.raises(InvalidModel, match="name the logits"):
        gradient_model(two)
    assert shape(gradient_model(two, output="f").graph.output[0]) == ["N", 6]
    assert shape(gradient_model(two, output="z").graph.output[0]) == ["N", 4]
    with pytest.raises(UsageError, match="'q'"):
        gradient_model(two, output="q")


def test_an_index_beside_the_logits_is_no_second_output() -> None:
    """Integer outputs (a predicted label) do not count."""
    both = classifier(
        "(float[N, 3, 8, 8] x) => (float[N, 4] z, int64[N] label)", tail="label = ArgMax<axis = 1, keepdims = 0>(z)"
    )
    assert names(gradient_model(both).graph.output) == ["logits", "value", "gradient"]


def test_names_of_ours_that_are_taken_make_way() -> None:
    """Forward values called `logits`, `value`, `gradient` or `onnxplain_target`, and weights."""
    tail = "onnxplain_target = Neg(logits) negative = Neg(onnxplain_target) gradient = Add(negative, value)"
    taken = classifier("(float[N, 3, 8, 8] x) => (float[N, 4] gradient)", out="logits", tail=tail)
    taken.graph.initializer.append(onnx.numpy_helper.from_array(np.zeros(4, np.float32), "value"))
    x = RNG.normal(size=(2, 3, 8, 8)).astype(np.float32)
    plain = unoptimised(gradient_model(classifier()))(feeds(x))
    out = unoptimised(gradient_model(taken))(feeds(x))
    for name in plain:
        np.testing.assert_array_equal(out[name], plain[name])


@pytest.mark.parametrize("own", ["onnxplain_target", "onnxplain_objective"])
def test_an_image_input_with_a_name_of_ours_is_refused(own: str) -> None:
    """A graph with the same input twice would be invalid."""
    proto = classifier()
    proto.graph.input[0].name = own
    proto.graph.node[0].input[0] = own
    with pytest.raises(InvalidModel, match="rename it"):
        gradient_model(proto)


REFUSED = {
    "two images": ("(float[N, 3, 8, 8] x, float[N, 3, 8, 8] x2) => (float[N, 4] z)", "expected one image input, got 2"),
    "open height": ("(float[N, 3, H, 8] x) => (float[N, 4] z)", "height and width are not fixed"),
    "no float output": ("(float[N, 3, 8, 8] x) => (int64[N] label)", "expected one float output"),
    "a map": ("(float[N, 3, 8, 8] x) => (float[N, 6, 4, 4] r)", "expected logits of shape"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_is_no_classifier_of_images_is_refused_in_one_line(what: str) -> None:
    """Each with what was expected and what there is."""
    signature, message = REFUSED[what]
    tail = "label = ArgMax<axis = 1, keepdims = 0>(z)" if "label" in signature else ""
    proto = classifier(signature, tail=tail)
    with pytest.raises(InvalidModel, match=message) as caught:
        gradient_model(proto)
    assert "\n" not in str(caught.value)


def test_logits_that_do_not_depend_on_the_image_are_refused() -> None:
    """Through ArgMax there is no derivative."""
    tail = "k = ArgMax<axis = 1>(f) k2 = Cast<to = 1>(k) z2 = Concat<axis = 1>(k2, k2)"
    with pytest.raises(InvalidModel, match="do not depend on the image"):
        gradient_model(classifier("(float[N, 3, 8, 8] x) => (float[N, 2] z2)", tail=tail))


def test_gaps_are_reported_for_a_classifier_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """All at once."""
    for op in ("Sin", "Cos"):
        monkeypatch.delitem(DEFAULT, op)
    tail = "s = Sin(z) z2 = Cos(s)"
    with pytest.raises(NotDifferentiable, match="2 operators"):
        gradient_model(classifier("(float[N, 3, 8, 8] x) => (float[N, 4] z2)", tail=tail))


def test_height_and_width_come_from_the_preprocessing() -> None:
    """Where the model leaves them open; where it does not, they have to agree."""
    open_ = classifier("(float[N, 3, H, W] x) => (float[N, 4] z)")
    assert shape(gradient_model(open_, preprocess=SPEC).graph.input[0]) == ["N", 3, 8, 8]
    assert shape(
        gradient_model(classifier("(float[?, ?, ?, ?] x) => (float[?, ?] z)"), preprocess=SPEC).graph.input[0]
    ) == [
        "N",
        3,
        8,
        8,
    ]
    with pytest.raises(UsageError, match="gives images of shape"):
        gradient_model(classifier(), preprocess=PreprocessSpec(size=(9, 8)))


@pytest.mark.parametrize("batch", [1, 4])
def test_a_fixed_batch_becomes_free(batch: int) -> None:
    """A model that was exported with a batch of 1, or 4, answers batches of any size."""
    proto = classifier(f"(float[{batch}, 3, 8, 8] x) => (float[{batch}, 4] z)")
    x = RNG.normal(size=(3, 3, 8, 8)).astype(np.float32)
    plain = unoptimised(gradient_model(classifier()))(feeds(x))
    out = unoptimised(gradient_model(proto))(feeds(x))
    for name in plain:
        np.testing.assert_array_equal(out[name], plain[name])


def test_the_classifier_is_not_changed() -> None:
    """Folding happens in a copy."""
    proto = classifier()
    before = proto.SerializeToString(deterministic=True)
    gradient_model(proto, preprocess=SPEC)
    assert proto.SerializeToString(deterministic=True) == before


@pytest.mark.parametrize(
    "tail",
    ["z = Softmax(h)", "p = Softmax(h) z = Identity(p)", "p = LogSoftmax<axis = 1>(h) z = Flatten(p)"],
)
def test_a_softmax_at_the_end_is_left_out_whatever_moves_its_elements(tail: str) -> None:
    """The logits are what goes into it."""
    head = onnx.parser.parse_model(f"{HEAD} (float[N, 4] z) {{ h = Flatten(x) {tail} }}")
    plain = onnx.parser.parse_model(f"{HEAD} (float[N, 4] h) {{ h = Flatten(x) }}")
    x = np.random.default_rng(0).normal(size=(2, 1, 2, 2)).astype(np.float32)
    with OnnxRuntimeExecutor(forward_model(gradient_model(head))) as ours, OnnxRuntimeExecutor(plain) as theirs:
        np.testing.assert_array_equal(ours({"x": x})["logits"], theirs({"x": x})["h"])


@pytest.mark.parametrize(
    ("shape", "tail", "words"),
    [
        (4, "z = Softmax<axis = 0>(h)", "axis 0"),
        (1, "o = Constant<value_ints = [1]>() s = ReduceSum(h, o) z = Softmax(s)", "always 1"),
    ],
)
def test_heads_that_are_not_supported_are_refused(shape: int, tail: str, words: str) -> None:
    """Taken for logits they would give numbers that mean something else."""
    with pytest.raises(InvalidModel, match=words):
        gradient_model(onnx.parser.parse_model(f"{HEAD} (float[N, {shape}] z) {{ h = Flatten(x) {tail} }}"))


@pytest.mark.parametrize("classes", [3, 5, 10, 17])
@pytest.mark.parametrize("kind", Kind, ids=lambda kind: kind.name.lower())
def test_a_gradient_does_not_depend_on_the_batch_around_it(kind: Kind, classes: int) -> None:
    """Bit for bit, for numbers of classes whose rows lie anywhere in memory; x is the logits themselves."""
    text = (
        f'<ir_version: 8, opset_import: ["" : 18]> head (float[N, 1, 1, {classes}] x) => (float[N, {classes}] z) '
        "{ z = Flatten(x) }"
    )
    rng = np.random.default_rng(classes)
    x = rng.normal(size=(40, 1, 1, classes)).astype(np.float32)
    t = rng.dirichlet(np.ones(classes), size=40).astype(np.float32)
    with OnnxRuntimeExecutor(gradient_model(onnx.parser.parse_model(text))) as backward:

        def gradient(rows: slice) -> np.ndarray:
            code = np.full(len(x[rows]), kind, np.int64)
            feeds = {"x": x[rows], "onnxplain_target": t[rows], "onnxplain_objective": code}
            return np.array(backward(feeds)["gradient"])

        alone = np.concatenate([gradient(slice(i, i + 1)) for i in range(40)])
        for size in (2, 3, 8, 40):
            together = np.concatenate([gradient(slice(i, i + size)) for i in range(0, 40, size)])
            np.testing.assert_array_equal(together, alone)


@pytest.mark.parametrize("name", ["logits", "value", "gradient", "onnxplain_target"])
def test_an_image_may_not_have_the_name_of_an_output(name: str) -> None:
    with pytest.raises(InvalidModel, match="rename it"):
        gradient_model(
            onnx.parser.parse_model(f"{HEAD.replace(' x)', f' {name})')} (float[N, 4] z) {{ z = Flatten({name}) }}")
        )


HEAD = '<ir_version: 8, opset_import: ["" : 18]> head (float[N, 1, 2, 2] x) =>'
