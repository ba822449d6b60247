"""The pretrained and transferred backbone: ResNet, FPN and selective dense attention.

Pretraining, the Detectron2 detector and the torchvision detector use the same module, so one state dict loads in all
three (paper section 4.2, "backbone alignment").
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import nn
from torchvision.models import resnet
from torchvision.models._utils import IntermediateLayerGetter
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from segloc.models.attention import PyramidAttention
from segloc.models.norm import ResidualScale, norm_layer
from segloc.models.recompute import recomputed
from segloc.settings.backbone import ARCHS, BOTTLENECK, FPN_CHANNELS, MIN_CHANNELS

LEVELS = ("p2", "p3", "p4", "p5", "p6")
STRIDES = (4, 8, 16, 32, 64)

# (x - 127.5) / 127.5 for RGB in 0..255, as in SDANet's configuration. White, the empty belt, becomes 1.
PIXEL_MEAN = 127.5
PIXEL_STD = 127.5
WHITE = 255
MULTIPLE = 32  # the ResNet's coarsest stride; heights and widths of batches are multiples of it


class SegLocBackbone(nn.Module):
    """ResNet + FPN (P2..P6, no norm) + one attention module per level.

    Args:
        arch: ``resnet18``, ``resnet50`` or ``resnet101`` of torchvision, randomly initialised.
        norm: norm of the ResNet, ``bn``, ``gn`` or ``none``. The FPN has no norm, because SDANet's has none either.
        sda_norm: norm inside the channel attention, ``bn``, ``gn`` or ``ln``.
        attention: whether to add the attention; False gives a plain FPN.
        bn_images: images that ``bn`` normalises together in training, 0 for the whole batch (see `SplitBatchNorm2d`).
        fpn_channels: C, channels of every level, a multiple of 16 that is at least 64. SDANet uses 256; with a
            ResNet-18, FPN and attention of 256 channels cost more than the ResNet.

    Attributes:
        recompute: whether the backward pass recomputes the ResNet's blocks. Only their inputs are then kept.

    Raises:
        ValueError: unknown `arch`, `norm` or `sda_norm`, or invalid `fpn_channels`.
    """

    def __init__(
        self,
        arch: str = "resnet101",
        norm: str = "bn",
        sda_norm: str = "bn",
        attention: bool = True,
        bn_images: int = 0,
        fpn_channels: int = FPN_CHANNELS,
    ) -> None:
        super().__init__()
        if arch not in ARCHS:
            raise ValueError(f"arch is {arch!r}, not one of {', '.join(ARCHS)}")
        if fpn_channels < MIN_CHANNELS or fpn_channels % BOTTLENECK:
            least = f"a multiple of {BOTTLENECK} that is at least {MIN_CHANNELS}"
            raise ValueError(f"fpn_channels {fpn_channels} is not {least}")
        body = getattr(resnet, arch)(weights=None, norm_layer=norm_layer(norm, bn_images))
        if norm == "none":
            _scale_residuals(body)
        width = body.inplanes // 8
        self.body = IntermediateLayerGetter(body, {f"layer{i + 1}": LEVELS[i] for i in range(4)})
        self.fpn = FeaturePyramidNetwork(
            [width, 2 * width, 4 * width, 8 * width], fpn_channels, extra_blocks=LastLevelMaxPool()
        )
        self.attention = PyramidAttention(fpn_channels, len(LEVELS), sda_norm, bn_images) if attention else None
        self.out_channels = fpn_channels
        self.recompute = False
        # Tuples, so that the modules are not registered twice.
        self._frozen: tuple[nn.Module, ...] = ()
        self._evaluating: tuple[nn.Module, ...] = ()

    def freeze(self, stages: int, fixed_statistics: bool = False) -> None:
        """Freeze the first stages of the ResNet: no gradients, and batch norm uses its running statistics.

        The state dict does not change. FPN and attention are always trained, with batch statistics.

        Args:
            stages: 0 freezes nothing, 1 the stem and layer1, up to 4, the whole ResNet (SDANet's ``frozen_stages``;
                Detectron2's ``FREEZE_AT`` is one higher).
            fixed_statistics: whether batch norm uses its running statistics in the whole ResNet; its scales and shifts
                are still trained (SDANet's ``norm_eval``).
        """
        names = ("conv1", "bn1", *(f"layer{stage}" for stage in range(1, stages + 1))) if stages else ()
        self._frozen = tuple(self.body[name].requires_grad_(False) for name in names)
        norms = [part for part in self.body.modules() if isinstance(part, nn.BatchNorm2d)]
        self._evaluating = (*self._frozen, *(norms if fixed_statistics else ()))
        self.train(self.training)

    @property
    def frozen(self) -> set[str]:
        """Names of the frozen parameters."""
        kept = {id(parameter) for part in self._frozen for parameter in part.parameters()}
        return {name for name, parameter in self.named_parameters() if id(parameter) in kept}

    @property
    def evaluating(self) -> set[str]:
        """Names of the modules that `freeze` keeps in eval mode, where batch norm uses its running statistics."""
        kept = {id(module) for part in self._evaluating for module in part.modules()}
        return {name for name, module in self.named_modules() if id(module) in kept}

    def train(self, mode: bool = True) -> SegLocBackbone:
        """Set training or eval mode; frozen modules stay in eval mode."""
        super().train(mode)
        for part in self._evaluating:
            part.eval()
        return self

    def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        """Compute the feature pyramid.

        Args:
            images: [N, 3, H, W] float, RGB normalised by `normalize`; H and W multiples of 32.

        Returns:
            ``p2`` .. ``p6``, each [N, C, H / stride, W / stride] (rounded up for P6); see `in_float32`.
        """
        # The FPN names its extra level "pool", so name the levels by position.
        maps = list(self.fpn(self._stages(images)).values())
        if self.attention is not None:
            maps = self.attention(maps)
        return dict(zip(LEVELS, map(in_float32, maps), strict=True))

    def _stages(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return the outputs of the ResNet's four stages."""
        if not self.recompute:
            return self.body(x)  # type: ignore[no-any-return]
        outputs = {}
        for name, part in self.body.items():
            if name not in self.body.return_layers:
                x = part(x)
                continue
            for block in part:
                x = recomputed(block, x)
            outputs[self.body.return_layers[name]] = x
        return outputs

    @torch.no_grad()
    def features(self, scans: Sequence[np.ndarray]) -> dict[str, torch.Tensor]:
        """Compute the feature pyramid of scans of any size, without gradients.

        Args:
            scans: uint8 RGB [h, w, 3] each. They are padded to one size with white at the right and bottom.

        Returns:
            See `forward`.
        """
        # Copies, because torch takes no views with negative strides, such as flipped or BGR ones.
        images = [torch.from_numpy(scan.copy()).permute(2, 0, 1) for scan in scans]
        return self(pad_batch(images, next(self.parameters()).device)[0])  # type: ignore[no-any-return]


def in_float32(features: torch.Tensor) -> torch.Tensor:
    """Return maps of half precision as float32; RoIAlign rounds boxes to the dtype of the maps, so 403 became 404."""
    return features.float() if features.dtype in (torch.bfloat16, torch.float16) else features


def normalize(images: torch.Tensor) -> torch.Tensor:
    """Map RGB values in 0..255, of any dtype and shape, to floats in [-1, 1]."""
    if not images.is_floating_point():
        images = images.float()
    return (images - PIXEL_MEAN) / PIXEL_STD


def padded_size(*sizes: tuple[int, int]) -> tuple[int, int]:
    """Return the common padded size of images: the largest sides, rounded up to multiples of `MULTIPLE`."""
    first, second = (-(-max(sides) // MULTIPLE) * MULTIPLE for sides in zip(*sizes, strict=True))
    return first, second


def pad_batch(images: Sequence[torch.Tensor], device: torch.device) -> tuple[torch.Tensor, list[tuple[int, int]]]:
    """Pad images with white, the empty belt, into one batch, and normalise it.

    Detectron2 and torchvision pad with 0 after normalising; here that would be grey, which no scan contains.

    Args:
        images: [3, h, w] uint8 RGB each.
        device: device of the batch.

    Returns:
        [n, 3, H, W] float32, H and W multiples of `MULTIPLE`, and the (height, width) of each image in it.
    """
    sizes = [(image.shape[1], image.shape[2]) for image in images]
    batch = torch.full((len(images), 3, *padded_size(*sizes)), WHITE, dtype=torch.uint8)
    for padded, image, (h, w) in zip(batch, images, sizes, strict=True):
        padded[:, :h, :w] = image
    return normalize(batch.to(device)), sizes


def _scale_residuals(body: resnet.ResNet) -> None:
    """Replace the (absent) last norm of every residual branch by a learned scale, initially zero."""
    for module in body.modules():
        if isinstance(module, resnet.BasicBlock):
            module.bn2 = ResidualScale(module.conv2.out_channels)
        elif isinstance(module, resnet.Bottleneck):
            module.bn3 = ResidualScale(module.conv3.out_channels)
