"""What is installed and imported: public names, lazy imports, the content of the wheel."""

from __future__ import annotations

import ast
import importlib.util
import os
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import version
from pathlib import Path

import pytest
from frameworks import REQUIRED

import onnxplain

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = Path(onnxplain.__file__).parent
HEAVY = ("numpy", "onnx", "onnx_ir", "onnxruntime", "cv2", "PIL", "matplotlib", "torch", "rich", "click")
# Each of these is imported by its own files only, if at all.
HOMES = {
    "onnxruntime": {"engine/executors/onnxruntime.py"},
    "matplotlib": {"engine/metrics/plot.py"},
    "pyarrow": {"engine/rows.py"},
    "scipy": {"engine/rows.py", "engine/summary.py"},
    "torch": {
        "adapters/pytorch.py",
        "adapters/pytorch_zoo.py",
        "adapters/huggingface.py",
        "adapters/keras.py",
        *(f"adapters/reference/{path.name}" for path in (PACKAGE / "adapters" / "reference").glob("*.py")),
    },
    "torchvision": {"adapters/pytorch_zoo.py"},
    "timm": {"adapters/pytorch_zoo.py"},
    "transformers": {"adapters/huggingface.py"},
    "keras": {"adapters/keras.py"},
    "tensorflow": {"adapters/keras.py", "adapters/tflite.py"},
    "tf2onnx": {"adapters/keras.py", "adapters/tflite.py"},
    "jax": {"adapters/jax.py", "adapters/keras.py"},
    "flax": {"adapters/jax.py"},
    "equinox": {"adapters/jax.py"},
    "skl2onnx": {"adapters/sklearn.py"},
    "onnxscript": {"adapters/pytorch.py"},
    "requests": {"models/download.py"},
    "pickle": set(),
}


def modules_after(code: str) -> set[str]:
    """The top-level modules that a fresh interpreter has imported after `code`."""
    script = f"import sys\n{code}\nprint(*{{name.partition('.')[0] for name in sys.modules}}, file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(done.stderr.split())


def test_public_names_are_complete() -> None:
    assert dir(onnxplain) == sorted(onnxplain.__all__)
    for name in onnxplain.__all__:
        assert getattr(onnxplain, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = onnxplain.nothing


def test_type_checkers_see_the_same_public_names() -> None:
    """The imports under TYPE_CHECKING are those of `__all__`."""
    tree = ast.parse((PACKAGE / "__init__.py").read_text("utf-8"))
    (seen,) = [node for node in tree.body if isinstance(node, ast.If)]
    names = {
        alias.asname or alias.name for node in seen.body if isinstance(node, ast.ImportFrom) for alias in node.names
    }
    assert names == set(onnxplain.__all__)


def test_importing_the_package_imports_nothing_heavy() -> None:
    assert not modules_after("import onnxplain") & set(HEAVY)


def test_help_imports_no_runtime_and_no_framework() -> None:
    code = "from onnxplain.cli.main import cli\ncli(['explain', '--help'], standalone_mode=False)"
    assert not modules_after(code) & {"numpy", "onnx", "onnxruntime", "cv2", "matplotlib", "torch"}


def test_runtimes_and_frameworks_are_imported_at_home_only() -> None:
    found: dict[str, set[str]] = {name: set() for name in HOMES}
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and not node.level:
                names = [node.module or ""]
            else:
                continue
            for name in names:
                found.get(name.partition(".")[0], set()).add(path.relative_to(PACKAGE).as_posix())
    assert {name: files for name, files in found.items() if not files <= HOMES[name]} == {}


def test_the_version_is_that_of_the_project() -> None:
    assert version("onnxplain") == tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["version"]


def test_the_wheel_has_what_it_needs_and_nothing_else(tmp_path: Path) -> None:
    if any(importlib.util.find_spec(name) is None for name in ("build", "hatchling")):
        if os.environ.get(REQUIRED):
            pytest.fail("build and hatchling are not installed")
        pytest.skip('build and hatchling are not installed (pip install "onnxplain[lint]")')
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    info = f"onnxplain-{version('onnxplain')}.dist-info"
    assert {name.partition("/")[0] for name in names} == {"onnxplain", info}
    assert {
        "onnxplain/py.typed",
        "onnxplain/models/imagenet_labels.txt",
        "onnxplain/models/imagenet_labels.NOTICE",
        *(f"onnxplain/models/recipes/{path.name}" for path in (PACKAGE / "models" / "recipes").glob("*.toml")),
        f"{info}/licenses/LICENSE",
        f"{info}/entry_points.txt",
    } <= names
    modules = {path.relative_to(ROOT).as_posix() for path in PACKAGE.rglob("*.py")}
    assert {name for name in names if name.endswith(".py")} == modules
    kinds = {Path(name).suffix for name in names if name.startswith("onnxplain/")}
    assert kinds == {".py", ".typed", ".txt", ".NOTICE", ".toml"}
