"""Bags that touch or overlap: one blob of matter, cut where two outlines meet."""

from __future__ import annotations

import cv2
import numpy as np

from pipeline.bags.blobs import Outline
from segloc.common.images import Image

# A bag is nearly convex. Where two bags meet, their common outline has two notches, and the line between them is short
# beside their depth. Chosen by eye on the scans named in blobs.py: the shallower notch is 0.21 to 1.2 of that line
# where bags meet, and at most 0.12 on single bags, except for one with loose straps (0.18) and an open one (0.16).
_LEAST_DEPTH = 1 / 6  # minimum depth of the shallower notch, as a share of the line between the notches
_LEAST_NOTCH = 0.03  # minimum depth, as a share of the longer side; faint fabric has shallower ones (gaps are 0.02)
_ONE_BAG = 0.9  # minimum share of its hull that a single bag takes; bags that meet take at most 0.88,
_LEAST_SOLID = 0.8  # and each of them at least 0.84; a loose flap takes less
_MOST_LEFT = 0.65  # maximum share of the belt inside the blob's hull that is inside the hulls of the parts
_LEAST_PART = 1 / 8  # minimum area of each part, as a share of the blob
_LEAST_MATTER = 0.5  # minimum share of matter in each part; the loop of a strap has less


def parts(outline: Outline, present: Image) -> list[Outline]:
    """Cut a blob into its bags, where two outlines meet.

    Args:
        outline: int32 [n, 1, 2], points of the blob.
        present: uint8 [height, width], matter is 255.

    Returns:
        The outlines of the parts; only `outline` if it shows one bag.
    """
    area, hull = cv2.contourArea(outline), np.asarray(cv2.convexHull(outline, returnPoints=False), np.int32)
    belt = cv2.contourArea(outline[hull.ravel()]) - area if len(hull) > 2 else 0.0
    if belt <= (1 / _ONE_BAG - 1) * area:
        return [outline]
    for first, last in _seams(outline, hull, _LEAST_NOTCH * max(present.shape)):
        halves = outline[first : last + 1], np.concatenate([outline[last:], outline[: first + 1]])
        if _are_bags(halves, area, belt, present):
            return [part for half in halves for part in parts(half, present)]
    return [outline]


def _seams(outline: Outline, hull: Outline, least_depth: float) -> list[tuple[int, int]]:
    """Return the pairs of notches that are deep beside the line between them (indices of points), deepest first."""
    hull[::-1].sort(axis=0)  # rounding may give an order that OpenCV refuses
    found = cv2.convexityDefects(outline, hull)
    # The last two columns hold the farthest point and its depth in 1/256 pixel.
    notches = np.asarray([] if found is None else found, np.int32).reshape(-1, 4)[:, 2:]
    notches = notches[notches[:, 1] >= 256 * least_depth]
    first, last = np.triu_indices(len(notches), 1)
    places = outline[notches[:, 0], 0].astype(float)
    lengths = np.maximum(1, np.hypot(*(places[first] - places[last]).T))
    depths = np.minimum(notches[first, 1], notches[last, 1]) / (256 * lengths)
    order = [pair for pair in np.argsort(-depths, kind="stable") if depths[pair] >= _LEAST_DEPTH]
    ends = np.sort(np.stack([notches[first, 0], notches[last, 0]], 1), axis=1)
    return [(start, end) for start, end in ends[order].tolist()]


def _are_bags(halves: tuple[Outline, Outline], area: float, belt: float, present: Image) -> bool:
    """Whether both halves of a blob are solid, and together more convex than the blob.

    Args:
        halves: the outlines of the halves.
        area: area of the blob.
        belt: area of its hull that is not blob.
        present: uint8 [height, width], matter is 255.
    """
    areas = [cv2.contourArea(half) for half in halves]
    hulls = [cv2.contourArea(cv2.convexHull(half)) for half in halves]
    if min(areas) < _LEAST_PART * area or sum(hulls) - area > _MOST_LEFT * belt:
        return False
    if any(part < _LEAST_SOLID * hull for part, hull in zip(areas, hulls, strict=True)):
        return False
    for half in halves:
        inside = np.zeros_like(present)
        cv2.drawContours(inside, [half], -1, 1, cv2.FILLED)
        if cv2.mean(present, inside)[0] < _LEAST_MATTER * 255:
            return False
    return True
