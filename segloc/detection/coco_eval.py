"""COCO average precision and recall, as a pure function of ground truth and results.

Detectron2's evaluator drops the recalls. This module keeps all metrics that pycocotools computes over all sizes, also
for each class. Metrics are in per cent; None where undefined.

COCO matches each image separately. Several test sets are therefore pooled by concatenating their matches, and ids that
repeat between the files do not collide.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import io
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval, Params

from segloc.common import rle
from segloc.common.datasets import corner_boxes, normalised_boxes
from segloc.common.datasets.coco_fields import MOST_AREA, id_order, is_number
from segloc.common.errors import InputError
from segloc.common.masks import to_rle
from segloc.common.parse import shown

FIELDS = {"bbox": "bbox", "segm": "segmentation"}  # field of a COCO result, by IoU type
IOU_TYPES = tuple(FIELDS)
METRICS = ("AP", "AP50", "AP75", "AR1", "AR10", "AR100")
MEAN, POOLED = "mean", "pooled"  # summaries of several test sets: mean of their metrics, and all images as one set
# COCO's "all", in square pixels; its other three ranges would take three quarters of the time.
ALL_SIZES = [0, MOST_AREA]

AT_ONCE = 1000  # masks checked together; more do not fit into the processor's cache
PARAMS = Params(iouType="bbox")  # COCO's thresholds and limits

Metrics = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Matches:
    """Detections matched with items by COCO's rules, separately for each image.

    Attributes:
        classes: names in ascending order of the category ids.
        images: number of images.
        records: for each class, COCO's record of every image (``COCOeval.evalImgs``) in ascending order of the image
            ids; None for an image with neither items nor detections of the class.
    """

    classes: tuple[str, ...]
    images: int
    records: tuple[tuple[dict[str, Any] | None, ...], ...]


def parts(report: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the metrics of each test set, then of the mean and the pooled set if present, in display order."""
    return {**report["subsets"], **{name: report[name] for name in (MEAN, POOLED) if name in report}}


def evaluate(ground_truth: dict[str, Any], results: Sequence[dict[str, Any]], iou_type: str) -> Metrics:
    """Compute the metrics of detections: `match`, then `measure`."""
    return measure(match(ground_truth, results, iou_type))


def match(ground_truth: dict[str, Any], results: Sequence[dict[str, Any]], iou_type: str) -> Matches:
    """Match detections with items.

    Args:
        ground_truth: COCO dict with ``images``, ``categories``, ``annotations``; ids of annotations from 1.
            Annotations whose ``segmentation`` is None are left out for ``segm``.
        results: COCO results: ``image_id``, ``category_id``, ``score``, and ``bbox`` (x y w h) or ``segmentation``.
        iou_type: ``bbox`` or ``segm``.

    Raises:
        InputError: a result is incomplete, or the ground truth does not list its image or category.
    """
    _check(ground_truth, results, FIELDS[iou_type])
    # pycocotools changes its arguments, prints, and confuses ids that a float cannot represent.
    image_numbers, category_numbers = _numbers(ground_truth["images"]), _numbers(ground_truth["categories"])

    def copied(entry: dict[str, Any], fields: Iterable[str]) -> dict[str, Any]:
        copy_of = {field: entry[field] for field in fields}
        copy_of["image_id"] = image_numbers[entry["image_id"]]
        copy_of["category_id"] = category_numbers[entry["category_id"]]
        return copy_of

    items = [a for a in ground_truth["annotations"] if iou_type == "bbox" or a["segmentation"] is not None]
    truth = {
        "info": {},
        "images": [{**image, "id": image_numbers[image["id"]]} for image in ground_truth["images"]],
        "categories": [{**one, "id": category_numbers[one["id"]]} for one in ground_truth["categories"]],
        "annotations": [copied(item, item) for item in items],
    }
    found = [copied(result, ("score", FIELDS[iou_type])) for result in results]
    if iou_type == "segm":
        sizes = {image["id"]: (int(image["height"]), int(image["width"])) for image in truth["images"]}
        for result in found:
            result["segmentation"] = to_rle(result["segmentation"], *sizes[result["image_id"]])
    with contextlib.redirect_stdout(io.StringIO()):
        coco = _index(truth)
        # loadRes fails on an empty list.
        detections = coco.loadRes(found) if found else _index({**truth, "annotations": []})
        evaluation = COCOeval(coco, detections, iou_type)
        evaluation.params.areaRng = [ALL_SIZES]
        evaluation.evaluate()
    names = {category["id"]: category["name"] for category in truth["categories"]}
    classes = tuple(names[id_] for id_ in evaluation.params.catIds)
    images = len(evaluation.params.imgIds)
    records = tuple(tuple(evaluation.evalImgs[k * images : (k + 1) * images]) for k in range(len(classes)))
    return Matches(classes, images, records)


def pool(parts: Sequence[Matches]) -> Matches:
    """Pool the images of several test sets with the same classes."""
    assert len({part.classes for part in parts}) == 1
    records = tuple(sum(of_class, ()) for of_class in zip(*(part.records for part in parts), strict=True))
    return Matches(parts[0].classes, sum(part.images for part in parts), records)


def measure(matches: Matches) -> Metrics:
    """Compute `METRICS` over all classes, and under ``per_class`` for each class name."""
    evaluation = COCOeval(iouType="bbox")  # only matching depends on the type
    evaluation.params.areaRng = [ALL_SIZES]
    evaluation.params.imgIds = list(range(matches.images))
    evaluation.params.catIds = list(range(len(matches.classes)))
    evaluation._paramsEval = copy.deepcopy(evaluation.params)
    evaluation.evalImgs = [record for of_class in matches.records for record in of_class]
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation.accumulate()
    precision, recall = evaluation.eval["precision"][:, :, :, 0, -1], evaluation.eval["recall"][:, :, 0, :]
    per_class = {
        name: figures(precision[:, :, k : k + 1], recall[:, k : k + 1]) for k, name in enumerate(matches.classes)
    }
    return {**figures(precision, recall), "per_class": per_class}


def figures(precision: np.ndarray, recall: np.ndarray) -> Metrics:
    """Compute `METRICS` from COCO's tables, where -1 marks a class without items.

    Args:
        precision: [IoU, recall, class] at up to 100 detections per image.
        recall: [IoU, class, limit] at up to 1, 10 and 100 detections per image.
    """
    ious = PARAMS.iouThrs
    values = [precision, precision[np.isclose(ious, 0.5)], precision[np.isclose(ious, 0.75)]]
    values += [recall[:, :, limit] for limit in range(3)]
    return {name: _percent(value) for name, value in zip(METRICS, values, strict=True)}


def mean(parts: Sequence[Metrics]) -> Metrics:
    """Average the metrics of test sets with the same classes; PIDray's "overall" is this mean of its three sets."""
    columns = {key: [part[key] for part in parts] for key in parts[0]}
    return {key: mean(c) if isinstance(c[0], dict) else mean_of_all(c) for key, c in columns.items()}


def mean_of_all(values: Sequence[float | None]) -> float | None:
    """Compute the plain mean; None without values or if one is None, as the mean of the rest is another quantity."""
    present = [value for value in values if value is not None]
    return sum(present) / len(present) if present and len(present) == len(values) else None


def _check(ground_truth: dict[str, Any], results: Sequence[dict[str, Any]], field: str) -> None:
    sizes = {image["id"]: (int(image["height"]), int(image["width"])) for image in ground_truth["images"]}
    categories = {category["id"] for category in ground_truth["categories"]}
    for position, result in enumerate(results):
        missing = [key for key in ("image_id", "category_id", "score", field) if key not in result]
        if missing:
            raise InputError(f"result {position} has no {missing[0]!r}")
        if not _is_listed(result["image_id"], sizes):
            raise InputError(f"result {position} has image_id {shown(result['image_id'])}, which the annotations lack")
        if not _is_listed(result["category_id"], categories):
            raise InputError(f"result {position} has category_id {shown(result['category_id'])}, which is not listed")
        if not is_number(result["score"]):
            raise InputError(f"result {position} has score {shown(result['score'])}, which is not a number")
        if field == "bbox":
            box = result["bbox"]
            if not (isinstance(box, list) and len(box) == 4 and all(map(is_number, box))):
                raise InputError(f"result {position} has bbox {shown(box)}, which is not x, y, width, height")
            if box[2] < 0 or box[3] < 0:
                raise InputError(f"result {position} has bbox {shown(box)}, whose width or height is negative")
    if field == "bbox":
        boxes, images = [r["bbox"] for r in results], [sizes[r["image_id"]][::-1] for r in results]
        if normalised_boxes.are_normalised(boxes, images):
            raise InputError(
                f"all {len(boxes)} boxes lie within 0 to 1, such as bbox {shown(boxes[0])} of result 0; write bbox in "
                "pixels, not as shares of the image"
            )
        wrong = corner_boxes.leaving(boxes, images)
        if corner_boxes.confirmed([boxes[n] for n in wrong], [None] * len(wrong), [images[n] for n in wrong]):
            raise InputError(
                f"boxes look like x0, y0, x1, y1: {len(wrong)} of {len(boxes)} leave their image as x, y, width, "
                f"height, such as bbox {shown(boxes[wrong[0]])} of result {wrong[0]}; {corner_boxes.HINT}"
            )
    if field == "segmentation":
        for start in range(0, len(results), AT_ONCE):
            some = results[start : start + AT_ONCE]
            good = rle.sound([r["segmentation"] for r in some], [sizes[r["image_id"]] for r in some])
            if not good.all():
                position = start + int(np.argmin(good))
                raise InputError(f"result {position} has a segmentation that is not an RLE of the image's size")


def _is_listed(value: Any, ids: Collection[Any]) -> bool:
    return isinstance(value, (int, float, str)) and not isinstance(value, bool) and value in ids


def _numbers(entries: Sequence[dict[str, Any]]) -> dict[Any, int]:
    """Number entries from 1 in ascending order of their ids."""
    return {key: number for number, key in enumerate(sorted((entry["id"] for entry in entries), key=id_order), start=1)}


def _index(content: dict[str, Any]) -> COCO:
    coco = COCO()
    coco.dataset = content
    coco.createIndex()
    return coco


def _percent(table: np.ndarray) -> float | None:
    valid = table[table > -1]
    return float(100 * valid.mean()) if valid.size else None
