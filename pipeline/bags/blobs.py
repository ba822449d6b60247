"""Blobs of matter on a belt: their outlines on a reduced scan, and their sides at the scan's own resolution."""

from __future__ import annotations

import math

import cv2
import numpy as np
import numpy.typing as npt

from segloc.common.contract import Box
from segloc.common.images import Image

# Points of an outline in OpenCV's form: int32 [n, 1, 2], (x, y).
Outline = npt.NDArray[np.int32]

# The constants of `adaptive` were chosen by eye on 53 white and 10 grey SIXray scans and 34 scans with items
# (tests/pipeline/bags/region_boxes.csv). Lengths and areas are in pixels of the working image, whose longer side is 224
# to 447 px if the scan is large enough.
_WORK_SIDE_PX = 224
RIM_PX = 2  # rows and columns at the rim of the scan, at its own resolution, that scanners fill with artefacts
_LINE_FILL = 0.9  # minimum covered share of a row that belongs to a belt line
_LINE_EDGE_PX = 2  # rows beside those that may belong to the line's soft edge
_LINE_PX, _LINE_SHARE = 6, 0.02  # (share of the height or width); a line is not thicker than the larger of both,
_STRIP_SHARE = 0.1  # except along the rim, where the belt's own edge may be visible
_JOIN_SHARE = 0.02  # gaps up to this share of the longer side do not split a bag
_BAG_SIDE_SHARE, _BAG_AREA_SHARE = 0.03, 0.002
_CUT_SIDE_SHARE, _CUT_AREA_SHARE = 0.05, 0.0003  # for bags cut by the frame, of which less is visible


def reduced(grey: Image) -> tuple[Image, int]:
    """Halve the scan until its longer side is below twice the working size. Halving by means is fast and exact."""
    small, factor = grey, 1
    while max(small.shape) >= 2 * _WORK_SIDE_PX and min(small.shape) >= 2:
        small, factor = halved(small), 2 * factor
    return small, factor


def halved(picture: Image) -> Image:
    """Halve height and width by means. An odd last row or column is dropped: it is the scan's rim."""
    height, width = picture.shape[0] // 2, picture.shape[1] // 2
    even = picture[: 2 * height, : 2 * width]
    return np.asarray(cv2.resize(even, (width, height), interpolation=cv2.INTER_AREA), np.uint8)


def matter(small: Image, cut: float) -> Image:
    """Mark pixels darker than `cut` with 255, without speckle."""
    _, dark = cv2.threshold(cv2.blur(small, (3, 3)), math.ceil(cut) - 1, 255, cv2.THRESH_BINARY_INV)
    # Speckle is now 3x3 and a thin strap three wide: a 5x5 median (here of two values) removes only the speckle.
    return np.asarray(cv2.threshold(cv2.blur(dark, (5, 5)), 127, 255, cv2.THRESH_BINARY)[1], np.uint8)


def without_lines(present: Image, factor: int) -> Image:
    """Clear the rim, and thin lines and strips across the whole scan, where they lie on belt.

    A row or column counts as a line if most of it is matter. Of a bag about as wide as the scan that is true as well,
    so a pixel is cleared only if its neighbour beyond the line, on one side or the other, is belt. Beyond the frame a
    bag may go on.
    """
    rim = -(-RIM_PX // factor) if factor < RIM_PX else 0
    if rim:
        present[:rim] = present[-rim:] = present[:, :rim] = present[:, -rim:] = 0
    rows, columns = (cv2.reduce(present, axis, cv2.REDUCE_AVG).ravel() for axis in (1, 0))
    for view, fill in ((present, rows), (present.T, columns)):
        full = fill >= _LINE_FILL * 255
        for start, end in _thin_runs(full) if full.any() else ():
            for beyond in (start - 1 - _LINE_EDGE_PX, end + _LINE_EDGE_PX):
                if 0 <= beyond < len(view):
                    view[start:end] &= view[beyond]
    return present


def _thin_runs(full: npt.NDArray[np.bool_]) -> list[tuple[int, int]]:
    """Find the runs of true values that are as thin as a line or, at either end, as thin as a strip."""
    padded = np.zeros(len(full) + 2, np.bool_)
    padded[1:-1] = full
    thin = []
    for start, end in np.flatnonzero(padded[1:] != padded[:-1]).reshape(-1, 2).tolist():
        at_rim = start <= RIM_PX or end >= len(full) - RIM_PX
        if end - start <= max(_LINE_PX, (_STRIP_SHARE if at_rim else _LINE_SHARE) * len(full)):
            thin.append((start, end))
    return thin


def outlines(present: Image) -> list[Outline]:
    """Join blobs over small gaps and return the outer outlines of those that are large enough for a bag."""
    height, width = present.shape
    side = max(height, width)
    reach = max(3, round(_JOIN_SHARE * side)) | 1
    x, y, columns, rows = cv2.boundingRect(present)
    held = present[y : y + rows, x : x + columns]
    if not held.size:
        return []
    padded = cv2.copyMakeBorder(held, reach, reach, reach, reach, cv2.BORDER_CONSTANT | cv2.BORDER_ISOLATED, value=0)
    joined = cv2.morphologyEx(padded, cv2.MORPH_CLOSE, np.ones((reach, reach), np.uint8))
    found, _ = cv2.findContours(joined, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE, offset=(x - reach, y - reach))
    kept = []
    for outline in found:
        x0, y0, x1, y1 = bounds(np.asarray(outline, np.int32))
        cut = x0 <= 0 or y0 <= 0 or x1 >= width or y1 >= height
        least_side, least_area = (_CUT_SIDE_SHARE, _CUT_AREA_SHARE) if cut else (_BAG_SIDE_SHARE, _BAG_AREA_SHARE)
        if max(x1 - x0, y1 - y0) < least_side * side:
            continue
        # An outline runs through the centres of its pixels.
        if cv2.contourArea(outline) + cv2.arcLength(outline, True) / 2 >= least_area * present.size:
            kept.append(np.asarray(outline, np.int32))
    return kept


def bounds(outline: Outline) -> Box:
    """Return the box around the points of an outline."""
    x, y, width, height = cv2.boundingRect(outline)
    return x, y, x + width, y + height


def place(box: Box, grey: Image, factor: int, cut: float) -> Box:
    """Move each side of a box of the working image to the edge of the matter at the scan's own resolution.

    A side within the scan's rim moves to the frame.
    """
    x0, y0, x1, y1 = scaled(box, grey, factor)
    reach = 2 * factor + 1
    rows, columns = grey[:, x0:x1], grey[y0:y1]
    left, right = (_side(columns, 1, x, reach, cut, far=far) for x, far in ((x0, False), (x1, True)))
    top, bottom = (_side(rows, 0, y, reach, cut, far=far) for y, far in ((y0, False), (y1, True)))
    return left, top, right, bottom


def scaled(box: Box, grey: Image, factor: int) -> Box:
    """Scale a box of the working image to the scan, clipped to it."""
    height, width = grey.shape
    x0, y0, x1, y1 = (side * factor for side in box)
    # Halving may have dropped the last rows and columns.
    x1, y1 = (width if width - x1 < 2 * factor else x1), (height if height - y1 < 2 * factor else y1)
    return max(0, x0), max(0, y0), x1, y1


def _side(part: Image, axis: int, expected: int, reach: int, cut: float, *, far: bool) -> int:
    """Return the line where matter begins (or ends, on the far side) within `reach` of the expected line.

    Lines are rows (axis 0) or columns (1). Without any matter, the result is the expected line.
    """
    start, stop = (expected - 2 * reach, expected + reach) if far else (expected - reach, expected + 2 * reach)
    start = max(0, start)
    # Transposed so that lines are rows, because filters are slow on narrow pictures.
    strip = cv2.transpose(part[:, start:stop]) if axis else part[start:stop]
    _, dark = cv2.threshold(cv2.blur(strip, (3, 3)), math.ceil(cut) - 1, 255, cv2.THRESH_BINARY_INV)
    sums = cv2.reduce(dark, 1, cv2.REDUCE_SUM, dtype=cv2.CV_32S).ravel()
    held = np.flatnonzero(sums >= 255 * max(3, 0.004 * strip.shape[1]))
    if far:
        last = start + int(held[-1]) + 1 if len(held) else expected
        length = part.shape[axis]
        return length if last >= length - RIM_PX else last
    first = start + int(held[0]) if len(held) else expected
    return 0 if first <= RIM_PX else first
