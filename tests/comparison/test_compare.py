"""Both sides of a comparison: one that is right passes, and each that is wrong fails by what is wrong with it."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from frameworks import framework, runtime
from PIL import Image
from tiny import complain, run

torch = framework("torch")
framework("onnxscript")
import onnxplain as ox  # noqa: E402
from onnxplain.adapters import pytorch  # noqa: E402
from onnxplain.adapters.reference import integrated_gradients, isa  # noqa: E402
from onnxplain.comparison import Thresholds, compare  # noqa: E402
from onnxplain.comparison.agreement import rank_correlation  # noqa: E402
from onnxplain.comparison.recorded import Record, recorded  # noqa: E402
from onnxplain.engine.drive import in_order  # noqa: E402
from onnxplain.engine.methods import (  # noqa: E402
    AGI,
    BIG,
    ISA,
    CrediblePath,
    FastIG,
    GradientXInput,
    GuidedIG,
    IntegratedGradients,
    Occlusion,
    Saliency,
)
from onnxplain.engine.requests import Gradients, Kind, Objective, Points  # noqa: E402
from onnxplain.errors import ExportError, UsageError  # noqa: E402
from onnxplain.models.preprocess import PreprocessSpec  # noqa: E402

nn = torch.nn
SIZE = 16
SPEC = PreprocessSpec(size=(SIZE, SIZE), image_mean=(0.4, 0.5, 0.6), image_std=(0.2, 0.3, 0.25))
METHODS = [
    IntegratedGradients(steps=6), Saliency(), GradientXInput(), ISA(k=200, t1=3, t2=2),
    CrediblePath(kernels=(3, 5), steps=8, max_iter=5), AGI(k=3, m=4), BIG(steps=6, attack_steps=4),
    GuidedIG(steps=8), FastIG(),
]  # fmt: skip


def net() -> nn.Module:
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 8, 3, 2, 1), nn.Tanh(), nn.Conv2d(8, 8, 3, 2, 1), nn.GELU(), nn.Flatten(), nn.Linear(128, 6)
    return nn.Sequential(*layers).eval()


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """The model `g.onnx`, and `photos/` of three pictures."""
    root = tmp_path_factory.mktemp("compare")
    pytorch.export(net(), np.zeros((2, 3, SIZE, SIZE), np.float32), root / "g.onnx", preprocess=SPEC)
    (root / "photos").mkdir()
    for seed in range(3):
        coarse = np.random.default_rng(seed).integers(0, 256, (5, 5, 3), np.uint8)
        Image.fromarray(coarse).resize((SIZE, SIZE), Image.Resampling.BICUBIC).save(root / "photos" / f"{seed}.png")
    return root


def compared(place: Path, module, methods=METHODS, **how):
    return compare(place / "g.onnx", module, sorted((place / "photos").iterdir()), methods, threads=1, **how)


def test_the_right_reference_passes(place: Path) -> None:
    found = compared(place, net(), step=32)
    assert found.passed
    (gradients,) = found.gradients
    assert gradients.logits < 1e-5
    assert gradients.cosine > 1 - 1e-9
    assert [one.method for one in found.methods] == [method.id for method in METHODS]
    for one in found.methods:
        assert one.verdict, one.why
        assert one.spearman > 0.9
        assert 0 <= one.insertion <= 1
        assert one.seconds > 0
        signs = one.method in ("isa", "credible", "agi", "big", "gig")
        assert (one.points is not None) == signs
        assert (one.spearman_float64 is not None) == signs
    assert len(found.images) == 3 * len(METHODS)


def other(change) -> nn.Module:
    module = net()
    with torch.no_grad():
        change(module)
    return module


class Wrapped(nn.Module):
    def __init__(self, function) -> None:
        super().__init__()
        self.net, self.function = net(), function

    def forward(self, x):
        return self.function(self.net, x)


@pytest.mark.parametrize(
    "module",
    [
        lambda: other(lambda m: m[0].weight.mul_(1.2)),
        lambda: other(lambda m: m[5].bias.add_(0.1)),
        lambda: Wrapped(lambda m, x: m(x * 1.1)).eval(),
        lambda: Wrapped(lambda m, x: m(x.flip(1))).eval(),
        lambda: Wrapped(lambda m, x: m(x).roll(1, 1)).eval(),
    ],
    ids=["weights", "bias", "scale", "channels", "classes"],
)
def test_another_classifier_fails_by_its_logits(place: Path, module) -> None:
    found = compared(place, module(), METHODS[:1], step=64)
    assert not found.passed
    assert not found.gradients[0].passed
    assert found.gradients[0].logits > 1e-3


def test_over_twenty_images_the_mean_score_is_judged(place: Path, tmp_path: Path) -> None:
    for seed in range(20):
        coarse = np.random.default_rng(seed).integers(0, 256, (5, 5, 3), np.uint8)
        Image.fromarray(coarse).resize((SIZE, SIZE), Image.Resampling.BICUBIC).save(tmp_path / f"{seed}.png")
    walks = [method for method in METHODS if method.id in ("isa", "credible", "agi", "big")]
    found = compare(place / "g.onnx", net(), sorted(tmp_path.iterdir()), walks, threads=1, step=32)
    for one in found.methods:
        assert one.verdict, one.why
        assert any("mean insertion AUC over 20 images differs by" in why for why in one.why)
        assert abs(one.insertion - one.insertion_theirs) <= 0.01
    assert len(found.gradients[0].images) == 20
    assert max(at.logits for at in found.gradients[0].images) < 1e-5


class Flawed(torch.autograd.Function):
    """The identity, with a gradient that is wrong in a corner."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, g):
        g = g.clone()
        g[:, :, :8] *= 1.5
        return g


def test_a_wrong_gradient_fails_where_logits_agree(place: Path) -> None:
    found = compared(place, Wrapped(lambda m, x: m(Flawed.apply(x))).eval(), step=64, float64=False)
    (gradients,) = found.gradients
    assert gradients.logits < 1e-5
    assert not gradients.passed
    verdicts = {one.method: one.verdict for one in found.methods}
    assert not any(verdicts.values()), verdicts


class Doubled(torch.autograd.Function):
    """The identity, with a gradient that is twice as long."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, g):
        return 2 * g


def test_a_gradient_of_another_length_fails(place: Path) -> None:
    found = compared(place, Wrapped(lambda m, x: m(Doubled.apply(x))).eval(), METHODS[:2], step=64)
    (gradients,) = found.gradients
    assert gradients.cosine_least > 1 - 1e-9
    assert gradients.length == pytest.approx(0.5)
    assert not gradients.passed
    assert all(one.verdict for one in found.methods)


def test_what_cannot_be_judged_is_not_passed(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onnxplain.comparison.recorded.SATURATED", 2.0)
    found = compared(place, net(), METHODS[3:4], step=64, float64=False)
    assert found.methods[0].verdict is None
    assert found.methods[0].points == 0
    judged = compared(place, net(), METHODS[3:4], step=64, float64=False, thresholds=Thresholds(images=3))
    assert judged.methods[0].verdict is True


def test_a_wrong_path_integral_fails_by_ranks(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    right = integrated_gradients.points
    monkeypatch.setattr(integrated_gradients, "points", lambda *a: [(owner, alpha**2) for owner, alpha in right(*a)])
    found = compared(place, net(), METHODS[:1], step=64)
    assert found.gradients[0].passed
    assert found.methods[0].verdict is False
    assert "since the method is continuous in the gradient" in found.methods[0].why[0]


def test_a_wrong_walk_fails_by_its_mean_score(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its gradients are right wherever the engine asks: only the score of many images tells."""
    right = isa.walks
    monkeypatch.setattr(isa, "walks", lambda *a: [1 / (1e-9 + part.abs()) for part in right(*a)])
    method = ISA(k=40, t1=3, t2=2)
    few = compared(place, net(), [method], step=8, float64=False)
    assert few.methods[0].verdict
    assert "which is not judged: 3 images are fewer than 20" in few.methods[0].why[-1]
    strict = Thresholds(images=3, auc=1e-4)
    judged = compared(place, net(), [method], step=8, float64=False, thresholds=strict)
    assert judged.methods[0].verdict is False
    monkeypatch.undo()
    assert compared(place, net(), [method], step=8, thresholds=strict).passed


def test_what_is_recorded_is_what_the_engine_was_told(place: Path) -> None:
    with ox.open(place / "g.onnx", threads=1) as explainer:
        (x,) = [explainer.to_input(explainer.read(place / "photos" / "1.png"))]
        for method in METHODS[3:]:
            record = Record()
            programs = [recorded(explainer.program(x, method, 2), record)]
            (explanation,) = in_order(programs, explainer.model)
            assert np.array_equal(explanation.attribution, explainer.explain(x[None], method, 2)[0].attribution)
            assert 0 < len(record.points) <= record.most
            for point, target, kind, gradient in record.points:
                theirs = explainer.gradients(point[None], target, kind).gradient[0]
                np.testing.assert_allclose(gradient, theirs, atol=1e-6 * np.abs(theirs).max())


def test_a_record_is_spread_evenly_and_leaves_out_what_is_saturated() -> None:
    record = Record(most=8)
    for i in range(100):
        x = np.full((1, 1), float(i))
        record.keep(Points(x, Objective(Kind.LOGIT, 0)), Gradients(np.zeros((1, 2)), np.zeros(1), x))
    kept = [point[0] for point, _, _, _ in record.points]
    assert 4 <= len(kept) <= 8
    assert len(set(np.diff(kept))) == 1
    sure = np.array([[20.0, 0.0]])
    record = Record()
    for kind, target in ((Kind.CE, 0), (Kind.PROB, 0), (Kind.LOGIT, 0), (Kind.CE, 1)):
        record.keep(Points(np.zeros((1, 1)), Objective(kind, target)), Gradients(sure, np.zeros(1), np.zeros((1, 1))))
    assert record.saturated == 2
    assert [(kind, target) for _, target, kind, _ in record.points] == [(Kind.LOGIT, 0), (Kind.CE, 1)]


def test_against_the_same_runtime_everything_is_the_same(place: Path) -> None:
    found = compared(
        place, None, [IntegratedGradients(steps=4), ISA(k=300), Occlusion(window=4, stride=4)], against="cpu"
    )
    assert found.passed
    assert all(one.spearman == 1 for one in found.images)
    assert found.gradients[0].side == "cpu fp32"
    assert found.methods[1].spearman_float64 is None


def test_against_half_precision_logits_are_off_by_its_rounding(place: Path) -> None:
    found = compared(place, None, METHODS[:2], against="cpu", against_precision="fp16")
    assert found.gradients[0].side == "cpu fp16"
    assert 1e-6 < found.gradients[0].logits < 5e-3
    strict = Thresholds(logits=1e-6)
    assert not compared(place, None, METHODS[:1], against="cpu", against_precision="fp16", thresholds=strict).passed


def test_against_openvino(place: Path) -> None:
    runtime("openvino", '"onnxplain[openvino]"')
    found = compared(place, net(), METHODS, against="openvino", step=32)
    assert {one.side for one in found.methods} == {"PyTorch", "openvino fp32"}
    assert found.passed, [one.why for one in found.methods if not one.verdict]


def test_captum_agrees_on_what_it_has(place: Path) -> None:
    framework("captum")
    found = compared(place, net(), METHODS[:4], captum=True, step=32)
    assert [one.method for one in found.methods if one.side == "Captum"] == ["ig", "saliency", "gradient-x-input"]
    assert found.passed


@pytest.mark.parametrize(
    ("module", "how", "said"),
    [
        (lambda: None, {}, "nobody to compare with"),
        (lambda: net(), {"methods": [Occlusion()]}, "method occlusion: there is no loop in PyTorch"),
        (lambda: net(), {"methods": [ISA(noise_std=0.1)]}, "its loop in PyTorch has no noise_std"),
        (lambda: net(), {"methods": [Saliency.isa()]}, "method saliency-isa: there is no loop"),
        (lambda: net(), {"methods": [IntegratedGradients(objective=Kind.PROB)]}, "has no objective"),
        (lambda: net().train(), {}, "training mode"),
    ],
)
def test_what_cannot_be_compared(place: Path, module, how, said: str) -> None:
    with pytest.raises((UsageError, ExportError), match=said):
        compared(place, module(), **how)


def test_without_preprocessing_there_is_no_pixel_space(tmp_path: Path, place: Path) -> None:
    pytorch.export(net(), np.zeros((2, 3, SIZE, SIZE), np.float32), tmp_path / "g.onnx")
    with pytest.raises(UsageError, match="exported with its preprocessing"):
        compare(tmp_path / "g.onnx", net(), sorted((place / "photos").iterdir()), METHODS[:1])


@pytest.fixture
def here(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    torch.save(net().state_dict(), tmp_path / "w.pt")
    (tmp_path / "comparednets.py").write_text(
        "import torch\nfrom torch import nn\n"
        "def make(scale=1.0):\n"
        "    layers = nn.Conv2d(3, 8, 3, 2, 1), nn.Tanh(), nn.Conv2d(8, 8, 3, 2, 1), nn.GELU(), nn.Flatten(), "
        "nn.Linear(128, 6)\n"
        "    net = nn.Sequential(*layers).eval()\n"
        "    net.load_state_dict(torch.load('w.pt', weights_only=True))\n"
        "    net[0].weight.data *= scale\n"
        "    return net\n"
        "def wrong(): return make(1.03)\n"
        "def training(): return make().train()\n"
        "def nothing(): return 7\n"
    )
    monkeypatch.chdir(tmp_path)
    return tmp_path


FEW = ("--method", "ig,isa", "--set", "ig.steps=4", "--set", "isa.k=300", "--step", "64")


def test_the_command_prints_tables_and_writes_pictures(place: Path, here: Path) -> None:
    common = (place / "g.onnx", "--images", place / "photos", *FEW, "--threads", "1")
    command = ("compare", *common, "--reference", "comparednets:make", "--trust-code")
    done = run(*command, "-o", here / "out")
    assert done.exit_code == 0, done.output
    assert done.stdout.splitlines()[-1].endswith("on cpu: passed")
    assert "continuous in the gradient" in done.stderr
    assert "fewer than 20" in done.stderr
    names = {f"{seed}.{method}.pytorch.png" for seed in range(3) for method in ("ig", "isa")}
    assert {path.name for path in (here / "out").iterdir()} == {"compare.json", *names}
    with Image.open(here / "out" / "0.ig.pytorch.png") as made:
        assert made.size == (4 * 164, 178)
    document = json.loads((here / "out" / "compare.json").read_text())
    assert document["schema_version"] == 1
    assert document["passed"] is True
    assert len(document["images"]) == 6
    assert document["thresholds"]["spearman"] == 0.999

    complain(run(*command, "-o", here / "out"), 1, "compare.json", "--overwrite")
    saved = (here / "out" / "compare.json").read_bytes()
    (here / "out" / "compare.json").unlink()
    complain(run(*command, "-o", here / "out"), 1, "0.ig.pytorch.png", "--overwrite")
    assert not (here / "out" / "compare.json").exists()
    (here / "out" / "compare.json").write_bytes(saved)
    again = run(*command, "-o", here / "out", "--overwrite", "--format", "json", "-q")
    assert again.exit_code == 0
    assert json.loads(again.stdout)["methods"][0]["spearman"] == document["methods"][0]["spearman"]

    wrong = run("compare", *common, "--reference", "comparednets:wrong", "--trust-code", "-q")
    assert wrong.exit_code == 1
    assert wrong.stdout.splitlines()[-1].endswith("on cpu: failed")
    loose = ("--max-logits-difference", "9", "--min-gradient-cosine", "0.9", "--min-spearman", "0.5")
    assert run("compare", *common, "--reference", "comparednets:wrong", "--trust-code", *loose).exit_code == 0


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--reference", "comparednets:make"], 2, ["--trust-code"]),
        (["--reference", "comparednets:mak", "--trust-code"], 2, ["did you mean make?"]),
        (["--reference", "comparednets:training", "--trust-code"], 5, ["training mode"]),
        (["--reference", "comparednets:nothing", "--trust-code"], 5, ["int"]),
        (["--reference", "resnet50"], 2, ["expected a reference in PyTorch"]),
        ([], 2, ["nobody to compare with"]),
        (["--captum", "--against", "cpu"], 2, ["give --reference too"]),
        (["--against", "abacus"], 2, ["abacus"]),
    ],
)
def test_the_command_refuses(place: Path, here: Path, arguments: list[str], code: int, words: list[str]) -> None:
    done = run("compare", place / "g.onnx", "--images", place / "photos", *FEW, *arguments)
    complain(done, code, "error: ", *words)
    assert done.stdout == ""


def test_results_of_one_name_are_refused_before_the_work(place: Path, here: Path) -> None:
    command = ("compare", place / "g.onnx", "--against", "cpu", "--images", place / "photos", "-o", here / "out")
    complain(run(*command, "--method", "ig,ig"), 2, "method ig is given twice")
    (here / "0.png").write_bytes((place / "photos" / "0.png").read_bytes())
    complain(run(*command, "--images", here / "0.png", "--method", "ig"), 2, "0.*")


def test_thresholds_are_met_by_none_and_by_all() -> None:
    limits = Thresholds()
    assert limits.met([])
    assert limits.met([0.99991, 0.995, 0.99999])
    assert not limits.met([0.9998, 0.9998, 0.99999])
    for place in range(3):
        assert not limits.met(np.insert([0.99999, 0.99999], place, np.nan).tolist())
    assert not limits.met([0.99999, 0.98, 0.99999])
    assert replace(limits, cosine_least=0.9).met([0.99999, 0.98, 0.99999])


def test_the_copy_in_float64_leaves_the_module_as_it_was(place: Path) -> None:
    module = net()
    before = copy.deepcopy(module.state_dict())
    compared(place, module, METHODS[3:4], step=64)
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())


def test_maps_that_are_no_numbers_rank_nothing_alike() -> None:
    a = np.arange(6.0)
    assert rank_correlation(a, a) == 1
    assert rank_correlation(a, np.where(a == 3, np.nan, a)) == 0
    assert rank_correlation(np.full(6, np.inf), np.full(6, np.inf)) == 0
