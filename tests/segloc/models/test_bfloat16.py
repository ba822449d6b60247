"""Boxes keep their pixels when the network runs in bfloat16, which has no number between 402 and 404."""

import pytest
import torch
from torch.nn.functional import interpolate

from segloc.models.backbone import LEVELS, STRIDES, SegLocBackbone
from segloc.models.roi_head import pool_boxes

BOX = torch.tensor([[403.0, 5.0, 469.0, 61.0]])


def features_of(attention):
    torch.manual_seed(0)
    backbone = SegLocBackbone("resnet18", norm="gn", sda_norm="gn", attention=attention, fpn_channels=64).eval()
    # A smooth image, so that one pixel more or less is not lost in noise.
    image = interpolate(torch.rand(1, 3, 2, 16), (64, 512), mode="bilinear")
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        return backbone(image)


@pytest.mark.parametrize("attention", [True, False])
def test_pooling_does_not_round_boxes(attention):
    features = features_of(attention)
    expected = pool_boxes({name: x.double() for name, x in features.items()}, BOX.double(), sampling_ratio=2)
    with torch.autocast("cpu", torch.bfloat16):
        found = pool_boxes(features, BOX, sampling_ratio=2)
    assert torch.allclose(found.double(), expected, atol=1e-4)


@pytest.mark.parametrize("attention", [True, False])
def test_detectron2_pooler_does_not_round_boxes(attention):
    pytest.importorskip("detectron2", reason="needs Detectron2")
    from detectron2.modeling.poolers import ROIPooler
    from detectron2.structures import Boxes

    features = features_of(attention)
    pooler = ROIPooler(7, [1 / STRIDES[0]], sampling_ratio=2, pooler_type="ROIAlignV2")
    expected = pooler([features[LEVELS[0]].double()], [Boxes(BOX)])
    assert torch.allclose(pooler([features[LEVELS[0]]], [Boxes(BOX)]).double(), expected, atol=1e-4)
