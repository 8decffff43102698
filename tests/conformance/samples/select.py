"""Operators that choose between elements."""

from __future__ import annotations

import numpy as np
from conformance.samples.sample import distinct, ints, node, normal, other

LENGTHS = ints(1, 4, 2)
NONE, SOME = np.asarray([0, 1, 1, 0, 1], bool), np.asarray([True, False, True, True, False, False, True])

SAMPLES = [
    node("Gather", normal(2, 5, 3), np.asarray(0), axis=1, label="class token"),
    node("Gather", normal(2, 5, 3), np.asarray(-2), axis=1, label="scalar"),
    node("Gather", normal(2, 5, 3), ints(1), axis=-2),
    node("Gather", normal(2, 5, 3), ints(1, 2, 3), axis=1, label="stretch"),
    node("Gather", normal(2, 5, 3), ints(4, 2, 0), axis=1, label="backwards"),
    node("Gather", normal(2, 8, 3), ints(3, 1, 7, 5, 0, 2, 4, 6), axis=1, label="permutation"),
    node("Gather", normal(2, 9, 3), ints(3, 1, -2, 5, 0, 2, -5), axis=1, label="injective"),
    node("Gather", normal(2, 5, 3), ints(3, 1, 0, 4, 0, 3, 1, 2), axis=1, label="repeated"),
    node("Gather", normal(2, 5, 3), ints(3, 1, 0, 4, 0, 3, 3, 3, 3, 1, 2), axis=1, label="often"),
    node("Gather", normal(2, 4, 3), ints(3, 3, 3, 0, 3, 1, 3, 1, 3, 3, 0), axis=2 - 1, label="some never"),
    node("Gather", normal(2, 3), ints(0, 0, 1, 1, 2, 2), axis=1, label="each twice"),
    node("Gather", normal(4, 6), ints(3, 1, 0, 4, 0, 3, 3, 3, 3, 1, 2), axis=1, label="last axis, often"),
    node("Gather", normal(2, 9, 3, 2), ints(3, 3, 3, 3, 1, 3, 8, 3, 3, 0), axis=1, label="4-d, often"),
    node("Gather", normal(2, 7, 3), np.asarray([[0, 5], [3, 1], [-1, 0]]), axis=1, label="matrix"),
    node("Gather", normal(4, 3), np.asarray([[[0, 3]], [[1, 1]]]), free=(), label="rank 3"),
    node("GatherElements", normal(3, 4), np.asarray([[0, 1, 2, 0], [0, 0, 2, 2]]), free=()),
    node("GatherElements", normal(3, 4, 2), np.asarray([[[0, -1]], [[2, 0]]]), axis=1, free=(), label="smaller"),
    node("GatherElements", normal(3, 4), np.asarray([[1, -1], [0, 2], [1, 0]]), axis=-1, free=()),
    node("GatherND", normal(3, 4, 2), np.asarray([[0, 1], [2, 0], [-1, 3], [0, 1]]), free=()),
    node("GatherND", normal(3, 4, 2), np.asarray([[[2]], [[0]]]), free=(), label="rows"),
    node("GatherND", normal(2, 5, 3), np.asarray([[4], [1]]), batch_dims=1, free=()),
    node("GatherND", normal(2, 5, 3), np.asarray([[[4, 1], [0, 0]], [[1, 2], [-1, -3]]]), batch_dims=1, free=()),
    node("ScatterElements", normal(3, 4), np.asarray([[0, 2], [1, 0]]), other(2, 2), free=()),
    node("ScatterElements", normal(3, 4), np.asarray([[0, -1], [1, 0]]), other(2, 2), axis=1, free=()),
    node(
        "ScatterElements", normal(3, 4), np.asarray([[0, -1], [0, 1]]), other(2, 2), axis=-2, reduction="add", free=()
    ),
    node("ScatterND", normal(4, 3, 2), np.asarray([[1], [3]]), other(2, 3, 2), free=()),
    node("ScatterND", normal(4, 3, 2), np.asarray([[[1, 2], [-4, 0]]]), other(1, 2, 2), free=()),
    node("ScatterND", normal(4, 3), np.asarray([[1], [3], [1]]), other(3, 3), reduction="add", free=()),
    node("ScatterElements", normal(3, 4), np.asarray([[0, -1], [0, 1]]), other(2, 2), axis=1, reduction="max", free=()),
    node("ScatterElements", normal(3, 4), np.asarray([[0, 2], [0, 1]]), other(2, 2), reduction="min", free=()),
    *(
        node("ScatterND", normal(4, 3), np.asarray([[1], [3], [1]]), other(3, 3), reduction=reduction, free=())
        for reduction in ("max", "min")
    ),
    node("Compress", normal(2, 5, 3), NONE, axis=1),
    node("Compress", normal(2, 5, 3), NONE[:3], axis=-2, label="short"),
    node("Compress", normal(2, 4), SOME, free=(), label="flat"),
    node("ReverseSequence", normal(4, 3, 2), LENGTHS, free=()),
    node("ReverseSequence", normal(3, 4, 2), LENGTHS, batch_axis=0, time_axis=1, free=()),
    node("Trilu", normal(2, 4, 5)),
    node("Trilu", normal(2, 4, 4), np.asarray(-1), upper=0),
    node("TopK", distinct(2, 7), ints(3), outputs=2),
    node("TopK", distinct(2, 7), ints(7), largest=0, outputs=2, label="all"),
    node("TopK", distinct(2, 5, 3), ints(2), axis=1, outputs=2),
    node("TopK", distinct(2, 5, 3), ints(4), axis=-2, largest=0, sorted=1, outputs=2),
    node("OneHot", ints(2, 0, -1, 7), np.asarray(4), normal(2), free=()),
    node("OneHot", np.asarray([[2, 0], [1, 1]]), np.asarray(3), normal(2), axis=0, free=()),
]
