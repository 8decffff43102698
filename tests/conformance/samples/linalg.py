"""Matrix products."""

from __future__ import annotations

import numpy as np
from conformance.samples.sample import node, normal, other, weights

SAMPLES = [
    node("MatMul", normal(3, 4), other(4, 5)),
    node("MatMul", normal(3, 4), weights(4, 4), label="square"),
    node("MatMul", normal(2, 1, 3, 4), other(7, 4, 5)),
    node("MatMul", normal(2, 3, 4), other(4, 5)),
    node("MatMul", normal(3, 4), other(2, 4, 5), free=()),
    node("MatMul", normal(2, 5, 3, 4), other(2, 5, 4, 6), free=(0, 1)),
    node("MatMul", weights(5, 3), normal(2, 3, 4), free=(1,)),
    node("MatMul", normal(4), other(4), free=()),
    node("MatMul", normal(4), other(4, 5), free=()),
    node("MatMul", normal(4), other(2, 3, 4, 5), free=(1,)),
    node("MatMul", normal(3, 4), other(4)),
    node("MatMul", normal(2, 6, 3, 4), other(4)),
    node("Gemm", normal(3, 4), other(4, 5)),
    node("Gemm", normal(3, 4), weights(4, 5), weights(5)),
    node("Gemm", normal(3, 4), weights(4, 4), transB=1, label="square"),
    node("Gemm", normal(3, 4), other(4, 5), normal(3, 5), alpha=0.5, beta=-2.0, free=(0, 2)),
    node("Gemm", normal(3, 4), other(5, 4), normal(5), alpha=0.5, beta=-2.0, transB=1),
    node("Gemm", normal(4, 3), other(4, 5), normal(3, 1), alpha=1.5, beta=0.25, transA=1, free=()),
    node("Gemm", normal(4, 3), other(5, 4), normal(), alpha=-0.5, transA=1, transB=1, free=()),
    node("Gemm", weights(3, 4), normal(4, 5), transA=0, free=()),
    *(node("Det", normal(3, n, n)) for n in (1, 2, 3, 4)),
    node("Det", normal(3, 3), free=()),
    node("Det", normal(2, 5, 2, 2)),
    node("Det", np.asarray([[1.0, 2.0, 3.0], [2.0, 4.0, 6.0], [1.0, -1.0, 0.5]]), free=(), label="singular"),
]
