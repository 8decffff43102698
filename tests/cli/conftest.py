"""The place that every test of a command begins with."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny import Place, classifier

OF_THE_TERMINAL = (
    "CI", "CLICOLOR", "CLICOLOR_FORCE", "COLORTERM", "FORCE_COLOR", "GITHUB_ACTIONS", "JUPYTER_COLUMNS", "LINES",
    "PY_COLORS", "RICH_CLICK_THEME", "TERMINAL_WIDTH", "TTY_COMPATIBLE", "TTY_INTERACTIVE",
)  # fmt: skip


@pytest.fixture(autouse=True)
def terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is printed depends on no variable of whoever runs the tests."""
    for name in OF_THE_TERMINAL:
        monkeypatch.delenv(name, raising=False)
    for name, value in {"COLUMNS": "100", "NO_COLOR": "1", "TERM": "dumb"}.items():
        monkeypatch.setenv(name, value)
    for name in ("WIDTH", "MAX_WIDTH", "FORCE_TERMINAL"):  # rich_click has read them when it was imported
        monkeypatch.setattr(f"rich_click.rich_click.{name}", None)


@pytest.fixture
def place(tmp_path: Path) -> Place:
    """One model, three photos."""
    made = Place(tmp_path)
    made.add_model("m.onnx", classifier())
    for seed, name in enumerate(("a.png", "b.png", "c.png")):
        made.add_photo(f"photos/{name}", seed)
    return made
