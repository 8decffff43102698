"""The frameworks' classifiers, with random weights under which every layer matters."""

from __future__ import annotations

import math
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn

from bench.coverage.stubs import import_torchvision

SMALL = {"hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 128}
PATCHES = {**SMALL, "image_size": 64, "patch_size": 8}

# Architecture -> (the prefix of its classes in transformers, image size, what differs from the default configuration).
HUGGING_FACE: dict[str, tuple[str, int, dict[str, Any]]] = {
    "vit": ("ViT", 64, PATCHES),
    "deit": ("DeiT", 64, PATCHES),
    "beit": ("Beit", 64, {**PATCHES, "use_relative_position_bias": True, "layer_scale_init_value": 0.5}),
    "dinov2": ("Dinov2", 56, {**SMALL, "image_size": 56, "patch_size": 14, "layerscale_value": 0.5}),
    "swin": ("Swin", 64, {"image_size": 64, "embed_dim": 24, "depths": [2, 2], "num_heads": [2, 4], "window_size": 4}),
    "swinv2": (
        *("Swinv2", 64),
        {"image_size": 64, "embed_dim": 24, "depths": [2, 2], "num_heads": [2, 4], "window_size": 4},
    ),
    "convnext": ("ConvNext", 64, {"hidden_sizes": [16, 32, 48, 64], "depths": [1, 1, 2, 1]}),
    "convnextv2": ("ConvNextV2", 64, {"hidden_sizes": [16, 32, 48, 64], "depths": [1, 1, 2, 1]}),
    "resnet": ("ResNet", 64, {"embedding_size": 16, "hidden_sizes": [32, 48, 64, 96], "depths": [1, 2, 2, 1]}),
    "regnet": ("RegNet", 64, {"embedding_size": 16, "hidden_sizes": [32, 48, 64, 96], "depths": [1, 2, 2, 1]}),
    "mobilenet_v1": ("MobileNetV1", 64, {"depth_multiplier": 0.25}),
    "mobilenet_v2": ("MobileNetV2", 64, {"depth_multiplier": 0.35}),
    "mobilevit": ("MobileViT", 64, {"image_size": 64, "hidden_sizes": [48, 64, 80], "num_hidden_layers": 2}),
    "mobilevitv2": ("MobileViTV2", 64, {"image_size": 64, "width_multiplier": 0.5}),
    "efficientnet": ("EfficientNet", 64, {"image_size": 64, "width_coefficient": 0.35, "hidden_dim": 448}),
    "poolformer": ("PoolFormer", 64, {"hidden_sizes": [16, 32, 48, 64], "depths": [1, 1, 2, 1]}),
    "levit": ("Levit", 224, {"hidden_sizes": [64, 96, 128], "depths": [1, 1, 1]}),
    "cvt": ("Cvt", 64, {"embed_dim": [16, 48, 96], "num_heads": [1, 3, 6], "depth": [1, 2, 3]}),
    "pvt": (
        *("Pvt", 64),
        {"image_size": 64, "hidden_sizes": [16, 32, 64, 128], "num_attention_heads": [1, 2, 4, 8], "depths": [1] * 4},
    ),
    "segformer": ("Segformer", 64, {"hidden_sizes": [16, 32, 64, 96], "depths": [1, 1, 1, 1]}),
    "focalnet": ("FocalNet", 64, {"image_size": 64, "embed_dim": 24, "depths": [1, 1, 2, 1]}),
    "bit": ("Bit", 64, {"embedding_size": 16, "hidden_sizes": [32, 64, 96, 128], "depths": [1] * 4, "num_groups": 8}),
}  # fmt: skip

BATCH_NORM = nn.modules.batchnorm._BatchNorm
NORMS = (BATCH_NORM, nn.LayerNorm, nn.GroupNorm)
TORCHVISION_OPTIONS: dict[str, dict[str, Any]] = {
    "googlenet": {"init_weights": False},  # drawn anew below, and theirs takes a minute
    "inception_v3": {"init_weights": False},
}


class Logits(nn.Module):
    """A Hugging Face classifier as a function from images to logits."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return self.model(pixel_values=x).logits


def build(source: str, architecture: str, size: int, images: int = 4, seed: int = 0) -> nn.Module:
    """A float32 classifier in evaluation mode, with random weights that keep its activations alive.

    The statistics of BatchNormalization are those of as many random `images`.
    """
    torch.manual_seed(seed)
    import_torchvision()  # the others import it too
    if source == "torchvision":
        models = import_module("torchvision.models")
        net = models.get_model(architecture, weights=None, **TORCHVISION_OPTIONS.get(architecture, {}))
    elif source == "timm":
        net = import_module("timm").create_model(architecture, pretrained=False)
    else:
        prefix, _, options = HUGGING_FACE[architecture]
        transformers = import_module("transformers")
        config = getattr(transformers, f"{prefix}Config")(num_labels=10, attn_implementation="eager", **options)
        net = Logits(getattr(transformers, f"{prefix}ForImageClassification")(config))
    enliven(net)
    settle(net, torch.randn(images, 3, size, size))
    return net.eval().requires_grad_(False)


@torch.no_grad()
def enliven(net: nn.Module) -> None:
    """Draw weights that keep activations at their size from layer to layer.

    What frameworks start training from would hide layers: residual branches scaled by 1e-6, heads and last scales of
    zero, weights so small that a deep net's logits do not depend on its input. The biases of BatchNormalization keep
    most activations off the kink of ReLU: float32 rounds some to its other side, and a deep random net makes so much of
    that that PyTorch's own float32 gradient of a ResNet-50 is at a cosine of 0.9996 to its float64 gradient.
    """
    drawn = set()
    for module in net.modules():
        if isinstance(module, nn.Linear | nn.modules.conv._ConvNd):
            gain = 1.0 if isinstance(module, nn.Linear) else math.sqrt(2)
            nn.init.normal_(module.weight, std=gain / math.sqrt(module.weight[0].numel()))
        elif isinstance(module, NORMS) and module.weight is not None:
            nn.init.uniform_(module.weight, 0.7, 1.3)
            drawn.add(module.weight)
            if isinstance(module, BATCH_NORM) and module.bias is not None:
                nn.init.uniform_(module.bias, 1, 2).mul_(torch.randn_like(module.bias).sign())
                drawn.add(module.bias)
    for parameter in net.parameters():
        if parameter in drawn or parameter.numel() == 0 or (parameter != parameter.flatten()[0]).any():
            continue
        level = parameter.flatten()[0].item()
        if level == 0:
            parameter.normal_(std=0.2)
        else:
            parameter.uniform_(0.7, 1.3).mul_(math.copysign(max(abs(level), 0.5), level))


@torch.no_grad()
def settle(net: nn.Module, x: Tensor) -> None:
    """Take the running statistics of BatchNormalization from a batch, as training would have."""
    net.eval()
    for module in net.modules():
        if isinstance(module, BATCH_NORM):
            module.momentum = 1.0
            module.train()
    net(x)
