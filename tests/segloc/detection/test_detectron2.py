"""SegLoc inside Detectron2: its registries, its trainer and its own training script."""

import dataclasses
import importlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import yaml

from segloc.common.errors import InputError
from segloc.detection.detector import new_detector
from segloc.detection.evaluation import evaluate_results
from segloc.exporting.formats import convert, wrapped
from segloc.models.backbone import SegLocBackbone
from segloc.settings.finetuning import BackboneSettings, HeadSettings, ModelSettings
from tests.imports import ROOT
from tests.segloc.toy_coco import CATEGORY_IDS, CLASSES, write_pidray

pytest.importorskip("detectron2", reason="the bridge needs Detectron2")
from detectron2 import model_zoo
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import CfgNode, LazyConfig, get_cfg, instantiate
from detectron2.data import DatasetCatalog, DatasetMapper, MetadataCatalog, get_detection_dataset_dicts
from detectron2.evaluation import COCOEvaluator
from detectron2.modeling import META_ARCH_REGISTRY, build_model
from detectron2.structures import BoxMode

from segloc.detection.detectron2 import add_segloc_config
from segloc.detection.engine_detectron2 import STAGES, WhitePaddedRCNN

RECIPE = ROOT / "detectron_configs" / "detectron2" / "sdanet_r101.py"
SMALL_CFG = """
MODEL:
  DEVICE: cpu
  MASK_ON: true
  RESNETS: {DEPTH: 18, RES2_OUT_CHANNELS: 64}
  FPN: {OUT_CHANNELS: 64}
  ANCHOR_GENERATOR: {SIZES: [[32], [64], [128], [256], [512]], OFFSET: 0.5}
  RPN:
    IN_FEATURES: [p2, p3, p4, p5, p6]
    BATCH_SIZE_PER_IMAGE: 64
    PRE_NMS_TOPK_TEST: 50
    POST_NMS_TOPK_TEST: 50
  ROI_HEADS: {NAME: CascadeROIHeads, NUM_CLASSES: 3, IN_FEATURES: [p2, p3, p4, p5], BATCH_SIZE_PER_IMAGE: 32}
  ROI_BOX_HEAD:
    NAME: FastRCNNConvFCHead
    NUM_FC: 2
    FC_DIM: 64
    POOLER_RESOLUTION: 7
    POOLER_SAMPLING_RATIO: 2
    CLS_AGNOSTIC_BBOX_REG: true
  ROI_MASK_HEAD:
    NAME: MaskRCNNConvUpsampleHead
    NUM_CONV: 1
    CONV_DIM: 32
    POOLER_RESOLUTION: 14
    POOLER_SAMPLING_RATIO: 2
"""
SMALL = HeadSettings(8, 64, 32, 100, 50, fc_dim=64, mask_convs=1, mask_dim=32)


@pytest.fixture
def pidray(tmp_path, monkeypatch):
    """A small PIDray in Detectron2's data folder."""
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    return write_pidray(tmp_path / "pidray", train=4, test=2)


def small_config(*settings):
    """Detectron2's own configuration of the detector that `SMALL` describes, on a ResNet-18."""
    cfg = get_cfg()
    add_segloc_config(cfg)
    cfg.merge_from_other_cfg(CfgNode(yaml.safe_load(SMALL_CFG)))
    cfg.MODEL.ROI_BOX_CASCADE_HEAD.BBOX_REG_WEIGHTS = [[1 / c, 1 / c, 1 / s, 1 / s] for _, _, (c, s) in STAGES]
    cfg.merge_from_list(settings)
    return cfg


def export(backbone, path):
    """Write a file like ``segloc.export --format detectron2``."""
    torch.save(wrapped(convert(backbone.state_dict(), "detectron2", "bn"), "detectron2", {}), path)
    return path


def moved(backbone):
    """Set batch-norm statistics that differ from those of a new network."""
    torch.manual_seed(1)
    backbone.train()(torch.randn(4, 3, 64, 64))
    return backbone.eval()


def trained(arch):
    """Our detector with heads of `SMALL`, as if trained."""
    torch.manual_seed(0)
    settings = BackboneSettings(arch, norm="bn", sda_norm="bn", fpn_channels=64)
    ours = new_detector(ModelSettings("detectron2", 3, backbone=settings, heads=SMALL)).eval()
    moved(ours.backbone)
    return ours


def load(theirs, ours, path):
    """Give `theirs` the weights of `ours`: the backbone's exported, the heads' as they are."""
    DetectionCheckpointer(theirs).load(str(export(ours.backbone, path)))
    heads = {name: x for name, x in ours.net.state_dict().items() if not name.startswith("backbone.")}
    assert not theirs.load_state_dict(heads, strict=False).unexpected_keys


def assert_same_detections(theirs, ours, height, width):
    image = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (3, height, width), dtype=np.uint8))
    expected = ours.predict(image, (2 * height, 2 * width))
    with torch.no_grad():
        images = ours.net.preprocess_image([{"image": image}]).tensor
        levels = theirs.backbone(images)
        for level, values in ours.backbone(images).items():
            torch.testing.assert_close(levels[level], values)
        found = theirs([{"image": image, "height": 2 * height, "width": 2 * width}])[0]["instances"]
    assert len(expected.scores) > 5
    np.testing.assert_allclose(found.scores, expected.scores, rtol=1e-4)
    np.testing.assert_allclose(found.pred_boxes.tensor, expected.boxes, rtol=1e-4, atol=1e-3)
    assert found.pred_classes.tolist() == expected.classes.tolist()


RESNETS = {
    "resnet18": ("MODEL.RESNETS.DEPTH", 18, "MODEL.RESNETS.RES2_OUT_CHANNELS", 64),
    "resnet50": ("MODEL.RESNETS.DEPTH", 50, "MODEL.RESNETS.RES2_OUT_CHANNELS", 256),  # has strides in 1x1 convolutions
}


@pytest.mark.parametrize("arch", RESNETS)
def test_the_same_weights_give_the_same_detections_in_both_detectors(arch, tmp_path):
    ours = trained(arch)
    theirs = build_model(small_config(*RESNETS[arch])).eval()
    load(theirs, ours, tmp_path / "segloc.pth")
    assert_same_detections(theirs, ours, 64, 96)
    assert_same_detections(theirs, ours, 70, 100)  # is padded


def test_the_lazy_config_gives_the_same_detections(tmp_path):
    ours = trained("resnet50")
    model = LazyConfig.load(str(RECIPE)).model
    model.num_classes, model.backbone.out_channels, model.backbone.bottom_up.stages.depth = 3, 64, 50
    model.heads.update(dataclasses.asdict(SMALL))
    theirs = instantiate(model).eval()
    load(theirs, ours, tmp_path / "segloc.pth")
    assert_same_detections(theirs, ours, 70, 100)


def test_either_configuration_reads_rgb(pidray):
    dataloader = LazyConfig.load(str(RECIPE)).dataloader
    dataloader.train.mapper.augmentations = dataloader.test.mapper.augmentations = []
    mappers = [instantiate(dataloader[part].mapper) for part in ("train", "test")]
    mappers.append(DatasetMapper(small_config(), is_train=True, augmentations=[]))
    record = DatasetCatalog.get("pidray_train")[0]
    expected = cv2.imread(record["file_name"])[..., ::-1]
    assert (expected[..., 0] != expected[..., 2]).any()
    for mapper in mappers:
        np.testing.assert_array_equal(mapper(record)["image"].permute(1, 2, 0), expected)


def test_batches_are_padded_with_white_whatever_the_normalisation():
    image = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (3, 40, 64), dtype=np.uint8))
    mean, std = [100.0, 110.0, 120.0], [50.0, 60.0, 70.0]
    model = build_model(small_config("MODEL.PIXEL_MEAN", mean, "MODEL.PIXEL_STD", std))
    batch = model.preprocess_image([{"image": image}]).tensor[0]
    white = torch.full((3, 64, 64), 255.0)
    white[:, :40] = image
    torch.testing.assert_close(batch, (white - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None])


def test_without_attention_the_backbone_is_detectron2s_own(tmp_path):
    plain = SegLocBackbone("resnet18", "bn", attention=False, fpn_channels=64)
    moved(plain)
    theirs = build_model(small_config("MODEL.SEGLOC.SDA", False)).backbone.eval()
    assert theirs.attention is None
    missing = theirs.load_state_dict(convert(plain.state_dict(), "detectron2", "bn").state)
    assert not missing.missing_keys
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        for level, expected in plain(images).items():
            torch.testing.assert_close(theirs(images)[level], expected)


def test_norms_come_from_the_configuration():
    cfg = small_config("MODEL.RESNETS.NORM", "GN", "MODEL.FPN.NORM", "GN", "MODEL.SEGLOC.SDA_NORM", "gn")
    backbone = build_model(cfg).backbone
    kinds = {type(part).__name__ for part in backbone.modules() if "Norm" in type(part).__name__}
    assert "BatchNorm2d" not in kinds
    assert type(backbone.fpn_output2.norm).__name__ == "GroupNorm"


def test_the_choices_of_a_base_file_stay():
    cfg = get_cfg()
    cfg.merge_from_file(model_zoo.get_config_file("Misc/mask_rcnn_R_50_FPN_3x_gn.yaml"))
    add_segloc_config(cfg)
    assert (cfg.MODEL.RESNETS.NORM, cfg.MODEL.FPN.NORM) == ("GN", "GN")
    assert cfg.MODEL.META_ARCHITECTURE == "WhitePaddedRCNN"
    cfg = get_cfg()
    cfg.merge_from_file(model_zoo.get_config_file("COCO-Detection/retinanet_R_50_FPN_1x.yaml"))
    add_segloc_config(cfg)
    assert (cfg.MODEL.RESNETS.NORM, cfg.MODEL.META_ARCHITECTURE) == ("BN", "RetinaNet")


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        (("INPUT.FORMAT", "BGR", "MODEL.BACKBONE.FREEZE_AT", 2), "INPUT.FORMAT RGB, MODEL.BACKBONE.FREEZE_AT 0"),
        (("MODEL.RESNETS.NORM", "FrozenBN"), "MODEL.RESNETS.NORM BN"),
        (("MODEL.FPN.NORM", "FrozenBN"), "MODEL.FPN.NORM BN"),
        (("MODEL.META_ARCHITECTURE", "GeneralizedRCNN"), "MODEL.META_ARCHITECTURE WhitePaddedRCNN"),
        (("MODEL.RESNETS.NORM", "GN", "MODEL.FPN.NORM", "BN"), None),
        ((), None),
    ],
)
def test_settings_that_spoil_the_weights_are_named(settings, named, caplog):
    build_model(small_config(*settings))
    warnings = [record.getMessage() for record in caplog.records if record.name == "detectron2.segloc"]
    assert warnings == ([f"SegLoc's weights need {named}"] if named else [])


def test_a_configuration_that_cannot_be_built_is_told_why():
    cfg = get_cfg()
    cfg.MODEL.BACKBONE.NAME = "build_segloc_fpn_backbone"
    with pytest.raises(InputError, match=r"call segloc\.detection\.detectron2\.add_segloc_config"):
        build_model(cfg)
    three = ("MODEL.FPN.IN_FEATURES", ["res3", "res4", "res5"])
    with pytest.raises(InputError, match=r"IN_FEATURES \['res3', 'res4', 'res5'\]: the attention needs 4 levels"):
        build_model(small_config(*three))


def test_the_module_can_be_imported_again(monkeypatch):
    name = "segloc.detection.detectron2"
    importlib.reload(sys.modules[name])
    monkeypatch.delitem(sys.modules, name)
    importlib.import_module(name)
    assert META_ARCH_REGISTRY.get("WhitePaddedRCNN") is WhitePaddedRCNN
    assert isinstance(build_model(small_config()), WhitePaddedRCNN)


def test_nothing_is_frozen_by_default():
    model = build_model(small_config())
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert not any("Frozen" in type(part).__name__ for part in model.modules())


def test_the_parts_of_pidray_are_registered(pidray):
    records = DatasetCatalog.get("pidray_train")
    content = json.loads((pidray / "annotations" / "xray_train.json").read_text())
    assert [record["image_id"] for record in records] == [image["id"] for image in content["images"]]
    assert [Path(record["file_name"]).name for record in records] == [i["file_name"] for i in content["images"]]
    (first,) = records[0]["annotations"]
    assert (first["bbox"], first["bbox_mode"], first["category_id"]) == (
        content["annotations"][0]["bbox"],
        BoxMode.XYWH_ABS,
        CATEGORY_IDS.index(content["annotations"][0]["category_id"]),
    )
    assert MetadataCatalog.get("pidray_train").thing_classes == list(CLASSES)
    assert [len(DatasetCatalog.get(f"pidray_{name}")) for name in ("easy", "hard", "hidden")] == [2, 2, 2]


@pytest.mark.parametrize(
    "classes", [dict(zip(CATEGORY_IDS, CLASSES, strict=True)), {2: "Bat", 5: "Hammer", 9: "Saw"}], ids=["same", "other"]
)
def test_other_data_under_the_same_name_replace_the_first(classes, pidray, tmp_path, monkeypatch):
    get_detection_dataset_dicts("pidray_easy")
    first = COCOEvaluator("pidray_easy", output_dir=str(tmp_path / "first"))._coco_api
    other = write_pidray(tmp_path / "other" / "pidray", test=1)
    categories = [{"id": number, "name": name} for number, name in classes.items()]
    renumbered = dict(zip(CATEGORY_IDS, classes, strict=True))
    for file in (other / "annotations").iterdir():
        content = json.loads(file.read_text())
        for annotation in content["annotations"]:
            annotation["category_id"] = renumbered[annotation["category_id"]]
        file.write_text(json.dumps({**content, "categories": categories}))
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "other"))
    get_detection_dataset_dicts("pidray_easy")
    assert MetadataCatalog.get("pidray_easy").thing_classes == list(classes.values())
    second = COCOEvaluator("pidray_easy", output_dir=str(tmp_path / "second"))._coco_api
    assert (len(first.imgs), sorted(first.cats)) == (2, list(CATEGORY_IDS))
    assert (len(second.imgs), sorted(second.cats)) == (1, list(classes))
    assert MetadataCatalog.get("pidray_easy").evaluator_type == "coco"


def test_ids_that_detectron2_cannot_keep_become_numbers(pidray):
    """Its evaluator sorts ids with numpy, which makes text of mixed ids and rounds large ones."""
    file = pidray / "annotations" / "xray_test_easy.json"
    content = json.loads(file.read_text())
    images = {0: "scan a", 1: 2**63 + 1}
    for image in content["images"]:
        image["id"] = images[image["id"]]
    for category in content["categories"]:
        category["id"] = f"class {category['id']}"
    for item in content["annotations"]:
        item.update(image_id=images[item["image_id"]], category_id=f"class {item['category_id']}")
    file.write_text(json.dumps(content))
    dictionaries = get_detection_dataset_dicts("pidray_easy", filter_empty=False)
    metadata = MetadataCatalog.get("pidray_easy")
    assert [one["image_id"] for one in dictionaries] == [1, 2]
    assert metadata.thing_dataset_id_to_contiguous_id == {1: 0, 2: 1, 3: 2}
    assert metadata.thing_classes == list(CLASSES)
    classes = [CLASSES[one["annotations"][0]["category_id"]] for one in dictionaries]
    assert classes == [CLASSES[0], CLASSES[1]]  # as `write_split` draws them


def test_the_yacs_example_trains_from_exported_weights(pidray, tmp_path, monkeypatch):
    page = (ROOT / "docs" / "detectron2.md").read_text()
    (example,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    backbone = SegLocBackbone("resnet50", "bn", fpn_channels=64)
    monkeypatch.chdir(export(backbone, tmp_path / "segloc.pth").parent)
    (tmp_path / "runs" / "detectron2").mkdir(parents=True)
    smaller = (
        *("MODEL.DEVICE", "cpu", "DATASETS.TEST", (), "SOLVER.MAX_ITER", 3, "SOLVER.BASE_LR", 0.001),
        *("MODEL.FPN.OUT_CHANNELS", 64, "MODEL.ROI_BOX_HEAD.FC_DIM", 64, "MODEL.ROI_MASK_HEAD.CONV_DIM", 32),
        *("INPUT.MIN_SIZE_TRAIN", (64,), "INPUT.MAX_SIZE_TRAIN", 64, "DATALOADER.NUM_WORKERS", 0),
    )
    build, train = example.split("trainer.train()")[0].split("\ntrainer = ")
    names = {"smaller": smaller}
    exec(f"{build}\ncfg.merge_from_list(smaller)\ntrainer = {train}", names)
    trainer = names["trainer"]
    assert isinstance(trainer.model, WhitePaddedRCNN)
    for name, expected in backbone.state_dict().items():
        if name.startswith("attention."):
            assert torch.equal(trainer.model.backbone.state_dict()[name], expected)
    stem = trainer.model.backbone.bottom_up.stem.conv1.weight
    assert torch.equal(stem, backbone.body["conv1"].weight)
    trainer.train()
    assert trainer.iter == 3
    assert not torch.equal(stem, backbone.body["conv1"].weight)
    assert (tmp_path / "runs" / "detectron2" / "model_final.pth").is_file()


def test_detectron2s_own_script_trains_and_evaluates_the_recipe(pidray, tmp_path):
    clone = os.environ.get("DETECTRON2_CLONE")
    if not clone:
        pytest.skip("DETECTRON2_CLONE names no clone of Detectron2, whose tools/ this test runs")
    weights = export(SegLocBackbone("resnet50", "bn", fpn_channels=64), tmp_path / "segloc.pth")
    settings = [
        *("train.device=cpu", "train.max_iter=3", "train.eval_period=3", "train.log_period=1"),
        *(f"train.output_dir={tmp_path / 'out'}", f"train.init_checkpoint={weights}", "optimizer.lr=0.001"),
        *("model.num_classes=3", "model.backbone.out_channels=64", "model.heads.fc_dim=64", "model.heads.mask_dim=32"),
        "model.backbone.bottom_up.stages.depth=50",
        *("dataloader.train.num_workers=0", "dataloader.test.num_workers=0"),
        *("dataloader.train.mapper.augmentations.0.short_edge_length=64", "lr_multiplier.warmup_length=0.5"),
        *("dataloader.train.mapper.augmentations.0.max_size=64", "model.heads.test_proposals=20"),
    ]
    script = [sys.executable, str(Path(clone) / "tools" / "lazyconfig_train_net.py"), "--config-file", str(RECIPE)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*script, *settings], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False, timeout=600
    )
    assert done.returncode == 0, done.stderr[-2000:]
    metrics = [json.loads(line) for line in (tmp_path / "out" / "metrics.json").read_text().splitlines()]
    assert [row["iteration"] for row in metrics if "total_loss" in row][-1] == 2
    results = tmp_path / "out" / "coco_instances_results.json"
    report = evaluate_results([str(results)], [str(pidray / "annotations" / "xray_test_easy.json")])
    assert json.loads(results.read_text())
    for kind in ("bbox", "segm"):
        assert report["subsets"]["easy"][kind]["AP"] == pytest.approx(metrics[-1][f"{kind}/AP"])
