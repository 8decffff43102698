"""Packages and libraries, read from files."""

from __future__ import annotations

import shutil
import struct
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from onnxplain.doctor import packages
from onnxplain.doctor.packages import folder, installed, needs, provider_libraries, release


def library(names: list[str]) -> bytes:
    """A 64-bit ELF library that needs these, as small as can be: one segment in memory, one dynamic segment."""
    strings, offsets = b"\0", []
    for name in names:
        offsets.append(len(strings))
        strings += name.encode() + b"\0"
    address, dynamic_at = 0x10000, 64 + 2 * 56
    strings_at = dynamic_at + 16 * (len(names) + 2)
    entries = [(1, offset) for offset in offsets] + [(5, address + strings_at), (0, 0)]
    dynamic = b"".join(struct.pack("<QQ", *entry) for entry in entries)
    size = strings_at + len(strings)
    head = b"\x7fELF\x02\x01\x01" + bytes(9) + struct.pack("<HHIQQQIHHHHHH", 3, 62, 1, 0, 64, 0, 0, 64, 56, 2, 0, 0, 0)
    segments = struct.pack("<IIQQQQQQ", 1, 5, 0, address, address, size, size, 4096)
    segments += struct.pack("<IIQQQQQQ", 2, 6, dynamic_at, address + dynamic_at, 0, len(dynamic), len(dynamic), 8)
    return head + segments + dynamic + strings


def test_what_a_library_needs(tmp_path):
    path = tmp_path / "libonnxruntime_providers_tensorrt.so"
    path.write_bytes(library(["libcublas.so.13", "libnvinfer.so.10"]))
    assert needs(path) == ("libcublas.so.13", "libnvinfer.so.10")


@pytest.mark.skipif(sys.platform != "linux" or not shutil.which("readelf"), reason="there is no readelf here")
def test_readelf_says_the_same():
    ort = pytest.importorskip("onnxruntime")
    files = [sys.executable, *Path(ort.__file__).parent.glob("capi/*.so*")]
    for file in files:
        told = subprocess.run(["readelf", "-d", file], capture_output=True, text=True, check=True).stdout
        expected = [line.partition("[")[2].rstrip("]") for line in told.splitlines() if "(NEEDED)" in line]
        assert list(needs(Path(file))) == expected


@pytest.mark.parametrize("content", [b"", b"MZ\x90", b"\x7fELF\x02\x01", library(["libx.so"])[:150], library([])[:64]])
def test_what_is_no_library_needs_nothing(tmp_path, content):
    path = tmp_path / "x.so"
    path.write_bytes(content)
    assert needs(path) == ()
    assert needs(tmp_path / "missing.so") == ()


def test_installed_distributions_have_normalised_names():
    found = installed()
    assert found["onnx-ir"] == version("onnx_ir")
    assert found["numpy"] == version("numpy")


def test_versions_begin_with_their_numbers():
    assert release("2026.4.1-22982") == (2026, 4, 1)
    assert release("1.32.0rc1") == (1, 32, 0)
    assert release("13") == (13,)
    assert release("unknown") == ()


def test_a_package_is_found_without_importing_it():
    assert folder("curses") is not None
    assert folder("no_such_package") is None
    assert "curses" not in sys.modules or sys.modules["curses"].__spec__ is not None


def test_libraries_of_providers_are_found_by_their_names(tmp_path, monkeypatch):
    (tmp_path / "capi").mkdir()
    for name in (
        "libonnxruntime_providers_cuda.so",
        "onnxruntime_providers_tensorrt.dll",
        "onnxruntime_providers_x.txt",
    ):
        (tmp_path / "capi" / name).touch()
    monkeypatch.setattr(packages, "folder", lambda module: tmp_path)
    assert set(provider_libraries()) == {"cuda", "tensorrt"}
    monkeypatch.setattr(packages, "folder", lambda module: None)
    assert provider_libraries() == {}
