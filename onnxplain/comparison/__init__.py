"""This engine held against a PyTorch reference, or against itself on another runtime: logits, gradients, attributions,
scores, time and memory, with thresholds.

    images ──► Explainer ──► logits, gradients, attributions ──┐
          └──► Side     ──►  the same                        ──┴──► Comparison

Path integrals and single gradients are continuous in the gradient: two right implementations rank all features alike.
Methods that step by its sign are not. A sign that hangs on the last digit falls as each rounds, the walk goes
elsewhere, and two right implementations in float32 agree no better than one of them with itself in float64. They are
judged by what must agree all the same: the gradient at each point where they ask for it, and how good their maps are on
the mean.
"""

from __future__ import annotations

from onnxplain.comparison.compare import compare
from onnxplain.comparison.results import (
    Comparison,
    Gradients,
    ImageAgreement,
    ImageGradients,
    MethodAgreement,
    Thresholds,
)

__all__ = ["Comparison", "Gradients", "ImageAgreement", "ImageGradients", "MethodAgreement", "Thresholds", "compare"]
