"""Checked training and test sets: every annotation has all fields, and every scan exists.

Boxes in the file and in annotations are x, y, width, height. `box_of` returns x0, y0, x1, y1, half-open, in pixels.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as mask_api

from segloc.common import masks, white_level
from segloc.common.datasets import Split, scan_paths
from segloc.common.datasets.coco import CocoFile, CocoImage, CocoItem, read_coco
from segloc.common.datasets.coco_fields import Id, shown
from segloc.common.errors import InputError
from segloc.common.images import MAX_PIXELS
from segloc.common.white_level import WhiteLevel

MAX_SIDE_PX = 65_500

Annotation = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Scan:
    """One image and its annotations that have a mask.

    Attributes:
        image_id: id in its annotation file, a number or text; different PIDray files use the same ids.
        path: the image file.
        width: in pixels, from the annotation file.
        height: in pixels, from the annotation file.
        annotations: COCO annotations with every field that COCO's evaluation reads.
        white: white level of its data set (`segloc.common.white_level`); None if it has none.
    """

    image_id: Id
    path: Path
    width: int
    height: int
    annotations: tuple[Annotation, ...]
    white: int | None = None


@dataclasses.dataclass(frozen=True)
class CocoSplit:
    """A checked COCO file.

    Attributes:
        name: of the split.
        classes: category names in ascending order of their ids; the position is the class id inside the project.
        category_ids: the ids in the file, in the same order.
        scans: the images, in the file's order.
        ground_truth: the file's content for the COCO evaluation; ``segmentation`` is None if it cannot be decoded.
        dropped: number of annotations whose mask cannot be decoded; only `ground_truth` has them, for their boxes.
    """

    name: str
    classes: tuple[str, ...]
    category_ids: tuple[Id, ...]
    scans: tuple[Scan, ...]
    ground_truth: dict[str, Any]
    dropped: int

    def with_white(self, level: int | None) -> CocoSplit:
        """Return the same set, whose scans are read with a white level."""
        return dataclasses.replace(self, scans=tuple(dataclasses.replace(scan, white=level) for scan in self.scans))

    def choose_white(self, given: int | None = None, option: str = white_level.SETTING) -> WhiteLevel:
        """Return the white level `given`, or measure it on this set's annotated scans; see `white_level.choose`.

        Stage 1 looks at annotated scans, too, so that it finds the same level.
        """
        scans = [scan for scan in self.scans if scan.annotations] or self.scans
        return white_level.choose((scan.path for scan in scans), given, option)


def read_split(split: Split) -> CocoSplit:
    """Read and check a COCO file; with an image folder, check that every image exists.

    Raises:
        InputError: the file is not COCO, an id repeats or is not listed, an annotation has a malformed field or neither
            box nor mask, or an image is missing.
    """
    content = read_coco(split.annotations)
    try:
        sizes = {image.id: _size(image) for image in content.images.values()}
        annotations = _annotations(content, sizes)
    except ValueError as error:
        raise InputError(f"{split.annotations}: {error}") from error
    by_image = collections.defaultdict(list)
    for annotation in annotations:
        if annotation["segmentation"] is not None:
            by_image[annotation["image_id"]].append(annotation)
    paths = _paths(split, content.images.values())
    scans = tuple(
        Scan(key, path, *sizes[key], tuple(by_image[key])) for key, path in zip(content.images, paths, strict=True)
    )
    truth = {
        "info": {},
        "images": [{"id": scan.image_id, "width": scan.width, "height": scan.height} for scan in scans],
        "categories": [{"id": key, "name": name} for key, name in content.categories.items()],
        "annotations": annotations,
    }
    dropped = sum(annotation["segmentation"] is None for annotation in annotations)
    classes, category_ids = tuple(content.categories.values()), tuple(content.categories)
    return CocoSplit(split.name, classes, category_ids, scans, truth, dropped)


def mask_of(annotation: Annotation, height: int, width: int) -> np.ndarray:
    """Decode the mask of an annotation: uint8 0 or 1, [height, width]."""
    return mask_api.decode(masks.to_rle(annotation["segmentation"], height, width))


def box_of(annotation: Annotation, height: int, width: int) -> tuple[float, float, float, float]:
    """Return the box of an annotation as x0, y0, x1, y1, clipped to the scan."""
    x, y, w, h = annotation["bbox"]
    return max(x, 0.0), max(y, 0.0), min(x + w, float(width)), min(y + h, float(height))


def is_trainable(annotation: Annotation, height: int, width: int) -> bool:
    """Return whether training uses an annotation: like the official loader, no crowds and no boxes below one pixel."""
    x0, y0, x1, y1 = box_of(annotation, height, width)
    return not annotation["iscrowd"] and annotation["area"] > 0 and x1 - x0 >= 1 and y1 - y0 >= 1


def _size(image: CocoImage) -> tuple[int, int]:
    """Return width and height in pixels."""
    if image.size is None:
        raise ValueError(f"not COCO: image {image.name!r} has no width or height")
    if not all(1 <= side <= MAX_SIDE_PX for side in image.size):
        raise ValueError(f"image {image.name!r} is not between 1 and {MAX_SIDE_PX} pixels high and wide")
    if image.size[0] * image.size[1] > MAX_PIXELS:
        raise ValueError(f"image {image.name!r} has more than {MAX_PIXELS} pixels")
    return image.size


def _annotations(content: CocoFile, sizes: dict[Any, tuple[int, int]]) -> list[Annotation]:
    counts = collections.Counter(item.id for item in content.items if item.id is not None)
    if repeated := [key for key, count in counts.items() if count > 1]:
        raise ValueError(f"annotation id {repeated[0]!r} occurs more than once")
    found = []
    for number, item in enumerate(content.items, start=1):
        if item.malformed:
            raise ValueError(f"not COCO: {_name(item)} has a malformed {item.malformed[0]}")
        if item.image_id not in sizes:
            raise ValueError(f"annotation {shown(item.id)} has image_id {shown(item.image_id)}, which is not listed")
        if item.category_id not in content.categories:
            raise ValueError(f"{_name(item)} has category_id {item.category_id!r}, which is not listed")
        # Renumber from 1: PIDray has id 0, which COCO's evaluation reads as "unmatched".
        found.append({"id": number, **_annotation(item, *sizes[item.image_id])})
    return found


def _annotation(item: CocoItem, width: int, height: int) -> Annotation:
    """Return all other fields that COCO's evaluation reads.

    ``segmentation`` is None if it cannot be decoded. A missing box is computed from the mask. An empty mask counts in
    COCO as an item that cannot be found; its ``area`` is set to 0 so that training skips it.
    """
    try:
        mask = masks.checked(item.segmentation, width, height)
    except masks.MaskError:
        mask = None
    encoded = None if mask is None else masks.to_rle(mask, height, width)
    empty = encoded is not None and not mask_api.area(encoded)
    box, area = item.box, item.area
    if box is None:
        if encoded is None or empty:
            raise ValueError(f"{_name(item)} has no box and no mask to compute it from")
        box = mask_api.toBbox(encoded).tolist()
    if area is None:
        area = box[2] * box[3]
    return {
        "image_id": item.image_id,
        "category_id": item.category_id,
        "bbox": box,
        "area": min(area, 0) if empty else area,
        "iscrowd": int(item.crowd),
        "segmentation": mask,
    }


def _name(item: CocoItem) -> str:
    return f"annotation {item.id!r} of image {item.image_id!r}"[:200]


def _paths(split: Split, images: Iterable[CocoImage]) -> list[Path]:
    if split.images is None:
        return [Path(scan_paths.bare_name(image.name)) for image in images]
    root, paths = split.image_folder(), []
    names = [image.name for image in images]
    files = scan_paths.resolve(root, names)
    for name in names:
        if (path := files[name]) is None:
            raise InputError(f"{root}: image {name!r} of {split.annotations} is missing")
        paths.append(path)
    return paths
