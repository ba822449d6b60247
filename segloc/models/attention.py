"""Selective dense attention (SDA), SDANet's module between the FPN and the heads.

Paper: "Towards Real-World Prohibited Item Detection" (Wang et al., ICCV 2021). Where its figure and the released code
differ, this follows the code: softmax over the levels in both attentions, layer norm and ReLU in the refinement.

Symbols: N images, C channels, L pyramid levels, H x W the size of the level being refined.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional as F

from segloc.models.norm import SplitBatchNorm2d
from segloc.models.recompute import recomputed
from segloc.settings.backbone import BOTTLENECK, SDA_NORMS


class ChannelAttention(nn.Module):
    """Selective channel attention: a weight per channel and level.

    The published norm is ``bn``; ``gn`` and ``ln`` do not depend on the batch. For `bn_images` see `SplitBatchNorm2d`.
    """

    def __init__(self, channels: int, levels: int, norm: str, bn_images: int = 0) -> None:
        super().__init__()
        hidden = channels // 2
        self.squeeze = nn.Sequential(
            nn.Conv2d(channels, hidden, 1, bias=False), _squeeze_norm(norm, hidden, bn_images), nn.ReLU(inplace=True)
        )
        self.expand = nn.ModuleList(nn.Conv2d(hidden, channels, 1) for _ in range(levels))

    def forward(self, mean: torch.Tensor) -> torch.Tensor:
        """Map the mean over the positions of the sum of the levels, [N, C, 1, 1], to weights [L, N, C, 1, 1].

        The weights sum to 1 over L.
        """
        squeezed = self.squeeze(mean)
        return torch.stack([expand(squeezed) for expand in self.expand]).softmax(0)


class SpatialAttention(nn.Module):
    """Selective spatial attention: a weight per position and level."""

    def __init__(self, levels: int) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(2, 1, 7, padding=3, bias=False) for _ in range(levels))

    def forward(self, pooled: torch.Tensor) -> torch.Tensor:
        """Map mean and maximum over the channels of the sum of the levels, [N, 2, H, W], to weights [L, N, 1, H, W].

        The weights sum to 1 over L.
        """
        return torch.stack([conv(pooled) for conv in self.convs]).softmax(0)


class DependencyRefinement(nn.Module):
    """Global-context block: add one vector, pooled from the whole map, to every position; initially the identity."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        hidden = channels // BOTTLENECK
        self.mask = nn.Conv2d(channels, 1, 1)
        last = nn.Conv2d(hidden, channels, 1)
        self.transform = nn.Sequential(
            nn.Conv2d(channels, hidden, 1), nn.LayerNorm([hidden, 1, 1]), nn.ReLU(inplace=True), last
        )
        nn.init.kaiming_normal_(self.mask.weight, mode="fan_in", nonlinearity="relu")
        for parameter in (self.mask.bias, last.weight, last.bias):
            if parameter is not None:
                nn.init.zeros_(parameter)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Refine x [N, C, H, W]."""
        weights = self.mask(x).flatten(2).softmax(2)  # [N, 1, H*W]
        context = torch.einsum("ncp,nop->nc", x.flatten(2), weights)  # o is the single mask channel
        return x + self.transform(context[:, :, None, None])


class LevelAttention(nn.Module):
    """SDA module of one pyramid level; `level` is its index in the list of maps.

    The backward pass recomputes everything of the size of a map from the inputs. The L rescaled maps and the L maps of
    weights of each level would be a quarter of the memory of a training step. Batch norm is not recomputed, so its
    running statistics are updated once.
    """

    def __init__(self, level: int, channels: int, levels: int, norm: str, bn_images: int = 0) -> None:
        super().__init__()
        self.level = level
        self.channel = ChannelAttention(channels, levels, norm, bn_images)
        self.spatial = SpatialAttention(levels)
        self.refine = DependencyRefinement(channels)

    def forward(self, maps: list[torch.Tensor]) -> torch.Tensor:
        """Refine ``maps[level]`` from all levels.

        Args:
            maps: L feature maps [N, C, H_l, W_l], finest first.

        Returns:
            [N, C, H, W], same size as ``maps[level]``.
        """
        mean, pooled = recomputed(self._summary, *maps)
        return recomputed(self._mix, self.channel(mean), self.spatial(pooled), *maps)

    def _rescaled(self, maps: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        size = maps[self.level].shape[-2:]
        return [_rescale(x, size, finer=i < self.level) for i, x in enumerate(maps)]

    def _summary(self, *maps: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return what the two attentions read of the sum of the levels: [N, C, 1, 1] and [N, 2, H, W]."""
        first, *others = self._rescaled(maps)
        total = sum(others, start=first)
        pooled = torch.cat([total.mean(1, keepdim=True), total.amax(1, keepdim=True)], 1)
        return total.mean((2, 3), keepdim=True), pooled

    def _mix(self, channel: torch.Tensor, spatial: torch.Tensor, *maps: torch.Tensor) -> torch.Tensor:
        # Both attentions are weighted sums of the same maps, so add their weights first.
        first, *others = ((c + s) * x for c, s, x in zip(channel, spatial, self._rescaled(maps), strict=True))
        return maps[self.level] + self.refine(sum(others, start=first))


class PyramidAttention(nn.Module):
    """One independent `LevelAttention` per level; all read the same unrefined maps.

    Args:
        channels: C.
        levels: L; SDANet has five, P2..P6.
        norm: ``bn`` (published), ``gn`` or ``ln``. ``bn`` is applied to 1x1 maps, so it sees N values per channel.
        bn_images: see `SplitBatchNorm2d`.
    """

    def __init__(self, channels: int = 256, levels: int = 5, norm: str = "bn", bn_images: int = 0) -> None:
        super().__init__()
        self.norm = norm
        self.levels = nn.ModuleList(LevelAttention(level, channels, levels, norm, bn_images) for level in range(levels))

    def forward(self, maps: list[torch.Tensor]) -> list[torch.Tensor]:
        """Refine every level; output shapes equal input shapes.

        Raises:
            ValueError: training on a single image with ``bn``, which has no variance.
        """
        if self.training and self.norm == "bn" and len(maps[0]) == 1:
            raise ValueError("sda_norm=bn needs at least two images per batch in training; use sda_norm=gn or ln")
        return [level(maps) for level in self.levels]


def _rescale(x: torch.Tensor, size: torch.Size, finer: bool) -> torch.Tensor:
    """Downsample a finer level by adaptive max pooling, or upsample a coarser one by nearest neighbour."""
    if x.shape[-2:] == size:
        return x
    return F.adaptive_max_pool2d(x, tuple(size)) if finer else F.interpolate(x, tuple(size), mode="nearest")


def _squeeze_norm(norm: str, channels: int, bn_images: int) -> nn.Module:
    if norm == "bn":
        return SplitBatchNorm2d(channels, bn_images)
    if norm == "gn":
        return nn.GroupNorm(channels // 4, channels)
    if norm == "ln":
        return nn.GroupNorm(1, channels)
    raise ValueError(f"sda_norm is {norm!r}, not one of {', '.join(SDA_NORMS)}")
