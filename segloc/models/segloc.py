"""The pretext model (paper section 4): query network, momentum key network, RoI embeddings on every level."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable

import torch
from torch import nn

from segloc.models.backbone import SegLocBackbone, normalize
from segloc.models.initial_weights import load_start
from segloc.models.roi_head import make_head, pool_boxes
from segloc.settings.pretraining import HeadConfig, ModelConfig
from segloc.training.processes import ALONE, Group

# Embeds uint8 images [N, 3, H, W] and their boxes [N, 4], given their places [N] in the step of all processes.
Embed = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


class Encoder(nn.Module):
    """Backbone and RoI head: map an image and the box of its item to one embedding per level."""

    def __init__(self, model: ModelConfig, head: HeadConfig) -> None:
        super().__init__()
        self.backbone = SegLocBackbone(
            model.arch, model.norm, model.sda_norm, model.attention, model.bn_images, model.fpn_channels
        )
        self.backbone.freeze(model.frozen)
        self.head = make_head(head, model)
        self.sampling_ratio = head.sampling_ratio

    def forward(self, images: torch.Tensor, boxes: torch.Tensor) -> torch.Tensor:
        """Embed the boxed items.

        Args:
            images: [N, 3, H, W] RGB in 0..255.
            boxes: [N, 4], x0 y0 x1 y1 in pixels, or [levels, N, 4], one box per level.

        Returns:
            [levels, N, dim] float32, unit length.
        """
        return self.head(pool_boxes(self.backbone(normalize(images)), boxes, self.sampling_ratio))


class SegLoc(nn.Module):
    """The query network, trained by gradients, and the key network, its exponential moving average.

    All parameters are averaged: backbone, FPN, attention and head. Buffers (running statistics of batch norm) are not,
    because in training both networks normalise by their own batch.

    Attributes:
        started_from: summary of the loaded initial weights.

    Raises:
        InputError: the initial weights cannot be read or do not match.
    """

    def __init__(self, model: ModelConfig, head: HeadConfig) -> None:
        super().__init__()
        self.query = Encoder(model, head)
        settings = dataclasses.asdict(model)
        self.started_from = load_start(self.query.backbone, model.init, settings, "model", self.query.head).summary
        self.key = copy.deepcopy(self.query).requires_grad_(False)
        self.has_batch_norm = any(isinstance(module, nn.BatchNorm2d) for module in self.query.modules())

    @torch.no_grad()
    def embed_keys(
        self,
        images: torch.Tensor,
        boxes: torch.Tensor,
        embed: Embed,
        most: int,
        generator: torch.Generator,
        group: Group = ALONE,
    ) -> torch.Tensor:
        """Embed the keys of a step with the key network: [levels, N, dim].

        Shuffle the images of all processes, and restore the order of the embeddings (shuffle-BN). A query and its key
        then do not share batch statistics, and these do not depend on `most` or on the number of processes if both give
        forward passes of whole parts (`SplitBatchNorm2d`). Without batch norm nothing is shuffled or sent.

        Args:
            images: [N, 3, H, W] uint8, of this process; N, H and W are equal in all processes.
            boxes: [N, 4], x0 y0 x1 y1 in pixels.
            embed: augments the images of a forward pass and embeds them with the key network: [levels, n, dim].
            most: images per forward pass.
            generator: on the CPU, in the same state in every process.
            group: the processes.
        """
        count, first = len(images), group.rank * len(images)
        mine = slice(first, first + count)
        if not self.has_batch_norm:
            return _in_turn(embed, most, images, boxes, torch.arange(first, first + count))
        order = torch.randperm(count * group.world, generator=generator)
        own = order[mine].to(images.device)
        images, boxes = (group.gather(x).flatten(0, 1)[own] for x in (images, boxes))
        keys = group.gather(_in_turn(embed, most, images, boxes, order[mine]))
        keys = keys.permute(1, 0, 2, 3).flatten(1, 2)  # [levels, all, dim], in shuffled order
        return keys[:, order.argsort()[mine].to(keys.device)]

    @torch.no_grad()
    def update_keys(self, momentum: float) -> None:
        """Move the key network towards the query network: key = m * key + (1 - m) * query."""
        for key, query in zip(self.key.parameters(), self.query.parameters(), strict=True):
            key.lerp_(query, 1 - momentum)


def _in_turn(embed: Embed, most: int, *inputs: torch.Tensor) -> torch.Tensor:
    """Embed at most `most` images at a time."""
    return torch.cat([embed(*turn) for turn in zip(*(x.split(most) for x in inputs), strict=True)], 1)
