"""The settings of the stand-in, torchvision's Mask R-CNN, in the detector that a recipe builds."""

import numpy as np
import pytest
import torch
from torch import nn
from torchvision.models.detection.image_list import ImageList

from segloc.detection.detector import new_detector
from segloc.models.backbone import FPN_CHANNELS, LEVELS
from segloc.settings.finetuning import FinetuneConfig
from segloc.settings.loader import load
from tests.segloc.settings.recipes import RECIPES

CLASSES = [f"class {i}" for i in range(12)]


@pytest.fixture(scope="module")
def net():
    config = load(FinetuneConfig, RECIPES / "sdanet_r101_fair.yaml", ["model.backbone.arch=resnet18"])
    return new_detector(config.resolved(CLASSES, "torchvision").model).net


def proposals(rpn, training):
    rpn.train(training)
    return rpn.pre_nms_top_n(), rpn.post_nms_top_n()


def test_rpn(net):
    rpn = net.rpn
    convs = [(m.in_channels, m.out_channels, m.kernel_size) for m in rpn.head.modules() if isinstance(m, nn.Conv2d)]
    assert convs == [(FPN_CHANNELS, FPN_CHANNELS, (3, 3)), (FPN_CHANNELS, 3, (1, 1)), (FPN_CHANNELS, 12, (1, 1))]
    sampler, matcher = rpn.fg_bg_sampler, rpn.proposal_matcher
    assert (sampler.batch_size_per_image, sampler.positive_fraction, rpn.nms_thresh) == (256, 0.5, 0.7)
    assert (matcher.low_threshold, matcher.high_threshold, matcher.allow_low_quality_matches) == (0.3, 0.7, True)
    assert (proposals(rpn, True), proposals(rpn, False)) == ((2000, 2000), (1000, 1000))
    assert rpn.score_thresh == 0
    assert rpn.box_coder.weights == (1.0, 1.0, 1.0, 1.0)


def test_anchors(net):
    """Scale 8 on strides 4 to 64; ratios (height over width) .5, 1, 2 of one area, around the cell's corner."""
    strides = (4, 8, 16, 32, 64)
    images = ImageList(torch.zeros(1, 3, 128, 192), [(128, 192)])
    maps = [torch.zeros(1, FPN_CHANNELS, 128 // stride, 192 // stride) for stride in strides]
    expected = []
    for stride in strides:
        for y in range(0, 128, stride):
            for x in range(0, 192, stride):
                for ratio in (0.5, 1.0, 2.0):
                    centre, half = np.array([x, y]), np.round(np.array([ratio**-0.5, ratio**0.5]) * 8 * stride / 2)
                    expected.append([*(centre - half), *(centre + half)])
    assert np.array_equal(net.rpn.anchor_generator(images, maps)[0].numpy(), expected)


def test_box_head(net):
    heads = net.roi_heads
    layers = [(m.in_features, m.out_features) for m in heads.box_head.modules() if isinstance(m, nn.Linear)]
    assert layers == [(FPN_CHANNELS * 7 * 7, 1024), (1024, 1024)]
    predictor = heads.box_predictor
    assert (predictor.cls_score.out_features, predictor.bbox_pred.out_features) == (13, 4 * 13)
    sampler, matcher = heads.fg_bg_sampler, heads.proposal_matcher
    assert (sampler.batch_size_per_image, sampler.positive_fraction) == (512, 0.25)
    assert (matcher.low_threshold, matcher.high_threshold, matcher.allow_low_quality_matches) == (0.5, 0.5, False)
    assert heads.box_coder.weights == (10.0, 10.0, 5.0, 5.0)
    assert (heads.score_thresh, heads.nms_thresh, heads.detections_per_img) == (0.05, 0.5, 100)


def test_mask_head(net):
    convs = [m for m in net.roi_heads.mask_head.modules() if isinstance(m, nn.Conv2d)]
    shapes = [(conv.in_channels, conv.out_channels, conv.kernel_size) for conv in convs]
    assert shapes == [(FPN_CHANNELS, FPN_CHANNELS, (3, 3))] * 4
    logits = net.roi_heads.mask_predictor.mask_fcn_logits
    assert logits.weight.std().item() == pytest.approx(0.001, rel=0.1)
    with torch.no_grad():
        masks = net.roi_heads.mask_predictor(net.roi_heads.mask_head(torch.zeros(1, FPN_CHANNELS, 14, 14)))
    assert masks.shape == (1, 13, 28, 28)


@pytest.mark.parametrize(("name", "size"), [("box_roi_pool", 7), ("mask_roi_pool", 14)])
def test_poolers(net, name, size):
    pooler = getattr(net.roi_heads, name)
    assert (pooler.output_size, pooler.sampling_ratio) == ((size, size), 2)
    assert (pooler.featmap_names, pooler.scales) == (list(LEVELS[:4]), [1 / 4, 1 / 8, 1 / 16, 1 / 32])
    # Level of a box by its side, from P2 on: as in SDANet, P3 begins at 112 pixels.
    sides = torch.tensor([8.0, 111.0, 113.0, 223.0, 225.0, 447.0, 449.0, 5000.0])
    boxes = torch.stack([torch.zeros(8), torch.zeros(8), sides, sides], 1)
    assert pooler.map_levels([boxes]).tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
