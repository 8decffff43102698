"""Names of classes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path

from onnxplain.errors import InputError, unreadable

LABELS_KEY = "onnxplain.labels"
MAX_BYTES = 16 * 2**20  # the names of 21 000 classes take one


def labels_for(metadata: Mapping[str, str]) -> list[str] | None:
    """The class names that a model carries in its metadata (a JSON list of strings), in the order of its logits.

    None where it carries none.

    Raises:
        InputError: the entry is not a JSON list of strings.
    """
    text = metadata.get(LABELS_KEY)
    if text is None:
        return None
    try:
        labels = json.loads(text)
    except (ValueError, RecursionError):
        labels = None
    if not isinstance(labels, list) or not all(isinstance(label, str) for label in labels):
        raise InputError(
            f"the model's metadata {LABELS_KEY}: expected a JSON list of strings, got {text[:60]!r}; "
            "next: export it again"
        )
    return labels


def read_labels(path: Path) -> list[str]:
    """Class names from a text file, one a line in the order of the logits, or from a JSON file: a list, or id2label.

    Raises `InputError` if it cannot be read, or is none of these.
    """
    try:
        with path.open("rb") as file:
            text = file.read(MAX_BYTES + 1).decode()
        found = json.loads(text) if path.suffix == ".json" else text.splitlines()
    except OSError as error:
        raise unreadable("the labels", path, error) from error
    except (ValueError, RecursionError) as error:
        raise InputError(
            f"{path}: expected text in UTF-8, or JSON in a .json file ({error}); next: correct it"
        ) from error
    if isinstance(found, dict):
        found = found.get("id2label", found)
        if set(found) == set(map(str, range(len(found)))):
            found = [found[str(i)] for i in range(len(found))]
    if not isinstance(found, list) or not found or not all(isinstance(name, str) for name in found):
        raise InputError(f"{path}: expected the names of the classes, one a line or a JSON list; next: correct it")
    if len(text) > MAX_BYTES:
        raise InputError(f"{path}: more than {MAX_BYTES} bytes; next: check the path")
    return found


def imagenet_labels() -> list[str]:
    """The 1000 classes of ImageNet in the usual order, synonyms separated by commas: "tench, Tinca tinca" first."""
    return files(__package__).joinpath("imagenet_labels.txt").read_text("utf-8").splitlines()
