"""Which packages are installed, and what their libraries need: read from files, without importing or loading any."""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from importlib.metadata import distributions
from importlib.util import find_spec
from pathlib import Path
from typing import BinaryIO, NamedTuple

PT_LOAD, PT_DYNAMIC = 1, 2  # kinds of segments of an ELF file
DT_NEEDED, DT_STRTAB = 1, 5  # kinds of entries of its dynamic segment


def installed() -> dict[str, str]:
    """Distributions by their normalised names, and their versions; where there are two, the one that is imported."""
    found: dict[str, str] = {}
    for distribution in distributions():
        name = distribution.metadata["Name"]
        if name:  # broken metadata has none
            found.setdefault(re.sub(r"[-_.]+", "-", name).lower(), distribution.version)
    return found


def release(version: str) -> tuple[int, ...]:
    """The numbers that a version begins with, for comparisons: 2026.4.1-22982 is (2026, 4, 1)."""
    return tuple(int(number) for number in re.findall(r"\d+", re.split(r"[^\d.]", version)[0]))


def folder(module: str) -> Path | None:
    """Where a package lies, or None; a parent package is imported to find out, so only top-level names are asked."""
    try:
        spec = find_spec(module)
    except (ImportError, ValueError):
        return None
    places = list(spec.submodule_search_locations or ()) if spec else []
    return Path(places[0]) if places else None


def provider_libraries() -> dict[str, Path]:
    """The libraries of ONNX Runtime's providers, by the provider's short name: cuda, tensorrt, openvino, ..."""
    home = folder("onnxruntime")
    files = sorted((home / "capi").glob("*onnxruntime_providers_*")) if home else []
    return {file.stem.partition("_providers_")[2]: file for file in files if file.suffix in (".so", ".dll", ".dylib")}


def needs(library: Path) -> tuple[str, ...]:
    """The libraries that an ELF library of 64 bits needs (its entries DT_NEEDED); nothing of any other file."""
    try:
        with library.open("rb") as file:
            return tuple(needed(file))
    except (OSError, struct.error, ValueError, StopIteration, RuntimeError):
        return ()


def needed(file: BinaryIO) -> Iterator[str]:
    """The names of DT_NEEDED, in the notation of the ELF specification (Tool Interface Standard, 1995; ELF-64)."""
    head = file.read(64)
    if not head.startswith(b"\x7fELF\x02\x01"):  # 64 bits, little-endian
        return
    (table,) = struct.unpack_from("<Q", head, 32)
    size, count = struct.unpack_from("<HH", head, 54)
    segments = [Segment.read(file, table + size * index) for index in range(count)]
    dynamic = next(segment for segment in segments if segment.kind == PT_DYNAMIC)
    file.seek(dynamic.offset)
    entries = list(struct.iter_unpack("<QQ", file.read(dynamic.size // 16 * 16)))
    strings = next(value for tag, value in entries if tag == DT_STRTAB)
    home = next(s for s in segments if s.kind == PT_LOAD and s.address <= strings < s.address + s.size)
    for tag, value in entries:
        if tag == DT_NEEDED:
            file.seek(home.offset + strings - home.address + value)
            yield file.read(256).partition(b"\0")[0].decode()


class Segment(NamedTuple):
    """A segment of an ELF file: its kind, and where it lies in the file and in memory."""

    kind: int
    offset: int
    address: int
    size: int

    @classmethod
    def read(cls, file: BinaryIO, place: int) -> Segment:
        file.seek(place)
        kind, _, offset, address, _, size = struct.unpack("<IIQQQQ", file.read(40))
        return cls(kind, offset, address, size)
