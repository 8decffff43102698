"""Factors of channels, which normalisations send back, go into the kernel of a convolution beside them.

    c ⊙ m ⊙ (W * ȳ) = m ⊙ (c W * ȳ)        W * (c ⊙ ȳ) = W c * ȳ

So a normalisation costs no pass over the image of its own on the way back, as it costs none forwards.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onnxplain.adapters.gradient.expr import Expr

SCALED = "onnxplain.scaled"  # of a product with a factor for each channel, in its `meta`


def scaled(g: Expr, factor: Expr) -> Expr:
    """g (N, C, ...) ⊙ a factor for each channel (C, 1, ...), as a product that may go into a kernel later."""
    product = g * factor
    if g.shape == product.shape and factor.constant is not None:
        product.value.meta[SCALED] = True
    return product


def fold_scales(graph: ir.Graph) -> None:
    """Put every factor that `scaled` marked into a kernel, where nothing else reads what lies between the two."""
    for node in [node for node in graph if SCALED in node.outputs[0].meta and not node.outputs[0].is_graph_output()]:
        (x, factor), (y,) = node.inputs, node.outputs
        assert x is not None
        assert factor is not None
        before, after = convolution_before(x), convolution_after(y)
        if before is not None:
            scale_kernel(before, factor, graph, outputs=True)
        elif after is not None:
            scale_kernel(after, factor, graph, outputs=False)
        else:
            continue
        y.replace_all_uses_with(x)
        graph.remove(node, safe=True)


def only_reader(x: ir.Value) -> ir.Node | None:
    """The node that alone reads a value."""
    readers = [node for node, _ in x.uses()]
    return readers[0] if len(readers) == 1 and not x.is_graph_output() else None


def convolution_before(x: ir.Value) -> ir.Node | None:
    """The convolution that x is the output of, times any masks."""
    while (node := x.producer()) is not None and only_reader(x) is not None:
        if has_own_kernel(node):
            return node
        if (node.domain, node.op_type) != ("", "Mul") or node.inputs[0] is None or node.inputs[0].shape != x.shape:
            return None
        x = node.inputs[0]
    return None


def convolution_after(y: ir.Value) -> ir.Node | None:
    """The convolution whose image is y."""
    node = only_reader(y)
    return node if node is not None and has_own_kernel(node) and node.inputs[0] is y else None


def has_own_kernel(node: ir.Node) -> bool:
    """Whether a node is a convolution without a bias, in one group, whose constant kernel no other node reads."""
    if node.domain or node.op_type not in ("Conv", "ConvTranspose") or len(node.inputs) > 2:
        return False
    kernel = node.inputs[1]
    return (
        kernel is not None
        and kernel.const_value is not None
        and only_reader(kernel) is node
        and node.attributes.get_int("group", 1) == 1
    )


def scale_kernel(node: ir.Node, factor: ir.Value, graph: ir.Graph, *, outputs: bool) -> None:
    """Multiply the kernel by a factor for each channel of the outputs, or of the inputs."""
    kernel = node.inputs[1]
    assert kernel is not None
    assert kernel.const_value is not None
    assert factor.const_value is not None
    tensor, factors = kernel.const_value, factor.const_value.numpy().reshape(-1)
    axis = int(outputs == (node.op_type == "ConvTranspose"))  # a Conv's kernel begins with the outputs
    along = factors.reshape([-1 if a == axis else 1 for a in range(len(tensor.shape))])
    name = f"{kernel.name}_scaled"

    def make() -> ir.TensorProtocol:
        return ir.tensor(np.ascontiguousarray(tensor.numpy() * along), name=name)

    lazy = ir.LazyTensor(make, tensor.dtype, ir.Shape(tensor.shape.numpy()), name=name)
    new = ir.Value(name=name, shape=kernel.shape, type=kernel.type, const_value=lazy)
    graph.register_initializer(new)
    node.replace_input_with(1, new)
