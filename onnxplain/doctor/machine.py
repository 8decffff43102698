"""What this machine is, read from files and from Python alone; nothing here can hang or crash."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from onnxplain.engine.executors.nvidia import displays, text

# What makes arithmetic on a CPU fast, by the names that Linux gives it, in the order in which it is told.
FEATURES = {
    "avx2": "AVX2",
    "avx512f": "AVX-512",
    "avx512_vnni": "AVX-512 VNNI",
    "avx512_bf16": "AVX-512 bfloat16",
    "avx512_fp16": "AVX-512 float16",
    "amx_tile": "AMX",
    "amx_bf16": "AMX bfloat16",
    "asimd": "NEON",
    "bf16": "NEON bfloat16",
    "sve": "SVE",
}


@dataclass(frozen=True, kw_only=True)
class Machine:
    """The machine: `cores` and `memory` (bytes, None if unknown) are those that this process may use.

    `jetson` is the board and its release of Jetson Linux, such as `NVIDIA Jetson AGX Orin, Jetson Linux 36.4`;
    `nvidia` says whether a GPU of NVIDIA is plugged in, with or without a driver; `container` whether this is one.
    """

    system: str
    architecture: str
    python: str
    cores: int
    memory: int | None
    features: tuple[str, ...]
    jetson: str | None
    nvidia: bool
    container: bool


def read_machine(root: Path = Path("/")) -> Machine:
    """The machine, with the files of `root` for those of `/`."""
    return Machine(
        system=f"{platform.system()} {platform.release()}{distribution(root)}",
        architecture=platform.machine(),
        python=f"{platform.python_version()} ({platform.python_implementation()})",
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        memory=memory(root),
        features=tuple(features(root)),
        jetson=jetson(root),
        nvidia=any(displays(root)),
        container=any((root / mark).exists() for mark in (".dockerenv", "run/.containerenv")),
    )


def distribution(root: Path) -> str:
    """The distribution of Linux in brackets, or nothing."""
    for line in text(root / "etc/os-release").splitlines():
        name, _, value = line.partition("=")
        if name == "PRETTY_NAME":
            return " ({})".format(value.strip("\"'"))
    return ""


def memory(root: Path) -> int | None:
    """Bytes of memory that this process may use: those of the machine, or fewer in a container with a limit."""
    sizes = [line.split()[1] for line in text(root / "proc/meminfo").splitlines() if line.startswith("MemTotal:")]
    limit = text(root / "sys/fs/cgroup/memory.max")
    bounds = [1024 * int(size) for size in sizes] + ([int(limit)] if limit.isdecimal() else [])
    return min(bounds, default=None)


def features(root: Path) -> Iterator[str]:
    """The features of the first processor that are in `FEATURES`."""
    for line in text(root / "proc/cpuinfo").splitlines():
        name, _, value = line.partition(":")
        if name.strip() in ("flags", "Features"):
            flags = set(value.split())
            yield from (said for flag, said in FEATURES.items() if flag in flags)
            return


def jetson(root: Path) -> str | None:
    """Board and release of a Jetson. The file says `# R36 (release), REVISION: 4.3, GCID: ...`."""
    release = text(root / "etc/nv_tegra_release").partition("\n")[0]
    if not release:
        return None
    numbers = re.match(r"# R(\d+) \(release\)(?:, REVISION: ([\d.]+))?", release)
    said = ".".join(filter(None, numbers.groups())) if numbers else "of unknown release"
    return f"{text(root / 'proc/device-tree/model') or 'NVIDIA Jetson'}, Jetson Linux {said}"
