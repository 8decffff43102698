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
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

Rule: TypeAlias = Callable[..., Any]


@dataclass(frozen=True)
class Entry:
    """A rule, and whether it may be given a cotangent that only broadcasts to its output's shape."""

    rule: Rule
    broadcastable: bool = False


Rules: TypeAlias = Mapping[str, Entry]

DEFAULT: dict[str, Entry] = {}
NO_GRADIENT: dict[str, str] = {}  # operator type -> why its derivative is zero or does not exist

ALLOWED = frozenset(
    (
        "Add", "AveragePool", "Cast", "Concat", "Conv", "ConvTranspose", "Div", "Equal", "Exp", "Expand", "Gather",
        "Gemm", "Greater", "HardSigmoid", "Identity", "Less", "LogSoftmax", "MatMul", "MaxPool", "Mul", "Neg", "Not",
        "OneHot", "Pad", "ReduceSum", "Reshape", "ReverseSequence", "Shape", "Sigmoid", "Sign", "Slice", "Softmax",
        "Sqrt", "Sub", "Transpose", "Trilu", "Where",
    )
)  # fmt: skip


# Operators that get no rule on principle, and what to do instead. What is not listed merely has no rule so far.

REFUSED: dict[str, str] = {}  # operator type, with its domain if it is not ONNX's -> the reason
OTHER_DOMAINS = {
    "com.microsoft": "an operator of ONNX Runtime alone; next: export without its graph optimisations or quantiser, "
    "which put it there",
}


def refuse(reason: str, *kinds: str) -> None:
    """Register operators that are refused."""
    REFUSED.update(dict.fromkeys(kinds, reason))


def refusal(kind: str) -> str:
    """Why an operator has no gradient."""
    return REFUSED.get(kind) or OTHER_DOMAINS.get(kind.rpartition(".")[0]) or "no gradient rule"


refuse(
    "a sum of trees is constant between jumps: its gradient is zero wherever there is one; next: use methods that only "
    "need the model's outputs, or explain a differentiable model",
    "ai.onnx.ml.TreeEnsemble", "ai.onnx.ml.TreeEnsembleClassifier", "ai.onnx.ml.TreeEnsembleRegressor",
)  # fmt: skip
refuse(
    "it computes in whole numbers, which have no gradient; next: give the float model, or quantise in QDQ format",
    "QLinearConv", "QLinearMatMul", "MatMulInteger", "ConvInteger", "DynamicQuantizeLinear",
)  # fmt: skip
refuse(
    "where it reads is known at run time only, and no operator that every runtime has adds a cotangent to such places; "
    "next: explain an output in front of it, or replace it by operators with fixed places",
    "GridSample", "DeformConv", "RoiAlign", "MaxRoiPool", "MaxUnpool", "Unique", "TensorScatter",
)  # fmt: skip
refuse(
    "spectra have no rule that every runtime could run; next: compute the spectrum in front of the model, and explain "
    "the model behind it",
    "DFT", "STFT",
)  # fmt: skip
refuse(
    "it draws random numbers, so that no two runs explain the same model; next: export the model in evaluation mode",
    "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Bernoulli", "Multinomial",
)  # fmt: skip
refuse(
    "it works on sequences, optional values or text, and gradients are of tensors; next: export the part of the model "
    "that works on tensors",
    "SequenceAt", "SequenceConstruct", "SequenceErase", "SequenceInsert", "SequenceMap", "SplitToSequence",
    "ConcatFromSequence", "Optional", "OptionalGetElement", "StringConcat", "StringNormalizer", "StringSplit",
    "TfIdfVectorizer", "ai.onnx.ml.ZipMap", "ai.onnx.ml.CastMap", "ai.onnx.ml.DictVectorizer",
)  # fmt: skip
refuse(
    "it picks boxes, which is no smooth function of them; next: explain the scores in front of it",
    "NonMaxSuppression",
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


def no_gradient(why: str, *op_types: str) -> None:
    """Register operators whose output does not change with their input, or only in jumps."""
    NO_GRADIENT.update(dict.fromkeys(op_types, why))
