"""Whatever was given as a model, made ready: read, checked, inlined, of opset 18 or later, with every shape known."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import TypeAlias

import onnx
import onnx_ir as ir
from onnx_ir.passes import common as passes

from onnxplain.adapters.gradient.control import write_out_all
from onnxplain.adapters.gradient.ml import rewrite_all, without_zipmap
from onnxplain.errors import InvalidModel, NotDifferentiable

ModelLike: TypeAlias = onnx.ModelProto | ir.Model | str | os.PathLike[str]

OPSET = 18  # older models are raised to it: the last opset at which CUDA has a kernel for all that the rules emit


def read(model: ModelLike) -> ir.Model:
    """A copy of the model that is ours to change."""
    if isinstance(model, ir.Model):
        return model.clone()  # which still knows in which folder its weights lie
    if isinstance(model, onnx.ModelProto):
        ours = onnx.ModelProto()
        ours.CopyFrom(model)  # onnx-ir works on the tensors that it is given
        without_zipmap(ours.graph)
        try:
            read_proto = ir.from_proto(ours)
        except Exception as error:
            raise InvalidModel(f"the model cannot be read: {one_line(error)}; next: run onnx.checker on it") from error
        refuse_escapes(read_proto, Path(), "the model")
        return read_proto
    path = Path(model)
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "does not exist"
        raise InvalidModel(f"{path}: the model {what}; next: give the path of an .onnx file")
    try:
        proto = onnx.load(path, load_external_data=False)
        without_zipmap(proto.graph)
        loaded = ir.from_proto(proto)
        ir.external_data.set_base_dir(loaded.graph, path.parent)
    except Exception as error:  # protobuf, onnx-ir and the operating system each have their own
        raise InvalidModel(f"{path}: not a readable ONNX model ({one_line(error)}); next: export it again") from error
    if not len(loaded.graph.outputs) or not len(loaded.graph.inputs):
        raise InvalidModel(f"{path}: not an ONNX model with inputs and outputs; next: export it again")
    refuse_escapes(loaded, path.parent, str(path))
    return load_weights(loaded, f"{path}: ")


def refuse_escapes(model: ir.Model, folder: Path, name: str) -> None:
    """Raise if external data lies outside the model's folder: by its path, or behind a link."""
    for tensor in external_tensors(model):
        location = str(tensor.location)
        parts = {*PurePosixPath(location).parts, *PureWindowsPath(location).parts}
        absolute = PurePosixPath(location).is_absolute() or PureWindowsPath(location).is_absolute()
        if absolute or ".." in parts or (folder / location).resolve().parent != folder.resolve():
            raise InvalidModel(
                f"{name}: external data at {location!r} lies outside the model's folder, which is refused; "
                "next: put it beside the model"
            )


def files_of(path: str | os.PathLike[str]) -> list[Path]:
    """The model's file and those that its weights lie in."""
    weights = {str(tensor.location) for tensor in external_tensors(ir.load(path))}
    return [Path(path), *(Path(path).parent / name for name in sorted(weights))]


def external_tensors(model: ir.Model) -> list[ir.ExternalTensor]:
    """The tensors that lie in files beside the model: of initializers and of nodes' attributes."""
    weights = [value.const_value for value in model.graph.initializers.values()]
    own = [attribute.value for node in model.graph.all_nodes() for attribute in node.attributes.values()]
    return [tensor for tensor in (*weights, *own) if isinstance(tensor, ir.ExternalTensor)]


def load_weights(model: ir.Model, where: str = "") -> ir.Model:
    """Bring external data into memory: what is made of the model has no folder any more."""
    try:
        return ir.external_data.load_to_model(model)
    except Exception as error:  # a missing or short file, or a place that onnx-ir refuses to read
        raise InvalidModel(
            f"{where}the external data cannot be read ({one_line(error)}); next: copy it beside the model"
        ) from error


@contextmanager
def blaming(model: ModelLike) -> Iterator[None]:
    """Turn complaints about our graph, or gaps, into `InvalidModel` if ONNX has complaints about the given model."""
    try:
        yield
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError, NotDifferentiable):
        try:
            onnx.checker.check_model(ir.to_proto(read(model)), full_check=True)
        except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
            raise InvalidModel(
                f"the model is not valid ONNX: {one_line(error)}; next: run onnx.checker on it"
            ) from error
        raise


def prepare(model: ModelLike) -> ir.Model:
    """Read a model and normalise it: see the module's first line. Raises `InvalidModel`."""
    ours = read(model)
    try:
        ours = load_weights(normalise(ours))
    except InvalidModel:
        raise
    except Exception as error:
        raise InvalidModel(f"the model is not valid ONNX: {one_line(error)}; next: run onnx.checker on it") from error
    return ours


def normalise(model: ir.Model) -> ir.Model:
    passes.RemoveInitializersFromInputsPass()(model)
    model.ir_version = max(model.ir_version, 4)  # before that, every weight had to be an input
    passes.InlinePass()(model)
    version = model.graph.opset_imports.get("", 1)
    if version < OPSET:
        proto = onnx.version_converter.convert_version(ir.to_proto(model), OPSET)
        model = ir.from_proto(proto)
    elif version > onnx.defs.onnx_opset_version():
        raise InvalidModel(
            f"the model has opset {version}, newer than the installed onnx knows ({onnx.defs.onnx_opset_version()}); "
            "next: upgrade onnx, or export at an older opset"
        )
    passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    resolve_identities(model.graph)
    passes.TopologicalSortPass()(model)
    passes.NameFixPass()(model)
    name_dimensions(model)
    model = infer_shapes(model)
    while rewrite_all(model.graph):
        model = infer_shapes(model)
    while write_out_all(model.graph):  # a branch that is known now may tell the shapes that another one depends on
        model = infer_shapes(model)
    return model


def resolve_identities(graph: ir.Graph) -> None:
    """Let whoever reads a weight through Identity read the weight: exporters share weights like that."""
    for node in graph:
        x, y = (*node.inputs, None)[0], node.outputs[0]
        if node.op_type == "Identity" and x is not None and x.is_initializer() and not y.is_graph_output():
            y.replace_all_uses_with(x)


def name_dimensions(model: ir.Model) -> None:
    """Name the free dimensions of inputs that have no name: two of them may differ, so they must not look equal."""
    for value in model.graph.inputs:
        if value.shape is not None:
            dims = [
                d if isinstance(d, int) or d.value is not None else f"{value.name}_{a}"
                for a, d in enumerate(value.shape)
            ]
            value.shape = ir.Shape(dims)


def infer_shapes(model: ir.Model) -> ir.Model:
    passes.ShapeInferencePass(check_type=True, strict_mode=False, data_prop=True)(model)
    return model


def one_line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return text if len(text) <= 200 else text[:200] + "..."
