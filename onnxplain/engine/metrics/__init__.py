"""How good an attribution is, in numbers that always say how they were made."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, get_type_hints

from onnxplain.engine.methods.options import parse, plain, suggest
from onnxplain.engine.metrics.diffid import Differences, DiffID
from onnxplain.engine.metrics.insertion_deletion import Curve, InsertionDeletion, Played
from onnxplain.engine.metrics.maps import MapMetric, Scored
from onnxplain.engine.metrics.protocols import PROTOCOLS, Order, Protocol, Substrate
from onnxplain.engine.metrics.score import Score, Scores, Summary
from onnxplain.engine.metrics.sensitivity_n import Correlations, SensitivityN
from onnxplain.errors import UsageError

__all__ = [
    "METRICS",
    "PROTOCOLS",
    "Correlations",
    "Curve",
    "DiffID",
    "Differences",
    "InsertionDeletion",
    "MapMetric",
    "Order",
    "Played",
    "Protocol",
    "Score",
    "Scored",
    "Scores",
    "SensitivityN",
    "Substrate",
    "Summary",
    "from_options",
    "to_dict",
]

# The metrics of saved maps, which run the model forward only, by what makes them of their parameters.
METRICS: dict[str, Callable[..., MapMetric]] = {
    "insertion-deletion": InsertionDeletion.named,
    "sensitivity-n": SensitivityN,
    "diffid": DiffID,
}


def parameters(id: str) -> dict[str, Any]:
    """The parameters of a metric and their types. Raises `UsageError` for an unknown metric."""
    if id not in METRICS:
        raise UsageError(f"unknown metric {id!r}{suggest(id, METRICS)}")
    hints = get_type_hints(METRICS[id])
    return {name: hint for name, hint in hints.items() if name not in ("id", "return")}


def from_options(id: str, options: Mapping[str, str]) -> MapMetric:
    """The metric of this id with parameters given as text, `{"protocol": "agi_isa", "step": "1/56"}`.

    Raises `UsageError` for an unknown metric or parameter, naming the closest one and all of them, and for a value that
    the parameter does not take.
    """
    hints = parameters(id)
    for name in options:
        if name not in hints:
            raise UsageError(f"{id}: unknown parameter {name!r}{suggest(name, hints)}")
    return METRICS[id](**{name: parse(f"{id}: {name}", text, hints[name]) for name, text in options.items()})


def to_dict(metric: MapMetric) -> dict[str, Any]:
    """The parameters of a metric as JSON has them; a protocol by its label."""
    return {
        name: str(value) if isinstance(value, Protocol) else plain(value)
        for name, value in vars(metric).items()
        if name != "id"
    }
