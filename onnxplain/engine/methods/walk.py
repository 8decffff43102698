"""The step that all sign-gradient walks share."""

from __future__ import annotations

import numpy as np

from onnxplain.engine.methods.method import Array


def sign_step(x: Array, gradient: Array, step: Array, path_sum: Array | None = None) -> None:
    """D = step * sign(g);  x <- x + D;  path_sum <- path_sum + D * g, all in place.

    `path_sum` is the first-order change of the objective, feature by feature. `step` broadcasts against `x`; its sign
    is the direction (ascent or descent). A feature without gradient does not move.
    """
    displacement = step * np.sign(gradient)
    x += displacement
    if path_sum is not None:
        path_sum += displacement * gradient
