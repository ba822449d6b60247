"""Pool the pasted item's box from every level, and embed it with one head for all levels."""

from __future__ import annotations

import itertools
from collections import OrderedDict

import torch
from torch import nn
from torch.nn import functional as F

from segloc.models.backbone import LEVELS, STRIDES
from segloc.models.norm import SplitBatchNorm2d, norm_layer
from segloc.models.roi_align import roi_align
from segloc.settings.backbone import FPN_CHANNELS
from segloc.settings.pretraining import HeadConfig, ModelConfig

POOLED = 7


def pool_boxes(features: dict[str, torch.Tensor], boxes: torch.Tensor, sampling_ratio: int = 0) -> torch.Tensor:
    """RoIAlign one box per image from every level, for any box size (as in InsLoc).

    Args:
        features: ``p2`` .. ``p6``, each [N, C, H_l, W_l], float32 or float64 (see `in_float32`).
        boxes: [N, 4], x0 y0 x1 y1 in image pixels, or [levels, N, 4] for a different box per level.
        sampling_ratio: samples per bin and axis; 0 adapts to the box size.

    Returns:
        [levels, N, C, 7, 7].
    """
    image = torch.arange(boxes.shape[-2], device=boxes.device, dtype=boxes.dtype)[:, None]
    pooled = []
    for level, stride, own in zip(LEVELS, STRIDES, boxes.expand(len(LEVELS), -1, -1), strict=True):
        x = features[level]
        rois = torch.cat([image, own], 1).to(x.dtype)
        pooled.append(roi_align(x, rois, POOLED, 1 / stride, sampling_ratio))
    return torch.stack(pooled)


class RoIHead(nn.Module):
    """Base class of the heads, which map RoI features to embeddings of unit length."""

    def embed(self, pooled: torch.Tensor) -> torch.Tensor:
        """Map RoI features [N, C, 7, 7] to embeddings [N, dim] of any length."""
        raise NotImplementedError

    def forward(self, pooled: torch.Tensor) -> torch.Tensor:
        """Embed RoI features.

        Args:
            pooled: [levels, N, C, 7, 7].

        Returns:
            [levels, N, dim], unit length, float32.
        """
        # Embed each level separately, so that batch statistics cover one level.
        return F.normalize(torch.stack([self.embed(level) for level in pooled]).float(), dim=2)


class InsLocHead(RoIHead):
    """InsLoc's RoI head: convolutions, fully connected layers, an L2-normalised embedding.

    Args:
        convs: number of 3x3 convolutions.
        conv_dim: channels of the convolutions.
        fc_dim: width of the two hidden fully connected layers.
        dim: dimension of the embedding.
        norm: norm after each convolution, ``bn``, ``gn`` or ``none``.
        embedding_bn: standardise the embedding over each part of the batch, without learned parameters, before scaling
            it to unit length, as in MoCo v3 (InsLoc does not). It stops all embeddings from drifting away from the
            older keys in the queue, which would lower the loss without learning.
        bn_images: see `SplitBatchNorm2d`.
        channels: C, channels of the RoI features.
    """

    def __init__(
        self,
        convs: int = 4,
        conv_dim: int = 256,
        fc_dim: int = 1024,
        dim: int = 128,
        norm: str = "bn",
        embedding_bn: bool = False,
        bn_images: int = 0,
        channels: int = FPN_CHANNELS,
    ) -> None:
        super().__init__()
        make_norm = norm_layer(norm, bn_images)
        widths = [channels] + [conv_dim] * convs
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
            self.fcs.append(_standardise(dim, bn_images))

    def embed(self, pooled: torch.Tensor) -> torch.Tensor:
        """See `RoIHead.embed`."""
        return self.fcs(self.convs(pooled).flatten(1))


class BoxHead(RoIHead):
    """The two fully connected layers of the detector's box head, and a third for the embedding.

    ``box`` has the shapes and names of Detectron2's FastRCNNConvFCHead without convolutions, which is SDANet's box
    head, so `segloc.finetune` can initialise the detector's box heads from it. This needs the same `fc_dim` there.

    For the arguments see `InsLocHead`.
    """

    def __init__(
        self,
        fc_dim: int = 1024,
        dim: int = 128,
        embedding_bn: bool = False,
        bn_images: int = 0,
        channels: int = FPN_CHANNELS,
    ) -> None:
        super().__init__()
        fc1, fc2, last = nn.Linear(channels * POOLED**2, fc_dim), nn.Linear(fc_dim, fc_dim), nn.Linear(fc_dim, dim)
        for linear in (fc1, fc2, last):
            nn.init.xavier_uniform_(linear.weight)
            nn.init.zeros_(linear.bias)
        nn.init.normal_(last.weight, std=0.01)
        relus = nn.ReLU(inplace=True), nn.ReLU(inplace=True)
        self.box = nn.Sequential(
            OrderedDict(flatten=nn.Flatten(), fc1=fc1, fc_relu1=relus[0], fc2=fc2, fc_relu2=relus[1])
        )
        self.embedding = nn.Sequential(last, _standardise(dim, bn_images)) if embedding_bn else last

    def embed(self, pooled: torch.Tensor) -> torch.Tensor:
        """See `RoIHead.embed`."""
        return self.embedding(self.box(pooled))


def make_head(head: HeadConfig, model: ModelConfig) -> RoIHead:
    """Build the RoI head of the settings, with the model's norm, bn_images and channels."""
    more = head.embedding_bn, model.bn_images, model.fpn_channels
    if head.kind == "box2fc":
        return BoxHead(head.fc_dim, head.dim, *more)
    return InsLocHead(head.convs, head.conv_dim, head.fc_dim, head.dim, model.norm, *more)


def _standardise(dim: int, bn_images: int) -> nn.Module:
    """Return batch norm for vectors [N, dim], without learned parameters."""
    return nn.Sequential(nn.Unflatten(1, (dim, 1, 1)), SplitBatchNorm2d(dim, bn_images, affine=False), nn.Flatten())
