"""scikit-learn classifiers, held against closed forms and against their own slopes."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from frameworks import framework
from tiny import complain, run

framework("sklearn")
framework("skl2onnx")
from sklearn.decomposition import PCA  # noqa: E402
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis, QuadraticDiscriminantAnalysis  # noqa: E402
from sklearn.ensemble import GradientBoostingClassifier, RandomForestClassifier  # noqa: E402
from sklearn.linear_model import LinearRegression, LogisticRegression, RidgeClassifier, SGDClassifier  # noqa: E402
from sklearn.naive_bayes import GaussianNB  # noqa: E402
from sklearn.neighbors import KNeighborsClassifier  # noqa: E402
from sklearn.neural_network import MLPClassifier  # noqa: E402
from sklearn.pipeline import make_pipeline  # noqa: E402
from sklearn.preprocessing import MinMaxScaler, Normalizer, StandardScaler  # noqa: E402
from sklearn.svm import SVC, LinearSVC  # noqa: E402
from sklearn.tree import DecisionTreeClassifier  # noqa: E402

import onnxplain as ox  # noqa: E402
from onnxplain.adapters import sklearn as adapter  # noqa: E402
from onnxplain.adapters.export import export_original  # noqa: E402
from onnxplain.errors import BackendMissing, ExportError, ModelError, UsageError  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")  # of the libraries' own code


def data(classes: int = 3, features: int = 6):
    draw = np.random.default_rng(0)
    y = np.arange(90) % classes
    centres = draw.standard_normal((classes, features)) * 1.5
    return (centres[y] + draw.standard_normal((90, features))).astype(np.float32), np.array(["ant", "bee", "cat"])[y]


MODELS = {
    "logistic": lambda: LogisticRegression(max_iter=500),
    "mlp": lambda: MLPClassifier((16,), activation="tanh", max_iter=300, random_state=0),
    "relu": lambda: MLPClassifier((12, 8), max_iter=300, random_state=0),
    "lda": lambda: LinearDiscriminantAnalysis(),
    "linear svc": lambda: LinearSVC(),
    "svc": lambda: SVC(probability=False),
    "sgd": lambda: SGDClassifier(loss="log_loss", random_state=0),
    "scaled": lambda: make_pipeline(StandardScaler(), PCA(4), LogisticRegression()),
    "normalised": lambda: make_pipeline(MinMaxScaler(), Normalizer(), MLPClassifier((8,), activation="logistic")),
    "ridge": lambda: RidgeClassifier(),
}


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("kind", MODELS)
def test_scores_and_slopes_are_those_of_scikit_learn(tmp_path: Path, kind: str, classes: int) -> None:
    x, y = data(classes)
    model = MODELS[kind]().fit(x, y)
    done = adapter.export(model, x[:8], tmp_path / "g.onnx")
    assert done.agreement is not None
    assert done.agreement.given
    with ox.open(tmp_path / "g.onnx", range=(-9, 9)) as explainer:
        (one,) = explainer.explain(x[:1], ox.methods.IntegratedGradients(steps=64, baseline=ox.methods.Baseline.BLACK))
        assert one.attribution.shape == (6,)
        if kind not in ("svc", "relu"):  # which have kinks, or votes
            assert one.diagnostics["completeness_gap"] < 0.05
        assert explainer.labels == (["bee"] if classes == 2 else ["ant", "bee", "cat"])


def test_the_gradient_of_a_logistic_regression_is_its_weights(tmp_path: Path) -> None:
    x, y = data()
    model = LogisticRegression().fit(x, y)
    adapter.export(model, x[:4], tmp_path / "g.onnx")
    with ox.open(tmp_path / "g.onnx", range=(-9, 9)) as explainer:
        assert explainer.labels == ["ant", "bee", "cat"]
        found = explainer.gradients(x[:4], target=1)
    np.testing.assert_allclose(found.gradient, np.tile(model.coef_[1], (4, 1)), rtol=1e-5)
    np.testing.assert_allclose(found.logits, model.decision_function(x[:4]), rtol=1e-4, atol=1e-5)


def test_the_gradient_of_a_perceptron_by_hand(tmp_path: Path) -> None:
    x, y = data()
    model = MODELS["mlp"]().fit(x, y)
    adapter.export(model, x[:4], tmp_path / "g.onnx")
    (first, second), (bias, _) = model.coefs_, model.intercepts_
    hidden = np.tanh(x[:4] @ first + bias)
    by_hand = (second[:, 2] * (1 - hidden**2)) @ first.T
    with ox.open(tmp_path / "g.onnx", range=(-9, 9)) as explainer:
        np.testing.assert_allclose(explainer.gradients(x[:4], target=2).gradient, by_hand, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (lambda: RandomForestClassifier(5), "RandomForestClassifier has no derivative"),
        (lambda: DecisionTreeClassifier(), "constant between jumps; next: explain it by methods that ask no gradients"),
        (lambda: GradientBoostingClassifier(n_estimators=3), "no derivative"),
        (lambda: KNeighborsClassifier(), "KNeighborsClassifier has no derivative"),
        (lambda: make_pipeline(StandardScaler(), DecisionTreeClassifier()), "DecisionTreeClassifier has no derivative"),
    ],
)
def test_what_has_no_derivative_is_refused(tmp_path: Path, model, said: str) -> None:
    x, y = data()
    with pytest.raises(ExportError, match=said):
        adapter.export(model().fit(x, y), x[:4], tmp_path / "g.onnx")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (lambda x, y: LogisticRegression(), "not fitted"),
        (lambda x, y: LinearRegression().fit(x, x[:, 0]), "is no classifier"),
        (lambda x, y: "forest", "got str"),
    ],
)
def test_what_is_no_classifier_is_refused(tmp_path: Path, model, said: str) -> None:
    x, y = data()
    with pytest.raises(ExportError, match=said):
        adapter.export(model(x, y), x[:4], tmp_path / "g.onnx")


def test_what_skl2onnx_cannot_is_refused(tmp_path: Path) -> None:
    class Mine(LogisticRegression):
        pass

    x, y = data()
    with pytest.raises(ExportError, match="skl2onnx cannot convert it"):
        adapter.export(Mine().fit(x, y), x[:4], tmp_path / "g.onnx")
    for model in (QuadraticDiscriminantAnalysis(), GaussianNB()):  # what is made of them is not differentiable
        with pytest.raises(ModelError):
            adapter.export(model.fit(x, y), x[:4], tmp_path / "g.onnx")
    assert not list(tmp_path.iterdir())


def test_a_wrong_step_of_a_pipeline_is_named(tmp_path: Path) -> None:
    x, y = data()
    model = MODELS["scaled"]().fit(x, y)
    made = adapter.original(model, x[:4])
    model.steps[1][1].components_ *= 1.1
    with pytest.raises(ExportError, match="first in the layer pca;"):
        export_original(made, tmp_path / "g.onnx")


def test_image_commands_refuse_rows(tmp_path: Path) -> None:
    from PIL import Image

    x, y = data()
    adapter.export(LogisticRegression().fit(x, y), x[:4], tmp_path / "g.onnx")
    Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(tmp_path / "p.png")
    done = run("explain", tmp_path / "g.onnx", tmp_path / "p.png", "--method", "ig", "-o", tmp_path / "out")
    complain(done, 2, "photos have no defined way", "explain arrays from Python")
    with ox.open(tmp_path / "g.onnx", range=(-9, 9)) as explainer, pytest.raises(UsageError):
        explainer.explain(x[:1], ox.methods.Occlusion())


def test_without_scikit_learn_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(BackendMissing, match=r"onnxplain\[sklearn\]"):
        adapter.original(object(), np.zeros((2, 4), np.float32))
