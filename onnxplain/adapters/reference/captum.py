"""The methods that Captum has too, with the settings under which they mean the same."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from onnxplain.adapters.reference.net import Array, ReferenceNet

METHODS = ("ig", "saliency", "gradient-x-input")


def explain(net: ReferenceNet, id: str, x: Array, classes: Array, parameters: Mapping[str, Any]) -> Array:
    """The attributions of images by Captum, each of its class. Raises `KeyError` for a method that it has not."""
    import torch
    from captum.attr import InputXGradient, IntegratedGradients, Saliency

    images, target = net.tensor(x), torch.as_tensor(classes)
    if id == "ig":
        how = {"n_steps": parameters["steps"], "method": "riemann_middle", "internal_batch_size": net.batch}
        found = IntegratedGradients(net).attribute(images, baselines=0.0, target=target, **how)
    else:
        kind = {"saliency": Saliency, "gradient-x-input": InputXGradient}[id]
        rows = zip(torch.split(images, net.batch), torch.split(target, net.batch), strict=True)
        found = torch.cat([kind(net).attribute(part.requires_grad_(), target=theirs) for part, theirs in rows])
    return np.asarray(found.detach().numpy())
