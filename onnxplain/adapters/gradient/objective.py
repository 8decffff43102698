"""The objectives as a part of the graph: logits in, the explained value and its cotangent out.

Every sample of a batch may have its own objective: all of them are computed from the logits, which is cheap, and
`Where` chooses. (A sum weighted by zeros would let NaN through.)
"""

from __future__ import annotations

import numpy as np

from onnxplain.adapters.gradient.expr import Expr, op, where
from onnxplain.engine.requests import Kind


def value_and_cotangent(z: Expr, t: Expr, kind: Expr) -> tuple[Expr, Expr]:
    """ψ(z) of shape (N) and v = ∂ψ/∂z of shape (N, K), for logits z (N, K), targets t (N, K) and kinds (N).

    The cotangents are those of the table of `Kind`, for any row of weights t; Σ is over classes.
    """

    def total(x: Expr) -> Expr:
        return x.sum([1], keepdims=True)

    def through_softmax(s: Expr, v: Expr) -> Expr:
        """The cotangent of the argument of s = softmax(·), given that of s."""
        return s * (v - total(s * v))

    p, log_p = op("Softmax", z, axis=1), op("LogSoftmax", z, axis=1)
    q, log_q = op("Softmax", p, axis=1), op("LogSoftmax", p, axis=1)
    surprise = p * total(t) - t  # ∂/∂z of -⟨t, log p⟩
    cases = {
        Kind.PROB: (t * p, through_softmax(p, t)),
        Kind.LOGPROB: (t * log_p, -surprise),
        Kind.CE: (-t * log_p, surprise),
        Kind.SOFT_CE: (-t * log_p, surprise),
        Kind.LOGIT_L2: ((z - t) * (z - t) * 0.5, z - t),
        Kind.CE_ON_PROBS: (-t * log_q, through_softmax(p, q * total(t) - t)),
        Kind.PROB_ON_PROBS: (t * q, through_softmax(p, through_softmax(q, t))),
    }
    terms, cotangent = t * z, t  # Kind.LOGIT
    column = kind.reshape((kind.shape[0], 1))
    for code, (these, this) in cases.items():
        chosen = op("Equal", column, z.emit.constant(np.asarray(int(code), np.int64)))
        terms, cotangent = where(chosen, these, terms), where(chosen, this, cotangent)
    return terms.sum([1]), cotangent
