"""Operators of the domain ai.onnx.ml, rewritten to standard ones: TensorRT has none of them, nor has the sweep.

The formulas give what ONNX Runtime's kernels give, whose habits go beyond the specification: a binary classifier with
one row of coefficients, scores or probabilities, the maximum with its sign. Tree ensembles stay, and become gaps.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray

from onnxplain.adapters.gradient.control import WHY
from onnxplain.adapters.gradient.expr import Emit, Expr, UnsupportedCase, concat, op, where
from onnxplain.adapters.gradient.registry import refuse
from onnxplain.adapters.gradient.sweep import as_tuple, attribute_values

Array = NDArray[Any]
Rewriting = Callable[..., Any]

DOMAIN = "ai.onnx.ml"
REWRITINGS: dict[str, Rewriting] = {}

MOST_CLASSES = 1000  # of machines that tell each from each
LABELLED = "it gives a label, which does not change with the input except in jumps"


refuse(
    "its output is constant between jumps, so its gradient is zero almost everywhere; next: explain another model",
    *(f"{DOMAIN}.TreeEnsemble{kind}" for kind in ("", "Classifier", "Regressor")),
)


def rewrites(op_type: str) -> Callable[[Rewriting], Rewriting]:
    """Register how an operator is written with standard ones: a function of its inputs, with attributes as keywords.

    It returns one value per output (a bare one where there is a single output), or a function that makes it, called
    only if somebody reads that output.
    """

    def register(rewriting: Rewriting) -> Rewriting:
        REWRITINGS[op_type] = rewriting
        return rewriting

    return register


class Rewriter:
    """Rewrites nodes of one graph, which are given in topological order."""

    def __init__(self, graph: ir.Graph) -> None:
        self.graph = graph
        self._emit: Emit | None = None

    def rewrite(self, node: ir.Node) -> list[ir.Node] | None:
        """Put standard operators in the place of one of ai.onnx.ml. The new nodes; None if the node stays."""
        if node.domain != DOMAIN:
            return None
        self._emit = self._emit or Emit(self.graph)
        return rewritten(node, self._emit)


def rewritten(node: ir.Node, emit: Emit) -> list[ir.Node] | None:
    rewriting = REWRITINGS.get(node.op_type)
    if rewriting is None:
        declare(node)
        return None
    graph = emit.graph
    used = [bool(y.uses()) or y.is_graph_output() for y in node.outputs]
    with emit.recording() as new:
        try:
            xs = [None if x is None else Expr(emit, x) for x in node.inputs]
            parts = as_tuple(rewriting(*xs, **attribute_values(node)))
            made = [part() if callable(part) else part for part, use in zip(parts, used, strict=False) if use]
        except UnsupportedCase as case:
            graph.remove(new, safe=True)
            node.meta[WHY] = str(case)
            declare(node)
            return None
    graph.remove(new)
    graph.insert_before(node, new)
    for old, expr in zip((y for y, use in zip(node.outputs, used, strict=True) if use), made, strict=True):
        name, old.name = old.name, None
        expr.value.name = name
        old.replace_all_uses_with(expr.value, replace_graph_outputs=True)
    graph.remove(node, safe=True)
    return new


def declare(node: ir.Node) -> None:
    """Write down the shape of the scores of a classifier that stays, as ONNX does not infer it."""
    classes = [attribute.value for name, attribute in node.attributes.items() if name.startswith("classlabels")]
    x = node.inputs[0]
    if len(node.outputs) == 2 and len(classes) == 1 and x is not None and x.shape is not None:
        scores = node.outputs[1]
        scores.type, scores.shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape([x.shape[0], len(classes[0])])


def without_zipmap(graph: onnx.GraphProto) -> None:
    """Make outputs that are sequences of maps, label to probability, the tensors that these are made from.

    Done before anything else: onnx-ir knows no maps.
    """
    declared: dict[str, list[onnx.ValueInfoProto]] = {}
    for value in (*graph.output, *graph.value_info):
        declared.setdefault(value.name, []).append(value)
    for node in graph.node:
        if node.op_type == "ZipMap" and node.domain == DOMAIN:
            classes = sum(len(a.ints) + len(a.strings) for a in node.attribute)
            node.op_type, node.domain = "Identity", ""
            del node.attribute[:]
            for value in declared.get(node.output[0], ()):
                value.type.CopyFrom(onnx.helper.make_tensor_type_proto(onnx.TensorProto.FLOAT, [None, classes]))


def floats(x: Expr) -> Expr:
    """The kernels take integers and float64 too, and compute in float32."""
    return x if x.value.dtype == ir.DataType.FLOAT else op("Cast", x, to=int(ir.DataType.FLOAT))


def rows(x: Expr) -> Expr:
    """The samples, one a row."""
    if x.rank != 2:
        raise UnsupportedCase(f"its input has rank {x.rank}; next: give it samples as rows, of shape (N, features)")
    return floats(x)


def affine(x: Expr, w: Array, b: Array) -> Expr:
    """x Wᵀ + b, with weights rounded to float32 once."""
    return x @ x.emit.constant(np.ascontiguousarray(w.T, np.float32)) + x.emit.constant(b.astype(np.float32))


def transformed(scores: Expr, post_transform: str) -> Expr:
    """What a classifier does to its scores."""
    if post_transform == "NONE":
        return scores
    if post_transform == "LOGISTIC":
        return op("Sigmoid", scores)
    if post_transform == "SOFTMAX":
        return op("Softmax", scores, axis=1)
    raise UnsupportedCase(f"post_transform {post_transform}; next: export the model with raw scores")


def labels(best: Expr, ints: Sequence[int] | None, strings: Sequence[str] | None) -> Expr:
    """The labels of the largest scores."""
    if ints:
        names = best.emit.constant(np.asarray(ints, np.int64))
    else:
        (names,) = best.emit.node("Constant", [], {"value_strings": strings}, 1)
    return op("Gather", names, op("ArgMax", best, axis=1, keepdims=0))


@rewrites("LinearClassifier")
def linear_classifier(
    x: Expr,
    *,
    coefficients: Sequence[float],
    intercepts: Sequence[float] | None = None,
    classlabels_ints: Sequence[int] | None = None,
    classlabels_strings: Sequence[str] | None = None,
    post_transform: str = "NONE",
    **_: Any,
) -> tuple[Any, ...]:
    """s = x Wᵀ + b. One row of W for two labels: s stands for (-s, s), and raw scores are (1 - s, s).

    Where s is (-z, z), LOGISTIC gives (σ(-z), σ(z)), which is softmax(-z/2, z/2): so its logits can be found.
    """
    x, count = rows(x), len(classlabels_ints or classlabels_strings or ())
    b = np.asarray(intercepts or [0.0] * count, np.float64)
    w = np.asarray(coefficients, np.float64).reshape(len(b), -1)
    one_row = len(w) == 1 and count == 2
    if one_row:
        w, b = np.concatenate([-w, w]), np.concatenate([-b, b])
    if len(b) < 2:
        raise UnsupportedCase("a single class")
    if post_transform == "LOGISTIC" and len(w) == 2 and (w[0] == -w[1]).all() and b[0] == -b[1]:
        s = affine(x, w / 2, b / 2)
        scores = op("Softmax", s, axis=1)
    else:
        s = affine(x, w, b)
        plain = "NONE" if one_row and post_transform == "SOFTMAX" else post_transform
        scores = transformed(s, plain)
        if one_row and plain == "NONE":
            scores = scores + x.emit.constant(np.asarray([1, 0], np.float32))
    return lambda: labels(s, classlabels_ints, classlabels_strings), scores


@rewrites("LinearRegressor")
def linear_regressor(
    x: Expr,
    *,
    coefficients: Sequence[float],
    intercepts: Sequence[float] | None = None,
    targets: int = 1,
    post_transform: str = "NONE",
) -> Expr:
    """y = x Wᵀ + b."""
    if targets == 1 and post_transform != "NONE":
        raise UnsupportedCase(f"post_transform {post_transform} of one target, which runtimes leave out")
    b = np.asarray(intercepts or [0.0] * targets, np.float64)
    w = np.asarray(coefficients, np.float64).reshape(targets, -1)
    return transformed(affine(rows(x), w, b), post_transform)


def kernel_sums(x: Expr, kind: str, params: Sequence[float], vectors: Array, c: Array, rho: Array) -> Expr:
    """Σₛ k(x, vₛ) cₛ + ρ for each column of c.

    ‖x - v‖² as ‖x‖² + ‖v‖² - 2 x·v, around the mean of the v, so that little cancels.
    """
    gamma, offset, degree = (*params, 0.0, 0.0, 3.0)[:3] if params else (0.0, 0.0, 3.0)
    if kind == "LINEAR":
        return affine(x, c.T @ vectors, rho)
    if kind == "RBF":
        middle = vectors.mean(axis=0)
        v = vectors - middle
        x = x - x.emit.constant(middle.astype(np.float32))
        cross = affine(x, 2 * gamma * v, -gamma * (v * v).sum(axis=1))
        k = op("Exp", cross - (x * x).sum([1], keepdims=True) * gamma)
    elif kind == "POLY":
        k = op("Pow", affine(x, gamma * vectors, np.full(len(vectors), offset)), degree)
    elif kind == "SIGMOID":
        k = op("Tanh", affine(x, gamma * vectors, np.full(len(vectors), offset)))
    else:
        raise UnsupportedCase(f"kernel_type {kind}")
    return affine(k, c.T, rho)


@rewrites("SVMClassifier")
def svm_classifier(
    x: Expr,
    *,
    coefficients: Sequence[float],
    rho: Sequence[float],
    support_vectors: Sequence[float] | None = None,
    vectors_per_class: Sequence[int] | None = None,
    kernel_type: str = "LINEAR",
    kernel_params: Sequence[float] = (),
    prob_a: Sequence[float] | None = None,
    classlabels_ints: Sequence[int] | None = None,
    classlabels_strings: Sequence[str] | None = None,
    post_transform: str = "NONE",
    **_: Any,
) -> tuple[Any, ...]:
    """d_ij = Σ_{s in class i} k(x, v_s) α_{j-1,s} + Σ_{s in class j} k(x, v_s) α_{i,s} + ρ_ij, for each pair i < j.

    The scores are the d_ij; of two classes, (-d, d).
    """
    if not support_vectors or not vectors_per_class:
        raise UnsupportedCase("a linear classifier without support vectors; next: export it as a LinearClassifier")
    x, classes = rows(x), len(vectors_per_class)
    if classes > MOST_CLASSES:
        raise UnsupportedCase(f"{classes:,} classes, each with each of which makes too many pairs")
    vectors = np.asarray(support_vectors, np.float64).reshape(sum(vectors_per_class), -1)
    alpha = np.asarray(coefficients, np.float64).reshape(classes - 1, len(vectors))
    of_class = [slice(a, b) for a, b in pairwise(np.cumsum([0, *vectors_per_class]).tolist())]
    pairs = [(i, j) for i in range(classes) for j in range(i + 1, classes)]
    c = np.zeros((len(vectors), len(pairs)))
    for n, (i, j) in enumerate(pairs):
        c[of_class[i], n] = alpha[j - 1, of_class[i]]
        c[of_class[j], n] = alpha[i, of_class[j]]
    d = kernel_sums(x, kernel_type, kernel_params, vectors, c, np.asarray(rho, np.float64)[: len(pairs)])

    def label() -> Expr:
        """A vote of the pairs; the first of equals."""
        won = op("Cast", d > 0.0, to=int(ir.DataType.FLOAT))
        for_first, for_second = (np.zeros((classes, len(pairs))) for _ in range(2))
        for n, (i, j) in enumerate(pairs):
            for_first[i, n] = for_second[j, n] = 1
        votes = affine(won, for_first - for_second, for_second.sum(axis=1))
        return labels(votes, classlabels_ints, classlabels_strings)

    if prob_a:
        raise UnsupportedCase("its probabilities come from an iteration; next: export it without (probability=False)")
    if classes > 2:
        return label, transformed(d, post_transform)
    if post_transform == "LOGISTIC":
        return label, op("Softmax", concat([d * -0.5, d * 0.5], 1), axis=1)
    if post_transform != "NONE":
        raise UnsupportedCase(f"post_transform {post_transform} of two classes; next: export it with raw scores")
    return label, concat([-d, d], 1)


@rewrites("SVMRegressor")
def svm_regressor(
    x: Expr,
    *,
    coefficients: Sequence[float],
    rho: Sequence[float],
    n_supports: int = 0,
    support_vectors: Sequence[float] | None = None,
    kernel_type: str = "LINEAR",
    kernel_params: Sequence[float] = (),
    one_class: int = 0,
    post_transform: str = "NONE",
) -> Expr:
    """y = Σₛ k(x, vₛ) αₛ + ρ."""
    if one_class:
        raise UnsupportedCase("it tells the sign only; next: export the model with its decision value")
    if post_transform != "NONE":
        raise UnsupportedCase(f"post_transform {post_transform}; next: export the model with raw scores")
    alpha, bias = np.asarray(coefficients, np.float64), np.asarray(rho, np.float64)[:1]
    if not n_supports:
        return affine(rows(x), alpha[None], bias)
    vectors = np.asarray(support_vectors, np.float64).reshape(n_supports, -1)
    return kernel_sums(rows(x), kernel_type, kernel_params, vectors, alpha[:, None], bias)


@rewrites("Scaler")
def scaler(x: Expr, *, offset: Sequence[float], scale: Sequence[float]) -> Expr:
    """y = (x - offset) scale, in the precision of x."""
    if max(len(offset), len(scale)) > 1:
        rows(x)
    if not x.value.dtype or not x.value.dtype.is_floating_point():
        x = floats(x)
    shift, factor = (x.emit.constant(np.asarray(a, np.float32).astype(x.dtype)) for a in (offset, scale))
    return floats((x - shift) * factor)


@rewrites("Normalizer")
def normalizer(x: Expr, *, norm: str = "MAX") -> Expr:
    """y = x / max x, x / Σ|x| or x / √Σx² of each row; y = x where that is zero. What a Softmax gives has Σ|x| = 1."""
    maker = x.value.producer()
    if norm == "L1" and maker is not None and maker.op_type == "Softmax" and not maker.domain and x.rank == 2:
        return op("Identity", x)
    x = rows(x)
    if norm == "MAX":
        size = op("ReduceMax", x, [1], keepdims=1)
    elif norm == "L1":
        size = op("Abs", x).sum([1], keepdims=True)
    elif norm == "L2":
        size = (x * x).sum([1], keepdims=True)
    else:
        raise UnsupportedCase(f"norm {norm}")
    size = where(op("Equal", size, 0.0), 1.0, size)
    return x / (op("Sqrt", size) if norm == "L2" else size)


@rewrites("Binarizer")
def binarizer(x: Expr, *, threshold: float = 0.0) -> Expr:
    """y = 1 where x > threshold, else 0."""
    return op("Cast", x > threshold, to=int(x.value.dtype or ir.DataType.FLOAT))


@rewrites("Imputer")
def imputer(
    x: Expr, *, imputed_value_floats: Sequence[float] | None = None, replaced_value_float: float = 0.0, **_: Any
) -> Expr:
    """y = x, and a constant for each feature where x is missing."""
    if imputed_value_floats is None:
        raise UnsupportedCase("integers")
    missing = op("IsNaN", x) if math.isnan(replaced_value_float) else op("Equal", x, replaced_value_float)
    return where(missing, x.emit.constant(np.asarray(imputed_value_floats, x.dtype)), x)


@rewrites("ArrayFeatureExtractor")
def array_feature_extractor(x: Expr, indices: Expr) -> Expr:
    """y = x at some indices of its last axis; of a vector, a row."""
    if indices.constant is None:
        raise UnsupportedCase(LABELLED)
    picked = op("Gather", x, [int(i) for i in indices.constant.ravel()], axis=-1)
    return picked if x.rank > 1 else op("Reshape", picked, [1, -1])


@rewrites("FeatureVectorizer")
def feature_vectorizer(*xs: Expr, inputdimensions: Sequence[int] = ()) -> Expr:
    """The features of all inputs, side by side."""
    if any(x.rank != 2 or x.shape[1] != n for x, n in zip(xs, inputdimensions, strict=True)):
        raise UnsupportedCase("inputs of other sizes than it says")
    return concat([floats(x) for x in xs], 1) if len(xs) > 1 else op("Identity", floats(xs[0]))
