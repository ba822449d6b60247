"""RoI features and their embedding: the pasted item's box is pooled from every level, one head serves all levels."""

from __future__ import annotations

import itertools

import torch
from torch import nn
from torch.nn import functional as F
from torchvision.ops import roi_align

from segloc.models.backbone import CHANNELS, LEVELS, STRIDES
from segloc.models.norm import SplitBatchNorm2d, norm_layer

POOLED = 7


def pool_boxes(features: dict[str, torch.Tensor], boxes: torch.Tensor, sampling_ratio: int = 0) -> torch.Tensor:
    """RoIAlign one box per image from every level, however small it is there (InsLoc does the same).

    Args:
        features: ``p2`` .. ``p6``, each [N, C, H_l, W_l].
        boxes: [N, 4], x0 y0 x1 y1 in image pixels.
        sampling_ratio: samples per bin and axis; 0 adapts to the box's size.

    Returns:
        [levels, N, C, 7, 7].
    """
    image = torch.arange(len(boxes), device=boxes.device, dtype=boxes.dtype)
    rois = torch.cat([image[:, None], boxes], 1)
    pooled = []
    for level, stride in zip(LEVELS, STRIDES, strict=True):
        x = features[level]
        pooled.append(roi_align(x, rois.to(x.dtype), POOLED, 1 / stride, sampling_ratio or -1, aligned=True))
    return torch.stack(pooled)


class InsLocHead(nn.Module):
    """InsLoc's RoI head: convolutions, fully connected layers, an L2-normalised embedding.

    Args:
        convs: number of 3x3 convolutions.
        conv_dim: their channels.
        fc_dim: width of the two hidden fully connected layers.
        dim: size of the embedding.
        norm: norm after each convolution, ``bn``, ``gn`` or ``none``.
        embedding_bn: standardise the embedding over the batch, with nothing learned, before it gets unit length, as
            MoCo v3 does. InsLoc does not. All embeddings can then not drift away together from the older keys in the
            queue, a shortcut that brings the loss down without learning anything.
        bn_splits: see `SplitBatchNorm2d`.
    """

    def __init__(
        self,
        convs: int = 4,
        conv_dim: int = 256,
        fc_dim: int = 1024,
        dim: int = 128,
        norm: str = "bn",
        embedding_bn: bool = False,
        bn_splits: int = 1,
    ) -> None:
        super().__init__()
        make_norm = norm_layer(norm, bn_splits)
        widths = [CHANNELS] + [conv_dim] * convs
        layers: list[nn.Module] = []
        for before, after in itertools.pairwise(widths):
            conv = nn.Conv2d(before, after, 3, padding=1, bias=norm == "none")
            nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
            layers += [conv, make_norm(after), nn.ReLU(inplace=True)]
        self.convs = nn.Sequential(*layers)
        self.fcs = nn.Sequential()
        for before, after in ((widths[-1] * POOLED**2, fc_dim), (fc_dim, fc_dim), (fc_dim, dim)):
            linear = nn.Linear(before, after)
            nn.init.xavier_uniform_(linear.weight)
            nn.init.zeros_(linear.bias)
            self.fcs.append(linear)
            self.fcs.append(nn.ReLU(inplace=True))
        del self.fcs[-1]  # the embedding has no ReLU
        nn.init.normal_(linear.weight, std=0.01)
        if embedding_bn:
            standardise = SplitBatchNorm2d(dim, bn_splits, affine=False)
            self.fcs.append(nn.Sequential(nn.Unflatten(1, (dim, 1, 1)), standardise, nn.Flatten()))

    def forward(self, pooled: torch.Tensor) -> torch.Tensor:
        """Embed RoI features.

        Args:
            pooled: [levels, N, C, 7, 7].

        Returns:
            [levels, N, dim], unit length, float32.
        """
        # Level by level, so that batch statistics are taken over images, not over levels.
        embedded = [self.fcs(self.convs(level).flatten(1)) for level in pooled]
        return F.normalize(torch.stack(embedded).float(), dim=2)
