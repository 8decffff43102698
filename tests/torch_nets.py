"""Small nets in PyTorch, one of each kind that classifiers are made of, and their exports. Random weights, no training.

They have the operator structure of the originals at a fraction of the width. Parameters are drawn so that activations
keep their size from layer to layer: otherwise a deep net's logits do not depend on its input any more.
"""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Iterable, Sequence

import onnx
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn


class Lambda(nn.Module):
    """A function as a layer."""

    def __init__(self, fn) -> None:
        super().__init__()
        self.fn = fn

    def forward(self, x: Tensor) -> Tensor:
        return self.fn(x)


class Branches(nn.Module):
    """Parallel branches, concatenated over channels."""

    def __init__(self, *branches: nn.Module) -> None:
        super().__init__()
        self.branches = nn.ModuleList(branches)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([branch(x) for branch in self.branches], 1)


class Sum(nn.Module):
    """A residual block: activation(body(x) + shortcut(x))."""

    def __init__(self, body: nn.Module, shortcut: nn.Module, activation: nn.Module) -> None:
        super().__init__()
        self.body, self.shortcut, self.activation = body, shortcut, activation

    def forward(self, x: Tensor) -> Tensor:
        return self.activation(self.body(x) + self.shortcut(x))


def conv(
    i: int,
    o: int,
    k: int | tuple[int, int] = 3,
    s: int = 1,
    p: int | tuple[int, int] | None = None,
    g: int = 1,
    act=True,
):
    """Conv, BatchNormalization, ReLU."""
    if p is None:
        p = k // 2 if isinstance(k, int) else (k[0] // 2, k[1] // 2)
    layers = [nn.Conv2d(i, o, k, s, p, groups=g, bias=False), nn.BatchNorm2d(o)]
    return nn.Sequential(*layers, *([nn.ReLU()] if act else []))


def head(i: int, classes: int = 10) -> nn.Module:
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(i, classes))


def plain() -> nn.Module:
    """Convolutions of stride 1 and 2, tanh and sigmoid, two linear layers."""
    return nn.Sequential(
        *(nn.Conv2d(3, 6, 5, padding=2), nn.Tanh(), nn.Conv2d(6, 8, 3, stride=2, padding=1), nn.ReLU()),
        *(
            nn.Conv2d(8, 8, 3, dilation=2),
            nn.Sigmoid(),
            nn.Flatten(),
            nn.Linear(128, 16),
            nn.LeakyReLU(0.125),
            nn.Linear(16, 10),
        ),
    )


def residual() -> nn.Module:
    """CIFAR ResNet of option A: the shortcut takes every second pixel and pads channels."""

    def block(i: int, o: int, s: int) -> nn.Module:
        shortcut = Lambda(lambda x: F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, (o - i) // 2, (o - i) // 2)))
        body = nn.Sequential(conv(i, o, 3, s), conv(o, o, act=False))
        return Sum(body, shortcut if s == 2 else nn.Identity(), nn.ReLU())

    return nn.Sequential(conv(3, 8), block(8, 8, 1), block(8, 16, 2), block(16, 32, 2), head(32))


def depthwise() -> nn.Module:
    """MobileNet: expansion, depthwise convolution with ReLU6, projection, residual; a squeeze-and-excitation gate."""

    class Gate(nn.Module):
        def __init__(self, channels: int) -> None:
            super().__init__()
            self.gate = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(channels, channels, 1), nn.Sigmoid())

        def forward(self, x: Tensor) -> Tensor:
            return x * self.gate(x)

    def block(i: int, o: int, s: int, k: int = 3) -> nn.Module:
        wide = 3 * i
        body = nn.Sequential(
            *(nn.Conv2d(i, wide, 1), nn.ReLU6(), nn.Conv2d(wide, wide, k, s, k // 2, groups=wide), nn.ReLU6()),
            *(Gate(wide), nn.Conv2d(wide, o, 1)),
        )
        return Sum(body, nn.Identity(), nn.Identity()) if i == o and s == 1 else body

    layers = [nn.Conv2d(3, 8, 3, 2, 1), nn.SiLU(), block(8, 8, 1), block(8, 12, 2, 5), block(12, 12, 1), nn.SiLU()]
    return nn.Sequential(*layers, head(12))


def inception_block(i: int, w: int) -> nn.Module:
    return Branches(
        conv(i, w, 1),
        nn.Sequential(conv(i, w, 1), conv(w, w, (1, 7)), conv(w, w, (7, 1))),
        nn.Sequential(conv(i, w, 1), Branches(conv(w, w, (1, 3)), conv(w, w, (3, 1)))),
        nn.Sequential(nn.AvgPool2d(3, 1, 1), conv(i, w, 1)),
    )


def inception() -> nn.Module:
    """Branches, asymmetric kernels, average pooling that counts its padding, overlapping max pooling."""
    reduction = Branches(conv(20, 6, 3, 2, 0), nn.MaxPool2d(3, 2))
    return nn.Sequential(conv(3, 8, 3, 2, 0), nn.MaxPool2d(3, 2), inception_block(8, 4), reduction, head(26))


def dense() -> nn.Module:
    """DenseNet: BatchNormalization before ReLU, everything concatenated, a transition with average pooling."""

    class Layer(nn.Module):
        def __init__(self, i: int) -> None:
            super().__init__()
            self.body = nn.Sequential(nn.BatchNorm2d(i), nn.ReLU(), nn.Conv2d(i, 4, 3, padding=1, bias=False))

        def forward(self, x: Tensor) -> Tensor:
            return torch.cat([x, self.body(x)], 1)

    transition = nn.Sequential(nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 8, 1), nn.AvgPool2d(2, 2))
    first = nn.Sequential(conv(3, 8), nn.MaxPool2d(3, 2, 1))
    return nn.Sequential(first, Layer(8), Layer(12), transition, Layer(8), nn.BatchNorm2d(12), nn.ReLU(), head(12))


class Gelu(nn.Module):
    """x Φ(x) by the error function, with its constant in the net's own precision (exporters write it in float32)."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("slope", torch.tensor(0.5, dtype=torch.float64).sqrt())

    def forward(self, x: Tensor) -> Tensor:
        return 0.5 * x * (1 + torch.erf(x * self.slope))


class Transformer(nn.Module):
    """Patches, positions, attention, an MLP with GELU, LayerNormalization before each."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 12, 4, 4)
        self.place = nn.Parameter(torch.randn(1, 16, 12) / 4)
        self.norms = nn.ModuleList([nn.LayerNorm(12) for _ in range(3)])
        self.qkv, self.out = nn.Linear(12, 36), nn.Linear(12, 12)
        self.mlp = nn.Sequential(nn.Linear(12, 24), Gelu(), nn.Linear(24, 12))
        self.head = nn.Linear(12, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2) + self.place
        parts = self.qkv(self.norms[0](x)).chunk(3, -1)
        q, k, v = (part.reshape(-1, 16, 3, 4).transpose(1, 2) for part in parts)
        attention = torch.softmax(q @ k.transpose(-1, -2) * 0.5, -1) @ v
        x = x + self.out(attention.transpose(1, 2).reshape(-1, 16, 12))
        x = x + self.mlp(self.norms[1](x))
        return self.head(self.norms[2](x).mean(1))


def vgg() -> nn.Module:
    """Pairs of convolutions, 2x2 max pooling, linear layers with dropout."""

    def stage(i: int, o: int) -> list[nn.Module]:
        return [nn.Conv2d(i, o, 3, padding=1), nn.ReLU(), nn.Conv2d(o, o, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2, 2)]

    layers = [*stage(3, 6), *stage(6, 8), nn.Flatten(), nn.Linear(128, 24), nn.ReLU(), nn.Dropout(), nn.Linear(24, 10)]
    return nn.Sequential(*layers)


def squeeze() -> nn.Module:
    """Fire modules and overlapping max pooling with ceil_mode; the head is a convolution."""

    def fire(i: int, s: int, e: int) -> nn.Module:
        squeezed = nn.Sequential(nn.Conv2d(i, s, 1), nn.ReLU())
        wide = Branches(nn.Conv2d(s, e, 1), nn.Conv2d(s, e, 3, padding=1))
        return nn.Sequential(squeezed, wide, nn.ReLU())

    pool = nn.MaxPool2d(3, 2, ceil_mode=True)
    first = nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.ReLU(), nn.MaxPool2d(3, 2, ceil_mode=True))
    last = nn.Sequential(nn.Conv2d(16, 10, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return nn.Sequential(first, fire(8, 4, 6), pool, fire(12, 4, 8), last)


SMALL = {
    "plain": plain,
    "residual": residual,
    "depthwise": depthwise,
    "inception": inception,
    "dense": dense,
    "transformer": Transformer,
    "vgg": vgg,
    "squeeze": squeeze,
}


def resnet50() -> nn.Module:
    """All 53 convolutions of ResNet-50, at an eighth of the width."""

    def bottleneck(i: int, w: int, s: int) -> nn.Module:
        body = nn.Sequential(conv(i, w, 1), conv(w, w, 3, s), conv(w, 4 * w, 1, act=False))
        shortcut = conv(i, 4 * w, 1, s, act=False) if s != 1 or i != 4 * w else nn.Identity()
        return Sum(body, shortcut, nn.ReLU())

    layers: list[nn.Module] = [conv(3, 8, 7, 2), nn.MaxPool2d(3, 2, 1)]
    channels = 8
    for stage, count in enumerate([3, 4, 6, 3]):
        for block in range(count):
            width = 8 * 2**stage
            layers.append(bottleneck(channels, width, 2 if stage and not block else 1))
            channels = 4 * width
    return nn.Sequential(*layers, head(channels, 20))


def inception_v3() -> nn.Module:
    """The eleven mixed blocks of Inception v3, at an eighth of the width."""

    def a(i: int, pool: int) -> nn.Module:
        return Branches(
            conv(i, 8, 1),
            nn.Sequential(conv(i, 6, 1), conv(6, 8, 5)),
            nn.Sequential(conv(i, 8, 1), conv(8, 12), conv(12, 12)),
            nn.Sequential(nn.AvgPool2d(3, 1, 1), conv(i, pool, 1)),
        )

    def b(i: int) -> nn.Module:
        double = nn.Sequential(conv(i, 8, 1), conv(8, 12), conv(12, 12, 3, 2, 0))
        return Branches(conv(i, 48, 3, 2, 0), double, nn.MaxPool2d(3, 2))

    def c(i: int, w: int) -> nn.Module:
        long = [conv(i, w, 1), conv(w, w, (7, 1)), conv(w, w, (1, 7)), conv(w, w, (7, 1)), conv(w, 24, (1, 7))]
        return Branches(
            conv(i, 24, 1),
            nn.Sequential(conv(i, w, 1), conv(w, w, (1, 7)), conv(w, 24, (7, 1))),
            nn.Sequential(*long),
            nn.Sequential(nn.AvgPool2d(3, 1, 1), conv(i, 24, 1)),
        )

    def d(i: int) -> nn.Module:
        return Branches(
            nn.Sequential(conv(i, 24, 1), conv(24, 40, 3, 2, 0)),
            nn.Sequential(conv(i, 24, 1), conv(24, 24, (1, 7)), conv(24, 24, (7, 1)), conv(24, 24, 3, 2, 0)),
            nn.MaxPool2d(3, 2),
        )

    def e(i: int) -> nn.Module:
        def cross() -> nn.Module:
            return Branches(conv(48, 48, (1, 3)), conv(48, 48, (3, 1)))

        return Branches(
            conv(i, 40, 1),
            nn.Sequential(conv(i, 48, 1), cross()),
            nn.Sequential(conv(i, 56, 1), conv(56, 48), cross()),
            nn.Sequential(nn.AvgPool2d(3, 1, 1), conv(i, 24, 1)),
        )

    stem = [
        conv(3, 4, 3, 2, 0),
        conv(4, 4, 3, 1, 0),
        conv(4, 8),
        nn.MaxPool2d(3, 2),
        conv(8, 10, 1),
        conv(10, 24, 3, 1, 0),
    ]
    mixed = [a(24, 4), a(32, 8), a(36, 8), b(36), c(96, 16), c(96, 20), c(96, 20), c(96, 24), d(96), e(160), e(256)]
    return nn.Sequential(*stem, nn.MaxPool2d(3, 2), *mixed, head(256, 20))


def build(make, seed: int = 0) -> nn.Module:
    """A net in evaluation mode and float64, with weights and running statistics that keep its activations alive."""
    torch.manual_seed(seed)
    net = make().double().eval()
    for module in net.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight)
            if module.bias is not None:
                nn.init.normal_(module.bias, std=0.2)
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.7, 1.3)
            nn.init.normal_(module.bias, std=0.2)
            nn.init.normal_(module.running_mean, std=0.2)
            nn.init.uniform_(module.running_var, 0.7, 1.3)
    return net.requires_grad_(False)


def settle(net: nn.Module, x: Tensor) -> nn.Module:
    """Take the running statistics from a batch, as training would have: deep nets neither fade nor explode."""
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
    with torch.no_grad():
        net.train()(x)
    return net.eval()


def recorded(net: nn.Module, parts: Iterable[nn.Module], x: Tensor, value) -> list[tuple[nn.Module, Tensor]]:
    """Modules with what they gave at x, in the order in which they were called; `.grad` is that of value(logits)."""
    found = []

    def keep(part: nn.Module, _: object, out: Tensor) -> None:
        out.retain_grad()
        found.append((part, out))

    hooks = [part.register_forward_hook(keep) for part in parts]
    value(net(x)).backward()
    for hook in hooks:
        hook.remove()
    return found


def bias_of(part: nn.Module) -> Tensor | None:
    """The bias of a layer (C, 1, 1), that of a batch normalisation as y = s x + b; None without one."""
    bias = part.bias
    if isinstance(part, nn.BatchNorm2d):
        bias = bias - part.weight * part.running_mean / (part.running_var + part.eps).sqrt()
    return None if bias is None else bias.reshape(-1, 1, 1)


def biased(net: nn.Module) -> list[nn.Module]:
    """The layers of a net that lie on the picture and have a bias."""
    return [m for m in net.modules() if isinstance(m, nn.Conv2d | nn.BatchNorm2d) and bias_of(m) is not None]


def to_onnx(net: nn.Module, shape: Sequence[int], *, dynamo: bool = False, dtype=torch.float64) -> onnx.ModelProto:
    """Export with a symbolic batch: by tracing, or by torch.export."""
    x = torch.zeros(2, *shape, dtype=dtype)
    names = {"input_names": ["input"], "output_names": ["logits"]}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporters' own code
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
        if dynamo:
            free = ({0: torch.export.Dim("N")},)
            program = torch.onnx.export(
                net, (x,), dynamo=True, dynamic_shapes=free, opset_version=18, verbose=False, **names
            )
            return program.model_proto
        file = io.BytesIO()
        axes = {"input": {0: "N"}, "logits": {0: "N"}}
        torch.onnx.export(net, (x,), file, dynamo=False, dynamic_axes=axes, opset_version=17, **names)
    return onnx.load_from_string(file.getvalue())
