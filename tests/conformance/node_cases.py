"""ONNX's own node cases, each held against forward values alone.

    python tests/conformance/node_cases.py [WORD ...]     a line for each case whose name has one of the words
    python tests/conformance/node_cases.py --write        write gaps.txt again

A case is one model and one point. Its floats are promoted to float64, whatever is no float is frozen into the model,
and so is each float that ONNX's schema calls non-differentiable (sizes, bounds, ratios): those are tried one by one in
a model of their own, where they may be refused but not be wrong. Where an operator does not know float64, the model is
differentiated in float32, and what comes out is promoted.

For each float input x the derivative J v along a random v is taken from values of the forward model. Each element of
each float output has a yardstick if two step sizes of a five-point stencil agree and the slopes on its two sides do.
The cotangent is random on the elements with a yardstick and 0 elsewhere, and the law is <ȳ, J v> = <x̄, v>.
"""

from __future__ import annotations

import logging
import sys
import warnings
import zlib
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.backend.test.case.node as onnx_cases
from numpy.typing import NDArray
from onnx import TensorProto

from onnxplain.adapters.gradient.differentiate import differentiate
from onnxplain.adapters.gradient.prepare import prepare
from onnxplain.adapters.gradient.registry import ALLOWED, DEFAULT, EXPANSIONS, NO_GRADIENT, Rules
from onnxplain.engine.executors.reference import ReferenceExecutor
from onnxplain.errors import NotDifferentiable

Array = NDArray[Any]

GAPS = Path(__file__).parent / "gaps.txt"
FLOATS = {TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE}
TYPES = ("to", "dtype", "stash_type", "softmax_precision")  # attributes that name the type to compute in
SCALES = {("Resize", 2), ("Upsample", 1)}  # inputs that are float32 always
# Operators that the evaluator runs in float32: their values come from ONNX's own expansion of the case.
WRITTEN_OUT = {"CausalConvWithState", "LinearAttention", "MeanVarianceNormalization"}
STEPS = (1e-3, 1e-4, 1e-5)
AGREE = 1e-7  # of the stencil at h and h/2, relative to the largest slope of the output
KINK = 1e-3  # by how much the slopes on both sides may differ, at a distance of:
BESIDE = 1e-7
LARGEST = 2**24  # bytes of a gradient model: the cases are small
FORWARD = 1e-2  # how far ONNX's expected outputs, in single or half precision, may be from ours


class Verdict(StrEnum):
    RIGHT = "right"
    WRONG = "WRONG"
    FAILED = "FAILED"  # anything but a gradient model or a refusal
    REFUSED = "refused"
    NO_YARDSTICK = "no yardstick"


# Cases


@dataclass(frozen=True, kw_only=True)
class Case:
    """A node case: its model, still in its own types, and its data in float64.

    `forward` is the model that its values are taken from. `feeds` are the inputs to differentiate with respect to,
    `extra` further ones that ONNX does not call differentiable, `frozen` what is no float.
    """

    name: str
    op: str
    model: onnx.ModelProto
    forward: onnx.ModelProto
    feeds: Mapping[str, Array]
    extra: Mapping[str, Array]
    frozen: Mapping[str, Array]
    expected: Mapping[str, Array]

    @property
    def expanded(self) -> bool:
        """Whether ONNX wrote an operator out by its function body."""
        return "_expanded" in self.name

    def fed(self, given_model: onnx.ModelProto, feeds: Mapping[str, Array]) -> onnx.ModelProto:
        """One of the models with these inputs; the others are initializers."""
        model = onnx.ModelProto()
        model.CopyFrom(given_model)
        model.ir_version = max(model.ir_version, 4)  # before, every initializer had to be an input
        graph = model.graph
        given = {value.name: value for value in graph.input}
        wanted = [value for value in graph.output if value.name in self.expected]
        del graph.input[:], graph.output[:]
        graph.input.extend(given[name] for name in feeds)
        graph.output.extend(wanted)
        for name, x in {**self.frozen, **self.extra, **self.feeds}.items():
            if name not in feeds:
                kind = given[name].type.tensor_type.elem_type
                array = x.astype(onnx.helper.tensor_dtype_to_np_dtype(kind)) if kind in FLOATS else x
                graph.initializer.append(onnx.numpy_helper.from_array(array, name))
        return model


@cache
def cases() -> tuple[tuple[Case, ...], Counter[str]]:
    """The cases with float inputs and outputs, and how many of the others there are, by what they lack."""
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        collected = onnx_cases.collect_testcases(None)
    found, left = [], Counter[str]()
    by_name = {case.name: case for case in collected}
    for case in collected:
        origin = by_name.get(case.name.partition("_expanded")[0], case).model.graph.node[0]
        written_out = by_name.get(f"{case.name}_expanded", case) if origin.op_type in WRITTEN_OUT else case
        made = harvested(case, origin, written_out.model)
        if isinstance(made, Case):
            found.append(made)
        else:
            left[made] += 1
    return tuple(found), left


def harvested(case: Any, origin: onnx.NodeProto, forward: onnx.ModelProto) -> Case | str:
    """The case in float64, or what it lacks. `origin` is the node that it was expanded from, or that it is."""
    graph = case.model.graph
    if not all(value.type.HasField("tensor_type") for value in graph.input):
        return "inputs that are tensors"
    data, results = case.data_sets[0]
    inputs = {v.name: array_of(x) for v, x in zip(graph.input, data, strict=True)}
    floats = {v.name: inputs[v.name].astype(np.float64) for v in graph.input if is_float(v)}
    expected = {
        v.name: array_of(y).astype(np.float64) for v, y in zip(graph.output, results, strict=True) if is_float(v)
    }
    if not floats:
        return "float inputs"
    if not expected:
        return "float outputs"
    parameters = undifferentiable(origin, case.model) & floats.keys()
    return Case(
        name=case.name.removeprefix("test_"),
        op=f"{origin.domain}.{origin.op_type}".lstrip("."),
        model=case.model,
        forward=forward,
        feeds={name: x for name, x in floats.items() if name not in parameters},
        extra={name: x for name, x in floats.items() if name in parameters},
        frozen={name: x for name, x in inputs.items() if name not in floats},
        expected=expected,
    )


def array_of(data: Any) -> Array:
    return onnx.numpy_helper.to_array(data) if isinstance(data, onnx.TensorProto) else np.asarray(data)


def is_float(value: onnx.ValueInfoProto) -> bool:
    return value.type.tensor_type.elem_type in FLOATS


def undifferentiable(node: onnx.NodeProto, model: onnx.ModelProto) -> set[str]:
    """The inputs of a node that its schema calls non-differentiable, or float32 whatever the others are."""
    versions = {entry.domain: entry.version for entry in model.opset_import}
    schema = onnx.defs.get_schema(node.op_type, versions[node.domain], node.domain)
    never = onnx.defs.OpSchema.DifferentiationCategory.NonDifferentiable
    formals = [schema.inputs[min(i, len(schema.inputs) - 1)] for i in range(len(node.input))]
    return {
        name
        for name, formal in zip(node.input, formals, strict=True)
        if formal.differentiation_category == never or formal.type_str == "tensor(float)"
    }


def retyped(model: onnx.ModelProto, kind: int) -> onnx.ModelProto:
    ours = onnx.ModelProto()
    ours.CopyFrom(model)
    retype(ours.graph, kind)
    return ours


def retype(graph: onnx.GraphProto, kind: int) -> None:
    """Every float of a graph becomes one of `kind`: declared, constant, or the type that an attribute asks for.

    The scales of a Resize stay: they are float32 by its schema.
    """
    scales = {node.input[i] for node in graph.node for i in range(len(node.input)) if (node.op_type, i) in SCALES}
    for value in (*graph.input, *graph.output, *graph.value_info):
        if is_float(value):
            value.type.tensor_type.elem_type = kind
    for tensor in graph.initializer:
        if tensor.name not in scales:
            tensor.CopyFrom(cast(tensor, kind))
    for node in graph.node:
        if node.op_type == "ConstantOfShape" and not node.attribute:
            node.attribute.append(onnx.helper.make_attribute("value", cast(np_tensor(np.zeros(1)), kind)))
        for attribute in node.attribute:
            if attribute.name in TYPES and attribute.i in FLOATS:
                attribute.i = kind
            elif attribute.HasField("t"):
                attribute.t.CopyFrom(cast(attribute.t, kind))
            elif attribute.HasField("g"):
                retype(attribute.g, kind)
            elif node.op_type == "Constant" and attribute.name in ("value_float", "value_floats"):
                array = np.asarray(attribute.floats if attribute.floats else attribute.f, np.float64)
                attribute.CopyFrom(onnx.helper.make_attribute("value", cast(np_tensor(array), kind)))


def cast(tensor: onnx.TensorProto, kind: int) -> onnx.TensorProto:
    if tensor.data_type not in FLOATS:
        return tensor
    array = onnx.numpy_helper.to_array(tensor)
    return np_tensor(array.astype(onnx.helper.tensor_dtype_to_np_dtype(kind)), tensor.name)


def np_tensor(array: Array, name: str = "") -> onnx.TensorProto:
    return onnx.numpy_helper.from_array(array, name)


# The yardstick


@dataclass(frozen=True, kw_only=True)
class Slope:
    """J v of one output, and on which elements it is to be trusted; `why` there are others, if there are."""

    change: Array
    sure: NDArray[np.bool_]
    why: str


def yardstick(forward: ReferenceExecutor, feeds: Mapping[str, Array], wrt: str, v: Array) -> dict[str, Slope]:
    """J v of every output by forward values alone."""

    def at(t: float) -> Mapping[str, Array]:
        return forward({**feeds, wrt: feeds[wrt] + t * v})

    def stencil(h: float) -> dict[str, Array]:
        a, b, c, d = at(-2 * h), at(-h), at(h), at(2 * h)
        return {name: (a[name] - 8 * b[name] + 8 * c[name] - d[name]) / (12 * h) for name in a}

    here, up, down = at(0), at(BESIDE), at(-BESIDE)
    found = {}
    for h in STEPS:
        coarse, fine = stencil(h), stencil(h / 2)
        for name, change in fine.items():
            size = max(float(np.abs(change[np.isfinite(change)]).max(initial=0)), 1e-3)
            agree = np.abs(change - coarse[name]) <= AGREE * size
            bend = np.abs(up[name] - 2 * here[name] + down[name]) / BESIDE
            sure = agree & (bend <= KINK * size)
            if not change.size:
                why = "no elements"
            elif not np.isfinite(here[name]).all():
                why = "non-finite"
            elif (bend > KINK * size).any():
                why = "a kink"
            else:
                why = "rough"
            if name not in found or sure.sum() > found[name].sure.sum():
                found[name] = Slope(change=change, sure=sure, why=why)
        if all(slope.sure.all() for slope in found.values()):
            break
    return found


@dataclass(frozen=True, kw_only=True)
class Probe:
    """A direction of one input, and J v for each output that has a yardstick anywhere."""

    wrt: str
    v: Array
    slopes: Mapping[str, Slope]

    @property
    def counts(self) -> bool:
        return any(slope.change[slope.sure].any() for slope in self.slopes.values())

    def cotangents(self) -> dict[str, Array]:
        rng = seeded("cotangents", self.wrt)
        return {name: np.where(s.sure, directions(rng, s.change.shape), 0) for name, s in self.slopes.items()}


def probe(forward: ReferenceExecutor, feeds: Mapping[str, Array], wrt: str) -> Probe:
    v = directions(seeded("direction", wrt), feeds[wrt].shape)
    try:
        slopes = yardstick(forward, feeds, wrt, v)
    except Exception as error:
        raise NoYardstick(f"the evaluator fails beside the point: {first_line(error)}") from error
    told = {name: slope for name, slope in slopes.items() if slope.sure.any()}
    if not told:
        raise NoYardstick("; ".join(dict.fromkeys(slope.why for slope in slopes.values())))
    return Probe(wrt=wrt, v=v, slopes=told)


def seeded(*words: str) -> np.random.Generator:
    return np.random.default_rng([zlib.crc32(word.encode()) for word in words])


def directions(rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
    """Elements of either sign, between 1/2 and 1, so that each of them tells."""
    return rng.uniform(0.5, 1, shape) * rng.choice([-1.0, 1.0], shape)


class NoYardstick(Exception):
    """Why the forward values of a case tell nothing."""


# The verdict


@dataclass(frozen=True, kw_only=True)
class Result:
    """What came of one input of a case; `counts` if it is reliable: there is a yardstick, and it is not zero."""

    input: str
    verdict: Verdict
    counts: bool
    why: str = ""


@dataclass(frozen=True, kw_only=True)
class Report:
    """What came of a case, by input."""

    case: Case
    inputs: tuple[Result, ...]
    extra: tuple[Result, ...]

    @property
    def reliable(self) -> bool:
        return any(result.counts for result in self.inputs)

    @property
    def verdict(self) -> Verdict:
        """The worst of its inputs. A case is right if it is right for every input that counts."""
        if self.bad:
            return Verdict.WRONG if any(r.verdict is Verdict.WRONG for r in self.bad) else Verdict.FAILED
        if not self.reliable:
            return Verdict.NO_YARDSTICK
        return Verdict.REFUSED if self.refused else Verdict.RIGHT

    @property
    def bad(self) -> list[Result]:
        return [r for r in (*self.inputs, *self.extra) if r.verdict in (Verdict.WRONG, Verdict.FAILED)]

    @property
    def refused(self) -> list[Result]:
        return [result for result in self.inputs if result.counts and result.verdict is Verdict.REFUSED]

    @property
    def why(self) -> str:
        """Of what is not right: why, each reason once."""
        told = self.bad or (self.refused if self.reliable else self.inputs)
        none = "" if self.inputs else "no input that ONNX calls differentiable"
        return "; ".join(dict.fromkeys(result.why for result in told)) or none


def judge(case: Case, rules: Rules = DEFAULT) -> Report:
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        return Report(
            case=case,
            inputs=tuple(judged(case, case.feeds, rules)),
            extra=tuple(result for name, x in case.extra.items() for result in judged(case, {name: x}, rules)),
        )


def judged(case: Case, feeds: Mapping[str, Array], rules: Rules) -> list[Result]:
    """What comes of the derivatives with respect to each of these inputs, the others being constant."""
    results: list[Result] = []
    probes: list[Probe] = []
    try:
        forward, model = compared(case, feeds)
    except NoYardstick as why:
        return [untold(wrt, str(why)) for wrt in feeds]
    for wrt in feeds:
        try:
            probes.append(probe(forward, feeds, wrt))
        except NoYardstick as why:
            results.append(untold(wrt, str(why)))
    outputs = {tuple(p.slopes) for p in probes}
    try:
        together = gradient(model, outputs.pop(), [p.wrt for p in probes], rules) if len(outputs) == 1 else None
    except Exception:  # one by one, then, to see which it is
        together = None
    return results + [verdict(p, model, feeds, together, rules) for p in probes]


def untold(wrt: str, why: str) -> Result:
    return Result(input=wrt, verdict=Verdict.NO_YARDSTICK, counts=False, why=why)


def compared(case: Case, feeds: Mapping[str, Array]) -> tuple[ReferenceExecutor, onnx.ModelProto]:
    """The forward model in float64, run and found right, and the model to differentiate."""
    own = case.fed(case.model, feeds)
    try:
        forward = ReferenceExecutor(retyped(case.fed(case.forward, feeds), TensorProto.DOUBLE))
        for name, y in forward(feeds).items():
            np.testing.assert_allclose(y, case.expected[name], rtol=FORWARD, atol=FORWARD)
    except AssertionError as error:
        raise NoYardstick("the evaluator's values are wrong") from error
    except Exception as error:
        raise NoYardstick(f"the evaluator fails: {first_line(error)}") from error
    for kind in (TensorProto.DOUBLE, TensorProto.FLOAT):
        if accepted(model := retyped(own, kind)):
            return forward, model
    raise NoYardstick("ONNX does not accept the case itself")


def verdict(
    told: Probe, model: onnx.ModelProto, feeds: Mapping[str, Array], made: onnx.ModelProto | None, rules: Rules
) -> Result:
    """Whether the gradient model `made`, or one that is made for this input alone, agrees with the yardstick."""
    wrt, cotangents = told.wrt, told.cotangents()
    try:
        ours = gradient(model, told.slopes, [wrt], rules) if made is None else made
        run = ReferenceExecutor(retyped(ours, TensorProto.DOUBLE))
        back = run({**feeds, **{f"grad_{name}": g for name, g in cotangents.items()}})[f"grad_{wrt}"]
        assert back.shape == told.v.shape, f"the gradient has the shape {back.shape}"
    except NotDifferentiable as error:
        why = "; ".join(sorted({f"{gap.op}: {gap.why}" for gap in error.gaps}))
        return Result(input=wrt, verdict=Verdict.REFUSED, counts=told.counts, why=why)
    except Exception as error:
        why = f"{wrt}: {type(error).__name__}: {first_line(error)}"
        return Result(input=wrt, verdict=Verdict.FAILED, counts=told.counts, why=why)
    there = np.concatenate([(cotangents[name] * s.change)[s.sure].ravel() for name, s in told.slopes.items()])
    here = (back * told.v).ravel()
    if not np.isfinite(here).all() and not all(s.sure.all() for s in told.slopes.values()):
        # Infinitely steep at an element that tells nothing: 0 times that is NaN, an error and no wrong number.
        return untold(wrt, "non-finite")
    if not abs(there.sum() - here.sum()) <= 10 * AGREE * (np.abs(there).sum() + np.abs(here).sum()) + 1e-12:
        why = f"{wrt}: <ȳ, J v> = {there.sum():.6g} but <x̄, v> = {here.sum():.6g}"
        return Result(input=wrt, verdict=Verdict.WRONG, counts=told.counts, why=why)
    return Result(input=wrt, verdict=Verdict.RIGHT, counts=True) if told.counts else untold(wrt, "zero")


def gradient(model: onnx.ModelProto, of: Iterable[str], wrt: list[str], rules: Rules) -> onnx.ModelProto:
    """The gradient model, if ONNX accepts it in strict mode and it adds allowed operators only to the forward ones."""
    made = differentiate(model, of=list(of), wrt=wrt, rules=rules)
    assert made.ByteSize() < LARGEST, f"a gradient model of {made.ByteSize():,} bytes"
    onnx.checker.check_model(made, full_check=True)
    emitted = Counter(node.op_type for node in made.graph.node) - Counter(node.op_type for node in prepare(model).graph)
    assert emitted.keys() <= ALLOWED, f"operators that are not allowed: {sorted(emitted.keys() - ALLOWED)}"
    return made


def accepted(model: onnx.ModelProto) -> bool:
    """Whether ONNX accepts a model in strict mode."""
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError):
        return False
    return True


def first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0][:160]


@cache
def reports() -> tuple[Report, ...]:
    """What came of every case."""
    return tuple(judge(case) for case in cases()[0])


# The gaps


def gap_lines(found: Iterable[Report]) -> list[str]:
    """The refused cases, a line each."""
    return sorted(
        f"{report.case.name}  {report.case.op}  {report.why}" for report in found if report.verdict is Verdict.REFUSED
    )


def uncovered_operators() -> list[str]:
    """Operators that ONNX calls differentiable and that have neither a rule nor an expansion.

    An expansion that ONNX itself has counts if it is right in any case.
    """
    differentiable = onnx.defs.OpSchema.DifferentiationCategory.Differentiable
    names = {
        schema.name
        for schema in onnx.defs.get_all_schemas()
        if not schema.domain
        and not schema.deprecated
        and any(formal.differentiation_category == differentiable for formal in schema.inputs)
    }
    right = {report.case.op for report in reports() if report.verdict is Verdict.RIGHT and not report.case.expanded}
    return sorted(names - set(DEFAULT) - set(EXPANSIONS) - set(NO_GRADIENT) - right)


def gaps_text() -> str:
    return "\n".join(
        [
            "# What cannot be differentiated. Written by `python tests/conformance/node_cases.py --write`.",
            "# It may only shrink.",
            "",
            f"# Node cases of onnx {onnx.__version__} that are refused: the case, its operator, why.",
            *gap_lines(reports()),
            "",
            "# Operators that ONNX calls differentiable and that have neither a rule nor an expansion.",
            *uncovered_operators(),
            "",
        ]
    )


def main(words: list[str]) -> None:
    logging.disable()  # of shape inference that gives up
    if words == ["--write"]:
        GAPS.write_text(gaps_text(), encoding="utf-8")
        tally = Counter(report.verdict for report in reports())
        print(", ".join(f"{count} {verdict}" for verdict, count in tally.most_common()))  # noqa: T201
        return
    for case in cases()[0]:
        if not words or any(word.lower() in case.name.lower() for word in words):
            report = judge(case)
            print(f"{report.verdict:<12}  {case.name}  {case.op}  {report.why}", flush=True)  # noqa: T201


if __name__ == "__main__":
    main(sys.argv[1:])
