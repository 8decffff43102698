"""Whether this machine has a GPU of NVIDIA, by files alone: nothing here can hang or crash."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

NVIDIA = "0x10de"  # its number among the vendors of PCI devices
DISPLAY = "0x03"  # the class of displays and 3D accelerators begins so
# What a driver or a board leaves where no PCI device is seen: in containers, on a Jetson, under WSL.
TRACES = ("dev/nvidiactl", "dev/nvhost-gpu", "dev/dxg", "proc/driver/nvidia", "etc/nv_tegra_release")


def displays(root: Path = Path("/")) -> Iterator[Path]:
    """PCI devices that are GPUs of NVIDIA; a container sees them too, and no driver is needed to."""
    for device in (root / "sys/bus/pci/devices").glob("*"):
        if text(device / "vendor") == NVIDIA and text(device / "class").startswith(DISPLAY):
            yield device


def surely_none(root: Path = Path("/"), system: str = sys.platform) -> bool:
    """Whether there is certainly no GPU; only Linux tells."""
    return system == "linux" and not any((root / trace).exists() for trace in TRACES) and not any(displays(root))


def text(path: Path) -> str:
    """A file's text; empty if there is none, or none for us."""
    try:
        return path.read_text("utf-8", errors="replace").strip("\0\n ")
    except OSError:
        return ""
