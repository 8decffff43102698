"""scikit-learn: fitted classifiers and pipelines that have a derivative, through skl2onnx.

The logits are the decision function, what an MLP has in front of its last activation, or the joint log-probabilities of
a naive Bayes classifier. Of two classes with one decision function d they are -d/2 and d/2, whose softmax are the
probabilities of a logistic regression.
"""

from __future__ import annotations

import copy
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from onnx.utils import Extractor

from onnxplain.adapters.export import Exported, export_original
from onnxplain.adapters.gradient.ml import without_zipmap
from onnxplain.adapters.original import Original, require
from onnxplain.adapters.pytorch import first_line, quietly
from onnxplain.engine.requests import Array
from onnxplain.errors import ExportError

if TYPE_CHECKING:
    from sklearn.base import BaseEstimator

OPSETS = {"": 18, "ai.onnx.ml": 3}
STEP = 1e-5  # of a feature's size: in float64, both the curvature and the rounding of a difference are below 1e-9
MOST_FEATURES = 1024  # whose derivatives are taken one by one

SCORES = frozenset(  # whose decision function skl2onnx writes
    {
        "LogisticRegression", "LinearDiscriminantAnalysis", "BaseSGDClassifier", "RidgeClassifier", "RidgeClassifierCV",
        "LinearSVC", "OneVsRestClassifier",
    }
)  # fmt: skip
JOINT = frozenset({"GaussianNB", "MultinomialNB", "ComplementNB"})  # whose joint log-probabilities are in its file
TREES = "it is made of trees, whose scores are constant between thresholds"
NEIGHBOURS = "it counts neighbours, whose number is constant between jumps"
VOTES = "it counts votes, whose number is constant between jumps"
THRESHOLDS = "it only tells which value, or which side of a threshold, a feature has"
AVERAGES = "its scores are averages of probabilities, which have no logits"
REFUSED: Mapping[str, str] = {  # what is not explained by gradients, by its class or one that it descends from
    "BaseDecisionTree": TREES,
    "BaseForest": TREES,
    "BaseGradientBoosting": TREES,
    "BaseHistGradientBoosting": TREES,
    "XGBModel": TREES,
    "LGBMModel": TREES,
    "CatBoost": TREES,
    "KNeighborsMixin": NEIGHBOURS,
    "RadiusNeighborsMixin": NEIGHBOURS,
    "AdaBoostClassifier": VOTES,
    "OneVsOneClassifier": VOTES,
    "BernoulliNB": THRESHOLDS,
    "CategoricalNB": THRESHOLDS,
    "Binarizer": THRESHOLDS,
    "KBinsDiscretizer": THRESHOLDS,
    "OneHotEncoder": THRESHOLDS,
    "OrdinalEncoder": THRESHOLDS,
    "QuantileTransformer": "it follows the ranks of the data that it has seen, and its slope jumps at each of them",
    "PowerTransformer": "skl2onnx writes it with NaN in the branch that is not taken, where the gradient is NaN too",
    "BaggingClassifier": AVERAGES,
    "CalibratedClassifierCV": AVERAGES,
    "VotingClassifier": AVERAGES,
}
KNOWN = (SCORES | JOINT | {"MLPClassifier", "SGDClassifier", "SVC", "NuSVC"}) - {"BaseSGDClassifier"}
INSTEAD = (
    "explain the file that skl2onnx makes of it by a method that asks for no gradient: ox.open(FILE, preprocess=None, "
    "gradient=False), and KernelSHAP(segments=np.arange(features), baseline=...)"
)


def export(
    model: BaseEstimator,
    example: Array | None,
    out: str | os.PathLike[str],
    *,
    labels: Sequence[str] | None = None,
    name: str | None = None,
    **how: Any,
) -> Exported:
    """Write the gradient model of a scikit-learn classifier, checked against its outputs and their differences.

    Args:
        model: a fitted classifier of features, or a pipeline that ends in one; a search stands for its best one.
        example: samples as it takes them, (N, F), at which the export is checked; None: normal random ones.
        out: the gradient model's file. Its input is float32 (N, F), its logits are (N, K), also of two classes.
        labels: the names of the K classes; None: its `classes_`.
        name: what messages and the file call the classifier; None: its class.
        how: the other arguments of `export_original`.

    Raises:
        ExportError: it has no derivative, is not fitted, cannot be exported, or its export differs from it.
        Otherwise as `export_original`.
    """
    return export_original(original(model, example, labels=labels, name=name), out, **how)


def original(
    model: BaseEstimator,
    example: Array | None = None,
    *,
    preprocess: None = None,
    labels: Sequence[str] | None = None,
    name: str | None = None,
) -> Original:
    """A scikit-learn classifier with its differences and steps; see `export`. Raises `ExportError` if it is none."""
    sklearn = require("sklearn", "sklearn")
    name = name or type(model).__name__
    if preprocess is not None:
        raise ExportError(f"{name}: it takes rows of numbers, which no photo becomes; next: leave preprocess out")
    require_classifier(model, name)
    require_derivative(model, name)
    steps = steps_of(model)
    last = scored(steps[-1][1], name)
    features = int(model.n_features_in_)
    sizes = np.ones(features)
    if example is not None:
        example = np.ascontiguousarray(example, np.float32)
        sizes = np.abs(example).max(axis=0, initial=0) if example.ndim == 2 else sizes

    def layers(x: Array) -> list[tuple[str, Array]]:
        """What each step makes of samples, the logits last."""
        shape, found = list(x.shape), []
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # arrays have no names of features
                for key, step in steps[:-1]:
                    x = step.transform(x)
                    found.append((key, x))
                return [*found, (steps[-1][0], last.logits(x))]
        except Exception as error:
            raise ExportError(
                f"{name}: it raised {type(error).__name__} for samples of shape {shape}: {first_line(error)}; "
                "next: give an example, an array of floats (N, F) as it takes them"
            ) from error

    def outputs(x: Array) -> Array:
        return layers(x)[-1][1]

    if example is not None:
        outputs(example)  # raises if it does not take them

    def gradients(x: Array, weights: Array) -> Array:
        return np.stack([differences(outputs, row, sizes, w) for row, w in zip(x, weights, strict=True)])

    return Original(
        name=name,
        framework=f"scikit-learn {sklearn.__version__}",
        image_shape=(features,),
        write=lambda path: write(path, steps, last, features, name),
        outputs=outputs,
        gradients=gradients if features <= MOST_FEATURES else None,
        layers=lambda x: iter(layers(x)),
        images=example,
        labels=labels or [str(label) for label in steps[-1][1].classes_],
        head=last.head,
        provenance={"exporter": f"skl2onnx {require('skl2onnx', 'sklearn').__version__}"},
    )


def differences(function: Callable[[Array], Array], x: Array, sizes: Array, weights: Array) -> Array:
    """The gradient (F,) of sum(weights * function) at one sample, by central differences in float64.

    scikit-learn has no derivatives of its own. `sizes` (F,) are those of the features; what is always zero counts as 1.
    """
    h = STEP * np.where(sizes > 0, sizes, 1)
    x, moves = x.astype(np.float64), np.diag(h)
    up, down = function(x + moves), function(x - moves)
    return np.asarray((up - down) @ weights / (2 * h), np.float32)


@dataclass(frozen=True)
class Scored:
    """The last step of a pipeline, by its logits."""

    estimator: Any  # what skl2onnx is given
    scores: Callable[[Array], Array]  # (N, F) -> (N, K), or (N,) or (N, 2) of two classes, the second of which counts
    head: str
    options: Mapping[str, Any] = field(default_factory=dict)  # of skl2onnx
    joint: bool = False  # the scores are logarithms of joint probabilities, which the ONNX file normalises

    @property
    def halved(self) -> bool:
        """Whether one decision function tells between two classes."""
        return self.head == "softmax" and len(self.estimator.classes_) == 2 and not self.joint

    def logits(self, x: Array) -> Array:
        y = self.scores(x)
        if not self.halved:
            return y
        d = y.reshape(len(x), -1)[:, -1]
        return np.stack([-d / 2, d / 2], axis=1)


def scored(last: Any, name: str) -> Scored:
    """How a classifier gives its logits. Raises `ExportError` if it has none."""
    families = ancestors(last)
    labels = "OneVsRestClassifier" in families and last.multilabel_
    if "MLPClassifier" in families:
        bare = copy.copy(last)
        bare.out_activation_ = "identity"
        labels = last.out_activation_ == "logistic" and last.n_outputs_ > 1
        return Scored(bare, bare.predict_proba, "sigmoid" if labels else "softmax")
    several = len(last.classes_) > 2
    if families & {"SVC", "NuSVC"} and several and last.decision_function_shape == "ovo":
        raise ExportError(
            f"{name}: its decision function has a value for each pair of classes; "
            'next: set_params(decision_function_shape="ovr"), which does not need a new fit'
        )
    if families & {"SVC", "NuSVC"}:
        bare = copy.copy(last)
        bare._probA = bare._probB = np.empty(0)  # else skl2onnx writes its probabilities
        return Scored(bare, last.decision_function, "softmax", {"raw_scores": True})
    if families & SCORES:
        alone = "OneVsRestClassifier" in families or getattr(last, "loss", None) in ("log_loss", "modified_huber")
        head = "sigmoid" if labels or (alone and several) else "softmax"
        return Scored(last, last.decision_function, head, {"raw_scores": True})
    if families & JOINT:
        return Scored(last, last.predict_joint_log_proba, "softmax", joint=True)
    raise ExportError(
        f"{name}: {type(last).__name__} is none of the classifiers whose logits are known: {', '.join(sorted(KNOWN))}; "
        f"next: {INSTEAD}"
    )


def steps_of(model: Any) -> list[tuple[str, Any]]:
    """The steps of a pipeline with their names, the classifier last; of a search, those of its best one."""
    if hasattr(model, "best_estimator_"):
        return steps_of(model.best_estimator_)
    if "Pipeline" not in ancestors(model):
        return [(type(model).__name__, model)]
    *before, (key, last) = model.steps
    *more, (_, last) = steps_of(last)
    return [*((name, step) for name, step in before if step not in (None, "passthrough")), *more, (key, last)]


def require_classifier(model: Any, name: str) -> None:
    """Raise `ExportError` unless this is a fitted classifier of one label for each sample."""
    from sklearn.base import is_classifier
    from sklearn.exceptions import NotFittedError
    from sklearn.utils.validation import check_is_fitted

    try:
        if not (hasattr(model, "get_params") and is_classifier(model)):
            raise ExportError(f"{name}: expected a classifier, got {type(model).__name__}; next: give one")
        check_is_fitted(model)
    except NotFittedError as error:
        raise ExportError(f"{name}: it is not fitted; next: call .fit(X, y) on it") from error
    if isinstance(model.classes_, list):
        raise ExportError(f"{name}: it gives {len(model.classes_)} labels at once; next: export the classifier of one")
    if not hasattr(model, "n_features_in_"):
        raise ExportError(f"{name}: its samples are no rows of numbers; next: export the part behind what reads them")


def require_derivative(model: Any, name: str) -> None:
    """Raise `ExportError` for a part that gradients do not explain, with the reason."""
    for part in parts(model):
        reason = next((REFUSED[family] for family in ancestors(part) if family in REFUSED), None)
        if reason is not None:
            raise ExportError(f"{name}: gradients do not explain {type(part).__name__}: {reason}; next: {INSTEAD}")


def parts(model: Any) -> Iterator[Any]:
    """An estimator and those that its scores go through; what only selected features for it is none of them."""
    yield model
    inside = [getattr(model, "best_estimator_", None)]
    for several in ("steps", "transformer_list", "transformers_", "estimators_"):
        for entry in getattr(model, several, ()):
            inside += entry if isinstance(entry, tuple) else [entry]
    for one in inside:
        if hasattr(one, "get_params"):
            yield from parts(one)


def ancestors(estimator: object) -> set[str]:
    return {cls.__name__ for cls in type(estimator).__mro__}


def write(path: Path, steps: Sequence[tuple[str, Any]], last: Scored, features: int, name: str) -> Sequence[str]:
    """Write the steps as ONNX, with the logits as the one output."""
    skl2onnx = require("skl2onnx", "sklearn")
    from sklearn.pipeline import Pipeline

    whole = [*steps[:-1], (steps[-1][0], last.estimator)]
    given = [("input", skl2onnx.common.data_types.FloatTensorType([None, features]))]
    try:
        with quietly():
            model = skl2onnx.to_onnx(
                Pipeline(whole) if len(whole) > 1 else last.estimator,
                initial_types=given,
                options={id(last.estimator): dict(last.options)},
                target_opset=OPSETS,
            )
    except Exception as error:
        raise ExportError(
            f"{name}: skl2onnx cannot convert it ({first_line(error)}); next: replace the step that it does not know"
        ) from error
    without_zipmap(model.graph)
    onnx.save(with_logits(model, last), path)
    return ()


def with_logits(model: onnx.ModelProto, last: Scored) -> onnx.ModelProto:
    """A model of skl2onnx with one output, the logits, in the place of labels and scores."""
    graph, scores = model.graph, model.graph.output[-1].name
    if last.halved:
        half = numpy_helper.from_array(np.array([[-0.5, 0.5]], np.float32), "logits.half")
        second = numpy_helper.from_array(np.array([-1]), "logits.second")
        graph.initializer.extend([half, second])
        graph.node.append(helper.make_node("Gather", [scores, second.name], ["logits.d"], axis=1))
        graph.node.append(helper.make_node("Mul", ["logits.d", half.name], ["logits"]))
    else:
        scores = joint_of(graph, scores) if last.joint else scores
        graph.node.append(helper.make_node("Identity", [scores], ["logits"]))
    columns = len(last.estimator.classes_)
    graph.output.append(helper.make_tensor_value_info("logits", TensorProto.FLOAT, [None, columns]))
    made: onnx.ModelProto = Extractor(model).extract_model(["input"], ["logits"])
    return made


def joint_of(graph: onnx.GraphProto, name: str) -> str:
    """The joint log-probabilities z behind probabilities of that name, exp(z - logsumexp(z))."""
    makers = {output: node for node in graph.node for output in node.output}
    node = makers[name]
    while node.op_type in ("Cast", "Exp", "Identity", "Reshape"):
        node = makers[node.input[0]]
    return str(node.input[0])
