"""ONNX's own node cases: what is differentiated is right, and what is refused is listed in `gaps.txt`."""

from __future__ import annotations

from collections import Counter

import onnx
import pytest
from conformance.node_cases import GAPS, Case, Report, Verdict, cases, gaps_text, judge, reports

from onnxplain.adapters.gradient.expr import op
from onnxplain.adapters.gradient.registry import DEFAULT, Entry


def told(found: list[Report]) -> str:
    return "\n".join(f"{report.case.name}: {report.why}" for report in found)


def case(name: str) -> Case:
    (found,) = [case for case in cases()[0] if case.name == name]
    return found


def test_no_case_is_wrong() -> None:
    """Every case gives a right gradient or a refusal; a gradient model is valid and emits allowed operators only."""
    bad = [report for report in reports() if report.verdict in (Verdict.WRONG, Verdict.FAILED)]
    assert not bad, told(bad)


def test_nineteen_of_twenty_reliable_cases_are_differentiated() -> None:
    """Every input counts, weights and scales as well as images.

    A case is reliable if a float input that ONNX does not call non-differentiable has a derivative that the yardstick
    holds and that is not zero. It is right if it is right for every such input, and refused if one of them is.
    """
    tally = Counter(report.verdict for report in reports() if report.reliable)
    assert tally[Verdict.RIGHT] >= 0.95 * tally.total(), tally


def test_the_gaps_are_those_that_are_listed() -> None:
    """Both ways: what became right leaves the list, and nothing new comes."""
    written = GAPS.read_text(encoding="utf-8")
    if f"onnx {onnx.__version__} " not in written:
        pytest.skip(f"gaps.txt is not of onnx {onnx.__version__}")
    assert gaps_text() == written


def test_the_yardstick_holds_most_cases() -> None:
    """Cases with floats in and out that tell nothing are few, and of known kinds."""
    found, left = cases()
    tally = Counter(report.verdict for report in reports())
    assert len(found) + left.total() >= 1800
    assert tally[Verdict.NO_YARDSTICK] <= 130, told([r for r in reports() if r.verdict is Verdict.NO_YARDSTICK])
    assert tally.total() - tally[Verdict.NO_YARDSTICK] >= 1200, tally


# The harness itself


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("ceil", "no input that ONNX calls differentiable"),
        ("reduce_log_sum_empty_set", "non-finite"),
        ("reduce_min_default_axes_keepdims_example", "a kink"),
        ("reduce_sum_empty_set_non_reduced_axis_zero", "no elements"),
        ("bernoulli", "the evaluator's values are wrong"),
        ("clip_min_greater_than_max", "zero"),
    ],
)
def test_a_case_that_tells_nothing_says_why(name: str, why: str) -> None:
    report = judge(case(name))
    assert (report.verdict, report.why) == (Verdict.NO_YARDSTICK, why)


def test_elements_at_a_kink_tell_nothing_and_the_others_do() -> None:
    """LeakyRelu at -1, 0 and 1."""
    wrong = {**DEFAULT, "LeakyRelu": Entry(lambda g, y, x, *, alpha: g)}
    right = {**DEFAULT, "LeakyRelu": Entry(lambda g, y, x, *, alpha: op("Where", x > 0, g, g * alpha))}
    assert judge(case("leakyrelu_example"), right).verdict is Verdict.RIGHT
    assert judge(case("leakyrelu_example"), wrong).verdict is Verdict.WRONG


def test_a_wrong_rule_is_seen_in_every_case_of_its_operator() -> None:
    """Tanh with a derivative that is a thousandth too large."""
    wrong = {**DEFAULT, "Tanh": Entry(lambda g, y, x: g * (1.001 - y * y))}
    assert {judge(case(name), wrong).verdict for name in ("tanh", "tanh_example")} == {Verdict.WRONG}


def test_operators_that_are_not_allowed_are_seen() -> None:
    rules = {**DEFAULT, "Tanh": Entry(lambda g, y, x: g / op("Cosh", x) / op("Cosh", x))}
    report = judge(case("tanh"), rules)
    assert (report.verdict, report.why) == (
        Verdict.FAILED,
        "x: AssertionError: operators that are not allowed: ['Cosh']",
    )


def test_a_refusal_names_operator_and_reason() -> None:
    rules = {name: entry for name, entry in DEFAULT.items() if name != "Tanh"}
    report = judge(case("tanh"), rules)
    assert (report.verdict, report.why) == (Verdict.REFUSED, "Tanh: no gradient rule")
