"""Mistakes in the rules of operators that move, select, resample or contract elements."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from onnxplain.adapters.gradient.expr import Expr
from onnxplain.adapters.gradient.registry import DEFAULT
from onnxplain.adapters.gradient.rules.places import put_back, resized
from onnxplain.adapters.gradient.rules.select import counted, single_elements

COORDINATES = "coordinate_transformation_mode"
RIGHT = {name: entry.rule for name, entry in DEFAULT.items()}


def without(name: str, attribute: str, when: Callable[[Any], bool] = lambda value: True) -> Callable[..., Any]:
    """An attribute that nobody read."""

    def rule(*args: Any, **attributes: Any) -> Any:
        kept = {k: v for k, v in attributes.items() if k != attribute or not when(v)}
        return RIGHT[name](*args, **kept)

    return rule


def instead(name: str, attribute: str, value: Any) -> Callable[..., Any]:
    """An attribute read as if it were always the same."""

    def rule(*args: Any, **attributes: Any) -> Any:
        return RIGHT[name](*args, **{**attributes, attribute: value})

    return rule


def turned(name: str, attribute: str, swap: dict[Any, Any]) -> Callable[..., Any]:
    """An attribute taken for another."""

    def rule(*args: Any, **attributes: Any) -> Any:
        changed = {k: swap.get(v, v) if k == attribute else v for k, v in attributes.items()}
        return RIGHT[name](*args, **changed)

    return rule


def ends_swapped(name: str) -> Callable[..., Any]:
    """The padding at the end taken for the padding at the beginning."""

    def rule(*args: Any, pads: Any = None, **attributes: Any) -> Any:
        if pads is not None:
            half = len(pads) // 2
            pads = [*pads[half:], *pads[:half]]
        return RIGHT[name](*args, pads=pads, **attributes)

    return rule


def gather(change: Callable[[Any, int], Any]) -> Callable[..., Any]:
    """A Gather whose gradient goes to other places."""

    def rule(g: Expr, y: Expr, x: Expr, indices: Expr, *, axis: int = 0) -> Any:
        axis %= x.rank
        flat = resized(g, axis, indices.constant.size, over=indices.constant.ndim)
        places = change(indices.constant.ravel(), x.size(axis))
        return put_back(flat, axis, places, x.size(axis)).like(x), None

    return rule


def last_only(indices: Any, size: int) -> Any:
    """Of elements that were taken several times the last: what a scatter that overwrites gives."""
    places = counted(indices, size)
    last = len(places) - 1 - np.unique(places[::-1], return_index=True)[1]
    return np.where(np.isin(np.arange(len(places)), last), places, -1)


def overwritten(g: Expr, y: Expr, x: Expr, indices: Expr, *, axis: int = 0) -> Any:
    """Of elements that were taken several times the last."""
    places = last_only(single_elements(x, indices, axis % x.rank).places.ravel(), int(np.prod(x.shape)))
    return put_back(g.reshape((places.size,)), 0, places, int(np.prod(x.shape))).reshape(x.shape), None


def scattered_as(reduction: str) -> Callable[..., Any]:
    """Data and updates as if the reduction were always the same one."""

    def rule(g: Expr, y: Expr, x: Expr, indices: Expr, updates: Expr, *, axis: int = 0, **_: Any) -> Any:
        _, _, update = RIGHT["ScatterElements"](g, y, x, indices, updates, axis=axis, reduction="add")
        if reduction == "add":
            return g, None, update
        kept = np.ones(x.shape, g.dtype)
        kept.flat[single_elements(x, indices, axis % x.rank).places.ravel()] = 0
        return g * kept, None, update

    return rule


def scatter_nd_adds(g: Expr, y: Expr, x: Expr, indices: Expr, updates: Expr, *, reduction: str = "none") -> Any:
    _, _, update = RIGHT["ScatterND"](g, y, x, indices, updates, reduction="add")
    return g, None, update


def updates_in_reverse(g: Expr, y: Expr, x: Expr, indices: Expr, updates: Expr, **attributes: Any) -> Any:
    backwards = x.emit.constant(np.ascontiguousarray(indices.constant[::-1]))
    data, _, _ = RIGHT["ScatterND"](g, y, x, indices, updates, **attributes)
    _, _, update = RIGHT["ScatterND"](g, y, x, backwards, updates, reduction="add")
    return data, None, update


def top_k_in_order(g: Any, y: Any, x: Expr, k: Expr, *, axis: int = -1, **_: Any) -> Any:
    """As if the largest were the first."""
    axis %= x.rank
    count = y[0].size(axis)
    return put_back(g[0], axis, np.arange(count), x.size(axis)), None


def top_k_sum(g: Any, y: Any, x: Expr, *rest: Any, axis: int = -1, **attributes: Any) -> Any:
    """Every chosen place gets the sum."""
    total = g[0].sum([axis % x.rank], keepdims=True) + g[0] * 0.0
    return RIGHT["TopK"]((total, None), y, x, *rest, axis=axis, **attributes)


def one_hot_swapped(*args: Any, **attributes: Any) -> Any:
    _, _, back = RIGHT["OneHot"](*args, **attributes)
    return None, None, back().slice(0, -1, np.iinfo(np.int64).min, -1)


def compress_from_the_front(g: Expr, y: Expr, x: Expr, condition: Expr, *, axis: int | None = None) -> Any:
    """The elements that were kept go to the front."""
    count = int(condition.constant.sum())
    front = x.emit.constant(np.arange(len(condition.constant)) < count)
    return RIGHT["Compress"](g, y, x, front, axis=axis)


def tile_first(g: Expr, y: Expr, x: Expr, repeats: Expr) -> Any:
    """The first copy alone."""
    for axis, times in enumerate(repeats.constant.tolist()):
        if times != 1:
            g = g.slice(axis, 0, x.size(axis))
    return g, None


def tile_mean(g: Expr, y: Expr, x: Expr, repeats: Expr) -> Any:
    back, _ = RIGHT["Tile"](g, y, x, repeats)
    return back * (1 / repeats.constant.prod()), None


def pad_value_of_everything(g: Expr, y: Expr, x: Expr, pads: Expr, value: Any = None, *rest: Any, **more: Any) -> Any:
    image, *others = RIGHT["Pad"](g, y, x, pads, value, *rest, **more)
    if value is None:
        return image, *others
    return image, others[0], g.sum(list(range(g.rank))).reshape(value.shape), *others[2:]


def nearest_for_linear(*args: Any, **attributes: Any) -> Any:
    """Where that means the same to all runtimes."""
    plain = attributes.get("mode") == "linear" and not {COORDINATES, "antialias"} & attributes.keys()
    return RIGHT["Resize"](*args, **({**attributes, "mode": "nearest"} if plain else attributes))


def einsum_operands_swapped(g: Expr, y: Expr, *xs: Expr, equation: str) -> Any:
    """The cotangents in another order, where shapes let them be."""
    parts = RIGHT["Einsum"](g, y, *xs, equation=equation)
    if len({x.shape for x in xs}) == 1:
        return parts[::-1]
    return parts


def einsum_off_the_diagonal(g: Expr, y: Expr, *xs: Expr, equation: str) -> Any:
    """A letter that stands twice fills the matrix instead of its diagonal."""
    if equation == "bii->bi":
        return g.reshape((*g.shape, 1)) * np.ones((1, 1, xs[0].size(2)), g.dtype)
    return RIGHT["Einsum"](g, y, *xs, equation=equation)


def einsum_without_the_others(g: Expr, y: Expr, *xs: Expr, equation: str) -> Any:
    """The other operands taken for ones."""
    ones = [x if x.constant is not None else x * 0.0 + 1.0 for x in xs]
    return RIGHT["Einsum"](g, y, *ones, equation=equation)


def conv_transpose_with(change: Callable[..., Any]) -> Callable[..., Any]:
    """A ConvTranspose whose gradient sees other weights than its forward pass did."""

    def rule(g: Expr, y: Expr, x: Expr, w: Expr, b: Expr | None = None, **attributes: Any) -> Any:
        if w.constant is not None:
            w = w.emit.constant(np.ascontiguousarray(change(w.constant)))
        return RIGHT["ConvTranspose"](g, y, x, w, b, **attributes)

    return rule


def col2im_taps_in_reverse(g: Expr, y: Expr, x: Expr, image: Expr, block: Expr, **attributes: Any) -> Any:
    """The taps of a block with the last first."""
    back, *_ = RIGHT["Col2Im"](g, y, x, image, block, **attributes)
    taps = int(block.constant.prod())
    blocks = back.reshape((x.shape[0], x.size(1) // taps, taps, x.size(2)))
    return blocks.slice(2, -1, np.iinfo(np.int64).min, -1).reshape(x.shape), None, None


def col2im_channels_last(g: Expr, y: Expr, x: Expr, image: Expr, block: Expr, **attributes: Any) -> Any:
    """Taps before channels."""
    back, *_ = RIGHT["Col2Im"](g, y, x, image, block, **attributes)
    taps = int(block.constant.prod())
    blocks = back.reshape((x.shape[0], x.size(1) // taps, taps, x.size(2)))
    return blocks.transpose((0, 2, 1, 3)).reshape(x.shape), None, None


MUTANTS: dict[str, tuple[str, Callable[..., Any]]] = {
    "Gather: repeated elements overwrite": ("Gather", gather(last_only)),
    "Gather: negative indices from the wrong end": ("Gather", gather(lambda i, n: np.abs(i) % n)),
    "Gather: one place too far": ("Gather", gather(lambda i, n: (i + 1) % n)),
    "GatherElements: repeated elements overwrite": ("GatherElements", overwritten),
    "GatherND: indices in reverse": (
        "GatherND",
        lambda g, y, x, i, **k: RIGHT["GatherND"](g, y, x, x.emit.constant(i.constant[::-1].copy()), **k),
    ),
    "ScatterElements: replaced elements kept": ("ScatterElements", scattered_as("add")),
    "ScatterElements: added elements replace": ("ScatterElements", scattered_as("none")),
    "ScatterND: replaced elements kept": ("ScatterND", scatter_nd_adds),
    "ScatterND: updates in reverse": ("ScatterND", updates_in_reverse),
    "TopK: the first places": ("TopK", top_k_in_order),
    "TopK: the sum to each": ("TopK", top_k_sum),
    "OneHot: on and off swapped": ("OneHot", one_hot_swapped),
    "Compress: from the front": ("Compress", compress_from_the_front),
    "ReverseSequence: as it is": ("ReverseSequence", lambda g, *_, **__: (g, None)),
    "Trilu: the other triangle": ("Trilu", turned("Trilu", "upper", {0: 1, 1: 0})),
    "Trilu: k forgotten": ("Trilu", lambda g, y, x, k=None, **more: (RIGHT["Trilu"](g, y, x, **more)[0], None)),
    "Tile: the first copy": ("Tile", tile_first),
    "Tile: the mean": ("Tile", tile_mean),
    "DepthToSpace: always DCR": ("DepthToSpace", without("DepthToSpace", "mode")),
    "DepthToSpace: always CRD": ("DepthToSpace", instead("DepthToSpace", "mode", "CRD")),
    "SpaceToDepth: CRD": ("SpaceToDepth", instead("SpaceToDepth", "mode", "CRD")),
    "Pad: the border forgotten": ("Pad", without("Pad", "mode")),
    "Pad: a mirror for an edge": ("Pad", turned("Pad", "mode", {"edge": "reflect", "reflect": "edge"})),
    "Pad: a mirror that shows the edge twice": ("Pad", turned("Pad", "mode", {"reflect": "symmetric"})),
    "Pad: everything to the value": ("Pad", pad_value_of_everything),
    "Resize: always half a pixel": (
        "Resize",
        without("Resize", COORDINATES, lambda v: "tf" not in v),
    ),
    "Resize: always asymmetric": (
        "Resize",
        turned("Resize", COORDINATES, {"align_corners": "asymmetric"}),
    ),
    "Resize: the nearest for linear": ("Resize", nearest_for_linear),
    "Resize: linear for cubic": ("Resize", turned("Resize", "mode", {"cubic": "linear"})),
    "Resize: antialias forgotten": ("Resize", without("Resize", "antialias")),
    "Resize: exclude_outside forgotten": ("Resize", without("Resize", "exclude_outside")),
    "Resize: another coefficient": ("Resize", without("Resize", "cubic_coeff_a")),
    "Resize: always rounded": ("Resize", without("Resize", "nearest_mode")),
    "Resize: floor and ceil swapped": ("Resize", turned("Resize", "nearest_mode", {"floor": "ceil", "ceil": "floor"})),
    "Resize: the aspect ratio not kept": ("Resize", without("Resize", "keep_aspect_ratio_policy")),
    "Einsum: operands swapped": ("Einsum", einsum_operands_swapped),
    "Einsum: off the diagonal": ("Einsum", einsum_off_the_diagonal),
    "Einsum: the others forgotten": ("Einsum", einsum_without_the_others),
    "ConvTranspose: pads swapped": ("ConvTranspose", ends_swapped("ConvTranspose")),
    "ConvTranspose: kernel turned": (
        "ConvTranspose",
        conv_transpose_with(lambda w: np.flip(w, axis=tuple(range(2, w.ndim)))),
    ),
    "ConvTranspose: channels in reverse": ("ConvTranspose", conv_transpose_with(lambda w: w[:, ::-1])),
    "ConvTranspose: groups in reverse": ("ConvTranspose", conv_transpose_with(lambda w: w[::-1])),
    "ConvTranspose: the odd element at the other end": (
        "ConvTranspose",
        turned("ConvTranspose", "auto_pad", {"SAME_UPPER": "SAME_LOWER", "SAME_LOWER": "SAME_UPPER"}),
    ),
    "ConvTranspose: output_shape without its padding": ("ConvTranspose", without("ConvTranspose", "output_shape")),
    "Col2Im: pads swapped": ("Col2Im", ends_swapped("Col2Im")),
    "Col2Im: taps in reverse": ("Col2Im", col2im_taps_in_reverse),
    "Col2Im: taps before channels": ("Col2Im", col2im_channels_last),
}
