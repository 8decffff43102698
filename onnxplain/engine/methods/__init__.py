"""Attribution methods: one file a method, each the pseudocode of its paper; they ask, and never see a runtime."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from onnxplain.engine.methods.agi import AGI
from onnxplain.engine.methods.baselines import Baseline
from onnxplain.engine.methods.big import BIG, Attack
from onnxplain.engine.methods.blur_ig import BlurIG, Grid
from onnxplain.engine.methods.cam import GradCAM, HiResCAM, LayerCAM
from onnxplain.engine.methods.credible_path import Constraint, CrediblePath
from onnxplain.engine.methods.deeplift import DeepLift
from onnxplain.engine.methods.expected_gradients import ExpectedGradients
from onnxplain.engine.methods.fast_ig import FastIG, Zero
from onnxplain.engine.methods.fullgrad import FullGrad, Rescale
from onnxplain.engine.methods.gradient_x_input import GradientXInput
from onnxplain.engine.methods.guided_ig import Bound, GuidedIG
from onnxplain.engine.methods.integrated_gradients import IntegratedGradients
from onnxplain.engine.methods.isa import ISA, DeltaLoss
from onnxplain.engine.methods.kernel_shap import KernelSHAP
from onnxplain.engine.methods.lime import LIME, Distance, Draws, Regression
from onnxplain.engine.methods.method import Method, Task, forward_only
from onnxplain.engine.methods.occlusion import Occlusion
from onnxplain.engine.methods.options import configured, parameters, plain
from onnxplain.engine.methods.quadrature import Alphas, Rule
from onnxplain.engine.methods.rise import RISE
from onnxplain.engine.methods.saliency import Saliency
from onnxplain.engine.methods.score_cam import ScoreCAM, Weights
from onnxplain.engine.methods.smoothgrad import SmoothGrad, Statistic
from onnxplain.engine.methods.superpixels import Segments

__all__ = [
    "AGI",
    "BIG",
    "ISA",
    "LIME",
    "METHODS",
    "RISE",
    "Alphas",
    "Attack",
    "Baseline",
    "BlurIG",
    "Bound",
    "Constraint",
    "CrediblePath",
    "DeepLift",
    "DeltaLoss",
    "Distance",
    "Draws",
    "ExpectedGradients",
    "FastIG",
    "FullGrad",
    "GradCAM",
    "GradientXInput",
    "Grid",
    "GuidedIG",
    "HiResCAM",
    "IntegratedGradients",
    "KernelSHAP",
    "LayerCAM",
    "Method",
    "Occlusion",
    "Regression",
    "Rescale",
    "Rule",
    "Saliency",
    "ScoreCAM",
    "Segments",
    "SmoothGrad",
    "Statistic",
    "Task",
    "Weights",
    "Zero",
    "forward_only",
    "from_options",
    "to_dict",
]

# Every method and every preset, as it is without further words.
METHODS: dict[str, Method] = {
    method.id: method
    for method in (
        ISA(),
        ISA.repo(),
        ISA.table1(),
        CrediblePath(),
        AGI(),
        AGI.repo(),
        BIG(),
        BIG.reference(),
        BIG.isa(),
        IntegratedGradients(),
        IntegratedGradients.average(),
        IntegratedGradients.gaussian(),
        ExpectedGradients(),
        GuidedIG(),
        GuidedIG.isa(),
        FastIG(),
        FastIG.isa(),
        BlurIG(),
        Saliency(),
        Saliency.isa(),
        SmoothGrad(),
        SmoothGrad.squared(),
        SmoothGrad.variance(),
        SmoothGrad.pair(),
        SmoothGrad.captum(),
        GradientXInput(),
        DeepLift(),
        RISE(),
        RISE.repo(),
        Occlusion(),
        LIME(),
        LIME.repo(),
        KernelSHAP(),
        GradCAM(),
        LayerCAM(),
        HiResCAM(),
        ScoreCAM(),
        ScoreCAM.repo(),
        FullGrad(),
        FullGrad.repo(),
    )
}


def from_options(id: str, options: Mapping[str, str]) -> Method:
    """The method of this id with hyper-parameters given as text, `{"k": "2000", "objective": "ce"}`.

    Raises `UsageError` for an unknown method or parameter, naming the closest one and all of them, and for a value that
    the parameter does not take.
    """
    return configured("method", METHODS, id, options)


def to_dict(method: Method) -> dict[str, Any]:
    """The hyper-parameters of a method as JSON has them; choices by name, arrays by shape, dtype and SHA-256."""
    return {name: plain(value) for name, value in parameters(method).items()}
