"""The detector of the recipes has the settings of SDANet's released config (Wang et al., ICCV 2021)."""

import dataclasses

import numpy as np
import pytest
import torch
from torch import nn

from segloc.detection.detector import new_detector
from segloc.models.backbone import FPN_CHANNELS, LEVELS
from segloc.settings.finetuning import FinetuneConfig
from segloc.settings.loader import load
from segloc.training.schedules import step_schedule
from tests.segloc.settings.recipes import RECIPES

pytest.importorskip("detectron2", reason="the Cascade Mask R-CNN needs Detectron2")

CLASSES = [f"class {i}" for i in range(12)]
OURS = ("sdanet_r101_published", "sdanet_r101_fair", "cascade_r101", "mask_rcnn_r101")


def read(name, *overrides):
    return load(FinetuneConfig, RECIPES / f"{name}.yaml", overrides).resolved(CLASSES, "detectron2")


def build(name):
    """The detector of a recipe, with 18 layers instead of 101 to save seconds."""
    return new_detector(read(name, "model.backbone.arch=resnet18").model)


@pytest.fixture(scope="module")
def net():
    return build("sdanet_r101_published").net


def test_rpn(net):
    rpn = net.proposal_generator
    assert rpn.in_features == list(LEVELS)
    conv = rpn.rpn_head.conv
    assert (conv.in_channels, conv.out_channels, conv.kernel_size) == (FPN_CHANNELS, FPN_CHANNELS, (3, 3))
    assert (rpn.batch_size_per_image, rpn.positive_fraction, rpn.nms_thresh) == (256, 0.5, 0.7)
    assert rpn.anchor_matcher.thresholds[1:-1] == [0.3, 0.7]
    assert (rpn.anchor_matcher.labels, rpn.anchor_matcher.allow_low_quality_matches) == ([0, -1, 1], True)
    assert rpn.pre_nms_topk == rpn.post_nms_topk == {True: 2000, False: 1000}
    assert rpn.min_box_size == 0
    assert rpn.loss_weight == {"loss_rpn_cls": 1.0, "loss_rpn_loc": 1.0}
    assert (rpn.box_reg_loss_type, rpn.smooth_l1_beta) == ("smooth_l1", pytest.approx(1 / 9))
    assert rpn.box2box_transform.weights == (1.0, 1.0, 1.0, 1.0)


def test_anchors(net):
    """Scale 8 on strides 4 to 64; ratios (height over width) .5, 1, 2 of one area, around the cell's centre."""
    maps = [torch.zeros(1, FPN_CHANNELS, 2, 3) for _ in LEVELS]
    for stride, boxes in zip((4, 8, 16, 32, 64), net.proposal_generator.anchor_generator(maps), strict=True):
        expected = []
        for y in range(2):
            for x in range(3):
                centre = np.array([(x + 0.5) * stride, (y + 0.5) * stride])
                for ratio in (0.5, 1.0, 2.0):
                    half = np.array([ratio**-0.5, ratio**0.5]) * 8 * stride / 2
                    expected.append([*(centre - half), *(centre + half)])
        assert np.allclose(boxes.tensor.numpy(), expected, rtol=1e-5)


def test_box_heads(net):
    heads = net.roi_heads
    assert (heads.num_classes, heads.num_cascade_stages, heads.box_in_features) == (12, 3, list(LEVELS[:4]))
    assert (heads.batch_size_per_image, heads.positive_fraction, heads.proposal_append_gt) == (512, 0.25, True)
    assert [m.thresholds[1:-1] for m in heads.proposal_matchers] == [[0.5], [0.6], [0.7]]
    assert all(m.labels == [0, 1] and not m.allow_low_quality_matches for m in heads.proposal_matchers)
    weights = [{"loss_cls": weight, "loss_box_reg": weight} for weight in (1.0, 0.5, 0.25)]
    assert [p.loss_weight for p in heads.box_predictor] == weights
    stds = [[1 / w for w in p.box2box_transform.weights] for p in heads.box_predictor]
    assert np.allclose(stds, [[0.1, 0.1, 0.2, 0.2], [0.05, 0.05, 0.1, 0.1], [0.033, 0.033, 0.067, 0.067]])
    for head, predictor in zip(heads.box_head, heads.box_predictor, strict=True):
        layers = [(m.in_features, m.out_features) for m in head.modules() if isinstance(m, nn.Linear)]
        assert layers == [(FPN_CHANNELS * 7 * 7, 1024), (1024, 1024)]
        assert not [m for m in head.modules() if isinstance(m, nn.Conv2d)]
        assert predictor.cls_score.out_features == 13  # with the background
        assert predictor.bbox_pred.out_features == 4  # one box for all classes
        assert (predictor.box_reg_loss_type, predictor.smooth_l1_beta) == ("smooth_l1", 1.0)
        assert (predictor.test_score_thresh, predictor.test_nms_thresh) == (0.05, 0.5)
        assert predictor.test_topk_per_image == 100


def test_mask_head(net):
    head = net.roi_heads.mask_head
    convs = [m for m in head.children() if isinstance(m, nn.Conv2d)]
    shapes = [(conv.in_channels, conv.out_channels, conv.kernel_size) for conv in convs]
    assert shapes == [(FPN_CHANNELS, FPN_CHANNELS, (3, 3))] * 4 + [(FPN_CHANNELS, 12, (1, 1))]
    with torch.no_grad():
        logits = head.layers(torch.zeros(1, FPN_CHANNELS, 14, 14))
    assert logits.shape == (1, 12, 28, 28)  # a mask for each class


def test_poolers(net):
    for pooler, size in ((net.roi_heads.box_pooler, 7), (net.roi_heads.mask_pooler, 14)):
        found = [(p.output_size, p.spatial_scale, p.sampling_ratio) for p in pooler.level_poolers]
        assert found == [((size, size), 1 / stride, 2) for stride in (4, 8, 16, 32)]
        # Level of a box by its side: from 112 pixels on it is P3, SDANet's finest scale being 56.
        assert (pooler.canonical_box_size, pooler.canonical_level, pooler.min_level) == (224, 4, 2)


def test_pixels(net):
    image = torch.tensor([0, 51, 255], dtype=torch.uint8)[:, None, None].expand(3, 32, 32)
    seen = net.preprocess_image([{"image": image}]).tensor
    assert seen[0, :, 0, 0].tolist() == pytest.approx([-1.0, -0.6, 1.0])  # mean = std = 127.5, RGB


@pytest.mark.parametrize("name", OURS)
def test_training(name):
    config = read(name)
    data, optim, train = config.data, config.optim, config.train
    assert (config.model.backbone.arch, data.image_size, data.flip) == ("resnet101", 500, 0.5)
    assert (optim.method, optim.momentum, optim.weight_decay, optim.clip) == ("sgd", 0.9, 1e-4, 35.0)
    batch = 2 if name == "sdanet_r101_published" else 16
    assert (optim.batch, optim.lr, train.epochs) == (batch, pytest.approx(0.02 * batch / 16), 12.0)  # scaled linearly
    steps = train.steps(29_457, optim.batch)
    assert steps == round(12 * 29_457 / batch)
    rates = step_schedule(optim.lr, steps, optim.warmup, optim.warmup_start, optim.milestones, optim.gamma)
    epoch = 29_457 / batch
    marks = [0, 250, 500, int(8 * epoch) - 1, int(8 * epoch) + 1, int(11 * epoch) - 1, int(11 * epoch) + 1]
    assert rates[marks] / optim.lr == pytest.approx([1 / 3, 2 / 3, 1, 1, 0.1, 0.1, 0.01], rel=1e-6)


@pytest.mark.parametrize("name", OURS)
def test_batch_norm_of_the_fair_protocol_sees_eight_scans_on_any_number_of_processes(name):
    config = read(name)
    published = name == "sdanet_r101_published"
    assert (config.model.backbone.bn_images, config.data.validation, config.train.statistics) == (
        (0, 0.0, 0) if published else (8, 0.05, 2048)
    )
    assert config.images_per_part() == (2 if published else 8)
    if not published:
        assert [config.passes_per_part(processes) for processes in (1, 2, 4, 8)] == [1, 1, 2, 4]


@pytest.mark.parametrize(("epochs", "drops"), [(24, (16, 22)), (72, (64, 69.33))])
def test_longer_schedules_differ_in_length_only(epochs, drops):
    short, long = read("sdanet_r101_fair"), read(f"sdanet_r101_fair_{epochs}")
    assert long.train.epochs == epochs
    assert [milestone * epochs for milestone in long.optim.milestones] == pytest.approx(drops, abs=0.01)
    optim = dataclasses.replace(long.optim, milestones=short.optim.milestones)
    assert dataclasses.replace(long, optim=optim, train=short.train) == short


@pytest.mark.parametrize("name", OURS)
def test_protocols(name):
    """Check which parameters learn and which norms use running statistics in training."""
    published = name == "sdanet_r101_published"
    detector = build(name).train()
    stem = ("body.conv1.", "body.bn1.", "body.layer1.")
    still = {name for name, parameter in detector.backbone.named_parameters() if not parameter.requires_grad}
    expected = {name for name, _ in detector.backbone.named_parameters() if name.startswith(stem)}
    assert still == (expected if published else set())
    assert len(expected) > 10
    assert all(x.requires_grad for name, x in detector.net.named_parameters() if not name.startswith("backbone."))
    modules = detector.backbone.named_modules()
    norms = {name: part.training for name, part in modules if isinstance(part, nn.BatchNorm2d)}
    body = {name: training for name, training in norms.items() if name.startswith("body.")}
    assert len(body) == 20
    assert set(body.values()) == {not published}
    attention = [training for name, training in norms.items() if name.startswith("attention.")]
    assert attention == [True] * (5 if "sdanet" in name else 0)


def test_mask_rcnn():
    heads = build("mask_rcnn_r101").net.roi_heads
    predictor = heads.box_predictor
    assert heads.proposal_matcher.thresholds[1:-1] == [0.5]
    assert (predictor.bbox_pred.out_features, predictor.cls_score.out_features) == (4 * 12, 13)
    assert np.allclose(predictor.box2box_transform.weights, (10, 10, 5, 5))
    assert predictor.loss_weight == {"loss_cls": 1.0, "loss_box_reg": 1.0}


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.yaml")), ids=lambda path: path.stem)
def test_recipes_are_short_and_need_no_other_files(path):
    text = path.read_text()
    assert len(text.splitlines()) <= 50
    assert "model_zoo" not in text
