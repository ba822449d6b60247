"""What pretraining and fine-tuning set alike: the backbone, and the numbers that its parts have in common."""

from __future__ import annotations

import dataclasses

from segloc.settings.fields import setting

ARCHS = ("resnet18", "resnet50", "resnet101")
NORMS = ("bn", "gn", "none")
SDA_NORMS = ("bn", "gn", "ln")
# The attention has a bottleneck that is narrower by this. Its layer norm would leave nothing of one channel, and little
# more than a sign of two.
BOTTLENECK = 16
MIN_CHANNELS = 4 * BOTTLENECK
FPN_CHANNELS = 256  # of SDANet, as of most pyramids
# Groups of group norm in the ResNet and the head (Wu & He 2018).
GROUPS = 32


@dataclasses.dataclass(frozen=True)
class BackboneSettings:
    """What is pretrained and transferred (`segloc.models.backbone.SegLocBackbone`)."""

    arch: str = setting("resnet101", "The ResNet.", choices=ARCHS)
    norm: str = setting("bn", "Norm of the ResNet and, in pretraining, of the RoI head.", choices=NORMS)
    sda_norm: str = setting("bn", "Norm inside the channel attention.", choices=SDA_NORMS)
    attention: bool = setting(True, "Whether the SDA modules are there.")
    bn_splits: int = setting(1, "Parts into which bn splits a training batch.", least=1)
    fpn_channels: int = setting(
        FPN_CHANNELS, "Channels of FPN and attention; SDANet has 256.", least=MIN_CHANNELS, multiple_of=BOTTLENECK
    )
