"""Operators that are differentiated through the function by which ONNX defines them: what node cases do not show."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from onnxplain.adapters.gradient import body
from onnxplain.adapters.gradient.differentiate import differentiate
from onnxplain.engine.executors.onnxruntime import OnnxRuntimeExecutor
from onnxplain.errors import NotDifferentiable

LINEAR = """<ir_version: 13, opset_import: ["" : 27]>
    model (float[2, 4, 8] q, float[2, 4, 8] k, float[2, 4, 8] v) => (float[2, 4, 8] y) {
        y, state = LinearAttention<update_rule = "linear", q_num_heads = 2, kv_num_heads = 2>(q, k, v)
    }"""
FLEX = """<ir_version: 13, opset_import: ["" : 26, "ai.onnx.preview" : 1]>
    model (float[1, 2, 3, 4] q, float[1] b) => (float[1, 2, 3, 4] y) {
        y = ai.onnx.preview.FlexAttention<score_mod: graph = g (float[1, 2, 3, 3] s) => (float[1, 2, 3, 3] t) {
            t = Add(s, b)
        }>(q, q, q)
    }"""
MASKED = """<ir_version: 10, opset_import: ["" : 18]>
    model (float[2, 3] x) => (float[2, 3] y)
    <float[2, 3] bias = {0, 0, 0, -inf, -inf, -inf}, bool[2, 1] masked = {0, 1}, float zero = {0}> {
        s = Add(x, bias) p = Softmax(s) y = Where(masked, zero, p)
    }"""


def parsed(text: str) -> onnx.ModelProto:
    return onnx.parser.parse_model(text)


def test_a_row_that_is_masked_all_over_has_no_gradient() -> None:
    """Its softmax is NaN, which is left out; 0 times NaN must not come back."""
    x, g = np.asarray([[1, 2, 3], [4, 5, 6]], np.float32), np.ones((2, 3), np.float32) * [[1, 2, 4]]
    out = OnnxRuntimeExecutor(differentiate(parsed(MASKED)))({"x": x, "grad_y": g.astype(np.float32)})["grad_x"]
    assert np.abs(out[0]).min() > 0
    np.testing.assert_array_equal(out[1], 0)


def test_a_softmax_that_nobody_chooses_from_is_left_as_it_is() -> None:
    """Comparing and choosing costs more than the rest of its rule."""
    model = parsed(MASKED.replace("Where(masked, zero, p)", "Mul(p, p)"))
    assert not {"Where", "Greater"} & {node.op_type for node in differentiate(model).graph.node}


def test_what_a_graph_inside_an_operator_reads_from_outside_is_not_dropped() -> None:
    with pytest.raises(NotDifferentiable, match="reads a value from outside"):
        differentiate(parsed(FLEX))


def test_a_loop_that_would_be_too_long_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    differentiate(parsed(LINEAR))
    monkeypatch.setattr(body, "MOST_NODES", 30)
    with pytest.raises(NotDifferentiable, match=r"4 turns of [0-9]+ nodes: more than 30"):
        differentiate(parsed(LINEAR))


def test_a_body_with_an_operator_that_not_every_runtime_has_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(body, "ALLOWED", frozenset({"Add"}))
    with pytest.raises(NotDifferentiable, match="its function body holds Reshape, which not every runtime has"):
        differentiate(parsed(LINEAR))
