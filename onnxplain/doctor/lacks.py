"""What a place lacks, and the one thing that mends it; the first lack of a place is the one to mend first."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from onnxplain.doctor.asking import Answer
from onnxplain.doctor.facts import CUDA_PROVIDER, MODULES, TENSORRT_PROVIDER, UNASKED, Facts
from onnxplain.doctor.packages import release
from onnxplain.engine.executors.place import CPU, CUDA, OPENVINO, TENSORRT, TENSORRT_RTX, Place

# What to install for a place, as the extra of the same name has it; the first two overwrite one another.
REQUIREMENTS = {
    CPU: "onnxruntime>=1.24",
    CUDA: "onnxruntime-gpu[cuda,cudnn]>=1.27",
    OPENVINO: "openvino>=2026.2",
}
NVIDIA_INDEX = "--extra-index-url https://pypi.nvidia.com"  # TensorRT's libraries are not on PyPI
# onnxruntime-gpu is built for CUDA 13 from 1.27 on; 1.26 is for CUDA 12 and has code for GPUs from 6.0 on (its wheel).
FOR_CUDA_12 = "onnxruntime-gpu[cuda,cudnn]>=1.24,<1.27"
CUDA_13, DRIVER_OF_CUDA_13 = 13, 580  # CUDA 13.0 release notes, tables of drivers and of architectures that left
LEAST_CAPABILITY_OF_CUDA_13 = (7, 5)
# Distributions that all install the module onnxruntime, over one another.
SAME_MODULE = (
    "onnxruntime",
    "onnxruntime-gpu",
    "onnxruntime-directml",
    "onnxruntime-migraphx",
    "onnxruntime-openvino",
    "onnxruntime-rocm",
    "onnxruntime-training",
    "onnxruntime-trt-rtx",
    "onnxruntime-webgpu",
    "onnxruntime-windowsml",
)
NO_KERNEL = "no kernel image is available"  # CUDA's words for a GPU that a library has no code for
PAGE = "docs/reference/runtimes.md"


@dataclass(frozen=True, kw_only=True)
class Lack:
    """What is missing or wrong, and the command or the step that mends it, if there is one."""

    what: str
    next: str | None = None


def lacks(place: Place, facts: Facts) -> list[Lack]:
    """What a place lacks; only if nothing can be named, what running a small model there said."""
    found = list(KNOWN.get(place.runtime, of_other)(place, facts))
    return found or list(of_trial(place, facts))


def of_cpu(_: Place, facts: Facts) -> Iterator[Lack]:
    if not present(CPU, facts):
        yield Lack(what="ONNX Runtime is not installed", next=pip(REQUIREMENTS[CPU]))
        return
    yield from of_onnxruntime(facts)
    if len(together(facts)) > 1:
        yield Lack(
            what=f"{' and '.join(together(facts))} are installed, and overwrite one another",
            next=anew(facts, for_gpu(facts) if facts.gpus else REQUIREMENTS[CPU]),
        )


def of_cuda(place: Place, facts: Facts) -> Iterator[Lack]:
    built = facts.runtime.value and facts.runtime.value["cuda"]
    wanted = for_gpu(facts)
    major = release(built)[0] if built else 12 if wanted == FOR_CUDA_12 or facts.machine.jetson else CUDA_13
    older = anew(facts, FOR_CUDA_12) if has_cuda_12(facts) else None
    for lack in of_gpu(place, facts, major, older):
        yield lack
        if older and lack.next == older:
            return  # which mends all that could follow
    if CUDA_PROVIDER in facts.listed:
        yield from of_libraries("cuda", facts)
    elif "onnxruntime-gpu" not in together(facts):
        if facts.nvidia:  # else it would not help
            yield without_cuda(facts, wanted)
    elif facts.runtime.error:
        yield from of_onnxruntime(facts)
    else:
        others = " and ".join(name for name in together(facts) if name != "onnxruntime-gpu")
        what = f"{others} has overwritten onnxruntime-gpu" if others else "this onnxruntime-gpu was built without CUDA"
        yield Lack(what=what, next=anew(facts, wanted))


def of_openvino(_: Place, facts: Facts) -> Iterator[Lack]:
    version, wanted = facts.packages.get("openvino"), REQUIREMENTS[OPENVINO]
    if not present(OPENVINO, facts):
        yield Lack(what="OpenVINO is not installed", next=pip(wanted))
    elif version and release(version) < least(wanted):
        yield Lack(what=f"OpenVINO {version} is older than any that onnxplain knows", next=pip(wanted))


def of_tensorrt(place: Place, facts: Facts) -> Iterator[Lack]:
    flavour, version = tensorrt(facts)
    yield from of_gpu(place, facts, int(flavour[-2:]))
    if not present(TENSORRT, facts):
        if version:
            yield Lack(
                what=f"of TensorRT {version} only the Python bindings are installed, not the libraries, "
                "which are not on PyPI",
                next=pip(f"{flavour}=={version}", options=NVIDIA_INDEX),
            )
        elif facts.machine.jetson:
            yield Lack(
                what="TensorRT comes with JetPack, for the Python of the system, and this Python does not see it",
                next="sudo apt install python3-libnvinfer, and an environment that is made with "
                "python3 -m venv --system-site-packages",
            )
        elif facts.nvidia:
            yield Lack(
                what="TensorRT is not installed; its libraries are not on PyPI",
                next=pip(flavour, bindings(flavour), options=NVIDIA_INDEX),
            )
        return
    library = re.search(r"(lib(?:nvinfer|nvonnxparser)[\w.]*): cannot open", told(facts.trials.get(str(place))))
    if library:
        yield Lack(
            what=f"{library[1]}, a library of TensorRT, is not found",
            next=pip(f"{flavour}=={version}" if version else flavour, options=f"--force-reinstall {NVIDIA_INDEX}"),
        )
    yield from of_bindings(flavour, facts)


def of_tensorrt_rtx(place: Place, facts: Facts) -> Iterator[Lack]:
    flavour = "tensorrt-rtx-cu13"
    if "tensorrt-rtx-cu12" in facts.packages or (before_cuda_13(facts) and flavour not in facts.packages):
        flavour = "tensorrt-rtx-cu12"
    yield from of_gpu(place, facts, int(flavour[-2:]))
    if not present(TENSORRT_RTX, facts):
        if facts.nvidia:
            yield Lack(what="TensorRT for RTX is not installed", next=pip(flavour, bindings(flavour)))
        return
    if facts.builder.error:
        yield Lack(what=f"TensorRT for RTX does not start: {facts.builder.error}", next=reinstall(flavour))
    elif place.device < len(facts.gpus):
        gpu = facts.gpus[place.device]
        major, minor = gpu["capability"]
        if f"SM{major}{minor}" not in facts.builder.value["targets"]:
            yield Lack(
                what=f"TensorRT for RTX {facts.builder.value['version']} does not support the {gpu['name']} (compute "
                f"capability {major}.{minor})",
                next="use --on tensorrt, or --on cuda",
            )
    if facts.nvidia:
        yield from of_bindings(flavour, facts)


def of_other(place: Place, facts: Facts) -> Iterator[Lack]:
    """Of a provider that is asked for by its name."""
    plugin = facts.plugin(place.runtime)
    if not present(CPU, facts):
        yield Lack(what="ONNX Runtime is not installed", next=pip(REQUIREMENTS[CPU]))
    elif facts.runtime.error:
        yield from of_onnxruntime(facts)
    elif place.runtime in facts.listed:
        if place.runtime == TENSORRT_PROVIDER:
            yield from of_tensorrt_provider(place, facts)
    elif plugin is None:
        yield Lack(
            what=f"ONNX Runtime has no {place.runtime}, only {', '.join(facts.listed)}",
            next=f"install the package that has it ({PAGE})",
        )
    elif plugin["error"] and "libcuda.so" in plugin["error"]:
        yield from of_gpu(place, facts, CUDA_13)
    elif plugin["error"]:
        yield Lack(what=f"its plugin does not load: {plugin['error']}")
    elif not plugin["devices"]:
        yield Lack(what="its plugin finds no device here that it is for")


def of_tensorrt_provider(place: Place, facts: Facts) -> Iterator[Lack]:
    """The provider is linked to one major of TensorRT; another one that is installed is of no use to it."""
    flavour, version = tensorrt(facts)
    linked = linked_tensorrt(facts)
    gpu = list(of_gpu(place, facts, release(facts.runtime.value["cuda"] or "13")[0]))
    if gpu:
        yield from gpu
    elif linked and version and release(version)[0] != linked:
        yield Lack(
            what=f"it is linked to TensorRT {linked}, and TensorRT {version} is installed",
            next=f"use --on tensorrt, which takes both, or {pip(f'{flavour}=={linked}.*', options=NVIDIA_INDEX)}",
        )
    else:
        yield from of_libraries("tensorrt", facts)


# What several places share.


def of_gpu(place: Place, facts: Facts, major: int, then: str | None = None) -> Iterator[Lack]:
    """What the driver and the GPU lack for libraries of CUDA `major`; `then` is the way to libraries of CUDA 12."""
    newer = f"install NVIDIA's driver {DRIVER_OF_CUDA_13} or later, and restart"
    if facts.machine.jetson:
        newer = f"install a JetPack with CUDA {major}"
    elif "Ubuntu" in facts.machine.system and not facts.machine.container:
        newer = "sudo ubuntu-drivers install, and restart"
    if facts.driver.error:
        yield Lack(what=f"NVIDIA's driver was asked, but {facts.driver.error}", next="restart the machine")
        return
    driver = facts.driver.value
    if driver["missing"] and not facts.nvidia:
        seen = facts.machine.system.startswith("Linux")  # elsewhere it is the driver alone that would tell
        yield Lack(
            what="there is no NVIDIA GPU in this machine" if seen else "there is no NVIDIA GPU, or no driver for it"
        )
    elif driver["missing"]:
        what = f"there is a GPU, but its driver is not found ({driver['missing'].partition(':')[0]})"
        runtime = "--runtime nvidia" if facts.machine.jetson else "--gpus all"
        yield Lack(what=what, next=f"start the container with {runtime}" if facts.machine.container else newer)
    elif driver["error"]:
        yield Lack(what=f"NVIDIA's driver says {driver['error']}", next=DRIVER_ERRORS.get(driver["error"], newer))
    elif place.device >= len(facts.gpus):
        last = f"the last one is number {len(facts.gpus) - 1}" if facts.gpus else "the driver shows none"
        yield Lack(what=f"there is no GPU with the number {place.device}; {last}")
    elif driver["cuda"] and driver["cuda"][0] < major:
        named = f" {driver['version']}" if driver["version"] else ""
        yield Lack(
            what=f"the driver{named} is for CUDA {driver['cuda'][0]}.{driver['cuda'][1]}, and CUDA {major} is needed",
            next=(then if driver["cuda"][0] == 12 else None) or newer,
        )
    elif major >= CUDA_13 and tuple(facts.gpus[place.device]["capability"]) < LEAST_CAPABILITY_OF_CUDA_13:
        yield Lack(what=f"CUDA {major} does not support the {facts.gpus[place.device]['name']}", next=then)


DRIVER_ERRORS = {
    "CUDA_ERROR_NO_DEVICE": "look at CUDA_VISIBLE_DEVICES, and in a container at --gpus all",
    "CUDA_ERROR_SYSTEM_DRIVER_MISMATCH": "restart the machine, whose driver was updated",
    "CUDA_ERROR_STUB_LIBRARY": "take the folder stubs out of LD_LIBRARY_PATH",
}


def of_onnxruntime(facts: Facts) -> Iterator[Lack]:
    """What is wrong with the ONNX Runtime that is installed."""
    name = (together(facts) or ["onnxruntime"])[-1]
    if facts.runtime.says("has no __init__.py", "has no attribute"):
        yield Lack(
            what="the files of ONNX Runtime are incomplete, as after an uninstall of one of two packages",
            next=reinstall(name),
        )
    elif facts.runtime.error:
        yield Lack(what=f"ONNX Runtime cannot be imported: {facts.runtime.error}", next=reinstall(name))
    elif release(facts.runtime.value["version"]) < least(REQUIREMENTS[CPU]):
        version = facts.runtime.value["version"]
        wanted = REQUIREMENTS[CPU].replace("onnxruntime", name)
        yield Lack(what=f"ONNX Runtime {version} is older than any that onnxplain knows", next=pip(wanted))


def without_cuda(facts: Facts, wanted: str) -> Lack:
    """There is no ONNX Runtime for CUDA, where there is a GPU."""
    if facts.machine.jetson:
        return Lack(
            what="ONNX Runtime for CUDA is not installed, and the package on PyPI has no code for a Jetson",
            next=f"use --on tensorrt, or a build for this JetPack ({PAGE})",
        )
    return Lack(what="ONNX Runtime for CUDA is not installed", next=anew(facts, wanted))


def of_libraries(provider: str, facts: Facts) -> Iterator[Lack]:
    """The libraries that a provider needs and that are not found; the driver's own is told of elsewhere."""
    names = facts.missing.get(provider, UNASKED).value or ()
    tensorrts = [name for name in names if name.startswith(("libnvinfer", "libnvonnxparser"))]
    others = [name for name in names if name not in tensorrts and not name.startswith(("libcuda.", "nvcuda."))]
    if others:
        version = facts.runtime.value["version"]
        yield Lack(what=f"not found: {', '.join(others)}", next=pip(f"onnxruntime-gpu[cuda,cudnn]=={version}"))
    if tensorrts:
        flavour, version = tensorrt(facts)
        yield Lack(
            what=f"not found: {', '.join(tensorrts)}",
            next="put the folder tensorrt_libs of site-packages on LD_LIBRARY_PATH"
            if version
            else pip(f"{flavour}=={linked_tensorrt(facts)}.*", options=NVIDIA_INDEX),
        )


def of_bindings(flavour: str, facts: Facts) -> Iterator[Lack]:
    if "cuda-bindings" not in facts.packages:
        yield Lack(what="cuda-bindings is not installed", next=pip(bindings(flavour)))


def of_trial(place: Place, facts: Facts) -> Iterator[Lack]:
    """Why the small model did not run."""
    answer = facts.trials.get(str(place), UNASKED)
    if answer.error is None:
        return
    if answer.says(NO_KERNEL) and place.device < len(facts.gpus):
        gpu = facts.gpus[place.device]
        capability = ".".join(map(str, gpu["capability"]))
        yield Lack(
            what=f"this build of the runtime has no code for the {gpu['name']} (compute capability {capability})",
            next=f"use --on tensorrt, or a build that has ({PAGE})",
        )
        return
    cause = (answer.causes or (answer.error,))[-1].partition("; next:")[0]
    printed = re.search(r"(?:with error|CUDA failure \d+|Error Code \d+): [^;\n]*", answer.log)
    yield Lack(what=f"a small model did not run: {cause}" + (f" ({printed[0]})" if printed else ""))


def for_gpu(facts: Facts) -> str:
    """The onnxruntime-gpu that fits the driver and the GPU."""
    return FOR_CUDA_12 if before_cuda_13(facts) and has_cuda_12(facts) else REQUIREMENTS[CUDA]


def has_cuda_12(facts: Facts) -> bool:
    """Whether there is an onnxruntime-gpu for CUDA 12; for aarch64 there are wheels from 1.29 on, all for CUDA 13."""
    return facts.machine.architecture != "aarch64"


def together(facts: Facts) -> list[str]:
    """The installed distributions that have the module onnxruntime in them."""
    return [name for name in SAME_MODULE if name in facts.packages]


def tensorrt(facts: Facts) -> tuple[str, str | None]:
    """The distribution of TensorRT, without `-bindings` and the like, and the version that is installed."""
    for flavour in ("tensorrt-cu13", "tensorrt-cu12"):
        for part in ("-libs", "-bindings", ""):
            if flavour + part in facts.packages:
                return flavour, facts.packages[flavour + part]
    return "tensorrt-cu12" if before_cuda_13(facts) else "tensorrt-cu13", facts.packages.get("tensorrt")


def bindings(flavour: str) -> str:
    """The CUDA bindings for a distribution whose name ends with the major of CUDA."""
    return f"cuda-bindings=={flavour[-2:]}.*"


def linked_tensorrt(facts: Facts) -> int | None:
    """The major of TensorRT that ONNX Runtime's provider is linked to."""
    found = (re.fullmatch(r"libnvinfer\.so\.(\d+)", name) for name in facts.needs.get("tensorrt", ()))
    return next((int(match[1]) for match in found if match), None)


def before_cuda_13(facts: Facts) -> bool:
    """Whether the driver or the GPU is too old for CUDA 13, and not for 12."""
    old = any(tuple(gpu["capability"]) < LEAST_CAPABILITY_OF_CUDA_13 for gpu in facts.gpus[:1])
    cuda = facts.driver.value and facts.driver.value["cuda"]
    return old or bool(cuda and cuda[0] < CUDA_13)


def present(runtime: str, facts: Facts) -> bool:
    return MODULES[runtime] in facts.modules


def told(answer: Answer | None) -> str:
    """All that an answer says of an error."""
    return "\n".join([answer.error or "", *answer.causes]) if answer else ""


def least(requirement: str) -> tuple[int, ...]:
    """The version in `name>=version`."""
    return release(requirement.partition(">=")[2])


def pip(*requirements: str, options: str = "") -> str:
    """The command that installs them; quoted where a shell would read them in its own way."""
    quoted = [f'"{name}"' if set(name) & set("<>[]*") else name for name in requirements]
    return " ".join(filter(None, ("pip install", options, *quoted)))


def reinstall(name: str) -> str:
    return f"pip install --force-reinstall --no-deps {name}"


def anew(facts: Facts, requirement: str) -> str:
    """The command that installs an ONNX Runtime where there may be another one."""
    there = together(facts)
    return f"pip uninstall -y {' '.join(there)} && {pip(requirement)}" if there else pip(requirement)


KNOWN: dict[str, Callable[[Place, Facts], Iterator[Lack]]] = {
    CPU: of_cpu,
    CUDA: of_cuda,
    TENSORRT: of_tensorrt,
    TENSORRT_RTX: of_tensorrt_rtx,
    OPENVINO: of_openvino,
}
