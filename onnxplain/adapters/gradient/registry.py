"""The table of gradient rules: operator type -> rule.

A rule is a formula. It is called as `rule(g, y, *inputs, **attributes)`:

*  `g` is the cotangent of the output `y`; both are tuples where the operator has several outputs, and a cotangent is
   None for an output that does not matter. `g` has the full shape of `y`, except for rules registered as
   `broadcastable`, which may get one with ones in place of some dimensions.
*  inputs come in the order of the ONNX schema, None where one is absent; attributes are keywords, with ONNX's defaults.
*  it returns one cotangent per input (a bare one where there is a single input): None for an input that has none, or
   a function without arguments that makes it, called only if somebody needs it. A cotangent may have the *broadcast*
   shape; the sweep sums it to the input's.
*  it emits operators of `ALLOWED` only, which every runtime of ours runs.
*  a case that is not covered raises `UnsupportedCase`. Never a wrong number.
*  it sees float32 and float64 only: half precision is cast before and after.

An operator without a rule may have an *expansion*: a function `expansion(*inputs, **attributes)` that computes its
outputs by formulas again, from operators that do have rules. The sweep differentiates what it emits; the operator
itself stays in the graph as it is. Operators that ONNX itself defines by a function body have such an expansion without
being registered. Where both would do, a rule is the better choice: it need not compute the forward pass a second time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

Rule: TypeAlias = Callable[..., Any]


@dataclass(frozen=True)
class Entry:
    """A rule, and whether it may be given a cotangent that only broadcasts to its output's shape.

    A rule with `reference` also looks at the values at a reference, `Expr.reference`: the model must have one.
    """

    rule: Rule
    broadcastable: bool = False
    reference: bool = False


Rules: TypeAlias = Mapping[str, Entry]

DEFAULT: dict[str, Entry] = {}
EXPANSIONS: dict[str, Rule] = {}
NO_GRADIENT: dict[str, str] = {}  # operator type -> why its derivative is zero or does not exist
REFUSED: dict[str, str] = {}  # operator type, with its domain -> why there will be no rule, and what to do instead

ALLOWED = frozenset(
    (
        "Add", "AveragePool", "BatchNormalization", "Cast", "Concat", "Conv", "ConvTranspose", "Cos", "CumSum", "Div",
        "Equal", "Erf", "Exp", "Expand", "Gather", "GatherElements", "Gemm", "Greater", "HardSigmoid", "Identity",
        "Less", "Log", "LogSoftmax", "MatMul", "MaxPool", "Mul", "Neg", "Not", "OneHot", "Pad", "Pow", "ReduceMax",
        "ReduceMean", "ReduceProd", "ReduceSum", "Relu", "Reshape", "ReverseSequence", "Shape", "Sigmoid", "Sign",
        "Sin", "Slice", "Softmax", "Softplus", "Split", "Sqrt", "Squeeze", "Sub", "Tanh", "Transpose", "Trilu",
        "Unsqueeze", "Where",
    )
)  # fmt: skip


def vjp(*op_types: str, broadcastable: bool = False) -> Callable[[Rule], Rule]:
    """Register the rule of one or more operators."""

    def register(rule: Rule) -> Rule:
        DEFAULT.update(dict.fromkeys(op_types, Entry(rule, broadcastable)))
        return rule

    return register


def define(rules: Mapping[str, Rule], broadcastable: bool = False) -> None:
    """Register many rules of one line each."""
    for op_type, rule in rules.items():
        DEFAULT[op_type] = Entry(rule, broadcastable)


def expansion(*op_types: str) -> Callable[[Rule], Rule]:
    """Register the formulas by which one or more operators are computed."""

    def register(outputs: Rule) -> Rule:
        EXPANSIONS.update(dict.fromkeys(op_types, outputs))
        return outputs

    return register


def needs_reference(rules: Rules) -> bool:
    """Whether a table has rules that look at the values at a reference."""
    return any(entry.reference for entry in rules.values())


def refuse(why: str, *op_types: str) -> None:
    """Register operators that are not differentiated, whatever ONNX says of them: `Op`, or `domain.Op`."""
    REFUSED.update(dict.fromkeys(op_types, why))


def refusal(kind: str) -> str:
    """Why an operator, `Op` or `domain.Op`, has no gradient, and what to do instead."""
    if kind in REFUSED:
        return REFUSED[kind]
    if kind.startswith("com.microsoft."):
        return "it is ONNX Runtime's own; next: give the model as it was before that runtime's optimiser rewrote it"
    return "no gradient rule"


def no_gradient(why: str, *op_types: str) -> None:
    """Register operators whose output does not change with their input, or only in jumps."""
    NO_GRADIENT.update(dict.fromkeys(op_types, why))
