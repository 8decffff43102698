"""`onnxplain doctor`: on this machine, and on machines that are not here."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import machines
import pytest
from tiny import complain, run

import onnxplain.doctor
from onnxplain.doctor import NOT_TRIED, TRIED
from onnxplain.doctor.asking import Answer


@pytest.fixture
def on_machine(monkeypatch):
    """The command on a machine with these facts."""

    def install(facts):
        monkeypatch.setattr(onnxplain.doctor, "gather", lambda on: facts)

    return install


def test_this_machine_runs_models_on_the_cpu():
    pytest.importorskip("onnxruntime")
    shown = run("doctor")
    assert shown.exit_code == 0, shown.output
    rows = [line.split() for line in shown.stdout.splitlines()]
    assert ["cpu", "usable", "onnxruntime"] in [row[:3] for row in rows]
    found = json.loads(run("doctor", "--on", "cpu", "--format", "json").stdout)
    assert found["schema_version"] == 1
    assert found["machine"]["cores"] >= 1
    (place,) = found["places"]
    assert (place["place"], place["state"]) == ("cpu", "usable")


def test_a_machine_with_a_gpu_that_lacks_a_library(on_machine):
    facts = machines.with_onnxruntime_gpu(machines.with_gpu(machines.H100), "libcudnn.so.9")
    on_machine(facts)
    shown = run("doctor")
    assert shown.exit_code == 0  # the CPU is usable
    lines = shown.stdout.splitlines()
    assert "driver     580.65.06, for CUDA 13.0" in lines
    assert "gpu 0      NVIDIA H100 80GB HBM3 (compute capability 9.0, 79.2 GiB)" in lines
    assert "processor  8 cores, AVX2, 32.0 GiB of memory" in lines
    assert 'cuda: not found: libcudnn.so.9; next: pip install "onnxruntime-gpu[cuda,cudnn]==1.31.1"' in lines
    assert any(line.startswith("extra results") for line in lines)
    asked = run("doctor", "--on", "cuda", "--format", "json")
    assert asked.exit_code == 4
    (place,) = json.loads(asked.stdout)["places"]
    assert place["state"] == "not usable"
    assert place["lacks"] == [
        {"what": "not found: libcudnn.so.9", "next": 'pip install "onnxruntime-gpu[cuda,cudnn]==1.31.1"'}
    ]
    assert place["tried"] == "never run by us"


def test_a_machine_that_can_run_nothing(on_machine):
    on_machine(replace(machines.plain(), packages={}, modules=frozenset(), runtime=Answer(error="no"), trials={}))
    shown = run("doctor")
    assert shown.exit_code == 4
    assert 'cpu: ONNX Runtime is not installed; next: pip install "onnxruntime>=1.24"' in shown.stdout


def test_a_plugin_is_told_with_the_option_that_it_wants(on_machine):
    plugin = {"provider": "XExecutionProvider", "library": "/x.so", "devices": 1, "error": None}
    facts = machines.plain()
    on_machine(
        replace(
            facts,
            plugins={"onnxruntime-ep-x": Answer(value=plugin)},
            trials=facts.trials | {"XExecutionProvider": Answer(value={})},
        )
    )
    said = "XExecutionProvider: it is a plugin; use it with --provider-option library=/x.so"
    assert said in run("doctor").stdout.splitlines()


def test_a_board_and_a_container_are_told(on_machine):
    jetson = replace(machines.PC, architecture="aarch64", jetson="NVIDIA Jetson Orin Nano, Jetson Linux 36.4.3")
    on_machine(replace(machines.plain(), machine=replace(jetson, container=True, memory=None)))
    lines = run("doctor").stdout.splitlines()
    assert "board      NVIDIA Jetson Orin Nano, Jetson Linux 36.4.3" in lines
    assert lines[0].endswith("aarch64, in a container")
    assert "processor  8 cores, AVX2" in lines


def test_the_page_says_the_same_of_what_was_never_run():
    page = (Path(__file__).parents[2] / "docs/reference/runtimes.md").read_text("utf-8")
    table, _, _ = page.partition("\n## ")
    rows = [line.split(" | ") for line in table.splitlines() if line.startswith("| `")]
    said = {cells[0].strip("| `").partition("`")[0]: cells[-1].strip(" |") for cells in rows}
    assert {place: said.get(place) for place in TRIED} == TRIED
    assert f"| {NOT_TRIED} |" in page


def test_a_device_that_there_cannot_be():
    complain(run("doctor", "--on", "gpu"), 2, "device 'gpu' is unknown", "cpu, cuda, tensorrt")
