import sys

import numpy as np
import pytest
import torch
from pycocotools import mask as mask_api

from segloc.common.datasets import Split
from segloc.common.errors import DivergedError, InputError
from segloc.detection.data import TrainingData
from segloc.detection.detector import engine_label, engine_name, new_detector, refuse_frozen
from segloc.detection.splits import read_split
from segloc.detection.trainer import FinetuneTrainer
from segloc.models.backbone import LEVELS, SegLocBackbone, normalize, pad_batch
from segloc.models.initial_weights import load_start
from segloc.settings.finetuning import (
    ENGINES,
    BackboneSettings,
    DataSettings,
    FinetuneConfig,
    HeadSettings,
    ModelSettings,
    OptimSettings,
)
from segloc.training import checkpoint
from segloc.training.schedules import step_schedule
from tests.imports import ROOT
from tests.segloc.toy_coco import write_split

DETECTION = ROOT / "segloc" / "detection"
SMALL = HeadSettings(4, 64, 32, 100, 50, fc_dim=64, mask_convs=1, mask_dim=32)


def need(engine):
    try:
        engine_name(engine)
    except InputError as error:
        pytest.skip(str(error))


def settings_of(engine, heads=SMALL, frozen=0, fixed_statistics=False, **backbone):
    return ModelSettings(engine, 3, frozen, fixed_statistics, BackboneSettings("resnet18", **backbone), heads)


def build(engine, **backbone):
    need(engine)
    torch.manual_seed(0)
    return new_detector(settings_of(engine, **{"norm": "gn", "sda_norm": "gn", **backbone}))


@pytest.fixture
def examples(tmp_path):
    write_split(tmp_path / "a.json", tmp_path / "images", 3, seed=0)
    split = read_split(Split("train", tmp_path / "a.json", tmp_path / "images"))
    return TrainingData(split, DataSettings(image_size=64, flip=0.0), 2, seed=0)


def test_batches_are_padded_with_white_below_and_right():
    images = [torch.zeros(3, 40, 64, dtype=torch.uint8), torch.full((3, 33, 20), 51, dtype=torch.uint8)]
    batch, sizes = pad_batch(images, torch.device("cpu"))
    expected = np.full((2, 3, 64, 64), 1.0, np.float32)
    expected[0, :, :40, :64] = -1.0
    expected[1, :, :33, :20] = 51 / 127.5 - 1
    assert sizes == [(40, 64), (33, 20)]
    assert np.allclose(batch.numpy(), expected)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("source", ["random", "a pretraining checkpoint"])
def test_the_backbone_computes_the_same_features_in_every_detector_and_alone(source, engine, tmp_path):
    """Bit-identical features: a difference in AP between engines comes from the heads."""
    settings = {"arch": "resnet18", "norm": "bn", "sda_norm": "bn", "attention": True, "fpn_channels": 64}
    torch.manual_seed(3)
    alone = SegLocBackbone(**settings)
    alone(torch.randn(4, 3, 64, 64))  # moves the running statistics
    checkpoint.save(tmp_path / "b.pth", {"kind": "backbone", **settings, "backbone": alone.state_dict()})
    image = np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8)
    white = np.full((64, 96, 3), 255, np.uint8)
    white[:50, :70] = image
    with torch.no_grad():
        expected = alone.eval()(normalize(torch.from_numpy(white.transpose(2, 0, 1)[None].copy())))
    model = build(engine, norm="bn", sda_norm="bn", fpn_channels=64).eval()
    if source == "random":
        model.backbone.load_state_dict(alone.state_dict())
    else:
        load_start(model.backbone, str(tmp_path / "b.pth"), settings)
    seen = []
    model.backbone.register_forward_hook(lambda module, inputs, output, seen=seen: seen.append(output))
    model.predict(torch.from_numpy(image.transpose(2, 0, 1).copy()), (50, 70))
    assert len(seen) == 1
    assert all(torch.equal(seen[0][level], expected[level]) for level in LEVELS)


@pytest.mark.parametrize("engine", ENGINES)
def test_nothing_is_frozen(engine):
    model = build(engine, norm="bn", sda_norm="bn")
    model.train()
    norms = [m for m in model.backbone.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert len(norms) > 20
    assert all(m.training and m.track_running_stats and m.weight.requires_grad for m in norms)
    assert all(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("engine", ENGINES)
def test_a_frozen_part_is_noticed(engine):
    need(engine)
    model = new_detector(settings_of(engine, frozen=1, norm="gn", sda_norm="gn"))
    refuse_frozen(model)
    model.backbone.fpn.inner_blocks[0][0].requires_grad_(False)
    with pytest.raises(AssertionError, match=r"fpn\.inner_blocks\.0\.0\.weight"):
        refuse_frozen(model)


@pytest.mark.parametrize("engine", ENGINES)
def test_frozen_parts_of_a_protocol_do_not_change(engine, examples):
    """Frozen parts and fixed statistics stay bit-identical; all else learns, including the scales of fixed norms."""
    need(engine)
    torch.manual_seed(0)
    model = new_detector(settings_of(engine, frozen=1, fixed_statistics=True))
    before = {name: value.clone() for name, value in model.backbone.state_dict().items()}
    FinetuneTrainer(model, examples, OptimSettings(batch=2), np.full(2, 0.01)).fit(0)
    moved = {name for name, value in model.backbone.state_dict().items() if not torch.equal(value, before[name])}
    stem = {name for name in before if name.startswith(("body.conv1.", "body.bn1.", "body.layer1."))}
    statistics = {name for name in before if name.startswith("body.") and "running_" in name}
    assert not moved & (stem | statistics)
    assert {"body.layer2.0.bn1.weight", "body.layer4.1.bn2.bias", "body.layer2.0.conv1.weight"} <= moved
    assert "attention.levels.0.channel.squeeze.1.running_mean" in moved


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"frozen": 5}, "frozen is 5"), ({"fixed_statistics": True}, "needs model.backbone.norm=bn")],
)
def test_what_cannot_be_frozen_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        FinetuneConfig(settings_of("torchvision", norm="gn", **arguments))


class Stepped(torch.optim.SGD):
    """Records the gradients of each step."""

    def step(self, closure=None):
        self.given = [x.grad.clone() for group in self.param_groups for x in group["params"] if x.grad is not None]
        super().step(closure)


def gradients_of_a_step(model, examples, **settings):
    """Return the gradients of an optimiser step that does not change the weights."""
    trainer = FinetuneTrainer(model, examples, OptimSettings(**settings), np.zeros(1))
    trainer.optimizer = Stepped(model.parameters(), lr=0.0)
    trainer.fit(0)
    return trainer.optimizer.given, trainer.metrics


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("clip", [0.0, 0.5])
def test_a_step_has_the_mean_gradient_of_its_micro_batches_clipped_once(engine, clip, examples):
    model = build(engine).train()
    examples.batch = 3
    found, measured = gradients_of_a_step(model, examples, batch=3, micro_batch=1, clip=clip)
    torch.manual_seed(int(np.random.SeedSequence([0, 0]).generate_state(1)[0]))
    totals, losses = None, []
    for slot in range(3):
        loss = torch.stack(list(model([examples.example(0, slot)]).values())).sum()
        parts = torch.autograd.grad(loss, list(model.parameters()), materialize_grads=True)
        totals = parts if totals is None else [a + b for a, b in zip(totals, parts, strict=True)]
        losses.append(loss.item())
    mean = [total / 3 for total in totals]
    norm = torch.stack([part.norm() for part in mean]).norm()
    assert norm > 0.5
    expected = [part * (clip / (norm + 1e-6) if clip else 1.0) for part in mean]
    scale = max(float(part.abs().max()) for part in expected)
    assert all(torch.allclose(a, b, rtol=1e-3, atol=1e-5 * scale) for a, b in zip(found, expected, strict=True))
    assert measured["loss"] == pytest.approx(np.mean(losses), rel=1e-5)
    assert measured["grad_norm"] == pytest.approx(norm.item(), rel=1e-4)


@pytest.mark.parametrize("engine", ENGINES)
def test_micro_batches_give_the_step_of_one_batch_if_all_scans_have_equally_many_samples(engine, examples):
    need(engine)
    torch.manual_seed(0)
    # Every anchor and proposal is a sample, so sampling is not random, and both scans are the same.
    heads = HeadSettings(4, 10**6, 10**6, 50, 50, fc_dim=64, mask_convs=1, mask_dim=32)
    model = new_detector(settings_of(engine, heads, norm="gn", sda_norm="gn"))
    examples.indices = lambda iteration: [0, 0]
    whole, one = gradients_of_a_step(model, examples, batch=2)
    parts, other = gradients_of_a_step(model, examples, batch=2, micro_batch=1)
    assert one["loss"] == pytest.approx(other["loss"], rel=1e-5)
    scale = max(float(part.abs().max()) for part in whole)
    assert all(torch.allclose(a, b, rtol=1e-3, atol=1e-5 * scale) for a, b in zip(whole, parts, strict=True))


@pytest.mark.parametrize("engine", ENGINES)
def test_the_heads_train_on_the_targets_of_the_examples(engine, examples):
    model = build(engine).train()
    batch = [examples.example(0, slot) for slot in range(2)]
    assert not any(torch.equal(example.masks, example.masks.flip(axis)) for example in batch for axis in (1, 2))
    seen = []
    model.net.roi_heads.register_forward_pre_hook(lambda module, inputs: seen.extend(inputs[3]))
    model(batch)
    for example, target in zip(batch, seen, strict=True):
        if engine == "torchvision":
            boxes, classes, masks = target["boxes"], target["labels"] - 1, target["masks"]
        else:
            boxes, classes, masks = target.gt_boxes.tensor, target.gt_classes, target.gt_masks.tensor
        assert torch.equal(boxes, example.boxes)
        assert torch.equal(classes, example.classes)
        assert torch.equal(masks.bool(), example.masks)


@pytest.mark.parametrize("engine", ENGINES)
def test_every_setting_of_the_heads_is_applied(engine):
    """The values differ from every library's defaults, so a missing one is noticed."""
    need(engine)
    settings = HeadSettings(
        rpn_batch=40, roi_batch=50, train_proposals=60, test_proposals=30, fc_dim=64, mask_convs=1, mask_dim=32,
        stages=2, score_threshold=0.15, nms_threshold=0.35, detections=7,
    )  # fmt: skip
    net = new_detector(settings_of(engine, heads=settings)).net
    heads = net.roi_heads
    if engine == "torchvision":
        kept = [(net.rpn.train(training).pre_nms_top_n(), net.rpn.post_nms_top_n()) for training in (True, False)]
        sampled = net.rpn.fg_bg_sampler.batch_size_per_image, heads.fg_bg_sampler.batch_size_per_image
        tested = [(heads.score_thresh, heads.nms_thresh, heads.detections_per_img)]
    else:
        rpn = net.proposal_generator
        kept = [(rpn.pre_nms_topk[training], rpn.post_nms_topk[training]) for training in (True, False)]
        sampled = rpn.batch_size_per_image, heads.batch_size_per_image
        tested = [(p.test_score_thresh, p.test_nms_thresh, p.test_topk_per_image) for p in heads.box_predictor]
    assert kept == [(60, 60), (30, 30)]
    assert sampled == (40, 50)
    assert set(tested) == {(0.15, 0.35, 7)}


@pytest.mark.parametrize("engine", ENGINES)
def test_bfloat16_trains_on_nearly_the_same_losses(engine, examples):
    model = build(engine)
    examples.settings = DataSettings(image_size=32)  # bfloat16 is slow on most CPUs
    losses = [gradients_of_a_step(model, examples, batch=2, amp=amp)[1]["loss"] for amp in (False, True)]
    assert losses[0] != losses[1]
    assert losses[1] == pytest.approx(losses[0], rel=0.05)


@pytest.mark.parametrize("engine", ENGINES)
def test_it_learns_a_toy_scan(engine, examples):
    model = build(engine)
    rates = step_schedule(0.01, 12, warmup=4)
    examples.indices = lambda iteration: [0, 0]
    trainer = FinetuneTrainer(model, examples, OptimSettings(batch=2, clip=5.0), rates)
    losses = []
    step = trainer.run_step

    def recorded():
        step()
        losses.append(trainer.metrics["loss"])

    trainer.run_step = recorded
    trainer.fit(0)
    assert np.mean(losses[-3:]) < 0.6 * np.mean(losses[:2])


@pytest.mark.parametrize("engine", ENGINES)
def test_predictions_come_back_in_the_pixels_of_the_scan(engine):
    model = build(engine).eval()
    box = torch.tensor([[10.0, 5.0, 30.0, 25.0]])
    found = lambda *_: (_raw(engine, box), {})  # noqa: E731
    model.net.roi_heads.forward = found
    detections = model.predict(torch.full((3, 40, 60), 255, dtype=torch.uint8), (80, 120))
    assert detections.boxes.tolist() == [[20.0, 10.0, 60.0, 50.0]]
    assert detections.classes.tolist() == [2]
    mask = mask_api.decode(detections.masks[0])
    assert mask.shape == (80, 120)
    ys, xs = np.nonzero(mask)
    assert (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1) == pytest.approx((20, 10, 60, 50), abs=1)
    assert int(mask.sum()) == pytest.approx(40 * 40, rel=0.12)  # torchvision draws masks up to two pixels too large


@pytest.mark.parametrize("engine", ENGINES)
def test_a_mask_has_the_pixels_of_probability_above_one_half(engine):
    model = build(engine).eval()
    masks = torch.full((1, 1, 28, 28), 0.45)
    masks[..., 14:] = 0.55
    found = lambda *_: (_raw(engine, torch.tensor([[4.0, 4.0, 60.0, 60.0]]), masks), {})  # noqa: E731
    model.net.roi_heads.forward = found
    detections = model.predict(torch.full((3, 64, 64), 255, dtype=torch.uint8), (64, 64))
    mask = mask_api.decode(detections.masks[0])
    assert mask[8:56, 34:56].all()
    assert not mask[:, :30].any()


def _raw(engine, box, masks=None):
    masks = torch.ones(1, 1, 28, 28) if masks is None else masks
    score, label = torch.tensor([0.9]), torch.tensor([2])
    if engine == "torchvision":
        return [{"boxes": box, "scores": score, "labels": label + 1, "masks": masks}]
    from detectron2.structures import Boxes, Instances

    instances = Instances((40, 60))
    instances.pred_boxes, instances.scores = Boxes(box), score
    instances.pred_classes, instances.pred_masks = label, masks
    return [instances]


@pytest.mark.parametrize("engine", ENGINES)
def test_a_scan_without_items_can_be_trained_on(engine, examples):
    model = build(engine).train()
    batch = [examples.example(0, 0), examples.example(0, 1)]
    nothing = torch.zeros(0, dtype=torch.int64)
    empty = type(batch[0])(9, batch[0].image, torch.zeros(0, 4), nothing, torch.zeros(0, *batch[0].image.shape[1:]) > 0)
    for scans in ([batch[0], empty], [empty, empty]):
        losses = model(scans)
        assert all(torch.isfinite(value) for value in losses.values())
        torch.stack(list(losses.values())).sum().backward()
        assert all(torch.isfinite(x.grad).all() for x in model.parameters() if x.grad is not None)


@pytest.mark.parametrize("engine", ENGINES)
def test_outputs_that_are_not_finite_do_not_end_a_pass_but_the_step(engine, examples):
    """Other processes may wait for the backward pass."""
    model = build(engine).train()
    head = model.net.rpn.head if engine == "torchvision" else model.net.proposal_generator.rpn_head
    with torch.no_grad():
        next(head.parameters()).fill_(torch.nan)
    loss = torch.stack(list(model([examples.example(0, 0)]).values())).sum()
    assert not torch.isfinite(loss)
    loss.backward()
    settings = OptimSettings(batch=2, micro_batch=1)
    with pytest.raises(DivergedError, match=r"loss of iteration 0 is not finite \(images \d\)"):
        FinetuneTrainer(model, examples, settings, np.zeros(1)).fit(0)
    if engine == "detectron2":
        model.net.proposal_generator.rpn_head.load_state_dict(
            build(engine).net.proposal_generator.rpn_head.state_dict()
        )
        assert all(torch.isfinite(value) for value in model([examples.example(0, 0)]).values())


def test_cascade_passes_the_whole_gradient_to_the_features(examples):
    """Detectron2's heads divide the gradient by the number of stages; SDANet weights the losses instead."""
    model = build("detectron2").train()
    pooled = torch.randn(4, 256, 7, 7, requires_grad=True)
    heads = model.net.roi_heads
    heads.box_pooler.forward = lambda features, boxes: pooled
    scores, deltas = heads._run_stage([], [], 0)
    (scores.sum() + deltas.sum()).backward()
    through, head = pooled.grad.clone(), heads.box_head[0]
    pooled.grad = None
    scores, deltas = heads.box_predictor[0](head(pooled))
    (scores.sum() + deltas.sum()).backward()
    assert torch.allclose(through, pooled.grad)


def test_engine_names():
    assert engine_name("torchvision") == "torchvision"
    assert engine_label("torchvision") == "torchvision (stand-in)"
    assert engine_label("detectron2") == "detectron2"
    assert engine_name("auto") in ENGINES
    with pytest.raises(InputError, match="not one of"):
        engine_name("mmdet")


def test_an_import_error_inside_segloc_is_not_reported_as_a_missing_library(monkeypatch):
    monkeypatch.delitem(sys.modules, "segloc.detection.engine_torchvision", raising=False)
    monkeypatch.setitem(sys.modules, "segloc.common.masks", None)
    with pytest.raises(ImportError, match=r"segloc\.common\.masks"):
        engine_name("torchvision")


def test_every_engine_has_its_module():
    assert {f"engine_{name}.py" for name in ENGINES} == {path.name for path in DETECTION.glob("engine_*.py")}


def test_a_recipe_for_detectron2_is_refused_when_it_is_missing(monkeypatch):
    monkeypatch.delitem(sys.modules, "segloc.detection.engine_detectron2", raising=False)
    for name in ("detectron2", "detectron2.layers"):
        monkeypatch.setitem(sys.modules, name, None)
    assert engine_name("auto") == "torchvision"
    with pytest.raises(InputError, match="not installed"):
        engine_name("detectron2")
