"""How good an attribution is, in numbers that always say how they were made."""

from onnxplain.engine.metrics.insertion_deletion import Curve, InsertionDeletion, Played
from onnxplain.engine.metrics.protocols import PROTOCOLS, Order, Protocol, Substrate
from onnxplain.engine.metrics.score import Score, Scores, Summary

__all__ = [
    "PROTOCOLS",
    "Curve",
    "InsertionDeletion",
    "Order",
    "Played",
    "Protocol",
    "Score",
    "Scores",
    "Substrate",
    "Summary",
]
