"""scikit-learn classifiers on their way to a gradient model, held against closed forms."""

from __future__ import annotations

import subprocess
import sys
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from frameworks import framework

framework("sklearn")
framework("skl2onnx")
from sklearn.base import BaseEstimator  # noqa: E402
from sklearn.calibration import CalibratedClassifierCV  # noqa: E402
from sklearn.compose import ColumnTransformer  # noqa: E402
from sklearn.decomposition import PCA, TruncatedSVD  # noqa: E402
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis, QuadraticDiscriminantAnalysis  # noqa: E402
from sklearn.ensemble import (  # noqa: E402
    AdaBoostClassifier,
    GradientBoostingClassifier,
    HistGradientBoostingClassifier,
    RandomForestClassifier,
    StackingClassifier,
    VotingClassifier,
)
from sklearn.feature_extraction.text import CountVectorizer  # noqa: E402
from sklearn.feature_selection import SelectFromModel, SelectKBest  # noqa: E402
from sklearn.linear_model import LinearRegression, LogisticRegression, RidgeClassifier, SGDClassifier  # noqa: E402
from sklearn.model_selection import GridSearchCV  # noqa: E402
from sklearn.multiclass import OneVsRestClassifier  # noqa: E402
from sklearn.naive_bayes import BernoulliNB, ComplementNB, GaussianNB, MultinomialNB  # noqa: E402
from sklearn.neighbors import KNeighborsClassifier  # noqa: E402
from sklearn.neural_network import MLPClassifier  # noqa: E402
from sklearn.pipeline import make_pipeline  # noqa: E402
from sklearn.preprocessing import (  # noqa: E402
    Binarizer,
    MaxAbsScaler,
    MinMaxScaler,
    Normalizer,
    PolynomialFeatures,
    PowerTransformer,
    RobustScaler,
    StandardScaler,
)
from sklearn.svm import SVC, LinearSVC, NuSVC  # noqa: E402
from sklearn.tree import DecisionTreeClassifier  # noqa: E402

import onnxplain as ox  # noqa: E402
from onnxplain.adapters import sklearn as adapter  # noqa: E402
from onnxplain.adapters.export import export_original  # noqa: E402
from onnxplain.adapters.sources import from_object  # noqa: E402
from onnxplain.errors import BackendMissing, ExportError, UsageError  # noqa: E402
from onnxplain.models.preprocess import PreprocessSpec  # noqa: E402

# Both sides round in float32: 1e-5 of the largest value is some eighty roundings of it, in graphs of few operators.
NOISE = 1e-5
FEATURES = 6
pytestmark = pytest.mark.filterwarnings("ignore")  # of the libraries' own code


def data(classes: int):
    """Samples around one corner for each class, of features of unlike sizes; all positive."""
    draw = np.random.default_rng(classes)
    y = np.arange(120) % classes
    x = 4 + draw.normal(size=(classes, FEATURES))[y] + draw.normal(size=(120, FEATURES))
    return (x * [1, 2, 0.1, 5, 1, 0.5]).clip(0.01).astype(np.float32), y


def fitted(model: BaseEstimator, classes: int = 3) -> BaseEstimator:
    return model.fit(*data(classes))


def mlp(**how) -> MLPClassifier:
    return MLPClassifier((8, 5), max_iter=60, random_state=0, **how)


MODELS = {
    "logistic": LogisticRegression,
    "linear discriminant": LinearDiscriminantAnalysis,
    "one against the rest": lambda: OneVsRestClassifier(LogisticRegression()),
    "linear SVM": LinearSVC,
    "ridge": RidgeClassifier,
    "SGD": lambda: make_pipeline(StandardScaler(), SGDClassifier(random_state=0)),
    "SGD, logistic": lambda: make_pipeline(StandardScaler(), SGDClassifier(loss="log_loss", random_state=0)),
    "SVM": SVC,
    "SVM, polynomial": lambda: make_pipeline(RobustScaler(), SVC(kernel="poly")),
    "SVM with probabilities": lambda: make_pipeline(MaxAbsScaler(), SVC(probability=True, random_state=0)),
    "nu-SVM": lambda: NuSVC(nu=0.2),
    "MLP": mlp,
    "MLP, tanh": lambda: make_pipeline(MinMaxScaler(), PCA(4), mlp(activation="tanh")),
    "MLP, logistic": lambda: make_pipeline(Normalizer(), mlp(activation="logistic")),
    "naive Bayes": GaussianNB,
    "of counts": MultinomialNB,
    "of complements": ComplementNB,
    "polynomials": lambda: make_pipeline(StandardScaler(), PolynomialFeatures(2), LogisticRegression()),
    "some features": lambda: make_pipeline(SelectKBest(k=3), TruncatedSVD(2), LogisticRegression()),
    "features that a forest chose": lambda: make_pipeline(
        SelectFromModel(RandomForestClassifier(5, random_state=0)), LinearSVC()
    ),
    "a search": lambda: GridSearchCV(make_pipeline(StandardScaler(), LogisticRegression()), {}, cv=2),
    "a search inside": lambda: make_pipeline(StandardScaler(), GridSearchCV(LogisticRegression(), {"C": [1, 2]}, cv=2)),
    "columns": lambda: make_pipeline(
        ColumnTransformer([("a", StandardScaler(), [0, 1, 3]), ("b", "passthrough", [2, 4, 5])]), LogisticRegression()
    ),
}


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("kind", MODELS)
def test_logits_and_gradients_are_those_of_the_decision_function(tmp_path: Path, kind: str, classes: int) -> None:
    model = fitted(MODELS[kind](), classes)
    x = data(classes)[0][:5]
    done = adapter.export(model, x, tmp_path / "g.onnx", classifier=tmp_path / "c.onnx")
    assert done.agreement is not None
    assert done.agreement.cosine == pytest.approx(1, abs=1e-6)
    with ox.open(tmp_path / "g.onnx") as explainer:
        assert explainer.labels == [str(label) for label in range(classes)]
        whole = explainer.logits(x)
        for rows in (1, 2):
            np.testing.assert_allclose(explainer.logits(x[:rows]), whole[:rows], rtol=NOISE, atol=NOISE)
    if hasattr(model, "decision_function"):
        theirs = model.decision_function(x)
        ours = whole[:, 1] - whole[:, 0] if classes == 2 else whole
        summands = np.abs(getattr(model, "dual_coef_", 1)).sum()  # of a kernel machine
        np.testing.assert_allclose(ours, theirs, atol=NOISE * max(summands, np.abs(whole).max()))
    np.testing.assert_array_equal(whole.argmax(axis=1), model.predict(x))


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize(
    "kind",
    ["logistic", "linear discriminant", "SGD, logistic", "MLP", "MLP, tanh", "naive Bayes", "of counts", "a search"],
)
def test_softmax_of_the_logits_are_the_probabilities(tmp_path: Path, kind: str, classes: int) -> None:
    model = fitted(MODELS[kind](), classes)
    x = data(classes)[0][:20]
    adapter.export(model, x, tmp_path / "g.onnx")
    with ox.open(tmp_path / "g.onnx") as explainer:
        z, head = explainer.logits(x).astype(np.float64), explainer.head
    if kind == "SGD, logistic" and classes > 2:  # each class against the rest
        assert head == "sigmoid"
        p = 1 / (1 + np.exp(-z))
    else:
        assert head == "softmax"
        p = np.exp(z - z.max(axis=1, keepdims=True))
    np.testing.assert_allclose(p / p.sum(axis=1, keepdims=True), model.predict_proba(x), atol=1e-4)


@pytest.mark.parametrize("classes", [2, 3])
def test_the_gradient_of_a_logistic_regression_is_its_weights(tmp_path: Path, classes: int) -> None:
    model = fitted(LogisticRegression(), classes)
    x = data(classes)[0][:4]
    adapter.export(model, x, tmp_path / "g.onnx")
    w = model.coef_ if classes > 2 else np.concatenate([-model.coef_, model.coef_]) / 2
    with ox.open(tmp_path / "g.onnx") as explainer:
        for target in range(classes):
            ours = explainer.gradients(x, target).gradient
            np.testing.assert_allclose(ours, np.tile(w[target], (4, 1)), atol=NOISE * np.abs(w).max())
        (one, *_) = explainer.explain(x, ox.methods.IntegratedGradients(baseline=x.mean(axis=0), steps=8), 1)
    np.testing.assert_allclose(one.attribution, w[1] * (x[0] - x.mean(axis=0)), atol=1e-5)
    assert one.attribution.shape == (FEATURES,)


@pytest.mark.parametrize("classes", [2, 3])
def test_the_gradient_of_a_scaled_perceptron_is_the_product_of_its_jacobians(tmp_path: Path, classes: int) -> None:
    model = fitted(make_pipeline(StandardScaler(), mlp(activation="tanh")), classes)
    scale, net = model[0], model[1]
    x = data(classes)[0][:4]
    adapter.export(model, x, tmp_path / "g.onnx")
    first, second, last = net.coefs_
    h1 = np.tanh((x - scale.mean_) / scale.scale_ @ first + net.intercepts_[0])
    h2 = np.tanh(h1 @ second + net.intercepts_[1])
    last = last if classes > 2 else np.concatenate([-last, last], axis=1) / 2
    jacobian = np.einsum("i,ij,nj,jk,nk,kc->nci", 1 / scale.scale_, first, 1 - h1**2, second, 1 - h2**2, last)
    with ox.open(tmp_path / "g.onnx") as explainer:
        for target in range(classes):
            ours = explainer.gradients(x, target).gradient
            np.testing.assert_allclose(ours, jacobian[:, target], atol=NOISE * np.abs(jacobian).max())


def test_the_gradient_of_a_kernel_machine_is_that_of_its_kernels(tmp_path: Path) -> None:
    model = fitted(SVC(gamma=0.05), 2)
    x = data(2)[0][:4]
    adapter.export(model, x, tmp_path / "g.onnx")
    apart = x[:, None] - model.support_vectors_
    kernels = model.dual_coef_[0] * np.exp(-0.05 * (apart**2).sum(axis=2))
    theirs = np.einsum("nv,nvf->nf", kernels, -2 * 0.05 * apart) / 2
    with ox.open(tmp_path / "g.onnx") as explainer:
        ours = explainer.gradients(x, 1).gradient
    np.testing.assert_allclose(ours, theirs, atol=NOISE * np.abs(theirs).max())


def test_labels_of_one_against_the_rest_have_a_sigmoid_each(tmp_path: Path) -> None:
    x, y = data(3)
    both = np.stack([y == 0, y > 0, x[:, 0] > 4], axis=1).astype(int)
    model = OneVsRestClassifier(LogisticRegression()).fit(x, both)
    done = adapter.export(model, x[:4], tmp_path / "g.onnx")
    assert done.head == "sigmoid"
    with ox.open(tmp_path / "g.onnx") as explainer:
        p = 1 / (1 + np.exp(-explainer.logits(x[:4])))
    np.testing.assert_allclose(p, model.predict_proba(x[:4]), atol=1e-5)


def test_names_of_classes_are_labels(tmp_path: Path) -> None:
    x, y = data(3)
    model = LogisticRegression().fit(x, np.array(["ant", "bee", "cow"])[y])
    adapter.export(model, None, tmp_path / "a.onnx")
    adapter.export(model, None, tmp_path / "b.onnx", labels=["A", "B", "C"])
    for file, labels in (("a.onnx", ["ant", "bee", "cow"]), ("b.onnx", ["A", "B", "C"])):
        with ox.open(tmp_path / file) as explainer:
            assert explainer.labels == labels


FLAT = {
    "saliency": ox.methods.Saliency(),
    "gradient times input": ox.methods.GradientXInput(),
    "integrated gradients": ox.methods.IntegratedGradients(),
    "smoothgrad": ox.methods.SmoothGrad(),
    "guided": ox.methods.GuidedIG(),
    "fast": ox.methods.FastIG(),
    "deeplift": ox.methods.DeepLift(),
    "agi": ox.methods.AGI(),
    "big": ox.methods.BIG(),
    "isa": ox.methods.ISA(),
    "shap": ox.methods.KernelSHAP(segments=np.arange(FEATURES)),
    "lime": ox.methods.LIME(segments=np.arange(FEATURES), baseline=ox.methods.Baseline.MEAN_COLOUR),
    "occlusion": ox.methods.Occlusion(window=1, stride=1),
}
PICTURES = {
    "blur": ox.methods.BlurIG(),
    "cam": ox.methods.GradCAM(),
    "fullgrad": ox.methods.FullGrad(),
    "score": ox.methods.ScoreCAM(),
    "superpixels": ox.methods.KernelSHAP(),
}


def test_methods_explain_features_or_say_that_they_need_a_picture(tmp_path: Path) -> None:
    model = fitted(make_pipeline(StandardScaler(), mlp(activation="tanh")))
    x = data(3)[0]
    file = tmp_path / "c.onnx"
    adapter.export(model, x[:4], tmp_path / "g.onnx", classifier=file)
    with ox.open(file, preprocess=None, range=(0, float(x.max()))) as explainer:
        for kind, method in FLAT.items():
            (one,) = explainer.explain(x[:1], method)
            assert one.attribution.shape == (FEATURES,), kind
            assert np.abs(one.attribution).max() > 0, kind
        for method in PICTURES.values():
            with pytest.raises(UsageError, match=r"needs an image|expected a picture"):
                explainer.explain(x[:1], method)
        with pytest.raises(UsageError, match=r"samples of shape \[6\], which are no images"):
            _ = explainer.photos


def test_shapley_values_of_a_forest_need_no_gradient(tmp_path: Path) -> None:
    """What the refusal of trees points to."""
    from skl2onnx import to_onnx

    x, y = data(3)
    model = RandomForestClassifier(10, max_depth=3, random_state=0).fit(x, y)
    (tmp_path / "forest.onnx").write_bytes(to_onnx(model, x[:1]).SerializeToString())
    baseline = x.mean(axis=0)
    with ox.open(tmp_path / "forest.onnx", preprocess=None, gradient=False) as explainer:
        method = ox.methods.KernelSHAP(segments=np.arange(FEATURES), baseline=baseline)
        (one,) = explainer.explain(x[:1], method, 0)
    whole = model.predict_proba(x[:1])[0, 0] - model.predict_proba(baseline[None])[0, 0]
    assert one.attribution.sum() == pytest.approx(whole, abs=1e-5)
    assert whole != 0


def test_an_export_that_differs_is_named_by_its_step(tmp_path: Path) -> None:
    model = fitted(make_pipeline(StandardScaler(), PCA(4), LogisticRegression()))
    made, other = (adapter.original(copy, data(3)[0][:4]) for copy in (model, deepcopy(model)))
    model[1].components_ *= 1.1
    with pytest.raises(ExportError, match="first in the layer pca;"):
        export_original(replace(made, write=other.write), tmp_path / "g.onnx")
    assert not list(tmp_path.iterdir())


class Strange(BaseEstimator):
    """Not a classifier, though it predicts."""

    def predict(self, x):
        return x


REFUSED = {
    "a tree": (DecisionTreeClassifier, "DecisionTreeClassifier: it is made of trees"),
    "a forest behind a scaler": (
        lambda: make_pipeline(StandardScaler(), RandomForestClassifier(3)),
        "Pipeline: gradients do not explain RandomForestClassifier: it is made of trees",
    ),
    "boosting": (lambda: GradientBoostingClassifier(n_estimators=2), "it is made of trees"),
    "histograms": (lambda: HistGradientBoostingClassifier(max_iter=2), "it is made of trees"),
    "trees against the rest": (lambda: OneVsRestClassifier(DecisionTreeClassifier()), "it is made of trees"),
    "neighbours": (KNeighborsClassifier, "it counts neighbours"),
    "a search of neighbours": (lambda: GridSearchCV(KNeighborsClassifier(), {}, cv=2), "it counts neighbours"),
    "votes": (lambda: AdaBoostClassifier(LogisticRegression(), n_estimators=2), "it counts votes"),
    "thresholds": (BernoulliNB, "which side of a threshold"),
    "a threshold inside": (lambda: make_pipeline(Binarizer(threshold=4), LogisticRegression()), "side of a threshold"),
    "averages": (lambda: CalibratedClassifierCV(LinearSVC(), cv=2), "averages of probabilities"),
    "soft votes": (lambda: VotingClassifier([("a", LogisticRegression())], voting="soft"), "averages of prob"),
    "powers": (lambda: make_pipeline(PowerTransformer(), LogisticRegression()), "NaN in the branch"),
    "others": (QuadraticDiscriminantAnalysis, "none of the classifiers whose logits are known: ComplementNB, Gauss"),
    "a stack": (
        lambda: StackingClassifier([("a", LogisticRegression())], cv=2),
        "none of the classifiers whose logits are known",
    ),
    "pairs": (lambda: SVC(decision_function_shape="ovo"), "a value for each pair"),
    "a regression": (LinearRegression, "expected a classifier, got LinearRegression"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_gradients_do_not_explain_is_refused(tmp_path: Path, kind: str) -> None:
    make, said = REFUSED[kind]
    with pytest.raises(ExportError, match=said + ".*; next: "):
        adapter.export(fitted(make()), data(3)[0][:4], tmp_path / "g.onnx")
    assert not list(tmp_path.iterdir())


def test_what_is_no_fitted_classifier_of_rows_is_refused(tmp_path: Path) -> None:
    x, y = data(3)
    several = MLPClassifier((4,), max_iter=5)
    words = make_pipeline(CountVectorizer(), LogisticRegression()).fit(["a cat", "the dog"] * 3, [0, 1] * 3)
    for model, example, said in (
        (LogisticRegression(), x[:4], "it is not fitted"),
        (make_pipeline(StandardScaler(), LogisticRegression()), x[:4], "it is not fitted"),
        (Strange(), x[:4], "expected a classifier, got Strange"),
        (words, None, "no rows of numbers"),
        (LogisticRegression().fit(x, y), x[:4, :2], r"raised ValueError for samples of shape \[4, 2\].*next: give an"),
        (LogisticRegression().fit(x, y), x[0], "raised ValueError for samples"),
        (several.fit(x, y), x[:4, None], "raised ValueError for samples"),
        ("forest", x[:4], "expected a classifier, got str"),
    ):
        with pytest.raises(ExportError, match=said):
            adapter.export(model, example, tmp_path / "g.onnx")
    assert not list(tmp_path.iterdir())


def test_what_the_exporter_does_not_know_is_refused(tmp_path: Path) -> None:
    class Halving(StandardScaler):
        """A step of the user's own."""

    model = fitted(make_pipeline(Halving(), LogisticRegression()))
    with pytest.raises(ExportError, match=r"skl2onnx cannot convert it \(.+\); next: replace the step"):
        adapter.export(model, data(3)[0][:4], tmp_path / "g.onnx")
    assert not list(tmp_path.iterdir())


def test_nothing_is_changed_or_said(tmp_path: Path, capfd) -> None:
    model = fitted(make_pipeline(StandardScaler(), mlp()), 2)
    x = data(2)[0][:4]
    before = model.predict_proba(x)
    adapter.export(model, x, tmp_path / "g.onnx")
    np.testing.assert_array_equal(model.predict_proba(x), before)
    assert model[1].out_activation_ == "logistic"
    assert capfd.readouterr() == ("", "")


def test_objects_find_their_adapter() -> None:
    with pytest.raises(ExportError, match="rows of numbers"):
        from_object(fitted(LogisticRegression()), "mine", preprocess=PreprocessSpec(size=(4, 4)))
    made = from_object(fitted(GridSearchCV(LogisticRegression(), {}, cv=2)), "mine")
    assert made.image_shape == (FEATURES,)
    assert made.framework.startswith("scikit-learn ")
    assert made.images is None


def test_the_command_exports_from_a_factory_and_reads_no_pickle(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "from sklearn.linear_model import LogisticRegression\n"
        "def make():\n"
        "    return LogisticRegression().fit([[0., 0.], [1., 0.], [0., 2.], [1., 2.]], ['no', 'yes', 'yes', 'no'])\n"
    )
    (tmp_path / "mine.joblib").write_bytes(b"no matter")

    def command(*words: str) -> subprocess.CompletedProcess[str]:
        whole = [sys.executable, "-m", "onnxplain", *words]
        return subprocess.run(whole, cwd=tmp_path, capture_output=True, text=True, check=False)

    done = command("export", "mine:make", "-o", "g.onnx", "--trust-code", "--preprocess", "none")
    assert done.returncode == 0, done.stderr
    assert "scikit-learn" in done.stdout
    refused = command("export", "mine.joblib", "-o", "h.onnx")
    assert refused.returncode == 2
    assert "a pickle, which may run any code" in refused.stderr
    (tmp_path / "photo.png").write_bytes(b"no matter")
    flat = command("explain", "g.onnx", "photo.png", "--method", "ig", "-o", "out")
    assert flat.returncode == 2
    assert "samples of shape [2], which are no images" in flat.stderr
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "h.onnx").exists()


def test_without_scikit_learn_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(BackendMissing, match=r"onnxplain\[sklearn\]"):
        adapter.original(LogisticRegression())
