"""What a user calls a classifier, and the adapter that knows it.

model.onnx                                        a file that is ONNX already
model.keras  saved_model/  model.tflite  model.pt2    files and folders of frameworks
torchvision:NAME  timm:NAME  hf:NAME-or-folder        classifiers by name
package.module:factory                            Python code that makes one; it runs, so it has to be trusted
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import os
import re
import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from onnxplain.adapters.export import Exported, export_original, write_gradient_model
from onnxplain.adapters.onnx_file import AUTO, Preprocess
from onnxplain.adapters.original import Original
from onnxplain.engine.requests import Array
from onnxplain.errors import ExportError, InvalidModel, MissingFile, UsageError
from onnxplain.models.preprocess import PreprocessSpec, find, load_image, normalise, to_input

Paths = Sequence[str | os.PathLike[str]]

FILES = {".keras": "keras", ".tflite": "tflite", ".pt2": "pytorch"}
NAMES = {"torchvision": "pytorch_zoo", "timm": "pytorch_zoo", "hf": "huggingface"}
FACTORY = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")
WEIGHTS = (".pt", ".pth", ".ckpt", ".bin", ".safetensors", ".npz", ".msgpack")  # or whole models as pickles
PICKLES = (".pkl", ".pickle", ".joblib")
OLDER = (".h5", ".hdf5")
# Whose classes an object descends from, and the adapter of that framework; others that can be called are JAX functions.
FRAMEWORKS = {"torch": "pytorch", "keras": "keras", "tensorflow": "keras", "sklearn": "sklearn"}
CHANNELS_FIRST = ("torch", "equinox")  # of the others, channels are last


def export(
    source: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    preprocess: Preprocess = AUTO,
    input_shape: Sequence[int] | None = None,
    labels: Sequence[str] | None = None,
    images: Paths = (),
    trust_code: bool = False,
    **how: Any,
) -> Exported:
    """Write the gradient model of any classifier: a file, a name, or Python code that makes one.

    Args:
        source: see the top of this module.
        out: the gradient model's file.
        preprocess: as in `open`; "auto" also takes what comes with a classifier that is named, and "keras:tf",
            "keras:torch", "keras:caffe" and "keras:none" stand for the modes of keras.applications' preprocess_input.
        input_shape: the sizes of an image, where neither the classifier nor its preprocessing says them.
        labels: the names of the classes, where the classifier does not say them.
        images: photos at which the export is checked; random pictures otherwise.
        trust_code: let Python code run that `source` names.
        how: the other arguments of `write_gradient_model`.

    Raises:
        UsageError: the source is nothing that is known, or the arguments contradict it.
        BackendMissing: the framework is not installed; the message names the extra.
        ExportError: the framework cannot export it, or its export is another classifier.
        DownloadError: what is named cannot be had.
        Otherwise as `write_gradient_model`.
    """
    if is_onnx(Path(source)):
        if labels is not None:
            raise UsageError("labels of an ONNX file are those in its metadata; next: leave labels out")
        return write_gradient_model(source, out, preprocess=preprocess, input_shape=input_shape, images=images, **how)
    given = preprocess if isinstance(preprocess, PreprocessSpec) else None
    mode = preprocess.partition(":")[2] if isinstance(preprocess, str) and preprocess.startswith("keras:") else None
    if isinstance(preprocess, str | os.PathLike) and preprocess != AUTO and mode is None:
        given = PreprocessSpec.from_json_file(Path(preprocess))
    original = load(source, trust_code=trust_code, input_shape=input_shape, preprocess=given)
    if mode is not None:
        given = of_keras(original, mode)
    elif preprocess == AUTO:
        pictures = len(original.image_shape) == 3
        given = original.preprocess or (found_beside(source) if pictures else None)
    original = replace(original, preprocess=given, labels=labels or original.labels)
    if images:
        original = replace(original, images=as_images(original, images))
    return export_original(original, out, **how)


def is_onnx(path: Path) -> bool:
    """Whether a source is ONNX already: by its suffix, or a file whose suffix nobody else claims."""
    return path.suffix == ".onnx" or (path.is_file() and path.suffix not in (*FILES, *WEIGHTS, *PICKLES, *OLDER))


def load(
    source: str | os.PathLike[str],
    *,
    trust_code: bool = False,
    input_shape: Sequence[int] | None = None,
    preprocess: PreprocessSpec | None = None,
) -> Original:
    """The classifier that is called `source`, in its own framework; see `export`."""
    name, path = os.fspath(source), Path(source)
    if path.suffix in FILES:
        require_file(path)
        trusted = {"trust_code": trust_code} if path.suffix == ".pt2" else {}  # the others hold no code
        return adapter(FILES[path.suffix]).load(path, **trusted)  # type: ignore[no-any-return]
    if name and path.is_dir():
        if (path / "saved_model.pb").is_file():
            return adapter("keras").load(path)  # type: ignore[no-any-return]
        raise InvalidModel(
            f"{name} is a folder without saved_model.pb; next: hf:{name} for one of Hugging Face's, or give a file"
        )
    if path.suffix in (*WEIGHTS, *PICKLES):
        what = (
            "a pickle, which may run any code when it is read"
            if path.suffix in PICKLES
            else ("weights without their classifier, or a pickle, which is not read")
        )
        raise UsageError(
            f"{name}: {what}; next: write a function that makes the classifier and loads them, and give "
            "module:function with --trust-code"
        )
    if path.suffix in OLDER:
        raise UsageError(
            f"{name}: Keras' older format, which may hold code; next: load it yourself, and save it as .keras"
        )
    kind, _, rest = name.partition(":")
    if kind in NAMES and rest:
        return adapter(NAMES[kind]).load(name)  # type: ignore[no-any-return]
    if FACTORY.fullmatch(name):
        return from_object(load_factory(name, trust_code=trust_code), name, input_shape, preprocess)
    known = ", ".join(("FILE.onnx", *(f"FILE{suffix}" for suffix in FILES), *(f"{kind}:NAME" for kind in NAMES)))
    raise UsageError(
        f"{name}: expected a classifier: {known}, a folder with saved_model.pb, or module:factory; next: "
        + ("check the path" if path.suffix or os.sep in name else "give one of these")
    )


def adapter(name: str) -> ModuleType:
    return importlib.import_module(f"onnxplain.adapters.{name}")


def require_file(path: Path) -> None:
    if not path.is_file():
        raise MissingFile(f"cannot read {path}: there is no such file; next: check the path")


def load_factory(name: str, *, trust_code: bool) -> object:
    """Import `package.module:factory`, call it without arguments, and return what it made; an object is taken as it is.

    The working folder is one of those that are looked in, as with `python -m`.

    Raises:
        UsageError: the code is not trusted, or not there.
        ExportError: the code failed.
    """
    where, _, what = name.partition(":")
    if not trust_code:
        raise UsageError(
            f"{name} is Python code, which may do whatever you may do; next: add --trust-code (trust_code=True) if "
            "you know it"
        )
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        with redirect_stdout(sys.stderr):  # stdout is for results
            found: Any = importlib.import_module(where)
    except ModuleNotFoundError as error:
        if error.name and (where == error.name or where.startswith(f"{error.name}.")):
            raise UsageError(
                f"{name}: there is no module {error.name}, in {os.getcwd()} or installed; next: check the name, or go "
                "to the folder that it lies in"
            ) from error
        raise failed(name, error) from error
    except Exception as error:
        raise failed(name, error) from error
    for part in what.split("."):
        if not hasattr(found, part):
            near = difflib.get_close_matches(part, dir(found), n=1)
            hint = f"did you mean {near[0]}?" if near else "check the name"
            raise UsageError(f"{name}: {where} has no {part}; next: {hint}")
        found = getattr(found, part)
    if not (inspect.isroutine(found) or inspect.isclass(found)):
        return found
    try:
        with redirect_stdout(sys.stderr):
            return found()
    except Exception as error:
        raise failed(name, error) from error


def load_module(source: str, *, trust_code: bool = False) -> Any:
    """The PyTorch module that `source` names, to be compared with: module:factory, torchvision:, timm: or hf:NAME."""
    kind, _, rest = source.partition(":")
    if kind in NAMES and rest:
        return adapter(NAMES[kind]).module(source)
    if FACTORY.fullmatch(source):
        return load_factory(source, trust_code=trust_code)
    raise UsageError(
        f"{source}: expected a reference in PyTorch: module:factory, torchvision:NAME, timm:NAME or hf:NAME; "
        "next: give one of these"
    )


def failed(name: str, error: Exception) -> ExportError:
    return ExportError(
        f"{name}: your code raised {type(error).__name__}: {error}; next: correct it (--traceback shows where)"
    )


def from_object(
    model: object, name: str, input_shape: Sequence[int] | None = None, preprocess: PreprocessSpec | None = None
) -> Original:
    """The original of a live object of whatever framework, which is told by its classes.

    Raises:
        ExportError: it is of no framework that is known.
        UsageError: nobody says how large its images are.
    """
    families = [cls.__module__.partition(".")[0] for cls in type(model).__mro__]
    family = next((family for family in families if family in (*FRAMEWORKS, "equinox")), None)
    if family is None and not callable(model):
        raise ExportError(
            f"{name}: expected a classifier of PyTorch, Keras, JAX or scikit-learn, got {type(model).__name__}; "
            "next: return one"
        )
    example = None
    if input_shape is not None:
        example = np.zeros((2, *input_shape), np.float32)
    elif preprocess is not None:
        sizes = [*preprocess.output_size]
        sizes.insert(0 if family in CHANNELS_FIRST else 2, preprocess.channels)
        example = np.zeros((2, *sizes), np.float32)
    elif family not in ("keras", "tensorflow", "sklearn"):
        raise UsageError(f"{name}: nothing says how large its images are; next: --input-shape C,H,W, or --preprocess")
    made: Original = adapter(FRAMEWORKS.get(family or "", "jax")).original(
        model, example, preprocess=preprocess, name=name
    )
    return replace(made, images=None)  # zeros are no images to check it at


def of_keras(original: Original, mode: str) -> PreprocessSpec:
    """A mode of keras.applications' preprocess_input, at the size of the classifier's input."""
    from onnxplain.adapters.keras import preprocess_input

    height, width = (n for i, n in enumerate(original.image_shape) if i != original.channel_axis % 3)
    return preprocess_input(mode, (height, width))


def found_beside(source: str | os.PathLike[str]) -> PreprocessSpec:
    """The preprocessing beside a file, as beside an ONNX file. Raises `UsageError` if there is none."""
    if Path(source).exists():
        return find(Path(source))[0]
    raise UsageError(
        f"{source}: nobody says how a photo becomes its input; next: give it with --preprocess FILE, or "
        "--preprocess none if the input is to be taken as it is"
    )


def as_images(original: Original, photos: Paths) -> Array:
    """Photos as the classifier itself takes them. Raises `UsageError` if it has no preprocessing."""
    spec, axis = original.preprocess, original.channel_axis
    if spec is None:
        raise UsageError("photos have no defined way into a model without preprocessing; next: leave them out")
    x = np.stack([to_input(load_image(p, spec), channels=spec.channels, channel_axis=axis) for p in photos])
    return normalise(x, spec, channel_axis=axis)
