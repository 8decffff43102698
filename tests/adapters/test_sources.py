"""What a user may call a classifier: what is refused, why, and what is said to do next."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import tiny

import onnxplain as ox
from onnxplain.adapters.sources import from_object, load, load_factory
from onnxplain.errors import ExportError, InputError, InvalidModel, OnnxplainError, UsageError

CODE = """
import numpy as np
made = 0
class Thing: ...
thing = Thing()
nested = Thing()
nested.inner = thing
print("loading")
def make(): global made; made += 1; print("made"); return np.array(7)
def broken(): raise ValueError("no weights here")
def wants(path): ...
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, with a module of the user's, and the interpreter as it was afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "usersnets.py").write_text(CODE)
    (tmp_path / "usersbroken.py").write_text("import usersnets_that_is_nowhere")
    yield tmp_path
    for name in ("usersnets", "usersbroken"):
        sys.modules.pop(name, None)


def test_code_does_not_run_unless_it_is_trusted(here: Path) -> None:
    with pytest.raises(UsageError, match=r"Python code, .* --trust-code"):
        ox.export("usersnets:make", here / "g.onnx")
    assert "usersnets" not in sys.modules


def test_a_factory_is_called_and_an_object_is_taken(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert load_factory("usersnets:make", trust_code=True) == 7
    assert capsys.readouterr() == ("", "loading\nmade\n")  # stdout is for results
    assert sys.modules["usersnets"].made == 1
    assert load_factory("usersnets:nested.inner", trust_code=True) is sys.modules["usersnets"].thing


@pytest.mark.parametrize(
    ("name", "kind", "said"),
    [
        ("nowhere_at_all:make", UsageError, "no module nowhere_at_all"),
        ("usersnets.deeper:make", UsageError, "no module usersnets.deeper"),
        ("usersnets:mak", UsageError, r"has no mak; next: did you mean make\?"),
        ("usersnets:zzz", UsageError, "has no zzz; next: check the name"),
        ("usersbroken:make", ExportError, "your code raised ModuleNotFoundError: .*usersnets_that_is_nowhere"),
        ("usersnets:broken", ExportError, "your code raised ValueError: no weights here"),
        ("usersnets:wants", ExportError, "your code raised TypeError: .*path"),
    ],
)
def test_factories_that_do_not_work(here: Path, name: str, kind: type[OnnxplainError], said: str) -> None:
    with pytest.raises(kind, match=said):
        load_factory(name, trust_code=True)


@pytest.mark.parametrize(
    ("source", "kind", "said"),
    [
        ("weights.pth", UsageError, "not read"),
        ("model.pt", UsageError, "--trust-code"),
        ("forest.joblib", UsageError, "a pickle, which may run any code"),
        ("model.pkl", UsageError, "a pickle"),
        ("gone.keras", InputError, "no such file"),
        ("model.h5", UsageError, r"may hold code; next: .*\.keras"),
        ("gone.tflite", InputError, "no such file"),
        ("folder", InvalidModel, r"without saved_model\.pb; next: hf:folder"),
        ("resnet50", UsageError, "expected a classifier: .*torchvision:NAME"),
        ("torchvision:", UsageError, "expected a classifier"),
        ("a/b/c", UsageError, "check the path"),
        ("", UsageError, "expected a classifier"),
        ("x:y:z", UsageError, "expected a classifier"),
    ],
)
def test_sources_that_are_none(here: Path, source: str, kind: type[OnnxplainError], said: str) -> None:
    (here / "folder").mkdir()
    with pytest.raises(kind, match=said):
        load(source)
    with pytest.raises(kind, match=said):
        ox.export(source, here / "g.onnx")
    assert not (here / "g.onnx").exists()


def test_an_object_of_no_framework_is_refused() -> None:
    with pytest.raises(ExportError, match="expected a classifier of PyTorch, Keras, JAX or scikit-learn, got ndarray"):
        from_object(np.array(7), "mine")
    with pytest.raises(UsageError, match="how large its images are"):
        from_object(lambda x: x, "mine")


def test_a_file_without_a_known_suffix_is_onnx(tmp_path: Path) -> None:
    (tmp_path / "model").write_bytes(tiny.classifier().SerializeToString())
    done = ox.export(tmp_path / "model", tmp_path / "g.onnx", preprocess=None)
    assert done.agreement is None
    with pytest.raises(UsageError, match="labels of an ONNX file"):
        ox.export(tmp_path / "model", tmp_path / "h.onnx", preprocess=None, labels=["a"])
