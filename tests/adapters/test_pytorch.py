"""PyTorch classifiers on their way to a gradient model, held against torch.autograd."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from frameworks import framework

torch = framework("torch")
framework("onnxscript")
import onnxplain as ox  # noqa: E402
from onnxplain.adapters import pytorch  # noqa: E402
from onnxplain.adapters.sources import from_object, load  # noqa: E402
from onnxplain.engine.executors.onnxruntime import OnnxRuntimeExecutor  # noqa: E402
from onnxplain.errors import BackendMissing, ExportError, InputError, OnnxplainError, UsageError  # noqa: E402
from onnxplain.models.preprocess import PreprocessSpec  # noqa: E402

nn = torch.nn
# Both sides round in float32: 1e-5 of the largest value is some eighty roundings of it, on nets of a few layers.
NOISE = 1e-5


def convolutional() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.SiLU(inplace=True), nn.MaxPool2d(2), nn.Conv2d(8, 8, 3, 2),
        nn.Tanh(), nn.Flatten(), nn.Linear(72, 10),
    )  # fmt: skip


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.branch, self.head = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 3, 1, 1, groups=8), nn.Linear(8, 10)

    def forward(self, x):
        x = self.stem(x)
        x = x + torch.nn.functional.gelu(self.branch(x))
        return self.head(x.mean((2, 3))).softmax(1)


class Attending(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patches, self.head = nn.Conv2d(3, 16, 4, 4), nn.Linear(16, 10)
        self.block = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True, norm_first=True, activation="gelu")

    def forward(self, x):
        tokens = self.patches(x).flatten(2).transpose(1, 2)
        return self.head(self.block(tokens).mean(1))


class Distances(nn.Module):
    """Without an operator of torch.export's exporter, which tracing has."""

    def __init__(self) -> None:
        super().__init__()
        self.centres = nn.Parameter(torch.randn(10, 768))

    def forward(self, x):
        return -torch.cdist(x.flatten(1), self.centres)


class Branching(nn.Module):
    """What it does hangs on the image."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(768, 10)

    def forward(self, x):
        y = self.head(x.flatten(1))
        return 2 * y if y[0].sum() > 0 else y


class Returning(nn.Module):
    def __init__(self, make) -> None:
        super().__init__()
        self.head, self.make = nn.Linear(768, 10), make

    def forward(self, x):
        return self.make(self.head(x.flatten(1)))


def made(cls) -> nn.Module:
    torch.manual_seed(0)
    net = cls()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    return net.eval()


@pytest.fixture
def x():
    return np.random.default_rng(0).random((5, 3, 16, 16), np.float32)


def autograd(net, x, target, objective=lambda y: y):
    leaf = torch.from_numpy(x).requires_grad_()
    objective(net(leaf))[:, target].sum().backward()
    return leaf.grad.numpy()


@pytest.mark.parametrize("cls", [convolutional, Residual, Attending], ids=lambda f: f.__name__)
def test_outputs_and_gradients_are_those_of_pytorch(tmp_path: Path, x, cls) -> None:
    net = made(cls)
    done = pytorch.export(net, x[:2], tmp_path / "g.onnx", classifier=tmp_path / "c.onnx")
    assert done.agreement is not None
    assert done.agreement.given
    assert not any(note.startswith("exported by") for note in done.notes)
    with OnnxRuntimeExecutor((tmp_path / "c.onnx").read_bytes()) as executor:
        for rows in (1, 2, 5):
            (found,) = executor({"input": x[:rows]}).values()
            np.testing.assert_allclose(found, net(torch.from_numpy(x[:rows])).detach(), atol=NOISE)
    kind = "prob" if cls is Residual else "logit"
    with ox.open(tmp_path / "g.onnx") as explainer:
        ours = explainer.gradients(x, target=3, objective=kind).gradient
    theirs = autograd(net, x, 3)
    np.testing.assert_allclose(ours, theirs, atol=NOISE * np.abs(theirs).max())


def test_a_program_is_exported_as_the_module_is(tmp_path: Path, x) -> None:
    net = made(convolutional)
    free = ({0: torch.export.Dim("N", min=1)},)
    with pytorch.quietly():
        program = torch.export.export(net, (torch.from_numpy(x[:2]),), dynamic_shapes=free)
        torch.export.save(program, tmp_path / "p.pt2")
    pytorch.export(program, x, tmp_path / "g.onnx")
    with ox.open(tmp_path / "g.onnx") as explainer:
        theirs = autograd(net, x, 3)
        np.testing.assert_allclose(explainer.gradients(x, target=3).gradient, theirs, atol=NOISE * np.abs(theirs).max())
    layers = dict(pytorch.original(program, x).layers(x))
    assert any(np.allclose(value, net[2](net[1](net[0](torch.from_numpy(x)))).detach()) for value in layers.values())

    done = ox.export(tmp_path / "p.pt2", tmp_path / "h.onnx", preprocess=None, trust_code=True)
    assert done.agreement is not None
    with pytest.raises(UsageError, match="may hold pickles"):
        ox.export(tmp_path / "p.pt2", tmp_path / "i.onnx", preprocess=None)
    (tmp_path / "no.pt2").write_bytes(b"PK nothing")
    with pytest.raises(InputError, match=r"no\.pt2: not a program"):
        load(tmp_path / "no.pt2", trust_code=True)


def test_a_program_with_a_fixed_batch_is_refused(tmp_path: Path, x) -> None:
    with pytorch.quietly():
        program = torch.export.export(made(convolutional), (torch.from_numpy(x[:2]),))
    with pytest.raises(ExportError, match=r"images of shape|its batch is fixed"):
        pytorch.export(program, x[:3], tmp_path / "g.onnx")


def test_the_gradient_with_preprocessing_is_that_of_the_pixels(tmp_path: Path, x) -> None:
    net = made(convolutional)
    spec = PreprocessSpec(size=(16, 16), image_mean=(0.4, 0.5, 0.6), image_std=(0.2, 0.3, 0.4))
    mean, std = (torch.tensor(v).reshape(3, 1, 1) for v in (spec.image_mean, spec.image_std))
    pytorch.export(net, x, tmp_path / "g.onnx", preprocess=spec, labels=[f"class {i}" for i in range(10)])
    with ox.open(tmp_path / "g.onnx") as explainer:
        ours = explainer.gradients(x, target=3).gradient
        assert explainer.labels is not None
        assert explainer.labels[3] == "class 3"
    theirs = autograd(lambda t: net((t - mean) / std), x, 3)
    np.testing.assert_allclose(ours, theirs, atol=NOISE * np.abs(theirs).max())


def test_tracing_is_the_fallback_and_says_why(tmp_path: Path, x) -> None:
    net = made(Distances)
    done = pytorch.export(net, x, tmp_path / "g.onnx")
    assert done.notes[0].startswith("exported by tracing, since torch.export failed: ")
    with ox.open(tmp_path / "g.onnx") as explainer:
        theirs = autograd(net, x, 3)
        np.testing.assert_allclose(explainer.gradients(x, target=3).gradient, theirs, atol=NOISE)


def test_what_neither_exports_is_refused_with_both_reasons(tmp_path: Path, x, capfd) -> None:
    with pytest.raises(ExportError, match=r"torch.export failed: .*data-dependent.*; tracing failed: Conv") as caught:
        pytorch.export(made(Branching), x, tmp_path / "g.onnx")
    assert len(str(caught.value).splitlines()) == 1
    assert not list(tmp_path.iterdir())
    assert capfd.readouterr() == ("", "")


def test_exporting_is_silent_and_leaves_the_module_as_it_was(tmp_path: Path, x, capfd) -> None:
    net = made(Attending)
    net.head.weight.requires_grad_(False)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    fast = torch.backends.mha.get_fastpath_enabled()
    pytorch.export(net, x, tmp_path / "g.onnx")
    assert capfd.readouterr() == ("", "")
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert not any(module.training for module in net.modules())
    assert [p.requires_grad for p in net.head.parameters()] == [False, True]
    assert all(p.grad is None for p in net.parameters())
    assert not any(module._forward_hooks for module in net.modules())
    assert torch.backends.mha.get_fastpath_enabled() == fast


def test_a_module_that_works_in_place_changes_no_images(tmp_path: Path, x) -> None:
    class Subtracting(Returning):
        def forward(self, x):
            return super().forward(x.sub_(0.5))

    before = x.copy()
    for net in (made(lambda: Subtracting(lambda y: y)), nn.Sequential(nn.ReLU(inplace=True), nn.Flatten()).eval()):
        assert pytorch.export(net, x, tmp_path / "g.onnx", overwrite=True).agreement is not None
        list(pytorch.original(net, x).layers(x))
        np.testing.assert_array_equal(x, before)


def test_an_operator_that_no_exporter_knows_is_told_once(tmp_path: Path, x, capfd) -> None:
    with pytest.raises(ExportError, match=r"tracing failed: Exporting the operator 'aten::special_i1e'"):
        pytorch.export(made(lambda: Returning(torch.special.i1e)), x, tmp_path / "g.onnx")
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_gradients_in_whatever_mode_the_caller_is(x, mode) -> None:
    net = made(convolutional)
    weights = np.eye(10, dtype=np.float32)[[3] * len(x)]
    with mode():
        found = pytorch.original(net, x).gradients(x, weights)
    np.testing.assert_array_equal(found, autograd(net, x, 3))


@pytest.mark.parametrize("batch", [len, lambda x: int(x.shape[0])], ids=["len", "int"])
def test_a_batch_that_goes_through_python_stays_free(tmp_path: Path, x, batch) -> None:
    class Reshaping(Returning):
        def forward(self, x):
            return super().forward(x.reshape(batch(x), 3, 256))

    net = made(lambda: Reshaping(lambda y: y.sigmoid()))
    done = pytorch.export(net, x, tmp_path / "g.onnx", classifier=tmp_path / "c.onnx")
    assert done.notes[0] == "exported by torch.export(strict=True), since torch.export failed: its batch is fixed at 2"
    with OnnxRuntimeExecutor((tmp_path / "c.onnx").read_bytes()) as executor:
        for rows in (1, 2, 5):
            (found,) = executor({"input": x[:rows]}).values()
            np.testing.assert_allclose(found, net(torch.from_numpy(x[:rows])).detach(), atol=NOISE)


def test_writing_leaves_other_files_alone(tmp_path: Path, x) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(ExportError, match="cannot export it"):
        pytorch.original(made(Branching), x).write(tmp_path / "c.onnx")
    assert [file.name for file in tmp_path.iterdir()] == ["mine.txt"]


class Failing(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, g):
        raise RuntimeError("no way back")


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (Failing.apply, "no gradient in PyTorch; next: look at what raised RuntimeError: no way back"),
        (lambda y: torch.ones_like(y).requires_grad_(), "next: look for what leaves its input out"),
    ],
)
def test_where_pytorch_has_no_gradient(x, make, said: str) -> None:
    with pytest.raises(ExportError, match=said):
        pytorch.original(Returning(make).eval(), x).gradients(x, np.ones((len(x), 10), np.float32))


@pytest.mark.parametrize(
    "example",
    [np.zeros((2, 3, 16, 16), np.uint8), np.zeros((0, 3, 16, 16), np.float32), np.zeros(768, np.float32)],
    ids=["integers", "none", "one without its batch"],
)
def test_what_is_no_example_is_refused(example) -> None:
    with pytest.raises(UsageError, match="expected a batch of images as it takes them"):
        pytorch.original(made(convolutional), example)


def test_an_example_may_be_a_tensor(x) -> None:
    found = pytorch.original(made(convolutional), torch.from_numpy(x).requires_grad_())
    np.testing.assert_array_equal(found.images, x)


def test_layers_are_named_as_they_run(x) -> None:
    net = made(convolutional)
    found = list(pytorch.original(net, x).layers(x))
    assert [name for name, _ in found] == list("01234567")
    np.testing.assert_allclose(found[1][1], net[1](net[0](torch.from_numpy(x))).detach(), atol=NOISE)
    np.testing.assert_allclose(found[-1][1], net(torch.from_numpy(x)).detach(), atol=NOISE)


def test_a_layer_that_its_export_gets_wrong_is_named(tmp_path: Path, x, monkeypatch: pytest.MonkeyPatch) -> None:
    net, other = made(convolutional), made(convolutional)
    with torch.no_grad():
        other[4].weight *= 1.1
    monkeypatch.setattr(pytorch, "captured", pytorch.captured)
    genuine = pytorch.captured
    wrong = lambda model, rows, path: genuine(other, rows, path)  # noqa: E731
    monkeypatch.setattr(pytorch, "captured", wrong)
    monkeypatch.setitem(pytorch.said, wrong, "a liar")
    with pytest.raises(ExportError, match="first in the layer 4;"):
        pytorch.export(net, x, tmp_path / "g.onnx")
    assert not list(tmp_path.iterdir())


def lazy() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.LazyLinear(10)).eval()


@pytest.mark.parametrize(
    ("net", "said"),
    [
        (
            lambda: convolutional().train(),
            r"9 of its modules are in training mode, Sequential first; next: call \.eval",
        ),
        (lambda: nn.Sequential(convolutional().eval(), nn.Dropout()), "training mode"),
        (lambda: convolutional().eval().half(), r"0\.weight is torch\.float16, expected float32"),
        (lambda: convolutional().eval().to("meta"), r"0\.weight is on meta"),
        (lazy, "has no shape yet"),
        (lambda: Returning(lambda y: (y, y)).eval(), "returns a tuple of 2, expected one tensor"),
        (lambda: Returning(lambda y: {"logits": y}).eval(), "returns a dict with logits"),
        (lambda: Returning(lambda y: None).eval(), "returns a NoneType"),
        (lambda: Returning(lambda y: y.argmax(1)).eval(), r"torch\.int64 of shape \[2\]"),
        (lambda: Returning(lambda y: y.sum()).eval(), r"of shape \[\] for 2 images"),
        (lambda: nn.Conv2d(3, 8, 3).eval(), r"shape \[2, 8, 14, 14\]"),
        (lambda: nn.Linear(7, 10).eval(), r"raised RuntimeError for images of shape \[2, 3, 16, 16\]: mat1 and mat2"),
        (lambda: Returning(lambda y: y.detach()).eval(), "no gradient in PyTorch"),
        (lambda: Returning(lambda y: y.squeeze()).eval(), r"shape \[10\] for 1 image, .*next: look for squeeze"),
        (lambda: Returning(lambda y: y.bfloat16()).eval(), r"torch\.bfloat16 of shape \[2, 10\]"),
        (lambda: Returning(nn.functional.dropout).eval(), "other outputs for the same images each time"),
        (lambda: "resnet", "got str"),
    ],
)
def test_what_is_no_classifier_is_refused(tmp_path: Path, x, net, said: str) -> None:
    with pytest.raises(ExportError, match=said):
        pytorch.export(net(), x[:2], tmp_path / "g.onnx")
    assert not list(tmp_path.iterdir())


def test_what_mixes_the_images_of_a_batch_is_refused(tmp_path: Path, x) -> None:
    with pytest.raises(OnnxplainError, match="alone and among others"):
        pytorch.export(Returning(lambda y: y * y.max()).eval(), x, tmp_path / "g.onnx")


def test_a_factory_on_the_command_line(tmp_path: Path, x) -> None:
    (tmp_path / "nets.py").write_text(
        "import torch\n"
        "def make():\n"
        "    torch.manual_seed(0)\n"
        "    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(48, 3)).eval()\n"
    )
    command = [sys.executable, "-m", "onnxplain", "export", "nets:make", "-o", "g.onnx", "--preprocess", "none"]
    more = ["--input-shape", "3,4,4", "--trust-code"]
    done = subprocess.run([*command, *more], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "PyTorch" in done.stdout
    assert "cosine 1.0000000), on 4 random images" in done.stdout
    assert onnx.load(tmp_path / "g.onnx").graph.input[0].name == "input"
    done = subprocess.run(command + more[:2], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "--trust-code" in done.stderr


def test_an_object_finds_its_adapter(x) -> None:
    spec = PreprocessSpec(size=(16, 16))
    found = from_object(made(convolutional), "mine", preprocess=spec)
    assert (found.name, found.image_shape, found.images) == ("mine", (3, 16, 16), None)


def test_without_pytorch_the_extra_is_named(x, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(BackendMissing, match=r"onnxplain\[pytorch\]"):
        pytorch.original(object(), x)
