"""Infidelity: does an attribution say how the output changes when the image is perturbed?"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from enum import Enum
from typing import Any

import numpy as np

from onnxplain.engine.drive import Model, as_model, in_order
from onnxplain.engine.methods.method import (
    AT_ONCE,
    CLASS_KINDS,
    MOST_STEPS,
    Array,
    channel_axis,
    generator,
    require_one_of,
    require_positive,
    require_whole,
    word,
)
from onnxplain.engine.metrics.measured import Measured, class_of, require_attribution
from onnxplain.engine.requests import Head, Kind, Logits, Objective, Program
from onnxplain.engine.space import Space
from onnxplain.errors import UsageError

MOST_SIDE = 10_000


class Perturbation(Enum):
    """How images are perturbed: what I is in x - I."""

    GAUSSIAN = "gaussian"  # I ~ N(0, s^2) in every feature
    SQUARE = "square"  # I = x - zero in a square that lies anywhere, and 0 outside: the square gets the mean colour


@dataclass(frozen=True, kw_only=True)
class Infidelity:
    """E_I [(I^T A - (F(x) - F(x - I)))^2], over `samples` draws of I; lower is better, 0 for A = w of a linear F.

    F is `objective` of the explained class. I is drawn as `perturbation` says: noise of the standard deviation `noise`,
    in pixel units (1 is from black to white), or the removal of a square of `side` pixels. Perturbed images are not
    clipped. Costs `samples` + 1 forward rows. Units: those of F, squared.

    `normalise`: of beta A, with the beta that makes it least, E[I^T A dF] / E[(I^T A)^2] (0 if I^T A is always 0), so
    that the scale of A does not count.

    `times_input`: A has the factor x - x' in it, as those of integrated gradients and DeepLIFT have, and I^T A is
    sum_i I_i / (x_i - x'_i) A_i; the call then needs x'. A feature with x_i = x'_i adds nothing. Without it, A is taken
    to be a local map, in units of F per unit of the input, like a gradient.

    Source: Yeh, Hsieh, Suggala, Inouye and Ravikumar, On the (In)fidelity and Sensitivity of Explanations, NeurIPS
    2019, definition 2.1. The scaling is that of the paper's code, and of Captum.
    """

    id: str = "infidelity"
    perturbation: Perturbation = Perturbation.GAUSSIAN
    noise: float = 0.01
    side: int = 16
    samples: int = 100
    normalise: bool = False
    times_input: bool = False
    objective: Kind = Kind.LOGIT

    def __post_init__(self) -> None:
        require_one_of("Infidelity: perturbation", self.perturbation, Perturbation)
        require_positive("Infidelity: noise", self.noise, 1.0)
        require_whole("Infidelity: side", self.side, 1, MOST_SIDE)
        require_whole("Infidelity: samples", self.samples, 1, MOST_STEPS)
        require_one_of("Infidelity: objective", self.objective, CLASS_KINDS)

    @property
    def protocol(self) -> str:
        """All that fixes the number, in words."""
        unused = "side" if self.perturbation is Perturbation.GAUSSIAN else "noise"
        values = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("id", unused)}
        return ", ".join(f"{k}={word(v) if isinstance(v, Enum) else v}" for k, v in values.items())

    def __call__(
        self,
        x: Array,
        heatmap: Array,
        *,
        space: Space,
        target: int | Array,
        rng: np.random.Generator,
        head: Head = Head.SOFTMAX,
        start: Array | None = None,
        name: str = "heatmap",
    ) -> Program[Measured]:
        """The infidelity of an attribution in the shape of `x`.

        Args:
            x: one image, in the space and dtype of the model's input.
            heatmap: the attribution.
            space: what a pixel unit and the mean colour are.
            target: the class that is explained, or weights of classes.
            rng: draws the perturbations; one of its own for each image.
            head: what makes probabilities of logits.
            start: x', for a map with `times_input`.
            name: of the heatmap, for errors.

        Raises:
            InputError: the map is not in the shape of the image, or holds NaN or Inf.
            UsageError: x' is missing; noise is asked for, but the input's range is unknown; a square is larger than
                the image, or the image has no height and width.
        """
        require_attribution(x, heatmap, name)
        a = self.local(x, heatmap, start)
        objective = Objective(self.objective, target, head)
        (at_x,) = objective.value((yield Logits(x[None])))
        products: list[Array] = []
        changes: list[Array] = []
        for first in range(0, self.samples, AT_ONCE):
            i = self.perturbations(x, space, rng, min(AT_ONCE, self.samples - first))
            changes.append(at_x - objective.value((yield Logits(x - i))))
            products.append((i.astype(np.float64) * a).reshape(len(i), -1).sum(axis=1))
        value, beta = infidelity(np.concatenate(products), np.concatenate(changes), self.normalise)
        return Measured(
            metric="infidelity",
            value=value,
            direction="lower",
            protocol=self.protocol,
            target=class_of(target),
            facts={"scaling": beta},
        )

    def local(self, x: Array, heatmap: Array, start: Array | None) -> Array:
        """The attribution without its factor x - x', in float64."""
        if not self.times_input:
            return heatmap.astype(np.float64)
        if start is None:
            raise UsageError("Infidelity: a map that has x - x' in it needs x'; next: give `start`")
        step = np.asarray(x - start, np.float64)
        return np.divide(heatmap, step, out=np.zeros_like(step), where=step != 0)

    def perturbations(self, x: Array, space: Space, rng: np.random.Generator, count: int) -> Array:
        """`count` draws of I, (count, ...), in the dtype of x."""
        if self.perturbation is Perturbation.GAUSSIAN:
            space.require_range("infidelity with gaussian noise")
            return (self.noise * space.span * rng.normal(size=(count, *x.shape))).astype(x.dtype)
        axis = channel_axis(x, space)
        if axis is None:
            raise UsageError("infidelity with squares needs images with channels, height and width; next: use noise")
        height, width = np.delete(x.shape, axis)
        if self.side > min(height, width):
            raise UsageError(
                f"Infidelity: a square of {self.side} pixels does not fit an image of {height} x {width}; "
                f"next: give a side of at most {min(height, width)}"
            )
        removed = np.zeros((count, height, width), bool)
        corners = rng.integers(0, (height - self.side + 1, width - self.side + 1), size=(count, 2))
        for mask, (top, left) in zip(removed, corners, strict=True):
            mask[top : top + self.side, left : left + self.side] = True
        return np.where(np.expand_dims(removed, 1 + axis), x - space.zero, 0).astype(x.dtype)

    def rows(self) -> int:
        """How many forward rows one map costs: for progress bars."""
        return self.samples + 1

    def score(
        self,
        model: Model | Callable[[Array], Array],
        images: Array,
        heatmaps: Sequence[Array],
        *,
        space: Space,
        targets: Sequence[int],
        seed: int = 0,
        batch_size: int = 8,
        **more: Any,
    ) -> list[Measured]:
        """Score one attribution for each image; an image draws the same alone and in any company.

        `model` is the driver's, or any callable images (n, ...) -> logits (n, K); it gets at most `batch_size`. What is
        `more` goes to `__call__`.
        """
        if not len(images) == len(heatmaps) == len(targets):
            raise UsageError(
                "expected one heatmap and one target for each image, "
                f"got {len(heatmaps)} and {len(targets)} for {len(images)}"
            )
        if not len(images):
            return []
        programs = (
            self(x, a, space=space, target=target, rng=generator(seed, x, self), **more)
            for x, a, target in zip(images, heatmaps, targets, strict=True)
        )
        return list(in_order(programs, as_model(model, images[:1], batch_size=batch_size)))


def infidelity(products: Array, changes: Array, normalise: bool) -> tuple[float, float]:
    """mean (beta I^T A - dF)^2 and beta, from the `products` I^T A and the `changes` dF of all draws (n,)."""
    beta = 1.0
    if normalise:
        power = float(products @ products)
        beta = float(products @ changes) / power if power else 0.0
    return float(((beta * products - changes) ** 2).mean()), beta
