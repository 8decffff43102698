"""A classifier at every opset from 7 to the newest, spelt as each has it: one gradient."""

from __future__ import annotations

from functools import cache

import numpy as np
import onnx
import onnx.parser
import pytest

from onnxplain.adapters.gradient.classifier import gradient_model
from onnxplain.engine.executors.onnxruntime import OnnxRuntimeExecutor

NEWEST = onnx.defs.onnx_opset_version()
RUNS_UP_TO = 26  # what the installed ONNX Runtime takes; the gradient models of later ones are checked, and not run
RNG = np.random.default_rng(4)
WEIGHTS = {
    "w": RNG.normal(size=(4, 3, 3, 3)) / 3,
    **{name: RNG.uniform(0.5, 1.5, 4) for name in ("scale", "bias", "mean", "var")},
    "v": RNG.normal(size=(36, 5)) / 30,
}


def classifier(opset: int) -> onnx.ModelProto:
    """Attributes became inputs at 11 (Clip, Pad) and 13 (ReduceSum, Unsqueeze); Softmax changed its meaning at 13."""
    clip = "c = Clip<min = 0.0, max = 6.0>(b)" if opset < 11 else "c = Clip(b, low, high)"
    pad = "p = Pad<pads = [0, 0, 1, 0, 0, 0, 0, 1]>(x)" if opset < 11 else "p = Pad(x, pads)"
    total = (
        "s = ReduceSum<axes = [1], keepdims = 0>(d) u = Unsqueeze<axes = [1]>(s)"
        if opset < 13
        else "s = ReduceSum<keepdims = 0>(d, one) u = Unsqueeze(s, one)"
    )
    proto = onnx.parser.parse_model(
        f"""<ir_version: {3 if opset < 9 else 8}, opset_import: ["" : {opset}]>
        net (float[N, 3, 8, 8] x) => (float[N, 5] y)
        {{
            {pad}
            a = Conv<pads = [1, 1, 1, 1]>(p, w)
            b = BatchNormalization(a, scale, bias, mean, var)
            {clip}
            m = MaxPool<kernel_shape = [3, 3], strides = [3, 3]>(c)
            f = Flatten(m)
            g = MatMul(f, v)
            d = Tanh(g)
            {total}
            z = Mul(d, u)
            y = Softmax<axis = 1>(z)
        }}"""
    )
    arrays: dict[str, np.ndarray | np.float32] = {name: a.astype(np.float32) for name, a in WEIGHTS.items()}
    if opset >= 11:
        arrays |= {"low": np.float32(0), "high": np.float32(6), "pads": np.asarray([0, 0, 1, 0, 0, 0, 0, 1])}
    if opset >= 13:
        arrays["one"] = np.asarray([1])
    for name, array in arrays.items():
        proto.graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(array), name))
        if opset < 9:  # where every weight had to be an input too
            kind = onnx.helper.np_dtype_to_tensor_dtype(np.asarray(array).dtype)
            proto.graph.input.append(onnx.helper.make_tensor_value_info(name, kind, np.shape(array)))
    return proto


@cache
def gradient(opset: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(5)
    feeds = {
        "x": rng.normal(size=(3, 3, 8, 8)).astype(np.float32),
        "onnxplain_target": np.eye(5, dtype=np.float32)[:3],
        "onnxplain_objective": np.arange(3, dtype=np.int64),
    }
    return dict(OnnxRuntimeExecutor(gradient_model(classifier(opset)), optimise=False, threads=1)(feeds))


@pytest.mark.parametrize("opset", [opset for opset in range(7, RUNS_UP_TO + 1) if opset != 18])
def test_every_opset_gives_the_gradient_of_opset_18(opset: int) -> None:
    """Logits, value and gradient, bit for bit: below 18 they are raised to it, above it the operators are the same."""
    onnx.checker.check_model(classifier(opset), full_check=True)
    want, got = gradient(18), gradient(opset)
    for name, array in want.items():
        np.testing.assert_array_equal(got[name], array)
    assert np.abs(want["gradient"]).max() > 1e-3


@pytest.mark.parametrize("opset", range(7, NEWEST + 1))
def test_older_opsets_are_raised_and_newer_ones_stay(opset: int) -> None:
    """To 18, for which every runtime has kernels; what is newer is kept: converting down is not to be relied on."""
    made = gradient_model(classifier(opset))
    (found,) = [entry.version for entry in made.opset_import if not entry.domain]
    assert found == max(opset, 18)
