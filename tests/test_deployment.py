"""The machine that explains has no framework: none is imported, and none may be, by any command that runs there."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from tiny import Place, classifier, run

FRAMEWORKS = (
    "torch", "torchvision", "timm", "transformers", "safetensors", "huggingface_hub", "onnxscript", "tensorflow",
    "keras", "tf2onnx", "ai_edge_litert", "jax", "jaxlib", "jax2onnx", "flax", "equinox", "skl2onnx",
)  # fmt: skip

# A finder that comes first: importing a framework fails, whether it is installed or not, and is written down.
GUARDED = """
import sys
tried = []
class Guard:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {frameworks}:
            tried.append(name)
            raise ModuleNotFoundError(f"no module named {{name}}", name=name)
sys.meta_path.insert(0, Guard())
from onnxplain.cli.main import cli
code = cli({arguments}, standalone_mode=False)
assert not code, code
assert not tried, tried
"""


@pytest.fixture
def place(tmp_path: Path) -> Place:
    """A model that was exported elsewhere, and photos."""
    made = Place(tmp_path)
    made.add_model("m.onnx", classifier())
    for seed, name in enumerate(("a.png", "b.png")):
        made.add_photo(f"photos/{name}", seed)
    assert run("export", made.model, "-o", tmp_path / "g.onnx").exit_code == 0
    made.explained()
    return made


@pytest.mark.parametrize(
    "command",
    ["inspect g.onnx", "verify g.onnx", "explain g.onnx photos --method isa --set k=50 -o new",
     "score g.onnx out/a.ig.npz", "export m.onnx -o again.onnx", "doctor --on cpu"],
    ids=lambda text: text.partition(" ")[0],
)  # fmt: skip
def test_no_command_of_the_deployment_needs_a_framework(place: Place, command: str) -> None:
    code = GUARDED.format(frameworks=set(FRAMEWORKS), arguments=command.split())
    done = subprocess.run([sys.executable, "-c", code], cwd=place.root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_guard_would_notice(place: Place) -> None:
    code = GUARDED.format(frameworks=set(FRAMEWORKS), arguments=["inspect", "g.onnx"])
    code = code.replace("from onnxplain", "try: import torch.nn\nexcept ImportError: pass\nfrom onnxplain", 1)
    done = subprocess.run([sys.executable, "-c", code], cwd=place.root, capture_output=True, text=True, check=False)
    assert "AssertionError: ['torch']" in done.stderr
