"""How alike two attributions of one image are."""

from __future__ import annotations

import numpy as np

from onnxplain.engine.metrics.ranks import spearman
from onnxplain.engine.requests import Array

TOP = 0.01  # the share of features that count as the top ones


def rank_correlation(a: Array, b: Array) -> float:
    """Spearman's, of all features; 1 for two constant maps, which rank nothing alike; 0 for maps with NaN or Inf."""
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        return 0.0
    found = spearman(a, b)
    return float(np.ptp(a) == np.ptp(b)) if np.isnan(found) else found


def top_overlap(a: Array, b: Array) -> float:
    """The share of the top 1 % features of one that are among those of the other."""
    count = max(1, round(TOP * a.size))
    first, second = (set(np.argsort(-m.ravel(), kind="stable")[:count].tolist()) for m in (a, b))
    return len(first & second) / count


def relative(a: Array, b: Array) -> float:
    """The largest difference over the largest value of the second."""
    return float(np.abs(a - b).max() / max(float(np.abs(b).max()), 1e-30))
