"""The batch size that is fastest on this machine and fits, found by trying, and remembered."""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from onnxplain.engine.atomic import write_atomically
from onnxplain.errors import OnnxplainError, OutOfMemory

log = logging.getLogger(__name__)

LARGEST = 256  # rows: what is gained beyond is not worth looking for
WORTH = 0.95  # a larger batch is taken if a row then costs at most this share of what it did
ROUNDS = 2  # calls that are timed at each size, after one that is not; the faster one counts
FILE = "batch-sizes.json"


def fastest(
    call: Callable[[int], object],
    *,
    most: int = LARGEST,
    room: Callable[[], float] = lambda: float("inf"),
    clock: Callable[[], float] = time.perf_counter,
) -> int:
    """The batch size, a power of two up to `most`, at which `call(rows)` takes least for each row.

    It doubles until two sizes running bring nothing, the device has no memory left, or `room()`, bytes, says that twice
    as much as the last size took would not fit. Raises `OutOfMemory` if not even one row fits.
    """
    best, least, vain, size = 1, float("inf"), 0, 1
    while size <= most and vain < 2:
        before = room()
        try:
            call(size)
            taken = before - room()
            seconds = min(timed(call, size, clock) for _ in range(ROUNDS)) / size
        except OutOfMemory:
            if size == 1:
                raise
            return best
        if seconds <= WORTH * least:
            best, least, vain = size, seconds, 0
        else:
            vain += 1
        if before < float("inf") and 2 * taken > room():
            return best
        size *= 2
    return best


def timed(call: Callable[[int], object], size: int, clock: Callable[[], float]) -> float:
    start = clock()
    call(size)
    return clock() - start


def host_memory(root: Path = Path("/")) -> float:
    """Bytes that this process may still take: what the machine has left, or its control group; inf where unknown."""
    left = [float("inf")]
    meminfo = text(root / "proc/meminfo")
    left += [1024.0 * int(line.split()[1]) for line in meminfo.splitlines() if line.startswith("MemAvailable:")]
    limit, used = (text(root / "sys/fs/cgroup" / name).strip() for name in ("memory.max", "memory.current"))
    if limit.isdecimal() and used.isdecimal():
        left.append(float(int(limit) - int(used)))
    return min(left)


def text(path: Path) -> str:
    """What a file of the system says; nothing where there is none."""
    try:
        return path.read_text()
    except OSError:
        return ""


class Remembered:
    """Batch sizes of earlier runs, in a file of the cache folder (None: nothing is remembered).

    What a size depends on is its key. A file that cannot be read is one that is not there; if it cannot be written, a
    warning says so.
    """

    def __init__(self, folder: Path | None) -> None:
        self.path = None if folder is None else folder / FILE

    def get(self, key: Mapping[str, Any]) -> int | None:
        size = self.read().get(digest(key))
        return size if isinstance(size, int) and 1 <= size <= LARGEST else None

    def put(self, key: Mapping[str, Any], size: int) -> None:
        if self.path is None:
            return
        known = self.read() | {digest(key): size}
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(self.path, json.dumps(known, indent=1, sort_keys=True).encode(), overwrite=True)
        except (OSError, OnnxplainError) as error:
            warn_of(self.path.parent, str(error).partition(";")[0])

    def read(self) -> dict[str, Any]:
        try:
            known = json.loads(self.path.read_bytes()) if self.path is not None else {}
        except (OSError, ValueError):
            return {}
        return known if isinstance(known, dict) else {}


@cache  # once is enough
def warn_of(folder: Path, why: str) -> None:
    """Say that a cache folder cannot be used."""
    log.warning(
        "the cache folder %s cannot be used: %s; batch sizes are tried again in each run; "
        "next: make it writable, choose another one (--cache DIR), or keep nothing (--cache none)",
        *(folder, why),
    )


def digest(key: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:32]
