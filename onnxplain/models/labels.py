"""Names of classes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib.resources import files

from onnxplain.errors import InputError

LABELS_KEY = "onnxplain.labels"


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


def imagenet_labels() -> list[str]:
    """The 1000 classes of ImageNet in the usual order, synonyms separated by commas: "tench, Tinca tinca" first."""
    return files(__package__).joinpath("imagenet_labels.txt").read_text("utf-8").splitlines()
