"""Bias-gradients: what each node adds to the explained logit beside what it passes on from its inputs.

Let ȳ be the cotangent of a node's output y, and x̄ᵢ what the node adds to those of its inputs. What it adds by itself is

    ȳ ⊙ y - Σᵢ x̄ᵢ ⊙ xᵢ

For y = W x + b that is ȳ ⊙ b, for an activation y = φ(x) it is ȳ ⊙ (φ(x) - φ'(x) x), its implicit bias; for all that
is homogeneous (ReLU, pooling, a sum, a shortcut) it is zero. Over the whole graph the sum telescopes, so that with the
image u in model space  Σ ∇u ⊙ u + Σ over nodes = F(u). Source: Srinivas and Fleuret, NeurIPS 2019, section 3.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import onnx_ir as ir

from onnxplain.adapters.gradient.expr import Expr, add_all
from onnxplain.adapters.gradient.layers import Layer, Layers
from onnxplain.adapters.gradient.sweep import FLOATS, Contributions, reads, single

# What adds nothing by itself: homogeneous in the one operand that depends on the image.
HOMOGENEOUS = frozenset(
    (
        "Abs", "AveragePool", "Cast", "DepthToSpace", "Dropout", "Expand", "Flatten", "Gather", "GlobalAveragePool",
        "GlobalMaxPool", "Identity", "LeakyRelu", "MaxPool", "Neg", "PRelu", "Pad", "ReduceMax", "ReduceMean",
        "ReduceMin", "ReduceSum", "Relu", "Reshape", "Resize", "Slice", "SpaceToDepth", "Split", "Squeeze", "Tile",
        "Transpose", "Unsqueeze",
    )
)  # fmt: skip
COMBINING = frozenset(("Add", "Concat", "Max", "Mean", "Min", "Sub", "Sum"))  # homogeneous in all operands together
LINEAR = frozenset(("Conv", "ConvTranspose", "Einsum", "Gemm", "MatMul", "Mul"))  # in each operand
BIASED = frozenset(("Conv", "ConvTranspose", "Gemm"))
QUANTISING = frozenset(("DequantizeLinear", "QuantizeLinear"))  # a pair, whose rounding is what it adds
# Of these an activation function may be written: functions of one number, with numbers as constants.
POINTWISE = frozenset(
    (
        "Add", "Atan", "Celu", "Clip", "Cos", "Div", "Elu", "Erf", "Exp", "Gelu", "HardSigmoid", "HardSwish", "Log",
        "Max", "Min", "Mish", "Mul", "Neg", "Pow", "Reciprocal", "Relu", "Selu", "Sigmoid", "Sin", "Softplus",
        "Softsign", "Sqrt", "Sub", "Swish", "Tanh", "ThresholdedRelu",
    )
)  # fmt: skip


class BiasGradients:
    """Collects what nodes add by themselves, while the sweep passes them. `skip`: nodes that are none of the model's.

    The pieces that an activation function is written in (z ⊙ σ(z), of Sigmoid and Mul) count as one.
    """

    def __init__(self, layers: Layers, skip: frozenset[ir.Node] = frozenset()) -> None:
        self.layers = layers
        self.skip = skip
        self.source: dict[ir.Value, ir.Value] = {}  # of a value that is a function of one other, place by place
        for node in layers.nodes:
            source = self.argument(node)
            if source is not None:
                self.source[node.outputs[0]] = source
        # By the value whose shape they have, and whether they are of a function of it or of what makes it.
        self.maps: dict[tuple[ir.Value, bool], list[Expr]] = {}
        self.rest: list[Expr] = []  # sums over all places, (N), of nodes whose parts have no common place

    def argument(self, node: ir.Node) -> ir.Value | None:
        """The one value that an output is a function of, place by place; None if there is no such value."""
        depend = [x for x in node.inputs if x in self.layers.active]
        numbers = [x for x in node.inputs if x is not None and x not in self.layers.active]
        shape = node.outputs[0].shape
        if node.op_type in QUANTISING and not node.domain:
            return self.source.get(depend[0], depend[0])
        alone = all(
            x.shape is not None and math.prod(d if isinstance(d, int) else 2 for d in x.shape) == 1 for x in numbers
        )
        if node.domain or node.op_type not in POINTWISE or not alone or any(x.shape != shape for x in depend):
            return None
        sources = {self.source.get(x, x) for x in depend}
        return sources.pop() if len(sources) == 1 else None

    def __call__(self, node: ir.Node, cotangents: Mapping[ir.Value, Expr], contributions: Contributions) -> None:
        """Take note of a node: `observe` of the sweep."""
        ys = [y for y in node.outputs if y in cotangents]
        inactive = [x for x in node.inputs if x is not None and x not in self.layers.active]
        if node in self.skip or not ys or self.adds_nothing(node, inactive):
            return
        y, emit = ys[0], cotangents[ys[0]].emit
        g, whole = cotangents[y], Expr(emit, y)
        if node.op_type in BIASED and len(inactive) == len(node.inputs) - 1 == 2:
            self.add(y, (g * bias(node, Expr(emit, inactive[1]), whole.rank)).expand(whole))
        elif node.op_type == "Add" and len(inactive) == 1:
            self.add(y, (g * own(Expr(emit, inactive[0]))).expand(whole))
        else:
            terms = [cotangents[value] * single(Expr(emit, value)) for value in ys if value.dtype in FLOATS]
            terms += [-(part * single(Expr(emit, x))) for x, part in contributions if x.dtype in FLOATS]
            if len(ys) == 1 and all(x.shape == y.shape for x, _ in contributions):
                self.add(y, add_all(terms).expand(whole))
            else:
                self.rest += [total(term, self.layers.x) for term in terms]

    def adds_nothing(self, node: ir.Node, inactive: list[ir.Value]) -> bool:
        """Whether a node is known to be homogeneous in what depends on the image."""
        if node.op_type in COMBINING:
            return not inactive
        depend = sum(x in self.layers.active for x in reads(node))
        if node.op_type in BIASED and len(node.inputs) > 2 and node.inputs[2] is not None:
            return False
        divided = node.op_type == "Div" and node.inputs[0] in self.layers.active
        return depend == 1 and (node.op_type in LINEAR | HOMOGENEOUS or divided)

    def add(self, y: ir.Value, map: Expr) -> None:
        self.maps.setdefault((self.source.get(y, y), y in self.source), []).append(map)

    def outputs(self, value: Expr) -> tuple[list[tuple[Layer, Expr]], Expr]:
        """The maps (N, C, h, w) of what lies on the picture, from the image on, and the sum of everything.

        The sum has the shape of the explained `value`, (N).
        """
        found, sums = [], list(self.rest)
        for (place, _), parts in reversed(self.maps.items()):
            map = add_all(parts)
            sums.append(total(map, self.layers.x))
            layer = self.layers.find(place)
            if layer is not None:
                found.append((layer, layer.grid(map)))
        return found, add_all(sums) if sums else value.zeros()


def bias(node: ir.Node, b: Expr, rank: int) -> Expr:
    """The bias of a convolution or a linear layer, so that it broadcasts to the output."""
    b = own(b)
    if node.op_type != "Gemm":
        return b.reshape((1, b.size(0), *(1,) * (rank - 2)))
    beta = node.attributes.get_float("beta", 1.0)
    return b if beta == 1 else b * beta


def own(x: Expr) -> Expr:
    """A constant as one of our own, in single precision at least: none feeds both directions (see `Emit.constant`)."""
    return single(x if x.constant is None else x.emit.constant(x.constant.copy()))


def total(e: Expr, x: ir.Value) -> Expr:
    """The sum over all that belongs to a sample, (N).

    The batch is the free axis, or lies along it, all of one sample before all of the next.
    """
    batch = Expr(e.emit, x).shape[0]
    free = [axis for axis, d in enumerate(e.shape) if not isinstance(d, int)]
    if isinstance(batch, int):
        return e.sum(list(range(e.rank))).reshape((1,))
    (axis,) = free or [0]
    e = e.sum([a for a in range(e.rank) if a != axis])
    if e.shape[0] == batch:
        return e
    facts = e.emit.facts
    (ours, _), (theirs, _) = facts.of(e.value), facts.of(x)
    assert ours.shape is not None
    assert theirs.shape is not None
    times = (ours.shape[0] or 1) // (theirs.shape[0] or 1)
    return e.reshape((batch, times)).sum([1])
