"""What is said of runtimes that are not there: by the tables, for one node after the other, and for whole models."""

from __future__ import annotations

import itertools

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from onnxplain.adapters.gradient.classifier import gradient_model
from onnxplain.adapters.gradient.portability import OLDEST, TABLES, TYPES, notes, unsupported

NEWEST = onnx.defs.onnx_opset_version()


def graph(text: str, opset: int = 18, **weights: np.ndarray) -> ir.Model:
    """A model from its nodes, with its inputs in the text and its weights beside it."""
    head = f'<ir_version: 10, opset_import: ["" : {opset}, "ai.onnx.ml" : 4, "com.example" : 1]> g '
    model = onnx.parser.parse_model(head + text)
    model.graph.initializer.extend(onnx.numpy_helper.from_array(array, name) for name, array in weights.items())
    return ir.from_proto(onnx.shape_inference.infer_shapes(model, data_prop=True))


def why(runtime: str, text: str, opset: int = 18, **weights: np.ndarray) -> str:
    """What is said of the one node; an empty string if nothing is."""
    found = unsupported(graph(text, opset, **weights), runtime)
    return found[0].why if found else ""


IMAGE = "float[N, 3, 8, 8] x"


@pytest.mark.parametrize("name", TABLES)
def test_tables_speak_of_operators_versions_and_types_that_onnx_has(name: str) -> None:
    table = TABLES[name]
    for op_type, rows in table.rows.items():
        assert any(onnx.defs.has(op_type, opset, "") for opset in range(OLDEST, NEWEST + 1)) or op_type == "Upsample"
        for row in rows:
            assert row.first <= row.last
            assert set().union(*row.types.values()) <= TYPES
        for before, after in itertools.pairwise(rows):
            assert before.last < after.first, op_type
    assert set(table.cases) <= set(table.rows)
    assert not (table.refused or frozenset()) & set(table.rows)
    assert not table.expanded & set(table.rows)


def test_a_kernel_without_an_upper_version_ends_where_the_next_version_begins() -> None:
    """CUDA's MaxPool is that of version 12: at opset 22, which has version 22, the node goes to the CPU."""
    text = f"({IMAGE}) => (float[N, 3, 4, 4] y) {{ y = MaxPool<kernel_shape = [2, 2], strides = [2, 2]>(x) }}"
    assert why("cuda", text, 18) == why("cuda", text, 21) == ""
    assert why("cuda", text, 22) == "the CUDA provider has it up to version 12 only, and opset 22 has version 22"
    assert why("tensorrt", text, 22) == ""


def test_what_is_in_no_table_is_not_known() -> None:
    text = "(float[N, 4] x) => (float[N, 4] y) { y = %s(x) }"
    for runtime in TABLES:
        assert why(runtime, text % "com.example.Rune") == "not known: it is no operator of ONNX"
        assert "begins at opset 18" in why(runtime, text % "Relu", 13)
        assert "does not have it" in why(runtime, "(float[N, 4] x) => (int64[N] y, float[N, 2] z)"
                                         "{ y, z = ai.onnx.ml.TreeEnsembleClassifier(x) }")  # fmt: skip
    assert why("tensorrt", "(float[N, 4] x, int64 a) => (float[N, 4] y) { y = CumProd(x, a) }", 26).startswith(
        "not known"
    )
    cast = "(float[N, 4] x) => (float[N, 4] y) { y = Cast<to = 1>(x) }"
    assert why("cuda", cast, 28) == "not known: version 28 is newer than the table, which ends at opset 27"
    eight = "(float8e4m3fn[N, 4] x) => (float[N, 4] y) { y = Cast<to = 1>(x) }"
    assert why("cuda", eight, 21) == "not known: the table does not have the type float8e4m3fn"


def test_operators_whose_body_onnx_runtime_puts_in_their_place_are_not_complained_of() -> None:
    text = "(float[N, 4] x) => (float[N, 4] y) { y = Mish(x) }"
    assert why("cuda", text) == ""
    assert "does not have it" in why("cuda", text.replace("Mish", "Celu"))  # of which the CPU has a kernel


TYPED = [
    ("cuda", "(double[N, 4] x) => (double[N, 4] y) { y = Gelu(x) }", 20, ""),
    ("cuda", "(int32[N, 4] x) => (int32[N, 4] y) { y = Pad(x, p) }", 18, "for int32"),
    ("cuda", "(bool[N, 4] c, bool[N, 4] x) => (bool[N, 4] y) { y = Where(c, x, x) }", 18, "for bool"),
    ("cuda", "(bool[N, 4] c, float[N, 4] x) => (float[N, 4] y) { y = Where(c, x, x) }", 18, ""),
    ("tensorrt", "(int32[N, 4] x) => (float[N, 4] y) { y = Cast<to = 1>(x) }", 18, ""),
    ("tensorrt", "(int16[N, 4] x) => (float[N, 4] y) { y = Cast<to = 1>(x) }", 18, "for int16"),
    ("tensorrt", "(bool[N, 4] x) => (bool[N, 4] y) { y = Identity(x) }", 18, ""),
    ("tensorrt", "(bool[N, 4] x) => (bool[N, 1] y) { y = ReduceMax<axes = [1]>(x) }", 20, "for bool"),
    ("tensorrt", "(float[N, 4] x) => (bool[N, 4] y) { y = Less(x, x) }", 18, ""),
]  # fmt: skip


@pytest.mark.parametrize(("runtime", "text", "opset", "said"), TYPED)
def test_types_count(runtime: str, text: str, opset: int, said: str) -> None:
    found = why(runtime, text, opset, p=np.zeros(4, np.int64))
    assert found == said if not said else said in found


def case(call: str, inputs: str = IMAGE, outputs: str = "y") -> str:
    names = outputs.split()
    return f"({inputs}) => ({', '.join(f'float {y}' for y in names)}) {{ {', '.join(names)} = {call} }}"


ASYMMETRIC = 'coordinate_transformation_mode = "asymmetric"'
CASES = [
    ("cuda", case("ConvTranspose<pads = [1, 1, 1, 1]>(x, w)"), ""),
    ("cuda", case("ConvTranspose<pads = [0, 0, 1, 1]>(x, w)"), "pads that differ"),
    ("cuda", case('ConvTranspose<auto_pad = "SAME_UPPER">(x, w)'), "pads that differ"),
    ("cuda", case("ArgMax<axis = 1>(x)").replace("float y", "int64 y"), ""),
    ("cuda", case("ArgMax<axis = 1, select_last_index = 1>(x)").replace("float y", "int64 y"), "select_last_index"),
    ("cuda", case("BatchNormalization(x, v, v, v, v)"), ""),
    ("cuda", case("BatchNormalization<training_mode = 1>(x, v, v, v, v)", outputs="y m s"), "training mode"),
    ("cuda", case("GRU<hidden_size = 1, linear_before_reset = 1>(x, w, w)", "float[4, N, 3] x"), ""),
    ("cuda", case("GRU<hidden_size = 1>(x, w, w)", "float[4, N, 3] x"), "linear_before_reset"),
    ("cuda", case("LSTM<hidden_size = 1>(x, w, w)", "float[4, N, 3] x"), ""),
    ("cuda", case("LSTM<hidden_size = 1>(x, w, w, , , , , w)", "float[4, N, 3] x"), "peepholes"),
    ("cuda", case("LSTM<hidden_size = 1, clip = 1.0>(x, w, w)", "float[4, N, 3] x"), "clip"),
    ("cuda", case('RNN<hidden_size = 1, activations = ["Relu"]>(x, w, w)', "float[4, N, 3] x"), "activations"),
    ("cuda", case('RNN<hidden_size = 1, activations = ["Tanh"]>(x, w, w)', "float[4, N, 3] x"), ""),
    ("tensorrt", case("ConvTranspose<pads = [0, 0, 1, 1]>(x, w)"), ""),
    ("tensorrt", case("ConvTranspose<pads = [-1, 0, 0, 0]>(x, w)"), "negative pads"),
    ("tensorrt", case("Conv(x, w)", "float[N, 3, 6, 6, 6, 6] x"), "three spatial axes"),
    ("tensorrt", case("Conv(x, b)", f"{IMAGE}, float[4, 3, 3, 3] b"), ""),
    ("tensorrt", case("Conv(x, b)", f"{IMAGE}, float[4, M, 3, 3] b"), "channels are not fixed"),
    ("tensorrt", case("LRN<size = 3>(x)"), ""),
    ("tensorrt", case("LRN<size = 4>(x)"), "even"),
    ("tensorrt", case("LRN<size = 3, bias = 0.0>(x)"), "bias"),
    ("tensorrt", case("LRN<size = 3>(x)", "float[N, 3, 8] x"), "a line"),
    ("tensorrt", case('RNN<hidden_size = 1, activations = ["Affine"]>(x, w, w)', "float[4, N, 3] x"), "Affine"),
    ("tensorrt", case("RNN<hidden_size = 1, layout = 1>(x, w, w)", "float[4, N, 3] x"), ""),
    ("tensorrt", case('GRU<hidden_size = 1, activations = ["Affine", "Tanh"]>(x, w, w)', "float[4, N, 3] x"), "Affine"),
    ("tensorrt", case("LSTM<hidden_size = 1, input_forget = 1>(x, w, w)", "float[4, N, 3] x"), "input_forget"),
    ("tensorrt", case("LSTM<hidden_size = 1, layout = 1>(x, w, w)", "float[N, 4, 3] x"), "layout"),
    ("tensorrt", case("Slice(x, a, e)"), "starts for the first"),
    ("tensorrt", case("Slice(x, a, e, a)"), ""),
    ("tensorrt", case("MaxPool<kernel_shape = [2, 2]>(x)"), ""),
    ("tensorrt", case("MaxPool<kernel_shape = [2, 2], dilations = [2, 2]>(x)"), "dilations"),
    ("tensorrt", case("MaxPool<kernel_shape = [2, 2]>(x)", outputs="y i").replace("float i", "int64 i"), "outputs"),
    ("tensorrt", case("AveragePool<kernel_shape = [2, 2], dilations = [2, 2]>(x)"), "dilations"),
    ("tensorrt", case("LpPool<kernel_shape = [2, 2], p = 2>(x)"), ""),
    ("tensorrt", case("LpPool<kernel_shape = [2, 2], p = 3>(x)"), "p other than"),
    ("tensorrt", case("LpPool<kernel_shape = [2]>(x)", "float[N, 3, 8] x"), "one spatial axis"),
    ("tensorrt", case("BatchNormalization<training_mode = 1>(x, v, v, v, v)", outputs="y m s"), "training mode"),
    ("tensorrt", case("Dropout(x, r, f)"), ""),
    ("tensorrt", case("Dropout(x, r, t)"), "training mode"),
    ("tensorrt", case("LayerNormalization(x, v8)"), ""),
    ("tensorrt", case("LayerNormalization(x, v8)", outputs="y m s"), "outputs"),
    ("tensorrt", case("ReduceSum(x, a)"), ""),
    ("tensorrt", case("ReduceSum(x, b)", f"{IMAGE}, int64[1] b"), "axes that are not constant"),
    ("tensorrt", case("Unsqueeze(x, b)", f"{IMAGE}, int64[1] b"), "axes that are not constant"),
    ("tensorrt", case("ScatterElements<axis = 1>(x, i4, x)"), ""),
    ("tensorrt", case('ScatterElements<axis = 1, reduction = "add">(x, i4, x)'), "a reduction"),
    ("tensorrt", case('ScatterND<reduction = "add">(x, i4, x)'), "a reduction"),
    ("tensorrt", case("TopK(x, a)", outputs="y i").replace("float i", "int64 i"), ""),
    ("tensorrt", case("TopK(x, k)", outputs="y i").replace("float i", "int64 i"), "k of 3840"),
    ("tensorrt", case("TopK<sorted = 0>(x, a)", outputs="y i").replace("float i", "int64 i"), "sorted"),
    ("tensorrt", case('Resize<mode = "linear">(x, , c)'), ""),
    ("tensorrt", case('Resize<mode = "linear", antialias = 1>(x, , c)'), "antialias"),
    ("tensorrt", case('Resize<coordinate_transformation_mode = "half_pixel_symmetric">(x, , c)'), "coordinates"),
    ("tensorrt", case('Resize<keep_aspect_ratio_policy = "not_larger">(x, , , s)'), "aspect ratio"),
    ("tensorrt", case("Resize(x, , d)", f"{IMAGE}, float[4] d"), "scales that are not constant"),
    ("tensorrt", case("Resize<axes = [2, 3]>(x, , c2)"), "some axes only"),
    ("tensorrt", case("Resize<axes = [2, 3]>(x, , , s2)"), ""),
    ("tensorrt", case(f"Resize<axes = [2, 3], {ASYMMETRIC}>(x, , , s2)"), "sizes of some"),
    ("tensorrt", case("MatMul(v, x)", "float[2, 3, 4] x"), "a vector times"),
    ("tensorrt", case("MatMul(v, x)", "float[N, 3, 4] x"), ""),
    ("tensorrt", case("DequantizeLinear(q, o)", "int8[N, 4] q"), ""),
    ("tensorrt", case("DequantizeLinear(q, o)", "uint8[N, 4] q"), "unsigned"),
    ("tensorrt", case("DequantizeLinear(q, o, z)", "int8[N, 4] q"), "zero point"),
    ("tensorrt", case("QuantizeLinear(x, o, z)").replace("float y", "int8 y"), "zero point"),
    ("tensorrt", case("Attention(x, x, x)"), ""),
    ("tensorrt", case("Attention<softcap = 2.0>(x, x, x)"), "softcap"),
    ("tensorrt", case("Attention<q_num_heads = 2, kv_num_heads = 2>(x, x, x)", "float[N, 3, 8] x"), "not 4-D"),
    ("tensorrt", case("Attention(x, x, x, , x, x)", outputs="y p q"), "past keys"),
    ("tensorrt", case("TensorScatter(x, x)"), ""),
    ("tensorrt", case('TensorScatter<mode = "circular">(x, x)'), "linear"),
    ("tensorrt", case("TensorScatter<axis = 1>(x, x)"), "axis"),
    ("tensorrt", case("TensorScatter(x, x)", "float[N, 8, 8] x"), "4-D"),
    ("tensorrt", case("CumSum(x, b)", f"{IMAGE}, int64 b"), "not constant"),
    ("tensorrt", case("OneHot(i4, b, o2)", "int64 b"), "not constant"),
    ("tensorrt", case("STFT(x, a, w1)", "float[N, 9, 1] x, float[4] w1"), "not constant"),
]  # fmt: skip
WEIGHTS = {
    "w": np.ones((3, 3, 3, 3), np.float32), "v": np.ones(3, np.float32), "v8": np.ones(8, np.float32),
    "r": np.asarray(0.5, np.float32), "t": np.asarray(True), "f": np.asarray(False), "a": np.asarray([1]),
    "k": np.asarray([4000]), "i4": np.zeros((1, 3, 8, 8), np.int64), "c": np.asarray([1, 1, 2, 2], np.float32),
    "c2": np.asarray([2, 2], np.float32), "s": np.asarray([1, 3, 4, 4]), "o": np.asarray(0.1, np.float32),
    "s2": np.asarray([4, 4]), "e": np.asarray([9]), "z": np.asarray(3, np.int8), "o2": np.asarray([0, 1], np.float32),
}  # fmt: skip


@pytest.mark.parametrize(("runtime", "text", "said"), CASES)
def test_attributes_and_inputs_count(runtime: str, text: str, said: str) -> None:
    """Every case of the tables, beside a form of the operator that is run."""
    opset = 24 if "TensorScatter" in text else 23 if "Attention" in text else 18
    body = text.split("{", 1)[1]
    used = {name: array for name, array in WEIGHTS.items() if f" {name}," in body.replace(")", ",").replace("(", "( ")}
    head = f'<ir_version: 10, opset_import: ["" : {opset}]> g '
    model = onnx.parser.parse_model(head + text)
    model.graph.initializer.extend(onnx.numpy_helper.from_array(array, name) for name, array in used.items())
    found = unsupported(ir.from_proto(model), runtime)
    assert [said in left.why for left in found] == ([True] if said else [])


def test_every_case_is_tried() -> None:
    tried = {(runtime, text.split(" = ")[1].split("<")[0].split("(")[0]) for runtime, text, said in CASES if said}
    reductions = {f"Reduce{n}" for n in ("L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min", "Prod", "SumSquare")}
    alike = reductions | {"ArgMin", "Squeeze"}
    assert {(name, op) for name, table in TABLES.items() for op in table.cases if op not in alike} == tried


def test_branches_and_bodies_are_looked_into() -> None:
    inner = "{ y = Celu(x) }"
    text = f"(bool c, float[N, 4] x) => (float[N, 4] z) {{ z = If(c) <then_branch = a () => (float[N, 4] y) {inner}, "
    text += f"else_branch = b () => (float[N, 4] y) {inner}> }}"
    assert [left.op for left in unsupported(graph(text), "cuda")] == ["Celu", "Celu"]
    assert [(note.half, note.count) for note in notes(graph(text), "cuda")] == [("forward", 2)]


def test_notes_tell_the_halves_of_a_gradient_model_apart() -> None:
    """A dilated max pool: TensorRT has none, and its gradient has some."""
    model = onnx.parser.parse_model(
        """<ir_version: 10, opset_import: ["" : 18]> classifier (float[N, 1, 6, 6] x) => (float[N, 16] z)
        { pooled = MaxPool<kernel_shape = [2, 2], dilations = [2, 2]>(x) z = Flatten(pooled) }"""
    )
    made = ir.from_proto(gradient_model(model))
    assert notes(made, "cuda", "logits") == []
    forward, backward = notes(made, "tensorrt", "logits")
    assert (forward.half, forward.op, forward.count, forward.why) == ("forward", "MaxPool", 1, "dilations")
    assert (backward.half, backward.op, backward.why) == ("backward", "MaxPool", "dilations")
    assert backward.first.startswith("onnxplain/")
    assert sum(note.count for note in (forward, backward)) == len(unsupported(made, "tensorrt"))
