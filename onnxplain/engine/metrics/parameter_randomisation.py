"""Parameter randomisation: does an explanation depend on what the model has learnt?"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any, TypeAlias

import numpy as np

from onnxplain.engine.drive import Model, drive
from onnxplain.engine.heatmap import reduction
from onnxplain.engine.methods.method import Array, Task, require, require_one_of, word
from onnxplain.engine.metrics.max_sensitivity import Explain
from onnxplain.engine.metrics.measured import Measured, class_of
from onnxplain.engine.metrics.ranks import CONSTANT, as_ranked, reduced_how, spearman
from onnxplain.errors import NonFinite, UsageError

Reopen: TypeAlias = Callable[[Sequence[str]], AbstractContextManager[Model]]


class Cascade(Enum):
    """Which layers are drawn anew together."""

    CASCADING = "cascading"  # the k nearest to the logits
    INDEPENDENT = "independent"  # the k-th alone


@dataclass(frozen=True, kw_only=True)
class Randomised:
    """The correlations of one image, depth by depth."""

    measured: tuple[Measured, ...]

    def rows(self) -> list[dict[str, Any]]:
        """Two result rows a depth: of the map, and of its magnitude."""
        return [row for one in self.measured for row in one.rows()]


@dataclass(frozen=True, kw_only=True)
class ParameterRandomisation:
    """Spearman's correlation of the map of a model with that of the model with layers drawn anew; lower is better.

    Layers are drawn from the logits backwards: at depth k the last k (`cascading`), or the k-th from last alone
    (`independent`). `depths` are the k that are measured, all if empty. At each depth there are two numbers, of the
    map (`randomisation`) and of its magnitude (`randomisation_magnitude`): a map whose sign flips is still the same
    picture. The class is that of the model as it was learnt, and random numbers of the method are the same throughout.
    Maps are compared after `reduce` over channels ("none": every feature by itself); the magnitude is that of what is
    then ranked. A constant map, and a randomised model that gives NaN or Inf, leave the value NaN.

    Costs one explanation an image, and one more for each depth, for which the model is opened once.

    Source: Adebayo, Gilmer, Muelly, Goodfellow, Hardt and Kim, Sanity Checks for Saliency Maps, NeurIPS 2018, section
    3: rank correlation without and with absolute values.
    """

    id: str = "parameter_randomisation"
    cascade: Cascade = Cascade.CASCADING
    depths: tuple[int, ...] = ()
    reduce: str = "sum"

    def __post_init__(self) -> None:
        require_one_of("ParameterRandomisation: cascade", self.cascade, Cascade)
        if self.reduce != "none":
            reduction(self.reduce)
        increasing = list(self.depths) == sorted(set(self.depths)) and all(k >= 1 for k in self.depths)
        require(increasing, "ParameterRandomisation: depths", "increasing whole numbers from 1 on", self.depths)

    def score(
        self,
        model: Model,
        reopen: Reopen,
        layers: Sequence[str],
        images: Array,
        method: Explain,
        tasks: Sequence[Task],
    ) -> list[Randomised]:
        """The correlations of a method at some images, one task each.

        Args:
            model: as it was learnt.
            reopen: gives the model with the layers of these names drawn anew, as a context.
            layers: names of the layers that have weights, from the logits backwards.
            images: (N, ...), in the space and dtype of the model's input.
            method: what explains.
            tasks: what it is told, one for each image; their random numbers are left as they are.

        Raises:
            UsageError: there are not as many tasks as images, or no layers at a depth that is asked for.
        """
        if len(images) != len(tasks):
            raise UsageError(f"expected one task for each image, got {len(tasks)} for {len(images)}")
        depths = self.depths or tuple(range(1, len(layers) + 1))
        if not layers or depths[-1] > len(layers):
            raise UsageError(f"depth {depths[-1] if depths else 1}: the model has {len(layers)} layers with weights")

        original: list[Array] = []
        for one in self.maps(model, images, method, tasks):
            if isinstance(one, NonFinite):
                raise one
            original.append(one)
        found: list[list[Measured]] = [[] for _ in images]
        for k in depths:
            drawn = layers[:k] if self.cascade is Cascade.CASCADING else layers[k - 1 : k]
            protocol = f"{word(self.cascade)}, depth={k}/{len(layers)}"
            with reopen(drawn) as other:
                for i, changed in enumerate(self.maps(other, images, method, tasks)):
                    how = reduced_how(images[i], tasks[i].space, self.reduce)
                    for metric, magnitude in {"randomisation": False, "randomisation_magnitude": True}.items():
                        value, undefined = compared(original[i], changed, magnitude)
                        found[i].append(
                            Measured(
                                metric=metric,
                                value=value,
                                direction="lower",
                                protocol=protocol,
                                target=class_of(tasks[i].target),
                                **how,
                                undefined=undefined,
                                facts={"depth": k, "layer": layers[k - 1]},
                            )
                        )
        return [Randomised(measured=tuple(ours)) for ours in found]

    def maps(self, model: Model, images: Array, method: Explain, tasks: Sequence[Task]) -> Iterator[Array | NonFinite]:
        """The map of each image as it is ranked, or how the model failed on it."""
        programs = (
            method(x, replace(task, rng=copy.deepcopy(task.rng))) for x, task in zip(images, tasks, strict=True)
        )
        for outcome in sorted(drive(programs, model), key=lambda outcome: outcome.index):
            if isinstance(outcome.error, NonFinite):
                yield outcome.error
            else:
                x, space = images[outcome.index], tasks[outcome.index].space
                yield as_ranked(outcome.unwrap().values, x, space, self.reduce)


def compared(original: Array, changed: Array | NonFinite, magnitude: bool) -> tuple[float, str | None]:
    """The correlation of two maps, or of their magnitudes, and why there is none."""
    if isinstance(changed, NonFinite):
        return math.nan, "the randomised model gave NaN or Inf"
    value = spearman(*map(np.abs, (original, changed))) if magnitude else spearman(original, changed)
    return value, CONSTANT if math.isnan(value) else None
