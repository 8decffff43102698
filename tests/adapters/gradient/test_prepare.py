"""Whatever is given as a model: every form of it works alike, and whatever is none is refused in one line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import pytest

from onnxplain.adapters.gradient.classifier import gradient_model
from onnxplain.adapters.gradient.differentiate import differentiate
from onnxplain.adapters.gradient.prepare import OPSET, prepare
from onnxplain.engine.executors.onnxruntime import OnnxRuntimeExecutor
from onnxplain.engine.executors.reference import ReferenceExecutor
from onnxplain.errors import InvalidModel, MissingFile

RNG = np.random.default_rng(3)
X, G = RNG.normal(size=(2, 3)), RNG.normal(size=(2, 4))
W = RNG.normal(size=(3, 4))
EXPECTED = (G * (1 - np.tanh(X @ W) ** 2)) @ W.T


def parse(text: str, opset: int = 18, **initializers: np.ndarray) -> onnx.ModelProto:
    proto = onnx.parser.parse_model(f'<ir_version: 9, opset_import: ["" : {opset}]>' + text)
    proto.graph.initializer.extend(onnx.numpy_helper.from_array(a, name) for name, a in initializers.items())
    return proto


def net(opset: int = 18) -> onnx.ModelProto:
    return parse("net (double[N, 3] x) => (double[N, 4] y) { h = MatMul(x, w) y = Tanh(h) }", opset, w=W)


def gradient(proto: onnx.ModelProto, x: np.ndarray = X, g: np.ndarray = G) -> np.ndarray:
    return ReferenceExecutor(proto)({"x": x, "grad_y": g})["grad_x"]


def test_a_path_a_string_a_proto_and_an_ir_model_are_the_same(tmp_path: Path) -> None:
    """Four ways to give one model, one gradient model."""
    path = tmp_path / "net.onnx"
    onnx.save(net(), path)
    forms = [net(), ir.from_proto(net()), path, str(path)]
    results = [differentiate(form).SerializeToString(deterministic=True) for form in forms]
    assert results[0] == results[1] == results[2] == results[3]
    np.testing.assert_allclose(gradient(differentiate(path)), EXPECTED, rtol=0, atol=1e-14)


def test_weights_in_a_file_beside_the_model_are_read(tmp_path: Path) -> None:
    """External data inside the model's folder."""
    path = tmp_path / "net.onnx"
    onnx.save(net(), path, save_as_external_data=True, location="net.data", size_threshold=0)
    assert (tmp_path / "net.data").is_file()
    for form in (path, ir.load(path)):
        np.testing.assert_allclose(gradient(differentiate(form)), EXPECTED, rtol=0, atol=1e-14)


@pytest.mark.parametrize("opset", [9, 10, 11, 12, 13, 14, 15, 16, 17])
def test_an_older_opset_is_raised(opset: int) -> None:
    """To 18; with operators whose axes moved from attributes to inputs on the way."""
    old = parse(
        """net (double[N, 3, 2, 2] x) => (double[N, 4] y)
        { p = ReduceMean<axes = [2, 3], keepdims = 0>(x) h = MatMul(p, w) y = Tanh(h) }""",
        opset,
        w=W,
    )
    proto = differentiate(old)
    assert [o.version for o in proto.opset_import] == [OPSET]
    x = RNG.normal(size=(2, 3, 2, 2))
    want = (G * (1 - np.tanh(x.mean((2, 3)) @ W) ** 2)) @ W.T / 4
    np.testing.assert_allclose(gradient(proto, x), np.broadcast_to(want[..., None, None], x.shape), rtol=0, atol=1e-14)


@pytest.mark.parametrize("opset", [18, 19, 21, 22])
def test_a_newer_opset_stays(opset: int) -> None:
    """18 and later are kept as they are."""
    proto = differentiate(net(opset))
    assert [o.version for o in proto.opset_import] == [opset]
    np.testing.assert_allclose(gradient(proto), EXPECTED, rtol=0, atol=1e-14)


def test_an_opset_from_the_future_is_refused() -> None:
    """What the installed onnx does not know cannot be differentiated."""
    proto = net()
    proto.opset_import[0].version = onnx.defs.onnx_opset_version() + 1
    with pytest.raises(InvalidModel, match="newer than the installed onnx"):
        differentiate(proto)


def test_initializers_that_are_listed_as_inputs_are_constants() -> None:
    """As exporters of IR version 3 had to write them."""
    proto = net()
    proto.graph.input.append(onnx.helper.make_tensor_value_info("w", onnx.TensorProto.DOUBLE, [3, 4]))
    out = differentiate(proto)
    assert [v.name for v in out.graph.input] == ["x", "grad_y"]
    assert [v.name for v in out.graph.output] == ["y", "grad_x"]
    np.testing.assert_allclose(gradient(out), EXPECTED, rtol=0, atol=1e-14)


def test_models_of_ir_version_3_are_raised_too() -> None:
    """There every weight had to be an input; the version converter is given it as such no more."""
    proto = onnx.parser.parse_model(
        """<ir_version: 3, opset_import: ["" : 9]>
        net (float[N, 3] x, float[3, 4] w) => (float[N, 4] y) <float[3, 4] w = {1,2,3,4,5,6,7,8,9,10,11,12}>
        { h = MatMul(x, w) y = Relu(h) }"""
    )
    onnx.checker.check_model(proto, full_check=True)
    out = differentiate(proto)
    assert [v.name for v in out.graph.input] == ["x", "grad_y"]
    assert out.opset_import[0].version == 18


def test_the_given_model_is_never_changed() -> None:
    """Not even by names that have to make way: onnx-ir works on the tensors that it is handed."""
    proto = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["" : 18]>
        net (float[N, 3] x) => (float[N, 3] y) <float[3] logits = {1,2,3}, float[3] grad_y = {1,2,3}>
        { value = Mul(x, logits) gradient = Add(value, grad_y) y = Tanh(gradient) }"""
    )
    before = proto.SerializeToString(deterministic=True)
    differentiate(proto)
    gradient_model(proto)
    assert proto.SerializeToString(deterministic=True) == before


def test_external_data_of_a_model_in_memory_may_not_escape_either(tmp_path: Path) -> None:
    """It is read from the current folder, and from nowhere else."""
    onnx.save(net(), tmp_path / "net.onnx", save_as_external_data=True, location="net.data", size_threshold=0)
    proto = onnx.load(tmp_path / "net.onnx", load_external_data=False)
    for tensor in proto.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = str(tmp_path / "net.data")
    with pytest.raises(InvalidModel, match="outside the model's folder"):
        differentiate(proto)


def test_local_functions_are_inlined() -> None:
    """A function of the model's own domain, called twice, once inside another."""
    proto = onnx.parser.parse_model(
        """<ir_version: 9, opset_import: ["" : 18, "own" : 1]>
        net (double[N, 3] x) => (double[N, 3] y) { a = own.twice(x) y = own.squash(a) }
        <domain: "own", opset_import: ["" : 18, "own" : 1]> twice (t) => (u) { v = own.squash(t) u = Add(v, v) }
        <domain: "own", opset_import: ["" : 18]> squash (t) => (u) { u = Tanh(t) }"""
    )
    proto.graph.output[0].CopyFrom(onnx.helper.make_tensor_value_info("y", onnx.TensorProto.DOUBLE, ["N", 3]))
    out = differentiate(proto)
    assert not out.functions
    inner = np.tanh(X)
    want = (1 - np.tanh(2 * inner) ** 2) * 2 * (1 - inner**2)
    np.testing.assert_allclose(gradient(out, X, np.ones((2, 3))), want, rtol=0, atol=1e-14)


def test_constant_nodes_count_as_constants() -> None:
    """Weights, axes and shapes that are nodes."""
    proto = parse(
        """net (double[N, 3] x) => (double[N, 1] y)
        { axes = Constant<value_ints = [1]>() f = Constant<value_float = 2.0>() d = Cast<to = 11>(f)
          s = Mul(x, d) y = ReduceSum(s, axes) }"""
    )
    np.testing.assert_array_equal(gradient(differentiate(proto), X, np.ones((2, 1))), np.full((2, 3), 2.0))


def test_dimensions_without_a_name_get_one_each() -> None:
    """Two unnamed dimensions are not the same dimension."""
    ours = prepare(parse("two (double[?, 3] a, double[?, 3] b) => (double[?, 3] y) { y = Mul(a, b) }"))
    assert [str(v.shape[0]) for v in ours.graph.inputs if v.shape] == ["a_0", "b_0"]


def one_line(error: pytest.ExceptionInfo[InvalidModel | MissingFile], path: Path) -> None:
    assert "\n" not in str(error.value)
    assert str(path) in str(error.value)


def test_paths_that_are_no_model_files_are_refused(tmp_path: Path) -> None:
    """Missing, or a folder."""
    for path, message in ((tmp_path / "missing.onnx", "does not exist"), (tmp_path, "is a folder")):
        with pytest.raises((InvalidModel, MissingFile), match=message) as caught:
            differentiate(path)
        one_line(caught, path)


CONTENTS = {
    "empty": b"",
    "text": b"I am a text file.\nNothing else.\n",
    "random": np.random.default_rng(0).bytes(4096),
    "png": b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR",
    "truncated": net().SerializeToString()[:-40],
    "half": net().SerializeToString()[: len(net().SerializeToString()) // 2],
}


@pytest.mark.parametrize("what", CONTENTS)
def test_files_that_hold_no_model_are_refused(what: str, tmp_path: Path) -> None:
    """Whatever protobuf makes of them."""
    path = tmp_path / f"{what}.onnx"
    path.write_bytes(CONTENTS[what])
    with pytest.raises(InvalidModel) as caught:
        differentiate(path)
    one_line(caught, path)


@pytest.mark.parametrize("where", ["../secret.data", "{absolute}", "..\\secret.data", "C:\\secret.data", "link.data"])
def test_external_data_outside_the_folder_is_refused(where: str, tmp_path: Path) -> None:
    """By a relative path, an absolute one, either in Windows' spelling, or a symbolic link: nothing is read."""
    folder = tmp_path / "model"
    folder.mkdir()
    secret = tmp_path / "secret.data"
    secret.write_bytes(W.tobytes())
    (folder / "link.data").symlink_to(secret)
    proto = net()
    weight = proto.graph.initializer[0]
    weight.ClearField("raw_data")
    weight.data_location = onnx.TensorProto.EXTERNAL
    weight.external_data.add(key="location", value=where.format(absolute=secret))
    path = folder / "net.onnx"
    path.write_bytes(proto.SerializeToString())
    with pytest.raises(InvalidModel, match="outside the model's folder") as caught:
        differentiate(path)
    one_line(caught, path)


def test_external_data_of_nodes_is_no_way_out_either(tmp_path: Path) -> None:
    """A Constant node whose tensor lies outside."""
    folder = tmp_path / "model"
    folder.mkdir()
    (tmp_path / "secret.data").write_bytes(W.tobytes())
    tensor = onnx.TensorProto(data_type=onnx.TensorProto.DOUBLE, dims=[3, 4], data_location=onnx.TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value="../secret.data")
    proto = parse("net (double[N, 3] x) => (double[N, 4] y) { h = MatMul(x, w) y = Tanh(h) }")
    proto.graph.node.insert(0, onnx.helper.make_node("Constant", [], ["w"], value=tensor))
    path = folder / "net.onnx"
    path.write_bytes(proto.SerializeToString())
    with pytest.raises(InvalidModel) as caught:
        differentiate(path)
    assert "\n" not in str(caught.value)


def test_missing_external_data_is_refused(tmp_path: Path) -> None:
    """The file of weights was not copied along."""
    path = tmp_path / "net.onnx"
    onnx.save(net(), path, save_as_external_data=True, location="net.data", size_threshold=0)
    (tmp_path / "net.data").unlink()
    with pytest.raises(InvalidModel) as caught:
        differentiate(path)
    assert "\n" not in str(caught.value)


INVALID = {
    "an undefined value": "net (float[N, 3] x) => (float[N, 3] y) { y = Add(x, q) }",
    "types that do not fit": "net (double[N, 3] x) => (double[N, 3] y) { z = Cast<to = 1>(x) y = Add(x, z) }",
    "shapes that do not fit": "net (double[N, 3] x) => (double[N, 3] y) { h = Add(x, w) y = Tanh(h) }",
}


@pytest.mark.parametrize("what", INVALID)
def test_models_that_are_not_valid_are_refused(what: str) -> None:
    """One line, whatever the library underneath says."""
    proto = parse(INVALID[what], **({"w": np.zeros((4, 5))} if "Add(x, w)" in INVALID[what] else {}))
    with pytest.raises(InvalidModel) as caught:
        differentiate(proto)
    assert "\n" not in str(caught.value)


OLD_RESIZES = [
    ("Upsample", 7, [1, 1, 2.5, 1.6]),
    ("Upsample", 9, [1, 1, 2, 3]),
    ("Upsample", 9, [1, 1, 1.5, 2.75]),
    ("Resize", 10, [1, 1, 2, 1.6]),
    ("Resize", 10, [1, 1, 0.6, 0.3]),
]


@pytest.mark.parametrize("mode", ["nearest", "linear"])
@pytest.mark.parametrize(("op", "opset", "scales"), OLD_RESIZES)
def test_old_resizes_keep_their_meaning(op: str, opset: int, scales: list[float], mode: str) -> None:
    """ONNX Runtime's values of the old model are those of the raised one, bit for bit, and the gradient is theirs."""
    factors = np.asarray(scales, np.float32)
    constants = [] if opset == 7 else [onnx.numpy_helper.from_array(factors, "scales")]
    attributes = {"scales": factors.tolist()} if opset == 7 else {}
    node = onnx.helper.make_node(op, ["x", "scales"][: 1 + len(constants)], ["y"], mode=mode, **attributes)
    make = onnx.helper.make_tensor_value_info
    shapes = make("x", onnx.TensorProto.FLOAT, ["N", 3, 4, 5]), make("y", onnx.TensorProto.FLOAT, ["N", 3, None, None])
    graph = onnx.helper.make_graph([node], "old", shapes[:1], shapes[1:], constants)
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", opset)], ir_version=7)
    rng = np.random.default_rng(0)
    x, v = rng.normal(size=(2, 2, 3, 4, 5)).astype(np.float32)
    old = OnnxRuntimeExecutor(model, threads=1)
    y, jv = old({"x": x})["y"], old({"x": v})["y"]  # it is linear
    g = rng.integers(-9, 10, y.shape).astype(np.float32)
    out = OnnxRuntimeExecutor(differentiate(model), threads=1)({"x": x, "grad_y": g})
    np.testing.assert_array_equal(out["y"], y)
    np.testing.assert_allclose((g * jv).sum(), (out["grad_x"] * v).sum(), rtol=0, atol=1e-4 * np.abs(g * jv).max())


def test_an_old_resize_that_no_later_opset_can_say_is_refused() -> None:
    """To the nearest element, one axis longer and another shorter."""
    model = onnx.parser.parse_model(
        """<ir_version: 5, opset_import: ["" : 10]> old (float[N, 3, 4, 5] x) => (float[N, 3, 8, 2] y)
        <float[4] scales = {1.0, 1.0, 2.0, 0.5}> { y = Resize<mode = "nearest">(x, scales) }"""
    )
    with pytest.raises(InvalidModel, match="one axis longer and another shorter"):
        differentiate(model)
