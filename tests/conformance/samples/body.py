"""Operators that ONNX defines by a function, and that have neither a rule nor an expansion of ours.

Only those that know float64, in which the law is tested. ONNX's own node cases have all of them.
"""

from __future__ import annotations

import numpy as np
from conformance.samples.sample import between, ints, node, normal, other

LABELS = np.asarray([[0, 2], [3, 1]])  # (N, d) among four classes
# Queries, keys and values, (N, heads, length, size): the scale, 1/√size, is of float32 in the body, and exact for 16.
HEADS = (between(-1, 1, 2, 4, 3, 16), between(-1, 1, 2, 4, 6, 16), normal(2, 4, 6, 16))
SOME = np.asarray([[[[True] * 6, [True, False] * 3, [False, True] * 3]]])

SAMPLES = [
    node("CenterCropPad", normal(2, 5, 3), ints(3, 6), axes=[1, 2]),
    *(
        node("NegativeLogLikelihoodLoss", normal(2, 4, 2), LABELS, reduction=reduction, free=())
        for reduction in ("none", "sum", "mean")
    ),
    node("NegativeLogLikelihoodLoss", normal(2, 4, 2), LABELS, other(4), ignore_index=1, free=(), label="weights"),
    node("SoftmaxCrossEntropyLoss", normal(2, 4, 2), LABELS, free=()),
    node("SoftmaxCrossEntropyLoss", normal(2, 4, 2), LABELS, between(1, 2, 4), ignore_index=1, free=()),
    node("SoftmaxCrossEntropyLoss", normal(2, 4, 2), LABELS, reduction="none", outputs=2, of=(0, 1), free=()),
    node("Attention", *HEADS, opset=23, free=(0, 1, 2)),
    node("Attention", *HEADS, opset=24, scale=0.25, softcap=2.0, free=(0, 1, 2)),
    node("Attention", *HEADS, between(-1, 1, 1, 1, 3, 6), opset=24, free=(0, 1, 2), label="mask"),
    node("Attention", *HEADS, SOME, opset=24, free=(0, 1, 2), label="mask of truth values"),
    node("Attention", *HEADS, opset=24, is_causal=1, free=(0, 1, 2)),
]
