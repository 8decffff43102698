"""Recurrent networks, computed again step by step, in ONNX's letters.

x is (T, N, I): time, batch, features. A state is (1, N, H), one for each direction. The share that x has in the gates
is one product for all times; only the states' share is computed step by step. A state that is absent is zero.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np

from onnxplain.adapters.gradient.control import MOST_NODES
from onnxplain.adapters.gradient.expr import Expr, UnsupportedCase, concat, op, ops, where
from onnxplain.adapters.gradient.registry import expansion

State: TypeAlias = Sequence[Expr | None]
Function: TypeAlias = Callable[[Expr], Expr]
Share: TypeAlias = Callable[[Expr], list[Expr]]  # of x, at all times
Step: TypeAlias = Callable[..., tuple[Expr, ...]]  # shares at one time, states -> states

NODES = 16  # about as many as a step of an LSTM has


def unrolled(
    x: Expr,
    sequence_lens: Expr | None,
    initial: State,
    cell: Callable[[int], tuple[Share, Step]],
    direction: str,
    layout: int,
) -> tuple[Expr, ...]:
    """Y, and the last states. `cell` makes what belongs to one direction."""
    if layout:  # batch first
        x, initial = x.transpose((1, 0, 2)), [None if s is None else s.transpose((1, 0, 2)) for s in initial]
    length = x.size(0)
    if sequence_lens is not None and not everywhere(sequence_lens, length):
        raise UnsupportedCase("sequences of different lengths; next: export the model without sequence_lens")
    ways = {"forward": (1,), "reverse": (-1,), "bidirectional": (1, -1)}[direction]
    if length * len(ways) * NODES > MOST_NODES:
        raise UnsupportedCase(f"{length} steps are too many to write out; next: export a shorter sequence")
    ys, finals = [], []
    for d, way in enumerate(ways):
        share, step = cell(d)
        states: State = [None if s is None else s.slice(0, d, d + 1) for s in initial]
        seen = []
        for now in list(zip(*(split(part, [1] * length, 0) for part in share(x)), strict=True))[::way]:
            states = after = step(*now, *states)
            seen.append(after[0])
        y = concat(seen[::way], 0)
        ys.append(y.reshape((length, 1, *y.shape[1:])))
        finals.append(after)
    y, last = concat(ys, 1), [concat(parts, 0) for parts in zip(*finals, strict=True)]
    if layout:
        y, last = y.transpose((2, 0, 1, 3)), [s.transpose((1, 0, 2)) for s in last]
    return (y, *last)


def everywhere(x: Expr, value: int) -> bool:
    """Whether all elements are known to have a value, however many there are: exporters repeat it for each sample."""
    return all(trial.data is not None and bool((trial.data == value).all()) for trial in x.emit.facts.of(x.value))


def split(x: Expr, sizes: list[int], axis: int) -> list[Expr]:
    return [x] if len(sizes) == 1 else ops("Split", x, sizes, outputs=len(sizes), axis=axis)


def part(weights: Expr | None, d: int, start: int, stop: int) -> Expr | None:
    """Some rows of the weights of one direction."""
    if weights is None:
        return None
    if weights.constant is not None:
        return weights.emit.constant(np.ascontiguousarray(weights.constant[d, start:stop]))
    return weights.slice(0, d, d + 1).reshape(weights.shape[1:]).slice(0, start, stop)


def product(x: Expr, w: Expr | None, *biases: Expr | None) -> Expr:
    """x Wᵀ + b."""
    assert w is not None
    y = x @ w.mT
    for b in biases:
        y = y if b is None else y + b
    return y


def clipped(x: Expr, bound: float) -> Expr:
    return where(x < bound, where(x > -bound, x, -bound), bound)


def elu(x: Expr, alpha: float) -> Expr:
    """x where x > 0, else α (eˣ - 1)."""
    positive = x > 0.0
    return where(positive, x, (op("Exp", where(positive, 0.0, x)) - 1.0) * alpha)


# name: function of (x, α, β), and the defaults of the parameters that it has; None where runtimes differ or have none.
# Those with a kink are written with comparisons, which end a derivative.
ACTIVATIONS: dict[str, tuple[Callable[[Expr, Any, Any], Expr], tuple[float | None, ...]]] = {
    "affine": (lambda x, a, b: x * a + b, (None, None)),
    "elu": (lambda x, a, b: elu(x, a), (1.0,)),
    "hardsigmoid": (lambda x, a, b: op("HardSigmoid", x, alpha=a, beta=b), (0.2, 0.5)),
    "leakyrelu": (lambda x, a, b: where(x > 0.0, x, x * a), (0.01,)),
    "relu": (lambda x, a, b: where(x > 0.0, x, 0.0), ()),
    "scaledtanh": (lambda x, a, b: op("Tanh", x * b) * a, (None, None)),
    "sigmoid": (lambda x, a, b: op("Sigmoid", x), ()),
    "softplus": (lambda x, a, b: op("Softplus", x), ()),
    "softsign": (lambda x, a, b: x / (where(x > 0.0, x, -x) + 1.0), ()),
    "tanh": (lambda x, a, b: op("Tanh", x), ()),
    "thresholdedrelu": (lambda x, a, b: where(x > a, x, 0.0), (None,)),
}


def functions(
    names: Sequence[str] | None,
    alphas: Sequence[float] | None,
    betas: Sequence[float] | None,
    default: Sequence[str],
    direction: str,
    clip: float | None,
) -> list[list[Function]]:
    """The functions of each direction. Those that have an α or a β take the given ones in turn."""
    ways = 2 if direction == "bidirectional" else 1
    left = [list(alphas or ()), list(betas or ())]
    found: list[Function] = []
    for name in names or [*default] * ways:
        function, defaults = ACTIVATIONS[name.lower()]
        given = [own.pop(0) if own else value for value, own in zip(defaults, left, strict=False)]
        if None in given:
            raise UnsupportedCase(f"the activation {name} without its parameters")
        found.append(activation(function, (*given, 0.0, 0.0)[:2], clip))
    if any(left):
        raise UnsupportedCase("more parameters than its activations have")
    each = len(default)
    return [found[d * each : (d + 1) * each] for d in range(ways)]


def activation(function: Callable[..., Expr], given: Sequence[float | None], clip: float | None) -> Function:
    """A function with its parameters and what comes before it."""
    if clip is None:
        return lambda x: function(x, *given)
    return lambda x: function(clipped(x, clip), *given)


@expansion("RNN")
def rnn(
    x: Expr,
    w: Expr,
    r: Expr,
    b: Expr | None = None,
    sequence_lens: Expr | None = None,
    initial_h: Expr | None = None,
    *,
    hidden_size: int | None = None,
    direction: str = "forward",
    layout: int = 0,
    activations: Sequence[str] | None = None,
    activation_alpha: Sequence[float] | None = None,
    activation_beta: Sequence[float] | None = None,
    clip: float | None = None,
) -> tuple[Expr, ...]:
    """H = f(x Wᵀ + H₋₁ Rᵀ + b)."""
    n = r.size(-1)
    act = functions(activations, activation_alpha, activation_beta, ("Tanh",), direction, clip)

    def cell(d: int) -> tuple[Share, Step]:
        (f,) = act[d]
        rh = part(r, d, 0, n)

        def share(x: Expr) -> list[Expr]:
            return [product(x, part(w, d, 0, n), part(b, d, 0, n), part(b, d, n, 2 * n))]

        def step(x: Expr, h: Expr | None) -> tuple[Expr, ...]:
            return (f(x if h is None else x + product(h, rh)),)

        return share, step

    return unrolled(x, sequence_lens, [initial_h], cell, direction, layout)


@expansion("GRU")
def gru(
    x: Expr,
    w: Expr,
    r: Expr,
    b: Expr | None = None,
    sequence_lens: Expr | None = None,
    initial_h: Expr | None = None,
    *,
    hidden_size: int | None = None,
    direction: str = "forward",
    layout: int = 0,
    activations: Sequence[str] | None = None,
    activation_alpha: Sequence[float] | None = None,
    activation_beta: Sequence[float] | None = None,
    clip: float | None = None,
    linear_before_reset: int = 0,
) -> tuple[Expr, ...]:
    """z, r = f(x Wᵀ + H₋₁ Rᵀ + b);  h̃ = g(x Wᵀ + (r H₋₁) Rᵀ + b);  H = (1 - z) h̃ + z H₋₁.

    With `linear_before_reset`, h̃ = g(x Wᵀ + b + r (H₋₁ Rᵀ + b′)).
    """
    n = r.size(-1)
    act = functions(activations, activation_alpha, activation_beta, ("Sigmoid", "Tanh"), direction, clip)

    def cell(d: int) -> tuple[Share, Step]:
        f, g = act[d]
        r_gates, r_new = part(r, d, 0, 2 * n), part(r, d, 2 * n, 3 * n)
        b_new = part(b, d, 5 * n, 6 * n)

        def share(x: Expr) -> list[Expr]:
            gates = product(x, part(w, d, 0, 2 * n), part(b, d, 0, 2 * n), part(b, d, 3 * n, 5 * n))
            late = None if linear_before_reset else b_new
            return [gates, product(x, part(w, d, 2 * n, 3 * n), part(b, d, 2 * n, 3 * n), late)]

        def step(gates: Expr, new: Expr, h: Expr | None) -> tuple[Expr, ...]:
            z, reset = split(f(gates if h is None else gates + product(h, r_gates)), [n, n], -1)
            if not linear_before_reset:
                new = g(new if h is None else new + product(reset * h, r_new))
            elif h is not None:
                new = g(new + reset * product(h, r_new, b_new))
            else:
                new = g(new if b_new is None else new + reset * b_new)
            return ((1 - z) * new if h is None else (1 - z) * new + z * h,)

        return share, step

    return unrolled(x, sequence_lens, [initial_h], cell, direction, layout)


@expansion("LSTM")
def lstm(
    x: Expr,
    w: Expr,
    r: Expr,
    b: Expr | None = None,
    sequence_lens: Expr | None = None,
    initial_h: Expr | None = None,
    initial_c: Expr | None = None,
    p: Expr | None = None,
    *,
    hidden_size: int | None = None,
    direction: str = "forward",
    layout: int = 0,
    activations: Sequence[str] | None = None,
    activation_alpha: Sequence[float] | None = None,
    activation_beta: Sequence[float] | None = None,
    clip: float | None = None,
    input_forget: int = 0,
) -> tuple[Expr, ...]:
    """i, o, k, c̃ = x Wᵀ + H₋₁ Rᵀ + b;  C = f(k + p C₋₁) C₋₁ + f(i + p C₋₁) g(c̃);  H = f(o + p C) h(C).

    k is the gate that forgets; with `input_forget` it is one minus the other. The gates are clipped and h(C) is not, as
    ONNX Runtime has it.
    """
    n = r.size(-1)
    act = functions(activations, activation_alpha, activation_beta, ("Sigmoid", "Tanh", "Tanh"), direction, clip)
    free = functions(activations, activation_alpha, activation_beta, ("Sigmoid", "Tanh", "Tanh"), direction, None)

    def cell(d: int) -> tuple[Share, Step]:
        (f, g, _), (_, _, out) = act[d], free[d]
        recurrent = part(r, d, 0, 4 * n)
        p_in, p_out, p_forget = (part(p, d, k * n, (k + 1) * n) for k in range(3))

        def peep(gate: Expr, weights: Expr | None, c: Expr | None) -> Expr:
            return gate if weights is None or c is None else gate + weights * c

        def share(x: Expr) -> list[Expr]:
            return [product(x, part(w, d, 0, 4 * n), part(b, d, 0, 4 * n), part(b, d, 4 * n, 8 * n))]

        def step(gates: Expr, h: Expr | None, c: Expr | None) -> tuple[Expr, ...]:
            i, o, k, new = split(gates if h is None else gates + product(h, recurrent), [n] * 4, -1)
            i = f(peep(i, p_in, c))
            now = i * g(new)
            if c is not None:
                now = now + (1 - i if input_forget else f(peep(k, p_forget, c))) * c
            return f(peep(o, p_out, now)) * out(now), now

        return share, step

    return unrolled(x, sequence_lens, [initial_h, initial_c], cell, direction, layout)
