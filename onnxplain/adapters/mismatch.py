"""Where an exported classifier first differs from the original: the layer whose output is nowhere in its graph."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, shape_inference

from onnxplain.engine.executors.onnxruntime import OnnxRuntimeExecutor
from onnxplain.engine.requests import Array

SAME = 1e-3  # of a layer's largest value: what is wrong is wrong by more, and float noise is less
FLOATS = (TensorProto.FLOAT, TensorProto.DOUBLE)
UNTYPED = ("Scaler", "Normalizer", "Imputer")  # of ai.onnx.ml: float32, but shape inference does not say so


def first_difference(classifier: Path, images: Array, layers: Iterable[tuple[str, Array]]) -> str | None:
    """The name of the first layer that the graph does not compute, in the order in which they run; None if it has all.

    No names are compared, for exporters rename and merge: a layer is found if any value of the graph has its numbers,
    in whatever order of axes. One that is merged into the next one (a convolution into the normalisation behind it) is
    not found either, so that a layer counts as missing only if the next one is too.
    """
    values = by_size(inner_values(classifier, images))
    found = [(name, has(values, output)) for name, output in layers]
    missing = [
        name
        for (name, here), (_, after) in zip(found, [*found[1:], ("", False)], strict=True)
        if not here and not after
    ]
    return missing[0] if missing else None


def inner_values(classifier: Path, images: Array) -> Mapping[str, Array]:
    """All float values of a graph at images, by their names, without the runtime's optimiser."""
    model = shape_inference.infer_shapes(onnx.load(classifier, load_external_data=False))
    graph = model.graph
    have = {value.name for value in graph.output}
    kinds = {value.name: value.type.tensor_type.elem_type for value in graph.value_info}
    kinds |= {node.output[0]: TensorProto.FLOAT for node in graph.node if node.op_type in UNTYPED}
    inner = [name for node in graph.node for name in node.output if kinds.get(name) in FLOATS and name not in have]
    graph.output.extend(helper.make_tensor_value_info(name, kinds[name], None) for name in inner)
    with OnnxRuntimeExecutor(model, optimise=False, folder=classifier.parent) as executor:
        ((given, wanted),) = executor.inputs.items()
        rows = wanted.shape[0] if isinstance(wanted.shape[0], int) else len(images)  # some take so many at a time
        parts = [
            {name: value.copy() for name, value in executor({given: images[i : i + rows]}).items()}
            for i in range(0, len(images), rows)
        ]
    return {name: together([part[name] for part in parts]) for name in parts[0]}


def together(parts: list[Array]) -> Array:
    """Of all images; a scalar is none of theirs."""
    return np.concatenate(parts) if len(parts) > 1 and parts[0].ndim else parts[0]


def by_size(values: Mapping[str, Array]) -> Mapping[int, list[Array]]:
    sizes: dict[int, list[Array]] = defaultdict(list)
    for value in values.values():
        sizes[value.size].append(value)
    return sizes


def has(values: Mapping[int, list[Array]], output: Array) -> bool:
    """Whether one of the values is this output, perhaps with its channels elsewhere."""
    near = SAME * float(np.abs(output).max(initial=0))
    forms = (output, np.moveaxis(output, 1, -1), np.moveaxis(output, -1, 1)) if output.ndim > 2 else (output,)
    turned = [np.ravel(form) for form in forms]
    return any(
        np.abs(value.ravel() - form).max(initial=0) <= near for value in values.get(output.size, ()) for form in turned
    )
