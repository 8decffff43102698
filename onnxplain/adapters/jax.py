"""JAX: functions, with or without parameters; modules of Flax NNX and Linen, and of Equinox; all through jax2onnx."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from inspect import Parameter, signature
from pathlib import Path
from types import ModuleType
from typing import Any, TypeAlias

import numpy as np
import onnx

from onnxplain.adapters.export import Exported, export_original
from onnxplain.adapters.jax_windows import flatten_windows
from onnxplain.adapters.original import Original, require
from onnxplain.adapters.pytorch import first_line, quietly
from onnxplain.engine.requests import Array
from onnxplain.errors import ExportError, UsageError
from onnxplain.models.preprocess import PreprocessSpec

OPSET = 18
SWITCHES = ("use_running_average", "deterministic", "inference")  # of layers: False in training
EVALUATION = {"train": False, "training": False, "is_training": False} | dict.fromkeys(SWITCHES, True)  # of calls
# What jax2onnx has in the place of these functions takes all but the first argument by name, or stays there for good.
REPLACED = {
    "flax.linen": ("max_pool", "avg_pool"),
    "flax.nnx": ("max_pool", "avg_pool"),
    "jax.numpy": ("cumsum", "take"),
}
# Primitives that call a function, whose primitives are looked at one by one.
CALLS = frozenset({"checkpoint", "closed_call", "custom_jvp_call", "custom_vjp_call", "jit", "pjit", "remat2"})

Place: TypeAlias = tuple[ModuleType, str]


def export(
    model: Callable[..., Any],
    example: Array,
    out: str | os.PathLike[str],
    *,
    params: Any = None,
    preprocess: PreprocessSpec | None = None,
    labels: Sequence[str] | None = None,
    name: str | None = None,
    **how: Any,
) -> Exported:
    """Write the gradient model of a JAX classifier, checked against JAX's own outputs and gradients.

    Args:
        model: a function of images, or of `params` and images; a module of Flax NNX in evaluation mode; one of Linen,
            whose variables are `params`; or one of Equinox for a single image, in inference mode. It returns logits or
            probabilities, (N, K) or (K,) for Equinox. An argument such as `train` is given as evaluation wants it.
        example: images as it takes them, float32 (N, H, W, C) or (N, C, H, W), at which the export is checked.
        out: the gradient model's file.
        params: see `model`.
        preprocess: how a photo becomes an image, which is folded in; None: its input is taken as it is.
        labels: the names of the K classes.
        name: what messages and the file call the classifier; None: its own name.
        how: the other arguments of `export_original`.

    Raises:
        ExportError: it is in training mode, returns something else, cannot be exported, or its export differs from it.
        Otherwise as `export_original`.
    """
    made = original(model, example, params=params, preprocess=preprocess, labels=labels, name=name)
    return export_original(made, out, **how)


def original(
    model: Callable[..., Any],
    example: Array | None,
    *,
    params: Any = None,
    preprocess: PreprocessSpec | None = None,
    labels: Sequence[str] | None = None,
    name: str | None = None,
) -> Original:
    """A JAX classifier with its gradients and primitives; see `export`. Raises `ExportError` if it is none."""
    jax = require("jax", "jax")
    name = name or str(getattr(model, "__name__", type(model).__name__))
    if example is None:
        raise UsageError(f"{name}: nothing says how large its images are; next: give an example")
    example = np.ascontiguousarray(example, np.float32)
    function = as_function(model, params, name)

    def run(x: Any) -> Any:
        with jax.default_matmul_precision("highest"):
            return function(x)

    compiled = jax.jit(run)
    require_outputs(compiled, example, name)

    def gradients(images: Array, weights: Array) -> Array:
        _, back = jax.vjp(lambda x: run(x).reshape(weights.shape), images)
        return np.asarray(back(weights)[0])

    return Original(
        name=name,
        framework=f"JAX {jax.__version__}",
        image_shape=tuple(example.shape[1:]),
        write=lambda path: write(path, function, example.shape[1:], name),
        outputs=lambda images: np.asarray(compiled(images)).reshape(len(images), -1),
        gradients=gradients,
        layers=lambda images: primitives(run, images),
        images=example,
        preprocess=preprocess,
        labels=labels,
        provenance={"exporter": f"jax2onnx {version_of('jax2onnx')}"},
    )


def version_of(package: str) -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(package)
    except PackageNotFoundError:
        return "none"


def as_function(model: Callable[..., Any], params: Any, name: str) -> Callable[[Any], Any]:
    """A function of images (N, ...), whatever the model is. Raises `ExportError` for one in training mode."""
    import jax

    families = {cls.__module__.partition(".")[0] + "." + cls.__name__ for cls in type(model).__mro__}
    require_evaluation(model, families, name)
    if families & {"flax.Module", "equinox.Module"}:
        inputs = signature(type(model).__call__).parameters.values()
        how = {
            p.name: EVALUATION[p.name] for p in inputs if p.name in EVALUATION and p.kind is not Parameter.VAR_KEYWORD
        }
    else:
        how = {}
    linen = "flax.Module" in families and hasattr(model, "apply")
    if linen and params is None:
        raise ExportError(f"{name}: a module of Linen has no weights of its own; next: give its variables as params")
    if linen:
        variables = params if "params" in params else {"params": params}
        return lambda x: model.apply(variables, x, **how)  # type: ignore[attr-defined]
    if params is not None:
        return lambda x: model(params, x)
    if "equinox.Module" in families and "equinox._VmapWrapper" not in families:
        return jax.vmap(lambda x: model(x, **how))  # type: ignore[no-any-return]
    return lambda x: model(x, **how)


def require_evaluation(model: object, families: set[str], name: str) -> None:
    """Raise `ExportError` if a layer of a module is in training mode."""
    import jax

    inside: list[Any] = []
    if "flax.Module" in families and hasattr(model, "iter_modules"):
        inside = [module for _, module in model.iter_modules()]
    elif "equinox.Module" in families:
        inside = jax.tree_util.tree_leaves(model, is_leaf=lambda part: part is not model and hasattr(part, "inference"))
    training = [
        f"{type(module).__name__}.{switch}=False"
        for module in inside
        for switch in SWITCHES
        if getattr(module, switch, None) is False
    ]
    if training:
        raise ExportError(
            f"{name}: {len(training)} of its layers are in training mode, {training[0]} first; "
            "next: call .eval() on it (NNX), or equinox.nn.inference_mode"
        )


def require_outputs(run: Callable[[Any], Any], example: Array, name: str) -> None:
    """Raise `ExportError` unless a function gives floats (N, K)."""
    try:
        y = run(example)
    except Exception as error:
        raise ExportError(
            f"{name}: it raised {type(error).__name__} for images of shape {list(example.shape)}: {first_line(error)}; "
            "next: give an example as it takes them"
        ) from error
    shape = getattr(y, "shape", None)
    if shape is None:
        raise ExportError(
            f"{name}: it returns a {type(y).__name__}, expected one array of logits (N, K); "
            "next: wrap it in a function that returns the logits"
        )
    if len(shape) < 2 or shape[0] != len(example) or any(n != 1 for n in shape[2:]) or y.dtype != np.float32:
        raise ExportError(
            f"{name}: it returns {y.dtype} of shape {list(shape)} for {len(example)} images, expected float32 (N, K); "
            "next: give a classifier in float32"
        )


def write(path: Path, function: Callable[[Any], Any], shape: Sequence[int], name: str) -> Sequence[str]:
    """Write a function as ONNX."""
    converter = require("jax2onnx", "jax")
    names = {"input_names": ["input"], "output_names": ["outputs"]}
    try:
        # It sets jax_enable_x64 and sets it back to what it was here, for all threads: a new one has what all have.
        with quietly(), kept() as before, ThreadPoolExecutor(1) as alone:
            given = by_name(function, before)
            model = alone.submit(converter.to_onnx, given, inputs=[("N", *shape)], opset=OPSET, **names).result()
    except Exception as error:
        reason = first_line(error)
        batch = (
            "write its batch as x.shape[0] or -1, or take it out by jax.vmap, or " if "dim" in reason.lower() else ""
        )
        raise ExportError(
            f"{name}: jax2onnx cannot convert it ({reason}); next: {batch}replace what it does not know"
        ) from error
    flatten_windows(model)
    onnx.save(model, path)
    return ()


@contextmanager
def kept() -> Iterator[Mapping[Place, Callable[..., Any]]]:
    """The functions that jax2onnx replaces, which are there again afterwards."""
    places = [(sys.modules[module], name) for module in REPLACED if module in sys.modules for name in REPLACED[module]]
    before = {place: getattr(*place) for place in places}
    try:
        yield before
    finally:
        put(before)


def put(functions: Mapping[Place, Callable[..., Any]]) -> None:
    for (module, name), function in functions.items():
        setattr(module, name, function)


def by_name(function: Callable[[Any], Any], before: Mapping[Place, Callable[..., Any]]) -> Callable[[Any], Any]:
    """A function whose calls of what is replaced, as it was `before`, give all but the first argument by name."""

    def named(was: Callable[..., Any], now: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            (_, first), *others = signature(was).bind(*args, **kwargs).arguments.items()
            return now(first, **dict(others))

        return call

    def run(x: Any) -> Any:
        replaced = {place: getattr(*place) for place in before}
        put({place: named(before[place], now) for place, now in replaced.items()})
        try:
            return function(x)
        finally:
            put(replaced)

    return run


def primitives(function: Callable[[Any], Any], images: Array) -> Iterator[tuple[str, Array]]:
    """What each primitive makes of images, by the scopes that it stands in and its name, in order."""
    import jax

    closed = jax.make_jaxpr(function)(images)
    found: list[tuple[str, Any]] = []
    evaluate(closed.jaxpr, closed.consts, [images], "", found)
    for number, (name, output) in enumerate(found):
        if jax.numpy.issubdtype(output.dtype, np.floating) and output.ndim and output.shape[0] == len(images):
            yield f"{name} {number}", np.asarray(output)


def evaluate(
    jaxpr: Any, constants: Sequence[Any], inputs: Sequence[Any], scope: str, found: list[tuple[str, Any]]
) -> Any:
    """The outputs of a jaxpr. What its primitives make, and those of functions that it calls, is added to `found`."""
    values = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*constants, *inputs], strict=True))
    for equation in jaxpr.eqns:
        given = [v.val if hasattr(v, "val") else values[v] for v in equation.invars]
        where = f"{scope}{equation.source_info.name_stack}".rstrip("/")
        where = f"{where}/" if where else ""
        inner = equation.params.get("jaxpr", equation.params.get("call_jaxpr"))
        if equation.primitive.name in CALLS and inner is not None:
            outputs = evaluate(getattr(inner, "jaxpr", inner), getattr(inner, "consts", ()), given, where, found)
        else:
            with equation.ctx.manager:
                answer = equation.primitive.bind(*given, **equation.primitive.get_bind_params(equation.params))
            outputs = answer if equation.primitive.multiple_results else [answer]
            found += [(f"{where}{equation.primitive.name}", output) for output in outputs]
        values |= dict(zip(equation.outvars, outputs, strict=True))
    return [v.val if hasattr(v, "val") else values[v] for v in jaxpr.outvars]
