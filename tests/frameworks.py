"""Frameworks and runtimes that tests compare with: where one is absent, those tests skip with a reason."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable
from types import ModuleType

import pytest

REQUIRED = "ONNXPLAIN_REQUIRE_FRAMEWORKS"
# Their pins of other packages are older than what is tested here, so they come alone.
ALONE = {"captum": "--no-deps captum==0.9.0", "saliency": "--no-deps saliency==0.2.1"}
EXTRAS = {
    "pyarrow": '"onnxplain[results]"',
    "skimage": '"onnxplain[superpixels]"',
    "sklearn": '"onnxplain[superpixels]"',
}
REQUIRED_RUNTIMES = "ONNXPLAIN_REQUIRE_RUNTIMES"  # their modules' names with commas between, or "1" for all


def framework(name: str, load: Callable[[], ModuleType] | None = None) -> ModuleType:
    """Import a framework, or skip the module that asks; with ONNXPLAIN_REQUIRE_FRAMEWORKS set, fail instead."""
    try:
        return load() if load else importlib.import_module(name)
    except ImportError:
        if os.environ.get(REQUIRED):
            raise
        package = (ALONE | EXTRAS).get(name.partition(".")[0], '"onnxplain[test-frameworks,test-references]"')
        pytest.skip(f"{name} is not installed (pip install {package})", allow_module_level=True)


def runtime(name: str, package: str) -> ModuleType:
    """Import a runtime, or skip the test that asks; fail instead if ONNXPLAIN_REQUIRE_RUNTIMES wants it."""
    try:
        return importlib.import_module(name)
    except ImportError:
        if wanted(name):
            raise
        pytest.skip(f"{name} is not installed (pip install {package})")


def wanted(name: str) -> bool:
    names = os.environ.get(REQUIRED_RUNTIMES, "").split(",")
    return name in names or "1" in names
