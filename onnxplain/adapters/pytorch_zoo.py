"""Classifiers of torchvision and timm by name, with the preprocessing and the labels that their weights come with.

    torchvision:resnet50    torchvision:resnet50@IMAGENET1K_V1    timm:resnet50.a1_in1k    timm:FOLDER

Weights are read with `weights_only`, or are safetensors: nothing is unpickled that could run code.
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import numpy as np

from onnxplain.adapters import pytorch
from onnxplain.adapters.original import Original, require
from onnxplain.errors import BackendFailed, DownloadError, ExportError, InputError, OnnxplainError, UsageError
from onnxplain.models.download import fetch, offline
from onnxplain.models.preprocess import TIMM_FILTERS, PreprocessSpec

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class Pretrained:
    """A module with its weights, and what is known of them."""

    module: nn.Module
    preprocess: PreprocessSpec
    labels: list[str] | None
    provenance: Mapping[str, str]


def load(source: str) -> Original:
    """A classifier by its name.

    Raises:
        UsageError: there is none of that name, or it is no classifier.
        BackendMissing: torchvision or timm is not installed.
        DownloadError: its weights cannot be had.
        InputError: its weights are damaged, are not all that it needs, or could run code.
    """
    found = pretrained(source)
    height, width = found.preprocess.output_size
    example = np.zeros((2, found.preprocess.channels, height, width), np.float32)
    made = pytorch.original(found.module, example, preprocess=found.preprocess, labels=found.labels, name=source)
    return replace(made, images=None, provenance=found.provenance)


def module(source: str) -> nn.Module:
    """The module alone, in evaluation mode."""
    return pretrained(source).module


def pretrained(source: str) -> Pretrained:
    kind, _, name = source.partition(":")
    return from_timm(name) if kind == "timm" else from_torchvision(name)


def from_torchvision(name: str) -> Pretrained:
    """A classifier of torchvision with its best weights, or with those after an @."""
    models = torchvision_models()
    architecture, _, which = name.partition("@")
    classifiers = models.list_models(module=models)
    if architecture not in classifiers:
        raise UsageError(f"torchvision has no classifier {architecture!r}{near(architecture, classifiers)}")
    known = models.get_model_weights(architecture)
    if which and which not in known.__members__:
        raise UsageError(f"{architecture} has no weights {which!r}; next: use one of {', '.join(known.__members__)}")
    weights = known[which] if which else known.DEFAULT

    def state(self: Any, **kwargs: Any) -> Any:  # noqa: ARG001 (torchvision's signature)
        torch = require("torch", "pytorch")
        file = fetch(self.url, sha256=hash_in(self.url))
        try:
            return torch.load(file, map_location="cpu", weights_only=True)
        except Exception as error:
            raise InputError(
                f"{file}: holds more than weights, or is damaged ({pytorch.first_line(error)}); next: remove it"
            ) from error

    with patch.object(type(weights), "get_state_dict", state), pytorch.quietly():
        net = models.get_model(architecture, weights=weights).eval()  # some are built as their weights want it
    meta = weights.meta
    about = {"weights": f"{type(weights).__name__}.{weights.name}", "weights_url": weights.url}
    about |= {"license": str(meta["license"])} if "license" in meta else {}
    return Pretrained(net, of_preset(weights.transforms()), list(meta["categories"]), about)


def torchvision_models() -> Any:
    """torchvision.models. Raises `BackendFailed` beside a build of torch that it does not fit."""
    try:
        require("torchvision", "torchvision")
        return importlib.import_module("torchvision.models")
    except RuntimeError as error:  # its compiled operators are missing
        raise BackendFailed(
            f"torchvision does not fit this build of torch ({pytorch.first_line(error)}); "
            "next: install both from the same place (https://pytorch.org)"
        ) from error


def of_preset(transforms: Any) -> PreprocessSpec:
    """What torchvision's preset for classification does: the shortest edge, then a crop of the centre."""
    (resize,), (crop,) = transforms.resize_size, transforms.crop_size
    return PreprocessSpec(
        size=resize,
        resample=TIMM_FILTERS[transforms.interpolation.value],
        crop_size=(crop, crop),
        image_mean=tuple(transforms.mean),
        image_std=tuple(transforms.std),
        crop_rounding="round",
    )


def hash_in(url: str) -> str | None:
    """The first digits of the SHA-256 that PyTorch's files have in their names: resnet50-11ad3fa6.pth."""
    digits = Path(url).stem.rpartition("-")[2]
    return digits if len(digits) >= 8 and set(digits) <= set("0123456789abcdef") else None


def from_timm(name: str) -> Pretrained:
    """A classifier of timm, from the hub that it names or from a folder such as the hub has."""
    timm = require("timm", "timm")
    source, folder = f"timm:{name}", Path(name).expanduser()
    if folder.is_dir():
        where = f"local-dir:{folder}"
        if not (folder / "config.json").is_file():
            raise InputError(f"{folder}: no config.json; next: give a folder as timm.models.save_for_hf makes it")
    elif name.count("/") > 1 or name.startswith((".", "/", "~")):
        raise InputError(f"{source}: there is no such folder; next: check the path")
    elif "/" in name:
        where = f"hf-hub:{name}"
    else:
        where, known = name, timm.list_models(pretrained=True)
        if name not in known and name not in {each.partition(".")[0] for each in known}:
            raise UsageError(f"timm has no classifier {name!r} with weights{near(name, known)}")
    try:
        with pytorch.quietly(), of_the_hub(), wholly_loaded(source):
            net = timm.create_model(where, pretrained=True).eval()
            config = timm.data.resolve_model_data_config(net)
    except OnnxplainError:
        raise
    except Exception as error:
        raise blamed(source, error) from error
    if not net.num_classes:
        raise UsageError(f"{source}: makes features, and has no classes; next: name a classifier")
    about = {
        key: str(net.pretrained_cfg[key]) for key in ("license", "hf_hub_id", "tag") if net.pretrained_cfg.get(key)
    }
    spec = PreprocessSpec.from_timm({"pretrained_cfg": config}, where=source)
    return Pretrained(net, spec, timm_labels(timm, net), about)


@contextmanager
def wholly_loaded(source: str) -> Iterator[None]:
    """Raise `InputError` if weights were left as they are initialised, which timm says in its log only."""
    torch = require("torch", "pytorch")
    load = torch.nn.Module.load_state_dict
    missing: list[str] = []

    def watched(self: Any, *args: Any, **kwargs: Any) -> Any:
        result = load(self, *args, **kwargs)
        missing.extend(result.missing_keys)
        return result

    with patch.object(torch.nn.Module, "load_state_dict", watched):
        yield
    if missing:
        raise lacking(source, missing)


def lacking(source: str, missing: Iterable[str]) -> InputError:
    first, *others = sorted(missing)
    return InputError(
        f"{source}: its file has no weights for {first}{f' and {len(others)} others' if others else ''}; "
        "next: give a classifier that is trained, and a config.json that fits it"
    )


@contextmanager
def of_the_hub() -> Iterator[None]:
    """What keeps us from the net keeps huggingface_hub from it, which has a variable of its own."""
    hub = require("huggingface_hub", "hf")
    with patch.object(hub.constants, "HF_HUB_OFFLINE", hub.constants.HF_HUB_OFFLINE or offline() is not None):
        yield


def timm_labels(timm: Any, net: Any) -> list[str] | None:
    """The names of the classes, where timm knows them."""
    names = net.pretrained_cfg.get("label_names")
    if names:
        return list(names)
    subset = timm.data.infer_imagenet_subset(net)
    if not subset:
        return None
    info = timm.data.ImageNetInfo(subset)
    return [info.index_to_description(i) for i in range(info.num_classes())]


def near(wrong: str, names: Iterable[str]) -> str:
    """The end of a message about an unknown name."""
    close = difflib.get_close_matches(wrong, list(names), n=3)
    return f"; did you mean {', '.join(close)}?" if close else "; next: check the name"


HUB = frozenset(
    {
        "HfHubHTTPError", "ConnectionError", "ConnectError", "LocalEntryNotFoundError", "OfflineModeIsEnabled",
        "HTTPError", "TimeoutException", "RequestException",
    }
)  # fmt: skip


def blamed(source: str, error: Exception) -> Exception:
    """What went wrong on the way from a hub, or in a folder, as one of our errors."""
    text = pytorch.first_line(error)
    chain = (error, error.__cause__ or error.__context__)
    if HUB & {kind.__name__ for each in chain for kind in type(each).__mro__}:
        switch = offline()
        return DownloadError(
            f"{source}: cannot be had from the hub ({text}); next: "
            + (f"unset {switch}, or get it where the net is" if switch else "check the name and the net")
        )
    if "weights_only" in str(error) or "Weights only" in str(error):
        return InputError(
            f"{source}: its weights are a pickle that holds more than weights, which is not read; next: get them as "
            "safetensors"
        )
    if isinstance(error, NotImplementedError | MemoryError):
        return ExportError(f"{source}: it raised {type(error).__name__}: {text}; next: report it")
    return InputError(f"{source}: {type(error).__name__}: {text}; next: check the name, or the files in the folder")
