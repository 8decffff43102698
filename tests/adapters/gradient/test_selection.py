"""What selects by its input, and what is refused on principle: the reason is told, and what to do instead."""

from __future__ import annotations

import numpy as np
import onnx
import onnx.parser
import pytest

from onnxplain.adapters.gradient.differentiate import coverage, differentiate
from onnxplain.adapters.gradient.registry import DEFAULT, EXPANSIONS, NO_GRADIENT, REFUSED
from onnxplain.adapters.gradient.rules.places import inverse, runs
from onnxplain.engine.executors.reference import ReferenceExecutor
from onnxplain.errors import NotDifferentiable


def parsed(body: str, inputs: str = "float[N, 4] x", imports: str = '"" : 18') -> onnx.ModelProto:
    return onnx.parser.parse_model(
        f"<ir_version: 10, opset_import: [{imports}]> model ({inputs}) => (float[N, M] y) {{ {body} }}"
    )


SELECTS = {
    "Gather": """
        total = ReduceSum<keepdims = 0>(x) i = Cast<to = 7>(total) row = Gather<axis = 1>(x, i)
        axes = Constant<value_ints = [1]>() y = Unsqueeze(row, axes)
    """,
    "GatherElements": "i = Cast<to = 7>(x) y = GatherElements<axis = 1>(x, i)",
    "ScatterElements": "i = Cast<to = 7>(x) y = ScatterElements<axis = 1>(x, i, x)",
}


@pytest.mark.parametrize("op", SELECTS)
def test_indices_that_the_run_makes_are_refused(op: str) -> None:
    """The gap says why, and what to do."""
    with pytest.raises(NotDifferentiable, match="indices that only the run knows") as caught:
        differentiate(parsed(SELECTS[op]))
    assert [gap.op for gap in caught.value.gaps] == [op]
    assert "next: export the model with constant indices" in str(caught.value)


def test_an_index_into_a_constant_table_ends_the_derivative() -> None:
    """y = x T[argmax x]: the index jumps, so only the other factor counts."""
    model = parsed("i = ArgMax<axis = 1>(x) row = Gather(table, i) y = Mul(x, row)")
    table = np.random.default_rng(0).normal(size=(4, 1)).astype(np.float32)
    model.graph.initializer.append(onnx.numpy_helper.from_array(table.ravel(), "table"))
    x = np.random.default_rng(1).normal(size=(3, 4)).astype(np.float32)
    g = np.ones((3, 4), np.float32)
    out = ReferenceExecutor(differentiate(model))({"x": x, "grad_y": g})["grad_x"]
    np.testing.assert_array_equal(out, np.broadcast_to(table[x.argmax(1)], x.shape))


REPEATED = {
    "GatherElements": ("y = GatherElements<axis = 1>(x, i)", [[3, 0, 3]]),
    "ScatterElements": ("u = Sin(z) y = ScatterElements<axis = 1>(x, i, u)", [[3, 0, 2]]),
}


@pytest.mark.parametrize("op", REPEATED)
def test_an_index_that_is_repeated_for_the_batch_is_known(op: str) -> None:
    """As exporters write `gather` and assignments to a slice: the same for any batch as for one of that size."""
    body, index = REPEATED[op]
    model = parsed(
        f"n = Shape<start = 0, end = 1>(x) three = Constant<value_ints = [3]>() "
        f"shape = Concat<axis = 0>(n, three) i = Expand(index, shape) z = Slice(x, zero, three, one) {body}"
    )
    constants = {"index": index, "zero": [0], "one": [1]}
    model.graph.initializer.extend(onnx.numpy_helper.from_array(np.asarray(a), name) for name, a in constants.items())
    fixed = onnx.ModelProto()
    fixed.CopyFrom(model)
    fixed.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 5
    rng = np.random.default_rng(0)
    x = rng.normal(size=(5, 4)).astype(np.float32)
    feeds = {"x": x, "grad_y": rng.normal(size=(5, 3 if op.startswith("G") else 4)).astype(np.float32)}
    free, known = (ReferenceExecutor(differentiate(m))(feeds)["grad_x"] for m in (model, fixed))
    np.testing.assert_array_equal(free, known)
    if op == "GatherElements":
        g = feeds["grad_y"]
        np.testing.assert_array_equal(free, np.stack([g[:, 1], 0 * x[:, 0], 0 * x[:, 0], g[:, 0] + g[:, 2]], axis=1))


PRINCIPLES = {
    "GridSample": "explain an output in front of it",
    "Bernoulli": "evaluation mode",
    "SequenceConstruct": "works on tensors",
    "QLinearMatMul": "float model",
    "ai.onnx.ml.TreeEnsembleRegressor": "explain another model",
}


@pytest.mark.parametrize(("op", "instead"), PRINCIPLES.items())
def test_what_is_refused_on_principle_says_what_to_do_instead(op: str, instead: str) -> None:
    assert instead in REFUSED[op]
    assert "; next: " in REFUSED[op]


def test_what_is_refused_has_no_rule() -> None:
    """One operator, one answer."""
    assert not set(REFUSED) & ({*DEFAULT} | {*EXPANSIONS} | {*NO_GRADIENT})


def test_a_refusal_is_the_reason_of_the_gap() -> None:
    """Of operators by name, and of whole domains."""
    random = coverage(parsed("y = Bernoulli(x)"))
    assert random.gaps[0].why == REFUSED["Bernoulli"]
    fused = coverage(parsed("y = com.microsoft.FastGelu(x)", imports='"" : 18, "com.microsoft" : 1'))
    assert "before that runtime's optimiser rewrote it" in fused.gaps[0].why


def test_a_selection_is_cut_into_runs() -> None:
    """What a mirrored border takes; places that take nothing belong to no run."""
    assert runs(np.asarray([2, 1, 0, 1, 2, 3, 2])) == [(0, 3, 2, -1), (3, 6, 1, 1), (6, 7, 2, 1)]
    assert runs(np.asarray([-1, 0, 0, 0, 1, 3, -1, -1])) == [(1, 4, 0, 0), (4, 6, 1, 2)]
    assert runs(np.asarray([-1, -1])) == []


def test_a_selection_is_turned_round() -> None:
    """A row for each element of x: who took it, filled up with the number of elements of y."""
    np.testing.assert_array_equal(inverse(np.asarray([2, 0, 2, -1]), 3), [[1, 4], [4, 4], [0, 2]])
