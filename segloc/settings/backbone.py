"""Backbone settings shared by pretraining and fine-tuning, and constants shared by its modules."""

from __future__ import annotations

import dataclasses

from segloc.settings.fields import MAX_BATCH, MAX_CHANNELS, setting

ARCHS = ("resnet18", "resnet50", "resnet101")
NORMS = ("bn", "gn", "none")
SDA_NORMS = ("bn", "gn", "ln")
# Reduction factor of the attention's bottleneck. Layer norm over one channel gives 0, over two little more than a sign,
# so the bottleneck keeps at least four channels.
BOTTLENECK = 16
MIN_CHANNELS = 4 * BOTTLENECK
PRECISIONS = ("auto", "float32", "bfloat16")  # see `segloc.training.precision`
FPN_CHANNELS = 256  # SDANet's value, and the usual one
# Groups of group norm in the ResNet and the head (Wu & He 2018).
GROUPS = 32


@dataclasses.dataclass(frozen=True)
class BackboneSettings:
    """The backbone, which is pretrained and transferred (`segloc.models.backbone.SegLocBackbone`)."""

    arch: str = setting("resnet101", "ResNet architecture.", choices=ARCHS)
    norm: str = setting("bn", "Norm layer of the ResNet and, in pretraining, of the RoI head.", choices=NORMS)
    sda_norm: str = setting("bn", "Norm layer inside the channel attention.", choices=SDA_NORMS)
    attention: bool = setting(True, "Add the SDA modules after the FPN.")
    bn_images: int = setting(
        0,
        "Images that bn normalises together in training: a forward pass is normalised in consecutive parts of this "
        "many; 0 uses all its images.",
        least=0,
        most=MAX_BATCH,
    )
    fpn_channels: int = setting(
        FPN_CHANNELS,
        "Channels of FPN and attention; SDANet uses 256.",
        least=MIN_CHANNELS,
        most=MAX_CHANNELS,
        multiple_of=BOTTLENECK,
    )
