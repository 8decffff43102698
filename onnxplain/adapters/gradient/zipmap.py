"""Classifiers of scikit-learn give a dictionary of probabilities for each image: the tensor is taken in its place."""

from __future__ import annotations

import os

import onnx
import onnx_ir as ir


def load(model: onnx.ModelProto | str | os.PathLike[str]) -> ir.Model:
    """A model that onnx-ir can hold, which has no type for maps: its ZipMaps have become identities."""
    if isinstance(model, onnx.ModelProto):
        undo_zipmaps(model)
        return ir.from_proto(model)
    try:
        return ir.load(model)
    except Exception:
        proto = onnx.load(model, load_external_data=False)
        if not undo_zipmaps(proto):
            raise
        loaded = ir.from_proto(proto)
        ir.external_data.set_base_dir(loaded.graph, os.path.dirname(os.path.abspath(model)))
        return loaded


def undo_zipmaps(model: onnx.ModelProto) -> bool:
    """Let every ZipMap give the tensor that it gets, under its own name; whether there was any."""
    nodes = [node for node in model.graph.node if (node.domain, node.op_type) == ("ai.onnx.ml", "ZipMap")]
    for node in nodes:
        node.domain, node.op_type, node.name = "", "Identity", f"ZipMap {node.name}".strip()
        del node.attribute[:]
        for value in (*model.graph.output, *model.graph.value_info):
            if value.name in node.output:
                value.type.Clear()
                value.type.tensor_type.elem_type = onnx.TensorProto.FLOAT
    return bool(nodes)
