"""The algorithms once more, as plain loops in PyTorch: what the engine is compared with.

Written from the papers, each short enough to be read beside its paper; nothing is shared with the engine. They are
batched as well as a loop can be: all images go together, and every call of the net has `batch` rows where there are as
many. `loop(id)` takes

    net        images in [0,1], (n, C, H, W), to logits (n, K)
    x          the images to explain
    classes    (N,), which class of each
    batch      rows in one call of the net

and the parameters that the engine's method has, by the same names, as far as the loop has them. Nothing is drawn at
random: credible path has the middles of equal parts of each path (`alphas="midpoint"` of the engine's), and AGI is
given the classes to walk to, (N, k). Fast IG is given the image that its `zero` is.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

LOOPS = {
    "isa": ("isa", "isa"),
    "credible": ("credible_path", "credible_path"),
    "ig": ("integrated_gradients", "integrated_gradients"),
    "saliency": ("saliency", "saliency"),
    "gradient-x-input": ("saliency", "gradient_x_input"),
    "agi": ("agi", "agi"),
    "big": ("big", "big"),
    "gig": ("guided_ig", "guided_ig"),
    "fig": ("fast_ig", "fast_ig"),
}


def loop(id: str) -> Callable[..., Any]:
    """The loop of a method, by the engine's id. Raises `KeyError` if there is none."""
    file, name = LOOPS[id]
    made: Callable[..., Any] = getattr(import_module(f"{__name__}.{file}"), name)
    return made
