"""COCO annotation files and PIDray's folders, read without registering anything anywhere.

Boxes in the file are x, y, width, height; everything handed out is x0, y0, x1, y1, half-open, in pixels of the scan.
"""

from __future__ import annotations

import collections
import dataclasses
import json
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as mask_api

from segloc.common import rle
from segloc.common.errors import InputError

SUBSETS = ("easy", "hard", "hidden")
MAX_SIDE_PX = 65_500


@dataclasses.dataclass(frozen=True)
class Split:
    """A part of a data set: a name, a COCO file and the folder its file names are relative to (None: no images)."""

    name: str
    annotations: Path
    images: Path | None


@dataclasses.dataclass(frozen=True)
class Scan:
    """One image and its annotations that have a mask; they stay as the file has them, but for what `_checked` adds.

    Attributes:
        image_id: id in its file; ids restart in every PIDray file.
        path: where it lies.
        width: in pixels, as the file says.
        height: in pixels, as the file says.
        annotations: COCO annotations.
    """

    image_id: int
    path: Path
    width: int
    height: int
    annotations: tuple[dict[str, Any], ...]


@dataclasses.dataclass(frozen=True)
class CocoSplit:
    """A COCO file that has been checked.

    Attributes:
        name: of the split.
        classes: category names in ascending order of their ids; the position is the class id inside the project.
        category_ids: the ids in the file, in the same order.
        scans: the images, in the file's order.
        ground_truth: the file's content for the COCO evaluation; ``segmentation`` is None where `dropped` counts it.
        dropped: number of annotations without a mask that can be decoded: in `ground_truth` alone, for their boxes.
    """

    name: str
    classes: tuple[str, ...]
    category_ids: tuple[int, ...]
    scans: tuple[Scan, ...]
    ground_truth: dict[str, Any]
    dropped: int


def pidray_splits(root: str | Path) -> dict[str, Split]:
    """Find the training set and the three test sets in a PIDray folder of either release.

    Args:
        root: the folder that holds ``annotations/``, or one around it (archives unpack to ``pidray/pidray``).

    Returns:
        ``train``, ``easy``, ``hard`` and ``hidden``; none is opened.

    Raises:
        InputError: there is no ``annotations/`` folder, or it holds neither release.
    """
    folder = Path(root)
    if not folder.is_dir():
        raise InputError(f"{root}: no such folder")
    nested = (folder, folder / "pidray", folder / "pidray" / "pidray")
    folder = next((base for base in nested if (base / "annotations").is_dir()), folder)
    annotations = folder / "annotations"
    if any((annotations / f"xray_{name}.json").is_file() for name in ("train", *(f"test_{s}" for s in SUBSETS))):
        train = Split("train", annotations / "xray_train.json", folder / "train")
        return {"train": train, **{s: Split(s, annotations / f"xray_test_{s}.json", folder / s) for s in SUBSETS}}
    if any((annotations / f"{name}.json").is_file() for name in ("train", *(f"test_{s}" for s in SUBSETS))):
        train = Split("train", annotations / "train.json", folder / "train")
        return {"train": train, **{s: Split(s, annotations / f"test_{s}.json", folder / "test") for s in SUBSETS}}
    raise InputError(f"{root}: not a PIDray folder (no annotations/xray_train.json and no annotations/train.json)")


def read_split(split: Split) -> CocoSplit:
    """Read and check a COCO file; with an image folder, check that every image is there.

    Raises:
        InputError: not a COCO file, ids that are no whole numbers, repeat or point nowhere, an annotation with neither
            box nor mask, or an image that is missing.
    """
    source = str(split.annotations)
    content = _read_json(split.annotations, "annotation")
    if not isinstance(content, dict) or not {"images", "annotations", "categories"} <= content.keys():
        raise InputError(f"{source}: not a COCO annotation file (no images, annotations and categories)")
    try:
        _whole([category["id"] for category in content["categories"]], "category id", source)
        categories = sorted(content["categories"], key=lambda category: category["id"])
        category_ids = tuple(int(category["id"]) for category in categories)
        image_ids = [image["id"] for image in content["images"]]
        names = tuple(str(category["name"]) for category in categories)
        _whole(image_ids, "image id", source)
        _unique(category_ids, "category id", source)
        _unique(names, "category name", source)
        _unique(image_ids, "image id", source)
        _unique([a["id"] for a in content["annotations"] if "id" in a], "annotation id", source)
        sizes = {image["id"]: (int(image["height"]), int(image["width"])) for image in content["images"]}
        if any(not 1 <= side <= MAX_SIDE_PX for size in sizes.values() for side in size):
            raise InputError(f"{source}: an image is not between 1 and {MAX_SIDE_PX} pixels high and wide")
        annotations = [_checked(annotation, sizes, category_ids, source) for annotation in content["annotations"]]
        masked = [annotation for annotation in annotations if annotation["segmentation"] is not None]
        by_image = collections.defaultdict(list)
        for number, annotation in enumerate(annotations, start=1):
            annotation["id"] = number  # COCO's evaluation takes id 0, which PIDray has, for "unmatched"
        for annotation in masked:
            by_image[annotation["image_id"]].append(annotation)
        paths = _paths(split.images, [str(image["file_name"]) for image in content["images"]], source)
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise error if isinstance(error, InputError) else InputError(f"{source}: not COCO ({error!r})") from error
    scans = tuple(
        Scan(image_id, path, sizes[image_id][1], sizes[image_id][0], tuple(by_image[image_id]))
        for image_id, path in zip(image_ids, paths, strict=True)
    )
    truth = {"info": {}, "images": content["images"], "categories": categories, "annotations": annotations}
    return CocoSplit(split.name, names, category_ids, scans, truth, len(annotations) - len(masked))


def read_results(path: Path) -> list[dict[str, Any]]:
    """Read a COCO results file; `segloc.detection.coco_eval.match` checks what its detections hold.

    Raises:
        InputError: no such file, or it is none.
    """
    content = _read_json(path, "results")
    if not isinstance(content, list) or not all(isinstance(item, dict) for item in content):
        raise InputError(f"{path}: not COCO results (a list of detections)")
    return content


def mask_of(annotation: dict[str, Any], height: int, width: int) -> np.ndarray:
    """Decode polygons, uncompressed or compressed RLE to a mask, uint8 0 or 1, [height, width]."""
    return mask_api.decode(to_rle(annotation["segmentation"], height, width))


def box_of(annotation: dict[str, Any], height: int, width: int) -> tuple[float, float, float, float]:
    """Box of an annotation as x0, y0, x1, y1, cut at the edges of the scan."""
    x, y, w, h = annotation["bbox"]
    return max(x, 0.0), max(y, 0.0), min(x + w, float(width)), min(y + h, float(height))


def is_trainable(annotation: dict[str, Any], height: int, width: int) -> bool:
    """Tell whether training uses an annotation: like the official loader, no crowds and nothing below one pixel."""
    x0, y0, x1, y1 = box_of(annotation, height, width)
    return not annotation["iscrowd"] and annotation["area"] > 0 and x1 - x0 >= 1 and y1 - y0 >= 1


def _read_json(path: Path, kind: str) -> Any:
    if not path.is_file():
        raise InputError(f"{path}: no such {kind} file")
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))  # other programs put a byte order mark in front
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not JSON ({error})") from error


def _checked(
    annotation: dict[str, Any], sizes: dict[int, tuple[int, int]], categories: tuple[int, ...], source: str
) -> dict[str, Any]:
    """Return a copy with all fields COCO's evaluation reads.

    `segmentation` is None if it cannot be decoded. Without a box, it gets that of its mask. With a mask of no pixel,
    which COCO counts as an item that cannot be found, its area is none either, so that it is not trained on.
    """
    if annotation["image_id"] not in sizes:
        raise InputError(f"{source}: an annotation is of image {annotation['image_id']!r}, which is not listed")
    if annotation["category_id"] not in categories:
        raise InputError(f"{source}: an annotation is of category {annotation['category_id']!r}, which is not listed")
    size = sizes[annotation["image_id"]]
    mask = _usable_mask(annotation.get("segmentation"), *size)
    encoded = None if mask is None else to_rle(mask, *size)
    empty = encoded is not None and not mask_api.area(encoded)
    box: Any = annotation.get("bbox")
    area: Any = annotation.get("area")
    if not (isinstance(box, list) and len(box) == 4 and all(map(is_number, box))):
        if encoded is None or empty:
            name = f"annotation {annotation.get('id')!r} of image {annotation['image_id']!r}"
            raise InputError(f"{source}: {name} has no box, and no mask to take it from")
        box = mask_api.toBbox(encoded).tolist()
    if not is_number(area):
        area = box[2] * box[3]
    crowd = int(annotation.get("iscrowd", 0))
    return {**annotation, "bbox": box, "segmentation": mask, "area": min(area, 0) if empty else area, "iscrowd": crowd}


def _usable_mask(segmentation: Any, height: int, width: int) -> Any:
    """Return the mask of an annotation without polygons of fewer than three points; None if it cannot be decoded."""
    if isinstance(segmentation, list):
        if not all(_is_polygon(part, max(height, width)) for part in segmentation):
            return None
        segmentation = [part for part in segmentation if len(part) >= 6]
        if not segmentation:
            return None
    elif not rle.sound([segmentation], [(height, width)])[0]:
        return None
    return segmentation


def is_number(value: Any) -> bool:
    """Tell whether a value read from JSON is a number that a float holds."""
    try:
        return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:
        return False


def _is_polygon(part: Any, reach: int) -> bool:
    """Tell whether pycocotools can draw it: its memory grows with the edges' length, so a stray 1e9 must not pass."""
    if not isinstance(part, list) or len(part) % 2:
        return False
    return all(is_number(value) and -reach <= value <= 2 * reach for value in part)


def _paths(folder: Path | None, names: list[str], source: str) -> list[Path]:
    """Find the images; re-packed copies put sub-paths into their names, so the base name will do."""
    if folder is None:
        return [Path(name) for name in names]
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder of images (for {source})")
    present = set(os.listdir(folder))
    paths = []
    for name in names:
        base = name.replace("\\", "/").rsplit("/", 1)[-1]
        path = folder / base if base in present else folder / name
        if base not in present and (".." in Path(name).parts or Path(name).is_absolute() or not path.is_file()):
            raise InputError(f"{folder}: image {name!r} of {source} is missing")
        paths.append(path)
    return paths


def _whole(ids: list[Any], what: str, source: str) -> None:
    stray = [value for value in ids if not is_number(value) or value != int(value)]
    if stray:
        raise InputError(f"{source}: {what} {str(stray[0])[:40]!r} is not a whole number")


def _unique(ids: Any, what: str, source: str) -> None:
    repeated = [value for value, count in collections.Counter(ids).items() if count > 1]
    if repeated:
        raise InputError(f"{source}: {what} {repeated[0]!r} occurs more than once")


def to_rle(segmentation: Any, height: int, width: int) -> dict[str, Any]:
    """Turn polygons or either kind of RLE into the compressed kind, which is all that pycocotools computes with."""
    if isinstance(segmentation, list):
        return mask_api.merge(mask_api.frPyObjects(segmentation, height, width))
    if isinstance(segmentation["counts"], list):
        return mask_api.frPyObjects(segmentation, height, width)
    return segmentation
