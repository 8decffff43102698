"""What fixes the number of an insertion/deletion game. No score means anything without it."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from enum import StrEnum
from fractions import Fraction

import numpy as np

from onnxplain.errors import UsageError


class Substrate(StrEnum):
    """What stands for "no image"."""

    BLUR = "blur"  # the image through RISE's 11x11 filter, padded with the mean colour
    BLACK = "black"  # the low end of the input's range
    ZERO = "zero"  # zero in model space: the mean colour


class Order(StrEnum):
    """What is ranked."""

    PIXEL = "pixel"  # the map (H, W), reduced over channels: every step changes as many pixels
    UNION = "union"  # each channel by itself; a pixel changes when its best channel does: up to C times as many


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """Everything that fixes an insertion or deletion curve.

    Fields: `step`, pixels that change at each step, or which share of them: Fraction(1, 56) makes it ceil(HW / 56), so
    that models of different sizes get as many steps (None: 1/224); the substrate that `insertion` starts from; the one
    that `deletion` ends in; the `order`.

    The same for all: the class is the argmax of the full image. Pixels change in descending order of the map, ties by
    their lower index. The curve is the probability of that class (of the model's head), s_0 before any change to s_N
    after the last, N = ceil(HW / step). Its area is that of the trapezoid rule with spacing 1/N, even if the last step
    is short.

    `str(protocol)` is its label in results: the name, and all that differs from the preset of that name.
    """

    name: str
    step: int | Fraction | None
    insertion: Substrate
    deletion: Substrate
    order: Order = Order.PIXEL

    def __post_init__(self) -> None:
        step = self.step
        whole = isinstance(step, (int, np.integer)) and not isinstance(step, bool) and step >= 1
        if not (step is None or whole or (isinstance(step, Fraction) and 0 < step <= 1)):
            expected = "a share of the pixels, such as 1/56, or a whole number of at least 1 pixel"
            raise UsageError(f"step: expected {expected}, got {step!r}")

    @classmethod
    def named(cls, name: str, step: int | Fraction | None = None) -> Protocol:
        """The preset `name`, with another `step` if one is given."""
        if name not in PROTOCOLS:
            raise UsageError(f"protocol {name!r} is unknown; next: use one of {', '.join(PROTOCOLS)}")
        return PROTOCOLS[name] if step is None else replace(PROTOCOLS[name], step=step)

    def __str__(self) -> str:
        preset = PROTOCOLS.get(self.name)
        ours = {f.name: getattr(self, f.name) for f in fields(self)}
        changed = [f"{key}={value}" for key, value in ours.items() if value != getattr(preset, key, None)]
        changed = [item for item in changed if item != f"name={self.name}"]
        return f"{self.name}({', '.join(changed)})" if changed else self.name

    def pixels(self, count: int) -> int:
        """Pixels that change at each step, of an image with `count` pixels: no more than there are."""
        if self.step is None or isinstance(self.step, Fraction):
            return math.ceil(count * (self.step or Fraction(1, 224)))
        return min(int(self.step), count)

    def steps(self, count: int) -> int:
        """N, the number of steps for an image with `count` pixels."""
        return -(-count // self.pixels(count))


PROTOCOLS = {
    protocol.name: protocol
    for protocol in (
        # Petsiuk et al. 2018. Its notebook changes 224 pixels at a step, its runs over 5000 images 1792.
        Protocol(name="rise", step=None, insertion=Substrate.BLUR, deletion=Substrate.ZERO),
        # Akhtar and Jalwana 2023 publish the area of insertion minus deletion and no protocol; of those in use this one
        # is the most likely, since they cite RISE and report gaps too large for black on both sides.
        Protocol(name="cpa", step=224, insertion=Substrate.BLUR, deletion=Substrate.ZERO),
        # Zhu et al. 2024 (ISA) and Pan et al. 2021 (AGI), as the papers describe it.
        Protocol(name="agi_isa", step=224, insertion=Substrate.BLACK, deletion=Substrate.BLACK),
        # The same, as their released code does it: advanced indexing makes it change all three channels of a pixel
        # when any one of them is due. That inflates insertion and deflates deletion.
        Protocol(
            name="agi_isa-union", step=224, insertion=Substrate.BLACK, deletion=Substrate.BLACK, order=Order.UNION
        ),
    )
}
