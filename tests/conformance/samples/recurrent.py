"""Recurrent networks: five steps of two samples with three features, four units."""

from __future__ import annotations

from typing import Any

from conformance.samples.sample import Const, Sample, node, normal, other

GATES = {"RNN": 1, "GRU": 3, "LSTM": 4}


def small(*shape: int) -> Const:
    return Const(other(*shape) * 0.6)


def net(
    op: str, *more: Any, bias: bool = True, lens: Any = None, fed: bool = False, outputs: int = 1, **attributes: Any
) -> Sample:
    """A sample with constant weights (or fed ones); `more` are the inputs behind `sequence_lens`."""
    ways, n = 2 if attributes.get("direction") == "bidirectional" else 1, GATES[op] * 4
    w, r, b = small(ways, n, 3), small(ways, n, 4), small(ways, 2 * n) if bias else None
    if fed:
        w, r, b = w.values, r.values, b and b.values  # type: ignore[assignment]
    rest = (lens, *more) if more or lens is not None else ()
    label = attributes.pop("label", "")
    return node(
        op, normal(5, 2, 3), w, r, b, *rest, hidden_size=4, free=(), outputs=outputs, of=tuple(range(outputs)),
        label=label, **attributes,
    )  # fmt: skip


SAMPLES = [
    *(
        net(op, *([normal(ways, 2, 4)] if state else []), direction=direction, outputs=2)
        for op in GATES
        for direction, ways in (("forward", 1), ("reverse", 1), ("bidirectional", 2))
        for state in (False, True)
    ),
    *(net(op, bias=False, label="no bias") for op in GATES),
    *(net(op, fed=True, label="weights too") for op in GATES),
    net("GRU", normal(1, 2, 4), linear_before_reset=1, outputs=2),
    net("GRU", linear_before_reset=1, label="from zero"),
    net("GRU", bias=False, linear_before_reset=1, label="no bias"),
    net("LSTM", normal(1, 2, 4), other(1, 2, 4), outputs=3),
    net("LSTM", normal(1, 2, 4), other(1, 2, 4), small(1, 12), outputs=3, label="peepholes"),
    net("LSTM", normal(2, 2, 4), other(2, 2, 4), small(2, 12), direction="bidirectional", outputs=3, label="peepholes"),
    net("LSTM", None, None, small(1, 12), label="peepholes from zero"),
]
