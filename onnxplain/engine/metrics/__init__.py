"""How good an attribution is, in numbers that always say how they were made."""

from onnxplain.engine.metrics.completeness import CompletenessGap
from onnxplain.engine.metrics.infidelity import Infidelity, Perturbation
from onnxplain.engine.metrics.insertion_deletion import Curve, InsertionDeletion, Played
from onnxplain.engine.metrics.max_sensitivity import MaxSensitivity
from onnxplain.engine.metrics.measured import Measured
from onnxplain.engine.metrics.parameter_randomisation import Cascade, ParameterRandomisation, Randomised
from onnxplain.engine.metrics.protocols import PROTOCOLS, Order, Protocol, Substrate
from onnxplain.engine.metrics.random_logit import RandomLogit
from onnxplain.engine.metrics.score import Score, Scores, Summary
from onnxplain.engine.metrics.weak_dependence import WeakDependence

__all__ = [
    "PROTOCOLS",
    "Cascade",
    "CompletenessGap",
    "Curve",
    "Infidelity",
    "InsertionDeletion",
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
    "Substrate",
    "Summary",
    "WeakDependence",
]
