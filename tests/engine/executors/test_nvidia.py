"""Whether there is a GPU, by files; and what is said where there is none."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
from tiny import classifier, complain, run

from onnxplain.engine.executors import setup
from onnxplain.engine.executors.nvidia import TRACES, displays, surely_none
from onnxplain.errors import BackendMissing


def plug(root: Path, vendor: str, kind: str) -> None:
    device = root / "sys/bus/pci/devices/0000:01:00.0"
    device.mkdir(parents=True)
    (device / "vendor").write_text(f"{vendor}\n")
    (device / "class").write_text(f"{kind}\n")


def test_a_gpu_is_seen_and_other_devices_are_none(tmp_path: Path) -> None:
    assert surely_none(tmp_path, "linux")
    plug(tmp_path, "0x10de", "0x040300")  # its sound
    assert surely_none(tmp_path, "linux")
    plug(tmp_path / "b", "0x8086", "0x030000")  # another maker's
    assert surely_none(tmp_path / "b", "linux")
    plug(tmp_path / "c", "0x10de", "0x030200")
    assert not surely_none(tmp_path / "c", "linux")
    assert len(list(displays(tmp_path / "c"))) == 1


@pytest.mark.parametrize("trace", TRACES)
def test_what_a_driver_leaves_is_a_trace(tmp_path: Path, trace: str) -> None:
    (tmp_path / trace).mkdir(parents=True)
    assert not surely_none(tmp_path, "linux")


def test_other_systems_do_not_tell(tmp_path: Path) -> None:
    assert not surely_none(tmp_path, "darwin")
    assert not surely_none(tmp_path, "win32")


@pytest.mark.parametrize("on", ["cuda", "cuda:1", "tensorrt", "tensorrt-rtx"])
def test_nothing_is_to_be_installed_where_there_is_no_gpu(
    on: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """But where there may be one, what is missing is said."""
    model = tmp_path / "m.onnx"
    onnx.save(classifier(), model)

    def missing(*_: object) -> None:
        raise BackendMissing("it", on.partition(":")[0])

    monkeypatch.setattr(setup.Setup, "_started", missing)
    for none, said in ((True, "there is no NVIDIA GPU in this machine"), (False, "it is not installed")):
        monkeypatch.setattr(setup, "surely_none", lambda none=none: none)
        complain(run("verify", model, "--preprocess", "none", "--on", on), 4, said)
