"""The benchmark scripts run, at the smallest sizes, and print what they say they print."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import onnx
import pytest
from click.testing import CliRunner
from frameworks import framework

framework("torch")
import onnxplain as ox  # noqa: E402
from bench import gpu, gradient, methods, scaling  # noqa: E402
from bench.nets import onnx_of  # noqa: E402

TINY = ("--repeat", "1", "--markdown")
SMALL = ("--on", "cpu", "--net", "tiny", "--batches", "2", "--count", "2", "--batch", "2", "--repeat", "1", "--quick",
         "--no-compile")  # fmt: skip


def run(command: Any, *arguments: object) -> tuple[dict[str, Any], str]:
    """The JSON of a script, and what it says beside."""
    done = CliRunner().invoke(command, list(map(str, arguments)), catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout), done.stderr


def test_gradient() -> None:
    document, beside = run(gradient.main, "tiny", "--batch", 2, "--threads", 1, "--no-memory", *TINY)
    found = document["nets"]["tiny"]
    assert found["cosine"]["torch contiguous"] == pytest.approx(1)
    assert found["torch"] in gradient.LAYOUTS
    assert document["summary"]["torch_least"] == found["to_gradient"][found["torch"]]
    assert "| tiny |" in beside


def test_gradient_of_a_file_needs_no_torch(tmp_path: Path) -> None:
    onnx.save(onnx_of("tiny"), tmp_path / "tiny.onnx")
    document, _ = run(gradient.main, tmp_path / "tiny.onnx", "--batch", 2, "--threads", 1, "--no-memory", *TINY)
    (found,) = document["nets"].values()
    assert not any("torch" in kind for kind in found["median_seconds"])


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("kind", ["gradient", "torch contiguous"])
def test_memory_of_a_gradient(kind: str, tmp_path: Path) -> None:
    onnx.save(ox.gradient_model(onnx_of("tiny")), tmp_path / "gradient.onnx")
    what = tmp_path / "gradient.onnx" if kind == "gradient" else "tiny"
    assert run(gradient.main, what, "--batch", 2, "--threads", 1, "--only", kind)[0]["peak_mib"] >= 0


def test_methods() -> None:
    document, beside = run(
        methods.main, "tiny", "--count", 2, "--batch", 2, "--threads", 1, "--quick", "--no-memory", *TINY
    )
    found = document["nets"]["tiny"]
    assert set(found) == {"isa", "credible", "ig"}
    for one in found.values():
        assert one["agreement"]["least_correlation"] > 0.999
        assert 0 < one["host_share"] < 1
    assert beside.count("| tiny |") == 3


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("side", ["engine", "channels_last"])
def test_memory_of_a_method(side: str, tmp_path: Path) -> None:
    onnx.save(ox.gradient_model(onnx_of("tiny")), tmp_path / "gradient.onnx")
    what = tmp_path / "gradient.onnx" if side == "engine" else "tiny"
    common = ("--count", 2, "--batch", 2, "--threads", 1, "--only", side, "ig")
    assert run(methods.main, what, *common)[0]["peak_mib"] >= 0


def test_scaling() -> None:
    sizes = ("--batches", "1,2", "--counts", "1,2", "--threads", "1")
    document, beside = run(scaling.main, "--net", "tiny", "--part", "batch", "--part", "images", *sizes, *TINY)
    assert set(document["batch"]["1"]["gradient"]) == set(document["images"]["1"]) == {"1", "2"}
    assert "s an image" in beside


def test_start_up(tmp_path: Path) -> None:
    from onnxplain.models.demo import demo_model

    onnx.save(demo_model(), tmp_path / "demo.onnx")
    found = scaling.until_first_call(tmp_path / "demo.onnx", tmp_path / "out")
    assert 0 < found["sessions"] < found["seconds"]
    assert 0 < found["beyond_sessions"] < found["seconds"]


def test_stopped_early_it_still_prints(monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(scaling, "images_part", stopped)
    document, _ = run(scaling.main, "--net", "tiny", "--part", "batch", "--part", "images", "--batches", "1", *TINY)
    assert document["interrupted"]
    assert "batch" in document
    assert "images" not in document


@pytest.fixture
def started(tmp_path: Path) -> Path:
    """A file that parts can add to."""
    file = tmp_path / "gpu.json"
    file.write_text(json.dumps({"parts": {}, "failed": []}))
    return file


@pytest.mark.parametrize("part", gpu.PARTS)
def test_every_part_of_gpu_runs_on_the_cpu(part: str, started: Path) -> None:
    CliRunner().invoke(gpu.main, [*SMALL, "-o", str(started), "--child", part, "tiny"], catch_exceptions=False)
    document = json.loads(started.read_text())
    assert document["failed"] == []
    assert document["parts"][part]


def test_a_failure_is_told_and_loses_nothing(started: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("no kernel image")

    monkeypatch.setattr(gpu, "opened", broken)
    CliRunner().invoke(gpu.main, [*SMALL, "-o", str(started), "--child", "batch", "tiny"], catch_exceptions=False)
    document = json.loads(started.read_text())
    found = document["parts"]["batch"]["tiny"]
    assert found["2"]["engine cpu"]["error"] == "RuntimeError: no kernel image"
    assert found["2"]["seconds_an_image"]["torch eager"] > 0
    assert "batch / tiny / 2 / engine cpu" in document["failed"]


def test_gpu_in_processes(tmp_path: Path) -> None:
    """One part that runs, and one whose net is unknown."""
    out = tmp_path / "gpu.json"
    command = [str(gpu.ROOT / "bench/gpu.sh"), "-", str(out), *SMALL, "--net", "unknown"]
    environment = os.environ | {"PYTHON": sys.executable}
    done = subprocess.run(
        [*command, "--part", "gradients"], env=environment, capture_output=True, text=True, check=False
    )
    document = json.loads(out.read_text())
    assert json.loads(done.stdout) == document
    assert document["parts"]["gradients"]["tiny"]["cpu"]["cosine"] == pytest.approx(1)
    assert document["failed"] == ["gradients / unknown failed"]
    assert done.returncode == 1
