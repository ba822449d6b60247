"""Scans, their annotations, masks, and results of a detector."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

import cv2
import numpy as np

from segloc.common.datasets import Split
from segloc.common.datasets.coco import read_instances, read_results, unannotated
from segloc.common.images import decode, encode_rgba
from segloc.common.masks import MaskError, decode_rle, rasterise
from segloc.detection import coco_eval
from segloc.detection.splits import read_split
from tests.faults.mutations import changed, damaged
from tests.faults.readers.registry import HEIGHT, WIDTH, target, write_changed
from tests.segloc.toy_coco import write_split


def _coco(folder: Path) -> None:
    write_split(folder / "good.json", folder / "images", 4, seed=0, width=WIDTH, height=HEIGHT)
    content = json.loads((folder / "good.json").read_text())
    content["annotations"][0]["segmentation"] = [[5, 5, 30, 5, 30, 30]]
    content["annotations"][1]["segmentation"]["counts"] = [100, 50, WIDTH * HEIGHT - 150]
    (folder / "good.json").write_text(json.dumps(content))
    results = [
        {"image_id": a["image_id"], "category_id": a["category_id"], "score": 0.5, "bbox": a["bbox"]}
        for a in content["annotations"]
    ]
    results[2]["segmentation"] = content["annotations"][2]["segmentation"]
    (folder / "results.json").write_text(json.dumps(results))


@target("annotation files", _coco)
def annotation_files(rng: np.random.Generator, folder: Path) -> None:
    """Read by segments, by regions and by fine-tuning."""
    path = folder / "a.json"
    write_changed(path, json.loads((folder / "good.json").read_text()), rng)
    reader = rng.integers(3)
    if reader == 0:
        found = read_instances(path, folder / "images")
        for one in found.instances:
            with contextlib.suppress(MaskError):
                rasterise(one.segmentation, WIDTH, HEIGHT)
        json.dumps(found.skipped).encode()
    elif reader == 1:
        unannotated(path, folder / "images")
    else:
        images = folder / "images" if rng.random() < 0.5 else None
        split = read_split(Split("a", path, images))
        coco_eval.match(split.ground_truth, [], "bbox")


@target("masks", lambda folder: None)
def masks(rng: np.random.Generator, folder: Path) -> None:
    """Polygons and run lengths."""
    del folder
    text = coco_eval.to_rle([[5, 5, 60, 5, 60, 40, 20, 50]], HEIGHT, WIDTH)["counts"].decode()
    if rng.random() < 0.4:
        decode_rle(damaged(text.encode(), rng).decode("latin-1"), WIDTH, HEIGHT)
        return
    good = [
        [[5, 5, 60, 5, 60, 40, 20, 50], [1, 1, 5, 5, 5, 1]],
        {"size": [HEIGHT, WIDTH], "counts": text},
        {"size": [HEIGHT, WIDTH], "counts": [1000, 100, WIDTH * HEIGHT - 1100]},
    ]
    side = WIDTH if rng.random() < 0.7 else int(rng.choice([1, 2, 100_000]))
    rasterise(changed(good[rng.integers(3)], rng), side, HEIGHT)


@target("results files", _coco)
def results_files(rng: np.random.Generator, folder: Path) -> None:
    """COCO results against their annotations."""
    path = folder / "r.json"
    write_changed(path, json.loads((folder / "results.json").read_text()), rng)
    split = read_split(Split("good", folder / "good.json", None))
    found = read_results(path)
    for kind in coco_eval.IOU_TYPES if rng.random() < 0.5 else ["bbox"]:
        json.dumps(coco_eval.evaluate(split.ground_truth, found, kind))


def _images(folder: Path) -> None:
    image = np.random.default_rng(0).integers(0, 255, (40, 60, 3), np.uint8)
    for suffix, picture in ((".jpg", image), (".png", image), (".bmp", image), (".tiff", image)):
        (folder / f"good{suffix}").write_bytes(cv2.imencode(suffix, picture)[1].tobytes())
    (folder / "grey.png").write_bytes(cv2.imencode(".png", image[..., 0])[1].tobytes())
    (folder / "deep.png").write_bytes(cv2.imencode(".png", image.astype(np.uint16) * 16)[1].tobytes())
    (folder / "deep.tiff").write_bytes(cv2.imencode(".tiff", image.astype(np.uint16) * 16)[1].tobytes())
    (folder / "alpha.png").write_bytes(encode_rgba(np.dstack([image, image[..., :1]])))


@target("images", _images)
def images(rng: np.random.Generator, folder: Path) -> None:
    """Each format, in each mode and at each reduction."""
    files = sorted(path for path in folder.iterdir() if path.suffix)
    data = damaged(files[int(rng.integers(len(files)))].read_bytes(), rng)
    if rng.random() < 0.3:  # a size in the header
        at = int(rng.integers(8, min(200, len(data)) or 9))
        data = data[:at] + b"\x7f\xff" + data[at + 2 :]
    found = decode(data, ("rgb", "grey")[rng.integers(2)], (1, 2, 4, 8)[rng.integers(4)])  # type: ignore[call-overload]
    assert found.dtype == np.uint8
