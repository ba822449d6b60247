"""Normalisation of the ResNet body and the RoI head: ``bn``, ``gn`` or ``none``.

The paper pretrains without batch norm because it accumulates gradients (section 5.4). Group norm works with gradient
accumulation, because a sample's result does not depend on the rest of its batch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import distributed, nn
from torch.nn import functional as F

from segloc.settings.backbone import GROUPS, NORMS

MOMENTUM = 0.1  # of running statistics, torch's default


class SplitBatchNorm2d(nn.BatchNorm2d):
    """Batch norm whose training statistics cover consecutive parts of the batch, as if each part were on its own GPU.

    Parts of a fixed number of images make the result independent of the size of the forward pass. Keys are shuffled
    before the forward pass and restored after it. A query and its key then do not share statistics, so the pretext task
    cannot be solved by comparing statistics (MoCo's shuffle-BN, on one device).

    Args:
        num_features: channels C.
        images: images per part; 0 for one part, the whole batch. If the batch is not a multiple, its last part is
            smaller. Each part updates the running statistics in turn. With `peers`, a part is all their forward passes.
        affine: whether to learn a scale and a shift.

    Attributes:
        updates: whether training updates the running statistics; False while `segloc.models.recompute` repeats a
            forward pass.
        peers: processes whose forward passes together are one part; None if a part lies within one process. Set by
            `share_statistics`.
    """

    updates = True
    peers: distributed.ProcessGroup | None = None

    running_mean: torch.Tensor
    running_var: torch.Tensor
    num_batches_tracked: torch.Tensor
    momentum: float

    def __init__(self, num_features: int, images: int = 0, affine: bool = True) -> None:
        super().__init__(num_features, affine=affine)
        self.images = images

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Normalise x [N, C, H, W]; in training, update the running statistics."""
        if not self.training:
            return super().forward(x)
        if self.peers is not None:
            return self._together(x, self.peers)
        mean, variance = self.running_mean, self.running_var
        if not self.updates:  # copies, because a repeated pass has to save as many tensors as the first
            mean, variance = mean.clone(), variance.clone()
        parts = [
            F.batch_norm(part, mean, variance, self.weight, self.bias, True, self.momentum, self.eps)
            for part in x.split(self.images or len(x))
        ]
        if self.updates:
            self.num_batches_tracked += len(parts)
        return torch.cat(parts) if len(parts) > 1 else parts[0]

    def _together(self, x: torch.Tensor, peers: distributed.ProcessGroup) -> torch.Tensor:
        """Normalise by the statistics over the images of several processes, whose maps may differ in size."""
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        variance, mean = torch.var_mean(wide, (0, 2, 3), correction=0)
        # In float64, because the variance is a difference of large numbers where the mean is large.
        own = torch.stack([mean, variance + mean.square(), torch.ones_like(mean)]).double()
        total, squares, values = _Sum.apply(own * (x.numel() // x.shape[1]), peers)
        mean = total / values
        variance = squares / values - mean.square()
        if self.updates:
            with torch.no_grad():
                self.running_mean.lerp_(mean.to(self.running_mean), self.momentum)
                unbiased = variance * values / (values - 1)
                self.running_var.lerp_(unbiased.to(self.running_var), self.momentum)
                self.num_batches_tracked += 1
        scale = (variance + self.eps).rsqrt()
        if self.affine:
            scale = scale * self.weight
        normed = (wide - mean.to(wide.dtype)[:, None, None]) * scale.to(wide.dtype)[:, None, None]
        return (normed + self.bias[:, None, None] if self.affine else normed).to(x.dtype)


class _Sum(torch.autograd.Function):
    """Sum of a tensor over processes. Its gradient is the sum of their gradients."""

    @staticmethod
    def forward(context: Any, x: torch.Tensor, peers: distributed.ProcessGroup) -> torch.Tensor:
        context.peers = peers
        total = x.clone()
        distributed.all_reduce(total, group=peers)
        return total

    @staticmethod
    def backward(context: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:  # type: ignore[override]
        total = gradient.clone()
        distributed.all_reduce(total, group=context.peers)
        return total, None


def share_statistics(network: nn.Module, peers: distributed.ProcessGroup) -> None:
    """Let all batch norms of a network compute their training statistics over several processes."""
    for part in network.modules():
        if isinstance(part, SplitBatchNorm2d):
            part.peers = peers


def average_over(network: nn.Module, images: int) -> None:
    """Let the running statistics move by `MOMENTUM` per `images`, whatever the size of the forward passes.

    Args:
        network: its `SplitBatchNorm2d` are changed.
        images: a multiple of the images per part.
    """
    for module in network.modules():
        if isinstance(module, SplitBatchNorm2d):
            module.momentum = 1 - (1 - MOMENTUM) ** ((module.images or images) / images)


class ResidualScale(nn.Module):
    """Per-channel affine map at the end of a norm-free residual branch, initially zero.

    Without normalisation, each residual addition adds the branch's variance to the trunk's, and the signal explodes
    over the 33 blocks of ResNet-101. Zero initialisation avoids this (SkipInit, De & Smith 2020). The parameters have
    the names of the batch norm that they replace.
    """

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(num_features))
        self.bias = nn.Parameter(torch.zeros(num_features))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Scale and shift x [N, C, H, W] per channel."""
        return x * self.weight[:, None, None] + self.bias[:, None, None]


def norm_layer(name: str, bn_images: int = 0) -> Callable[[int], nn.Module]:
    """Return the constructor ``channels -> module`` of norm `name`.

    Raises:
        ValueError: `name` is not in `NORMS`.
    """
    if name == "bn":
        return lambda channels: SplitBatchNorm2d(channels, bn_images)
    if name == "gn":
        return lambda channels: nn.GroupNorm(GROUPS, channels)
    if name == "none":
        return lambda channels: nn.Identity()
    raise ValueError(f"norm is {name!r}, not one of {', '.join(NORMS)}")
