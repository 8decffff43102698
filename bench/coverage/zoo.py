"""The classifiers of the table: where each comes from, and which exporter writes it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

LIGHT = (
    "bvlc_alexnet", "densenet121", "inception_v1", "inception_v2", "resnet50", "shufflenet", "squeezenet", "vgg19",
    "zfnet512",
)  # fmt: skip

TORCHVISION = (
    "vit_b_16", "swin_t", "maxvit_t", "resnet18", "resnet50", "efficientnet_b0", "inception_v3", "convnext_tiny",
    "swin_v2_t", "googlenet", "densenet121", "mobilenet_v2", "mobilenet_v3_small", "mobilenet_v3_large", "mnasnet0_5",
    "shufflenet_v2_x0_5", "squeezenet1_0", "squeezenet1_1", "regnet_x_400mf", "regnet_y_400mf", "efficientnet_v2_s",
    "resnext50_32x4d", "wide_resnet50_2", "alexnet", "vgg11", "vgg11_bn",
)  # fmt: skip

# Exported by tracing, unless listed under TIMM_DYNAMO. A trailing @ gives the image size where it is not 224.
TIMM = (
    "vit_tiny_patch16_224", "deit_tiny_distilled_patch16_224", "beit_base_patch16_224", "swin_tiny_patch4_window7_224",
    "maxvit_nano_rw_256@256", "convnext_atto", "convnextv2_atto", "mobilevit_xxs", "mobilevitv2_050",
    "efficientformer_l1", "efficientformerv2_s0", "hrnet_w18_small", "hiera_tiny_224", "levit_128s", "pit_ti_224",
    "coat_tiny", "coat_lite_tiny", "crossvit_9_240@240", "volo_d1_224", "poolformer_s12", "poolformerv2_s12",
    "mixer_s32_224", "gmlp_s16_224", "resmlp_12_224", "repvgg_a0", "ghostnet_050", "ghostnetv2_100", "eca_nfnet_l0",
    "nf_regnet_b0", "resnest14d", "seresnet18", "skresnet18", "res2net50_14w_8s", "dpn48b", "xception41",
    "tf_efficientnet_b0", "efficientnet_b0", "tf_efficientnet_lite0", "mobileone_s0", "fastvit_t8", "edgenext_xx_small",
    "cait_xxs24_224", "xcit_nano_12_p16_224", "tnt_s_patch16_224", "visformer_tiny", "sequencer2d_s", "davit_tiny",
    "focalnet_tiny_srf", "eva02_tiny_patch14_224", "convmixer_768_32@128", "twins_svt_small", "pvt_v2_b0", "nest_tiny",
    "mvitv2_tiny", "swinv2_tiny_window8_256@256", "regnety_002", "densenetblur121d", "dla46_c", "ese_vovnet19b_slim",
    "cs3darknet_s", "mobilenetv3_small_050", "mobilenetv4_conv_small_035", "lcnet_035", "mixnet_s", "rexnet_100",
    "tresnet_m", "inception_next_atto", "convit_tiny", "caformer_s18", "gcvit_xxtiny", "halonet26t",
    "botnet26t_256@256", "lambda_resnet26t", "coatnet_pico_rw_224", "repvit_m0_9", "efficientvit_b0", "efficientvit_m0",
    "tiny_vit_5m_224", "hgnetv2_b0", "vit_relpos_small_patch16_224", "mambaout_femto", "fasternet_t0", "resnetv2_18",
    "selecsls42b", "swiftformer_xs", "starnet_s1",
)  # fmt: skip

TIMM_DYNAMO = (
    "vit_tiny_patch16_224", "swin_tiny_patch4_window7_224", "maxvit_nano_rw_256@256", "convnext_atto", "mobilevit_xxs",
    "efficientformer_l1", "hrnet_w18_small", "hiera_tiny_224", "crossvit_9_240@240", "volo_d1_224", "eca_nfnet_l0",
    "tf_efficientnet_b0", "sequencer2d_s", "coat_tiny", "xcit_nano_12_p16_224",
)  # fmt: skip

HUGGING_FACE = (
    "vit", "deit", "beit", "dinov2", "swin", "swinv2", "convnext", "convnextv2", "resnet", "regnet", "mobilenet_v1",
    "mobilenet_v2", "mobilevit", "mobilevitv2", "efficientnet", "poolformer", "levit", "cvt", "pvt", "segformer",
    "focalnet", "bit",
)  # fmt: skip

SIZES = {"inception_v3": 299, "swin_v2_t": 256, "levit": 224, "dinov2": 56}


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One export of one architecture. `exporter` is torchscript, dynamo, or onnx for what comes as ONNX."""

    source: str
    architecture: str
    exporter: str
    size: int

    @property
    def name(self) -> str:
        """What files and rows are called by."""
        return f"{self.source}-{self.architecture}-{self.exporter}"


def entries() -> Iterator[Entry]:
    """All of them, in the order of the table."""
    for architecture in TORCHVISION:
        for exporter in ("torchscript", "dynamo"):
            yield entry("torchvision", architecture, exporter, 224)
    for architecture in TIMM:
        yield entry("timm", architecture, "torchscript", 224)
        if architecture in TIMM_DYNAMO:
            yield entry("timm", architecture, "dynamo", 224)
    for architecture in HUGGING_FACE:
        yield entry("huggingface", architecture, "dynamo", 64)
    for architecture in LIGHT:
        yield entry("light", architecture, "onnx", 224)


def entry(source: str, architecture: str, exporter: str, size: int) -> Entry:
    name, _, own = architecture.partition("@")
    return Entry(source=source, architecture=name, exporter=exporter, size=int(own or SIZES.get(name, size)))


ZOO = {e.name: e for e in entries()}
