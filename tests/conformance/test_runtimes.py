"""What rules emit, on the runtimes beside ONNX Runtime's CPU: by the tables of portability, and by the runtimes.

TensorRT's parser comes from TensorRT for RTX, which needs no GPU to read a model. Whatever is absent is skipped, unless
ONNXPLAIN_REQUIRE_RUNTIMES wants it: `ONNXPLAIN_REQUIRE_RUNTIMES=openvino,tensorrt_rtx pytest tests/conformance`.
"""

from __future__ import annotations

import json
import subprocess
import sys
import warnings
from collections import Counter
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from conformance.samples import SAMPLES
from conformance.samples.sample import Sample
from frameworks import runtime, wanted

from onnxplain.adapters.gradient.differentiate import differentiate
from onnxplain.adapters.gradient.expr import PREFIX
from onnxplain.adapters.gradient.portability import OLDEST, TABLES, TYPES, Runtime, unsupported
from onnxplain.adapters.gradient.registry import ALLOWED
from onnxplain.adapters.gradient.steps import line_step, walk_step
from onnxplain.engine.executors.onnxruntime import OnnxRuntimeExecutor
from onnxplain.errors import BackendFailed

EPS32 = float(np.finfo(np.float32).eps)
NEWEST = onnx.defs.onnx_opset_version()
VARIANTS = [(sample, symbolic) for sample in SAMPLES for symbolic in ((False, True) if sample.free else (False,))]

every_variant = pytest.mark.parametrize(
    ("sample", "symbolic"), VARIANTS, ids=[f"{sample.id}{':symbolic' * symbolic}" for sample, symbolic in VARIANTS]
)


@cache
def gradient(sample: Sample, symbolic: bool) -> onnx.ModelProto:
    return differentiate(sample.model(np.float32, symbolic=symbolic), wrt=[f"x{i}" for i in sample.wanted])


# By the tables


@pytest.mark.parametrize("name", TABLES)
@every_variant
def test_what_rules_emit_runs_on_cuda_and_tensorrt(sample: Sample, symbolic: bool, name: Runtime) -> None:
    """Every node of the backward half is one that the table has, in the very form that is emitted.

    But for what holds of the model itself: the gradient of a dilated pool has dilated pools, and TensorRT has none.
    """
    found = unsupported(ir.from_proto(gradient(sample, symbolic)), name)
    backward = {(left.op, left.why) for left in found if left.node.startswith(PREFIX)}
    assert backward <= {(left.op, left.why) for left in found if not left.node.startswith(PREFIX)}


@pytest.mark.parametrize("opset", range(OLDEST, NEWEST + 1))
def test_at_newer_opsets_cuda_lags_for_max_pool_only(opset: int) -> None:
    """A model keeps its opset if that is newer than 18, so what rules emit is of that opset too."""
    table = TABLES["cuda"]
    versions = {name: onnx.defs.get_schema(name, opset, "").since_version for name in ALLOWED}
    known = {name: version for name, version in versions.items() if version <= table.opset}
    lagging = {name for name, v in known.items() if not any(row.first <= v <= row.last for row in table.rows[name])}
    assert lagging == ({"MaxPool"} if opset >= 22 else set())
    assert known == versions or opset > table.opset


KERNELS = """
import json
from onnxruntime.capi import onnxruntime_pybind11_state as state
kernels = [k for k in state.get_all_opkernel_def() if k.provider == "CUDAExecutionProvider" and not k.domain]
print(json.dumps([[k.op_name, *k.version_range, k.type_constraints] for k in kernels]))
"""


def test_the_cuda_table_is_the_kernel_registry_of_onnx_runtime() -> None:
    """In another process: listing kernels opens every provider that was built in, which may crash without its GPU."""
    onnxruntime = runtime("onnxruntime", "onnxruntime-gpu")
    listed = subprocess.run([sys.executable, "-c", KERNELS], capture_output=True, text=True, check=False)
    kernels = json.loads(listed.stdout) if listed.returncode == 0 else []
    if not kernels and not wanted("cuda"):
        pytest.skip("this ONNX Runtime lists no CUDA kernels (pip install onnxruntime-gpu==1.31.1, on a GPU)")
    assert onnxruntime.__version__.startswith("1.31"), "the table is that of another version"
    open_ended = 2**31 - 1
    for schema in in_force():
        version = schema.since_version
        matching = [
            types
            for op_type, first, last, types in kernels
            if op_type == schema.name and (first == version or first < version <= last < open_ended)
        ]
        rows = TABLES["cuda"].rows.get(schema.name, ())
        row = next((row for row in rows if row.first <= version <= row.last), None)
        assert bool(matching) == (row is not None), (schema.name, version)
        if row is None:
            continue
        for constraint in schema.type_constraints:
            parameter, every = constraint.type_param_str, constraint.allowed_type_strs
            possible = {kind[7:-1] for kind in every} & TYPES  # of "tensor(...)"
            theirs = {kind[7:-1] for types in matching for kind in types.get(parameter, every)} & possible
            assert theirs == row.types.get(parameter, possible) & possible, (schema.name, version, parameter)


def in_force() -> list[onnx.defs.OpSchema]:
    """Every version of every operator that is in force at some opset of the tables."""
    found = {}
    for name in {schema.name for schema in onnx.defs.get_all_schemas() if not schema.domain}:
        for opset in range(OLDEST, NEWEST + 1):
            if onnx.defs.has(name, opset, ""):
                schema = onnx.defs.get_schema(name, opset, "")
                found[name, schema.since_version] = schema
    return [schema for schema in found.values() if not schema.deprecated]


# TensorRT's parser


@pytest.fixture(scope="session")
def parse() -> Callable[[onnx.ModelProto], list[str]]:
    """What TensorRT's parser has against a model; nothing, if it takes it."""
    trt = runtime("tensorrt_rtx", "tensorrt-rtx-cu13")
    logger = trt.Logger(trt.Logger.INTERNAL_ERROR)
    builder = trt.Builder(logger)

    def complaints(model: onnx.ModelProto) -> list[str]:
        network = builder.create_network(0)  # the parser writes into it, and does not keep it alive
        parser = trt.OnnxParser(network, logger)
        if parser.parse(model.SerializeToString()):
            return []
        return [parser.get_error(i).desc() for i in range(parser.num_errors)] or ["no reason given"]

    return complaints


@every_variant
def test_tensorrt_reads_the_gradient_of_whatever_it_reads(sample: Sample, symbolic: bool, parse: Any) -> None:
    """What it refuses, it refuses without the gradient too, and the table knows."""
    model = gradient(sample, symbolic)
    refused, expected = parse(model), {left.why for left in unsupported(ir.from_proto(model), "tensorrt")}
    if refused:
        assert parse(sample.model(np.float32, symbolic=symbolic)), refused
    assert bool(refused) == bool(expected), (refused, expected)


@pytest.mark.parametrize("make", [walk_step, line_step])
def test_tensorrt_reads_the_step_models(make: Any, parse: Any) -> None:
    assert parse(make((3, 224, 224), np.dtype(np.float32))) == []


# Node cases where the parser of TensorRT for RTX is known to differ from that of TensorRT.
RTX_ACCEPTS = ("for int8", "queries that are not 4-D", "past keys, past values or lengths", "layout = 1")
RTX_REFUSES = {
    "DeformConv": "Plugin not found",
    "Identity": "convert ONNX date type",  # of a sequence
    "RoiAlign": "plugin was not found",
}


def test_the_tensorrt_table_agrees_with_the_parser_on_onnx_s_own_node_cases(parse: Any) -> None:
    """The table against every one-node case of ONNX, raised to opset 18 where that is the same operator."""
    tally: Counter[str] = Counter()
    bad = []
    for name, model in node_cases():
        (node,) = model.graph.node
        expected = [left.why for left in unsupported(ir.from_proto(model), "tensorrt")]
        refused = parse(model)
        if any("not known" in why for why in expected):
            tally["not known"] += 1
        elif bool(expected) == bool(refused):
            tally["agree"] += 1
        elif expected and any(what in expected[0] for what in RTX_ACCEPTS):
            tally["RTX accepts more"] += 1
        elif refused and RTX_REFUSES.get(node.op_type, "-") in refused[0]:
            tally["RTX accepts less"] += 1
        else:
            bad.append((name, expected, refused))
    assert not bad, bad
    assert tally["agree"] >= 600, tally


def node_cases() -> list[tuple[str, onnx.ModelProto]]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from onnx.backend.test.case.node import collect_testcases

        cases = collect_testcases(None)
    found = []
    for case in cases:
        if len(case.model.graph.node) != 1 or case.model.graph.node[0].domain or not case.data_sets:
            continue
        model = onnx.ModelProto()
        model.CopyFrom(case.model)
        graph, imported = model.graph, next(o for o in model.opset_import if not o.domain)
        op_type = graph.node[0].op_type
        if imported.version < OLDEST and (
            onnx.defs.get_schema(op_type, OLDEST, "").since_version
            == onnx.defs.get_schema(op_type, imported.version, "").since_version
        ):
            imported.version = OLDEST
        # axes, sizes and the like are constants in models, while the cases feed them
        for value, x in list(zip(graph.input, case.data_sets[0][0], strict=True))[1:]:
            if isinstance(x, np.ndarray | np.generic) and x.dtype in (np.int64, np.int32, np.bool_, np.uint8, np.int8):
                graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(x), value.name))
                graph.input.remove(value)
        found.append((case.name, model))
    return found


# OpenVINO

# Operators whose values OpenVINO 2026.4 has wrong in some case, and whose gradient is made of these values: LpPool with
# ceil_mode, ReduceL2 with noop_with_empty_axes. Of others it has the values wrong and the gradient right.
OTHER_VALUES = {"LpPool", "ReduceL2"}


@pytest.fixture(scope="session")
def openvino() -> Callable[[onnx.ModelProto, dict[str, Any]], dict[str, Any]]:
    """Run a model on OpenVINO's CPU device in float32."""
    ov = runtime("openvino", "openvino")
    core = ov.Core()
    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}

    def run(model: onnx.ModelProto, feeds: dict[str, Any]) -> dict[str, Any]:
        compiled = core.compile_model(core.read_model(model.SerializeToString()), "CPU", settings)
        # An input that goes straight out loses its name, and one that has no effect is no input any more.
        names = [next((name for name in port.get_names() if name in feeds), None) for port in compiled.inputs]
        rest = iter([x.name for x in model.graph.input if x.name not in names])
        values = compiled([feeds[next(rest) if name is None else name] for name in names])
        return {y.name: values[i] for i, y in enumerate(model.graph.output)}

    return run


@every_variant
def test_openvino_gives_the_gradient_of_onnx_runtime(sample: Sample, symbolic: bool, openvino: Any) -> None:
    """In float32, at float noise; what it refuses or reads otherwise, it does so without the gradient too."""
    model, alone = gradient(sample, symbolic), sample.model(np.float32, symbolic=symbolic)
    feeds = sample.feeds(np.float32)
    try:
        forward = OnnxRuntimeExecutor(alone, threads=1, optimise=False)
    except BackendFailed:
        pytest.skip("ONNX Runtime does not run it")
    rng = np.random.default_rng(7)
    feeds |= {f"grad_{name}": rng.uniform(-1, 1, y.shape).astype(y.dtype) for name, y in forward(feeds).items()}
    want = OnnxRuntimeExecutor(model, threads=1, optimise=False)(feeds)
    try:
        got = openvino(model, feeds)
    except RuntimeError:
        with pytest.raises(RuntimeError):
            openvino(alone, sample.feeds(np.float32))
        return
    far = {name.startswith("grad_") for name, y in want.items() if not close(got[name], y)}
    assert True not in far or (False in far and sample.op in OTHER_VALUES)


def close(a: Any, b: Any) -> bool:
    within = {"rtol": 0, "atol": 64 * EPS32 * np.abs(b).max(initial=0), "equal_nan": True}
    return a.shape == b.shape and bool(np.allclose(a, b, **within))
