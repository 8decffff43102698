"""Image classifiers of Hugging Face's transformers: `hf:NAME` from the hub, or `hf:FOLDER`.

The preprocessing is that of `preprocessor_config.json`, the labels are those of `config.json`. Weights are safetensors;
code that a repository brings along is not run.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from onnxplain.adapters import pytorch
from onnxplain.adapters.original import Original, require
from onnxplain.adapters.pytorch_zoo import blamed
from onnxplain.errors import InputError, UsageError
from onnxplain.models.preprocess import PreprocessSpec

if TYPE_CHECKING:
    from torch import nn

NAMELESS = re.compile(r"LABEL_\d+")
MOST_CONFIG = 64 * 2**20  # bytes


def load(source: str) -> Original:
    """A classifier by its name on the hub, or by its folder.

    Raises:
        BackendMissing: transformers is not installed.
        InputError: the folder is not whole, or its weights are pickles.
        UsageError: it wants to run code of its own.
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
    if Path(name).is_dir():
        return Path(name)
    if name.count("/") > 1 or name.startswith((".", "/", "~")):
        raise InputError(f"{source}: there is no such folder; next: check the path")
    hub = require("huggingface_hub", "hf")
    wanted = ["config.json", "preprocessor_config.json", "*.safetensors", "*.safetensors.index.json"]
    try:
        with pytorch.quietly():
            return Path(hub.snapshot_download(name, allow_patterns=wanted))
    except Exception as error:
        raise blamed(source, error) from error


def read_config(folder: Path) -> Mapping[str, Any]:
    """The content of `config.json`. Raises `InputError` if that is none, or other files are missing."""
    for name in ("config.json", "preprocessor_config.json"):
        if not (folder / name).is_file():
            raise InputError(
                f"{folder}: no {name}; next: give a folder as save_pretrained makes it, with its processor"
            )
    if not list(folder.glob("*.safetensors")):
        raise InputError(
            f"{folder}: no *.safetensors, and pickles are not read; next: save the model again with save_pretrained"
        )
    try:
        text = (folder / "config.json").read_bytes()[:MOST_CONFIG]
        config = json.loads(text)
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{folder / 'config.json'}: cannot be read ({error}); next: save the model again") from error
    if not isinstance(config, dict):
        raise InputError(f"{folder / 'config.json'}: expected a JSON object; next: save the model again")
    return config


def with_logits(folder: Path, source: str, config: Mapping[str, Any]) -> nn.Module:
    """The model, which returns more than its logits, as a module that returns them."""
    torch, transformers = require("torch", "pytorch"), require("transformers", "hf")
    if "auto_map" in config and config.get("model_type") not in transformers.CONFIG_MAPPING:
        raise UsageError(f"{source}: brings code of its own, which is not run; next: make it yourself, and export that")
    how = {"use_safetensors": True, "trust_remote_code": False, "local_files_only": True}
    try:
        with pytorch.quietly():
            model = transformers.AutoModelForImageClassification.from_pretrained(
                folder, attn_implementation="eager", dtype=torch.float32, **how
            )
    except Exception as error:
        raise blamed(source, error) from error

    base: Any = torch.nn.Module

    class Logits(base):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, pixel_values: Any) -> Any:
            return self.model(pixel_values=pixel_values, return_dict=True).logits

    made: nn.Module = Logits().eval()
    return made


def labels_of(config: Mapping[str, Any]) -> list[str] | None:
    """The names of the classes, in the order of the logits; None where nobody gave them any."""
    named = config.get("id2label")
    if not isinstance(named, dict) or set(named) != set(map(str, range(len(named)))):
        return None
    labels = [str(named[str(i)]) for i in range(len(named))]
    return None if all(NAMELESS.fullmatch(label) for label in labels) else labels
