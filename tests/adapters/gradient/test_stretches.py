"""Sums of cotangents that do not meet: pieces side by side, and the same gradient as by adding."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
import pytest

from onnxplain.adapters.gradient.differentiate import differentiate
from onnxplain.adapters.gradient.expr import PREFIX
from onnxplain.engine.executors.reference import ReferenceExecutor


def taken(*stretches: tuple[int, int, int]) -> onnx.ModelProto:
    """Slices of x (N, 6, 5), as (axis, start, end), each squared and summed."""
    lines = [
        f"""s{i} = Slice(x, b{i}, e{i}, a{i}) q{i} = Mul(s{i}, s{i}) r{i} = ReduceSum<keepdims = 0>(q{i}, axes)"""
        for i in range(len(stretches))
    ]
    names = ", ".join(f"r{i}" for i in range(len(stretches)))
    text = f"""
        <ir_version: 8, opset_import: ["": 18]>
        taken (double[N, 6, 5] x) => (double[N] y) {{ {" ".join(lines)} y = Sum({names}) }}
    """
    model = onnx.parser.parse_model(text)
    numbers = {"axes": [1, 2]}
    for i, (axis, start, end) in enumerate(stretches):
        numbers |= {f"a{i}": [axis], f"b{i}": [start], f"e{i}": [end]}
    model.graph.initializer.extend(onnx.numpy_helper.from_array(np.array(v), name) for name, v in numbers.items())
    return model


CASES = {  # what is taken, and how often the backward half has Pad, Add and Concat
    "all of it": ([(1, 0, 2), (1, 2, 3), (1, 3, 6)], (0, 0, 1)),
    "in another order": ([(1, 3, 6), (1, 0, 2), (1, 2, 3)], (0, 0, 1)),
    "the last axis": ([(2, 0, 2), (2, 2, 5)], (0, 0, 1)),
    "a gap": ([(1, 0, 2), (1, 3, 6)], (1, 0, 1)),
    "open ends": ([(1, 1, 2), (1, 2, 5)], (2, 0, 1)),
    "one place twice": ([(1, 0, 3), (1, 2, 6)], (2, 1, 0)),
    "two axes": ([(1, 0, 2), (2, 2, 5)], (2, 1, 0)),
    "two that meet, and one that does not": ([(1, 0, 2), (1, 1, 3), (1, 4, 6)], (2, 1, 1)),
    "one": ([(1, 2, 4)], (1, 0, 0)),
}


@pytest.mark.parametrize("name", CASES)
def test_pieces_that_do_not_meet_are_laid_side_by_side(name: str) -> None:
    stretches, counts = CASES[name]
    made = differentiate(taken(*stretches))
    x, g = np.random.default_rng(0).normal(size=(2, 6, 5)), np.array([1.0, -2.0])
    want = np.zeros_like(x)
    for axis, start, end in stretches:
        where = (slice(None), *(slice(start, end) if a == axis else slice(None) for a in (1, 2)))
        want[where] += 2 * x[where] * g[:, None, None]
    got = ReferenceExecutor(made)({"x": x, "grad_y": g})["grad_x"]
    np.testing.assert_allclose(got, want, rtol=1e-14)
    ops = Counter(node.op_type for node in made.graph.node if node.name.startswith(PREFIX))
    assert (ops["Pad"], ops["Add"], ops["Concat"]) == (counts[0], counts[1] + len(stretches), counts[2])
