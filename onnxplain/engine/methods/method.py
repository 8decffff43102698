"""What every attribution method is: a frozen dataclass of hyper-parameters, called once an image."""

from __future__ import annotations

from typing import Any, ClassVar, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from onnxplain.engine.requests import Attribution, Program
from onnxplain.engine.space import Space

Array: TypeAlias = NDArray[Any]


class Method(Protocol):
    """An attribution method.

    `id` is its name in files and on the command line. Calling it with one image `x` (without batch axis, in the space
    and dtype of the model's input), the class or weights (K,) to explain, the space, and a random generator that
    belongs to this image and method alone, gives the program that computes the attribution.
    """

    id: ClassVar[str]

    def __call__(
        self, x: Array, target: int | Array, *, space: Space, rng: np.random.Generator
    ) -> Program[Attribution]: ...

    def rows(self, shape: tuple[int, ...]) -> int:
        """How many rows (forward or gradient) an image of this shape costs at most: for progress bars."""
        ...
