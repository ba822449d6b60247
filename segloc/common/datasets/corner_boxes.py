"""Finds boxes that were written as x0, y0, x1, y1 instead of COCO's x, y, width, height."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from pycocotools import mask as mask_api

from segloc.common import masks

HINT = "write bbox as x, y, width, height"
# As corners nearly all boxes have to fit, and of these many must leave their image otherwise. Of true boxes a few reach
# beyond the image, but most do not fit as corners: their width is less than their x, or their height less than their y.
_FITTING, _LEAVING = 0.95, 0.2
_LEAST = 5  # boxes that leave the image, where no mask confirms it
_TOLERANCE_PX = 1.0
_MASKS = 64  # that are looked at
LONGEST_SIDE_PX = 1 << 31


def leaving(boxes: Sequence[Sequence[float]], sizes: Sequence[tuple[int, int]]) -> list[int]:
    """Find the boxes that leave their image, if the boxes of a file fit their images only as corners.

    Args:
        boxes: four numbers each.
        sizes: width and height of their images, in pixels.

    Returns:
        Positions; none if the boxes are x, y, width, height, or too few fit as corners.
    """
    known = [place for place, size in enumerate(sizes) if max(size) <= LONGEST_SIDE_PX]
    if not known:
        return []
    first, second = np.array([boxes[place] for place in known], np.float64).reshape(-1, 2, 2).swapaxes(0, 1)
    size = np.array([sizes[place] for place in known], np.float64)
    with np.errstate(over="ignore"):
        leaves = (first + second > size + _TOLERANCE_PX).any(1)
    fits = ((first >= -_TOLERANCE_PX) & (first < second) & (second <= size + _TOLERANCE_PX)).all(1)
    wrong = np.flatnonzero(leaves & fits)
    is_wrong = len(wrong) >= max(1, _LEAVING * len(known)) and fits.sum() >= _FITTING * len(known)
    return [known[place] for place in wrong] if is_wrong else []


def confirmed(boxes: Sequence[Sequence[float]], segmentations: Sequence[Any], sizes: Sequence[tuple[int, int]]) -> bool:
    """Whether masks show that `leaving` boxes are corners; without masks, whether there are enough boxes."""
    looked = range(0, len(boxes), -(-len(boxes) // _MASKS)) if boxes else ()
    judged = [_agrees(boxes[place], segmentations[place], sizes[place]) for place in looked]
    found = [agrees for agrees in judged if agrees is not None]
    return 2 * sum(found) > len(found) if found else len(boxes) >= _LEAST


def _agrees(box: Sequence[float], segmentation: Any, size: tuple[int, int]) -> bool | None:
    """Whether a mask fits a box as corners better than as x, y, width, height; None without a usable mask."""
    width, height = size
    try:
        mask = masks.to_rle(masks.checked(segmentation, width, height), height, width)
    except masks.MaskError:
        return None
    own = np.asarray(mask_api.toBbox(mask), np.float64)
    if not own[2:].all():
        return None
    own[2:] += own[:2]
    x, y, third, fourth = box
    return bool(np.abs(own - [x, y, third, fourth]).max() < np.abs(own - [x, y, x + third, y + fourth]).max())
