"""Stand-in for machines without Detectron2: torchvision's Mask R-CNN on the same backbone.

Data, weights, RoI sizes and evaluation are the same. It has one box head instead of a cascade of three, and its anchors
have the same sizes but are centred on the corners of their cells.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import nn
from torchvision.models.detection._utils import BalancedPositiveNegativeSampler
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.mask_rcnn import MaskRCNN, MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.roi_heads import paste_masks_in_image
from torchvision.ops import MultiScaleRoIAlign
from torchvision.ops.poolers import LevelMapper

from segloc.common.masks import encode_mask
from segloc.detection.data import Example
from segloc.detection.detector import POOL_LEVELS, POOL_SCALES, SAMPLING_RATIO, Detections, Detector
from segloc.detection.sampling import ANCHORS, PROPOSALS, seed_next, seeds_of
from segloc.models.backbone import STRIDES, SegLocBackbone, pad_batch
from segloc.settings.finetuning import HeadSettings


class SeededSampler(BalancedPositiveNegativeSampler):
    """Samples each image with a seed of its own, see `segloc.detection.sampling`.

    Attributes:
        seeds: those of the images of the next batch.
    """

    seeds: Iterator[int] = iter(())

    def __call__(self, matched_idxs: list[torch.Tensor]) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """Sample the anchors or proposals of each image; see the base class."""
        positive: list[torch.Tensor] = []
        negative: list[torch.Tensor] = []
        for one in matched_idxs:
            seed_next(self.seeds)
            of_image = super().__call__([one])
            positive += of_image[0]
            negative += of_image[1]
        return positive, negative


class TorchvisionDetector(Detector):
    """Wraps torchvision's model without its transform; segloc scales, pads and normalises."""

    engine = "torchvision"

    @property
    def backbone(self) -> SegLocBackbone:
        """The detector's backbone."""
        return self.net.backbone

    @property
    def box_layers(self) -> list[tuple[nn.Linear, nn.Linear]]:
        """See `Detector.box_layers`."""
        head = self.net.roi_heads.box_head
        return [(head.fc6, head.fc7)]

    def forward(self, batch: Sequence[Example]) -> dict[str, torch.Tensor]:
        """See `Detector.forward`."""
        images = ImageList(*pad_batch([example.image for example in batch], self.device))
        targets = [
            {
                "boxes": example.boxes.to(self.device),
                "labels": example.classes.to(self.device) + 1,  # 0 is torchvision's background
                "masks": example.masks.to(self.device, torch.uint8),
            }
            for example in batch
        ]
        features = self.net.backbone(images.tensors)
        self.net.rpn.fg_bg_sampler.seeds = seeds_of(batch, ANCHORS)
        self.net.roi_heads.fg_bg_sampler.seeds = seeds_of(batch, PROPOSALS)
        proposals, losses = self.net.rpn(images, features, targets)
        _, head_losses = self.net.roi_heads(features, proposals, images.image_sizes, targets)
        return {**losses, **head_losses}

    @torch.no_grad()
    def predict(self, image: torch.Tensor, size: tuple[int, int]) -> Detections:
        """See `Detector.predict`."""
        images = ImageList(*pad_batch([image], self.device))
        features = self.net.backbone(images.tensors)
        proposals, _ = self.net.rpn(images, features)
        found, _ = self.net.roi_heads(features, proposals, images.image_sizes)
        boxes, scores, labels, masks = (found[0][key].cpu() for key in ("boxes", "scores", "labels", "masks"))
        height, width = images.image_sizes[0]
        boxes = boxes * torch.tensor([size[1] / width, size[0] / height] * 2)
        # One at a time: 100 full-size masks of a large scan would take gigabytes.
        pasted = (paste_masks_in_image(mask[None], box[None], size) for mask, box in zip(masks, boxes, strict=True))
        rles = [encode_mask(mask[0, 0].numpy() > 0.5) for mask in pasted]
        return Detections(boxes.numpy(), scores.numpy(), labels.numpy() - 1, rles)


def build(backbone: SegLocBackbone, heads: HeadSettings, num_classes: int) -> TorchvisionDetector:
    """Build the Mask R-CNN; torchvision counts the background as a class."""
    net = MaskRCNN(
        backbone,
        rpn_anchor_generator=AnchorGenerator(
            sizes=tuple((heads.anchor_scale * stride,) for stride in STRIDES),
            aspect_ratios=((0.5, 1.0, 2.0),) * len(STRIDES),
        ),
        rpn_batch_size_per_image=heads.rpn_batch,
        rpn_pre_nms_top_n_train=heads.train_proposals,
        rpn_pre_nms_top_n_test=heads.test_proposals,
        rpn_post_nms_top_n_train=heads.train_proposals,
        rpn_post_nms_top_n_test=heads.test_proposals,
        box_roi_pool=_pooler(7),
        box_head=TwoMLPHead(backbone.out_channels * 7 * 7, heads.fc_dim),
        box_predictor=FastRCNNPredictor(heads.fc_dim, num_classes + 1),
        box_batch_size_per_image=heads.roi_batch,
        box_score_thresh=heads.score_threshold,
        box_nms_thresh=heads.nms_threshold,
        box_detections_per_img=heads.detections,
        mask_roi_pool=_pooler(14),
        mask_head=MaskRCNNHeads(backbone.out_channels, [heads.mask_dim] * heads.mask_convs, 1),
        mask_predictor=MaskRCNNPredictor(heads.mask_dim, heads.mask_dim, num_classes + 1),
    )
    for part in (net.rpn, net.roi_heads):
        plain = part.fg_bg_sampler
        part.fg_bg_sampler = SeededSampler(plain.batch_size_per_image, plain.positive_fraction)
    # Initial mask logits near 0, as in Detectron2; with torchvision's default the mask loss is ten times the others.
    torch.nn.init.normal_(net.roi_heads.mask_predictor.mask_fcn_logits.weight, std=0.001)
    return TorchvisionDetector(net)


def _pooler(size: int) -> MultiScaleRoIAlign:
    pool = MultiScaleRoIAlign(list(POOL_LEVELS), size, SAMPLING_RATIO)
    # By default, torchvision infers the strides from the first image, wrongly if that image is narrow.
    pool.scales = POOL_SCALES
    pool.map_levels = LevelMapper(2, 5)
    return pool
