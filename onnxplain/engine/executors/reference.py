"""ONNX's reference evaluator as an executor: slow, in float64 where the model is; the oracle of our tests."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun
from onnx.reference.ops.op_max_pool import MaxPool as MaxPoolWithIndices
from onnx.reference.ops.op_resize import Resize as InFloat32
from onnx.reference.ops.op_scatter_elements import ScatterElements

from onnxplain.engine.executors.protocol import Array, Closing, TensorSpec, check_feeds
from onnxplain.errors import ExecutionError


class Erf(OpRun):
    """Erf to the last bits: the evaluator's own is good to about 1e-8 only."""

    op_domain = ""

    def _run(self, x: Array) -> tuple[Array]:
        return (np.vectorize(math.erf, otypes=[x.dtype])(x),)


class Pad(OpRun):
    """Pad that crops where a width is negative, which the evaluator's own refuses."""

    op_domain = ""

    def _run(
        self, x: Array, pads: Array, value: Array | None = None, axes: Array | None = None, mode: str | None = None
    ) -> tuple[Array]:
        fill: Any = {"constant_values": 0 if value is None else value.item()} if mode in (None, "constant") else {}
        over = range(x.ndim) if axes is None else axes.tolist()
        for axis, before, after in zip(over, *np.split(pads, 2), strict=True):
            x = np.moveaxis(x, axis, 0)
            x = x[max(-before, 0) : len(x) + min(after, 0)]
            border = [(max(before, 0), max(after, 0)), *[(0, 0)] * (x.ndim - 1)]
            how: Any = mode or "constant"
            x = np.moveaxis(np.pad(x, border, how, **fill), 0, axis)
        return (x,)


class GatherElements(OpRun):
    """GatherElements for indices smaller than the data, which the evaluator's own refuses."""

    op_domain = ""

    def _run(self, x: Array, indices: Array, axis: int | None = None) -> tuple[Array]:
        where: list[Array] = list(np.indices(indices.shape))
        where[axis or 0] = indices
        return (x[tuple(where)],)


class MaxPool(MaxPoolWithIndices):
    """MaxPool by its definition: the evaluator's own is slow, and wrong for SAME_LOWER and for some pads in 3-D."""

    op_domain = ""

    def _run(  # type: ignore[override]
        self,
        x: Array,
        auto_pad: str | None = None,
        ceil_mode: int | None = None,
        dilations: Sequence[int] | None = None,
        kernel_shape: Sequence[int] = (),
        pads: Sequence[int] | None = None,
        storage_order: int | None = None,
        strides: Sequence[int] | None = None,
    ) -> tuple[Array, ...]:
        if len(self.onnx_node.output) > 1:
            given = (auto_pad, ceil_mode, dilations, kernel_shape, pads, storage_order, strides)
            return tuple(super()._run(x, *given))  # type: ignore[no-untyped-call]
        lowest = np.asarray(-np.inf, x.dtype)
        for axis, kernel in enumerate(kernel_shape):  # the maximum over a box is the maximum of maxima along its axes
            x = taps(x, axis, kernel, lowest, lowest, auto_pad, ceil_mode, dilations, pads, strides).max(axis=0)
        return (x,)


class AveragePool(OpRun):
    """AveragePool by its definition: the evaluator's own is slow."""

    op_domain = ""

    def _run(
        self,
        x: Array,
        auto_pad: str | None = None,
        ceil_mode: int | None = None,
        count_include_pad: int | None = None,
        dilations: Sequence[int] | None = None,
        kernel_shape: Sequence[int] = (),
        pads: Sequence[int] | None = None,
        strides: Sequence[int] | None = None,
    ) -> tuple[Array]:
        zero, one = np.zeros((), x.dtype), np.ones((), x.dtype)
        border = one if count_include_pad else zero
        for axis, kernel in enumerate(kernel_shape):
            how = (auto_pad, ceil_mode, dilations, pads, strides)
            counts = taps(np.ones_like(x), axis, kernel, border, zero, *how).sum(axis=0)
            x = taps(x, axis, kernel, zero, zero, *how).sum(axis=0) / counts
        return (x,)


class GlobalMaxPool(OpRun):
    """GlobalMaxPool by its definition: the evaluator's own is wrong for any number of axes but two."""

    op_domain = ""

    def _run(self, x: Array) -> tuple[Array]:
        return (x.max(axis=tuple(range(2, x.ndim)), keepdims=True),)


class GlobalLpPool(OpRun):
    """GlobalLpPool, which the evaluator lacks."""

    op_domain = ""

    def _run(self, x: Array, p: int | None = None) -> tuple[Array]:
        power = p or 2
        total = (np.abs(x) ** power).sum(axis=tuple(range(2, x.ndim)), keepdims=True)
        return ((total ** (1 / power)).astype(x.dtype),)


class LpPool(OpRun):
    """LpPool by its definition: the evaluator's own is wrong where there is padding."""

    op_domain = ""

    def _run(
        self,
        x: Array,
        auto_pad: str | None = None,
        ceil_mode: int | None = None,
        dilations: Sequence[int] | None = None,
        kernel_shape: Sequence[int] = (),
        p: int | None = None,
        pads: Sequence[int] | None = None,
        strides: Sequence[int] | None = None,
    ) -> tuple[Array]:
        power, zero = p or 2, np.zeros((), x.dtype)
        total = np.abs(x) ** power
        for axis, kernel in enumerate(kernel_shape):
            total = taps(total, axis, kernel, zero, zero, auto_pad, ceil_mode, dilations, pads, strides).sum(axis=0)
        return ((total ** (1 / power)).astype(x.dtype),)


class Gelu(OpRun):
    """Gelu to the last bits: its ONNX body holds constants of float32."""

    op_domain = ""

    def _run(self, x: Array, approximate: str | None = None) -> tuple[Array]:
        if approximate == "tanh":
            t = np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))
        else:
            t = np.vectorize(math.erf, otypes=[x.dtype])(x * math.sqrt(0.5))
        return ((0.5 * x * (1 + t)).astype(x.dtype),)


class GroupNormalization(OpRun):
    """GroupNormalization in the input's own precision: its ONNX body computes in float32."""

    op_domain = ""

    def _run(
        self,
        x: Array,
        scale: Array,
        bias: Array,
        epsilon: float | None = None,
        num_groups: int = 1,
        stash_type: int | None = None,  # noqa: ARG002
    ) -> tuple[Array]:
        groups = x.reshape(len(x), num_groups, -1)
        mean, var = groups.mean(axis=2, keepdims=True), groups.var(axis=2, keepdims=True)
        h = (groups - mean) / np.sqrt(var + (1e-5 if epsilon is None else epsilon))
        column = (-1, *[1] * (x.ndim - 2))
        return ((h.reshape(x.shape) * scale.reshape(column) + bias.reshape(column)).astype(x.dtype),)


class LpNormalization(OpRun):
    """LpNormalization by its definition: the evaluator's own forgets the sign for p = 1."""

    op_domain = ""

    def _run(self, x: Array, axis: int | None = None, p: int | None = None) -> tuple[Array]:
        norm = np.linalg.norm(x, ord=p or 2, axis=-1 if axis is None else axis, keepdims=True)
        return (np.divide(x, norm, out=np.zeros_like(x), where=norm != 0),)


class LRN(OpRun):
    """LRN by its definition, of any rank: the evaluator's own takes the batch for the channels."""

    op_domain = ""

    def _run(
        self,
        x: Array,
        alpha: float | None = None,
        beta: float | None = None,
        bias: float | None = None,
        size: int = 1,
    ) -> tuple[Array]:
        alpha, beta, bias = (
            float(default if given is None else given) for given, default in ((alpha, 1e-4), (beta, 0.75), (bias, 1.0))
        )
        before, channels = (size - 1) // 2, x.shape[1]
        windows = [x[:, max(c - before, 0) : max(c - before + size, 0)] for c in range(channels)]
        total = np.stack([(window**2).sum(axis=1) for window in windows], axis=1)
        return ((x / (bias + alpha / size * total) ** beta).astype(x.dtype),)


def taps(
    x: Array,
    axis: int,
    kernel: int,
    border: Array,
    beyond: Array,
    auto_pad: str | None,
    ceil_mode: int | None,
    dilations: Sequence[int] | None,
    pads: Sequence[int] | None,
    strides: Sequence[int] | None,
) -> Array:
    """What each tap of a pool's window sees along one spatial axis, (kernel, *output shape).

    The padding holds `border`; what a last window of `ceil_mode` sees behind the padding is `beyond`.
    """
    spatial = x.ndim - 2
    size, step, spread = x.shape[2 + axis], (strides or [1] * spatial)[axis], (dilations or [1] * spatial)[axis]
    extent = spread * (kernel - 1) + 1
    before, after = (pads[axis], pads[axis + spatial]) if pads else (0, 0)
    if auto_pad in ("SAME_UPPER", "SAME_LOWER"):
        total = max((math.ceil(size / step) - 1) * step + extent - size, 0)
        before, after = total // 2, total - total // 2
        before, after = (after, before) if auto_pad == "SAME_LOWER" else (before, after)
    room = size + before + after - extent
    count = (math.ceil(room / step) if ceil_mode else room // step) + 1
    if ceil_mode and (count - 1) * step >= size + before:
        count -= 1  # no window begins in the padding behind the image
    behind = max((count - 1) * step + extent - size - before - after, 0)
    line = np.moveaxis(x, 2 + axis, 0)
    line = np.pad(line, [(before, after), *[(0, 0)] * (x.ndim - 1)], constant_values=border)
    line = np.pad(line, [(0, behind), *[(0, 0)] * (x.ndim - 1)], constant_values=beyond)
    seen = [line[a * spread : a * spread + (count - 1) * step + 1 : step] for a in range(kernel)]
    return np.stack([np.moveaxis(part, 0, 2 + axis) for part in seen])


class Resize(InFloat32):
    """Resize with weights in float64, also along axes that are counted from the end."""

    op_domain = ""

    def _run(  # type: ignore[override]
        self, x: Array, roi: Array | None, scales: Array | None = None, sizes: Array | None = None, **attributes: Any
    ) -> tuple[Array]:
        wide: Any = [None if part is None else part.astype(np.float64) for part in (roi, scales)]
        attributes["cubic_coeff_a"] = float(attributes["cubic_coeff_a"])
        if attributes.get("axes") is not None:
            attributes["axes"] = [axis % x.ndim for axis in attributes["axes"]]
        return tuple(InFloat32._run(self, x, *wide, sizes, **attributes))  # type: ignore[call-arg]


class ConvTranspose(OpRun):
    """ConvTranspose by its definition: the evaluator's own fails for several groups and for some output shapes."""

    op_domain = ""

    def _run(
        self,
        x: Array,
        w: Array,
        b: Array | None = None,
        auto_pad: str | None = None,
        dilations: Sequence[int] | None = None,
        group: int | None = None,
        kernel_shape: Sequence[int] | None = None,  # noqa: ARG002  (the weights say it)
        output_padding: Sequence[int] | None = None,
        output_shape: Sequence[int] | None = None,
        pads: Sequence[int] | None = None,
        strides: Sequence[int] | None = None,
    ) -> tuple[Array]:
        spatial, groups = x.ndim - 2, group or 1
        kernel, count = w.shape[2:], x.shape[2:]
        pace, spread = strides or [1] * spatial, dilations or [1] * spatial
        extra, border = output_padding or [0] * spatial, pads or [0] * 2 * spatial
        full = [(n - 1) * s + d * (k - 1) + 1 for n, s, d, k in zip(count, pace, spread, kernel, strict=True)]
        if auto_pad not in (None, "NOTSET"):
            border = [0] * 2 * spatial
        if auto_pad in ("SAME_UPPER", "SAME_LOWER") and output_shape is None:
            output_shape = [n * s for n, s in zip(count, pace, strict=True)]
        if output_shape is not None:
            total = [n + e - out for n, e, out in zip(full, extra, output_shape, strict=True)]
            heads = [(max(t, 0) + (auto_pad != "SAME_UPPER")) // 2 for t in total]
            border = [*heads, *(t - head for t, head in zip(total, heads, strict=True))]
        room = [n + max(e - after, 0) for n, e, after in zip(full, extra, border[spatial:], strict=True)]
        y = np.zeros((len(x), groups, w.shape[1], *room), x.dtype)
        xs = x.reshape(len(x), groups, -1, *count)
        ws = w.reshape(groups, -1, *w.shape[1:])
        for tap in np.ndindex(*kernel):
            at = [slice(a * d, a * d + (n - 1) * s + 1, s) for a, d, n, s in zip(tap, spread, count, pace, strict=True)]
            here: Any = (..., *at)
            weight: Any = (..., *tap)
            y[here] += np.einsum("ngc...,gck->ngk...", xs, ws[weight])
        keep: Any = [slice(border[i], full[i] - border[i + spatial] + extra[i]) for i in range(spatial)]
        kept: Any = (..., *keep)
        y = y[kept].reshape(len(x), -1, *(k.stop - k.start for k in keep))
        return (y if b is None else y + b.reshape(-1, *[1] * spatial),)


class Scatter(ScatterElements):
    """What ScatterElements was called before opset 11."""

    op_domain = ""


def specs(values: Any) -> dict[str, TensorSpec]:
    """Tensor specs of a graph's inputs or outputs."""

    def spec(value: onnx.ValueInfoProto) -> TensorSpec:
        kind = value.type.tensor_type
        shape = tuple(d.dim_value if d.HasField("dim_value") else d.dim_param or None for d in kind.shape.dim)
        return TensorSpec(np.dtype(onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type)), shape)

    return {value.name: spec(value) for value in values}


class ReferenceExecutor(Closing):
    """`onnx.reference.ReferenceEvaluator` behind the executor protocol."""

    def __init__(self, model: onnx.ModelProto) -> None:
        operators = [
            *(Erf, Gelu, Pad, GatherElements, MaxPool, AveragePool, LpPool, GlobalMaxPool, GlobalLpPool),
            *(GroupNormalization, LpNormalization, LRN, Resize, ConvTranspose, Scatter),
        ]
        self._evaluator: ReferenceEvaluator | None = ReferenceEvaluator(model, new_ops=operators)
        constants = {tensor.name for tensor in model.graph.initializer}
        self.inputs: Mapping[str, TensorSpec] = specs(v for v in model.graph.input if v.name not in constants)
        self.outputs: Mapping[str, TensorSpec] = specs(model.graph.output)
        self.facts: Mapping[str, Any] = {"runtime": "reference", "version": onnx.__version__}

    def __call__(self, feeds: Mapping[str, Array], /) -> Mapping[str, Array]:
        if self._evaluator is None:
            raise ExecutionError("this executor is closed")
        check_feeds(self.inputs, feeds)
        return dict(zip(self.outputs, self._evaluator.run(None, dict(feeds)), strict=True))

    def close(self) -> None:
        self._evaluator = None
