"""Compares the box of an annotation with its mask.

The overlap is 0.9 to 1 in PIDray, and wherever boxes are computed from masks. Hand-drawn boxes are looser, and masks of
partly hidden items smaller, but few boxes overlap by less than half.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from pycocotools import mask as mask_api

from segloc.common import masks
from segloc.common.datasets.corner_boxes import LONGEST_SIDE_PX

REASON = "box does not fit its mask"
HINT = (
    "check that bbox is x, y, width, height, that polygons are x0, y0, x1, y1, ..., and that both are in pixels of the "
    "listed image size"
)
# Overlaps (intersection over union). Below the first in most annotations, the file is wrong; below the second, one
# annotation is. One below the first that overlaps by the third as x0, y0, x1, y1 is wrong, too.
LOOSE, _LEAST, _CORNERS = 0.5, 0.1, 0.9
_MARGIN_PX = 0.5  # added on all sides, so that rounding does not decide for items of one or two pixels


class Fit(NamedTuple):
    """How a box fits a mask.

    Attributes:
        overlap: intersection over union of the box and the mask's box, inside the image.
        is_wrong: whether the annotation cannot be used.
        mask_box: x, y, width, height of the mask, in pixels.
    """

    overlap: float
    is_wrong: bool
    mask_box: list[float]


def fit(box: Sequence[float], segmentation: Any, size: tuple[int, int]) -> Fit | None:
    """Compare a box with a mask.

    Args:
        box: x, y, width, height in pixels.
        segmentation: polygons or RLE, unchecked.
        size: width and height of the image, in pixels, unchecked.

    Returns:
        The fit; None if there is no mask with pixels, or the mask or the size is malformed.
    """
    if not 1 <= min(size) <= max(size) <= LONGEST_SIDE_PX or not segmentation:
        return None
    x, y, third, fourth = box
    edges = x, y, x + third, y + fourth
    around = _polygon_edges(segmentation)  # within a pixel, and much faster than drawing
    if around is None or _overlap(edges, around, size) < LOOSE:
        around = _mask_edges(segmentation, size)
        if around is None:
            return None
    overlap = _overlap(edges, around, size)
    corners = overlap < LOOSE and _overlap((x, y, third, fourth), around, size) > _CORNERS
    x0, y0, x1, y1 = around
    return Fit(overlap, overlap < _LEAST or corners, [x0, y0, x1 - x0, y1 - y0])


def _polygon_edges(segmentation: Any) -> Sequence[float] | None:
    """Edges of polygons as x0, y0, x1, y1; None if the segmentation is something else."""
    try:
        parts = [part for part in segmentation if len(part) >= 6]
        xs, ys = ([edge(part[first::2]) for part in parts for edge in (min, max)] for first in (0, 1))
        return min(xs) + 0.0, min(ys) + 0.0, max(xs) + 0.0, max(ys) + 0.0
    except (TypeError, ValueError, OverflowError):
        return None


def _mask_edges(segmentation: Any, size: tuple[int, int]) -> Sequence[float] | None:
    width, height = size
    try:
        mask = masks.to_rle(masks.checked(segmentation, width, height), height, width)
    except masks.MaskError:
        return None
    x, y, w, h = mask_api.toBbox(mask).tolist()
    return (x, y, x + w, y + h) if w and h else None


def _overlap(one: Sequence[float], other: Sequence[float], size: tuple[int, int]) -> float:
    """Intersection over union of two boxes x0, y0, x1, y1, inside an image and with the margin."""
    limits = (*size, *size)
    sides = []
    for box in (one, other):
        clipped = [min(max(edge, 0), limit) for edge, limit in zip(box, limits, strict=True)]
        sides.append([*(edge - _MARGIN_PX for edge in clipped[:2]), *(edge + _MARGIN_PX for edge in clipped[2:])])
    (a0, b0, a1, b1), (c0, d0, c1, d1) = sides
    both = max(min(a1, c1) - max(a0, c0), 0) * max(min(b1, d1) - max(b0, d0), 0)
    all_of_them = max(a1 - a0, 0) * max(b1 - b0, 0) + max(c1 - c0, 0) * max(d1 - d0, 0) - both
    return both / all_of_them if all_of_them else 0.0
