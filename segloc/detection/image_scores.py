"""Score of a detector on one image, for choosing images to inspect. Test sets are evaluated by AP instead."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from pycocotools import mask as mask_api

from segloc.common.masks import to_rle
from segloc.detection.splits import CocoSplit, Scan

CROWDED = 0.5
FOUND = 0.5  # IoU, as in AP50


@dataclasses.dataclass(frozen=True)
class Judged:
    """An image with its items and detections.

    Attributes:
        scan: the image.
        items: its annotations without crowds.
        found: the detections above the threshold, best first, without detections inside a crowd.
        pairs: position in `found` by position in `items`, for each item that was found.
        score: sum of the pairs' IoU / (number of items + false alarms); from 0 (no item found) to 1 (perfect).
    """

    scan: Scan
    items: tuple[dict[str, Any], ...]
    found: tuple[dict[str, Any], ...]
    pairs: dict[int, int]
    score: float

    @property
    def missed(self) -> int:
        """Number of items without a detection."""
        return len(self.items) - len(self.pairs)

    @property
    def false_alarms(self) -> int:
        """Number of detections without an item."""
        return len(self.found) - len(self.pairs)


def judge(scan: Scan, results: Sequence[dict[str, Any]], threshold: float) -> Judged:
    """Pair each detection of an image, best first, with the item it overlaps most.

    A detection takes a free item of its own class with an IoU of at least `FOUND`. IoU is computed from masks, or from
    boxes if the results have no masks.

    Args:
        scan: the image.
        results: its COCO results, checked.
        threshold: lowest score of a detection to use.
    """
    crowds = [a for a in scan.annotations if a["iscrowd"]]
    items = tuple(a for a in scan.annotations if not a["iscrowd"])
    found = sorted((r for r in results if r["score"] >= threshold), key=lambda r: -r["score"])
    masks = all("segmentation" in result for result in found)
    crowded = _iou(found, crowds, scan, masks)
    found = [r for r, overlap in zip(found, crowded, strict=True) if not (overlap >= CROWDED).any()]
    overlaps = _iou(found, items, scan, masks)
    pairs: dict[int, int] = {}
    total = 0.0
    for place, result in enumerate(found):
        free = [n for n, a in enumerate(items) if a["category_id"] == result["category_id"] and n not in pairs]
        best = max(free, key=lambda n: overlaps[place, n], default=None)
        if best is not None and overlaps[place, best] >= FOUND:
            pairs[best] = place
            total += float(overlaps[place, best])
    faults = len(found) - len(pairs)
    return Judged(scan, items, tuple(found), pairs, total / max(1, len(items) + faults))


def rank(split: CocoSplit, results: Sequence[dict[str, Any]], threshold: float) -> list[Judged]:
    """Judge each image that has items or detections, best first; between equal scores, fewer faults come first."""
    by_image = collections.defaultdict(list)
    for result in results:
        by_image[result["image_id"]].append(result)
    judged = [judge(scan, by_image[scan.image_id], threshold) for scan in split.scans]
    return sorted(
        (one for one in judged if one.items or one.found), key=lambda one: (-one.score, one.missed + one.false_alarms)
    )


def examples(ranked: Sequence[Judged], each: int) -> dict[str, Sequence[Judged]]:
    """Choose `each` images from the best, the middle and the worst; fewer if there are not enough images."""
    each = max(1, min(each, len(ranked) // 3))
    middle = (len(ranked) - each) // 2
    chosen = {"best": ranked[:each], "median": ranked[middle : middle + each], "worst": ranked[-each:]}
    return chosen if len(ranked) >= 3 else {"best": ranked[:1], "worst": ranked[1:]}


def _iou(found: Sequence[Any], items: Sequence[Any], scan: Scan, masks: bool) -> np.ndarray:
    """Compute the IoU [detections, items]; for a crowd, the share of the detection inside it."""
    if not found or not items:
        return np.zeros((len(found), len(items)))
    sides = [
        [to_rle(one["segmentation"], scan.height, scan.width) for one in side]
        if masks
        else np.array([one["bbox"] for one in side], np.float64)
        for side in (found, items)
    ]
    return np.asarray(mask_api.iou(*sides, [one["iscrowd"] for one in items]))
