"""The questions themselves: with a driver and packages that are not here, and for real."""

from __future__ import annotations

import ctypes
import json
import subprocess
import sys
from types import ModuleType, SimpleNamespace

import onnx
import pytest

from onnxplain.doctor import asking, probe


class Driver:
    """Two GPUs, as `libcuda` and `libnvidia-ml` tell of them."""

    def __init__(self, init=0, cuda=13000, name=b"CUDA_ERROR_NO_DEVICE"):
        self.cuInit = lambda flags: init
        self.cuDriverGetVersion = lambda number: put(number, cuda)
        self.cuGetErrorName = lambda code, text: put(text, name) if name else 1
        self.cuDeviceGetCount = lambda number: put(number, 2)
        self.cuDeviceGet = lambda handle, index: put(handle, index)
        self.cuDeviceGetAttribute = lambda number, attribute, handle: put(number, {75: 9, 76: 0}[attribute])
        self.cuDeviceTotalMem_v2 = lambda memory, handle: put(memory, 85029158912)

    def cuDeviceGetName(self, buffer, size, handle):
        buffer.value = b"NVIDIA H100 80GB HBM3"
        return 0

    def nvmlInit_v2(self):
        return 0

    def nvmlSystemGetDriverVersion(self, buffer, size):
        buffer.value = b"580.65.06"
        return 0


def put(pointer, value):
    pointer._obj.value = value
    return 0


@pytest.fixture
def loaded(monkeypatch):
    """`ctypes.CDLL` finds these libraries and no others."""

    def install(libraries):
        def load(name):
            if name not in libraries:
                raise OSError(f"{name}: cannot open shared object file: No such file or directory")
            return libraries[name]

        monkeypatch.setattr(ctypes, "CDLL", load)

    return install


def test_a_driver_with_gpus(loaded):
    loaded({probe.CUDA_LIBRARY: Driver(), probe.MANAGEMENT_LIBRARY: Driver()})
    found = probe.driver()
    assert (found["missing"], found["error"], found["cuda"], found["version"]) == (None, None, [13, 0], "580.65.06")
    assert found["gpus"] == [{"name": "NVIDIA H100 80GB HBM3", "capability": [9, 0], "memory": 85029158912}] * 2


def test_no_driver(loaded):
    loaded({})
    assert probe.driver()["missing"].startswith(f"{probe.CUDA_LIBRARY}: cannot open")


@pytest.mark.parametrize(
    ("name", "said"), [(b"CUDA_ERROR_NO_DEVICE", "CUDA_ERROR_NO_DEVICE"), (None, "CUDA error 100")]
)
def test_a_driver_that_shows_no_gpu(loaded, name, said):
    loaded({probe.CUDA_LIBRARY: Driver(init=100, cuda=12090, name=name)})
    found = probe.driver()
    assert (found["error"], found["cuda"], found["version"], found["gpus"]) == (said, [12, 9], None, [])


def test_libraries_that_cannot_be_loaded(loaded, monkeypatch):
    asked = []
    runtime = SimpleNamespace(preload_dlls=lambda directory: asked.append(directory))
    monkeypatch.setitem(sys.modules, "onnxruntime", runtime)
    loaded({"libcublas.so.13": None})
    assert probe.libraries("libcublas.so.13", "libcudnn.so.9") == ["libcudnn.so.9"]
    assert asked == [""]  # the packages of PyPI first


def test_an_onnxruntime_of_which_only_a_folder_is_left(tmp_path, monkeypatch):
    module = ModuleType("onnxruntime")
    module.__file__, module.__path__ = None, [str(tmp_path)]
    monkeypatch.setitem(sys.modules, "onnxruntime", module)
    with pytest.raises(ImportError, match="has no __init__"):
        probe.onnxruntime()


def test_plugins(monkeypatch):
    def register(name, library):
        if "broken" in library:
            raise RuntimeError("Failed to load library")

    devices = [SimpleNamespace(ep_name="CPUExecutionProvider"), SimpleNamespace(ep_name="XExecutionProvider")]
    runtime = SimpleNamespace(register_execution_provider_library=register, get_ep_devices=lambda: devices)
    monkeypatch.setitem(sys.modules, "onnxruntime", runtime)
    for library, count, error in (("x.so", 1, None), ("broken.so", 0, "RuntimeError: Failed to load library")):
        package = SimpleNamespace(get_ep_name=lambda: "XExecutionProvider", get_library_path=lambda at=library: at)
        monkeypatch.setitem(sys.modules, "onnxruntime_ep_x", package)
        expected = {"provider": "XExecutionProvider", "library": library, "devices": count, "error": error}
        assert probe.plugin("onnxruntime_ep_x") == expected


def test_tensorrt_rtx_reads_the_model(monkeypatch):
    class Parser:
        def __init__(self, network, logger):
            assert network == "network"

        def parse(self, data):
            onnx.checker.check_model(onnx.load_from_string(data), full_check=True)
            return answers.pop()

        def get_error(self, index):
            return SimpleNamespace(desc=lambda: "no such operator")

    logger = SimpleNamespace(ERROR=1)
    module = SimpleNamespace(
        __version__="1.7.1.116",
        Logger=type("Logger", (), {"ERROR": 1, "__init__": lambda self, level: None}),
        Builder=lambda logger: SimpleNamespace(create_network=lambda flags: "network"),
        OnnxParser=Parser,
        ComputeCapability=SimpleNamespace(SM89=1, SM75=2, CURRENT=3),
    )
    assert logger.ERROR == module.Logger.ERROR
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", module)
    answers = [False, True]
    assert probe.tensorrt_rtx() == {"version": "1.7.1.116", "targets": ["SM75", "SM89"]}
    with pytest.raises(RuntimeError, match="no such operator"):
        probe.tensorrt_rtx()


def test_the_cpu_for_real():
    pytest.importorskip("onnxruntime")
    assert asking.ask(("trial", "cpu")).value["provider"] == "CPUExecutionProvider"
    assert "CPUExecutionProvider" in asking.ask(("onnxruntime",)).value["providers"]


def test_a_trial_that_computes_something_else(monkeypatch):
    pytest.importorskip("onnxruntime")
    monkeypatch.setattr(probe, "EXPECTED", 4.0)
    with pytest.raises(ArithmeticError, match=r"computed 3.0 for 4.0"):
        probe.trial("cpu")


def test_what_is_printed_does_not_come_between(tmp_path):
    """A library that prints on stdout, in Python and below, and then fails."""
    (tmp_path / "onnxruntime.py").write_text(
        "import os\nprint('in Python')\nos.write(1, b'below')\nraise OSError('broken') from ValueError('why')"
    )
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); sys.argv = ['probe', 'onnxruntime']; "
    code += (
        f"exec(compile(open({str(asking.PROBE)!r}).read(), {str(asking.PROBE)!r}, 'exec'), {{'__name__': '__main__', "
    )
    code += f"'__file__': {str(asking.PROBE)!r}}})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == {"error": "OSError: broken", "causes": ["ValueError: why"]}
    assert "in Python" in done.stderr
    assert "below" in done.stderr


def test_an_unknown_question_is_an_error_and_no_crash():
    assert asking.ask(("colour",)).error == "KeyError: 'colour'"
