"""What doctor says of machines that are not here."""

from __future__ import annotations

import tomllib
from dataclasses import replace
from pathlib import Path

import machines
import pytest
from machines import H100, RTX_4090, V100, plain, with_gpu, with_onnxruntime_gpu

from onnxplain.doctor import EXTRAS, State, report
from onnxplain.doctor.asking import Answer
from onnxplain.doctor.lacks import REQUIREMENTS, lacks
from onnxplain.engine.executors.place import Place

ALL_LIBRARIES = ("libcublasLt.so.13", "libcublas.so.13", "libcurand.so.10", "libcuda.so.1", "libcudnn.so.9")
FOR_CUDA_12 = 'pip install "onnxruntime-gpu[cuda,cudnn]>=1.24,<1.27"'


def said(place, facts):
    """What a place lacks, and what mends it, as pairs."""
    return [(lack.what, lack.next) for lack in lacks(Place.parse(place), facts)]


def first(place, facts):
    return said(place, facts)[0]


def state(place, facts):
    (verdict,) = (verdict for verdict in report(facts).places if verdict.place == place)
    return verdict.state


# no GPU


def test_the_light_install_runs_on_the_cpu_and_no_gpu_is_made_up():
    facts = plain()
    assert said("cpu", facts) == []
    assert state("cpu", facts) is State.USABLE
    for place in ("cuda", "tensorrt", "tensorrt-rtx"):
        assert said(place, facts) == [("there is no NVIDIA GPU in this machine", None)]
        assert state(place, facts) is State.NOT_USABLE
    assert said("openvino", facts) == [("OpenVINO is not installed", 'pip install "openvino>=2026.2"')]


def test_nothing_installed():
    facts = replace(plain(), packages={}, modules=frozenset(), runtime=Answer(error="not asked"), trials={})
    assert first("cpu", facts) == ("ONNX Runtime is not installed", 'pip install "onnxruntime>=1.24"')
    assert first("CoreMLExecutionProvider", facts)[1] == 'pip install "onnxruntime>=1.24"'
    assert not report(facts).usable


def test_onnxruntime_gpu_without_a_gpu_tells_its_libraries_too():
    facts = with_onnxruntime_gpu(plain(), *ALL_LIBRARIES)
    assert said("cuda", facts) == [
        ("there is no NVIDIA GPU in this machine", None),
        (
            "not found: libcublasLt.so.13, libcublas.so.13, libcurand.so.10, libcudnn.so.9",
            'pip install "onnxruntime-gpu[cuda,cudnn]==1.31.1"',
        ),
    ]
    assert state("cpu", facts) is State.USABLE


def test_tensorrt_rtx_builds_engines_without_a_gpu():
    facts = replace(plain(), modules=frozenset({"tensorrt_rtx"}), builder=Answer(value=machines.RTX))
    assert state("tensorrt-rtx", facts) is State.BUILDS
    assert said("tensorrt-rtx", facts) == [("there is no NVIDIA GPU in this machine", None)]
    assert not report(facts, Place("tensorrt-rtx")).usable


def test_where_only_a_driver_would_tell_of_a_gpu_no_more_is_said():
    facts = replace(plain(), machine=replace(machines.PC, system="Windows 11"))
    assert said("cuda", facts) == [("there is no NVIDIA GPU, or no driver for it", None)]


# the driver


def test_a_gpu_without_a_driver():
    facts = replace(plain(), machine=replace(machines.PC, nvidia=True))
    what, then = first("cuda", facts)
    assert what == "there is a GPU, but its driver is not found (libcuda.so.1)"
    assert then == "install NVIDIA's driver 580 or later, and restart"
    on_ubuntu = replace(facts, machine=replace(facts.machine, system="Linux 6.8.0 (Ubuntu 24.04.3 LTS)"))
    assert first("cuda", on_ubuntu)[1] == "sudo ubuntu-drivers install, and restart"
    inside = replace(facts, machine=replace(facts.machine, container=True))
    assert first("tensorrt", inside)[1] == "start the container with --gpus all"


@pytest.mark.parametrize(
    ("error", "then"),
    [
        ("CUDA_ERROR_NO_DEVICE", "CUDA_VISIBLE_DEVICES"),
        ("CUDA_ERROR_SYSTEM_DRIVER_MISMATCH", "restart the machine"),
        ("CUDA_ERROR_STUB_LIBRARY", "LD_LIBRARY_PATH"),
        ("CUDA error 999", "install NVIDIA's driver"),
    ],
)
def test_a_driver_with_an_error(error, then):
    facts = with_gpu()
    facts = replace(facts, driver=Answer(value=facts.driver.value | {"error": error}))
    what, mends = first("cuda", facts)
    assert what == f"NVIDIA's driver says {error}"
    assert then in mends


def test_a_driver_that_hangs():
    facts = replace(with_gpu(H100), driver=Answer(error="it did not answer within 60 s"))
    assert first("cuda", facts) == (
        "NVIDIA's driver was asked, but it did not answer within 60 s",
        "restart the machine",
    )
    assert report(facts).driver == "it did not answer within 60 s"
    assert state("cpu", facts) is State.USABLE


def test_a_gpu_that_is_not_there():
    assert first("cuda:2", with_gpu(H100, H100)) == (
        "there is no GPU with the number 2; the last one is number 1",
        None,
    )


def test_a_driver_too_old_for_cuda_13():
    """What mends it without a new driver is the last onnxruntime-gpu for CUDA 12, and TensorRT for CUDA 12."""
    facts = with_gpu(H100, cuda=(12, 8), version="570.86.10")
    installed = with_onnxruntime_gpu(facts, "libcublas.so.13")
    assert said("cuda", installed) == [
        (
            "the driver 570.86.10 is for CUDA 12.8, and CUDA 13 is needed",
            f"pip uninstall -y onnxruntime-gpu && {FOR_CUDA_12}",
        )
    ]
    assert said("cuda", facts) == [
        ("ONNX Runtime for CUDA is not installed", f"pip uninstall -y onnxruntime && {FOR_CUDA_12}")
    ]
    assert first("tensorrt", facts)[1].endswith('tensorrt-cu12 "cuda-bindings==12.*"')
    assert first("tensorrt-rtx", facts)[1] == 'pip install tensorrt-rtx-cu12 "cuda-bindings==12.*"'
    ancient = with_onnxruntime_gpu(with_gpu(H100, cuda=(11, 4), version="470.57.02"))
    assert first("cuda", ancient)[1] == "install NVIDIA's driver 580 or later, and restart"


def test_a_gpu_too_old_for_cuda_13():
    facts = with_onnxruntime_gpu(with_gpu(V100))
    what, then = first("cuda", facts)
    assert what == "CUDA 13 does not support the Tesla V100-SXM2-16GB"
    assert then.endswith(FOR_CUDA_12)


# ONNX Runtime for CUDA


def test_a_gpu_and_onnxruntime_for_the_cpu_only():
    assert said("cuda", with_gpu(H100)) == [
        (
            "ONNX Runtime for CUDA is not installed",
            'pip uninstall -y onnxruntime && pip install "onnxruntime-gpu[cuda,cudnn]>=1.27"',
        )
    ]


def test_libraries_of_cuda_that_are_missing():
    facts = with_onnxruntime_gpu(with_gpu(H100), "libcublas.so.13", "libcudnn.so.9")
    assert said("cuda", facts) == [
        ("not found: libcublas.so.13, libcudnn.so.9", 'pip install "onnxruntime-gpu[cuda,cudnn]==1.31.1"')
    ]


def test_cuda_that_works():
    facts = with_onnxruntime_gpu(with_gpu(H100))
    facts = replace(facts, trials=facts.trials | {"cuda": Answer(value={"nodes": {"CUDAExecutionProvider": 2}})})
    assert said("cuda", facts) == []
    assert state("cuda", facts) is State.USABLE
    assert report(facts).driver == "580.65.06, for CUDA 13.0"
    assert report(facts).gpus == ("NVIDIA H100 80GB HBM3 (compute capability 9.0, 79.2 GiB)",)


@pytest.mark.parametrize("gpus", [(), (H100,)])
def test_both_packages_of_onnxruntime(gpus):
    """The CPU's came last, and took CUDA away."""
    facts = with_gpu(*gpus) if gpus else plain()
    facts = replace(facts, packages={"onnxruntime": "1.32.0", "onnxruntime-gpu": "1.31.1"})
    wanted = "onnxruntime-gpu[cuda,cudnn]>=1.27" if gpus else "onnxruntime>=1.24"
    again = f'pip uninstall -y onnxruntime onnxruntime-gpu && pip install "{wanted}"'
    assert said("cpu", facts) == [("onnxruntime and onnxruntime-gpu are installed, and overwrite one another", again)]
    assert state("cpu", facts) is State.USABLE
    if gpus:
        assert said("cuda", facts) == [("onnxruntime has overwritten onnxruntime-gpu", again)]


@pytest.mark.parametrize(
    "error",
    [
        "ImportError: /venv/lib/python3.11/site-packages/onnxruntime has no __init__.py",
        "AttributeError: module 'onnxruntime' has no attribute 'get_available_providers'",
    ],
)
def test_what_is_left_after_one_of_both_was_uninstalled(error):
    facts = replace(plain(), packages={"onnxruntime-gpu": "1.31.1"}, runtime=Answer(error=error), trials={})
    what, then = first("cpu", facts)
    assert "incomplete" in what
    assert then == "pip install --force-reinstall --no-deps onnxruntime-gpu"
    assert said("cuda", facts)[-1][1] == then


def test_an_onnxruntime_that_crashes():
    crash = "it crashed with SIGSEGV, and its last words were: nothing"
    facts = replace(plain(), runtime=Answer(error=crash), trials={"cpu": Answer(error=crash)})
    assert first("cpu", facts)[0] == f"ONNX Runtime cannot be imported: {crash}"
    assert not report(facts).usable


def test_versions_that_are_too_old_are_told_even_where_they_run():
    facts = replace(
        plain(),
        packages={"onnxruntime": "1.20.1", "openvino": "2024.6.0"},
        modules=frozenset({"onnxruntime", "openvino"}),
        runtime=Answer(value=machines.CPU_ONLY | {"version": "1.20.1"}),
        trials={
            "cpu": Answer(error="AttributeError: no get_provider_graph_assignment_info"),
            "openvino": Answer(value={}),
        },
    )
    assert said("cpu", facts) == [
        ("ONNX Runtime 1.20.1 is older than any that onnxplain knows", 'pip install "onnxruntime>=1.24"')
    ]
    assert said("openvino", facts) == [
        ("OpenVINO 2024.6.0 is older than any that onnxplain knows", 'pip install "openvino>=2026.2"')
    ]
    assert (state("cpu", facts), state("openvino", facts)) == (State.NOT_USABLE, State.USABLE)


def test_a_build_without_code_for_the_gpu():
    """In the words of microsoft/onnxruntime#32422; B200 is not among what the wheel of 1.31.1 is compiled for."""
    error = (
        "BackendFailed: onnxruntime failed while running the model: [ONNXRuntimeError] : 1 : FAIL : Non-zero status "
        "code returned while running Sqrt node. Name:'' Status Message: CUDA error "
        "cudaErrorNoKernelImageForDevice:no kernel image is available for execution on the device"
    )
    facts = with_onnxruntime_gpu(with_gpu(machines.gpu("NVIDIA B200", 10, 0)))
    facts = replace(facts, trials={"cuda": Answer(error=error)})
    assert "no code for the NVIDIA B200 (compute capability 10.0)" in first("cuda", facts)[0]


def test_what_nobody_foresaw_is_told_in_the_words_of_the_runtime():
    facts = with_onnxruntime_gpu(with_gpu(H100))
    assert said("cuda", facts) == [
        (
            "a small model did not run: DeviceMissing: ONNX Runtime could not start CUDAExecutionProvider on cuda "
            "(with error: libcuda.so.1: cannot open shared object file: No such file or directory)",
            None,
        )
    ]


# TensorRT


def test_only_the_bindings_of_tensorrt():
    facts = replace(
        with_gpu(H100),
        packages={"tensorrt-cu13-bindings": "11.4.0.106", "cuda-bindings": "13.5.0"},
        modules=frozenset({"tensorrt_bindings"}),
    )
    what, then = first("tensorrt", facts)
    assert "only the Python bindings" in what
    assert then == "pip install --extra-index-url https://pypi.nvidia.com tensorrt-cu13==11.4.0.106"


def test_a_library_of_tensorrt_that_is_not_found_and_missing_bindings_of_cuda():
    facts = replace(
        with_gpu(H100),
        packages={"tensorrt-cu13": "11.4.0.106", "tensorrt-cu13-bindings": "11.4.0.106"},
        modules=frozenset({"tensorrt"}),
        trials={
            "tensorrt": Answer(
                error="DeviceMissing: tensorrt cannot be loaded",
                causes=(
                    "ImportError: libnvonnxparser.so.11: cannot open shared object file: No such file or directory",
                ),
            )
        },
    )
    assert said("tensorrt", facts) == [
        (
            "libnvonnxparser.so.11, a library of TensorRT, is not found",
            "pip install --force-reinstall --extra-index-url https://pypi.nvidia.com tensorrt-cu13==11.4.0.106",
        ),
        ("cuda-bindings is not installed", 'pip install "cuda-bindings==13.*"'),
    ]


def test_the_provider_of_onnxruntime_against_another_major_of_tensorrt():
    facts = with_onnxruntime_gpu(with_gpu(H100), "libnvinfer.so.10", "libnvonnxparser.so.10")
    place = "TensorrtExecutionProvider"
    assert said(place, facts) == [
        (
            "not found: libnvinfer.so.10, libnvonnxparser.so.10",
            'pip install --extra-index-url https://pypi.nvidia.com "tensorrt-cu13==10.*"',
        )
    ]
    eleven = replace(facts, packages=facts.packages | {"tensorrt-cu13": "11.4.0.106"})
    assert said(place, eleven) == [
        (
            "it is linked to TensorRT 10, and TensorRT 11.4.0.106 is installed",
            "use --on tensorrt, which takes both, or "
            'pip install --extra-index-url https://pypi.nvidia.com "tensorrt-cu13==10.*"',
        )
    ]
    ten = replace(facts, packages=facts.packages | {"tensorrt-cu13": "10.16.1.11"})
    assert "LD_LIBRARY_PATH" in first(place, ten)[1]


def test_gpus_that_tensorrt_rtx_is_not_for():
    has = {"modules": frozenset({"tensorrt_rtx"}), "builder": Answer(value=machines.RTX)}
    packages = {"tensorrt-rtx-cu13": "1.7.1.116", "cuda-bindings": "13.5.0"}
    facts = replace(with_gpu(H100), packages=packages, **has)
    assert said("tensorrt-rtx", facts) == [
        (
            "TensorRT for RTX 1.7.1.116 does not support the NVIDIA H100 80GB HBM3 (compute capability 9.0)",
            "use --on tensorrt, or --on cuda",
        )
    ]
    assert state("tensorrt-rtx", facts) is State.BUILDS
    facts = replace(with_gpu(RTX_4090), packages=packages, trials={"tensorrt-rtx": Answer(value={})}, **has)
    assert said("tensorrt-rtx", facts) == []
    assert state("tensorrt-rtx", facts) is State.USABLE


def test_a_tensorrt_rtx_that_does_not_start():
    facts = replace(plain(), modules=frozenset({"tensorrt_rtx"}), builder=Answer(error="it crashed with SIGSEGV"))
    assert "does not start: it crashed with SIGSEGV" in said("tensorrt-rtx", facts)[-1][0]
    assert state("tensorrt-rtx", facts) is State.NOT_USABLE


# plugins


def test_plugins_of_onnxruntime():
    library = "/venv/onnxruntime_ep_openvino/libonnxruntime_providers_openvino_plugin.so"
    idle = {"provider": "OpenVINOExecutionProvider", "library": library, "devices": 0, "error": None}
    broken = {
        "provider": "NvTensorRTRTXExecutionProvider",
        "library": "/venv/onnxruntime_ep_nv_tensorrt_rtx/libonnxruntime_providers_nv_tensorrt_rtx.so",
        "devices": 0,
        "error": "Fail: [ONNXRuntimeError] : 1 : FAIL : Failed to load library /venv/onnxruntime_ep_nv_tensorrt_rtx/"
        "libonnxruntime_providers_nv_tensorrt_rtx.so with error: libcuda.so.1: cannot open shared object file: No such "
        "file or directory",
    }
    facts = replace(
        plain(),
        plugins={
            "onnxruntime-ep-openvino": Answer(value=idle),
            "onnxruntime-ep-nv-tensorrt-rtx-cu13": Answer(value=broken),
        },
    )
    assert said("OpenVINOExecutionProvider", facts)[0][0] == "its plugin finds no device here that it is for"
    assert said("NvTensorRTRTXExecutionProvider", facts) == [("there is no NVIDIA GPU in this machine", None)]
    assert [verdict.place for verdict in report(facts).places][5:] == [
        "OpenVINOExecutionProvider",
        "NvTensorRTRTXExecutionProvider",
    ]
    works = replace(
        facts,
        plugins={"onnxruntime-ep-openvino": Answer(value=idle | {"devices": 1})},
        trials=facts.trials | {"OpenVINOExecutionProvider": Answer(value={})},
    )
    (verdict,) = report(works, Place("OpenVINOExecutionProvider")).places
    assert (verdict.state, verdict.lacks, verdict.options) == (State.USABLE, (), (f"library={library}",))


def test_a_plugin_that_cannot_be_loaded_for_another_reason():
    value = {"provider": "XExecutionProvider", "library": "x.so", "devices": 0, "error": "Fail: undefined symbol: y"}
    facts = replace(plain(), plugins={"onnxruntime-ep-x": Answer(value=value)})
    assert first("XExecutionProvider", facts)[0] == "its plugin does not load: Fail: undefined symbol: y"


def test_a_provider_that_there_is_not():
    what, then = first("CoreMLExecutionProvider", plain())
    assert what.startswith("ONNX Runtime has no CoreMLExecutionProvider, only ")
    assert "docs/reference/runtimes.md" in then


# Jetson


def test_a_jetson():
    """CUDA and TensorRT come with JetPack there; PyPI's packages have no code for it."""
    board = replace(machines.PC, architecture="aarch64", jetson="NVIDIA Jetson AGX Orin, Jetson Linux 36.4.3")
    orin = machines.gpu("Orin", 8, 7)
    facts = replace(plain(), machine=board, driver=machines.driver(orin, cuda=(12, 6), version=None))
    assert first("cuda", facts) == (
        "ONNX Runtime for CUDA is not installed, and the package on PyPI has no code for a Jetson",
        "use --on tensorrt, or a build for this JetPack (docs/reference/runtimes.md)",
    )
    assert "--system-site-packages" in first("tensorrt", facts)[1]
    assert report(facts).driver == "unknown, for CUDA 12.6"
    pip = with_onnxruntime_gpu(facts)
    assert first("cuda", pip) == (
        "the driver is for CUDA 12.6, and CUDA 13 is needed",
        "install a JetPack with CUDA 13",
    )
    inside = replace(facts, machine=replace(board, container=True), driver=Answer(value=machines.NO_DRIVER))
    assert first("cuda", inside)[1] == "start the container with --runtime nvidia"


# what is said elsewhere too


def test_requirements_are_those_of_the_extras():
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text("utf-8"))["project"]
    extras = project["optional-dependencies"]
    assert {name: [requirement] for name, requirement in REQUIREMENTS.items()} == {n: extras[n] for n in REQUIREMENTS}
    for name, (_, parts) in EXTRAS.items():
        assert [part.replace("-", "_") for part in parts] == [
            requirement.partition(">=")[0].partition("==")[0].replace("-", "_") for requirement in extras[name]
        ]
