"""Scans of one pixel, of one line, and very long ones, through every command that reads images."""

import json

import cv2
import numpy as np
import pytest
import torch

from pipeline import audit, crops, regions, segments, synthesize
from segloc import evaluate, pictures
from segloc.common.datasets import Split
from segloc.detection.data import fit, make_example
from segloc.detection.splits import read_split
from segloc.models.backbone import SegLocBackbone
from tests.segloc.toy_coco import rle

# Width and height, pixels.
SHAPES = ((1, 1), (1, 300), (300, 1), (3, 2000), (2000, 3), (1, 5000), (20000, 3), (31, 31), (4000, 40), (40, 4000))


def bag(rng, width, height):
    scan = np.full((height, width, 3), 250, np.uint8)
    inside = scan[height // 5 : -(height // 5), width // 6 : -(width // 6)]
    inside[:] = cv2.resize(rng.integers(60, 200, (6, 8, 3), dtype=np.uint8), inside.shape[1::-1])
    return scan


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Usual scans and extreme ones, each with an item that covers all of it or a part of the usual ones."""
    folder, rng = tmp_path_factory.mktemp("shapes"), np.random.default_rng(0)
    content = {"categories": [{"id": 1, "name": "Gun"}], "images": [], "annotations": []}
    (folder / "images").mkdir()
    for number, (width, height) in enumerate((*SHAPES, (220, 150), (200, 160), (210, 140))):
        usual = 100 < width < 250
        scan = bag(rng, width, height) if usual else np.full((height, width, 3), 90, np.uint8)
        cv2.imwrite(str(folder / "images" / f"{number}.png"), scan)
        x, y, w, h = (60, 50, 40, 30) if usual else (0, 0, width, height)
        polygon = [x, y, x + w, y, x + w, y + h, x, y + h]
        box = {"bbox": [x, y, w, h], "area": w * h, "segmentation": [polygon], "iscrowd": 0}
        content["images"].append({"id": number, "file_name": f"{number}.png", "width": width, "height": height})
        content["annotations"].append({"id": number, "image_id": number, "category_id": 1, **box})
    (folder / "truth.json").write_text(json.dumps(content))
    results = []
    for image, item in zip(content["images"], content["annotations"], strict=True):
        (x, y, w, h), mask = item["bbox"], np.zeros((image["height"], image["width"]), np.uint8)
        mask[y : y + h, x : x + w] = 1
        found = {"image_id": item["image_id"], "category_id": 1, "bbox": item["bbox"], "score": 0.9}
        results.append(found | {"segmentation": rle(mask)})
    (folder / "results.json").write_text(json.dumps(results))
    return folder


def test_stage_one(data, tmp_path, capsys):
    table, items, shards = tmp_path / "r.parquet", tmp_path / "s.parquet", tmp_path / "shards"
    backgrounds, one = ["--backgrounds", str(data / "images")], ["--workers", "1"]
    for mode in ("paper", "adaptive"):
        gallery = ["--gallery", str(tmp_path / f"{mode}.png"), "--mode", mode]
        assert regions.main([*backgrounds, "--out", str(table), *gallery, *one]) == 0
    assert "too_small" in capsys.readouterr().out
    for number, _ in enumerate(SHAPES):
        image = str(data / "images" / f"{number}.png")
        assert regions.main(["--steps", image, "--out", str(tmp_path / "steps.png")]) == 0
    labelled = ["--annotations", str(data / "truth.json"), "--images", str(data / "images")]
    assert segments.main([*labelled, "--out", str(items), *one, "--max-skipped", "1"]) == 0
    inputs = [*backgrounds, "--regions", str(table)]
    assert crops.main([*inputs, "--out", str(tmp_path / "c.parquet"), *one]) == 0
    sizes = ["--pairs", "24", "--per-shard", "12", "--width", "120", *one]
    assert synthesize.main([*inputs, "--segments", str(items), "--out", str(shards), *sizes]) == 0
    drawn = ["--segments", str(items), "--gallery", str(tmp_path / "g.png")]
    assert audit.main(["--shards", str(shards), *drawn, *one]) in (0, 1)
    assert "24 pairs" in capsys.readouterr().out


def test_the_truth_scores_100_and_is_drawn(data, tmp_path):
    files = ["--results", str(data / "results.json"), "--annotations", str(data / "truth.json")]
    assert evaluate.main([*files, "--out", str(tmp_path / "o.json")]) == 0
    found = json.loads((tmp_path / "o.json").read_text())["pooled"]
    assert found["bbox"]["AP"] == pytest.approx(100)
    assert found["segm"]["AP"] == pytest.approx(100)
    drawn = ["--images", str(data / "images"), "--out", str(tmp_path / "p.png"), "--each", "9"]
    assert pictures.main([*files, *drawn]) == 0


@pytest.mark.parametrize("size", [1, 64, 500])
def test_training_examples_of_every_shape_can_be_flipped(data, size):
    for scan in read_split(Split("t", data / "truth.json", data / "images")).scans:
        plain, flipped = (make_example(scan, {1: 0}, size, flip) for flip in (False, True))
        assert max(plain.image.shape[1:]) == size
        assert torch.equal(flipped.image, plain.image.flip(-1))
        assert torch.equal(flipped.masks, plain.masks.flip(-1))


def test_features_of_every_shape_and_of_views_with_negative_strides():
    backbone = SegLocBackbone("resnet18", norm="gn", sda_norm="gn").eval()
    for width, height in ((1, 1), (1, 500), (500, 3)):
        scan = np.random.default_rng(0).integers(0, 255, (height, width, 3), dtype=np.uint8)
        assert torch.equal(
            backbone.features([scan[::-1, ::-1]])["p2"], backbone.features([scan[::-1, ::-1].copy()])["p2"]
        )
    assert fit(np.zeros((3, 20000, 3), np.uint8), 500).shape == (1, 500, 3)
