"""The machine, read from files: those of a PC, of a container, of a Jetson, and none."""

from __future__ import annotations

import os

import pytest

from onnxplain.doctor.machine import read_machine


@pytest.fixture
def root(tmp_path):
    def write(files):
        for name, text in files.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return tmp_path

    return write


def test_a_pc_with_a_gpu(root):
    machine = read_machine(
        root(
            {
                "etc/os-release": 'NAME="Ubuntu"\nPRETTY_NAME="Ubuntu 24.04.3 LTS"\n',
                "proc/meminfo": "MemTotal:       24684100 kB\nMemFree:        1 kB\n",
                "proc/cpuinfo": "processor\t: 0\nflags\t\t: fpu avx2 avx512f avx512_bf16 amx_tile amx_bf16\n\n"
                "processor\t: 1\nflags\t\t: fpu\n",
                "sys/bus/pci/devices/0000:00:02.0/vendor": "0x8086\n",
                "sys/bus/pci/devices/0000:00:02.0/class": "0x030000\n",
                "sys/bus/pci/devices/0000:01:00.0/vendor": "0x10de\n",
                "sys/bus/pci/devices/0000:01:00.0/class": "0x030200\n",
            }
        )
    )
    assert machine.system.endswith("(Ubuntu 24.04.3 LTS)")
    assert machine.memory == 24684100 * 1024
    assert machine.features == ("AVX2", "AVX-512", "AVX-512 bfloat16", "AMX", "AMX bfloat16")
    assert (machine.nvidia, machine.container, machine.jetson) == (True, False, None)
    assert machine.cores <= (os.cpu_count() or 1)


def test_a_container_with_less_memory_than_the_machine(root):
    files = {"proc/meminfo": "MemTotal: 1024 kB\n", ".dockerenv": "", "sys/fs/cgroup/memory.max": "4096\n"}
    files |= {"sys/bus/pci/devices/0/vendor": "0x10de\n", "sys/bus/pci/devices/0/class": "0x040300\n"}  # its sound
    machine = read_machine(root(files))
    assert (machine.container, machine.memory, machine.nvidia) == (True, 4096, False)
    assert read_machine(root({"sys/fs/cgroup/memory.max": "max\n"})).memory == 1024 * 1024


@pytest.mark.parametrize(
    ("release", "model", "expected"),
    [
        (
            "# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic, EABI: aarch64, DATE: Wed Jan  8 "
            "01:49:37 UTC 2025\n",
            "NVIDIA Jetson AGX Orin Developer Kit\0",
            "NVIDIA Jetson AGX Orin Developer Kit, Jetson Linux 36.4.3",
        ),
        ("# R38 (release), REVISION: 2.0", "", "NVIDIA Jetson, Jetson Linux 38.2.0"),
        ("# R38 (release)", "", "NVIDIA Jetson, Jetson Linux 38"),
        ("#", "", "NVIDIA Jetson, Jetson Linux of unknown release"),
    ],
)
def test_a_jetson(root, release, model, expected):
    files = {"etc/nv_tegra_release": release, "proc/device-tree/model": model}
    machine = read_machine(root(files | {"proc/cpuinfo": "Features\t: fp asimd bf16 sve\n"}))
    assert machine.jetson == expected
    assert machine.features == ("NEON", "NEON bfloat16", "SVE")


def test_a_machine_that_tells_nothing(tmp_path):
    """As Windows and macOS have none of these files."""
    machine = read_machine(tmp_path)
    assert (machine.memory, machine.features, machine.jetson, machine.nvidia) == (None, (), None, False)


def test_this_machine():
    machine = read_machine()
    assert machine.cores >= 1
    assert machine.python.startswith("3.")
