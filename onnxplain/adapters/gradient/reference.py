"""A reference beside the image: the forward graph once more, with the same weights, from another input.

For every value that depends on the image there is then one that is the same of the reference. Rules that look at both
find it as `Expr.reference`. Nothing is assumed about where a value has its batch, and cotangents are those of the image
alone.
"""

from __future__ import annotations

import onnx_ir as ir

from onnxplain.adapters.gradient.control import subgraphs
from onnxplain.adapters.gradient.expr import PREFIX, Emit
from onnxplain.adapters.gradient.facts import RANDOM
from onnxplain.adapters.gradient.sweep import SIZES, kind, label, reads
from onnxplain.engine.drive import REFERENCE
from onnxplain.errors import Gap, NotDifferentiable


def add_reference(emit: Emit, x: ir.Value) -> None:
    """Give the graph the input `onnxplain_reference`, as `x`, and compute from it whatever is computed from `x`."""
    graph, facts, twins = emit.graph, emit.facts, emit.references
    twins[x] = ir.Value(name=REFERENCE, shape=x.shape, type=x.type)
    graph.inputs.append(twins[x])
    facts.trials[twins[x]] = facts.of(x)
    for node in list(graph):
        if not any(value in twins for value in reads(node)) or (node.op_type in SIZES and not node.domain):
            continue
        if any(subgraphs(node)) or node.op_type in RANDOM:
            why = "it cannot be computed at a reference; next: export the model without it"
            raise NotDifferentiable([Gap(kind(node), label(node), why)])
        outputs = [ir.Value(name=emit.name(f"reference/{y.name}"), shape=y.shape, type=y.type) for y in node.outputs]
        twin = ir.Node(
            node.domain,
            node.op_type,
            [None if v is None else twins.get(v, v) for v in node.inputs],
            node.attributes.values(),
            outputs=outputs,
            version=node.version,
            name=f"{PREFIX}reference/{label(node)}",
        )
        graph.append(twin)
        for y, out in zip(node.outputs, outputs, strict=True):
            twins[y] = out
            facts.trials[out] = facts.of(y)
