"""Operators of ai.onnx.ml, rewritten: ONNX Runtime's kernels give the values, formulas in float64 the gradients."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from conformance.samples.sample import slope
from onnx.helper import make_node, make_opsetid, make_tensor_value_info

from onnxplain.adapters.gradient.classifier import gradient_model, logits_model
from onnxplain.adapters.gradient.differentiate import coverage, differentiate
from onnxplain.adapters.gradient.prepare import prepare
from onnxplain.engine.executors.onnxruntime import OnnxRuntimeExecutor
from onnxplain.errors import NotDifferentiable

Array = np.ndarray[Any, Any]
ML = "ai.onnx.ml"
FLOAT = onnx.TensorProto.FLOAT
X = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
W = np.asarray([[0.5, -0.25, 1.0], [0.25, 0.75, -0.5], [-0.5, 0.125, 0.25]])
B = np.asarray([0.125, -0.25, 0.0625])


def model(
    nodes: list[onnx.NodeProto], outputs: list[str], opset: int = 18, kind: int = FLOAT, **arrays: Array
) -> onnx.ModelProto:
    graph = onnx.helper.make_graph(
        nodes,
        "classical",
        [make_tensor_value_info("x", kind, ["N", 3])],
        [onnx.helper.make_empty_tensor_value_info(name) for name in outputs],
        [onnx.numpy_helper.from_array(a, name) for name, a in arrays.items()],
    )
    imports = [make_opsetid("", opset), make_opsetid(ML, 3)]
    return onnx.helper.make_model(graph, opset_imports=imports, ir_version=8)


def sigmoid(z: Array) -> Array:
    return 1 / (1 + np.exp(-z))


def softmax(z: Array) -> Array:
    e = np.exp(z - z.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


POST: dict[str, Callable[[Array], Array]] = {"NONE": lambda z: z, "LOGISTIC": sigmoid, "SOFTMAX": softmax}

VECTORS = np.random.default_rng(1).normal(size=(7, 3)).round(2)
KERNELS: dict[str, Callable[[Array], Array]] = {  # γ = 0.5, r = 0.25, degree 3
    "LINEAR": lambda x: x @ VECTORS.T,
    "RBF": lambda x: np.exp(-0.5 * ((x[:, None] - VECTORS) ** 2).sum(axis=-1)),
    "POLY": lambda x: (0.5 * x @ VECTORS.T + 0.25) ** 3,
    "SIGMOID": lambda x: np.tanh(0.5 * x @ VECTORS.T + 0.25),
}
ALPHA = np.random.default_rng(2).normal(size=(2, 7)).round(2)
RHO = [0.25, -0.5, 0.125]


def decisions(k: Array, classes: int) -> Array:
    """One against one, as libsvm has it: 4 vectors of the first class, 2 of the second, 1 of the third."""
    ends = [0, 4, 6, 7]
    of = [slice(a, b) for a, b in pairwise(ends)]
    columns = []
    for i in range(classes):
        for j in range(i + 1, classes):
            first, second = k[:, of[i]] @ ALPHA[j - 1, of[i]], k[:, of[j]] @ ALPHA[i, of[j]]
            columns.append(first + second + RHO[len(columns)])
    return np.stack(columns, axis=1)


@dataclass(frozen=True, eq=False)
class Case:
    """An operator, its attributes, and its scores by a formula."""

    op: str
    attributes: dict[str, Any]
    scores: Callable[[Array], Array]
    labels: bool = field(default=False, kw_only=True)  # a classifier: the first output is a label

    @property
    def id(self) -> str:
        brief = [str(v) for v in self.attributes.values() if isinstance(v, str | int)]
        rows = len(self.attributes.get("intercepts", self.attributes.get("rho", ())))
        return "-".join([self.op, *brief, f"{rows} rows"])

    def model(self, **how: Any) -> onnx.ModelProto:
        outputs = ["label", "y"] if self.labels else ["y"]
        return model([make_node(self.op, ["x"], outputs, domain=ML, **self.attributes)], outputs, **how)


def linear(rows: Array, bias: Array, labels: int, post: str, scores: Callable[[Array], Array], **more: Any) -> Case:
    names = {"classlabels_ints": list(range(10, 10 + labels))} | more
    given = {"coefficients": rows.ravel(), "intercepts": bias, "post_transform": post, **names}
    return Case("LinearClassifier", given, scores, labels=True)


def both(z: Array) -> Array:
    return np.concatenate([-z, z], axis=1)


def svm(classes: int, kernel: str, post: str, scores: Callable[[Array], Array]) -> Case:
    vectors = [4, 2, 1][:classes]
    n = sum(vectors)
    attributes = {
        "kernel_type": kernel,
        "post_transform": post,
        "kernel_params": [0.5, 0.25, 3.0],
        "classlabels_ints": list(range(10, 10 + classes)),
        "vectors_per_class": vectors,
        "support_vectors": VECTORS[:n].ravel(),
        "coefficients": ALPHA[: classes - 1, :n].ravel(),
        "rho": RHO[: classes * (classes - 1) // 2],
    }
    return Case("SVMClassifier", attributes, scores, labels=True)


def regression(kernel: str) -> Case:
    attributes = {
        "kernel_type": kernel,
        "kernel_params": [0.5, 0.25, 3.0],
        "n_supports": 7,
        "support_vectors": VECTORS.ravel(),
        "coefficients": ALPHA[0],
        "rho": [0.25],
    }
    return Case("SVMRegressor", attributes, lambda x: KERNELS[kernel](x) @ ALPHA[0, :, None] + 0.25)


def two(x: Array) -> Array:
    return x @ W[:2].T + B[:2]


def three(x: Array) -> Array:
    return x @ W.T + B


def one(x: Array) -> Array:
    return x @ W[:1].T + B[:1]


BY_HAND = {"coefficients": W[0], "rho": [0.5], "kernel_type": "LINEAR", "kernel_params": [0.0, 0.0, 0.0]}

CASES = [
    *(linear(W, B, 3, post, lambda x, f=f: f(three(x))) for post, f in POST.items()),
    *(linear(W[:2], B[:2], 2, post, lambda x, f=f: f(two(x))) for post, f in POST.items()),
    *(
        linear(both(W[:1].T).T, both(B[None, :1])[0], 2, post, lambda x, f=f: f(both(one(x))))
        for post, f in POST.items()
    ),
    linear(W[:1], B[:1], 2, "LOGISTIC", lambda x: sigmoid(both(one(x)))),
    *(linear(W[:1], B[:1], 2, p, lambda x: both(one(x)) + np.asarray([1, 0])) for p in ("NONE", "SOFTMAX")),
    linear(W, B, 0, "SOFTMAX", lambda x: softmax(three(x)), classlabels_ints=None, classlabels_strings=["a", "b", "c"]),
    *(
        Case(
            "LinearRegressor",
            {"targets": 2, "post_transform": post, "coefficients": W[:2].ravel(), "intercepts": B[:2]},
            lambda x, f=f: f(two(x)),
        )
        for post, f in POST.items()
    ),
    Case("LinearRegressor", {"coefficients": W[0]}, lambda x: x @ W[:1].T),
    *(svm(3, kernel, "NONE", lambda x, k=k: decisions(k(x), 3)) for kernel, k in KERNELS.items() if kernel != "RBF"),
    *(svm(2, kernel, "NONE", lambda x, k=k: both(decisions(k(x), 2))) for kernel, k in KERNELS.items()),
    *(svm(3, "RBF", post, lambda x, f=f: f(decisions(KERNELS["RBF"](x), 3))) for post, f in POST.items()),
    svm(2, "RBF", "LOGISTIC", lambda x: sigmoid(both(decisions(KERNELS["RBF"](x), 2)))),
    *(regression(kernel) for kernel in KERNELS),
    Case("SVMRegressor", BY_HAND, lambda x: x @ W[:1].T + 0.5),
    Case("Scaler", {"offset": [1.0, 2.0, -1.0], "scale": [0.5, 2.0, 4.0]}, lambda x: (x - [1, 2, -1]) * [0.5, 2, 4]),
    Case("Scaler", {"offset": [1.0], "scale": [0.5]}, lambda x: (x - 1) * 0.5),
    Case("Normalizer", {"norm": "L1"}, lambda x: x / np.abs(x).sum(axis=1, keepdims=True)),
    Case("Normalizer", {"norm": "L2"}, lambda x: x / np.sqrt((x * x).sum(axis=1, keepdims=True))),
    Case("Normalizer", {"norm": "MAX"}, lambda x: x / x.max(axis=1, keepdims=True)),
]  # fmt: skip
every_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)


@every_case
def test_rewritten_operators_give_what_the_runtime_s_kernels_give(case: Case) -> None:
    """Labels exactly, scores to a few float32 roundings; in float32 and from integers and float64 too."""
    for x in [X] if "SVM" in case.op or "Regressor" in case.op else [X, X.astype(np.float64), X.astype(np.int64)]:
        kind = onnx.helper.np_dtype_to_tensor_dtype(x.dtype)
        proto = case.model(kind=kind)
        made = prepared(proto)
        assert {node.domain for node in made.graph.node} == {""}
        (before, after) = (OnnxRuntimeExecutor(p, threads=1, optimise=False)({"x": x}) for p in (proto, made))
        for name, values in before.items():
            assert values.dtype == after[name].dtype
            assert values.shape == after[name].shape
            if name == "label":
                assert values.tolist() == after[name].tolist()
            else:
                np.testing.assert_allclose(after[name], values, rtol=0, atol=2e-6 * max(1, np.abs(values).max()))


def prepared(proto: onnx.ModelProto) -> onnx.ModelProto:
    """What `prepare` makes of a model."""
    return ir.to_proto(prepare(proto))


@every_case
def test_the_gradient_is_that_of_the_formula(case: Case) -> None:
    """x̄ = Jᵀ ȳ: in float32, against the five-point stencil on the formula in float64."""
    x = X.astype(np.float64)
    g = np.random.default_rng(3).normal(size=case.scores(x).shape)

    def column(k: int) -> Array:
        """Σ ȳ ∂y/∂x_k for each row, which depends on its own row alone."""
        along = {"x": np.eye(3)[[k] * len(x)]}
        return (g * slope(lambda feeds: {"y": case.scores(feeds["x"])}, {"x": x}, along)["y"]).sum(axis=1)

    want = np.stack([column(k) for k in range(3)], axis=1)
    made = differentiate(case.model(), of=["y"])
    out = OnnxRuntimeExecutor(made, threads=1, optimise=False)({"x": X, "grad_y": g.astype(np.float32)})
    np.testing.assert_allclose(out["y"], case.scores(x), rtol=0, atol=1e-5 * max(1, np.abs(case.scores(x)).max()))
    np.testing.assert_allclose(out["grad_x"], want, rtol=0, atol=1e-5 * max(1, np.abs(want).max()))


@pytest.mark.parametrize("norm", ["MAX", "L1", "L2"])
def test_a_row_of_zeros_stays_as_it_is_and_has_a_finite_gradient(norm: str) -> None:
    """Where the norm is zero, the kernels divide by one."""
    made = differentiate(model([make_node("Normalizer", ["x"], ["y"], domain=ML, norm=norm)], ["y"]))
    zeros = np.zeros((1, 3), np.float32)
    out = OnnxRuntimeExecutor(made, threads=1, optimise=False)({"x": zeros, "grad_y": zeros + 1})
    np.testing.assert_array_equal(out["y"], zeros)
    assert np.isfinite(out["grad_x"]).all()


def pipeline(classes: int, zipped: bool = True, opset: int = 18) -> onnx.ModelProto:
    """What skl2onnx makes of a scaler with a logistic regression: two classes, or several."""
    rows, bias, post = (W, B, "SOFTMAX") if classes > 2 else (both(W[:1].T).T, both(B[None, :1])[0], "LOGISTIC")
    nodes = [
        make_node("Scaler", ["x"], ["s"], domain=ML, offset=[1.0, 2.0, -1.0], scale=[0.5, 2.0, 4.0]),
        make_node("Normalizer", ["s"], ["n"], domain=ML, norm="L2"),
        make_node(
            "LinearClassifier", ["n"], ["l", "p"], domain=ML, coefficients=rows.ravel(), intercepts=bias,
            classlabels_ints=list(range(classes)), post_transform=post,
        ),
        make_node("Cast", ["l"], ["label"], to=onnx.TensorProto.INT64),
        make_node("Normalizer", ["p"], ["probability"], domain=ML, norm="L1"),
    ]  # fmt: skip
    made = model(nodes, ["label", "probability"], opset)
    if zipped:
        nodes.append(
            make_node("ZipMap", ["probability"], ["zipped"], domain=ML, classlabels_int64s=list(range(classes)))
        )
        made = model(nodes, ["label", "zipped"], opset)
        mapped = onnx.helper.make_tensor_type_proto(FLOAT, None)
        kind = onnx.helper.make_sequence_type_proto(onnx.helper.make_map_type_proto(onnx.TensorProto.INT64, mapped))
        made.graph.output[1].type.CopyFrom(kind)
    return made


@pytest.mark.parametrize("opset", [12, 18])
@pytest.mark.parametrize("classes", [2, 3])
def test_the_logits_of_a_pipeline_are_found(classes: int, opset: int, tmp_path: Path) -> None:
    """Behind labels, ZipMap and a norm that does nothing; and softmax(logits) are the probabilities."""
    path = tmp_path / "pipeline.onnx"
    path.write_bytes(pipeline(classes, opset=opset).SerializeToString())
    made = logits_model(path)
    assert {node.domain for node in made.graph.node} == {""}
    logits = OnnxRuntimeExecutor(made, threads=1)({"x": X})["logits"]
    want = OnnxRuntimeExecutor(pipeline(classes, zipped=False), threads=1)({"x": X})["probability"]
    np.testing.assert_allclose(softmax(logits), want, rtol=0, atol=1e-6)
    assert {v.name for v in gradient_model(path).graph.output} == {"logits", "value", "gradient"}


def test_a_forest_behind_zipmap_is_refused_for_being_one() -> None:
    """And not for a shape that nobody inferred."""
    forest = {name.replace("target", "class"): values for name, values in TREE.items() if name != "n_targets"}
    nodes = [
        make_node("TreeEnsembleClassifier", ["x"], ["l", "p"], domain=ML, classlabels_int64s=[0, 1, 2], **forest),
        make_node("ZipMap", ["p"], ["y"], domain=ML, classlabels_int64s=[0, 1, 2]),
    ]
    with pytest.raises(NotDifferentiable, match="constant between jumps"):
        gradient_model(model(nodes, ["y"]))


def test_a_sequence_of_maps_becomes_the_tensor_that_it_is_made_from() -> None:
    """Under its name; everything else stays."""
    made = differentiate(pipeline(3))
    assert [v.name for v in made.graph.output] == ["label", "zipped", "grad_x"]
    out = OnnxRuntimeExecutor(made, threads=1)({"x": X, "grad_zipped": np.ones((5, 3), np.float32)})
    want = OnnxRuntimeExecutor(pipeline(3, zipped=False), threads=1)({"x": X})
    np.testing.assert_allclose(out["zipped"], want["probability"], rtol=0, atol=1e-6)
    np.testing.assert_array_equal(out["label"], want["label"])
    np.testing.assert_allclose(out["grad_x"], 0, atol=1e-6)  # they add up to one


def test_helpers_of_pipelines_are_rewritten_too() -> None:
    """Binarizer and Imputer (of NaN, and of a number), ArrayFeatureExtractor and FeatureVectorizer."""
    nodes = [
        make_node(
            "Imputer", ["x"], ["a"], domain=ML, imputed_value_floats=[7.0, 8.0, 9.0], replaced_value_float=np.nan
        ),
        make_node("Imputer", ["a"], ["b"], domain=ML, imputed_value_floats=[5.0], replaced_value_float=2.0),
        make_node("Binarizer", ["b"], ["c"], domain=ML, threshold=0.5),
        make_node("ArrayFeatureExtractor", ["b", "columns"], ["d"], domain=ML),
        make_node("FeatureVectorizer", ["c", "d"], ["y"], domain=ML, inputdimensions=[3, 2]),
    ]
    proto = model(nodes, ["y"], columns=np.asarray([2, 0]))
    x = np.asarray([[1, np.nan, 2], [2, 0.25, np.nan]], np.float32)
    out = OnnxRuntimeExecutor(differentiate(proto), threads=1, optimise=False)(
        {"x": x, "grad_y": np.asarray([[1, 1, 1, 2, 3], [1, 1, 1, 4, 5]], np.float32)}
    )
    np.testing.assert_array_equal(out["y"], [[1, 1, 1, 5, 1], [1, 0, 1, 9, 5]])
    np.testing.assert_array_equal(out["grad_x"], [[3, 0, 0], [0, 0, 0]])


TREE = {
    "nodes_treeids": [0, 0, 0], "nodes_nodeids": [0, 1, 2], "nodes_featureids": [0, 0, 0], "nodes_values": [0.5, 0, 0],
    "nodes_modes": ["BRANCH_LEQ", "LEAF", "LEAF"], "nodes_truenodeids": [1, 0, 0], "nodes_falsenodeids": [2, 0, 0],
    "n_targets": 1, "target_treeids": [0, 0], "target_nodeids": [1, 2], "target_ids": [0, 0],
    "target_weights": [1.0, 2.0],
}  # fmt: skip
REFUSED = {
    "constant between jumps": Case("TreeEnsembleRegressor", TREE, three),
    "come from an iteration": Case(
        "SVMClassifier", svm(2, "RBF", "NONE", two).attributes | {"prob_a": [-1.0], "prob_b": [0.5]}, two, labels=True
    ),
    "post_transform PROBIT": linear(W, B, 3, "PROBIT", three),
    "post_transform SOFTMAX_ZERO": linear(W, B, 3, "SOFTMAX_ZERO", three),
    "the sign only": Case("SVMRegressor", BY_HAND | {"one_class": 1}, one),
    "of one target": Case("LinearRegressor", {"coefficients": W[0], "post_transform": "LOGISTIC"}, one),
    "without support vectors": Case("SVMClassifier", BY_HAND | {"classlabels_ints": [0, 1]}, two, labels=True),
}


@pytest.mark.parametrize("why", REFUSED)
def test_what_is_not_rewritten_is_a_gap_that_says_why(why: str) -> None:
    """And stays in the graph as it was."""
    proto = REFUSED[why].model()
    for y in proto.graph.output:
        kind, shape = (onnx.TensorProto.INT64, ["N"]) if y.name == "label" else (FLOAT, ["N", "K"])
        y.type.CopyFrom(onnx.helper.make_tensor_type_proto(kind, shape))
    with pytest.raises(NotDifferentiable, match=why):
        differentiate(proto)
    (found,) = coverage(proto).gaps
    assert found.op == f"{ML}.{REFUSED[why].op}"
    assert [node.op_type for node in prepare(proto).graph] == [REFUSED[why].op]
