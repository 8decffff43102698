"""What every attribution method is: a frozen dataclass of hyper-parameters, called once an image."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum
from typing import Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from onnxplain.engine.requests import Attribution, Head, Kind, Objective, Program
from onnxplain.engine.space import Space
from onnxplain.errors import UsageError

Array: TypeAlias = NDArray[Any]

# Bounds of hyper-parameters: far beyond any use, so that a slip of the keyboard is told before anything is computed.
MOST_STEPS = 100_000  # of a path
MOST_WALK = 10_000  # steps of a sign-gradient walk
MOST_ETA = 1.0  # of such a step, in pixel units: from black to white

AT_ONCE = 16  # images in one request of a method that has many: they fill batches, and do not fill the memory

# The objectives whose target is the class to explain; the others are distances to given outputs.
CLASS_KINDS = (Kind.LOGIT, Kind.PROB, Kind.LOGPROB, Kind.CE, Kind.CE_ON_PROBS, Kind.PROB_ON_PROBS)


@dataclass(frozen=True, eq=False)
class Task:
    """What a method is told beside the image.

    `target` is the class, or the weights (K,), to explain; `space` says how the model's input relates to pixels; `rng`
    belongs to this image and method alone; `head` is the model's.
    """

    target: int | Array
    space: Space
    rng: np.random.Generator
    head: Head = Head.SOFTMAX

    def objective(self, kind: Kind) -> Objective:
        """The objective of this kind for the target."""
        return Objective(kind, self.target, self.head)


class Identified(Protocol):
    """What has a name in files and on the command line."""

    @property
    def id(self) -> str: ...


class Method(Identified, Protocol):
    """An attribution method.

    `id` is its name in files and on the command line; a preset, such as `ISA.repo()`, has one of its own. Calling it
    with one image `x` (without batch axis, in the space and dtype of the model's input) and its task gives the program
    that computes the attribution.
    """

    def __call__(self, x: Array, task: Task) -> Program[Attribution]: ...

    def rows(self, shape: tuple[int, ...]) -> int:
        """How many rows (forward or gradient) an image of this shape costs at most: for progress bars.

        Walks that step on the device share no gradients, which may cost a row more for each of them.
        """
        ...


def generator(seed: int, x: Array, whose: Identified) -> np.random.Generator:
    """Random numbers of one image and method, or metric, wherever the image stands and whoever else is in the batch."""
    digest = hashlib.sha256(whose.id.encode() + x.tobytes()).digest()
    return np.random.default_rng(
        np.random.SeedSequence(seed, spawn_key=tuple(np.frombuffer(digest, np.uint32).tolist()))
    )


def forward_only(method: Method) -> bool:
    """Whether a method asks no gradient, and so needs none of the model; it says so by `forward_only = True`."""
    return bool(getattr(method, "forward_only", False))


def spread(map: Array, x: Array, space: Space) -> Array:
    """A map (H, W) as an attribution of image `x`: the same in all of its C channels, so that they sum to the map."""
    axis = channel_axis(x, space)
    if axis is None:
        return np.asarray(map, x.dtype)
    return np.broadcast_to(np.expand_dims(map / x.shape[axis], axis), x.shape).astype(x.dtype)


def channel_axis(x: Array, space: Space) -> int | None:
    """The axis of the channels, None if `x` has none (fewer than three axes).

    Images are (C,H,W) or (H,W,C). The space tells which, itself or by its per-channel facts; where it does not, it is
    the shorter one of the two ends.
    """
    if x.ndim < 3:
        return None
    if space.channel_axis is not None:
        return space.channel_axis % x.ndim
    several = [axis for axis, size in enumerate(space.zero.shape, start=x.ndim - space.zero.ndim) if size > 1]
    if several:
        return several[0]
    return 0 if x.shape[0] <= x.shape[-1] else x.ndim - 1


def word(member: Enum) -> str:
    """How a choice is spelt in files and on the command line."""
    return member.name.lower()


def require(holds: bool, what: str, allowed: str, got: object) -> None:
    """Raise `UsageError` unless a hyper-parameter is one of the allowed values."""
    if not holds:
        raise UsageError(f"{what}: expected {allowed}, got {got!r}")


def require_whole(what: str, got: int, least: int, most: int) -> None:
    whole = isinstance(got, (int, np.integer)) and not isinstance(got, bool)
    require(whole and least <= got <= most, what, f"a whole number from {least} to {most}", got)


def require_positive(what: str, got: float, most: float) -> None:
    require(0 < got <= most, what, f"a positive number, at most {most:g}", got)


def require_one_of(what: str, got: Enum, allowed: Iterable[Enum]) -> None:
    allowed = tuple(allowed)
    # by identity, since the integer that an IntEnum member equals is not a choice
    holds = any(got is member for member in allowed)
    names = f"one of {', '.join(map(word, allowed))} ({type(allowed[0]).__name__})"
    require(holds, what, names, word(got) if isinstance(got, Enum) else got)
