"""COCO's average precision and recall, as a pure function of ground truth and results.

Detectron2's evaluator computes the recalls and drops them; this keeps everything that COCO's own code (pycocotools)
measures over all sizes, for every class too. All figures are per cent; None where there is nothing to measure.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from segloc.contract import InputError
from segloc.detection.coco import is_number, is_rle, to_rle

IOU_TYPES = ("bbox", "segm")
METRICS = ("AP", "AP50", "AP75", "AR1", "AR10", "AR100")
FIELDS = {"bbox": "bbox", "segm": "segmentation"}

Metrics = dict[str, Any]


def evaluate(ground_truth: dict[str, Any], results: Sequence[dict[str, Any]], iou_type: str) -> Metrics:
    """Measure detections.

    Args:
        ground_truth: COCO dict with ``images``, ``categories``, ``annotations``; ids of annotations from 1.
        results: COCO results: ``image_id``, ``category_id``, ``score``, and ``bbox`` (x y w h) or ``segmentation``.
        iou_type: ``bbox`` or ``segm``.

    Returns:
        `METRICS` over all classes, and the same under ``per_class`` by class name.

    Raises:
        InputError: a result is incomplete, or of an image or category that the ground truth does not list.
    """
    _check(ground_truth, results, FIELDS[iou_type])
    # COCO's code writes into what it is given and talks on the terminal.
    truth = {"info": {}, **ground_truth, "annotations": [dict(a) for a in ground_truth["annotations"]]}
    found = [{key: r[key] for key in ("image_id", "category_id", "score", FIELDS[iou_type])} for r in results]
    if iou_type == "segm":
        sizes = {image["id"]: (int(image["height"]), int(image["width"])) for image in truth["images"]}
        for result in found:
            result["segmentation"] = to_rle(result["segmentation"], *sizes[result["image_id"]])
    with contextlib.redirect_stdout(io.StringIO()):
        coco = _index(truth)
        # loadRes cannot take an empty list.
        detections = coco.loadRes(found) if found else _index({**truth, "annotations": []})
        evaluation = COCOeval(coco, detections, iou_type)
        evaluation.evaluate()
        evaluation.accumulate()
    classes = {c["id"]: c["name"] for c in truth["categories"]}
    per_class = {classes[id_]: _metrics(evaluation, slice(k, k + 1)) for k, id_ in enumerate(evaluation.params.catIds)}
    return {**_metrics(evaluation, slice(None)), "per_class": per_class}


def mean(parts: Sequence[Metrics]) -> Metrics:
    """Average the metrics of several test sets; PIDray's "overall" is the plain mean of its three.

    A figure that is missing from one part is missing from the mean: the mean of the others would be another quantity.
    """
    keys = [key for key in METRICS if all(key in part for part in parts)]
    result: Metrics = {key: _mean([part[key] for part in parts]) for key in keys}
    if all("per_class" in part for part in parts):
        names = [name for name in parts[0]["per_class"] if all(name in part["per_class"] for part in parts)]
        result["per_class"] = {name: mean([part["per_class"][name] for part in parts]) for name in names}
    return result


def _mean(values: list[float | None]) -> float | None:
    present = [value for value in values if value is not None]
    return sum(present) / len(present) if present and len(present) == len(values) else None


def _check(ground_truth: dict[str, Any], results: Sequence[dict[str, Any]], field: str) -> None:
    images = {image["id"]: image for image in ground_truth["images"]}
    categories = {category["id"] for category in ground_truth["categories"]}
    for position, result in enumerate(results):
        missing = [key for key in ("image_id", "category_id", "score", field) if key not in result]
        if missing:
            raise InputError(f"result {position} has no {missing[0]!r}")
        if not _is_listed(result["image_id"], images):
            raise InputError(f"result {position} is of image {result['image_id']!r}, which the annotations do not list")
        if not _is_listed(result["category_id"], categories):
            raise InputError(f"result {position} is of category {result['category_id']!r}, which is not listed")
        if not is_number(result["score"]):
            raise InputError(f"result {position} has score {str(result['score'])[:20]}, which is not a number")
        if field == "bbox":
            box = result["bbox"]
            if not (isinstance(box, list) and len(box) == 4 and all(map(is_number, box))):
                raise InputError(f"result {position} has bbox {str(box)[:80]}, which is not x, y, width, height")
        else:
            image = images[result["image_id"]]
            if not is_rle(result["segmentation"], int(image["height"]), int(image["width"])):
                raise InputError(f"result {position} has a segmentation that is no RLE of its image's size")


def _is_listed(value: Any, ids: Collection[Any]) -> bool:
    return isinstance(value, (int, float, str)) and not isinstance(value, bool) and value in ids


def _index(content: dict[str, Any]) -> COCO:
    coco = COCO()
    coco.dataset = content
    coco.createIndex()
    return coco


def _metrics(evaluation: COCOeval, classes: slice) -> Metrics:
    """Read the six figures out of COCO's tables for some of the classes.

    The tables are precision [IoU, recall, class, area, limit] and recall [IoU, class, area, limit], with -1 where a
    class has no ground truth; area 0 is "all sizes" and the limits are 1, 10 and 100 detections an image.
    """
    precision = evaluation.eval["precision"][:, :, classes, 0, -1]
    recall = evaluation.eval["recall"][:, classes, 0, :]
    ious = evaluation.params.iouThrs
    values = [precision, precision[np.isclose(ious, 0.5)], precision[np.isclose(ious, 0.75)]]
    values += [recall[:, :, limit] for limit in range(3)]
    return {name: _percent(value) for name, value in zip(METRICS, values, strict=True)}


def _percent(table: np.ndarray) -> float | None:
    valid = table[table > -1]
    return float(100 * valid.mean()) if valid.size else None
