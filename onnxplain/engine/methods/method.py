"""What every attribution method is: a frozen dataclass of hyper-parameters, called once an image."""

from __future__ import annotations

from collections.abc import Iterable
from enum import Enum
from typing import Any, ClassVar, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from onnxplain.engine.requests import Attribution, Head, Kind, Program
from onnxplain.engine.space import Space
from onnxplain.errors import UsageError

Array: TypeAlias = NDArray[Any]

# Bounds of hyper-parameters: far beyond any use, so that a slip of the keyboard is told before anything is computed.
MOST_STEPS = 100_000  # of a path
MOST_WALK = 10_000  # steps of a sign-gradient walk
MOST_ETA = 1.0  # of such a step, in pixel units: from black to white

# The objectives whose target is the class to explain; the others are distances to given outputs.
CLASS_KINDS = (Kind.LOGIT, Kind.PROB, Kind.LOGPROB, Kind.CE, Kind.CE_ON_PROBS, Kind.PROB_ON_PROBS)


class Method(Protocol):
    """An attribution method.

    `id` is its name in files and on the command line. Calling it with one image `x` (without batch axis, in the space
    and dtype of the model's input), the class or weights (K,) to explain, the space, a random generator that belongs to
    this image and method alone, and the model's head, which its objectives are made with, gives the program that
    computes the attribution.
    """

    id: ClassVar[str]

    def __call__(
        self, x: Array, target: int | Array, *, space: Space, rng: np.random.Generator, head: Head = Head.SOFTMAX
    ) -> Program[Attribution]: ...

    def rows(self, shape: tuple[int, ...]) -> int:
        """How many rows (forward or gradient) an image of this shape costs at most: for progress bars."""
        ...


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
