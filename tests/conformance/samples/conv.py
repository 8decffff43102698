"""Convolutions."""

from __future__ import annotations

from typing import Any

from conformance.samples.sample import Sample, ints, node, normal, other, weights


def back(x: tuple[int, ...], w: tuple[int, ...], **more: Any) -> Sample:
    return node("ConvTranspose", normal(*x), weights(*w), **more)


def blocks(x: tuple[int, ...], image: list[int], block: list[int], **more: Any) -> Sample:
    return node("Col2Im", normal(*x), ints(*image), ints(*block), **more)


def conv(x: tuple[int, ...], w: tuple[int, ...], **more: Any) -> Sample:
    return node("Conv", normal(*x), weights(*w), **more)


def kernel(x: tuple[int, ...], w: tuple[int, ...], **more: Any) -> Sample:
    """Also with respect to the weights."""
    return node("Conv", normal(*x), other(*w), **{"label": "weights", **more})


SAMPLES = [
    conv((2, 3, 8), (4, 3, 3)),
    conv((2, 3, 9), (4, 3, 3), strides=[2], pads=[1, 1]),
    conv((2, 3, 9), (4, 3, 3), strides=[3], dilations=[2], pads=[3, 0]),
    conv((2, 3, 6, 7), (4, 3, 1, 1)),
    conv((2, 3, 6, 7), (3, 3, 3, 3), pads=[1, 1, 1, 1], label="square"),
    conv((2, 3, 6, 7), (4, 3, 3, 2), pads=[0, 1, 2, 0]),
    conv((2, 3, 6, 7), (4, 3, 3, 3), dilations=[2, 1], pads=[2, 1, 2, 1]),
    conv((2, 3, 6, 7), (4, 3, 2, 3), pads=[3, 4, 2, 3], label="wide pads"),
    conv((2, 3, 6, 7), (4, 3, 1, 1), pads=[2, 1, 0, 3], label="wide pads"),
    conv((2, 3, 9, 8), (4, 3, 3, 3), strides=[2, 2], pads=[1, 1, 1, 1]),
    conv((2, 3, 9, 8), (4, 3, 3, 3), strides=[2, 2]),
    conv((2, 3, 9, 8), (4, 3, 1, 1), strides=[2, 2]),
    conv((2, 3, 9, 8), (4, 3, 1, 1), strides=[3, 2], pads=[2, 0, 1, 3], label="wide pads"),
    conv((2, 3, 9, 8), (4, 3, 3, 2), strides=[2, 3], pads=[0, 1, 1, 0]),
    conv((2, 3, 9, 8), (4, 3, 2, 2), strides=[3, 3], label="gaps"),
    conv((2, 3, 12, 12), (4, 3, 7, 7), strides=[4, 4], pads=[2, 2, 2, 2], label="left over"),
    conv((2, 3, 9, 10), (4, 3, 3, 2), strides=[2, 1], dilations=[2, 3], pads=[2, 1, 0, 2]),
    conv((2, 3, 9, 10), (4, 3, 2, 2), strides=[2, 2], dilations=[3, 3], pads=[1, 1, 1, 1], label="even dilation"),
    conv((2, 4, 6, 6), (4, 1, 3, 3), group=4, pads=[1, 1, 1, 1], label="depthwise"),
    conv((2, 4, 7, 7), (8, 1, 3, 3), group=4, pads=[1, 1, 1, 1], strides=[2, 2], label="depthwise"),
    conv((2, 4, 8, 7), (4, 1, 3, 3), group=4, pads=[1, 1, 1, 1], strides=[2, 2], label="in parts"),
    conv((2, 4, 8, 7), (4, 1, 3, 3), group=4, pads=[0, 0, 1, 1], strides=[2, 2], label="in parts"),
    conv((2, 4, 9, 8), (4, 1, 5, 4), group=4, pads=[1, 2, 2, 3], strides=[3, 3], label="in parts"),
    conv((2, 4, 9, 8), (4, 1, 2, 2), group=4, strides=[2, 2], label="in parts, left over"),
    conv((2, 4, 5, 4), (4, 1, 2, 3), group=4, pads=[3, 4, 4, 5], strides=[2, 2], label="in parts, wide pads"),
    conv((2, 4, 9, 8), (4, 1, 2, 3), group=4, strides=[3, 3], label="depthwise, gaps"),
    conv((2, 4, 9, 8), (4, 1, 3, 3), group=4, strides=[2, 1], label="depthwise, two strides"),
    conv((2, 4, 6, 6), (6, 2, 3, 3), group=2, pads=[1, 0, 1, 0]),
    conv((2, 4, 7, 6), (6, 2, 3, 3), group=2, strides=[2, 1], dilations=[1, 2], pads=[0, 2, 1, 1]),
    conv((2, 3, 7, 8), (4, 3, 3, 3), auto_pad="SAME_UPPER", strides=[2, 2]),
    conv((2, 3, 7, 8), (4, 3, 2, 4), auto_pad="SAME_LOWER", strides=[1, 2]),
    conv((2, 3, 7, 8), (4, 3, 2, 2), auto_pad="SAME_LOWER"),
    conv((2, 3, 7, 8), (4, 3, 2, 4), auto_pad="SAME_UPPER", kernel_shape=[2, 4]),
    conv((2, 3, 7, 8), (4, 3, 3, 3), auto_pad="VALID", strides=[2, 1]),
    conv((1, 2, 5, 4, 6), (3, 2, 2, 3, 2), pads=[1, 1, 0, 0, 1, 1]),
    conv((1, 2, 5, 6, 7), (4, 1, 3, 2, 3), group=2, strides=[2, 2, 1], dilations=[1, 2, 2], pads=[1, 0, 2, 1, 1, 1]),
    node("Conv", normal(2, 3, 6, 6), weights(4, 3, 3, 3), normal(4), pads=[1, 1, 1, 1], label="bias"),
    node("Conv", normal(2, 3, 6, 6), other(4, 3, 3, 3), wrt=(0,), pads=[1, 1, 0, 0], label="run-time weights"),
    node("Conv", normal(2, 3, 7, 6), other(4, 3, 3, 3), wrt=(0,), strides=[2, 2], label="run-time weights"),
    kernel((2, 3, 8), (4, 3, 3)),
    kernel((2, 3, 9), (4, 3, 3), strides=[3], dilations=[2], pads=[3, 0]),
    kernel((2, 3, 9, 8), (4, 3, 3, 2), strides=[2, 3], pads=[0, 1, 1, 0]),
    kernel((2, 3, 12, 12), (4, 3, 7, 7), strides=[4, 4], pads=[2, 2, 2, 2], label="weights, left over"),
    kernel((2, 4, 7, 6), (6, 2, 3, 3), group=2, strides=[2, 1], dilations=[1, 2], pads=[0, 2, 1, 1]),
    kernel((3, 4, 6, 6), (4, 1, 3, 3), group=4, pads=[1, 1, 1, 1], label="weights, depthwise"),
    kernel((2, 3, 7, 8), (4, 3, 2, 4), auto_pad="SAME_LOWER", strides=[1, 2]),
    kernel((2, 2, 5, 4, 6), (3, 2, 2, 3, 2), pads=[1, 1, 0, 0, 1, 1]),
    node("Conv", normal(2, 3, 6, 7), other(4, 3, 3, 2), normal(4), pads=[0, 1, 2, 0], strides=[1, 2], label="all"),
    back((2, 3, 5), (3, 4, 3)),
    back((2, 3, 5), (3, 4, 3), strides=[2], pads=[1, 1], output_padding=[1]),
    back((2, 3, 4, 5), (3, 3, 3, 3), pads=[1, 1, 1, 1], label="square"),
    back((2, 3, 4, 5), (3, 2, 3, 2), strides=[2, 3], pads=[0, 1, 2, 0]),
    back((2, 3, 4, 5), (3, 2, 3, 2), strides=[3, 3], dilations=[2, 3], pads=[1, 0, 0, 2], output_padding=[2, 1]),
    back((2, 3, 4, 5), (3, 2, 1, 1), strides=[2, 2], output_padding=[1, 0], label="gaps"),
    back((2, 3, 4, 5), (3, 2, 2, 2), strides=[3, 3], label="gaps"),
    back((2, 4, 4, 5), (4, 3, 3, 3), group=2, strides=[2, 1]),
    back((2, 4, 4, 5), (4, 1, 2, 2), group=4, strides=[2, 2], label="depthwise"),
    back((2, 3, 4, 5), (3, 2, 3, 4), auto_pad="SAME_UPPER", strides=[2, 2]),
    back((2, 3, 4, 5), (3, 2, 3, 4), auto_pad="SAME_LOWER", strides=[2, 3]),
    back((2, 3, 4, 5), (3, 2, 3, 4), auto_pad="VALID", strides=[2, 1], kernel_shape=[3, 4]),
    back((2, 3, 3, 4), (3, 2, 3, 4), output_shape=[6, 7], strides=[2, 2]),
    back((2, 3, 3, 4), (3, 2, 3, 3), output_shape=[6, 8], strides=[2, 2], auto_pad="SAME_UPPER"),
    back((2, 3, 3, 4), (3, 2, 3, 3), output_shape=[8, 9], strides=[2, 2], output_padding=[1, 0], label="longer"),
    back((1, 2, 3, 2, 3), (2, 3, 2, 3, 2), strides=[2, 1, 2], pads=[0, 1, 0, 1, 1, 1]),
    node("ConvTranspose", normal(2, 3, 4), other(3, 4, 3), normal(4), strides=[2], pads=[1, 0], label="all"),
    node("ConvTranspose", normal(2, 4, 3, 4), other(4, 2, 3, 2), group=2, strides=[2, 1], label="both"),
    node("ConvTranspose", normal(2, 3, 4), other(3, 4, 3), strides=[2], output_padding=[1], wrt=(1,), label="weights"),
    blocks((2, 8, 4), [3, 3], [2, 2]),
    blocks((2, 6, 12), [5, 6], [2, 3], strides=[1, 2], pads=[0, 1, 0, 1], label="overlap"),
    blocks((2, 12, 9), [6, 5], [3, 2], dilations=[2, 1], strides=[1, 2], pads=[1, 0, 0, 1]),
    blocks((2, 6, 5), [11], [3], strides=[2], label="line"),
]
