"""What a piece of work took: seconds, and memory beyond what was there before."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path


@dataclass
class Spent:
    """Seconds, and the peak of resident memory beyond what there was at the start, in MiB; None where nobody tells."""

    seconds: float = 0.0
    memory: float | None = None


@contextmanager
def spent() -> Iterator[Spent]:
    """Measure a block. Memory is Linux' own peak, which is set back first."""
    found = Spent()
    before = None
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
        before = resident("VmRSS")
    start = time.perf_counter()
    try:
        yield found
    finally:
        found.seconds = time.perf_counter() - start
        if before is not None:
            found.memory = max(0.0, resident("VmHWM") - before)


def resident(field: str) -> float:
    """Resident memory of this process, MiB: `VmRSS` now, `VmHWM` at its highest."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) / 1024
