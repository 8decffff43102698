"""The classifiers that are known by name: where they come from, under which licence, what they take and answer."""

from __future__ import annotations

import difflib
import tomllib
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any, Literal

from onnxplain.errors import UsageError
from onnxplain.models.labels import imagenet_labels

CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
EXTRAS = {"lite": None, "torchvision": "torchvision", "cifar": "pytorch"}  # what has to be installed to get one


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A classifier of the catalogue.

    `how` says what is made of the file at `url`; `sha256` is its checksum, or the first digits of it. `image` is
    (H, W), `top1` per cent as its makers measured it; `papers` that evaluate on it: "isa", "cpa".
    """

    name: str
    title: str
    how: Literal["lite", "torchvision", "cifar"]
    url: str
    sha256: str
    licence: str
    image: tuple[int, int]
    classes: Literal["imagenet", "cifar10"]
    parameters: int
    megabytes: int
    top1: float | None = None
    papers: tuple[str, ...] = ()
    source: str | None = None  # of `onnxplain export`, which gives the same
    member: str | None = None  # the file in the archive
    depth: int | None = None  # blocks in each of the three stages of a CIFAR ResNet

    @property
    def extra(self) -> str | None:
        """The extra that has to be installed to get it; None: nothing more."""
        return EXTRAS[self.how]

    @property
    def labels(self) -> list[str]:
        """The names of its classes."""
        return imagenet_labels() if self.classes == "imagenet" else list(CIFAR10)


@cache
def entries() -> dict[str, Entry]:
    """All of them, by name."""
    text = files(__package__).joinpath("catalogue.toml").read_text("utf-8")
    return {name: Entry(name=name, **_tuples(entry)) for name, entry in tomllib.loads(text).items()}


def _tuples(entry: dict[str, Any]) -> dict[str, Any]:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in entry.items()}


def find(name: str) -> Entry:
    """The entry of that name. Raises `UsageError` if there is none."""
    if name not in entries():
        near = difflib.get_close_matches(name, entries(), n=3)
        hint = f"did you mean {', '.join(near)}?" if near else "next: `onnxplain models list` tells all"
        raise UsageError(f"the catalogue has no classifier {name!r}; {hint}")
    return entries()[name]
