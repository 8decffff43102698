"""Image classifiers of Hugging Face's transformers: `hf:NAME` from the hub, or `hf:FOLDER`.

The preprocessing is that of `preprocessor_config.json`, the labels are those of `config.json`. Weights are safetensors;
code that a repository brings along is not run.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from onnxplain.adapters import pytorch
from onnxplain.adapters.original import Original, require
from onnxplain.adapters.pytorch_zoo import blamed, lacking, of_the_hub
from onnxplain.errors import InputError, UsageError
from onnxplain.models.preprocess import PreprocessSpec

if TYPE_CHECKING:
    from torch import nn

NAMELESS = re.compile(r"LABEL_\d+")
MOST_CONFIG = 64 * 2**20  # bytes
WHOLE = "give a folder as save_pretrained makes it, with its processor"


def load(source: str) -> Original:
    """A classifier by its name on the hub, or by its folder.

    Raises:
        BackendMissing: transformers is not installed.
        InputError: the folder is not whole, or its weights are pickles.
        UsageError: it wants to run code of its own, or is no classifier.
        DownloadError: it cannot be had.
    """
    folder = folder_of(source)
    config = read_config(folder)
    net = with_logits(folder, source, config)
    spec = PreprocessSpec.from_json_file(folder / "preprocessor_config.json")
    height, width = spec.output_size
    example = np.zeros((2, spec.channels, height, width), np.float32)
    made = pytorch.original(net, example, preprocess=spec, labels=labels_of(config), name=source)
    about = {"weights_transformers": str(require("transformers", "hf").__version__)}
    several = config.get("problem_type") == "multi_label_classification"
    return replace(made, images=None, provenance=about, head="sigmoid" if several else None)


def module(source: str) -> nn.Module:
    """The module alone, from images to logits, in evaluation mode."""
    folder = folder_of(source)
    return with_logits(folder, source, read_config(folder))


def folder_of(source: str) -> Path:
    """The folder of a model; that of the hub's cache for one of the hub."""
    name = source.partition(":")[2]
    if Path(name).expanduser().is_dir():
        return Path(name).expanduser()
    if name.count("/") > 1 or name.startswith((".", "/", "~")):
        raise InputError(f"{source}: there is no such folder; next: check the path")
    hub = require("huggingface_hub", "hf")
    wanted = ["config.json", "preprocessor_config.json", "*.safetensors", "*.safetensors.index.json"]
    try:
        with pytorch.quietly(), of_the_hub():
            return Path(hub.snapshot_download(name, allow_patterns=wanted))
    except Exception as error:
        raise blamed(source, error) from error


def read_config(folder: Path) -> Mapping[str, Any]:
    """The content of `config.json`. Raises `InputError` if that is none, or other files are missing."""
    config = read_object(folder / "config.json")
    if "pretrained_cfg" in config or "architecture" in config:
        raise InputError(f"{folder}: a model of timm; next: timm:NAME instead of hf:NAME")
    if not (folder / "preprocessor_config.json").is_file():
        raise InputError(f"{folder}: no preprocessor_config.json; next: {WHOLE}")
    if not list(folder.glob("*.safetensors")):
        raise InputError(
            f"{folder}: no *.safetensors, and pickles are not read; next: save the model again with save_pretrained"
        )
    return config


def read_object(path: Path) -> Mapping[str, Any]:
    """An object of JSON. Raises `InputError` if it is none."""
    if not path.is_file():
        raise InputError(f"{path.parent}: no {path.name}; next: {WHOLE}")
    try:
        with path.open("rb") as file:
            found = json.loads(file.read(MOST_CONFIG))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: cannot be read ({error}); next: save the model again") from error
    if not isinstance(found, dict):
        raise InputError(f"{path}: expected a JSON object; next: save the model again")
    return found


def with_logits(folder: Path, source: str, config: Mapping[str, Any]) -> nn.Module:
    """The model, which returns more than its logits, as a module that returns them."""
    torch, transformers = require("torch", "pytorch"), require("transformers", "hf")
    require_plain(source, config, transformers.CONFIG_MAPPING)
    how = {"use_safetensors": True, "trust_remote_code": False, "local_files_only": True, "output_loading_info": True}
    try:
        with pytorch.quietly():
            model, info = transformers.AutoModelForImageClassification.from_pretrained(
                folder, attn_implementation="eager", dtype=torch.float32, **how
            )
    except Exception as error:
        raise blamed(source, error) from error

    if missing := [key for key in info["missing_keys"] if not key.endswith("num_batches_tracked")]:
        raise lacking(source, missing)  # they would be random

    base: Any = torch.nn.Module

    class Logits(base):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, pixel_values: Any) -> Any:
            return self.model(pixel_values=pixel_values, return_dict=True).logits

    made: nn.Module = Logits().eval()
    return made


def require_plain(source: str, config: Mapping[str, Any], known: Mapping[str, Any]) -> None:
    """Raise `UsageError` for what would run code that comes from elsewhere, and for what is no classifier in floats."""
    kernels = [value for key, value in entries(config) if "implementation" in key and "/" in str(value)]
    if kernels or ("auto_map" in config and str(config.get("model_type")) not in known):
        raise UsageError(f"{source}: brings code of its own, which is not run; next: make it yourself, and export that")
    if config.get("quantization_config") is not None:
        raise UsageError(f"{source}: is quantised, which has no gradient; next: take the model that it was made from")
    if config.get("problem_type") == "regression":
        raise UsageError(f"{source}: is a regression; next: give a classifier")


def entries(value: Any) -> Iterator[tuple[str, Any]]:
    """The keys of an object of JSON with their values, and those of the objects in it."""
    for key, inner in value.items() if isinstance(value, Mapping) else ():
        yield key, inner
        yield from entries(inner)


def labels_of(config: Mapping[str, Any]) -> list[str] | None:
    """The names of the classes, in the order of the logits; None where nobody gave them any."""
    named = config.get("id2label")
    if not isinstance(named, dict) or set(named) != set(map(str, range(len(named)))):
        return None
    labels = [str(named[str(i)]) for i in range(len(named))]
    return None if all(NAMELESS.fullmatch(label) for label in labels) else labels
