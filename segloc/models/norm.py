"""Normalisation of the ResNet body and the RoI head: ``bn``, ``gn`` or ``none``.

The paper had to leave batch norm out of pretraining because it accumulates gradients (section 5.4). ``gn`` is the
alternative that needs no such sacrifice: a sample's result does not depend on the rest of its batch.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional as F

from segloc.settings.backbone import GROUPS, NORMS


class SplitBatchNorm2d(nn.BatchNorm2d):
    """Batch norm whose training statistics are taken over equal parts of the batch, as if each were on its own GPU.

    With the keys permuted before the forward pass and put back after, a query and its key never share statistics, so
    the pretext task cannot be solved by comparing them (MoCo's shuffle-BN, on one device).

    Args:
        num_features: channels C.
        splits: parts of the batch; a batch it does not divide is normalised as a whole.
        affine: whether a scale and a shift are learned.
    """

    running_mean: torch.Tensor
    running_var: torch.Tensor
    num_batches_tracked: torch.Tensor
    momentum: float

    def __init__(self, num_features: int, splits: int = 1, affine: bool = True) -> None:
        super().__init__(num_features, affine=affine)
        self.splits = splits

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Normalise x [N, C, H, W]; running statistics are the mean over the parts."""
        if not self.training or self.splits == 1 or len(x) % self.splits:
            return super().forward(x)
        parts, means, variances = [], [], []
        for part in x.chunk(self.splits):
            mean, variance = self.running_mean.clone(), self.running_var.clone()
            momentum, eps = self.momentum, self.eps
            parts.append(F.batch_norm(part, mean, variance, self.weight, self.bias, True, momentum, eps))
            means.append(mean)
            variances.append(variance)
        self.running_mean.copy_(torch.stack(means).mean(0))
        self.running_var.copy_(torch.stack(variances).mean(0))
        self.num_batches_tracked += 1
        return torch.cat(parts)


class ResidualScale(nn.Module):
    """Per-channel affine map at the end of a norm-free residual branch, starting at zero.

    Without normalisation each residual addition adds the branch's variance to the trunk's; 33 blocks of ResNet-101
    would blow the signal up. A branch that starts at zero keeps the depth harmless and is learned from there (SkipInit,
    De & Smith 2020). Its parameters carry the names of the batch norm it stands for.
    """

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(num_features))
        self.bias = nn.Parameter(torch.zeros(num_features))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Scale and shift x [N, C, H, W] per channel."""
        return x * self.weight[:, None, None] + self.bias[:, None, None]


def norm_layer(name: str, bn_splits: int = 1) -> Callable[[int], nn.Module]:
    """Return the constructor ``channels -> module`` of norm `name`.

    Raises:
        ValueError: `name` is none of `NORMS`.
    """
    if name == "bn":
        return lambda channels: SplitBatchNorm2d(channels, bn_splits)
    if name == "gn":
        return lambda channels: nn.GroupNorm(GROUPS, channels)
    if name == "none":
        return lambda channels: nn.Identity()
    raise ValueError(f"norm {name!r} is none of {', '.join(NORMS)}")
