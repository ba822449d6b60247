"""Which file is read for an entry, and how its ids are kept."""

import json
import os

import numpy as np
import pytest

from segloc.common.datasets import Split
from segloc.common.errors import InputError
from segloc.common.images import encode_png
from segloc.detection.data import TrainingData, digest_of, read_scan
from segloc.detection.evaluation import evaluate_results
from segloc.detection.splits import read_split
from segloc.settings.finetuning import DataSettings
from tests.segloc.toy_coco import CLASSES, coco, write_split

NAMES, LEVELS = ("scan.png", "cam2/scan.png", "part1\\0001.png"), (10, 240, 90)


def grey_scans(root, names=NAMES, levels=LEVELS, listed=None):
    """Scans of one grey level each, with one item each, and the split that lists them."""
    images, annotations = [], []
    for number, (name, level) in enumerate(zip(names, levels, strict=True)):
        (root / "im" / name).parent.mkdir(parents=True, exist_ok=True)
        (root / "im" / name).write_bytes(encode_png(np.full((40, 60, 3), level, np.uint8)))
        images.append({"id": number, "file_name": (listed or names)[number], "width": 60, "height": 40})
        square = {"bbox": [5, 5, 20, 20], "area": 400, "segmentation": [[5, 5, 25, 5, 25, 25, 5, 25]]}
        annotations.append({"id": number, "image_id": number, "category_id": 1, "iscrowd": 0, **square})
    (root / "gt.json").write_text(json.dumps(coco(images, annotations)))
    return Split("t", root / "gt.json", root / "im")


def levels_of(split):
    return [read_scan(scan).mean() for scan in read_split(split).scans]


def test_each_entry_is_read_from_its_own_path(tmp_path):
    assert levels_of(grey_scans(tmp_path)) == list(LEVELS)


def test_an_unlisted_scan_of_the_same_bare_name_is_not_read(tmp_path):
    split = grey_scans(tmp_path, ["cam2/a.png"], [240])
    (tmp_path / "im" / "a.png").write_bytes(encode_png(np.zeros((40, 60, 3), np.uint8)))
    assert levels_of(split) == [240]


@pytest.mark.parametrize("listed", [["C:\\x\\b.png", "cam2\\a.png"], ["/data/b.png", "../../cam2/a.png"]])
def test_names_of_other_computers_find_their_scans(tmp_path, listed):
    assert levels_of(grey_scans(tmp_path, ["deep/b.png", "cam2/a.png"], [30, 200], listed)) == [30, 200]


def test_one_file_is_never_two_images(tmp_path):
    split = grey_scans(tmp_path, ["scan.png", "b.png"], [10, 20], ["cam1/scan.png", "cam2/scan.png"])
    with pytest.raises(InputError, match=r"'cam1/scan.png' and 'cam2/scan.png' are the same file"):
        read_split(split)


def test_names_that_are_not_utf8_are_trained_on(tmp_path):
    names = [os.fsdecode(name) for name in (b"gep\xe4ck.png", b"\xff/2.png")]
    read = read_split(grey_scans(tmp_path, names, [30, 60]))
    data = TrainingData(read, DataSettings(flip=0.0, fraction=0.5, image_size=64), 1, seed=0)
    assert len(data) == 1
    assert data.example(0, 0).image.float().mean() in (30, 60)
    assert len(digest_of(read.scans)) == 64


STYLES = {
    "text": lambda key: f"scan #{key}",
    "text of numbers": lambda key: f" {key}.0 ",
    "decimal": float,
    "negative": lambda key: -1 - key,
    "64 bits": lambda key: 2**63 + 12345 + key,
    "128 bits": lambda key: 2**127 + key,
    "mixed": lambda key: [key, f"scan {key}", 2**64 + key][key % 3],
    "empty text": lambda key: "" if key == 0 else "x" * key,
}


@pytest.mark.parametrize("style", STYLES)
def test_the_metrics_do_not_depend_on_how_ids_are_written(tmp_path, style):
    rename = STYLES[style]
    write_split(tmp_path / "gt.json", tmp_path / "im", 9, seed=0)
    truth = json.loads((tmp_path / "gt.json").read_text())
    rng = np.random.default_rng(0)
    found = []
    for score in rng.permutation(36) / 36:
        item = truth["annotations"][int(rng.integers(9))]
        box = (np.array(item["bbox"]) + rng.integers(0, 6, 4)).tolist()
        image = item["image_id"] if rng.random() < 0.8 else int(rng.integers(9))
        found.append({"image_id": image, "category_id": item["category_id"], "bbox": box, "score": float(score)})

    def measured(name, renamed):
        (tmp_path / f"{name}.json").write_text(json.dumps(renamed))
        (tmp_path / f"{name}.results.json").write_text(json.dumps(results))
        report = evaluate_results([str(tmp_path / f"{name}.results.json")], [str(tmp_path / f"{name}.json")])
        # The order of the classes may change the last digit of a mean.
        return json.loads(json.dumps(report["pooled"], sort_keys=True), parse_float=lambda text: round(float(text), 9))

    results = found
    expected = measured("plain", truth)
    assert 1 < expected["bbox"]["AP"] < 99
    results = [one | {field: rename(one[field]) for field in ("image_id", "category_id")} for one in found]
    renamed = {
        "images": [image | {"id": rename(image["id"])} for image in truth["images"]],
        "categories": [one | {"id": rename(one["id"])} for one in truth["categories"]],
        "annotations": [
            item | {field: rename(item[field]) for field in ("id", "image_id", "category_id")}
            for item in truth["annotations"]
        ],
    }
    assert measured("renamed", renamed) == expected
    read = read_split(Split("t", tmp_path / "renamed.json", tmp_path / "im"))
    assert sorted(read.classes) == sorted(CLASSES)
    data = TrainingData(read, DataSettings(flip=0.0, image_size=64), 3, seed=0)
    classes = {scan.image_id: scan.annotations[0]["category_id"] for scan in read.scans}
    for slot in range(3):
        example = data.example(0, slot)
        assert data.class_of[classes[example.image_id]] == example.classes.item()


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (
            lambda c: c["images"][1].update(id="0"),
            r"id 0 occurs more than once: .*'scan.png' and 'cam2/scan.png'",
        ),
        (lambda c: c["images"][1].update(id=0.0), "image id 0 occurs more than once"),
        (
            lambda c: c["categories"][1].update(id="1"),
            r"category id 1 occurs more than once: it stands for '\w+' and '\w+'",
        ),
        (lambda c: c["images"][1].update(id=9.3e18), r"image id '9.3e\+18' is a decimal number beyond 2\^53"),
        (lambda c: c["images"][1].update(width=float("inf")), r"image width 'inf' .* \(image 'cam2/scan.png'\)"),
        (lambda c: c["images"][1].update(height=[[[]]]), r"image height \[\[\[\]\]\] is not a whole number"),
        (lambda c: c["categories"][0].update(name="G\ud800n"), "category name .* is not valid Unicode text"),
        (lambda c: c["categories"][0].update(name=["Gun"]), r"category name \['Gun'\] is not text"),
    ],
)
def test_unclear_fields_are_named(tmp_path, edit, message):
    split = grey_scans(tmp_path)
    content = json.loads(split.annotations.read_text())
    edit(content)
    split.annotations.write_text(json.dumps(content))
    with pytest.raises(InputError, match=message):
        read_split(split)


@pytest.mark.parametrize(
    ("field", "value"), [("image_id", 1e300), ("iscrowd", float("nan")), ("area", -1), ("area", 1e11)]
)
def test_unclear_fields_of_annotations_are_counted_by_name(tmp_path, field, value):
    split = grey_scans(tmp_path)
    content = json.loads(split.annotations.read_text())
    content["annotations"][1][field] = value
    split.annotations.write_text(json.dumps(content))
    assert read_split(split).skips.counts == {f"malformed {field}": 1}
