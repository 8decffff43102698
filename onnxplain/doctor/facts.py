"""Everything that the judgement of this machine rests on, gathered with each runtime in a process of its own."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from onnxplain.doctor.asking import Answer, Question, ask_all
from onnxplain.doctor.machine import Machine, read_machine
from onnxplain.doctor.packages import folder, installed, needs, provider_libraries
from onnxplain.engine.executors.place import CPU, CUDA, OPENVINO, RUNTIMES, TENSORRT, TENSORRT_RTX, Place

# The module that each place cannot do without.
MODULES = {
    CPU: "onnxruntime",
    CUDA: "onnxruntime",
    TENSORRT: "tensorrt",
    TENSORRT_RTX: "tensorrt_rtx",
    OPENVINO: "openvino",
}
# Providers that are not places: the CPU's and CUDA's have names of their own here, Azure's calls a server.
CUDA_PROVIDER, TENSORRT_PROVIDER = "CUDAExecutionProvider", "TensorrtExecutionProvider"
NOT_OTHERS = ("CPUExecutionProvider", CUDA_PROVIDER, "AzureExecutionProvider")
# CUDA's provider loads it itself, and convolutions fail without it.
CUDNN = "cudnn64_9.dll" if sys.platform == "win32" else "libcudnn.so.9"
PLUGINS = ("onnxruntime-ep-", "onnxruntime-qnn")  # how the distributions of plugins begin
UNASKED = Answer(error="it was not asked")


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What was found out. `modules` are those of `MODULES` that are there, `needs` and `missing` the libraries that a
    provider of ONNX Runtime needs and those of them that cannot be loaded, by `cuda` and `tensorrt`; `trials` are by
    the place's text, `plugins` by the distribution."""

    machine: Machine
    packages: Mapping[str, str]
    modules: frozenset[str]
    driver: Answer
    runtime: Answer = UNASKED
    builder: Answer = UNASKED
    needs: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    missing: Mapping[str, Answer] = field(default_factory=dict)
    trials: Mapping[str, Answer] = field(default_factory=dict)
    plugins: Mapping[str, Answer] = field(default_factory=dict)

    @property
    def gpus(self) -> list[dict[str, Any]]:
        """GPUs that the driver shows: name, compute capability, memory."""
        return list(self.driver.value["gpus"]) if self.driver.value else []

    @property
    def nvidia(self) -> bool:
        """Whether there is a GPU of NVIDIA, whatever its driver says."""
        return bool(self.machine.nvidia or self.machine.jetson or self.gpus)

    @property
    def listed(self) -> list[str]:
        """The providers that ONNX Runtime was built with; whether they work is another question."""
        return list(self.runtime.value["providers"]) if self.runtime.value else []

    @property
    def others(self) -> list[str]:
        """Providers of ONNX Runtime that are places by their names, those of plugins last."""
        plugins = [answer.value["provider"] for answer in self.plugins.values() if answer.value]
        return list(dict.fromkeys(p for p in [*self.listed, *plugins] if p not in NOT_OTHERS))

    def plugin(self, provider: str) -> dict[str, Any] | None:
        """What a provider that comes as a plugin told of itself."""
        answers = (answer.value for answer in self.plugins.values() if answer.value)
        return next((value for value in answers if value["provider"] == provider), None)


def gather(on: Place | None = None) -> Facts:
    """The facts that concern a place, or all of them."""
    packages = installed()
    modules = frozenset(name for name in {*MODULES.values(), "tensorrt_bindings"} if folder(name))
    plugins = {name: name.replace("-", "_") for name in packages if name.startswith(PLUGINS)}
    plugins = {name: module for name, module in plugins.items() if "onnxruntime" in modules and folder(module)}
    asked = [on] if on else [Place(runtime) for runtime in RUNTIMES]
    answers = ask_all(
        [
            ("driver",),
            *([("onnxruntime",)] if "onnxruntime" in modules else []),
            *([("tensorrt_rtx",)] if "tensorrt_rtx" in modules and TENSORRT_RTX in {p.runtime for p in asked} else []),
            *(("trial", str(place)) for place in asked if MODULES.get(place.runtime) in modules),
            *(("plugin", module) for module in plugins.values() if on is None or on.runtime not in RUNTIMES),
        ]
    )
    facts = Facts(
        machine=read_machine(),
        packages=packages,
        modules=modules,
        driver=answers[("driver",)],
        runtime=answers.get(("onnxruntime",), UNASKED),
        builder=answers.get(("tensorrt_rtx",), UNASKED),
        needs={name: needs(library) for name, library in provider_libraries().items()},
        plugins={name: answers["plugin", module] for name, module in plugins.items() if ("plugin", module) in answers},
        trials={question[1]: answer for question, answer in answers.items() if question[0] == "trial"},
    )
    return ask_further(facts, on)


def ask_further(facts: Facts, on: Place | None) -> Facts:
    """Ask what could only be asked once it was known which providers there are."""
    libraries = {
        library: ("libraries", *facts.needs[library], *cudnn)
        for library, place, provider, cudnn in (
            ("cuda", CUDA, CUDA_PROVIDER, [CUDNN]),
            ("tensorrt", TENSORRT_PROVIDER, TENSORRT_PROVIDER, []),
        )
        if library in facts.needs and provider in facts.listed and (on is None or on.runtime == place)
    }
    trials: dict[str, Question] = {}
    for place in map(Place, facts.others) if on is None else [on] if on.runtime in facts.others else []:
        plugin = facts.plugin(place.runtime)
        if place.runtime in facts.listed:
            trials[str(place)] = ("trial", str(place))
        elif plugin and plugin["devices"]:
            trials[str(place)] = ("trial", str(place), f"library={plugin['library']}")
    answers = ask_all([*libraries.values(), *trials.values()])
    return replace(
        facts,
        missing={library: answers[question] for library, question in libraries.items()},
        trials={**facts.trials, **{place: answers[question] for place, question in trials.items()}},
    )
