"""What is asked of each case. A step reads files of the cache and returns what it found, as plain JSON values."""

from __future__ import annotations

import hashlib
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from bench.coverage.table import RIGHT
from onnxplain.adapters.gradient.classifier import forward_model, gradient_model
from onnxplain.engine.drive import OBJECTIVE, TARGET
from onnxplain.engine.executors.onnxruntime import OnnxRuntimeExecutor
from onnxplain.engine.requests import Kind
from onnxplain.errors import NotDifferentiable, OnnxplainError

Array = NDArray[Any]
Arrays = Mapping[str, Array]
Found = dict[str, Any]
Call = Callable[[Arrays], Arrays]  # a loaded model: feeds -> outputs

ROUNDS = 3  # of the comparison of a gradient call with a forward call
PROFILE = (1, 8, 32)  # batch sizes: the smallest, what TensorRT-RTX tunes for, the largest


class Files:
    """Where the cache keeps what belongs to a model."""

    def __init__(self, folder: Path, name: str) -> None:
        self.classifier = folder / f"{name}.onnx"
        self.case = folder / f"{name}.npz"
        self.gradient = folder / "gradient" / f"{name}.onnx"  # our model, for the other runtimes
        self.answer = folder / "gradient" / f"{name}.npz"  # its digest, and what ONNX Runtime makes of it

    def digest(self) -> str | None:
        """That of the gradient model that is here."""
        return str(np.load(self.answer)["digest"]) if self.answer.exists() and self.gradient.exists() else None


def gradient(files: Files) -> Found:
    """Our gradient model: what it takes to make, whether it is right on ONNX Runtime, what a call costs."""
    classifier = onnx.load(files.classifier)
    found: Found = {
        "classifier": size_of(classifier),
        "opset": max(o.version for o in classifier.opset_import if o.domain in ("", "ai.onnx")),
    }
    start, start_cpu = time.perf_counter(), time.process_time()
    try:
        model = gradient_model(files.classifier)
    except NotDifferentiable as error:
        counts = Counter((gap.op, gap.why) for gap in error.gaps)
        gaps = [{"op": op, "why": why, "nodes": n} for (op, why), n in sorted(counts.items())]
        return found | {"gaps": gaps, "seconds": time.perf_counter() - start}
    except OnnxplainError as error:
        return found | {"refused": str(error)}
    found |= {"seconds": time.perf_counter() - start, "cpu_seconds": time.process_time() - start_cpu}
    digest = digest_of(model)
    found |= {"gradient": size_of(model), "batch": fixed_batch(model), "digest": digest}
    if files.digest() == digest and files.answer.stat().st_mtime > files.case.stat().st_mtime:
        return found | {"same": True}
    files.gradient.parent.mkdir(exist_ok=True)
    onnx.save(model, files.gradient)
    case = np.load(files.case)
    executor = OnnxRuntimeExecutor(model, threads=1)
    feeds = feeds_of(model, case)
    answer = batched(executor, feeds, fixed_batch(model))
    np.savez(files.answer, digest=digest, logits=answer["logits"], gradient=answer["gradient"])
    found |= {"logits_error": error_of(answer["logits"], case["logits"])}
    found |= {"cosine": cosines(answer["gradient"], case["gradient"])}
    found |= {"torch_float32": cosines(case["gradient32"], case["gradient"])}
    forward = OnnxRuntimeExecutor(forward_model(model), threads=1)
    image = {name: x for name, x in feeds.items() if name in forward.inputs}
    return found | {"gradient_to_forward": cost(executor, feeds, forward, image, fixed_batch(model))}


def openvino(files: Files) -> Found:
    """Whether OpenVINO on the CPU, in float32, agrees with ONNX Runtime."""
    import openvino as ov

    model, case, answer = onnx.load(files.gradient), np.load(files.case), np.load(files.answer)

    def load(model: onnx.ModelProto) -> Call:
        core, names = ov.Core(), [output.name for output in model.graph.output]
        compiled = core.compile_model(
            core.read_model(model.SerializeToString()), "CPU", {"INFERENCE_PRECISION_HINT": "f32"}
        )

        def call(feeds: Arrays) -> Arrays:
            results = compiled(dict(feeds))
            return {name: results[name] for name in names}

        return call

    start = time.perf_counter()
    try:
        call = load(model)
    except RuntimeError as error:
        _, _, what = str(error).partition("While validating ")
        return {"refused": what or str(error)}
    seconds = time.perf_counter() - start
    ours = batched(call, feeds_of(model, case), fixed_batch(model))
    found = {
        "seconds": seconds,
        "logits_error": error_of(ours["logits"], answer["logits"]),
        "cosine": cosines(ours["gradient"], answer["gradient"]),
        "cosine_with_autograd": cosines(ours["gradient"], case["gradient"]),
    }
    if min(found["cosine"]) < RIGHT:
        from bench.coverage.kinks import kinks

        found["kinks"] = kinks(files, load)
    return found


def tensorrt_parse(files: Files) -> Found:
    """Whether TensorRT-RTX parses the model: quick, where a build is not."""
    return tensorrt(files, build=False)


def tensorrt(files: Files, build: bool = True) -> Found:
    """Whether TensorRT-RTX parses the model and builds an engine, ahead of time: that needs no GPU."""
    import tensorrt_rtx as trt

    builder = trt.Builder(trt.Logger(trt.Logger.ERROR))
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, builder.logger)
    start = time.perf_counter()
    if not parser.parse_from_file(str(files.gradient)):
        own = {node.name for node in onnx.load(files.classifier, load_external_data=False).graph.node}
        first, *more = [parser.get_error(i) for i in range(parser.num_errors)]
        where = "the classifier's own" if first.node_name() in own else "our"
        return {"refused": f"{where} {first.node_operator()} ({1 + len(more)} nodes): {first.desc()}"}
    parsed = time.perf_counter()
    found = {"parse_seconds": parsed - start, "layers": network.num_layers}
    if not build:
        return found
    config = builder.create_builder_config()
    config.num_compute_capabilities = 1
    config.set_compute_capability(trt.ComputeCapability.SM89, 0)
    profile = builder.create_optimization_profile()
    for i in range(network.num_inputs):
        tensor = network.get_input(i)
        if -1 in tensor.shape:
            profile.set_shape(tensor.name, *((n, *tuple(tensor.shape)[1:]) for n in PROFILE))
    config.add_optimization_profile(profile)
    engine = builder.build_serialized_network(network, config)
    if engine is None:
        return {"refused": "the builder returned no engine"}
    return found | {"build_seconds": time.perf_counter() - parsed, "engine_bytes": engine.nbytes}


def onnx_ad(files: Files) -> Found:
    """The same gradient by the package onnx-ad: with the batch as it is, or fixed at 2 where it refuses that."""
    import onnx_ad as peer

    case = np.load(files.case)
    classifier = onnx.load(files.classifier)
    found: Found = {"batch": "symbolic"}
    start = time.process_time()
    try:
        model = peer.reverse(classifier, layout="onnx")
    except Exception as error:
        if fixed_batch(classifier):
            raise
        found = {"batch": "fixed", "symbolic_refused": f"{type(error).__name__}: {error}"[:300]}
        start = time.process_time()
        model = peer.reverse(with_batch(classifier, len(case["x"])), layout="onnx")
    found |= {"cpu_seconds": time.process_time() - start, "gradient": size_of(model)}
    executor = OnnxRuntimeExecutor(model, threads=1)
    (image,) = (v.name for v in classifier.graph.input if v.name in executor.inputs)
    (seed,) = (name for name in executor.inputs if name != image)
    (output,) = (name for name in executor.outputs if name.endswith(image) and name != image)
    rank = len(executor.inputs[seed].shape)
    weights = case["target"].reshape(*case["target"].shape, *(1 for _ in range(rank - 2)))
    feeds = {image: case["x"], seed: weights}
    fixed = fixed_batch(model)
    answer = batched(executor, feeds, fixed)
    found |= {"cosine": cosines(answer[output].reshape(case["gradient"].shape), case["gradient"])}
    plain = OnnxRuntimeExecutor(classifier, threads=1)
    return found | {"gradient_to_forward": cost(executor, feeds, plain, {image: case["x"]}, fixed)}


def kinks(files: Files) -> Found:
    """Whether what is lost is lost at the kinks of ReLU. Only asked where the gradient is not right."""
    from bench.coverage.kinks import kinks

    return kinks(files, lambda model: OnnxRuntimeExecutor(model, threads=1))


STEPS: dict[str, Callable[[Files], Found]] = {
    "gradient": gradient,
    "kinks": kinks,
    "openvino": openvino,
    "tensorrt_parse": tensorrt_parse,
    "tensorrt": tensorrt,
    "onnx_ad": onnx_ad,
}
LIMITS = {
    "gradient": 300,
    "kinks": 120,
    "openvino": 200,
    "tensorrt_parse": 60,
    "tensorrt": 120,
    "onnx_ad": 60,
}  # seconds
PEERS = ("onnx_ad",)  # steps that do not concern our gradient model
PACKAGES = ("onnxplain", "onnx", "onnx-ir", "numpy", "onnxruntime", "openvino", "tensorrt_rtx_cu13", "onnx-ad")


def versions() -> dict[str, str]:
    """Of every package that a result depends on."""
    return {name: version(name) for name in PACKAGES}


def digest_of(model: onnx.ModelProto) -> str:
    """The same for two models that compute the same in the same way, whatever their metadata say."""
    opsets = sorted((o.domain, o.version) for o in model.opset_import)
    return hashlib.sha256(model.graph.SerializeToString(deterministic=True) + repr(opsets).encode()).hexdigest()[:16]


def size_of(model: onnx.ModelProto) -> Found:
    """Nodes, and bytes of weights."""
    constants = [a.t for node in model.graph.node if node.op_type == "Constant" for a in node.attribute]
    tensors = [*model.graph.initializer, *constants]
    return {"nodes": len(model.graph.node), "weight_bytes": sum(len(t.raw_data) or t.ByteSize() for t in tensors)}


def feeds_of(model: onnx.ModelProto, case: Arrays) -> dict[str, Array]:
    """The inputs of a gradient model: the images, and the weights of their logits."""
    (image,) = (v.name for v in model.graph.input if v.name not in (TARGET, OBJECTIVE))
    codes = np.full(len(case["x"]), int(Kind.LOGIT), np.int64)
    return {image: case["x"], TARGET: case["target"], OBJECTIVE: codes}


def fixed_batch(model: onnx.ModelProto) -> int:
    """The batch size of the image input, 0 if it is symbolic."""
    weights = {t.name for t in model.graph.initializer}
    image = next(v for v in model.graph.input if v.name not in weights)
    return int(image.type.tensor_type.shape.dim[0].dim_value)


def batched(call: Call, feeds: Arrays, fixed: int) -> dict[str, Array]:
    """One call, or one for each image where the model takes one at a time."""
    if fixed != 1:
        return dict(call(feeds))
    parts = [call(part) for part in singly(feeds)]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0] if parts[0][name].ndim}


def singly(feeds: Arrays) -> Iterator[dict[str, Array]]:
    for i in range(len(next(iter(feeds.values())))):
        yield {name: x[i : i + 1] for name, x in feeds.items()}


def with_batch(model: onnx.ModelProto, batch: int) -> onnx.ModelProto:
    """A copy with a fixed batch, and no shapes that say otherwise."""
    copy = onnx.ModelProto.FromString(model.SerializeToString())
    copy.graph.input[0].type.tensor_type.shape.dim[0].dim_value = batch
    for output in copy.graph.output:
        output.type.tensor_type.shape.dim[0].dim_value = batch
    copy.graph.ClearField("value_info")
    return onnx.shape_inference.infer_shapes(copy, data_prop=True)


def cosines(a: Array, b: Array) -> list[float]:
    """The cosine of each image's gradient with its reference."""
    pairs = zip(a.astype(np.float64), b.astype(np.float64), strict=True)
    return [float(np.vdot(p, q) / (np.linalg.norm(p) * np.linalg.norm(q))) for p, q in pairs]


def error_of(a: Array, b: Array) -> float:
    """The largest difference, relative to the largest number."""
    return float(np.abs(a - b).max() / np.abs(b).max())


def cost(gradient: Call, feeds: Arrays, forward: Call, image: Arrays, fixed: int) -> float:
    """Processor time of a gradient call over that of a forward call: both run in turn, and the cheapest of each counts.

    On one thread that is the time it takes, less what a shared machine gives to others meanwhile.
    """
    ours: list[float] = []
    theirs: list[float] = []
    for _ in range(ROUNDS):
        with timed(ours):
            batched(gradient, feeds, fixed)
        with timed(theirs):
            batched(forward, image, fixed)
    return min(ours) / min(theirs)


@contextmanager
def timed(seconds: list[float]) -> Iterator[None]:
    start = time.process_time()
    yield
    seconds.append(time.process_time() - start)
