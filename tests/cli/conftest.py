"""The place that every test of a command begins with."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny import Place, classifier


@pytest.fixture
def place(tmp_path: Path) -> Place:
    """One model, three photos."""
    made = Place(tmp_path)
    made.add_model("m.onnx", classifier())
    for seed, name in enumerate(("a.png", "b.png", "c.png")):
        made.add_photo(f"photos/{name}", seed)
    return made
