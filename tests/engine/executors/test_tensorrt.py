"""TensorRT's executor on a machine that is not there, with TensorRT 10, 11 and that for RTX; and real builds for RTX.

What real GPUs and libraries do, only they can show: nothing here has been run on one.
"""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
import pytest
from fake_nvidia import Device, Machine, Severity, cuda, tensorrt
from frameworks import runtime
from shared_photos import DATA
from tiny import classifier

import onnxplain as ox
from onnxplain.adapters.gradient.classifier import gradient_model
from onnxplain.engine.executors import engine_cache
from onnxplain.engine.executors.conformance import check_executor
from onnxplain.engine.executors.engine_cache import clear, entries
from onnxplain.engine.executors.gpu import NO_MEMORY, UNFIT, Buffer, Gpu, Stream
from onnxplain.engine.executors.place import Place
from onnxplain.engine.executors.protocol import Executor, TensorSpec
from onnxplain.engine.executors.reference import ReferenceExecutor
from onnxplain.engine.executors.tensorrt import TensorRTExecutor, plan_of
from onnxplain.engine.executors.tensorrt_build import Library, build_ahead, parse
from onnxplain.errors import (
    BackendFailed,
    BackendMissing,
    DeviceMissing,
    ExecutionError,
    FeedMismatch,
    InputError,
    OutOfMemory,
    OutputError,
    UsageError,
)

ROOT = Path(__file__).parents[3]
MODEL = onnx.parser.parse_model(
    """<ir_version: 10, opset_import: ["" : 18]>
    tiny (float[N, 2, 3] x, int64[N] code, bool[N] on) => (float[N, 3] y, float[N, 2, 3] z, bool[N] off)
    {
        total = ReduceSum<keepdims = 0>(x, one)
        axes = Constant<value_ints = [1]>()
        column = Unsqueeze(code, axes)
        number = Cast<to = 1>(column)
        y = Add(total, number)
        z = Tanh(x)
        off = Not(on)
    }"""
)
MODEL.graph.initializer.append(onnx.numpy_helper.from_array(np.asarray([1]), "one"))
OTHER = onnx.parser.parse_model(
    """<ir_version: 10, opset_import: ["" : 18]> other (float[N, 2] x) => (float[N, 2] y) { y = Tanh(x) }"""
)
F32, I64, BOOL = np.dtype(np.float32), np.dtype(np.int64), np.dtype(bool)
TEN, ELEVEN, RTX = ("10.16.1.11", "tensorrt"), ("11.4.0.106", "tensorrt"), ("1.7.1.116", "tensorrt_rtx")
PLACES = {"tensorrt": Place("tensorrt"), "tensorrt_rtx": Place("tensorrt-rtx")}

every_library = pytest.mark.parametrize("library", [TEN, ELEVEN, RTX], ids=["10", "11", "rtx"])


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    """One GPU and TensorRT 11."""
    there = Machine()
    there.install(monkeypatch.setitem)
    return there


def feeds(rows: int = 3, seed: int = 0) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(rows, 2, 3)).astype(np.float32)
    return {"x": x, "code": np.arange(rows), "on": rng.integers(0, 2, rows).astype(bool)}


def build(model: onnx.ModelProto | bytes = MODEL, **options: Any) -> TensorRTExecutor:
    return TensorRTExecutor.build(model, **options)


def same(executor: Executor, given: dict[str, Any]) -> None:
    for name, array in ReferenceExecutor(MODEL)(given).items():
        np.testing.assert_array_equal(executor(given)[name], array)


# What it computes, and how


@every_library
def test_it_keeps_the_protocol_and_leaves_nothing_behind(
    library: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    version, module = library
    machine = Machine()
    machine.install(monkeypatch.setitem, version=version, module=module)
    place = PLACES[module]
    check_executor(lambda: build(place=place))
    with build(place=place, most_rows=4) as executor:
        assert isinstance(executor, Executor)
        assert dict(executor.inputs) == {
            "x": TensorSpec(F32, (None, 2, 3)),
            "code": TensorSpec(I64, (None,)),
            "on": TensorSpec(BOOL, (None,)),
        }
        assert dict(executor.outputs) == {
            "y": TensorSpec(F32, (None, 3)),
            "z": TensorSpec(F32, (None, 2, 3)),
            "off": TensorSpec(BOOL, (None,)),
        }
        assert executor.most_rows == 4
        assert executor.facts == {
            "runtime": place.runtime,
            "version": version,
            "device": "NVIDIA L4",
            "capability": "8.9",
            "cuda_driver": "13.0",
        }
        for rows in (4, 1, 3):
            same(executor, feeds(rows))
    del executor
    gc.collect()
    assert machine.nothing_is_left()


@every_library
def test_the_builder_is_told_what_was_asked_for(library: tuple[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """TF32 is on by default there, and off by default here."""
    version, module = library
    machine = Machine()
    machine.install(monkeypatch.setitem, version=version, module=module)
    options = {"workspace": "64", "builder_optimization_level": "5"}
    build(place=PLACES[module], most_rows=5).close()
    build(place=PLACES[module], most_rows=5, tf32=True, options=options).close()
    shapes = {
        "x": [(1, 2, 3), (5, 2, 3), (5, 2, 3)],
        "code": [(1,), (5,), (5,)],
        "on": [(1,), (5,), (5,)],
    }
    targets = ["CURRENT"] if module == "tensorrt_rtx" else None
    assert machine.builds == [
        {"tf32": False, "workspace": None, "level": 3, "shapes": shapes, "targets": targets},
        {"tf32": True, "workspace": 64 << 20, "level": 5, "shapes": shapes, "targets": targets},
    ]


def test_a_model_with_a_fixed_batch_needs_no_profile(machine: Machine) -> None:
    fixed = onnx.parser.parse_model(
        '<ir_version: 10, opset_import: ["" : 18]> fixed (float[2, 3] x) => (float[2, 3] y) { y = Tanh(x) }'
    )
    with build(fixed) as executor:
        assert executor.most_rows is None
        assert executor.inputs == {"x": TensorSpec(F32, (2, 3))}
        assert executor({"x": np.zeros((2, 3), np.float32)})["y"].shape == (2, 3)
    assert machine.builds[0]["shapes"] == {}


def test_all_of_it_happens_on_the_device_that_was_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """CUDA has a device for each thread, and 0 is that of a new one."""
    machine = Machine(devices=[Device(), Device("NVIDIA A10", 8, 6)])
    machine.install(monkeypatch.setitem)
    executor = build(place=Place("tensorrt", 1))
    assert executor.facts["device"] == "NVIDIA A10"
    assert (machine.devices[0].used, machine.devices[1].used > 0) == (0, True)
    failures: list[BaseException] = []

    def elsewhere() -> None:
        try:
            same(executor, feeds())
            executor.close()
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert not failures
    gc.collect()
    assert machine.nothing_is_left()


def test_outputs_outlive_the_executor(machine: Machine) -> None:
    """They are views of memory that is freed with the last of them."""
    executor = build()
    given = feeds()
    output = executor(given)["z"]
    executor.close()
    assert len(machine.host_memory) == 1
    np.testing.assert_array_equal(output, ReferenceExecutor(MODEL)(given)["z"])
    del output
    gc.collect()
    assert machine.nothing_is_left()


def test_weights_may_lie_in_files_of_their_own(machine: Machine, tmp_path: Path) -> None:
    model = with_weights(tmp_path / "model.onnx", 2.0)
    with build(model, folder=tmp_path) as executor:
        np.testing.assert_array_equal(executor({"x": np.ones((1, 300), np.float32)})["y"], np.full((1, 300), 2.0))
    with pytest.raises(BackendFailed, match=r"refuses the model:\n  Failed to import initializer: w\n"):
        build(model)


def with_weights(path: Path, value: float) -> onnx.ModelProto:
    model = onnx.parser.parse_model(
        '<ir_version: 10, opset_import: ["" : 18]> big (float[N, 300] x) => (float[N, 300] y) { y = Mul(x, w) }'
    )
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.full((300,), value, np.float32), "w"))
    path.with_suffix(".bin").unlink(missing_ok=True)
    onnx.save(model, path, save_as_external_data=True, location=f"{path.stem}.bin", size_threshold=0)
    return onnx.load(path, load_external_data=False)


# What does not fit


@pytest.mark.parametrize("rows", [0, 5])
def test_a_batch_outside_of_the_profile_is_refused(rows: int, machine: Machine) -> None:
    with build(most_rows=4) as executor:
        with pytest.raises(FeedMismatch, match=rf"feeds: {rows} rows, but the engine was built for 1 to 4; next: "):
            executor(feeds(rows))
        with pytest.raises(FeedMismatch, match="equally many rows"):
            executor(feeds(3) | {"code": np.arange(2)})
        same(executor, feeds(4))


def test_every_refused_node_is_named(machine: Machine) -> None:
    model = onnx.parser.parse_model(
        """<ir_version: 10, opset_import: ["" : 18, "com.e" : 1]> odd (float[N, 3] x) => (float[N, 3] y)
        {
            [first] a = com.e.Odd(x)
            [second] b = com.e.Even(a)
            [third] y = Tanh(b)
        }"""
    )
    with pytest.raises(BackendFailed) as caught:
        build(model)
    assert str(caught.value).splitlines() == [
        "tensorrt 11.4.0.106 refuses the model:",
        "  Odd (node first): Plugin not found",
        "  Even (node second): Plugin not found",
        "next: onnxplain inspect tells which nodes TensorRT lacks; export the model without them, or run it on cuda or "
        "cpu",
    ]


def test_float64_is_not_quietly_float32(machine: Machine) -> None:
    double = onnx.parser.parse_model(
        '<ir_version: 10, opset_import: ["" : 18]> double (double[N, 3] x) => (double[N, 3] y) { y = Tanh(x) }'
    )
    with pytest.raises(BackendFailed, match=r"its inputs are x float32\[\?, 3\], the model's are x float64\[\?, 3\]"):
        build(double)
    gc.collect()
    assert machine.nothing_is_left()


def test_a_type_that_numpy_lacks_is_refused(machine: Machine) -> None:
    half = onnx.parser.parse_model(
        '<ir_version: 10, opset_import: ["" : 18]> half (bfloat16[N, 3] x) => (bfloat16[N, 3] y) { y = Identity(x) }'
    )
    with pytest.raises(BackendFailed, match=r"x is BF16\[None, 3\]: only tensors on the device, of a type that NumPy"):
        build(half)


def test_an_output_of_other_rows_is_refused(machine: Machine) -> None:
    """There is no memory for them: the device would write into that of others."""
    twice = onnx.parser.parse_model(
        """<ir_version: 10, opset_import: ["" : 18]> twice (float[N, 3] x) => (float[M, 3] y)
        { y = Concat<axis = 0>(x, x) }"""
    )
    with build(twice) as executor, pytest.raises(BackendFailed, match=r"output y: \(4, 3\) for 2 rows"):
        executor({"x": np.zeros((2, 3), np.float32)})


def test_only_the_first_dimension_may_be_free(machine: Machine) -> None:
    wide = onnx.parser.parse_model(
        '<ir_version: 10, opset_import: ["" : 18]> wide (float[N, W] x) => (float[N, W] y) { y = Tanh(x) }'
    )
    with pytest.raises(BackendFailed, match=r"input x: .* has a free dimension besides the first"):
        build(wide)


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"workspaces": "1"}, "option workspaces: TensorRT's builder takes workspace and builder_optimization_level"),
        ({"workspace": "1.5"}, "option workspace: expected a whole number from 1 to 16777216, got '1.5'"),
        ({"builder_optimization_level": "6"}, "expected a whole number from 0 to 5, got '6'"),
    ],
)
def test_options_are_checked_before_anything_is_started(options: dict[str, str], what: str, machine: Machine) -> None:
    with pytest.raises(UsageError, match=what):
        build(options=options)
    with pytest.raises(UsageError, match="batch size: expected at least 1, got 0"):
        build(most_rows=0)
    assert not machine.builds


# What is not there


def test_a_library_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    Machine().install(monkeypatch.setitem, version=RTX[0], module=RTX[1])
    with pytest.raises(BackendMissing, match=r'tensorrt is not installed; next: pip install "onnxplain\[tensorrt\]"'):
        build()
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", None)
    with pytest.raises(BackendMissing, match=r'cuda-bindings is not installed; .*"onnxplain\[tensorrt-rtx\]"'):
        build(place=Place("tensorrt-rtx"))


def test_bindings_without_their_libraries(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tensorrt.py").write_text("raise ImportError('libnvinfer.so.10: cannot open shared object file')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "tensorrt", raising=False)
    with pytest.raises(DeviceMissing, match=r"tensorrt is installed, but .*libnvinfer\.so\.10: cannot open.*next: "):
        build()
    (tmp_path / "tensorrt.py").write_text("import tensorrt_bindings_that_are_not_there")
    with pytest.raises(DeviceMissing, match="tensorrt is installed, but"):
        build()


@pytest.mark.parametrize("version", ["8.6.1", "9.3.0", "12.0.0"])
def test_another_major_version(version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    Machine().install(monkeypatch.setitem, version=version)
    with pytest.raises(DeviceMissing, match=rf"tensorrt {version}: only version 10 or 11 can be used; next: pip"):
        build()


@pytest.mark.parametrize(
    ("machine", "place", "what"),
    [
        (Machine(devices=[]), "tensorrt", "GPU 0: there is no GPU .*next: nvidia-smi"),
        (Machine(), "tensorrt:1", "GPU 1: this machine has 1, counted from 0"),
        (Machine(driver=0, error="cudaErrorInsufficientDriver"), "tensorrt", "GPU 0: the driver is too old .*next: "),
    ],
    ids=["none", "too few", "driver"],
)
def test_a_device_that_is_missing(machine: Machine, place: str, what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    machine.install(monkeypatch.setitem)
    with pytest.raises(DeviceMissing, match=what):
        build(place=Place.parse(place))


# Memory


def test_too_little_memory_to_build(machine: Machine, caplog: pytest.LogCaptureFixture) -> None:
    """Less of it may do, and the driver is told."""
    machine.most_rows_to_build = 3
    with build(most_rows=8) as executor:
        assert executor.most_rows == 2
        same(executor, feeds(2))
    said = [record.getMessage() for record in caplog.records]
    assert [text.rpartition("; ")[2] for text in said] == ["built for 4 rows, not 8", "built for 2 rows, not 4"]
    assert "out of memory" in said[0]


@pytest.mark.parametrize("memory", [7999, 8000, 8191, 8192, 8255, 8256, 8264, 8360, 8552, 8559])
def test_too_little_memory_for_the_context_or_the_buffers(memory: int, machine: Machine) -> None:
    """Wherever it ends, what was taken before is given back: 8000 bytes for the context, then 192 for x, and so on."""
    machine.devices[0].memory = memory
    with build(most_rows=8) as executor:
        assert executor.most_rows == 4
        assert machine.devices[0].used == 4000 + 280
        same(executor, feeds(4))
    del executor
    gc.collect()
    assert machine.nothing_is_left()


def test_too_little_memory_for_one_row(machine: Machine) -> None:
    for memory, what in (
        (1000, r"GPU 0: out of memory \(cudaMalloc\)"),
        (999, r"could not create a context, the GPU has"),
    ):
        machine.devices[0].memory = memory
        with pytest.raises(OutOfMemory, match=what):
            build(most_rows=2)
    machine.most_rows_to_build = 0
    with pytest.raises(OutOfMemory, match=r"could not build an engine, the GPU has too little memory: .*out of memory"):
        build(most_rows=2)
    gc.collect()
    assert machine.nothing_is_left()


def test_too_little_memory_to_run(machine: Machine) -> None:
    with build() as executor:
        for text in (
            "Error Code 1: Cuda Runtime (out of memory)",
            "Error Code 2: OutOfMemory (no further information)",
        ):
            machine.run_says = text
            with pytest.raises(OutOfMemory, match="could not run 3 rows, the GPU has too little memory"):
                executor(feeds())
            same(executor, feeds(2))


def test_too_little_memory_on_the_host(machine: Machine) -> None:
    with build() as executor:
        machine.sync_error = "cudaErrorMemoryAllocation"
        with pytest.raises(OutOfMemory, match=r"GPU 0: out of memory \(cudaStreamSynchronize\)"):
            executor(feeds())
        same(executor, feeds())


# Errors while running


def test_a_run_that_fails_says_why(machine: Machine) -> None:
    with build() as executor:
        machine.run_says = "Error Code 7: Internal Error (something)"
        with pytest.raises(BackendFailed, match=r"could not run 3 rows: Error Code 7: Internal Error \(something\)"):
            executor(feeds())
        machine.sync_error = "cudaErrorIllegalAddress"
        with pytest.raises(BackendFailed, match="GPU 0: cudaStreamSynchronize failed: cudaErrorIllegalAddress"):
            executor(feeds())
        same(executor, feeds())


def test_a_device_that_is_lost_does_not_keep_it_from_closing(machine: Machine) -> None:
    executor = build()
    machine.error = "cudaErrorIllegalAddress"
    with pytest.raises(BackendFailed):
        executor(feeds())
    executor.close()
    executor.close()
    with pytest.raises(ExecutionError, match="closed"):
        executor(feeds())


def test_a_buffer_can_stay_on_the_device(machine: Machine) -> None:
    """What a walk needs: an output that is bound as an input never crosses the bus."""
    with build(OTHER) as first, build(OTHER) as second:
        given = {"x": np.full((2, 2), 0.5, np.float32)}
        first(given)
        second._context.set_tensor_address("x", first._buffers["y"].address)
        second._enqueue(2)
        answer = second._buffers["y"].read((2, 2), second._stream)
        second._stream.wait()
        np.testing.assert_array_equal(answer, np.tanh(np.tanh(given["x"])))


def test_classifiers_are_explained_on_it(machine: Machine, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """From `open` to the record of a run; both engines are kept, and found again by the next process."""
    x = np.random.default_rng(0).normal(size=(3, 3, 8, 8)).astype(np.float32)
    given: dict[str, Any] = {"preprocess": None, "batch_size": 4, "range": (-9.0, 9.0)}
    machine.most_rows_to_build = 3
    method = ox.methods.IntegratedGradients(steps=6)
    with ox.open(classifier(), **given, threads=1) as cpu:
        want = cpu.explain(x, method)
    for _ in range(2):
        with ox.open(classifier(), on="tensorrt", cache=tmp_path, **given) as explainer:
            got = explainer.explain(x, method)
            assert explainer.batch_size == 2
    assert len(machine.builds) == 2
    for a, b in zip(got, want, strict=True):
        np.testing.assert_allclose(a.attribution, b.attribution, rtol=1e-4, atol=1e-6)
    assert got[0].provenance["on"] == "tensorrt"
    assert got[0].provenance["versions"]["tensorrt"] == "11.4.0.106"
    assert got[0].provenance["runtime"] == {
        "name": "tensorrt",
        "version": "11.4.0.106",
        "device": "NVIDIA L4",
        "capability": "8.9",
        "cuda_driver": "13.0",
    }


def test_memory_is_freed_once(machine: Machine) -> None:
    gpu = Gpu(0, "tensorrt")
    for thing in (Buffer(gpu, F32, (2, 3)), Stream(gpu)):
        thing.close()
        thing.close()
    assert machine.freed == 1
    assert machine.nothing_is_left()


# Engines from files


def engine_of(tmp_path: Path, model: onnx.ModelProto = MODEL) -> bytes:
    build(model, cache=tmp_path).close()
    (entry,) = [entry for entry in entries(tmp_path) if entry.facts["what"] == "engine"]
    return entry.path.read_bytes()


def test_an_engine_needs_no_model(machine: Machine, tmp_path: Path) -> None:
    data = engine_of(tmp_path / "cache")
    path = tmp_path / "some.engine"
    text = json.dumps({"task": "classify", "imgsz": [2, 3]}).encode()
    for content in (data, len(text).to_bytes(4, "little") + text + data):
        path.write_bytes(content)
        for engine in (content, path, str(path)):
            with TensorRTExecutor.load(engine, like=MODEL) as executor:
                assert executor.most_rows == 8
                same(executor, feeds())
    assert len(machine.builds) == 1


@pytest.mark.parametrize(
    "data",
    [b"", b"\1", b"\2\0\0\0{", b"\2\0\0\0{]engine", b"\2\0\0\0[]engine", b"\xff\0\0\0{}", b"vtrt{engine"],
)
def test_only_json_with_its_length_is_left_out(data: bytes) -> None:
    assert plan_of(data) == data
    assert plan_of(b"\2\0\0\0{}" + data) == data


def test_engines_that_are_for_something_else(machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "some.engine"
    data = engine_of(tmp_path / "cache")

    def refused(what: str, data: bytes = data, **options: Any) -> None:
        path.write_bytes(data)
        with pytest.raises(BackendFailed, match=what) as caught:
            TensorRTExecutor.load(path, **options)
        assert str(path) in str(caught.value)
        gc.collect()
        assert machine.nothing_is_left()

    refused("magicTag == kEXPECTED_MAGIC_TAG failed.*next: ", b"no engine at all")
    refused("magicTag == kEXPECTED_MAGIC_TAG failed.*next: ", b"")
    refused("plan.header.size == blobSize failed", data[:-100])
    refused(r"its inputs are x float32\[\?, 2, 3\], code .*, the model's are x float32\[\?, 2\]; next: ", like=OTHER)
    machine.devices[0] = Device("NVIDIA A100", 8, 0)
    refused(r"on NVIDIA A100 \(compute capability 8\.0\) cannot load .*incompatible device, expecting compute 8\.0 got")
    machine.devices[0] = Device()
    machine.install(monkeypatch.setitem, version="10.16.1.11")
    refused(r"tensorrt 10\.16\.1\.11 .*expecting library version 10\.16\.1\.11 got 11\.4\.0\.106")
    with pytest.raises(InputError, match=r"absent\.engine: cannot be read \(No such file or directory\)"):
        TensorRTExecutor.load(tmp_path / "absent.engine")


# The cache


def kept(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in (folder / "engines").iterdir()} if (folder / "engines").exists() else {}


def test_an_engine_is_built_once_and_described(machine: Machine, tmp_path: Path) -> None:
    for _ in range(2):
        with build(cache=tmp_path) as executor:
            same(executor, feeds())
    assert len(machine.builds) == 1
    engine, timing = sorted(entries(tmp_path), key=lambda entry: entry.facts["what"])
    assert engine.facts.keys() == {
        *("what", "runtime", "version", "device", "capability", "cuda_driver"),
        *("onnxplain", "rows", "tf32", "workspace", "builder_optimization_level", "model", "weights"),
    }
    assert engine.path.name == f"{engine.key}.engine"
    assert engine.size == len(engine.path.read_bytes())
    assert timing.facts.keys() == {"what", "runtime", "version", "device", "capability", "cuda_driver"}
    assert timing.path.read_bytes() == b"timing NVIDIA L4"
    about = json.loads(engine.path.with_suffix(".json").read_text())
    assert about["facts"] == engine.facts
    assert (tmp_path / "engines" / "notes.txt").write_text("mine")
    assert clear(tmp_path) == 1
    assert kept(tmp_path) == {"notes.txt": b"mine"}
    assert entries(tmp_path) == []
    assert clear(tmp_path / "absent") == 0


def test_whatever_an_engine_depends_on_makes_another(machine: Machine, tmp_path: Path, monkeypatch: Any) -> None:
    """Not least the weights: another engine of the same architecture would give quietly wrong numbers."""
    (tmp_path / "weights").mkdir()
    model = with_weights(tmp_path / "weights" / "model.onnx", 2.0)
    given: dict[str, Any] = {"folder": tmp_path / "weights", "cache": tmp_path}

    def one_more(**options: Any) -> None:
        before = len(machine.builds)
        for _ in range(2):
            build(model, **given | options).close()
            assert len(machine.builds) == before + 1

    one_more()
    one_more(most_rows=9)
    one_more(tf32=True)
    one_more(options={"workspace": "7"})
    one_more(options={"builder_optimization_level": "1"})
    assert with_weights(tmp_path / "weights" / "model.onnx", 3.0) == model
    one_more()
    model.doc_string = "another"
    one_more()
    machine.driver = 13010
    one_more()
    machine.devices[0].name = "NVIDIA L40"
    one_more()
    machine.devices[0].minor = 6
    one_more()
    machine.install(monkeypatch.setitem, version="11.5.0.1")
    one_more()
    monkeypatch.setattr("onnxplain.engine.executors.tensorrt.version", lambda name: "9.9")
    one_more()


def test_what_was_timed_helps_the_next_build(machine: Machine, tmp_path: Path, caplog: Any) -> None:
    build(cache=tmp_path, most_rows=1).close()
    build(cache=tmp_path, most_rows=2).close()
    assert machine.timings == [b"", b"timing NVIDIA L4"]
    (timing,) = [entry for entry in entries(tmp_path) if entry.facts["what"] == "timing"]
    timing.path.write_bytes(b"timing of somebody else")
    build(cache=tmp_path, most_rows=3).close()
    assert machine.timings[2:] == [b""]
    assert not caplog.records


def test_timings_of_another_device_are_taken_anew(machine: Machine, tmp_path: Path, caplog: Any) -> None:
    """A file that fits its JSON, but not the device: the library itself refuses it."""
    build(cache=tmp_path, most_rows=1).close()
    (timing,) = [entry for entry in entries(tmp_path) if entry.facts["what"] == "timing"]
    for content in (b"timing NVIDIA A100", b"no timing cache"):
        engine_cache.EngineCache(tmp_path, "tensorrt").put(timing.facts, content)
        (tmp_path / "engines").glob("*.engine").__next__().unlink()
        build(cache=tmp_path, most_rows=1).close()
        assert machine.timings[-1] == b""
        assert "cannot be used, and is timed anew" in caplog.text
        caplog.clear()


def test_rtx_has_nothing_to_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Machine().install(monkeypatch.setitem, version=RTX[0], module=RTX[1])
    build(place=Place("tensorrt-rtx"), cache=tmp_path).close()
    assert [entry.facts["what"] for entry in entries(tmp_path)] == ["engine"]


def spoil(change: Callable[[bytes], bytes | None], suffix: str) -> Callable[[Path], None]:
    def spoiled(folder: Path) -> None:
        (path,) = (folder / "engines").glob(f"*{suffix}")
        content = change(path.read_bytes())
        path.unlink() if content is None else path.write_bytes(content)

    return spoiled


SPOILED = {
    "engine cut short": spoil(lambda data: data[:-10], ".engine"),
    "engine changed": spoil(lambda data: data[:-1] + bytes([data[-1] ^ 1]), ".engine"),
    "engine empty": spoil(lambda data: b"", ".engine"),
    "engine gone": spoil(lambda data: None, ".engine"),
    "description gone": spoil(lambda data: None, ".json"),
    "description cut short": spoil(lambda data: data[:20], ".json"),
    "description no object": spoil(lambda data: b"[1]", ".json"),
    "description no text": spoil(lambda data: b"\xff\xfe\0", ".json"),
    "description of another": spoil(lambda data: data.replace(b'"capability": "8.9"', b'"capability": "8.0"'), ".json"),
}


@pytest.mark.parametrize("change", SPOILED.values(), ids=SPOILED.keys())
def test_a_damaged_engine_is_built_anew_with_a_note(
    change: Callable[[Path], None], machine: Machine, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    build(cache=tmp_path).close()
    for entry in entries(tmp_path):
        if entry.facts["what"] == "timing":
            entry.path.unlink()
            entry.path.with_suffix(".json").unlink()
    change(tmp_path)
    assert len(entries(tmp_path)) <= 1  # whatever is there can be listed
    for _ in range(2):
        with build(cache=tmp_path) as executor:
            same(executor, feeds())
    assert len(machine.builds) == 2
    assert caplog.text.count("the engine is built anew") == 1


def test_a_folder_that_cannot_be_written_to_is_told_before_the_build(machine: Machine, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OutputError, match=r"no engine can be kept here \(Not a directory\), so none is built; next: "):
        build(cache=tmp_path / "file")
    assert not machine.builds


def test_a_read_only_folder_serves_what_it_has(
    machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Root may write everywhere, so that it is read-only is said and not made."""

    def read_only(folder: Path) -> None:
        raise OutputError(f"{folder}: no") from PermissionError(13, "Permission denied")

    build(cache=tmp_path).close()
    monkeypatch.setattr(engine_cache, "writable_folder", read_only)
    build(cache=tmp_path).close()
    with pytest.raises(OutputError, match=r"no engine can be kept here \(Permission denied\)"):
        build(cache=tmp_path, most_rows=2)
    assert len(machine.builds) == 1


def test_a_full_disk_does_not_cost_the_engine(
    machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OutputError("no space")

    monkeypatch.setattr(engine_cache, "write_atomically", full)
    with build(cache=tmp_path) as executor:
        same(executor, feeds())
    assert "the engine was built, but could not be kept: no space" in caplog.text


PROCESS = """
import sys
from pathlib import Path
from fake_nvidia import Machine
from engine.executors.test_tensorrt import build, feeds, same
Machine(seconds=1.0, log=Path(sys.argv[2])).install(lambda modules, name, module: modules.__setitem__(name, module))
print("ready", flush=True)
sys.stdin.readline()
with build(cache=sys.argv[1]) as executor:
    same(executor, feeds())
"""


def test_of_two_processes_one_builds_and_the_other_waits(tmp_path: Path) -> None:
    log = tmp_path / "builds.txt"
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    command = [sys.executable, "-c", PROCESS, str(tmp_path / "cache"), str(log)]
    both = [
        subprocess.Popen(
            command,
            env=os.environ | {"PYTHONPATH": path},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    for process in both:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in both:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    said = [process.communicate(timeout=60)[1] for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    assert log.read_text() == "built\n"
    assert sum("another process is building this engine" in text for text in said) == 1


def test_a_lock_whose_holder_was_killed_does_not_last(machine: Machine, tmp_path: Path) -> None:
    build(cache=tmp_path).close()
    (engine,) = (tmp_path / "engines").glob("*.engine")
    engine.unlink()
    engine.with_suffix(".lock").touch()
    build(cache=tmp_path).close()
    assert len(machine.builds) == 2


# The real libraries, as far as they go without a GPU


def test_the_machine_that_is_not_there_has_nothing_that_real_ones_lack() -> None:
    real, fake = runtime("tensorrt_rtx", "tensorrt-rtx-cu13"), tensorrt(Machine(), *RTX)
    for name, kind in vars(fake).items():
        if not name.startswith("_"):
            assert {each for each in vars(kind) if not each.startswith("_")} <= set(dir(getattr(real, name))), name
    assert {"num_compute_capabilities", "builder_optimization_level"} <= set(dir(real.IBuilderConfig))
    assert {each.name for each in real.ILogger.Severity.__members__.values()} == {each.name for each in Severity}


def test_nor_has_its_cuda() -> None:
    real = runtime("cuda.bindings.runtime", "cuda-bindings")
    fake = cuda(Machine())
    assert {name for name in vars(fake) if not name.startswith("_")} <= set(dir(real))
    for kind in ("cudaError_t", "cudaMemcpyKind"):
        for each in getattr(fake, kind):
            assert int(getattr(getattr(real, kind), each.name)) == int(each)
    assert {*UNFIT, NO_MEMORY} <= {each.name for each in real.cudaError_t}


@pytest.fixture
def library() -> Library:
    """TensorRT for RTX, which builds without a GPU, so these builds are real."""
    runtime("tensorrt_rtx", "tensorrt-rtx-cu13")
    return Library("tensorrt-rtx")


@pytest.mark.parametrize("capability", ["8.6", "12.0"])
def test_gradient_models_build_ahead_of_time(capability: str, library: Library) -> None:
    model = gradient_model(classifier(), preprocess=None)
    engine = build_ahead(model, capability, most_rows=4)
    assert engine[:4] == b"vtrt"
    assert len(engine) > 10_000
    options = {"workspace": "64", "builder_optimization_level": "2"}
    assert build_ahead(model.SerializeToString(), capability, tf32=True, options=options)[:4] == b"vtrt"


@pytest.mark.parametrize("name", ["cifar10/models/resnet20_cifar10", "imagenet/models/squeezenet1_1_caffe"])
def test_gradient_models_of_real_classifiers_build_ahead_of_time(name: str, library: Library) -> None:
    path = DATA / f"{name}.onnx"
    if not path.is_file():
        pytest.skip(f"{path.name} is not at hand (../shared/data)")
    assert build_ahead(gradient_model(path), "8.9", most_rows=32)[:4] == b"vtrt"


def test_the_parser_sees_the_inputs_and_outputs_of_a_gradient_model(library: Library) -> None:
    """int64 stays int64: it did not before TensorRT 10."""
    network = library.make("Builder").create_network(0)
    parser = parse(library, network, gradient_model(classifier(), preprocess=None).SerializeToString(), None)
    inputs = [network.get_input(i) for i in range(network.num_inputs)]
    outputs = [network.get_output(i) for i in range(network.num_outputs)]
    assert {t.name: (t.dtype.name, tuple(t.shape)) for t in (*inputs, *outputs)} == {
        "x": ("FLOAT", (-1, 3, 8, 8)),
        "onnxplain_target": ("FLOAT", (-1, 5)),
        "onnxplain_objective": ("INT64", (-1,)),
        "logits": ("FLOAT", (-1, 5)),
        "value": ("FLOAT", (-1,)),
        "gradient": ("FLOAT", (-1, 3, 8, 8)),
    }
    del parser


def test_bool_and_int64_build_ahead_of_time(library: Library) -> None:
    assert build_ahead(MODEL, "8.9")[:4] == b"vtrt"


def test_weights_in_files_build_ahead_of_time(tmp_path: Path, library: Library) -> None:
    model = with_weights(tmp_path / "model.onnx", 2.0)
    assert build_ahead(model, "8.9", folder=tmp_path)[:4] == b"vtrt"
    with pytest.raises(BackendFailed, match="Failed to import initializer: w"):
        build_ahead(model, "8.9", folder=tmp_path / "absent")


def test_the_real_parser_names_every_refused_node(library: Library) -> None:
    with pytest.raises(BackendFailed, match=r"(?s)  Odd \(node odd0\): .*\n  Even \(node odd1\): .*\nnext: "):
        build_ahead(classifier(extra=["Odd", "Even"]), "8.9")


def test_an_unknown_compute_capability(library: Library) -> None:
    with pytest.raises(UsageError, match=r"compute capability 9\.0: tensorrt_rtx .* knows 7\.5, 8\.0, .*12\.1"):
        build_ahead(MODEL, "9.0")


def test_what_is_no_engine_is_refused_by_the_real_runtime(library: Library) -> None:
    """Its first words say why; those after them do not."""
    assert library.make("Runtime").deserialize_cuda_engine(b"no engine" * 100) is None
    assert "magicTag" in library.errors[0]
