"""SDANet's detector on Detectron2: a three-stage Cascade Mask R-CNN. With one stage, a Mask R-CNN.

All settings of SDANet's config are set here; `tests/segloc/detection/test_sdanet_settings.py` checks the built model.
Where SDANet's library and Detectron2 differ in code, this engine follows Detectron2:

* One mask head, trained on the proposals of the first stage. SDANet's library has one per stage and averages the masks.
* Proposals of later stages are not resampled.
* Anchors that cross the image border are trained on.
* RoIAlign has no half-pixel offset error.

Two differences are this project's own and apply to both engines. Batches are padded with white, the colour of the empty
belt; SDANet's library pads with grey. Images are downscaled by area averaging (INTER_AREA); that library interpolates.
"""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from detectron2.layers import ROIAlign, ShapeSpec
from detectron2.modeling import Backbone
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.matcher import Matcher
from detectron2.modeling.meta_arch import GeneralizedRCNN
from detectron2.modeling.poolers import ROIPooler
from detectron2.modeling.proposal_generator import RPN, StandardRPNHead
from detectron2.modeling.roi_heads import (
    CascadeROIHeads,
    FastRCNNConvFCHead,
    FastRCNNOutputLayers,
    MaskRCNNConvUpsampleHead,
    StandardROIHeads,
)
from detectron2.structures import BitMasks, Boxes, ImageList, Instances
from detectron2.utils.events import EventStorage, has_event_storage
from torch import nn

from segloc.common.masks import encode_mask
from segloc.detection.data import Example
from segloc.detection.detector import POOL_LEVELS, POOL_SCALES, SAMPLING_RATIO, Detections, Detector
from segloc.detection.sampling import ANCHORS, PROPOSALS, seed_next, seeds_of
from segloc.models.backbone import LEVELS, MULTIPLE, PIXEL_MEAN, PIXEL_STD, STRIDES, SegLocBackbone, pad_batch
from segloc.models.roi_align import roi_align
from segloc.settings.finetuning import HeadSettings

# For each stage: IoU from which a proposal counts as an item, weight of the losses, divisors of the regression targets
# of centre and size.
STAGES = ((0.5, 1.0, (0.1, 0.2)), (0.6, 0.5, (0.05, 0.1)), (0.7, 0.25, (0.033, 0.067)))
RPN_BETA = 1 / 9

# Detectron2's anchors and tracing check cause warnings in newer torch versions that do not matter here.
warnings.filterwarnings("ignore", message="torch.meshgrid", category=UserWarning)
logging.getLogger("torch.fx._symbolic_trace").setLevel(logging.ERROR)


class PyramidBackbone(Backbone):
    """A `SegLocBackbone` with Detectron2's backbone interface, for any Detectron2 model.

    Args:
        net: the backbone, not changed.
    """

    def __init__(self, net: SegLocBackbone) -> None:
        super().__init__()
        self.net = net
        self._out_features = list(LEVELS)
        self._out_feature_channels = dict.fromkeys(LEVELS, net.out_channels)
        self._out_feature_strides = dict(zip(LEVELS, STRIDES, strict=True))

    @property
    def size_divisibility(self) -> int:
        """Divisor of the input's height and width."""
        return MULTIPLE

    def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        """Compute the feature pyramid; see `SegLocBackbone.forward`."""
        return self.net(images)


class WhitePaddedRCNN(GeneralizedRCNN):
    """Detectron2's R-CNN with batches padded with white before normalisation."""

    def preprocess_image(self, batched_inputs: list[dict[str, torch.Tensor]]) -> ImageList:
        """Batch the inputs' ``image`` [3, h, w] uint8, normalised by the model's own mean and deviation."""
        images, sizes = pad_batch([x["image"] for x in batched_inputs], self.device)
        # 1 and 0, so without effect, unless a configuration has other values than SegLoc's.
        scale = PIXEL_STD / self.pixel_std
        shift = (PIXEL_MEAN - self.pixel_mean) / self.pixel_std
        return ImageList(images * scale + shift, sizes)


class SeededRPN(RPN):
    """Samples the anchors of each image with a seed of its own, see `segloc.detection.sampling`.

    Attributes:
        seeds: those of the images of the next batch.
        diverged: whether the last outputs were not finite, in training.
    """

    seeds: Iterator[int] = iter(())
    diverged = False

    def _subsample_labels(self, label: torch.Tensor) -> torch.Tensor:
        seed_next(self.seeds)
        return super()._subsample_labels(label)

    def forward(
        self, images: ImageList, features: dict[str, torch.Tensor], gt_instances: list[Instances] | None = None
    ) -> tuple[list[Instances], dict[str, torch.Tensor]]:
        """Compute proposals and losses; see the base class."""
        proposals, losses = super().forward(images, features, gt_instances)
        return proposals, {name: value * torch.nan for name, value in losses.items()} if self.diverged else losses

    def predict_proposals(
        self,
        anchors: list[Boxes],
        pred_objectness_logits: list[torch.Tensor],
        pred_anchor_deltas: list[torch.Tensor],
        image_sizes: list[tuple[int, int]],
    ) -> list[Instances]:
        """Find the proposals; see the base class.

        The base class raises when outputs are not finite. Here the pass goes on with losses that are not finite either,
        because other processes may wait for its end.
        """
        self.diverged = False
        try:
            return super().predict_proposals(anchors, pred_objectness_logits, pred_anchor_deltas, image_sizes)
        except FloatingPointError:
            self.diverged = True
            zeros = ([torch.zeros_like(x) for x in outputs] for outputs in (pred_objectness_logits, pred_anchor_deltas))
            return super().predict_proposals(anchors, *zeros, image_sizes)


class SeededHeads(StandardROIHeads):
    """Samples the proposals of each image with a seed of its own, like `SeededRPN`."""

    seeds: Iterator[int] = iter(())

    def _sample_proposals(
        self, matched_idxs: torch.Tensor, matched_labels: torch.Tensor, gt_classes: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        seed_next(self.seeds)
        return super()._sample_proposals(matched_idxs, matched_labels, gt_classes)


class WeightedCascade(CascadeROIHeads, SeededHeads):
    """Cascade heads balanced only by the loss weights of the stages, as in SDANet's library.

    Detectron2 also divides the gradient into the features by the number of stages. Together with the loss weights, the
    backbone would get a third of SDANet's gradient.
    """

    def _run_stage(self, features: list[torch.Tensor], proposals: list[Instances], stage: int) -> torch.Tensor:
        pooled = self.box_pooler(features, [x.proposal_boxes for x in proposals])
        return self.box_predictor[stage](self.box_head[stage](pooled))


class Detectron2Detector(Detector):
    """Wraps a Detectron2 model."""

    engine = "detectron2"

    @property
    def backbone(self) -> SegLocBackbone:
        """The detector's backbone."""
        return self.net.backbone.net

    @property
    def box_layers(self) -> list[tuple[nn.Linear, nn.Linear]]:
        """See `Detector.box_layers`."""
        heads = self.net.roi_heads.box_head
        cascade: list[Any] = list(heads) if isinstance(heads, nn.ModuleList) else [heads]
        return [(head.fc1, head.fc2) for head in cascade]

    def forward(self, batch: Sequence[Example]) -> dict[str, torch.Tensor]:
        """See `Detector.forward`."""
        inputs = []
        for one in batch:
            what = {"gt_boxes": Boxes(one.boxes), "gt_classes": one.classes, "gt_masks": BitMasks(one.masks)}
            inputs.append({"image": one.image, "instances": Instances(tuple(one.image.shape[1:]), **what)})
        self.net.proposal_generator.seeds = seeds_of(batch, ANCHORS)
        self.net.roi_heads.seeds = seeds_of(batch, PROPOSALS)
        # Detectron2's heads need an open event storage.
        with contextlib.nullcontext() if has_event_storage() else EventStorage():
            return self.net(inputs)

    @torch.no_grad()
    def predict(self, image: torch.Tensor, size: tuple[int, int]) -> Detections:
        """See `Detector.predict`."""
        found = self.net([{"image": image, "height": size[0], "width": size[1]}])[0]["instances"].to("cpu")
        masks = [encode_mask(mask) for mask in found.pred_masks.numpy()]
        return Detections(found.pred_boxes.tensor.numpy(), found.scores.numpy(), found.pred_classes.numpy(), masks)


def build(backbone: SegLocBackbone, heads: HeadSettings, num_classes: int) -> Detectron2Detector:
    """Build the detector on a `SegLocBackbone`."""
    return Detectron2Detector(rcnn(PyramidBackbone(backbone), heads, num_classes))


def rcnn(backbone: Backbone, heads: HeadSettings, num_classes: int) -> WhitePaddedRCNN:
    """Build the Cascade Mask R-CNN, or with one stage the Mask R-CNN, on any backbone with levels p2 to p6."""
    channels = backbone.output_shape()[LEVELS[0]].channels
    return WhitePaddedRCNN(
        backbone=backbone,
        proposal_generator=_rpn(heads, channels),
        roi_heads=_roi_heads(heads, channels, num_classes),
        pixel_mean=[PIXEL_MEAN] * 3,
        pixel_std=[PIXEL_STD] * 3,
        input_format="RGB",
    )


def _rpn(heads: HeadSettings, channels: int) -> RPN:
    return SeededRPN(
        in_features=list(LEVELS),
        head=StandardRPNHead(in_channels=channels, num_anchors=3),
        anchor_generator=DefaultAnchorGenerator(
            sizes=[[heads.anchor_scale * stride] for stride in STRIDES],
            aspect_ratios=[0.5, 1.0, 2.0],
            strides=list(STRIDES),
            offset=0.5,  # anchors on the cell's centre, as in SDANet's library; Detectron2's models use the corner
        ),
        anchor_matcher=Matcher([0.3, 0.7], [0, -1, 1], allow_low_quality_matches=True),
        box2box_transform=Box2BoxTransform(weights=(1.0, 1.0, 1.0, 1.0)),
        batch_size_per_image=heads.rpn_batch,
        positive_fraction=0.5,
        pre_nms_topk=(heads.train_proposals, heads.test_proposals),
        post_nms_topk=(heads.train_proposals, heads.test_proposals),
        nms_thresh=0.7,
        smooth_l1_beta=RPN_BETA,
    )


def _roi_heads(heads: HeadSettings, channels: int, num_classes: int) -> StandardROIHeads:
    shared: dict[str, Any] = {
        "num_classes": num_classes,
        "batch_size_per_image": heads.roi_batch,
        "positive_fraction": 0.25,
        "box_in_features": list(POOL_LEVELS),
        "box_pooler": _pooler(7),
        "mask_in_features": list(POOL_LEVELS),
        "mask_pooler": _pooler(14),
        "mask_head": MaskRCNNConvUpsampleHead(
            ShapeSpec(channels=channels, width=14, height=14),
            num_classes=num_classes,
            conv_dims=[heads.mask_dim] * (heads.mask_convs + 1),  # the last one is for the upsampling layer
        ),
    }
    stages = STAGES[: heads.stages]
    matchers = [Matcher([iou], [0, 1], allow_low_quality_matches=False) for iou, _, _ in stages]
    pooled = ShapeSpec(channels=channels, height=7, width=7)
    box_heads = [FastRCNNConvFCHead(pooled, conv_dims=[], fc_dims=[heads.fc_dim] * 2) for _ in stages]
    # As in SDANet's library and Detectron2, a cascade regresses one box for all classes, a single head one per class.
    agnostic = len(stages) > 1
    predictors = [_box_predictor(heads, num_classes, agnostic, weight, std) for _, weight, std in stages]
    if agnostic:
        return WeightedCascade(box_heads=box_heads, box_predictors=predictors, proposal_matchers=matchers, **shared)
    return SeededHeads(box_head=box_heads[0], box_predictor=predictors[0], proposal_matcher=matchers[0], **shared)


class FastROIAlign(ROIAlign):  # type: ignore[misc]
    """Detectron2's layer with `segloc.models.roi_align`."""

    def forward(self, x: torch.Tensor, rois: torch.Tensor) -> torch.Tensor:
        """Pool boxes; see `roi_align`."""
        return roi_align(x, rois, self.output_size[0], self.spatial_scale, self.sampling_ratio)


def _pooler(size: int) -> ROIPooler:
    pooler = ROIPooler(size, POOL_SCALES, SAMPLING_RATIO, "ROIAlignV2")
    layers = (FastROIAlign((size, size), scale, SAMPLING_RATIO, aligned=True) for scale in POOL_SCALES)
    pooler.level_poolers = nn.ModuleList(layers)
    return pooler


def _box_predictor(
    heads: HeadSettings, num_classes: int, agnostic: bool, weight: float, std: tuple[float, float]
) -> FastRCNNOutputLayers:
    centre, size = (1 / value for value in std)
    return FastRCNNOutputLayers(
        ShapeSpec(channels=heads.fc_dim),
        box2box_transform=Box2BoxTransform(weights=(centre, centre, size, size)),
        num_classes=num_classes,
        test_score_thresh=heads.score_threshold,
        test_nms_thresh=heads.nms_threshold,
        test_topk_per_image=heads.detections,
        cls_agnostic_bbox_reg=agnostic,
        smooth_l1_beta=heads.smooth_l1_beta,
        loss_weight=weight,
    )
