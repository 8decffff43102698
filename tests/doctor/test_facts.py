"""Which questions are asked of which machine, and what becomes of the answers."""

from __future__ import annotations

import sys
from pathlib import Path

import machines
import pytest

from onnxplain.doctor import examine, facts
from onnxplain.doctor.asking import Answer
from onnxplain.doctor.facts import gather
from onnxplain.engine.executors.place import Place

PLUGIN = {"provider": "XExecutionProvider", "library": "/x.so", "devices": 1, "error": None}


@pytest.fixture
def asked(monkeypatch):
    """A machine with these packages and answers; the questions that it was asked."""

    def install(packages, modules, answers):
        questions = []

        def ask_all(batch):
            questions.extend(batch)
            return {question: answers.get(question[0], Answer(error="broken")) for question in batch}

        monkeypatch.setattr(facts, "ask_all", ask_all)
        monkeypatch.setattr(facts, "installed", lambda: packages)
        monkeypatch.setattr(facts, "folder", lambda module: Path(module) if module in modules else None)
        monkeypatch.setattr(facts, "provider_libraries", lambda: {"cuda": Path("c"), "tensorrt": Path("t")})
        monkeypatch.setattr(
            facts, "needs", lambda path: {"c": ("libcublas.so.13",), "t": ("libnvinfer.so.10",)}[str(path)]
        )
        return questions

    return install


def test_a_bare_machine_is_asked_for_its_driver_only(asked):
    questions = asked({}, (), {})
    assert not examine().usable
    assert questions == [("driver",)]


def test_a_full_machine(asked):
    questions = asked(
        {"onnxruntime-gpu": "1.31.1", "onnxruntime-ep-x": "1.0", "onnxruntime-ep-x-cu13": "1.0"},
        ("onnxruntime", "onnxruntime_ep_x", "openvino", "tensorrt", "tensorrt_rtx"),
        {
            "driver": machines.driver(machines.H100),
            "onnxruntime": Answer(value=machines.WITH_CUDA),
            "libraries": Answer(value=["libnvinfer.so.10"]),
            "plugin": Answer(value=PLUGIN),
            "trial": Answer(value={}),
        },
    )
    found = gather()
    assert set(questions) == {
        ("driver",),
        ("onnxruntime",),
        ("tensorrt_rtx",),
        ("plugin", "onnxruntime_ep_x"),
        ("libraries", "libcublas.so.13", facts.CUDNN),
        ("libraries", "libnvinfer.so.10"),
        *(("trial", place) for place in ("cpu", "cuda", "tensorrt", "tensorrt-rtx", "openvino")),
        ("trial", "TensorrtExecutionProvider"),
        ("trial", "XExecutionProvider", "library=/x.so"),
    }
    assert len(questions) == len(set(questions))
    assert found.missing["cuda"].value == ["libnvinfer.so.10"]
    assert set(found.trials) == {
        "cpu", "cuda", "tensorrt", "tensorrt-rtx", "openvino", "TensorrtExecutionProvider", "XExecutionProvider",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("on", "expected"),
    [
        ("cpu", {("driver",), ("onnxruntime",), ("trial", "cpu")}),
        ("openvino", {("driver",), ("onnxruntime",), ("trial", "openvino")}),
        ("cuda:1", {("driver",), ("onnxruntime",), ("trial", "cuda:1"), ("libraries", "libcublas.so.13", facts.CUDNN)}),
        ("tensorrt-rtx", {("driver",), ("onnxruntime",), ("tensorrt_rtx",), ("trial", "tensorrt-rtx")}),
        (
            "XExecutionProvider",
            {
                ("driver",),
                ("onnxruntime",),
                ("plugin", "onnxruntime_ep_x"),
                ("trial", "XExecutionProvider", "library=/x.so"),
            },
        ),
    ],
)
def test_one_place_is_asked_for_no_more_than_it_needs(asked, on, expected):
    questions = asked(
        {"onnxruntime-gpu": "1.31.1", "onnxruntime-ep-x": "1.0"},
        ("onnxruntime", "onnxruntime_ep_x", "openvino", "tensorrt", "tensorrt_rtx"),
        {
            "driver": machines.driver(machines.H100, machines.H100),
            "onnxruntime": Answer(value=machines.WITH_CUDA),
            "plugin": Answer(value=PLUGIN),
            "libraries": Answer(value=[]),
            "trial": Answer(value={}),
        },
    )
    report = examine(Place.parse(on))
    assert set(questions) == expected
    assert report.usable
    assert [verdict.place for verdict in report.places] == [on]


def test_everything_broken_is_told_and_not_raised(asked):
    asked(
        {"onnxruntime-gpu": "1.31.1", "onnxruntime-ep-x": "1.0"},
        ("onnxruntime", "onnxruntime_ep_x", "openvino", "tensorrt", "tensorrt_rtx"),
        {},
    )
    report = examine()
    assert not report.usable
    assert all(verdict.lacks for verdict in report.places)
    assert report.driver == "broken"


def test_nothing_native_is_loaded_into_this_process():
    import subprocess

    code = (
        "import sys\nfrom onnxplain.doctor import examine\nexamine()\n"
        "print(*{'onnxruntime', 'openvino', 'tensorrt', 'tensorrt_rtx', 'numpy', 'onnx'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
