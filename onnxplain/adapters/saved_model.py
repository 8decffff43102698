"""What a SavedModel does besides computing.

Its graph is a program, parts of which run as soon as it is loaded, and TensorFlow has operators that write files.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from onnxplain.adapters.original import require
from onnxplain.errors import InputError

# Of the operators that TensorFlow calls stateful, those that touch nothing but the memory of the model.
IN_MEMORY = re.compile(
    r"(Stateful)?PartitionedCall|If|While|Case|Assert|NoOp|Placeholder|VarHandleOp|VarIsInitializedOp|ReadVariableOp"
    r"|Assign(Add|Sub)?VariableOp|DestroyResourceOp|DisableCopyOnRead|Resource(Gather|Scatter|Apply|SparseApply|Strided)"
    r"\w*|(Mutable)?HashTable\w*|LookupTable(Find|Import|Export|Insert|Remove|Size)V2|Random\w+|Multinomial"
    r"|(Parameterized)?TruncatedNormal|Stateful(Random|Standard|Truncated|Uniform)\w*"
)
# Those that TensorFlow calls stateless, and that read files, report what they see, or call Python.
OUTSIDE = re.compile(r"ReadFile|MatchingFiles|InitializeTableFromTextFile|Debug\w+|PyFuncStateless|\w*Dataset\w*")


def require_harmless(folder: Path) -> None:
    """Raise `InputError` if a SavedModel that is loaded and called may do more than compute in memory.

    It looks at all functions but those that TensorFlow itself keeps for saving and restoring, which nobody calls.
    """
    require("tensorflow", "keras")
    parse = require("tensorflow.python.saved_model.loader_impl", "keras").parse_saved_model
    registry = require("tensorflow.python.framework.op_def_registry", "keras")
    try:
        graphs = parse(str(folder)).meta_graphs
    except Exception as error:
        raise InputError(f"{folder}: not a SavedModel (its graph cannot be read); next: save it again") from error
    if len(graphs) != 1 or not graphs[0].HasField("object_graph_def"):
        raise InputError(f"{folder}: a SavedModel of TensorFlow 1; next: load it, and save it with TensorFlow 2")
    library = {function.signature.name: function for function in graphs[0].graph_def.library.function}
    for name in sorted(reachable(library, roots(graphs[0]))):
        for node in library[name].node_def:
            if node.op in library:
                continue
            known = registry.get(node.op)
            if known is None or OUTSIDE.fullmatch(node.op) or (known.is_stateful and not IN_MEMORY.fullmatch(node.op)):
                raise InputError(
                    f"{folder}: its graph has {node.op}, which may do more than compute, such as write files "
                    f"(in {name}); next: if you trust it, load it in a function of your own, and give module:function"
                )


def roots(graph: Any) -> set[str]:
    """The functions that objects of a SavedModel have: its signatures, initialisers, savers, and gradients."""
    found = set(graph.object_graph_def.concrete_functions)
    for node in graph.object_graph_def.nodes:
        found |= {*node.function.concrete_functions, node.bare_concrete_function.concrete_function_name}
    library = graph.graph_def.library
    return found | {each.gradient_func for each in (*library.gradient, *library.registered_gradients)}


def reachable(library: dict[str, Any], names: Iterable[str]) -> set[str]:
    """The functions of a library that those of some names call, and these."""
    found: set[str] = set()
    ahead = [name for name in names if name in library]
    while ahead:
        name = ahead.pop()
        if name in found:
            continue
        found.add(name)
        for node in library[name].node_def:
            called = [node.op]
            for value in node.attr.values():
                called += [value.func.name, *(each.name for each in value.list.func)]
            ahead += [each for each in called if each in library]
    return found
