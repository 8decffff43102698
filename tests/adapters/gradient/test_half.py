"""Models of half precision: the way back is in float32, and gives what the same model in float32 gives."""

from __future__ import annotations

import numpy as np
import onnx
import onnx.parser
import pytest
from frameworks import framework
from onnx import TensorProto
from rounding import in_dtype

torch = framework("torch")

import torch_nets  # noqa: E402

from onnxplain.adapters.gradient.classifier import gradient_model  # noqa: E402
from onnxplain.adapters.gradient.differentiate import differentiate  # noqa: E402
from onnxplain.engine.executors.onnxruntime import OnnxRuntimeExecutor  # noqa: E402
from onnxplain.engine.executors.reference import ReferenceExecutor  # noqa: E402

SHAPE = (3, 16, 16)
FLOAT16, BFLOAT16 = TensorProto.FLOAT16, TensorProto.BFLOAT16


@pytest.mark.parametrize(
    ("name", "kind", "least"),
    [
        *((name, FLOAT16, 0.9999) for name in ("plain", "inception", "transformer")),
        *((name, BFLOAT16, 0.999) for name in ("plain", "transformer")),
    ],
)
def test_the_gradient_is_that_of_float32_but_for_the_rounding_of_the_forward_half(
    name: str, kind: int, least: float
) -> None:
    """Float32 in and out. Cosine with the gradient of the same net in float32.

    Each of some ten layers rounds its values by up to half an eps, 5e-4 and 4e-3; what the gradient turns by is of that
    size, times the root of the layers at the most: 1 - cosine is half its square, 1e-6 and 1e-4. An order of magnitude
    is left for kinks; under bfloat16 a net of Relu and max pools crosses so many that there is nothing to compare. ONNX
    Runtime has no bfloat16 convolutions on CPUs, so those are left to the reference evaluator.
    """
    net = torch_nets.build(torch_nets.SMALL[name]).float()
    proto = torch_nets.to_onnx(net, SHAPE, dynamo=name == "transformer", dtype=torch.float32)
    rng = np.random.default_rng(0)
    feeds = {
        "input": rng.normal(size=(2, *SHAPE)).astype(np.float32),
        "onnxplain_target": np.eye(10, dtype=np.float32)[:2],
        "onnxplain_objective": np.zeros(2, np.int64),
    }
    want = OnnxRuntimeExecutor(gradient_model(proto))(feeds)["gradient"].astype(np.float64)
    executor = OnnxRuntimeExecutor if kind == FLOAT16 else ReferenceExecutor
    got = executor(gradient_model(in_dtype(proto, kind)))(feeds)
    assert {array.dtype for array in got.values()} == {np.dtype(np.float32)}
    for mine, theirs in zip(got["gradient"].astype(np.float64), want, strict=True):
        assert (mine * theirs).sum() / np.sqrt((mine**2).sum() * (theirs**2).sum()) >= least


def test_small_cotangents_do_not_underflow() -> None:
    """1e-3 to the power of six, as a product of float16 factors, is nothing in float16 and a number in float32."""
    body = "".join(f"h{i + 1} = Mul(h{i}, c) " for i in range(5))
    proto = onnx.parser.parse_model(
        f"""<ir_version: 10, opset_import: ["" : 18]> small (float16[N, 3] x) => (float16[N, 3] y)
        {{ h0 = Mul(x, c) {body} y = Identity(h5) }}"""
    )
    proto.graph.initializer.append(onnx.numpy_helper.from_array(np.asarray([1e-3], np.float16), "c"))
    classifier = gradient_model(proto)
    out = OnnxRuntimeExecutor(classifier)(
        {
            "x": np.ones((1, 3), np.float32),
            "onnxplain_target": np.eye(3, dtype=np.float32)[:1],
            "onnxplain_objective": np.zeros(1, np.int64),
        }
    )
    np.testing.assert_allclose(out["gradient"], [[np.float16(0.001).astype(np.float64) ** 6, 0, 0]], rtol=1e-6)


def test_differentiate_keeps_the_types_of_the_model() -> None:
    """Cotangents come and gradients go in float16, as the model's inputs and outputs are."""
    proto = onnx.parser.parse_model(
        """<ir_version: 10, opset_import: ["" : 18]> tanh (float16[N, 3] x) => (float16[N, 3] y) { y = Tanh(x) }"""
    )
    made = differentiate(proto)
    assert {value.type.tensor_type.elem_type for value in (*made.graph.input, *made.graph.output)} == {
        TensorProto.FLOAT16
    }
    x = np.asarray([[0.5, -1, 2]], np.float16)
    out = OnnxRuntimeExecutor(made)({"x": x, "grad_y": np.ones((1, 3), np.float16)})
    np.testing.assert_allclose(out["grad_x"], 1 - np.tanh(x.astype(np.float64)) ** 2, rtol=2e-3)
