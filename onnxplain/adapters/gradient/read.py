"""A model of whatever kind, read. What is broken, or too large to be a classifier, is refused before it costs anything.

A model is a stranger's: nothing here trusts a count, a size or a path in it, nothing recurses, and no weight is looked
at. Whatever protobuf, onnx-ir, NumPy and the operating system raise becomes an `InvalidModel` of one line.
"""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import TypeAlias

import numpy as np
import onnx
import onnx_ir as ir

from onnxplain.adapters.gradient import ml
from onnxplain.adapters.gradient.facts import SMALL
from onnxplain.engine.arguments import expect
from onnxplain.errors import InvalidModel, MissingFile, OnnxplainError

ModelLike: TypeAlias = onnx.ModelProto | ir.Model | str | os.PathLike[str]
Body: TypeAlias = onnx.GraphProto | onnx.FunctionProto
Function: TypeAlias = tuple[str, str, str]  # domain, name and overload
MAIN: Function = ("", "", "")

FILES = "onnxplain.files"  # of a model, in its `meta`: where it was read from
# The largest classifiers have some ten thousand nodes. So many of them are differentiated in about a minute, in 3 GiB.
NODES = 100_000
DEPTH = 30  # of graphs in graphs: onnx's own code recurses


def read(model: ModelLike) -> ir.Model:
    """A copy of the model that is ours to change."""
    if isinstance(model, ir.Model):
        with refusing("the model"):
            refuse_large(sum(1 for _ in model.graph.all_nodes()), "the model")
            refuse_missing(model, "the model")
            return load_small(model.clone())  # which still knows in which folder its weights lie
    if isinstance(model, onnx.ModelProto):
        with refusing("the model"):
            ours = onnx.ModelProto()
            ours.CopyFrom(model)  # onnx-ir works on the tensors that it is given
            return from_message(ours, Path(), "the model")
    expect(
        isinstance(model, str | os.PathLike),
        *("model", "a path, a ModelProto or an onnx-ir model", model, "save it to a file, or export it first"),
    )
    path, name = Path(model), str(model)
    with refusing(name):
        if not path.exists():
            raise MissingFile(f"{name}: the model does not exist; next: give the path of an .onnx file")
        if not path.is_file():
            what = "is a folder" if path.is_dir() else "is no file"
            raise InvalidModel(f"{name}: the model {what}; next: give the path of an .onnx file")
        proto = onnx.load(path, load_external_data=False)
        if not proto.graph.output or not proto.graph.input:
            raise InvalidModel(f"{name}: not an ONNX model with inputs and outputs; next: export it again")
        loaded = from_message(proto, path.parent, name)
        loaded.meta[FILES] = [path, *sorted({Path(tensor.path) for tensor in external_tensors(loaded)})]
        return loaded


def from_message(proto: onnx.ModelProto, folder: Path, name: str) -> ir.Model:
    """A model of a message, which becomes part of it. Its external data lies in a folder."""
    refuse_large(size(proto, name), name)
    refuse_broken(proto, name)
    ml.without_zipmap(proto.graph)
    model = ir.from_proto(proto)
    ir.external_data.set_base_dir(model.graph, folder)
    refuse_escapes(model, folder, name)
    refuse_missing(model, name)
    return load_small(model)


@contextmanager
def refusing(name: str) -> Iterator[None]:
    """Make an `InvalidModel` of whatever is raised: around what others' code does with a model as it was given.

    This holds up to the end of `prepare`, and for shape inference. Behind that a model is sorted, named and typed, and
    what a rule or the sweep raises is a fault of ours, which must show.
    """
    try:
        yield
    except OnnxplainError:
        raise
    except Exception as error:
        raise InvalidModel(
            f"{name}: not a valid ONNX model ({one_line(error)}); next: run onnx.checker on it, or export it again"
        ) from error


def one_line(error: BaseException) -> str:
    """What the first of a chain of errors says: those after it tell where."""
    while error.__cause__ is not None:
        error = error.__cause__
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 200 else text[:200] + "..."


def quoted(name: str) -> str:
    return repr(name if len(name) <= 100 else name[:100] + "...")


# The graph


def refuse_large(nodes: int, name: str) -> None:
    """Raise for a graph that is no classifier's: memory and time grow with the number of nodes."""
    if nodes > NODES:
        count = f"{nodes:,}" if nodes < 1000 * NODES else f"{nodes:.1e}"
        raise InvalidModel(f"{name}: it has {count} nodes, more than {NODES:,}; next: give a smaller model")


def inner_graphs(node: onnx.NodeProto) -> list[onnx.GraphProto]:
    """The graphs in a node's attributes."""
    return [graph for a in node.attribute for graph in (*((a.g,) if a.HasField("g") else ()), *a.graphs)]


def nodes_of(body: Body) -> Iterator[onnx.NodeProto]:
    """The nodes of a graph or function, and of the graphs inside it."""
    waiting = [body]
    while waiting:
        for node in waiting.pop().node:
            yield node
            waiting += inner_graphs(node)


def size(proto: onnx.ModelProto, name: str) -> int:
    """How many nodes a model has once its functions are written out where they are called.

    Functions that call functions that ... may stand for more nodes than there is memory: they are counted, each once.
    """
    refuse_large(len(proto.graph.node) + sum(len(function.node) for function in proto.functions), name)
    bodies: dict[Function, Body] = {(f.domain, f.name, f.overload): f for f in proto.functions} | {MAIN: proto.graph}
    own: dict[Function, int] = {}
    calls: dict[Function, Counter[Function]] = {}
    for key, body in bodies.items():
        found = Counter((node.domain, node.op_type, node.overload) for node in nodes_of(body))
        own[key], calls[key] = found.total(), Counter({k: n for k, n in found.items() if k in bodies})
    sizes: dict[Function, int] = {}
    waiting, entered = [MAIN], set()
    while waiting:
        top = waiting[-1]
        missing = [callee for callee in calls[top] if callee not in sizes]
        if not missing:
            # Nothing above the limit is told apart: the numbers would have as many digits as there are functions.
            sizes[top] = min(own[top] + sum(n * sizes[callee] for callee, n in calls[top].items()), NODES**4)
            waiting.pop()
        elif top in entered:
            raise InvalidModel(
                f"{name}: the function {quoted(top[1])} calls itself, by others or not; next: export it without"
            )
        else:
            entered.add(top)
            waiting += missing
    return max(sizes[MAIN], sum(own.values()))


def refuse_broken(proto: onnx.ModelProto, name: str) -> None:
    """Raise where a name means two things or none, and where a tensor is not what it says.

    onnx-ir would take the last of several weights, and leave out what it does not know.
    """
    Scopes: TypeAlias = tuple[set[str], ...]
    waiting: list[tuple[Body, Scopes]] = [(body, ()) for body in (proto.graph, *proto.functions)]
    while waiting:
        body, around = waiting.pop()
        if len(around) > DEPTH:
            raise InvalidModel(
                f"{name}: graphs in graphs, more than {DEPTH} deep; next: export it without control flow"
            )
        scopes: Scopes = (names_of(body, name), *around)
        for node in body.node:
            for x in node.input:
                if x and not any(x in scope for scope in scopes):
                    raise InvalidModel(
                        f"{name}: {quoted(node.name or node.op_type)} reads {quoted(x)}, which nothing makes; "
                        "next: export it again"
                    )
            waiting += [(graph, scopes) for graph in inner_graphs(node)]
            for attribute in node.attribute:
                for tensor in (*((attribute.t,) if attribute.HasField("t") else ()), *attribute.tensors):
                    refuse_wrong_tensor(tensor, name)
        for y in ends_of(body.output):
            if not any(y in scope for scope in (scopes if around else scopes[:1])):
                raise InvalidModel(f"{name}: nothing makes the output {quoted(y)}; next: export it again")
        if isinstance(body, onnx.GraphProto):
            for tensor in body.initializer:
                refuse_wrong_tensor(tensor, name)


def ends_of(values: Sequence[str] | Sequence[onnx.ValueInfoProto]) -> list[str]:
    """The names of inputs or outputs of a function or a graph."""
    return [value if isinstance(value, str) else value.name for value in values]


def names_of(body: Body, name: str) -> set[str]:
    """What the values of a graph or function are called."""
    inputs, made = ends_of(body.input), [y for node in body.node for y in node.output if y]
    weights: list[str] = []
    if isinstance(body, onnx.GraphProto):
        weights = [tensor.name for tensor in body.initializer]
        if body.sparse_initializer:
            raise InvalidModel(f"{name}: it has sparse weights, which are not covered; next: export them as dense ones")
    # A weight may be an input as well, whose default it is.
    for several in ([*inputs, *made], [*weights, *made]):
        repeated = next((value for value, count in Counter(several).items() if count > 1), None)
        if repeated is not None:
            raise InvalidModel(f"{name}: several values are called {quoted(repeated)}; next: export it again")
        if "" in several:
            raise InvalidModel(f"{name}: an input or a weight has no name; next: export it again")
    return {*inputs, *made, *weights}


# Tensors


def refuse_wrong_tensor(tensor: onnx.TensorProto, name: str) -> None:
    """Raise if a tensor cannot be, or has more or fewer data than its shape and type say."""
    dims, what = list(tensor.dims), f"{name}: the tensor {quoted(tensor.name)}"
    try:
        dtype = ir.DataType(tensor.data_type)
        elements = np.broadcast_to(np.float64(0), dims).size  # NumPy's limits to size and rank, and nothing is made
    except ValueError as error:
        raise InvalidModel(
            f"{what} of type {tensor.data_type} and shape {shown(dims)} cannot be ({one_line(error)}); "
            "next: export it again"
        ) from error
    if tensor.data_location == onnx.TensorProto.EXTERNAL:
        return  # see `refuse_missing`
    if tensor.HasField("raw_data"):
        held, wanted = len(tensor.raw_data), {math.ceil(elements * dtype.itemsize)}
    elif dtype == ir.DataType.STRING:
        held, wanted = len(tensor.string_data), {elements}
    else:
        fields = (tensor.float_data, tensor.double_data, tensor.int32_data, tensor.int64_data, tensor.uint64_data)
        held, wanted = sum(map(len, fields)), {elements}
        if dtype in (ir.DataType.COMPLEX64, ir.DataType.COMPLEX128):
            wanted = {2 * elements}
        elif dtype.itemsize < 1:  # several of them in a number, or not
            wanted = {elements, math.ceil(elements * dtype.itemsize)}
    if held not in wanted:
        unit = "bytes" if tensor.HasField("raw_data") else "numbers"
        raise InvalidModel(
            f"{what} of shape {shown(dims)} has {held:,} {unit} of data, and should have {max(wanted):,}; "
            "next: export it again"
        )


def shown(dims: Sequence[int]) -> str:
    return str(list(dims)) if len(dims) <= 8 else f"[{', '.join(map(str, dims[:8]))}, ...]"


def external_tensors(model: ir.Model) -> list[ir.ExternalTensor]:
    """The tensors that lie in files beside the model: of weights and of nodes' attributes, wherever they are."""
    found: list[object] = []
    for graph in (*model.graphs(), *(g for f in model.functions.values() for g in (f.graph, *f.subgraphs()))):
        found += [value.const_value for value in graph.initializers.values()]
        for attribute in (attribute for node in graph for attribute in node.attributes.values()):
            if attribute.type in (ir.AttributeType.TENSOR, ir.AttributeType.TENSORS):
                value = attribute.value
                found += value if isinstance(value, list | tuple) else [value]
    return [tensor for tensor in found if isinstance(tensor, ir.ExternalTensor)]


def refuse_escapes(model: ir.Model, folder: Path, name: str) -> None:
    """Raise if external data lies outside the model's folder: by its path, or behind a link."""
    for tensor in external_tensors(model):
        location = str(tensor.location)
        parts = {*PurePosixPath(location).parts, *PureWindowsPath(location).parts}
        inside = not (PurePosixPath(location).anchor or PureWindowsPath(location).anchor or ".." in parts)
        try:
            inside = inside and (folder / location).resolve().is_relative_to(folder.resolve())
        except (OSError, RuntimeError, ValueError) as error:  # a circle of links; a name that cannot be one
            raise InvalidModel(
                f"{name}: external data at {quoted(location)} cannot be found ({one_line(error)}); "
                "next: put it beside the model"
            ) from error
        if not inside:
            raise InvalidModel(
                f"{name}: external data at {quoted(location)} lies outside the model's folder, which is refused; "
                "next: put it beside the model"
            )


def refuse_missing(model: ir.Model, name: str) -> None:
    """Raise if external data is not there, or not as long as the tensors say. Nothing is read."""
    for tensor in external_tensors(model):
        path, offset, length = Path(tensor.path), tensor.offset or 0, tensor.length or tensor.nbytes
        held = path.stat().st_size if path.is_file() else None
        if held is None:
            what = "does not exist" if not path.exists() else "is no file"
        elif offset < 0 or length != tensor.nbytes:
            what = (
                f"has {length} bytes from {offset} on for {quoted(tensor.name or '')}, whose shape says {tensor.nbytes}"
            )
        elif held < offset + length:
            what = f"has {held} bytes, and tensor {quoted(tensor.name or '')} asks for more"
        else:
            continue
        raise InvalidModel(
            f"{name}: the external data {quoted(str(tensor.location))} {what}; next: copy it beside the model, whole"
        )


def files_of(path: str | os.PathLike[str], model: ir.Model | None = None) -> list[Path]:
    """The model's file and those that its weights lie in; `model` is what was read from there, if it was."""
    files: list[Path] = (model or read(path)).meta[FILES]
    return files


def load_small(model: ir.Model) -> ir.Model:
    """Bring what is no weight into memory: shapes, axes and scales are looked at."""
    for value in model.graph.initializers.values():
        if isinstance(value.const_value, ir.ExternalTensor) and value.const_value.size <= SMALL:
            value.const_value = ir.tensor(value.const_value.numpy().copy(), name=value.name)
    return model
