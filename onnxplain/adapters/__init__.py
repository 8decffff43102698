"""Any classifier in, an ONNX gradient model out: one module a framework, imported when it is used."""

from __future__ import annotations

from importlib import import_module
from types import ModuleType

FRAMEWORKS = ("huggingface", "jax", "keras", "pytorch", "pytorch_zoo", "sklearn", "tflite")


def __getattr__(name: str) -> ModuleType:
    if name in FRAMEWORKS:
        return import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
