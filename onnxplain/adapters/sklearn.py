"""scikit-learn classifiers and pipelines through skl2onnx, as far as they have a derivative.

Their input is a row of numbers, no image: they are explained from Python, with `ox.open(file, range=...)`.
What is explained is the decision function where skl2onnx gives it, probabilities otherwise; for two classes, the one
score that tells them apart, which is that of the second class.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import onnx
from onnx import helper, numpy_helper

from onnxplain.adapters.export import Exported, export_original
from onnxplain.adapters.original import Original, require
from onnxplain.adapters.pytorch import first_line, quietly
from onnxplain.engine.requests import Array
from onnxplain.errors import ExportError

if TYPE_CHECKING:
    from sklearn.base import BaseEstimator

OPSETS = {"": 18, "ai.onnx.ml": 3}
STEPS = re.compile("Tree|Forest|Boost|Neighbors|NearestCentroid|Isolation|Discretizer|Binarizer")  # piecewise constant
MOST = 1024  # features whose slopes are looked for one by one
STEP = 1e-5  # of a difference, in float64
WAYS = (  # methods that give scores, and the options under which skl2onnx gives the same
    ("decision_function", {"raw_scores": True, "zipmap": False}),
    ("decision_function", {"raw_scores": True}),
    ("predict_proba", {"zipmap": False}),
)

Ask: TypeAlias = Callable[[Array], Array]


def export(
    model: BaseEstimator,
    example: Array,
    out: str | os.PathLike[str],
    *,
    labels: Sequence[str] | None = None,
    name: str | None = None,
    **how: Any,
) -> Exported:
    """Write the gradient model of a fitted classifier, checked against what scikit-learn says, and against its slopes.

    Args:
        model: a classifier, or a pipeline that ends in one.
        example: rows of features, (N, F), at which the export is checked.
        out: the gradient model's file.
        labels: the names of the classes; None: those that it was fitted with.
        name: what messages and the file call the classifier; None: its class.
        how: the other arguments of `export_original`.

    Raises:
        ExportError: it has no derivative, cannot be exported, or its export differs from it.
        Otherwise as `export_original`.
    """
    return export_original(original(model, example, labels=labels, name=name), out, **how)


def original(
    model: BaseEstimator,
    example: Array | None,
    *,
    preprocess: None = None,
    labels: Sequence[str] | None = None,
    name: str | None = None,
) -> Original:
    """A scikit-learn classifier; see `export`. Its gradients are central differences of itself, in float64."""
    sklearn = require("sklearn", "sklearn")
    name = name or type(model).__name__
    if preprocess is not None:
        raise ExportError(f"{name}: takes rows of numbers, which no photo becomes; next: leave preprocess out")
    require_slopes(model, name)
    features = features_of(model, name)
    rows = np.zeros((2, features), np.float32) if example is None else np.ascontiguousarray(example, np.float32)
    made, ask = converted(model, features, name)
    if ask(rows).shape[1] == 1:
        made = one_score(made)
        named = list(map(str, model.classes_[1:])) if hasattr(model, "classes_") else None
    else:
        named = list(map(str, model.classes_)) if hasattr(model, "classes_") else None

    def write(path: Path) -> Sequence[str]:
        onnx.save(made, path)
        return ()

    return Original(
        name=name,
        framework=f"scikit-learn {sklearn.__version__}",
        image_shape=(features,),
        write=write,
        outputs=lambda rows: ask(rows).astype(np.float32),
        gradients=partial(slopes, ask) if features <= MOST else None,
        layers=partial(steps, model, ask),
        images=None if example is None else rows,
        labels=named if labels is None else labels,
        provenance={"exporter": f"skl2onnx {require('skl2onnx', 'sklearn').__version__}"},
    )


def parts(model: Any) -> list[Any]:
    """An estimator and those inside it."""
    inside = model.get_params(deep=True).values() if hasattr(model, "get_params") else []
    return [model, *(part for part in inside if hasattr(part, "get_params"))]


def require_slopes(model: Any, name: str) -> None:
    """Raise `ExportError` for what is no estimator, or one that is constant but for jumps."""
    if not hasattr(model, "get_params"):
        raise ExportError(f"{name}: expected an estimator of scikit-learn, got {type(model).__name__}; next: give one")
    flat = [type(part).__name__ for part in parts(model) if STEPS.search(type(part).__name__)]
    if flat:
        raise ExportError(
            f"{name}: {flat[0]} has no derivative, for its output is constant between jumps; next: explain it by "
            "methods that ask no gradients (kernel-shap, occlusion), or train a model that has one"
        )


def features_of(model: Any, name: str) -> int:
    """How many numbers a row has. Raises `ExportError` unless it was fitted."""
    found = getattr(model, "n_features_in_", None)
    if found is None:
        raise ExportError(f"{name}: not fitted, so nobody knows its features; next: call fit")
    return int(found)


def converted(model: Any, features: int, name: str) -> tuple[onnx.ModelProto, Ask]:
    """The classifier as ONNX, and the function that it computes: rows (n, F) -> scores (n, K), (n, 1) for two classes.

    Raises `ExportError` for what is no classifier, or what skl2onnx does not know.
    """
    converter = require("skl2onnx", "sklearn")
    from skl2onnx.common.data_types import FloatTensorType

    last = model.steps[-1][1] if hasattr(model, "steps") else model
    reason = ""
    for way, options in WAYS:
        if not hasattr(model, way):
            continue
        try:
            with quietly():
                made = converter.to_onnx(
                    model,
                    initial_types=[("input", FloatTensorType([None, features]))],
                    options={id(last): dict(options)},
                    target_opset=OPSETS,
                )
            return made, partial(scores, getattr(model, way))
        except Exception as error:
            reason = first_line(error)
    if not reason:
        raise ExportError(
            f"{name}: has no decision_function and no predict_proba, so it is no classifier; next: give one"
        )
    raise ExportError(f"{name}: skl2onnx cannot convert it ({reason}); next: replace what it does not know")


def scores(ask: Ask, rows: Array) -> Array:
    """What a method of scikit-learn says, as (n, K); of two classes that of the second."""
    with quietly():
        found = np.asarray(ask(rows))
    return found[:, 1:] if found.ndim == 2 and found.shape[1] == 2 else found.reshape(len(rows), -1)


def one_score(made: onnx.ModelProto) -> onnx.ModelProto:
    """A model for two classes with the one score as its output: a value inside, or a column of what it has."""
    graph = made.graph
    float_outputs = [v.name for v in graph.output if v.type.tensor_type.elem_type == onnx.TensorProto.FLOAT]
    sigmoids = [node.output[0] for node in graph.node if node.op_type == "Sigmoid"]
    if sigmoids:
        score = sigmoids[-1]
    else:
        (both,) = float_outputs
        score = "onnxplain_score"
        graph.initializer.append(numpy_helper.from_array(np.array([1]), "onnxplain_second"))
        graph.node.append(helper.make_node("Gather", [both, "onnxplain_second"], [score], axis=1))
    del graph.output[:]
    graph.output.append(helper.make_tensor_value_info(score, onnx.TensorProto.FLOAT, ["N", 1]))
    return made


def slopes(ask: Any, rows: Array, weights: Array) -> Array:
    """The gradient of sum(weights * scores), by central differences."""
    shifts = STEP * np.eye(rows.shape[1])
    found = []
    for row, weight in zip(rows.astype(np.float64), weights, strict=True):
        found.append((ask(row + shifts) - ask(row - shifts)) @ weight / (2 * STEP))
    return np.asarray(found, np.float32)


def steps(model: Any, ask: Ask, rows: Array) -> Iterator[tuple[str, Array]]:
    """What each step of a pipeline makes of rows."""
    scored = ask(rows)
    for name, step in getattr(model, "steps", [])[:-1]:
        if step not in (None, "passthrough"):
            rows = np.asarray(step.transform(rows))
        yield name, rows
    yield "scores", scored
