"""Gradient rules that are wrong on purpose: the checks that pass the right ones must reject every one of them.

Each mutant is a mistake that is easy to make. The unmutated run comes first: where it fails, every mutant looks caught.
"""

from __future__ import annotations

from typing import Any

import pytest
from conformance.mutants import MUTANTS
from conformance.samples import of_op
from conformance.samples.pool import TIED, tie_gap
from conformance.samples.reduce import chain_gap
from conformance.samples.sample import adjoint_gap

from onnxplain.adapters.gradient.registry import DEFAULT, Entry


def caught(op_type: str, rules: Any) -> bool:
    """Whether a sample, or a MaxPool with ties, rejects these rules."""
    gaps = [adjoint_gap(sample, rules) >= sample.tolerance for sample in of_op(op_type)]
    return any(gaps) or (op_type == "MaxPool" and any(tie_gap(attributes, rules) != 0 for attributes in TIED))


@pytest.mark.parametrize("op_type", sorted({op_type for op_type, _ in MUTANTS.values()}))
def test_the_rule_to_spoil_is_right(op_type: str) -> None:
    """Else every mutant of it would look caught; also when it comes through a table of one's own."""
    assert not caught(op_type, DEFAULT | {op_type: DEFAULT[op_type]})


@pytest.mark.parametrize("name", MUTANTS)
def test_a_wrong_rule_is_caught(name: str) -> None:
    """By the checks of `test_rules.py`, through `differentiate(model, rules=...)`."""
    op_type, rule = MUTANTS[name]
    assert caught(op_type, DEFAULT | {op_type: Entry(rule, DEFAULT[op_type].broadcastable)})


def test_a_rule_that_sums_must_not_be_called_broadcastable() -> None:
    """A sum over a cotangent with ones for dimensions is silently wrong: the chain with a reduction notices."""
    assert chain_gap(DEFAULT, "LogSoftmax") < 1e-9
    assert (
        chain_gap(DEFAULT | {"LogSoftmax": Entry(DEFAULT["LogSoftmax"].rule, broadcastable=True)}, "LogSoftmax") > 1e-3
    )


def test_a_table_of_rules_does_not_change_the_default() -> None:
    """Layering leaves the default alone."""
    before = dict(DEFAULT)
    caught("Neg", DEFAULT | {"Neg": Entry(lambda g, y, x: g)})
    assert before == DEFAULT
