"""Checked training and test sets: every annotation has all fields. Faulty annotations are left out and counted.

Boxes in the file and in annotations are x, y, width, height. `box_of` returns x0, y0, x1, y1, half-open, in pixels.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Container, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as mask_api

from segloc.common import masks, white_level
from segloc.common.datasets import Split, scan_paths
from segloc.common.datasets.coco import CocoFile, CocoImage, CocoItem, read_coco
from segloc.common.datasets.coco_fields import Id, class_key
from segloc.common.errors import InputError
from segloc.common.images import MAX_PIXELS
from segloc.common.skips import Skips
from segloc.common.white_level import WhiteLevel

MAX_SIDE_PX = 65_500

Annotation = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Scan:
    """One image and its annotations that have a mask.

    Attributes:
        image_id: id in its annotation file, a number or text; different PIDray files use the same ids.
        path: the image file, which may be missing.
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
        skips: the annotations that are left out, by reason.
        unmasked: those whose mask cannot be decoded; only `ground_truth` has them, for their boxes.
    """

    name: str
    classes: tuple[str, ...]
    category_ids: tuple[Id, ...]
    scans: tuple[Scan, ...]
    ground_truth: dict[str, Any]
    skips: Skips
    unmasked: Skips

    @property
    def dropped(self) -> int:
        """Number of annotations whose mask cannot be decoded."""
        return self.unmasked.skipped

    @property
    def faulty(self) -> Skips:
        """Annotations that are left out, or whose mask is damaged. One without any mask is whole: it has a box."""
        return self.skips.merged(self.unmasked.without(masks.NO_MASK))

    def with_white(self, level: int | None) -> CocoSplit:
        """Return the same set, whose scans are read with a white level."""
        return dataclasses.replace(self, scans=tuple(dataclasses.replace(scan, white=level) for scan in self.scans))

    def only(self, image_ids: Container[Id], name: str) -> CocoSplit:
        """Return the part of this set on some images, under another name. The counts of left-out annotations stay."""
        truth = {
            **self.ground_truth,
            "images": [image for image in self.ground_truth["images"] if image["id"] in image_ids],
            "annotations": [item for item in self.ground_truth["annotations"] if item["image_id"] in image_ids],
        }
        scans = tuple(scan for scan in self.scans if scan.image_id in image_ids)
        return dataclasses.replace(self, name=name, scans=scans, ground_truth=truth)

    def with_classes(self, classes: Sequence[str], source: str, own: object) -> CocoSplit:
        """Return the same set, of the file `own`, with its classes written as in the file or run `source`.

        Raises:
            InputError: they are other classes, or in another order.
        """
        require_classes(classes, source, self.classes, own)
        categories = [{"id": key, "name": name} for key, name in zip(self.category_ids, classes, strict=True)]
        truth = {**self.ground_truth, "categories": categories}
        return dataclasses.replace(self, classes=tuple(classes), ground_truth=truth)

    def choose_white(self, given: int | None = None, option: str = white_level.SETTING) -> WhiteLevel:
        """Return the white level `given`, or measure it on this set's annotated scans; see `white_level.choose`.

        Stage 1 looks at annotated scans, too, so that it finds the same level.
        """
        scans = [scan for scan in self.scans if scan.annotations] or self.scans
        return white_level.choose((scan.path for scan in scans), given, option)


def require_classes(classes: Iterable[str], source: object, others: Iterable[str], own: object) -> None:
    """Require that the classes `others` of the file `own` are those of the file or run `source`, in its order.

    Raises:
        InputError: they are not.
    """
    if [*map(class_key, classes)] != [*map(class_key, others)]:
        raise InputError(
            f"{own}: the categories differ from those of {source} ({', '.join(classes)}); use a file with these"
        )


def read_split(split: Split) -> CocoSplit:
    """Read and check a COCO file.

    Annotations are left out and counted if their id repeats within the image, if their image or category is not listed,
    if a field is malformed, if their box does not fit their mask, and if they have neither box nor mask.

    Raises:
        InputError: the file is not COCO, its images or categories are invalid, or all annotations are left out.
    """
    content = read_coco(split.annotations)
    try:
        sizes = {image.id: _size(image) for image in content.images.values()}
    except ValueError as error:
        raise InputError(f"{split.annotations}: {error}") from error
    annotations, skips, unmasked = _annotations(content, sizes)
    if skips.skipped and not annotations:
        raise InputError(f"{split.annotations}: no usable annotation; {skips.summary()}")
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
    classes, category_ids = tuple(content.categories.values()), tuple(content.categories)
    return CocoSplit(split.name, classes, category_ids, scans, truth, skips, unmasked)


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


def _annotations(content: CocoFile, sizes: dict[Any, tuple[int, int]]) -> tuple[list[Annotation], Skips, Skips]:
    """Return the annotations, those that are left out, and those without a mask."""
    skips, unmasked = Skips("annotations", len(content.items)), Skips("annotations", len(content.items))
    found = []
    seen: set[tuple[Any, Any]] = set()
    for number, item in enumerate(content.items, start=1):
        # As in stage 1, an id stands for one annotation of its image; other images may have the same id.
        key = item.image_id, item.id
        problem = item.fault or ("annotation id repeats" if item.id is not None and key in seen else None)
        if problem is not None:
            skips.add(problem, item.shown)
            continue
        seen.add(key)
        mask, fault = None, ""
        width, height = sizes[item.image_id]
        try:
            mask = masks.checked(item.segmentation, width, height)
        except masks.MaskError as error:
            fault = str(error)
        annotation = _annotation(item, mask, width, height)
        if annotation is None:
            skips.add("no box and no mask to compute it from", item.shown)
            continue
        if fault:
            unmasked.add(fault, item.shown)
        # Renumber from 1: PIDray has id 0, which COCO's evaluation reads as "unmatched".
        found.append({"id": number, **annotation})
    return found, skips, unmasked


def _annotation(item: CocoItem, mask: Any, width: int, height: int) -> Annotation | None:
    """Return all other fields that COCO's evaluation reads.

    ``segmentation`` is `mask`, None if it cannot be decoded. A missing box is computed from the mask. An empty mask
    counts in COCO as an item that cannot be found; its ``area`` is set to 0 so that training skips it. None if there is
    neither a box nor a mask with pixels.
    """
    encoded = None if mask is None else masks.to_rle(mask, height, width)
    empty = encoded is not None and not mask_api.area(encoded)
    box, area = item.box, item.area
    if box is None:
        if encoded is None or empty:
            return None
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


def _paths(split: Split, images: Iterable[CocoImage]) -> list[Path]:
    if split.images is None:
        return [Path(scan_paths.bare_name(image.name)) for image in images]
    root, paths = split.image_folder(), []
    names = [image.name for image in images]
    files = scan_paths.resolve(root, names)
    for name in names:
        # Without a file, the path is one below the root that does not exist.
        paths.append(files[name] or root / scan_paths.bare_name(name))
    return paths
