"""TensorRT (NVIDIA's own, versions 10 and 11, and that for RTX) and its builder. The only file that imports it.

An engine is built from a gradient model, or its forward half, for one kind of GPU and batches of 1 to so many rows. The
types are those of the graph (strong typing): precision is a matter of the graph, only TF32 is a switch here.
"""

from __future__ import annotations

import importlib
import logging
import os
import re
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from threading import get_ident
from typing import Any, NamedTuple

import onnx

from onnxplain.engine.executors.engine_cache import EngineCache
from onnxplain.engine.executors.place import TENSORRT, TENSORRT_RTX
from onnxplain.errors import BackendFailed, BackendMissing, DeviceMissing, OutOfMemory, UsageError, importing

LOG = logging.getLogger(__name__)
MODULES = {TENSORRT: "tensorrt", TENSORRT_RTX: "tensorrt_rtx"}
MAJORS = {TENSORRT: (10, 11), TENSORRT_RTX: (1,)}
KEPT = 200  # lines of the log
# How TensorRT words it: the allocation itself, and the builder's end after tactics that it had no room for.
NO_MEMORY = re.compile(
    r"out ?of ?memory|could not be allocated|failed_?allocation|bad_?alloc|ErrorMemoryAllocation", re.I
)
NO_ROOM = re.compile(r"insufficient memory", re.I)
NO_TACTIC = "Could not find any implementation"


class Library:
    """A TensorRT that is installed, and what it says.

    Raises:
        BackendMissing: it is not installed.
        DeviceMissing: its libraries are missing, or it is of a major version that is not known here.
    """

    def __init__(self, runtime: str) -> None:
        name, majors = MODULES[runtime], MAJORS[runtime]
        try:
            with importing(name, runtime):
                self.module: Any = importlib.import_module(name)
        except BackendMissing as error:
            cause = error.__cause__
            if isinstance(cause, ModuleNotFoundError) and cause.name == name:
                raise
            raise broken(name, runtime, cause or error) from cause
        except OSError as error:
            raise broken(name, runtime, error) from error
        self.runtime = runtime
        self.version: str = self.module.__version__
        self.major = int(self.version.partition(".")[0])
        if self.major not in majors:
            raise DeviceMissing(
                f"{name} {self.version}: only version {' or '.join(map(str, majors))} can be used; "
                f'next: pip install "onnxplain[{runtime}]"'
            )
        self.log = the_logger(self.module)
        self.begin()

    def __str__(self) -> str:
        return f"{MODULES[self.runtime]} {self.version}"

    def begin(self) -> None:
        """What was said before is not about what comes now."""
        self.before = self.log.count

    @property
    def said(self) -> list[Line]:
        """Warnings and errors since `begin`: those of this thread if there are any, else those of all."""
        lines = [line for line in tuple(self.log.lines) if line.number > self.before]
        return [line for line in lines if line.thread == get_ident()] or lines

    @property
    def errors(self) -> list[str]:
        return [line.text for line in self.said if line.error]

    def make(self, kind: str) -> Any:
        """A `Builder` or `Runtime`."""
        try:
            return getattr(self.module, kind)(self.log)
        except TypeError as error:  # what the bindings make of a constructor that fails
            raise self.failed(f"start its {kind.lower()}") from error

    def need(self, made: Any, what: str) -> Any:
        """What TensorRT made, which is None or False where it failed."""
        if made is None or made is False:
            raise self.failed(what)
        return made

    def failed(self, what: str) -> BackendFailed:
        """What TensorRT could not do, in its last words."""
        self.check_memory(what)
        return BackendFailed(f"{self} could not {what}: {self.errors[-1] if self.errors else 'it gave no reason'}")

    def check_memory(self, what: str) -> None:
        """Raise `OutOfMemory` if that is what the errors are about."""
        errors = self.errors
        full = [text for text in errors if NO_MEMORY.search(text)]
        if not full and any(NO_TACTIC in text for text in errors):
            full = [line.text for line in self.said if NO_ROOM.search(line.text) or NO_MEMORY.search(line.text)]
        if full:
            raise OutOfMemory(f"{self} could not {what}, the GPU has too little memory: {full[0]}")


class Line(NamedTuple):
    """Something that TensorRT said."""

    number: int
    thread: int
    error: bool  # or a warning
    text: str


@cache
def the_logger(module: Any) -> Any:
    """The logger of this process: TensorRT warns of a second one, and uses the first for what belongs to all.

    `lines` are its latest warnings and errors, `count` how many there were.
    """
    base, severity = module.ILogger, module.ILogger.Severity

    class Log(base):  # type: ignore[misc, valid-type]
        def __init__(self) -> None:
            base.__init__(self)
            self.lines: deque[Line] = deque(maxlen=KEPT)
            self.count = 0

        def log(self, level: Any, text: str) -> None:
            if level in (severity.INTERNAL_ERROR, severity.ERROR, severity.WARNING):
                self.count += 1
                self.lines.append(Line(self.count, get_ident(), level != severity.WARNING, text.strip()))
                LOG.debug("%s: %s", level, text)

    return Log()


def broken(name: str, runtime: str, error: BaseException) -> DeviceMissing:
    return DeviceMissing(
        f"{name} is installed, but its libraries cannot be loaded: {error}; next: the bindings and the libraries must "
        f'be of one version and of the CUDA of this machine: pip install --force-reinstall "onnxplain[{runtime}]"'
    )


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How an engine is built. `target` is the compute capability of a GPU that need not be here, such as `8.9`."""

    most_rows: int
    tf32: bool
    workspace: int | None = None  # MiB
    level: int | None = None
    target: str | None = None

    @classmethod
    def parse(cls, options: Mapping[str, str], *, most_rows: int, tf32: bool, target: str | None = None) -> Recipe:
        """Raises `UsageError`."""
        known = {"workspace": (1, 1 << 24), "builder_optimization_level": (0, 5)}
        for name, text in options.items():
            if name not in known:
                raise UsageError(f"option {name}: TensorRT's builder takes {' and '.join(known)} here")
            low, high = known[name]
            if not (text.isascii() and text.isdecimal() and low <= int(text) <= high):
                raise UsageError(f"option {name}: expected a whole number from {low} to {high}, got {text!r}")
        if most_rows < 1:
            raise UsageError(f"batch size: expected at least 1, got {most_rows}")
        workspace, level = (int(options[name]) if name in options else None for name in known)
        return cls(most_rows=most_rows, tf32=tf32, workspace=workspace, level=level, target=target)

    def facts(self) -> dict[str, Any]:
        return {
            "rows": [1, self.most_rows, self.most_rows],
            "tf32": self.tf32,
            "workspace": self.workspace,
            "builder_optimization_level": self.level,
        }


@dataclass(frozen=True)
class Timing:
    """What TensorRT has timed on this device, kept in a cache."""

    store: EngineCache
    facts: Mapping[str, Any]

    def give(self, config: Any) -> None:
        """To a builder; an empty one if there is none, or if it is not one for this device after all."""
        for known in (self.store.get(self.facts) or b"", b""):
            cache = config.create_timing_cache(known)
            if cache is not None and config.set_timing_cache(cache, False):
                return
            LOG.warning("what was timed on this device cannot be used, and is timed anew")

    def keep(self, config: Any) -> None:
        cache = config.get_timing_cache()
        if cache is not None:
            self.store.put(self.facts, bytes(cache.serialize()))


def build_ahead(
    model: onnx.ModelProto | bytes,
    capability: str,
    *,
    most_rows: int = 8,
    tf32: bool = False,
    options: Mapping[str, str] | None = None,
    folder: str | os.PathLike[str] | None = None,
) -> bytes:
    """The engine of a model for a GPU of that compute capability, such as `8.9`, built where there is no GPU at all.

    TensorRT for RTX can do that; it compiles the rest on the GPU when the engine is loaded
    (`TensorRTExecutor.load(engine, place=Place("tensorrt-rtx"))`). The arguments are those of `TensorRTExecutor.build`.

    Raises:
        BackendMissing: TensorRT for RTX is not installed.
        UsageError: it does not know the compute capability, or an option.
        BackendFailed: it refuses the model.
    """
    trt = Library(TENSORRT_RTX)
    recipe = Recipe.parse(options or {}, most_rows=most_rows, tf32=tf32, target=capability)
    data = model if isinstance(model, bytes) else model.SerializeToString(deterministic=True)
    return build(trt, data, recipe, folder)


def build(
    trt: Library,
    model: bytes,
    recipe: Recipe,
    folder: str | os.PathLike[str] | None,
    *,
    timing: Timing | None = None,
) -> bytes:
    """A serialised engine."""
    trt.begin()
    builder = trt.make("Builder")
    network = trt.need(builder.create_network(network_flags(trt)), "create a network")
    parser = parse(trt, network, model, folder)
    config = configured(trt, builder, network, recipe)
    if timing:
        timing.give(config)
    engine = trt.need(builder.build_serialized_network(network, config), "build an engine")
    del parser  # it owns the weights
    if timing:
        timing.keep(config)
    return bytes(engine)


def network_flags(trt: Library) -> int:
    """Types as the graph says. From 11 on, and for RTX, there is nothing else."""
    if trt.runtime == TENSORRT_RTX or trt.major >= 11:
        return 0
    flags = trt.module.NetworkDefinitionCreationFlag
    return (1 << int(flags.EXPLICIT_BATCH)) | (1 << int(flags.STRONGLY_TYPED))


def parse(trt: Library, network: Any, model: bytes, folder: str | os.PathLike[str] | None) -> Any:
    """The parser, which has read the model into the network. Raises `BackendFailed` that lists every refused node."""
    parser = trt.module.OnnxParser(network, trt.log)
    beside = os.path.join(folder, "model.onnx") if folder is not None else None  # weights are looked for beside it
    if parser.parse(model, beside) if beside else parser.parse(model):
        return parser
    errors = [parser.get_error(i) for i in range(parser.num_errors)]
    lines = [
        f"  {e.node_operator()} (node {e.node_name()}): {e.desc()}" if e.node_operator() else f"  {e.desc()}"
        for e in errors
    ]
    raise BackendFailed(
        f"{trt} refuses the model:\n" + "\n".join(lines or trt.errors or ["  it gave no reason"]) + "\nnext: onnxplain "
        "inspect tells which nodes TensorRT lacks; export the model without them, or run it on cuda or cpu"
    )


def configured(trt: Library, builder: Any, network: Any, recipe: Recipe) -> Any:
    """The builder's configuration, with one profile: from 1 row to the most."""
    module = trt.module
    config = builder.create_builder_config()
    (config.set_flag if recipe.tf32 else config.clear_flag)(module.BuilderFlag.TF32)  # it is on unless it is cleared
    if recipe.workspace is not None:
        config.set_memory_pool_limit(module.MemoryPoolType.WORKSPACE, recipe.workspace << 20)
    if recipe.level is not None:
        config.builder_optimization_level = recipe.level
    if trt.runtime == TENSORRT_RTX:
        config.num_compute_capabilities = 1
        trt.need(config.set_compute_capability(target(trt, recipe.target), 0), "build for this compute capability")
    profile, free = builder.create_optimization_profile(), False
    for tensor in map(network.get_input, range(network.num_inputs)):
        shape = tuple(tensor.shape)
        if -1 in shape[1:]:
            raise BackendFailed(
                f"input {tensor.name}: {shape} has a free dimension besides the first; TensorRT needs it fixed"
            )
        if shape[:1] == (-1,):
            free = True
            profile.set_shape(tensor.name, *((rows, *shape[1:]) for rows in (1, recipe.most_rows, recipe.most_rows)))
    if free:
        trt.need(config.add_optimization_profile(profile) != -1, "use a profile")
    return config


def target(trt: Library, capability: str | None) -> Any:
    """TensorRT's name of a compute capability; None: that of the GPU that is here."""
    known = trt.module.ComputeCapability.__members__
    name = "CURRENT" if capability is None else f"SM{capability.replace('.', '')}"
    if name not in known:
        there = sorted(int(each[2:]) for each in known if each[2:].isdecimal())
        raise UsageError(
            f"compute capability {capability}: {trt} knows {', '.join(f'{c // 10}.{c % 10}' for c in there)}"
        )
    return known[name]
