"""Explain the classifier that you deploy: input gradients and attributions of ONNX models, without their framework."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from onnxplain import adapters
    from onnxplain.adapters.export import write_gradient_model
    from onnxplain.adapters.gradient.classifier import gradient_model
    from onnxplain.adapters.gradient.differentiate import Coverage, coverage, differentiate
    from onnxplain.adapters.gradient.precision import in_precision
    from onnxplain.adapters.gradient.rules.deeplift import DEEPLIFT
    from onnxplain.adapters.gradient.rules.quantize import STRAIGHT_THROUGH
    from onnxplain.adapters.inspection import inspect
    from onnxplain.adapters.randomise import randomised, weight_layers
    from onnxplain.adapters.sources import export
    from onnxplain.adapters.verify import verify
    from onnxplain.engine import methods, metrics
    from onnxplain.engine.explanation import Explanation
    from onnxplain.evaluation import evaluate
    from onnxplain.explainer import Explainer, open
    from onnxplain.files import explain_photos, score_heatmaps

__all__ = [
    "DEEPLIFT",
    "STRAIGHT_THROUGH",
    "Coverage",
    "Explainer",
    "Explanation",
    "adapters",
    "coverage",
    "differentiate",
    "evaluate",
    "explain_photos",
    "export",
    "gradient_model",
    "in_precision",
    "inspect",
    "methods",
    "metrics",
    "open",
    "randomised",
    "score_heatmaps",
    "verify",
    "weight_layers",
    "write_gradient_model",
]

_HOMES = {
    "DEEPLIFT": "onnxplain.adapters.gradient.rules.deeplift",
    "STRAIGHT_THROUGH": "onnxplain.adapters.gradient.rules.quantize",
    "Coverage": "onnxplain.adapters.gradient.differentiate",
    "Explainer": "onnxplain.explainer",
    "Explanation": "onnxplain.engine.explanation",
    "coverage": "onnxplain.adapters.gradient.differentiate",
    "differentiate": "onnxplain.adapters.gradient.differentiate",
    "evaluate": "onnxplain.evaluation",
    "export": "onnxplain.adapters.sources",
    "gradient_model": "onnxplain.adapters.gradient.classifier",
    "explain_photos": "onnxplain.files",
    "in_precision": "onnxplain.adapters.gradient.precision",
    "inspect": "onnxplain.adapters.inspection",
    "open": "onnxplain.explainer",
    "randomised": "onnxplain.adapters.randomise",
    "score_heatmaps": "onnxplain.files",
    "verify": "onnxplain.adapters.verify",
    "weight_layers": "onnxplain.adapters.randomise",
    "write_gradient_model": "onnxplain.adapters.export",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used (PEP 562): `import onnxplain` imports no runtime and no framework."""
    if name == "adapters":
        return import_module("onnxplain.adapters")
    if name in ("methods", "metrics"):
        return import_module(f"onnxplain.engine.{name}")
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
