"""The embedded example: a real classifier and a real photo, both from packages that the extra `demo` installs."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from onnxplain.errors import BackendMissing
from onnxplain.models.efficientnet_lite import demo_model

__all__ = ["demo_model", "demo_photo"]


def demo_photo() -> Path:
    """A portrait of Grace Hopper in uniform (US Navy, public domain), which matplotlib ships; it is not imported.

    Raises:
        BackendMissing: matplotlib is not installed, or without its sample data.
    """
    spec = find_spec("matplotlib")
    for folder in (spec and spec.submodule_search_locations) or []:
        photo = Path(folder, "mpl-data", "sample_data", "grace_hopper.jpg")
        if photo.is_file():
            return photo
    raise BackendMissing("matplotlib with its sample data", "demo")
