"""Operators that move, select, resample and contract, against PyTorch's autograd in float64, as in test_properties.py.

The forward values are compared too, with PyTorch's and with those of ONNX Runtime.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import numpy as np
import onnx
from frameworks import framework
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

torch = framework("torch")

import torch.nn.functional as F  # noqa: E402, N812

from onnxplain.adapters.gradient.differentiate import differentiate  # noqa: E402
from onnxplain.engine.executors.onnxruntime import OnnxRuntimeExecutor  # noqa: E402
from onnxplain.engine.executors.reference import ReferenceExecutor  # noqa: E402
from onnxplain.errors import NotDifferentiable  # noqa: E402

few = settings(max_examples=40, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck))
seeds, small = st.integers(0, 2**32 - 1), st.integers(1, 4)
EPS32 = float(np.finfo(np.float32).eps)


def built(
    op: str, inputs: list[np.ndarray | None], dtype: Any, symbolic: bool, outputs: list[str], **attributes: Any
) -> onnx.ModelProto:
    """One node as a model: float64 arrays are its inputs, other arrays constants, None is an input left out."""
    make, kind = onnx.helper.make_tensor_value_info, onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    names = ["" if x is None else f"x{i}" for i, x in enumerate(inputs)]
    fed, frozen = [], []
    for name, x in zip(names, inputs, strict=True):
        if x is not None and x.dtype == np.float64:
            fed.append(make(name, kind, ["N", *x.shape[1:]] if symbolic else x.shape))
        elif x is not None:
            frozen.append(onnx.numpy_helper.from_array(x, name))
    node = onnx.helper.make_node(op, names, outputs, **attributes)
    graph = onnx.helper.make_graph([node], "one", fed, [onnx.helper.make_empty_tensor_value_info("y")], frozen)
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 19)], ir_version=9)
    return onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)


def compare(
    op: str,
    inputs: list[np.ndarray | None],
    theirs: Any,
    seed: int = 0,
    *,
    symbolic: bool = True,
    single: float = 64 * EPS32,
    outputs: tuple[str, ...] = ("y",),
    **attributes: Any,
) -> None:
    """y of ONNX Runtime in float32 and of the reference in float64, and Jᵀ ȳ of whole numbers, against PyTorch's.

    `single` is how far float32 may be off, relative to the largest element.
    """
    feeds = {f"x{i}": x for i, x in enumerate(inputs) if x is not None and x.dtype == np.float64}
    points = [torch.from_numpy(x.copy()).requires_grad_() for x in feeds.values()]
    want = theirs(*points)
    backward = ReferenceExecutor(differentiate(built(op, inputs, np.float64, symbolic, list(outputs), **attributes)))
    narrow = built(op, inputs, np.float32, symbolic, list(outputs), **attributes)
    y = OnnxRuntimeExecutor(narrow, threads=1)({name: x.astype(np.float32) for name, x in feeds.items()})["y"]
    near(y, want.detach().numpy(), single)
    g = np.random.default_rng(seed).integers(-9, 10, y.shape).astype(np.float64)
    want.backward(torch.from_numpy(g))
    out = backward({**feeds, "grad_y": g})
    near(out["y"], want.detach().numpy(), 1e-12)
    for name, point in zip(feeds, points, strict=True):
        near(out[f"grad_{name}"], point.grad.numpy(), 1e-12)


def near(got: np.ndarray, want: np.ndarray, tolerance: float) -> None:
    np.testing.assert_allclose(got, want, rtol=0, atol=tolerance * max(np.abs(want).max(initial=0), 1))


@few
@given(st.data(), seeds)
def test_any_transposed_convolution(data: Any, seed: int) -> None:
    """Any kernel, stride, dilation, groups, padding of either end, and output padding; also the kernel's gradient."""
    rng = np.random.default_rng(seed)
    kernel, stride, dilation = ([data.draw(st.integers(1, top)) for _ in range(2)] for top in (4, 3, 3))
    group, each, outs = data.draw(st.sampled_from([1, 1, 2, 4])), data.draw(small), data.draw(small)
    size = [data.draw(st.integers(1, 5)) for _ in range(2)]
    extra = [data.draw(st.integers(0, s - 1)) for s in stride]
    pads = [data.draw(st.integers(0, 3)) for _ in range(2)]
    full = [(n - 1) * s + d * (k - 1) + 1 for n, s, d, k in zip(size, stride, dilation, kernel, strict=True)]
    assume(all(f - 2 * p + e >= 1 for f, p, e in zip(full, pads, extra, strict=True)))
    x, w = rng.normal(size=(2, each * group, *size)), rng.normal(size=(each * group, outs, *kernel))

    def theirs(x: Any, w: Any) -> Any:
        return F.conv_transpose2d(x, w, None, stride, pads, extra, group, dilation)

    attributes = {"strides": stride, "dilations": dilation, "group": group}
    attributes |= {"pads": [*pads, *pads], "output_padding": extra}
    compare("ConvTranspose", [x, w], theirs, seed, symbolic=False, **attributes)


SIZES, MORE = st.tuples(st.integers(1, 9), st.integers(1, 9)), st.tuples(st.integers(2, 17), st.integers(2, 17))


@few
@given(SIZES, MORE, st.sampled_from(["bilinear", "bicubic"]), st.booleans())
def test_any_smooth_resize(size: tuple[int, int], to: tuple[int, int], mode: str, corners: bool) -> None:
    """PyTorch's bilinear and bicubic, with corners aligned or not, to any size."""
    x = np.random.default_rng([*size, *to]).normal(size=(2, 3, *size))
    kind = "align_corners" if corners else "half_pixel"
    name = {"bilinear": "linear", "bicubic": "cubic"}[mode]
    compare(
        "Resize",
        [x, None, None, np.asarray(to)],
        lambda x: F.interpolate(x, size=to, mode=mode, align_corners=corners),
        axes=[2, 3],
        mode=name,
        coordinate_transformation_mode=kind,
        single=4096 * EPS32,
    )


@few
@given(MORE, MORE, st.sampled_from(["bilinear", "bicubic"]))
def test_any_resize_against_aliasing(size: tuple[int, int], to: tuple[int, int], mode: str) -> None:
    """PyTorch leaves out what lies outside of the picture, and Keys' coefficient is -1/2 there.

    (Of pictures one pixel wide it takes the first row alone, which no definition says.)
    """
    x = np.random.default_rng([*size, *to]).normal(size=(2, 3, *size))
    compare(
        "Resize",
        [x, None, None, np.asarray(to)],
        lambda x: F.interpolate(x, size=to, mode=mode, antialias=True, align_corners=False),
        axes=[2, 3],
        mode={"bilinear": "linear", "bicubic": "cubic"}[mode],
        antialias=1,
        exclude_outside=1,
        cubic_coeff_a=-0.5,
        single=4096 * EPS32,
    )


@few
@given(SIZES, st.tuples(st.integers(1, 4), st.integers(1, 4)), st.booleans())
def test_any_nearest_resize_by_whole_factors(size: tuple[int, int], by: tuple[int, int], exact: bool) -> None:
    """PyTorch's "nearest" is asymmetric and takes the floor, its "nearest-exact" half a pixel."""
    x = np.random.default_rng([*size, *by]).normal(size=(2, 3, *size))
    kind = {"coordinate_transformation_mode": "half_pixel" if exact else "asymmetric"}
    kind |= {"nearest_mode": "round_prefer_ceil" if exact else "floor"}
    compare(
        "Resize",
        [x, None, np.asarray([1, 1, *by], np.float32)],
        lambda x: F.interpolate(x, scale_factor=by, mode="nearest-exact" if exact else "nearest"),
        **kind,
    )


@few
@given(SIZES, SIZES)
def test_any_nearest_resize_is_pytorch_s_or_refused(size: tuple[int, int], to: tuple[int, int]) -> None:
    """To any size: where rounding decides about an element, the gradient is refused."""
    x = np.random.default_rng([*size, *to]).normal(size=(2, 3, *size))
    try:
        compare(
            "Resize",
            [x, None, None, np.asarray([2, 3, *to])],
            lambda x: F.interpolate(x, size=to, mode="nearest"),
            symbolic=False,
            nearest_mode="floor",
            coordinate_transformation_mode="asymmetric",
        )
    except NotDifferentiable as error:
        assert "rounding differ" in str(error)  # noqa: PT017


@st.composite
def equations(draw: Any) -> tuple[str, list[tuple[int, ...]]]:
    """An equation over up to five letters, and shapes for it; letters may be missing anywhere, or stand twice."""
    sizes = {letter: draw(st.integers(1, 3)) for letter in "abcde"}
    letters = st.text("abcde", min_size=1, max_size=4)
    terms = draw(st.lists(letters, min_size=1, max_size=3))
    seen = sorted(set("".join(terms)))
    output = draw(st.permutations(seen))[: draw(st.integers(0, len(seen)))]
    shapes = [tuple(sizes[letter] for letter in term) for term in terms]
    return f"{','.join(terms)}->{''.join(output)}", shapes


@settings(few, max_examples=150)
@given(equations(), seeds)
def test_any_einsum(drawn: tuple[str, list[tuple[int, ...]]], seed: int) -> None:
    """Random equations of one to three operands, diagonals among them."""
    equation, shapes = drawn
    rng = np.random.default_rng(seed)
    inputs = [rng.integers(-5, 6, shape).astype(np.float64) for shape in shapes]
    compare("Einsum", inputs, partial(torch.einsum, equation), seed, symbolic=False, equation=equation)


@few
@given(st.lists(st.sampled_from([1, 2, 3]), max_size=3), st.data(), seeds)
def test_any_matrix_product(batch: list[int], data: Any, seed: int) -> None:
    """Stacks of matrices that broadcast, and vectors on either side."""
    rng = np.random.default_rng(seed)
    n, k, m = (data.draw(small) for _ in range(3))

    def stack(*matrix: int) -> list[int]:
        ones = [1 if data.draw(st.booleans()) else d for d in batch][data.draw(st.integers(0, len(batch))) :]
        return [k] if data.draw(st.integers(0, 4)) == 0 else [*ones, *matrix]

    a, b = stack(n, k), stack(k, m)
    inputs = [rng.integers(-5, 6, shape).astype(np.float64) for shape in (a, b)]
    compare("MatMul", inputs, torch.matmul, seed, symbolic=False)


@few
@given(st.integers(1, 9), st.lists(st.integers(-9, 8), min_size=1, max_size=14), st.integers(0, 2), st.data(), seeds)
def test_any_gather(size: int, indices: list[int], axis: int, data: Any, seed: int) -> None:
    """Indices of either sign, repeated or not, in runs or not, of any shape."""
    places = [i for i in indices if -size <= i < size]
    assume(places)
    rows = data.draw(st.sampled_from([d for d in range(1, len(places) + 1) if len(places) % d == 0]))
    shape = data.draw(st.sampled_from([(len(places),), (rows, len(places) // rows), (1, len(places), 1)]))
    where = np.asarray(places, np.int64).reshape(shape)
    x_shape = [2, 3, 4]
    x_shape[axis] = size
    x = np.random.default_rng(seed).normal(size=x_shape)

    def theirs(x: Any) -> Any:
        taken = torch.index_select(x, axis, torch.from_numpy(where.ravel() % size))
        return taken.reshape([*x.shape[:axis], *shape, *x.shape[axis + 1 :]])

    compare("Gather", [x, where], theirs, seed, symbolic=axis > 0, axis=axis)


@few
@given(st.integers(1, 5), st.integers(1, 5), st.integers(1, 5), st.integers(0, 1), seeds)
def test_any_gather_and_sum_of_elements(rows: int, columns: int, count: int, axis: int, seed: int) -> None:
    """GatherElements and ScatterElements that adds, both with repetitions and indices of either sign."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(rows, columns))
    shape = [count if a == axis else rng.integers(1, d + 1) for a, d in enumerate(x.shape)]
    where, u = rng.integers(-x.shape[axis], x.shape[axis], shape), rng.normal(size=shape)
    index = torch.from_numpy(where % x.shape[axis])
    gathered = partial(torch.gather, dim=axis, index=index)
    compare("GatherElements", [x, where], gathered, seed, symbolic=False, axis=axis)
    if count <= x.shape[axis]:

        def theirs(x: Any, u: Any) -> Any:
            return torch.scatter_add(x, axis, index, u)

        compare("ScatterElements", [x, where, u], theirs, seed, symbolic=False, axis=axis, reduction="add")


@few
@given(st.integers(1, 4), st.integers(1, 4), st.booleans(), seeds)
def test_any_scatter_of_rows(rows: int, columns: int, add: bool, seed: int) -> None:
    """ScatterND of whole rows: with repetitions if it adds, without if it replaces."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(rows, columns, 2))
    where = rng.integers(-rows, rows, rows) if add else rng.permutation(rows)[: rng.integers(1, rows + 1)]
    u, index = rng.normal(size=(len(where), columns, 2)), torch.from_numpy(where % rows)

    def theirs(x: Any, u: Any) -> Any:
        return x.index_add(0, index, u) if add else x.index_copy(0, index, u)

    reduction = "add" if add else "none"
    compare("ScatterND", [x, where[:, None], u], theirs, seed, symbolic=False, reduction=reduction)


PADS = {"edge": "replicate", "reflect": "reflect", "wrap": "circular", "constant": "constant"}


@few
@given(st.sampled_from(list(PADS)), SIZES, st.lists(st.integers(-2, 6), min_size=4, max_size=4), seeds)
def test_any_padding_in_any_mode(mode: str, size: tuple[int, int], widths: list[int], seed: int) -> None:
    """Widths of either sign, up to what PyTorch allows."""
    top, bottom, left, right = widths
    limit = {"reflect": 1, "wrap": 0}.get(mode, -9)
    kept = [size[0] + min(top, 0) + min(bottom, 0), size[1] + min(left, 0) + min(right, 0)]
    assume(min(kept) >= 1)
    assume(max(top, bottom) <= kept[0] - limit and max(left, right) <= kept[1] - limit)
    x = np.random.default_rng(seed).normal(size=(2, 3, *size))

    def theirs(x: Any) -> Any:
        cropped = F.pad(x, [min(w, 0) for w in (left, right, top, bottom)])
        return F.pad(cropped, [max(w, 0) for w in (left, right, top, bottom)], mode=PADS[mode])

    pads = np.asarray([top, left, bottom, right])
    compare("Pad", [x, pads, None, np.asarray([2, 3])], theirs, seed, mode=mode)


@few
@given(st.integers(1, 9), st.data(), st.booleans(), st.integers(0, 2), seeds)
def test_any_top_k(size: int, data: Any, largest: bool, axis: int, seed: int) -> None:
    """The values' cotangents go to the places that were chosen."""
    count = data.draw(st.integers(1, size))
    shape = [2, 3, 4]
    shape[axis] = size
    x = np.random.default_rng(seed).permutation(math.prod(shape)).reshape(shape).astype(np.float64)

    def theirs(x: Any) -> Any:
        return torch.topk(x, count, axis, largest)[0]

    attributes = {"axis": axis, "largest": int(largest)}
    compare("TopK", [x, np.asarray([count])], theirs, seed, symbolic=axis > 0, outputs=("y", "i"), **attributes)
