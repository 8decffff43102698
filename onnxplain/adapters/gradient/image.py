"""The image that goes into a classifier: which input it is, its size and layout, and its way in from pixels."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common as passes

from onnxplain.adapters.gradient.batch import BATCH, set_input_shape
from onnxplain.adapters.gradient.expr import Emit, Expr, op
from onnxplain.adapters.gradient.head import shown
from onnxplain.adapters.gradient.prepare import infer_shapes
from onnxplain.adapters.gradient.sweep import HALVES
from onnxplain.errors import InvalidModel, UsageError
from onnxplain.models.preprocess import PreprocessSpec


def image_input(graph: ir.Graph, taken: Sequence[str]) -> ir.Value:
    """The one image that goes in, (N, C, H, W), (N, H, W, C) or any other (N, ...); it may not be called as `taken`."""
    described = ", ".join(map(shown, graph.inputs))
    if len(graph.inputs) != 1:
        raise InvalidModel(f"expected one image input, got {len(graph.inputs)} inputs: {described}")
    (x,) = graph.inputs
    if x.name in taken:
        raise InvalidModel(f"the image input is called {x.name}, a name that a gradient model needs; next: rename it")
    numbers = x.dtype is not None and (x.dtype.is_floating_point() or x.dtype.is_integer())
    if not numbers or (x.shape is not None and len(x.shape) < 2):
        raise InvalidModel(f"expected a float image input of shape (N, C, H, W), got {described}")
    refuse_other_readers_than_casts(x)
    return x


def refuse_other_readers_than_casts(x: ir.Value) -> None:
    """Raise if an image of integers goes into anything but a Cast to floats, for only then it may be floats itself."""
    assert x.dtype is not None
    if x.dtype.is_floating_point():
        return
    for node, _ in x.uses():
        to = ir.DataType(node.attributes["to"].value) if node.op_type == "Cast" else None
        if to is None or not to.is_floating_point():
            raise InvalidModel(
                f"expected a float image input, or one of integers that are first of all cast to floats; got "
                f"{shown(x)}, which goes into {node.op_type}; next: export the model with a float input"
            )


def fix_size(
    model: ir.Model, x: ir.Value, preprocess: PreprocessSpec | None, input_shape: Sequence[int] | None
) -> int | None:
    """Make the batch the only free dimension, and say where the channels are: 1, -1, or None if it is no image.

    What the model leaves open, `input_shape` or the preprocessing says; where both say something they have to agree.
    """
    shape: Sequence[object] = [None] * 4 if x.shape is None else list(x.shape)
    dims = [d if isinstance(d, int) else None for d in shape]
    if input_shape is not None:
        dims[1:] = fitting(x, dims, input_shape)
    axis = None
    if preprocess is not None:
        size = preprocess.output_size
        layouts = {1: (preprocess.channels, *size), -1: (*size, preprocess.channels)}
        matching = [at for at, sizes in layouts.items() if agrees(dims[1:], sizes)]
        if not matching:
            grey = "; a grey classifier has one mean and std, or image_mode: L" if 1 in dims[1:] else ""
            raise UsageError(
                f"the preprocessing gives images of shape {layouts[1]}, or {layouts[-1]} channels last, but the "
                f"model's input is {shown(x)}; next: give the preprocessing that belongs to this model{grey}"
            )
        axis = matching[0]
        dims[1:] = layouts[axis]
    if None in dims[1:]:
        raise InvalidModel(
            f"input {shown(x)}: height and width are not fixed; next: give the preprocessing of the model, or the "
            "sizes of one image (input_shape=, or --input-shape, such as 3,224,224)"
        )
    if axis is None and len(dims) == 4:
        axis = 1 if (dims[1] or 0) <= (dims[3] or 0) else -1
    fixed = [dims[0] if dims[0] is not None else BATCH, *(d for d in dims[1:] if d is not None)]
    if x.shape != ir.Shape(fixed):
        set_input_shape(model, x, fixed)
    return axis


def fitting(x: ir.Value, dims: Sequence[int | None], given: Sequence[int]) -> Sequence[int]:
    """The sizes of the image without batch, as `input_shape` gives them."""
    sizes = list(given)[1:] if len(given) == len(dims) and given[0] == 1 else list(given)
    positive = all(type(d) is int and d > 0 for d in sizes)
    if not positive or not agrees(dims[1:], sizes):
        raise UsageError(
            f"input_shape {tuple(given)} does not fit the model's input {shown(x)}; next: give the sizes of one image, "
            "such as 3,224,224, as the model has them"
        )
    return sizes


def agrees(dims: Sequence[int | None], sizes: Sequence[int]) -> bool:
    """Whether an image of these sizes is one that the model takes."""
    return len(dims) == len(sizes) and all(d in (None, e) for d, e in zip(dims, sizes, strict=True))


def as_float(model: ir.Model, x: ir.Value) -> list[str]:
    """Make the image float32 if it is of integers or of half precision, and say so.

    Whoever reads integers casts them to floats, so that floats in the same units do as well.
    """
    theirs = x.dtype
    if theirs is None or theirs in (ir.DataType.FLOAT, ir.DataType.DOUBLE):
        return []
    readers = list(x.uses())
    x.type = ir.TensorType(ir.DataType.FLOAT)
    if theirs in HALVES:
        half = op("Cast", Expr(Emit(model.graph), x), to=int(theirs)).value
        for node, index in readers:
            node.replace_input_with(index, half)
        passes.TopologicalSortPass()(model)
    infer_shapes(model)
    return [f"the input {x.name} is float32; the classifier's is {str(theirs).lower()}"]


def fold(preprocess: PreprocessSpec, x: Expr, axis: int) -> None:
    """Put the normalisation between the input, which becomes RGB or grey in [0,1], and all that reads it."""
    space = preprocess.space(channel_axis=axis if axis < 0 else 0)
    readers = list(x.value.uses())
    zero, scale = (x.emit.constant(np.asarray(part, x.dtype)) for part in (space.zero, space.scale))
    inside = (x - zero) / scale
    if preprocess.do_flip_channel_order:
        red, green, blue = (inside.slice(axis % 4, c, c + 1) for c in range(3))
        inside = op("Concat", blue, green, red, axis=axis % 4)
    for node, index in readers:
        node.replace_input_with(index, inside.value)
