"""What is made of an import that fails."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from tiny import classifier

import onnxplain as ox
from onnxplain.errors import BackendMissing, importing


def test_a_package_that_is_missing_is_named() -> None:
    said = r'that is not installed; next: pip install "onnxplain\[openvino\]"'
    with pytest.raises(BackendMissing, match=said), importing("that", "openvino"):
        import there_is_no_such_module  # type: ignore[import-not-found]  # noqa: F401


@pytest.mark.parametrize("runtime", ["openvino", "tensorrt"])
def test_ctrl_c_in_an_import_is_no_missing_package(
    runtime: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As native modules tell it: an ImportError whose cause it is."""
    text = "try:\n    raise KeyboardInterrupt\nexcept KeyboardInterrupt as e:\n    raise ImportError('failed') from e"
    (tmp_path / f"{runtime}.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    for name in [name for name in sys.modules if name.partition(".")[0] == runtime]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(KeyboardInterrupt):
        ox.open(classifier(), preprocess=None, on=runtime, cache=None)
