import numpy as np
import pytest
import torch
from pycocotools import mask as mask_api

from segloc import lazy
from segloc.contract import InputError
from segloc.detection import recipe
from segloc.detection.coco import Split, read_split
from segloc.detection.data import TrainingData
from segloc.detection.detector import HeadSettings, detector, engine_label, engine_name, pad_batch
from segloc.detection.settings import DataSettings, OptimSettings
from segloc.detection.trainer import FinetuneTrainer
from segloc.models.backbone import LEVELS, SegLocBackbone, normalize
from segloc.schedules import step_schedule

from .test_lazy import RECIPES
from .toy_coco import write_split

ENGINES = ["torchvision", "detectron2"]
SMALL = HeadSettings(4, 64, 32, 100, 50, fc_dim=64, mask_convs=1, mask_dim=32)


def need(engine):
    if engine == "detectron2":
        pytest.importorskip("detectron2", reason="the Cascade Mask R-CNN needs Detectron2")


def build(engine, **backbone):
    need(engine)
    torch.manual_seed(0)
    return detector(SegLocBackbone("resnet18", **{"norm": "gn", "sda_norm": "gn", **backbone}), SMALL, 3, engine)


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
def test_the_backbone_sees_the_same_inside_a_detector_and_alone(engine):
    model = build(engine).eval()
    alone = SegLocBackbone("resnet18", norm="gn", sda_norm="gn").eval()
    alone.load_state_dict(model.backbone.state_dict())
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (50, 70, 3), dtype=np.uint8)
    seen = []
    model.backbone.register_forward_hook(lambda module, inputs, output: seen.append(output))
    model.predict(torch.from_numpy(image.transpose(2, 0, 1).copy()), (50, 70))
    white = np.full((64, 96, 3), 255, np.uint8)
    white[:50, :70] = image
    with torch.no_grad():
        expected = alone(normalize(torch.from_numpy(white.transpose(2, 0, 1)[None].copy())))
    assert len(seen) == 1
    for level in LEVELS:
        assert torch.allclose(seen[0][level], expected[level], atol=1e-5)


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
    backbone = SegLocBackbone("resnet18", norm="gn", sda_norm="gn")
    backbone.body.conv1.requires_grad_(False)
    with pytest.raises(AssertionError, match=r"body\.conv1\.weight"):
        detector(backbone, SMALL, 3, engine)


@pytest.mark.parametrize("engine", ENGINES)
def test_it_learns_a_toy_scan(engine, examples):
    model = build(engine)
    rates = step_schedule(0.01, 12, warmup=4)
    examples.indices = lambda iteration: [0, 0]
    trainer = FinetuneTrainer(model, examples, OptimSettings(batch=2, clip=5.0), rates, seed=0)
    losses = []
    step = trainer.run_step

    def recorded():
        step()
        losses.append(trainer.measured["loss"])

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


def _raw(engine, box):
    masks, score, label = torch.ones(1, 1, 28, 28), torch.tensor([0.9]), torch.tensor([2])
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
    losses = model([batch[0], empty])
    assert all(torch.isfinite(value) for value in losses.values())


def test_cascade_is_sdanets():
    model = build("detectron2")
    heads = model.net.roi_heads
    assert [m.thresholds[1] for m in heads.proposal_matchers] == [0.5, 0.6, 0.7]
    assert [p.loss_weight["loss_cls"] for p in heads.box_predictor] == [1.0, 0.5, 0.25]
    stds = [[1 / w for w in p.box2box_transform.weights] for p in heads.box_predictor]
    assert np.allclose(stds, [[0.1, 0.1, 0.2, 0.2], [0.05, 0.05, 0.1, 0.1], [0.1 / 3, 0.1 / 3, 0.2 / 3, 0.2 / 3]])
    assert all(p.bbox_pred.out_features == 4 for p in heads.box_predictor)  # class-agnostic


def test_cascade_gives_the_features_the_whole_gradient(examples):
    """Detectron2's own heads divide it by the number of stages; SDANet weights the losses instead."""
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


def test_a_recipe_for_detectron2_says_so_when_it_is_missing(monkeypatch):
    monkeypatch.setattr("segloc.detection.detector._detectron2_works", lambda: False)
    assert engine_name("auto") == "torchvision"
    with pytest.raises(InputError, match="not installed"):
        engine_name("detectron2")


def test_the_published_recipe_is_sdanets():
    config = recipe.read(RECIPES / "sdanet_r101_fair.py", ["model.backbone.arch=resnet18"])  # 101 layers take seconds
    recipe.settle(config, [f"class {i}" for i in range(12)])
    model = lazy.instantiate(config.model, "model")
    data, optim, train = recipe.settings(config)
    assert model.engine == engine_name("auto")
    assert len(model.backbone.attention.levels) == 5
    assert (data.image_size, train.epochs, optim.lr, optim.clip, optim.warmup) == (500, 12.0, 0.02, 35.0, 500)
    assert OptimSettings(batch=2).lr == pytest.approx(0.0025)  # linear scaling
    rates = step_schedule(optim.lr, 1200, 500, optim.warmup_start, optim.milestones, optim.gamma)
    assert rates[[0, 500, 799, 800, 1100]] == pytest.approx([0.02 / 3, 0.02, 0.02, 0.002, 0.0002])
