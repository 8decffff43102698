"""PyTorch: modules in evaluation mode, and programs of `torch.export`.

The exporter that captures the program (`dynamo=True`) is asked first; tracing, which keeps what the example happens to
do, is the fallback, and says why it was needed.
"""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from inspect import Parameter, signature
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import numpy as np

from onnxplain.adapters.export import Exported, export_original
from onnxplain.adapters.original import Original, require
from onnxplain.engine.executors.onnxruntime import OnnxRuntimeExecutor
from onnxplain.engine.requests import Array
from onnxplain.errors import ExportError, InputError, OnnxplainError, UsageError
from onnxplain.models.preprocess import PreprocessSpec

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torch.export import ExportedProgram

OPSET = 18
MESSAGE = 1_800_000_000  # bytes of weights that surely fit into one file
NAMES = {"input_names": ["input"], "output_names": ["logits"]}
ROUNDING = 1e-3  # of the largest output: far above float noise, and below what a batch that is baked in does


def export(
    model: nn.Module | ExportedProgram,
    example: Array,
    out: str | os.PathLike[str],
    *,
    preprocess: PreprocessSpec | None = None,
    labels: Sequence[str] | None = None,
    name: str | None = None,
    **how: Any,
) -> Exported:
    """Write the gradient model of a PyTorch classifier, checked against PyTorch's own outputs and gradients.

    Args:
        model: a module in evaluation mode on the CPU, in float32, or a program of `torch.export` with a free batch. It
            returns logits or probabilities (N, K).
        example: images as it takes them, float32 (N, C, H, W), at which the export is checked: real ones tell more.
        out: the gradient model's file.
        preprocess: how a photo becomes an image, which is folded in; None: its input is taken as it is.
        labels: the names of the K classes.
        name: what messages and the file call the classifier; None: its class.
        how: the other arguments of `export_original`.

    Raises:
        ExportError: it is in training mode, returns something else, cannot be exported, or its export differs from it.
        Otherwise as `export_original`.
    """
    return export_original(original(model, example, preprocess=preprocess, labels=labels, name=name), out, **how)


def load(path: str | os.PathLike[str], *, trust_code: bool = False) -> Original:
    """A program that `torch.export.save` wrote. Such a file may hold pickles, which PyTorch would run.

    Raises:
        UsageError: the file is not trusted.
        InputError: it cannot be read.
    """
    if not trust_code:
        raise UsageError(
            f"{path}: a program of torch.export may hold pickles, which run code when they are read; next: add "
            "--trust-code (trust_code=True) if you know where it comes from"
        )
    torch = require("torch", "pytorch")
    try:
        with quietly():
            program = torch.export.load(path)
    except Exception as error:
        raise InputError(f"{path}: not a program of torch.export ({first_line(error)}); next: save it again") from error
    example = program.example_inputs
    if example is None or len(example[0]) != 1 or example[1]:
        raise ExportError(f"{path}: expected a program with one input; next: export a module that takes images only")
    return original(program, example[0][0].numpy(), name=str(path))


def original(
    model: nn.Module | ExportedProgram,
    example: Array,
    *,
    preprocess: PreprocessSpec | None = None,
    labels: Sequence[str] | None = None,
    name: str | None = None,
) -> Original:
    """A PyTorch classifier with its gradients and layers; see `export`. Raises `ExportError` if it is none."""
    torch = require("torch", "pytorch")
    program = model if isinstance(model, torch.export.ExportedProgram) else None
    name = name or (type(model).__name__ if program is None else "a program of torch.export")
    with quietly():
        net: Any = model if program is None else program.module()
    require_ready(net, name, evaluation=program is None)
    example = as_example(example, name)
    run = runner(net, name)

    def outputs(images: Array) -> Array:
        with torch.no_grad():
            return np.asarray(run(torch.tensor(images)).numpy())  # a copy, for it may work in place

    def gradients(images: Array, weights: Array) -> Array:
        with torch.inference_mode(False), torch.enable_grad():  # whatever the caller's mode is
            x = torch.tensor(images, requires_grad=True)
            y = run(x.clone())  # which may be worked on in place, as a leaf may not
            if not y.requires_grad:
                raise without_gradient(name, "look for detach() or no_grad()")
            try:
                (gradient,) = torch.autograd.grad((y * torch.tensor(weights)).sum(), x, allow_unused=True)
            except Exception as error:
                raise without_gradient(
                    name, f"look at what raised {type(error).__name__}: {first_line(error)}"
                ) from error
        if gradient is None:
            raise without_gradient(name, "look for what leaves its input out")
        return np.asarray(gradient.numpy())

    def layers(images: Array) -> Iterator[tuple[str, Array]]:
        inner = layers_of_program if program is not None else layers_of_module
        with torch.no_grad(), without_fast_path():
            yield from inner(net, torch.tensor(images))

    require_repeatable(outputs, example, name)

    return Original(
        name=name,
        framework=f"PyTorch {torch.__version__}",
        image_shape=tuple(example.shape[1:]),
        write=lambda path: write(path, net if program is None else program, example, outputs, name),
        outputs=outputs,
        gradients=gradients,
        layers=layers,
        images=example,
        preprocess=preprocess,
        labels=labels,
        provenance={"exporter": f"torch.onnx {torch.__version__}"},
    )


def as_example(example: Array, name: str) -> Array:
    """Images as float32, (N, ...). Raises `UsageError` for what would have to be guessed."""
    import torch

    images = np.asarray(example.detach().cpu() if isinstance(example, torch.Tensor) else example)
    if images.dtype.kind != "f" or images.ndim < 2 or not len(images):
        raise UsageError(
            f"{name}: expected a batch of images as it takes them, float32 (N, C, H, W), got "
            f"{images.dtype.name}{list(images.shape)}; next: prepare them as for the classifier itself"
        )
    return np.ascontiguousarray(images, np.float32)


def require_repeatable(outputs: Callable[[Array], Array], example: Array, name: str) -> None:
    """Raise `ExportError` unless this is a classifier, of one image too, that says the same of an image again."""
    once, again = outputs(example), outputs(example)
    outputs(example[:1])
    if not np.allclose(once, again, rtol=ROUNDING, atol=ROUNDING * float(np.abs(once).max()), equal_nan=True):
        raise ExportError(
            f"{name}: it gives other outputs for the same images each time; next: look for what is random in "
            "evaluation mode too, such as functional.dropout(x) without training=self.training, or for a state that it "
            "changes"
        )


def without_gradient(name: str, hint: str) -> ExportError:
    return ExportError(f"{name}: its outputs have no gradient in PyTorch; next: {hint}")


def require_ready(net: Any, name: str, *, evaluation: bool) -> None:
    """Raise `ExportError` unless this is a module in evaluation mode, on the CPU and in float32."""
    import torch

    if not isinstance(net, torch.nn.Module):
        raise ExportError(
            f"{name}: expected a torch.nn.Module or a program of torch.export, got {type(net).__name__}; next: give one"
        )
    training = [key or type(m).__name__ for key, m in net.named_modules() if m.training]
    if evaluation and training:
        raise ExportError(
            f"{name}: {len(training)} of its modules are in training mode, {training[0]} first; "
            "next: call .eval() on it"
        )
    tensors = {**dict(net.named_parameters()), **dict(net.named_buffers())}
    for key, tensor in tensors.items():
        if torch.nn.parameter.is_lazy(tensor):
            raise ExportError(f"{name}: {key} has no shape yet; next: run it once")
        if tensor.device.type != "cpu":
            raise ExportError(f"{name}: {key} is on {tensor.device}, expected the CPU; next: call .cpu() on it")
        if tensor.is_floating_point() and tensor.dtype != torch.float32:
            raise ExportError(f"{name}: {key} is {tensor.dtype}, expected float32; next: call .float() on it")


def runner(net: nn.Module, name: str) -> Callable[[Tensor], Tensor]:
    """The module as a function to outputs (N, K); it raises `ExportError` where there is something else."""
    import torch

    floats = (torch.float32, torch.float64)

    def run(x: Tensor) -> Tensor:
        try:
            y = net(x)
        except Exception as error:
            raise ExportError(
                f"{name}: it raised {type(error).__name__} for images of shape {list(x.shape)}: {first_line(error)}; "
                "next: give an example as it takes them"
            ) from error
        if not isinstance(y, torch.Tensor):
            raise ExportError(
                f"{name}: it returns {described(y)}, expected one tensor of logits (N, K); "
                "next: wrap it in a module whose forward returns the logits"
            )
        shape, images = list(y.shape), f"{len(x)} image{'s' * (len(x) != 1)}"
        if y.ndim < 2 or len(y) != len(x) or any(size != 1 for size in shape[2:]) or y.dtype not in floats:
            squeezed = shape != [1] and len(x) == 1 and y.ndim == 1
            raise ExportError(
                f"{name}: it returns {y.dtype} of shape {shape} for {images}, expected float32 (N, K); next: "
                + ("look for squeeze(), which drops a batch of 1" if squeezed else "return logits or probabilities")
            )
        return y.flatten(1)

    return run


def described(value: object) -> str:
    if isinstance(value, dict):
        return f"a {type(value).__name__} with {', '.join(map(str, value))}"
    if isinstance(value, tuple | list):
        return f"a {type(value).__name__} of {len(value)}"
    return f"a {type(value).__name__}"


def write(
    path: Path, model: nn.Module | ExportedProgram, example: Array, outputs: Callable[[Array], Array], name: str
) -> list[str]:
    """Write a module or a program as ONNX, by the exporter that gives a file which is right at other batches too."""
    import torch

    rows = np.resize(example, (2, *example.shape[1:]))  # one image would be taken for a constant
    reasons = []
    module = isinstance(model, torch.nn.Module)
    for exporter in (captured, compiled, traced) if module else (captured,):
        try:
            with TemporaryDirectory(dir=path.parent) as folder:
                file = Path(folder, path.name)
                with quietly(), without_fast_path():
                    exporter(model, torch.tensor(rows), file)
                require_free_batch(file, example, outputs)
                for part in file.parent.iterdir():  # weights may lie beside it
                    part.replace(path.parent / part.name)
        except Exception as error:
            reasons.append(f"{said[exporter]} failed: {first_line(error)}")
        else:
            return [f"exported by {said[exporter]}, since {'; '.join(reasons)}"] if reasons else []
    raise ExportError(
        f"{name}: PyTorch cannot export it: {'; '.join(reasons)}; next: "
        + (
            "write what depends on values of the image with torch.where, and take the batch from x.shape[0], not len(x)"
            if module
            else "export the program with dynamic_shapes=({0: torch.export.Dim('N', min=1)},), or give its module"
        )
    )


def captured(model: Any, x: Tensor, path: Path) -> None:
    """By torch.export, which runs the module on values without numbers."""
    import torch

    program = isinstance(model, torch.export.ExportedProgram)
    save(model, path, () if program else (x,), None if program else free_batch(model))


def compiled(model: Any, x: Tensor, path: Path) -> None:
    """By torch.export, which reads the module's Python: it keeps the batch free in len(x) and int(x.shape[0]) too."""
    import torch

    save(torch.export.export(model, (x,), dynamic_shapes=free_batch(model), strict=True), path, (), None)


def free_batch(model: nn.Module) -> Any:
    """The `dynamic_shapes` of images (N, ...)."""
    import torch

    free = {0: torch.export.Dim("N", min=1)}
    given = next(iter(signature(model.forward).parameters.values()))
    return ((free,),) if given.kind is Parameter.VAR_POSITIONAL else (free,)


def save(model: nn.Module | ExportedProgram, path: Path, args: tuple[Tensor, ...], shapes: Any) -> None:
    import torch

    made = torch.onnx.export(
        model,
        args,
        dynamo=True,
        dynamic_shapes=shapes,
        opset_version=OPSET,
        verbose=False,
        **NAMES,  # type: ignore[arg-type]
    )
    assert made is not None
    weights = sum(v.const_value.nbytes for v in made.model.graph.initializers.values() if v.const_value is not None)
    made.save(str(path), external_data=weights > MESSAGE)


def traced(model: Any, x: Tensor, path: Path) -> None:
    """By running it once, which sees what the example makes it do. Where that may not be all, it is no export."""
    import torch

    warnings.simplefilter("error", torch.jit.TracerWarning)  # type: ignore[attr-defined]  # in `quietly`
    axes = {"input": {0: "N"}, "logits": {0: "N"}}
    with patch.object(torch._C, "_jit_onnx_log", create=True):  # from C++ to stdout, the graph that cannot be exported
        torch.onnx.export(model, (x,), str(path), dynamo=False, dynamic_axes=axes, opset_version=OPSET, **NAMES)  # type: ignore[arg-type]


said: dict[Callable[..., None], str] = {
    captured: "torch.export",
    compiled: "torch.export(strict=True)",
    traced: "tracing",
}


def require_free_batch(path: Path, example: Array, outputs: Callable[[Array], Array]) -> None:
    """Raise if a file takes another number of images than it was exported with for something else.

    A file that is wrong at every batch is left to be told from the original, with the layer that differs.
    """
    right = {}
    with OnnxRuntimeExecutor(path.read_bytes(), optimise=False, folder=path.parent) as executor:
        ((given, spec),) = executor.inputs.items()
        if isinstance(spec.shape[0], int):
            raise ExportError(f"its batch is fixed at {spec.shape[0]}")
        for rows in (1, 2, 3):
            x = np.resize(example, (rows, *example.shape[1:]))
            expected = outputs(x)
            (found,) = executor({given: x}).values()
            if found.size != expected.size:
                raise ExportError(f"a batch of {rows} gives outputs of shape {list(found.shape)}")
            worst = np.abs(found.reshape(expected.shape) - expected).max()
            right[rows] = worst <= ROUNDING * max(1.0, float(np.abs(expected).max()))
    if any(right.values()) and not all(right.values()):
        wrong = ", ".join(str(rows) for rows, good in right.items() if not good)
        raise ExportError(f"it gives other outputs in batches of {wrong}")


@contextmanager
def quietly() -> Iterator[None]:
    """What exporters say of themselves is not said."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), redirect_stdout(StringIO()), redirect_stderr(StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


@contextmanager
def without_fast_path() -> Iterator[None]:
    """Attention as operators that exporters know."""
    import torch

    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


def layers_of_module(net: nn.Module, x: Tensor) -> Iterator[tuple[str, Array]]:
    """The outputs of modules that have no modules inside, as they run."""
    import torch

    found: list[tuple[str, Array]] = []

    def keep(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: object, output: object) -> None:  # noqa: ARG001 (PyTorch's signature)
            if isinstance(output, torch.Tensor) and output.is_floating_point() and output.ndim:
                found.append((name, output.detach().clone().numpy()))  # the next one may work in place

        return hook

    leaves = [(key or type(m).__name__, m) for key, m in net.named_modules() if not any(True for _ in m.children())]
    hooks = [module.register_forward_hook(keep(name)) for name, module in leaves]
    try:
        net(x)
    finally:
        for hook in hooks:
            hook.remove()
    yield from found


def layers_of_program(net: nn.Module, x: Tensor) -> Iterator[tuple[str, Array]]:
    """The outputs of the nodes of a program."""
    import torch

    found: list[tuple[str, Array]] = []

    class Keeping(torch.fx.Interpreter):
        def run_node(self, n: torch.fx.Node) -> Any:
            output = super().run_node(n)
            if n.op.startswith("call") and isinstance(output, torch.Tensor) and output.is_floating_point():
                found.append((n.name, output.detach().clone().numpy()))
            return output

    Keeping(net).run(x)
    yield from found


def first_line(error: BaseException) -> str:
    """The root cause of an exporter's error, in a line."""
    while error.__cause__ is not None and not isinstance(error, OnnxplainError):
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__)[:200].rstrip(".;: ")
