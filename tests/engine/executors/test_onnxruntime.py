"""ONNX Runtime with other providers than the CPU's: a GPU is not there, so its runtime is made to say what it would."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnx.parser
import onnxruntime as ort
import pytest

from onnxplain.engine.executors.onnxruntime import OnnxRuntimeExecutor, failed
from onnxplain.engine.executors.place import Place
from onnxplain.engine.executors.protocol import OnDevice, TensorSpec
from onnxplain.errors import BackendFailed, BackendMissing, DeviceMissing, OutOfMemory, UsageError

MODEL = onnx.parser.parse_model(
    """<ir_version: 10, opset_import: ["" : 18]> m (float[N, 3] x) => (float[N, 3] y) { y = Tanh(x) }"""
)
CUDA = "CUDAExecutionProvider"


class Session:
    """An `InferenceSession` that is asked for CUDA: it runs on the CPU, and says that its nodes are where they are."""

    def __init__(self, placed: dict[str, list[str]]) -> None:
        self.placed, self.asked, self.options = placed, [], {}

    def __call__(self, data: bytes, settings: Any, providers: Any, enable_fallback: int) -> Any:
        assert enable_fallback == 0, "the runtime's own fallback is silent"
        self.asked = [name for name, _ in providers]
        self.options = dict(providers)
        real = session(data, settings, providers=["CPUExecutionProvider"])
        parts = [
            SimpleNamespace(ep_name=name, get_nodes=lambda ops=ops: [SimpleNamespace(op_type=op) for op in ops])
            for name, ops in self.placed.items()
        ]
        return SimpleNamespace(
            get_inputs=real.get_inputs,
            get_outputs=real.get_outputs,
            get_providers=lambda: list(self.placed),
            get_provider_graph_assignment_info=lambda: parts,
            run=real.run,
        )


session = ort.InferenceSession


def says(directory: str) -> None:
    """As `preload_dlls` does where a library is missing."""
    assert directory == ""
    sys.stdout.write("Failed to load libcublas.so.13\n")


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Session]:
    """ONNX Runtime as it is where CUDA was built in; its sessions' nodes are `placed` by provider."""

    def made(**placed: list[str]) -> Session:
        fake = Session({"CPUExecutionProvider": [], **placed})
        monkeypatch.setattr(ort, "InferenceSession", fake)
        monkeypatch.setattr(ort, "get_available_providers", lambda: [CUDA, "CPUExecutionProvider"])
        monkeypatch.setattr(ort, "preload_dlls", says)
        return fake

    return made


def test_cuda_is_given_its_device_and_no_tf32(cuda: Callable[..., Session]) -> None:
    fake = cuda(CUDAExecutionProvider=["Tanh"])
    with OnnxRuntimeExecutor(MODEL, place=Place("cuda", 1), options={"arena_extend_strategy": "x"}) as executor:
        assert executor({"x": np.zeros((2, 3), np.float32)})["y"].shape == (2, 3)
        assert executor.facts["nodes"] == {CUDA: 1, "CPUExecutionProvider": 0}
        assert executor.facts["provider"] == CUDA
    assert fake.asked == [CUDA, "CPUExecutionProvider"]
    assert fake.options[CUDA] == {"device_id": "1", "use_tf32": "0", "arena_extend_strategy": "x"}
    OnnxRuntimeExecutor(MODEL, place=Place("cuda"), tf32=True)
    assert fake.options[CUDA]["use_tf32"] == "1"


@pytest.mark.parametrize(("options", "recorded"), [({}, None), ({"enable_cuda_graph": "1"}, "-1")])
def test_memory_of_a_gpu_is_not_the_hosts(
    cuda: Callable[..., Session], options: dict[str, str], recorded: str | None
) -> None:
    """Buffers are asked of the GPU; where there are CUDA graphs, a call with arrays of the host is none of them."""
    cuda(CUDAExecutionProvider=["Tanh"])
    with OnnxRuntimeExecutor(MODEL, place=Place("cuda", 1), options=options) as executor:
        assert isinstance(executor, OnDevice)
        assert executor.own_memory
        with pytest.raises(BackendFailed, match=r"gave no buffer of float32\[2, 3\]"):
            executor.buffer(TensorSpec(np.dtype(np.float32), (2, 3)))  # this build has no GPU to ask
        given = executor._run_options(kept=False)
        assert (given and given.get_run_config_entry("gpu_graph_id")) == recorded
        assert executor({"x": np.zeros((2, 3), np.float32)})["y"].shape == (2, 3)


def test_a_session_without_cuda_is_refused_and_says_why(cuda: Callable[..., Session], capsys: Any) -> None:
    """What ONNX Runtime does where a library is missing: it runs on the CPU and logs a line."""
    cuda()
    with pytest.raises(DeviceMissing, match=r"not start CUDA.* on cuda:1 \(Failed to load libcublas.so.13\); next"):
        OnnxRuntimeExecutor(MODEL, place=Place("cuda", 1))
    assert capsys.readouterr().out == ""  # results go there


@pytest.mark.parametrize(
    ("left", "level"), [(["Shape", "Gather"], logging.INFO), (["ConvTranspose", "Shape"], logging.WARNING)]
)
def test_nodes_that_are_left_to_the_cpu_are_told(cuda: Any, caplog: Any, left: list[str], level: int) -> None:
    cuda(CUDAExecutionProvider=["Tanh"], CPUExecutionProvider=left)
    with caplog.at_level(logging.INFO, "onnxplain"):
        OnnxRuntimeExecutor(MODEL, place=Place("cuda"))
    (record,) = caplog.records
    assert (record.levelno, f"leaves {len(left)} nodes to the CPU" in record.getMessage()) == (level, True)
    assert f"{left[0]} x1" in record.getMessage()


def test_a_build_for_the_cpu_says_what_to_install() -> None:
    if CUDA in ort.get_available_providers():
        pytest.skip("this ONNX Runtime has CUDA built in")
    with pytest.raises(BackendMissing, match=r"onnxruntime with CUDA .* next: `onnxplain doctor --on cuda` tells"):
        OnnxRuntimeExecutor(MODEL, place=Place("cuda"))


def test_no_telemetry_is_written(tmp_path: Path) -> None:
    """From 1.29 on the import alone makes files in the user's cache folder. A user's own word on it counts."""
    code = "from onnxplain.engine.executors.onnxruntime import imported; import os; imported(); "
    code += "print(os.environ['ORT_DISABLE_TELEMETRY'])"
    home = {"HOME": str(tmp_path), "XDG_CACHE_HOME": "", "PYTHONDONTWRITEBYTECODE": "1"}
    for given, said in (({}, "1"), ({"ORT_DISABLE_TELEMETRY": "true"}, "true")):
        clean = {name: value for name, value in os.environ.items() if name != "ORT_DISABLE_TELEMETRY"}
        done = subprocess.run(
            [sys.executable, "-c", code], env=clean | home | given, capture_output=True, text=True, check=True
        )
        assert done.stdout.strip() == said
        assert list(tmp_path.rglob("*")) == []


def test_a_provider_that_is_not_built_in_is_refused() -> None:
    with pytest.raises(DeviceMissing, match=r"has no NoExecutionProvider, only .*CPU.*--provider-option library=FILE"):
        OnnxRuntimeExecutor(MODEL, place=Place("NoExecutionProvider"))


def test_a_plugin_that_is_no_library_is_refused(tmp_path: Path) -> None:
    (tmp_path / "plugin.so").write_text("no library")
    with pytest.raises(DeviceMissing, match=r"plugin.so: ONNX Runtime cannot load it as a provider"):
        OnnxRuntimeExecutor(MODEL, place=Place("MyExecutionProvider"), options={"library": str(tmp_path / "plugin.so")})


class Plugins:
    """ONNX Runtime with a plugin that has so many devices once its library is registered."""

    def __init__(self, count: int) -> None:
        self.count, self.registered = count, {}

    def register_execution_provider_library(self, name: str, path: str) -> None:
        assert name not in self.registered, "it is already registered under this name"
        self.registered[name] = path

    def unregister_execution_provider_library(self, name: str) -> None:
        del self.registered[name]

    def get_ep_devices(self) -> list[Any]:
        return [SimpleNamespace(ep_name=name, number=i) for name in self.registered for i in range(self.count)]


def test_a_plugin_without_the_device_is_refused_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    plugins = Plugins(0)
    for name in ("register_execution_provider_library", "unregister_execution_provider_library", "get_ep_devices"):
        monkeypatch.setattr(ort, name, getattr(plugins, name))
    for _ in range(2):
        with pytest.raises(DeviceMissing, match=r"finds 0 devices of MyExecutionProvider"):
            OnnxRuntimeExecutor(MODEL, place=Place("MyExecutionProvider"), options={"library": "plugin.so"})
    plugins.count = 2
    with pytest.raises(DeviceMissing, match=r"finds 2 devices of MyExecutionProvider on this machine, and My.*:2 was"):
        OnnxRuntimeExecutor(MODEL, place=Place("MyExecutionProvider", 2), options={"library": "plugin.so"})
    assert plugins.registered == {"MyExecutionProvider": os.path.abspath("plugin.so")}


def test_the_cpu_takes_no_provider_options() -> None:
    with pytest.raises(UsageError, match="provider options: the CPU has none, got a"):
        OnnxRuntimeExecutor(MODEL, options={"a": "b"})


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("Failed to allocate memory for requested buffer of size 3211264000", OutOfMemory),
        ("CUDA failure 2: out of memory ; GPU=0 ; hostname=x", OutOfMemory),
        ("CUDNN_STATUS_ALLOC_FAILED ; GPU=0", OutOfMemory),
        ("std::bad_alloc", OutOfMemory),
        ("Non-zero status code returned while running Conv node", BackendFailed),
    ],
)
def test_out_of_memory_is_told_apart(text: str, kind: type) -> None:
    """The texts are those of ONNX Runtime's arena, CUDA and cuDNN."""
    assert type(failed("failed while running the model", RuntimeError(text))) is kind


HUNGRY = """
import resource, numpy as np, onnx.parser
from onnxplain.engine.executors.onnxruntime import OnnxRuntimeExecutor
from onnxplain.errors import OutOfMemory
model = onnx.parser.parse_model(
    '<ir_version: 10, opset_import: ["" : 18]> m (float[N, 1024] x) => (float[N, 1024, 1024] y) '
    '<int64[3] to = {1, 1024, 1}> { a = Unsqueeze(x, one) y = Tile(a, to) }'
)
model.graph.initializer.append(onnx.numpy_helper.from_array(np.asarray([1]), "one"))
executor = OnnxRuntimeExecutor(model, threads=1)
small = executor({"x": np.ones((1, 1024), np.float32)})["y"].sum()
with open("/proc/self/status") as status:
    now = next(int(line.split()[1]) for line in status if line.startswith("VmSize"))
resource.setrlimit(resource.RLIMIT_AS, (1024 * now + 2**29, -1))
try:
    executor({"x": np.ones((256, 1024), np.float32)})
except OutOfMemory:
    assert executor({"x": np.ones((1, 1024), np.float32)})["y"].sum() == small
    print("smaller again")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="limits its memory by what Linux tells of it")
def test_a_batch_too_large_leaves_the_executor_usable() -> None:
    """A real one: 1 GiB is asked for where half of it is left."""
    done = subprocess.run([sys.executable, "-c", HUNGRY], capture_output=True, text=True, check=False)
    assert done.stdout == "smaller again\n", done.stderr
