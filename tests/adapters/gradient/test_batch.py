"""Fixed batches made free: where samples stay apart the result is that of each alone; where they may meet it stays."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import pytest

from onnxplain.adapters.gradient.classifier import gradient_model, logits_model
from onnxplain.engine.executors.onnxruntime import OnnxRuntimeExecutor
from onnxplain.errors import InvalidModel

RNG = np.random.default_rng(3)
LIGHT = Path(onnx.__file__).parent / "backend" / "test" / "data" / "light"


def net(body: str, batch: int = 1, **constants: object) -> onnx.ModelProto:
    """An image [batch, 3, 4, 4] in, logits [batch, 5] out; weights are drawn, whole numbers are shapes and axes."""
    proto = onnx.parser.parse_model(
        f'<ir_version: 8, opset_import: ["" : 18]> '
        f"net (float[{batch}, 3, 4, 4] x) => (float[{batch}, 5] z) {{ {body} }}"
    )
    for name, value in constants.items():
        array = np.array(value, np.int64) if isinstance(value, list) else RNG.normal(size=value).astype(np.float32)
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    return proto


def notes(model: onnx.ModelProto) -> str:
    return "; ".join(json.loads({p.key: p.value for p in model.metadata_props}["onnxplain.notes"]))


def batch_of(model: onnx.ModelProto) -> int | str:
    dim = model.graph.input[0].type.tensor_type.shape.dim[0]
    return dim.dim_param or dim.dim_value


SOUND = {
    "a shape that names the batch": net("r = Reshape(x, s) z = MatMul(r, w)", s=[1, 48], w=(48, 5)),
    "a shape that names it half": net("r = Reshape(x, s) z = MatMul(r, w)", s=[1, -1], w=(48, 5)),
    "a shape that leaves it open": net("r = Reshape(x, s) z = MatMul(r, w)", s=[-1, 48], w=(48, 5)),
    "a shape computed from the image": net(
        "h = Shape(x) n = Slice(h, o, e) s = Concat<axis = 0>(n, m) r = Reshape(x, s) z = MatMul(r, w)",
        o=[0], e=[1], m=[-1], w=(48, 5),
    ),
    "convolution, pools and a flatten": net(
        "c = Conv<pads = [1, 1, 1, 1]>(x, k) a = Relu(c) p = MaxPool<kernel_shape = [2, 2]>(a) "
        "g = GlobalAveragePool(p) f = Flatten(g) z = Gemm(f, w, b)",
        k=(6, 3, 3, 3), w=(6, 5), b=(5,),
    ),
    "a bias with an axis for the batch": net("f = Flatten(x) m = MatMul(f, w) z = Add(m, b)", w=(48, 5), b=(1, 5)),
    "a class token and positions": net(
        "t = Reshape(x, s) u = Transpose<perm = [0, 2, 1]>(t) v = Concat<axis = 1>(cls, u) p = Add(v, pos) "
        "n = LayerNormalization(p, g) q = MatMul(n, a) k = Transpose<perm = [0, 2, 1]>(n) d = MatMul(q, k) "
        "m = Softmax(d) o = MatMul(m, n) i = Constant<value_int = 0>() y = Gather<axis = 1>(o, i) z = MatMul(y, w)",
        s=[1, 3, 16], cls=(1, 1, 3), pos=(1, 17, 3), g=(3,), a=(3, 3), w=(3, 5),
    ),
    "a class token that is expanded": net(
        "t = Reshape(x, s) u = Transpose<perm = [0, 2, 1]>(t) e = Expand(cls, b) v = Concat<axis = 1>(e, u) "
        "y = ReduceMean<keepdims = 0>(v, one) z = MatMul(y, w)",
        s=[1, 3, 16], cls=(1, 1, 3), b=[1, 1, 3], one=[1], w=(3, 5),
    ),
    "windows: several rows a sample": net(
        "t = Reshape(x, s) u = Transpose<perm = [0, 2, 4, 1, 3, 5]>(t) v = Reshape(u, rows) m = MatMul(v, a) "
        "n = Softmax(m) o = MatMul(n, v) r = Reshape(o, back) z = MatMul(r, w)",
        s=[1, 3, 2, 2, 2, 2], rows=[4, 4, 3], a=(3, 4), back=[1, 48], w=(48, 5),
    ),
    "heads in the rows": net(
        "t = Reshape(x, s) k = Transpose<perm = [0, 2, 1]>(t) d = MatMul(t, k) e = Softmax(d) o = MatMul(e, t) "
        "r = Reshape(o, back) z = MatMul(r, w)",
        s=[3, 4, 4], back=[1, 48], w=(48, 5),
    ),
    "sizes of a resize": net(
        "r = Resize<mode = \"linear\">(x, , , n) g = Flatten(r) z = MatMul(g, w)", n=[1, 3, 2, 2], w=(12, 5)
    ),
    "slices, splits, pads and squeezes": net(
        "a = Slice(x, o, e, ax) p = Pad(a, w0) b, c = Split<axis = 2, num_outputs = 2>(p) d = Mul(b, c) "
        "u = Unsqueeze(d, one) v = Squeeze(u, one) f = Flatten(v) z = MatMul(f, w)",
        o=[0, 1], e=[2**63 - 1, 4], ax=[0, 2], w0=[0, 0, 1, 0, 0, 0, 0, 0], one=[1], w=(24, 5),
    ),
    "einsum": net("t = Reshape(x, s) z = Einsum<equation = \"nck,ko->no\">(t, w)", s=[1, 3, 16], w=(16, 5)),
}  # fmt: skip


@pytest.mark.parametrize("what", SOUND)
def test_a_batch_of_one_becomes_free_where_samples_stay_apart(what: str) -> None:
    """A batch of three is three batches of one, bit for bit, and each is what the given model says."""
    model = SOUND[what]
    made = logits_model(model)
    assert batch_of(made) == "N"
    assert [d.dim_param for d in made.graph.output[0].type.tensor_type.shape.dim][:1] == ["N"]
    assert "the batch, which was fixed at 1, is free" in notes(made)
    given, ours = (OnnxRuntimeExecutor(m, threads=1, optimise=False) for m in (model, made))
    x = RNG.normal(size=(3, 3, 4, 4)).astype(np.float32)
    together = ours({"x": x})["logits"]
    for i in range(3):
        np.testing.assert_array_equal(ours({"x": x[[i, i]]})["logits"][0], together[i])
        # a matrix of one row goes through another kernel of the runtime, which sums in another order
        np.testing.assert_allclose(given({"x": x[i : i + 1]})["z"][0], together[i], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("what", SOUND)
def test_a_gradient_of_a_freed_batch_stays_in_its_row(what: str) -> None:
    """Of a batch of three, sample by sample the gradient of each beside itself."""
    made = OnnxRuntimeExecutor(gradient_model(SOUND[what]), threads=1, optimise=False)
    x = RNG.normal(size=(3, 3, 4, 4)).astype(np.float32)

    def gradient(x: np.ndarray) -> np.ndarray:
        target = np.tile(np.eye(5, dtype=np.float32)[1], (len(x), 1))
        return made({"x": x, "onnxplain_target": target, "onnxplain_objective": np.zeros(len(x), np.int64)})["gradient"]

    together = gradient(x)
    for i in range(3):
        np.testing.assert_allclose(gradient(x[[i, i]])[0], together[i], rtol=1e-5, atol=1e-6)


MIXED = {
    "batch statistics": (
        net("m = ReduceMean(x, a) d = Sub(x, m) f = Flatten(d) z = MatMul(f, w)", a=[0], w=(48, 5)), "ReduceMean",
    ),
    "attention between samples": (
        net("f = Flatten(x) t = Transpose(f) d = MatMul(f, t) o = MatMul(d, f) z = MatMul(o, w)", w=(48, 5)),
        "Transpose",
    ),
    "the samples in the second axis": (
        net("t = Transpose<perm = [1, 0, 2, 3]>(x) r = Reshape(t, s) z = MatMul(r, w)", s=[1, 48], w=(48, 5)),
        "moves the axis of the samples",
    ),
    "the samples flattened away": (
        net("f = Flatten<axis = 0>(x) z = MatMul(f, w)", w=(48, 5)), "flattens the axis of the samples",
    ),
    "a softmax over the batch": (
        net("f = Flatten(x) m = MatMul(f, w) s = Softmax<axis = 0>(m) z = Add(s, m)", w=(48, 5)), "Softmax",
    ),
    "the batch broadcast to another axis": (
        net("f = Flatten(x) o = MatMul(f, w) u = Unsqueeze(o, a) v = Add(u, o) z = Squeeze(v, a)", w=(48, 5), a=[1]),
        "broadcasts the axis of the samples",
    ),
    "a new first axis": (
        net("u = Unsqueeze(x, a) s = Squeeze(u, a) f = Flatten(s) z = MatMul(f, w)", a=[0], w=(48, 5)), "Unsqueeze",
    ),
    "the first sample only": (
        net("s = Slice(x, o, e, o) f = Flatten(s) z = MatMul(f, w)", o=[0], e=[1], w=(48, 5)), "some of the samples",
    ),
    "a gather of samples": (
        net("s = Gather(x, o) f = Flatten(s) z = MatMul(f, w)", o=[0], w=(48, 5)), "Gather",
    ),
    "rows of a sample on the wrong side": (
        net("r = Reshape(x, s) t = MatMul(w, r) u = Reshape(t, b) z = MatMul(u, v)",
            s=[3, 16], w=(3, 3), b=[1, 48], v=(48, 5)), "MatMul",
    ),
    "different rows for the rows of a sample": (
        net("r = Reshape(x, s) t = Add(r, w) u = Reshape(t, b) z = MatMul(u, v)",
            s=[3, 16], w=(3, 1), b=[1, 48], v=(48, 5)), "may differ from sample to sample",
    ),
    "einsum over samples": (
        net('f = Flatten(x) g = Einsum<equation = "nk,mk->nm">(f, f) h = MatMul(g, f) z = MatMul(h, w)', w=(48, 5)),
        "Einsum",
    ),
    "an operator that nobody knows": (
        net("f = Flatten(x) c = CumSum(f, a) z = MatMul(c, w)", a=[1], w=(48, 5)), "not known to keep samples apart",
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", MIXED)
def test_a_batch_of_one_stays_where_samples_may_meet(what: str) -> None:
    """The reason names the node; the model is as good as before, row by row."""
    model, words = MIXED[what]
    made = logits_model(model)
    assert batch_of(made) == 1
    assert "the batch stays fixed at 1" in notes(made)
    assert words in notes(made)
    x = RNG.normal(size=(1, 3, 4, 4)).astype(np.float32)
    given, ours = (OnnxRuntimeExecutor(m, optimise=False)({"x": x}) for m in (model, made))
    np.testing.assert_array_equal(ours["logits"], given["z"])


def test_another_fixed_batch_is_made_free_or_refused() -> None:
    """A batch of four cannot be fed with single images."""
    made = logits_model(net("r = Reshape(x, s) z = MatMul(r, w)", batch=4, s=[4, 48], w=(48, 5)))
    assert isinstance(batch_of(made), str)
    assert "fixed at 4, is free" in notes(made)
    for body, more in (("f = Flatten(x) m = MatMul(f, w) z = Add(m, b)", {"b": (4, 5)}),
                       ("f = Flatten(x) m = MatMul(f, w) n = ReduceMean(m, a) z = Sub(m, n)", {"a": [0]})):  # fmt: skip
        with pytest.raises(InvalidModel, match="the batch is fixed at 4, and cannot be made free because of"):
            logits_model(net(body, batch=4, w=(48, 5), **more))


def light(name: str) -> onnx.ModelProto:
    """A model of the onnx package, whose weights are shapes only, with random ones."""
    model = onnx.load(LIGHT / f"light_{name}.onnx")
    model.ir_version = 8
    shapes = {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer}
    draw = np.random.default_rng(0)
    hollow = [node for node in model.graph.node if node.op_type == "ConstantOfShape"]
    for node in hollow:
        shape = shapes[node.input[0]]
        scale = np.sqrt(max(np.prod(shape[1:]), 1))
        array = draw.normal(size=shape) / scale if len(shape) > 1 else draw.uniform(0.5, 1.5, shape)
        model.graph.initializer.append(onnx.numpy_helper.from_array(array.astype(np.float32), node.output[0]))
        model.graph.node.remove(node)
    return model


NAMES = ["bvlc_alexnet", "densenet121", "inception_v1", "inception_v2", "resnet50", "shufflenet", "squeezenet", "vgg19"]
LARGE = {"bvlc_alexnet", "vgg19", "zfnet512"}  # a quarter to half a gigabyte of weights


@pytest.mark.parametrize("name", [*NAMES, "zfnet512"])
def test_the_light_models_become_free(name: str) -> None:
    """Opset 9, batch 1: logits of a pair are those of the given model, whose softmax is cut off."""
    if name in LARGE and not os.environ.get("ONNXPLAIN_LARGE"):
        pytest.skip("set ONNXPLAIN_LARGE=1 for models with large weights")
    model = light(name)
    made = logits_model(model)
    assert isinstance(batch_of(made), str)
    ours, theirs = (OnnxRuntimeExecutor(m, threads=1, optimise=False) for m in (made, model))
    ((image, _),) = ours.inputs.items()
    x = np.random.default_rng(1).normal(size=(3, 3, 224, 224)).astype(np.float32)
    together = ours({image: x})["logits"]
    np.testing.assert_array_equal(ours({image: x[[2, 0]]})["logits"], together[[2, 0]])
    (answer,) = theirs({image: x[1:2]}).values()
    z = together[1].astype(np.float64)
    if name != "densenet121":  # which ends in its logits
        z = np.exp(z - z.max()) / np.exp(z - z.max()).sum()
    np.testing.assert_allclose(answer.reshape(-1), z, rtol=1e-3, atol=1e-4)
