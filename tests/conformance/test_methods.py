"""Every method against the laws that it must keep; and methods that are wrong on purpose, which laws must reject."""

from __future__ import annotations

import pytest
from conformance.methods import ROWS, WRONG
from conformance.methods.laws import Law, Make, needs_sklearn
from frameworks import framework

from onnxplain.engine.methods import METHODS
from onnxplain.errors import OnnxplainError


def test_every_method_has_a_row() -> None:
    assert ROWS.keys() == METHODS.keys()
    for id, method in METHODS.items():
        assert method.id == id
        made = ROWS[id].make()
        assert isinstance(made, type(method))
        assert made.id == id


@pytest.mark.parametrize(
    ("make", "law"),
    [pytest.param(row.make, law, id=f"{id}-{law.__name__}") for id, row in ROWS.items() for law in row.laws],
)
def test_laws(make: Make, law: Law) -> None:
    if needs_sklearn(make()):
        framework("sklearn")
    law(make)


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning", "ignore:divide by zero:RuntimeWarning")
@pytest.mark.parametrize(
    ("make", "law"), [pytest.param(make, law, id=f"{name}-{law.__name__}") for name, make, law in WRONG]
)
def test_wrong_methods_are_rejected(make: Make, law: Law) -> None:
    if needs_sklearn(make()):
        framework("sklearn")  # its absence is an error of ours too, and would pass for a rejection
    with pytest.raises((AssertionError, OnnxplainError)):
        law(make)


def test_every_law_has_rejected_something() -> None:
    assert {law for row in ROWS.values() for law in row.laws} == {law for _, _, law in WRONG}
