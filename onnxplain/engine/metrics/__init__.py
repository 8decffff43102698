"""How good an attribution is, in numbers that always say how they were made."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from onnxplain.engine.methods.options import configured, parameters, plain
from onnxplain.engine.metrics.completeness import CompletenessGap
from onnxplain.engine.metrics.diffid import Differences, DiffID
from onnxplain.engine.metrics.infidelity import Infidelity, Perturbation
from onnxplain.engine.metrics.insertion_deletion import Curve, InsertionDeletion, Played
from onnxplain.engine.metrics.maps import MapMetric, MapScore
from onnxplain.engine.metrics.max_sensitivity import MaxSensitivity
from onnxplain.engine.metrics.measured import Measured
from onnxplain.engine.metrics.parameter_randomisation import Cascade, ParameterRandomisation, Randomised
from onnxplain.engine.metrics.protocols import PROTOCOLS, Order, Protocol, Substrate
from onnxplain.engine.metrics.random_logit import RandomLogit
from onnxplain.engine.metrics.score import Score, Scores, Summary
from onnxplain.engine.metrics.sensitivity_n import Correlations, SensitivityN
from onnxplain.engine.metrics.weak_dependence import WeakDependence

__all__ = [
    "METRICS",
    "PROTOCOLS",
    "Cascade",
    "CompletenessGap",
    "Correlations",
    "Curve",
    "DiffID",
    "Differences",
    "Infidelity",
    "InsertionDeletion",
    "MapMetric",
    "MapScore",
    "MaxSensitivity",
    "Measured",
    "Order",
    "ParameterRandomisation",
    "Perturbation",
    "Played",
    "Protocol",
    "RandomLogit",
    "Randomised",
    "Score",
    "Scores",
    "SensitivityN",
    "Substrate",
    "Summary",
    "WeakDependence",
    "from_options",
    "to_dict",
]

# Every metric of saved maps, as it is without further words.
METRICS: dict[str, MapMetric] = {metric.id: metric for metric in (InsertionDeletion(), SensitivityN(), DiffID())}


def from_options(id: str, options: Mapping[str, str]) -> MapMetric:
    """The metric of this id with parameters given as text, `{"protocol": "agi_isa", "step": "1/56"}`.

    Raises `UsageError` for an unknown metric or parameter, naming the closest one and all of them, and for a value that
    the parameter does not take.
    """
    return configured("metric", METRICS, id, options)


def to_dict(metric: MapMetric) -> dict[str, Any]:
    """The parameters of a metric as JSON has them; a protocol by its label, which names its step too."""
    return {
        name: str(value) if isinstance(value, Protocol) else plain(value) for name, value in parameters(metric).items()
    }
