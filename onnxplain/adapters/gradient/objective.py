"""The objectives as a part of the graph: logits in, the explained value and its cotangent out.

Every sample of a batch may have its own objective: all of them are computed from the logits, which is cheap, and
`Where` chooses. (A sum weighted by zeros would let NaN through.)
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from onnxplain.adapters.gradient.expr import PREFIX, Expr, op, where
from onnxplain.engine.requests import Head, Kind

COTANGENT = f"{PREFIX}cotangent"  # the name of v in a gradient model, by which it can be found and scaled


def value_and_cotangent(z: Expr, t: Expr, kind: Expr, head: Head) -> tuple[Expr, Expr]:
    """ψ(z) of shape (N) and v = ∂ψ/∂z of shape (N, K), for logits z (N, K), targets t (N, K) and kinds (N).

    The cotangents are those of the table of `Kind`, for any row of weights t.
    """
    cases = softmax_cases(z, t) if head is Head.SOFTMAX else sigmoid_cases(z, t)
    terms, cotangent = t * z, t  # Kind.LOGIT
    column = kind.reshape((kind.shape[0], 1))
    for code, (these, this) in ({**cases, Kind.LOGIT_L2: ((z - t) * (z - t) * 0.5, z - t)}).items():
        chosen = op("Equal", column, z.emit.constant(np.asarray(int(code), np.int64)))
        terms, cotangent = where(chosen, these, terms), where(chosen, this, cotangent)
    return total(terms, t * 0 + 1).reshape((z.shape[0],)), cotangent


def softmax_cases(z: Expr, t: Expr) -> Mapping[Kind, tuple[Expr, Expr]]:
    """Terms whose sum over classes is ψ, and ∂ψ/∂z, of the kinds that go through the head; Σ is over classes."""

    def through_softmax(s: Expr, v: Expr) -> Expr:
        """The cotangent of the argument of s = softmax(·), given that of s."""
        return s * (v - total(s, v))

    p, log_p = op("Softmax", z, axis=1), op("LogSoftmax", z, axis=1)
    q, log_q = op("Softmax", p, axis=1), op("LogSoftmax", p, axis=1)
    weight = total(t, t * 0 + 1)
    surprise = p * weight - t  # ∂/∂z of -⟨t, log p⟩
    return {
        Kind.PROB: (t * p, through_softmax(p, t)),
        Kind.LOGPROB: (t * log_p, -surprise),
        Kind.CE: (-t * log_p, surprise),
        Kind.SOFT_CE: (-t * log_p, surprise),
        Kind.CE_ON_PROBS: (-t * log_q, through_softmax(p, q * weight - t)),
        Kind.PROB_ON_PROBS: (t * q, through_softmax(p, through_softmax(q, t))),
    }


def total(x: Expr, y: Expr) -> Expr:
    """Σ x y over classes, (N, 1).

    A product of matrices for each sample, since ReduceSum of ONNX Runtime adds up a batch of one in another order than
    the rows of a larger one.
    """
    n, k = x.shape
    return (x.reshape((n, 1, k)) @ y.reshape((n, k, 1))).reshape((n, 1))


def sigmoid_cases(z: Expr, t: Expr) -> Mapping[Kind, tuple[Expr, Expr]]:
    """The same for a sigmoid head, where every label stands alone."""
    p, not_p, log_p, log_not_p = sigmoid(z)
    q, not_q, log_q, _ = sigmoid(p)
    slope = p * not_p  # ∂p/∂z
    return {
        Kind.PROB: (t * p, t * slope),
        Kind.LOGPROB: (t * log_p, t * not_p),
        Kind.CE: (-t * log_p, -t * not_p),
        Kind.SOFT_CE: (-t * log_p - (1 - t) * log_not_p, p - t),
        Kind.CE_ON_PROBS: (-t * log_q, -t * not_q * slope),
        Kind.PROB_ON_PROBS: (t * q, t * q * not_q * slope),
    }


def sigmoid(z: Expr) -> tuple[Expr, Expr, Expr, Expr]:
    """σ(z), 1 - σ(z) and their logarithms, without overflow or cancellation: they are a softmax over (z, 0)."""
    n, k = z.shape
    column = z.reshape((n, k, 1))
    pair = op("Concat", column, column * 0, axis=2)
    both, logs = op("Softmax", pair, axis=2), op("LogSoftmax", pair, axis=2)
    p, not_p, log_p, log_not_p = (x.slice(2, i, i + 1).reshape((n, k)) for x in (both, logs) for i in (0, 1))
    return p, not_p, log_p, log_not_p
