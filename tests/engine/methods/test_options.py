"""Methods by id, with hyper-parameters as text, and their way into result files."""

from __future__ import annotations

import json
from dataclasses import fields

import numpy as np
import pytest

from onnxplain.engine.methods import (
    ISA,
    METHODS,
    Alphas,
    Baseline,
    CrediblePath,
    DeltaLoss,
    IntegratedGradients,
    Method,
    Rule,
    Saliency,
    from_options,
    to_dict,
)
from onnxplain.engine.requests import Kind, Validity
from onnxplain.errors import UsageError


@pytest.mark.parametrize(
    ("id", "options", "expected"),
    [
        ("isa", {}, ISA()),
        ("isa", {"k": "2000", "eta1": "4e-3", "objective": "logit", "literal": "TRUE"}, None),
        ("isa-repo", {"k": "9", "delta_loss": "ends"}, ISA.repo(k=9, delta_loss=DeltaLoss.ENDS)),
        ("isa-table1", {"drop_tail": "false"}, ISA.table1(drop_tail=False)),
        ("saliency", {"objective": "prob", "signed": "false"}, Saliency(objective=Kind.PROB)),
        (
            "ig",
            {"steps": "9", "rule": "gauss_legendre", "baseline": "average"},
            IntegratedGradients(steps=9, rule=Rule.GAUSS_LEGENDRE, baseline=Baseline.AVERAGE),
        ),
        (
            "credible",
            {"kernels": "3, 5", "delta": "5/255", "validity": "none", "alphas": "midpoint", "starts": "none"},
            CrediblePath(kernels=(3, 5), validity=None, alphas=Alphas.MIDPOINT),
        ),
        ("credible", {"validity": "path", "objective": "logit"}, CrediblePath(validity=Validity.PATH)),
    ],
)
def test_from_options(id: str, options: dict[str, str], expected: Method | None) -> None:
    expected = expected or ISA(k=2000, eta1=0.004, objective=Kind.LOGIT, literal=True)
    assert from_options(id, options) == expected


@pytest.mark.parametrize(
    ("id", "options", "message"),
    [
        ("sailency", {}, f"unknown method 'sailency'; did you mean saliency? known: {', '.join(sorted(METHODS))}"),
        ("xyz", {}, f"unknown method 'xyz'; known: {', '.join(sorted(METHODS))}"),
        (
            "ig",
            {"step": "3"},
            "ig: unknown parameter 'step'; did you mean steps? known: baseline, objective, rule, steps",
        ),
        ("ig", {"id": "isa"}, "ig: unknown parameter 'id'; known: baseline, objective, rule, steps"),
        ("ig", {"steps": "3.5"}, "ig: steps: expected a whole number, got '3.5'"),
        ("ig", {"steps": "0"}, "steps of the rule midpoint: expected a whole number from 1 to 100000, got 0"),
        ("ig", {"rule": "midpiont"}, "ig: rule: expected midpoint or right or"),
        (
            "ig",
            {"baseline": "white"},
            "ig: baseline: expected black or mean_colour or average or average_scalar or gaussian or uniform or "
            "blur or an array (from Python only), got 'white'",
        ),
        ("isa", {"eta1": "nan"}, "isa: eta1: expected a number, got 'nan'"),
        ("isa", {"eta1": "1e400"}, "isa: eta1: expected a number, got '1e400'"),
        ("isa", {"eta1": "1e999999999"}, "isa: eta1: expected a number, got '1e999999999'"),
        ("isa", {"eta1": "1e300/1e-300"}, "isa: eta1: expected a number, got '1e300/1e-300'"),
        ("isa", {"eta1": "1/"}, "isa: eta1: expected a number, got '1/'"),
        ("isa", {"eta1": "1/0"}, "isa: eta1: expected a number, got '1/0'"),
        ("isa", {"literal": "1"}, "isa: literal: expected true or false, got '1'"),
        ("credible", {"kernels": "3;5"}, "credible: kernels: expected whole numbers with commas between, got '3;5'"),
        ("credible", {"starts": "0"}, "credible: starts: expected an array (from Python only) or none, got '0'"),
    ],
)
def test_what_is_refused(id: str, options: dict[str, str], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        from_options(id, options)
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize("id", METHODS)
def test_parameters_survive_the_way_through_text(id: str) -> None:
    method = from_options(id, {})
    plain = json.loads(json.dumps(to_dict(method)))
    text = {name: ",".join(map(str, value)) if isinstance(value, list) else str(value) for name, value in plain.items()}
    assert list(text) == [field.name for field in fields(method)][1:]  # type: ignore[arg-type]
    assert from_options(id, text) == method


def test_arrays_are_named_by_their_content() -> None:
    one, other = (to_dict(IntegratedGradients(baseline=np.full(6, v)))["baseline"] for v in (0.0, 1.0))
    assert one["shape"] == [6]
    assert one["dtype"] == "float64"
    assert one["sha256"] != other["sha256"]
    assert one == to_dict(IntegratedGradients(baseline=np.zeros(6)))["baseline"]


def test_unknown_keywords_are_type_errors() -> None:
    with pytest.raises(TypeError, match="stepz"):
        IntegratedGradients(stepz=3)  # type: ignore[call-arg]
