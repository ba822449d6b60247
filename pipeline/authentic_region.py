"""The authentic region: the box of a scan that is bag rather than empty belt (paper section 3.2).

Both functions are pure and take the grey scan at its native resolution: from a resized scan the same 9x9 kernel gives
another box.
"""

from __future__ import annotations

import math

import cv2
import numpy as np
import numpy.typing as npt

from pipeline.images import Image
from segloc.contract import Box

PAPER_KERNEL_PX = 9
PAPER_THRESHOLD = 50


def paper(grey: Image) -> Box | None:
    """The paper's rule: invert, erode 9x9, keep > 50, take the bounding box of what is left.

    A pixel survives when every pixel of the 9x9 window around it (clipped to the image) is darker than 205. Written
    without the inversion that is a dilation and a comparison, which is exact and needs one pass less.

    Args:
        grey: uint8 [height, width].

    Returns:
        The box, not grown; None when nothing is left.
    """
    brightest = cv2.dilate(grey, np.ones((PAPER_KERNEL_PX, PAPER_KERNEL_PX), np.uint8))
    _, kept = cv2.threshold(brightest, 254 - PAPER_THRESHOLD, 255, cv2.THRESH_BINARY_INV)
    x, y, width, height = cv2.boundingRect(kept)
    return (x, y, x + width, y + height) if width else None


# The constants of `adaptive` were set by eye on 53 white and 10 grey SIXray scans and 34 with items. Lengths and areas
# are pixels of the working image, whose longer side is 512 to 1023 px where the scan has that many.
_WORK_SIDE_PX = 512
_BELT_SHARE = 0.01  # a tone is the belt's when this part of the scan has it, give or take two levels
_LEAST_CONTRAST = 5.0  # grey levels; the faintest fabric seen is 8 darker than its belt
_NOISE_FACTOR = 5.0
_BLOCK_PX = 8  # noise is measured inside blocks of this side
_FRAME_PX = 2  # rows and columns at the scan's rim that scanners fill with artefacts
_LINE_FILL = 0.9  # a row is part of a belt line when this much of it is covered
_LINE_SHARE = 0.02  # of the height or width: thicker than this is no line,
_STRIP_SHARE = 0.1  # unless it lies along the scan's rim, where the belt's own edge may show
_JOIN_SHARE = 0.02  # gaps up to this part of the longer side do not split a bag
_BAG_SIDE_SHARE, _BAG_AREA_SHARE = 0.03, 0.002


def belt_level(grey: Image) -> int:
    """Estimate the grey level of the empty belt: the brightest tone that a fair part of the scan has.

    Matter only darkens, so nothing large is brighter than the belt, while a full bag may well cover more of the scan.

    Args:
        grey: uint8 [height, width].

    Returns:
        A level in 0..255. White scans give 255, grey belts about 196.
    """
    counts = cv2.calcHist([grey], [0], None, [256], [0, 256]).ravel()
    around = np.convolve(counts, np.ones(5), "same")
    top = int(np.flatnonzero(around >= _BELT_SHARE * grey.size)[-1])
    lowest = max(0, top - 12)
    return lowest + int(np.argmax(counts[lowest : top + 1]))


def adaptive(grey: Image) -> tuple[Box | None, int]:
    """Find the outline of all bags, faint fabric and thin rims included.

    What differs from the belt by more than its noise is kept, without speckle, belt lines and the artefacts of the last
    rows; joined over small gaps; pieces too small for a bag are dropped; the box is the union of the rest.

    Args:
        grey: uint8 [height, width].

    Returns:
        The box, or None when the scan is empty belt, and the belt's level.
    """
    level = belt_level(grey)
    height, width = grey.shape
    factor = max(1, max(height, width) // _WORK_SIDE_PX)
    size = max(1, width // factor), max(1, height // factor)
    # Whole blocks of pixels average exactly and fast; the few rows and columns left over are the scan's rim.
    whole = grey[: size[1] * factor, : size[0] * factor]
    small = np.asarray(cv2.resize(whole, size, interpolation=cv2.INTER_AREA), np.float32)
    threshold = max(
        _LEAST_CONTRAST, _NOISE_FACTOR * _belt_noise(small, level) / 3
    )  # a 3x3 mean has a third of the noise
    present = (np.abs(cv2.blur(small, (3, 3)) - np.float32(level)) > threshold).astype(np.uint8)
    # Speckle is 3x3 by now, a thin rim three wide: the median takes the one and leaves the other.
    box = _union_of_bags(_without_lines(np.asarray(cv2.medianBlur(present, 5), np.uint8)))
    if box is None:
        return None, level
    x0, y0, x1, y1 = _to_frame(box, size)
    right = width if x1 == size[0] else x1 * factor
    bottom = height if y1 == size[1] else y1 * factor
    return (x0 * factor, y0 * factor, right, bottom), level


def _belt_noise(small: npt.NDArray[np.float32], level: int) -> float:
    """Standard deviation inside the blocks whose mean is the belt's; 0 when the scan is too small to tell."""
    blocks = small.shape[1] // _BLOCK_PX, small.shape[0] // _BLOCK_PX
    if not all(blocks):
        return 0.0
    off = small[: blocks[1] * _BLOCK_PX, : blocks[0] * _BLOCK_PX] - np.float32(level)
    mean, square = (cv2.resize(values, blocks, interpolation=cv2.INTER_AREA) for values in (off, off * off))
    variance = (square - mean * mean)[np.abs(mean) < _LEAST_CONTRAST]
    return math.sqrt(max(0.0, float(np.median(variance)))) if variance.size else 0.0


def _without_lines(present: Image) -> Image:
    """Clear the rim and all rows and columns that belong to a thin line across the whole scan."""
    present[:_FRAME_PX] = present[-_FRAME_PX:] = present[:, :_FRAME_PX] = present[:, -_FRAME_PX:] = 0
    rows, columns = (_thin_runs(present.mean(axis=axis) >= _LINE_FILL) for axis in (1, 0))
    present[rows] = 0
    present[:, columns] = 0
    return present


def _thin_runs(full: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """Keep the runs of true values that are as thin as a line or, at either end, as a strip."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], full, [0]])))
    thin = np.zeros_like(full)
    for start, end in edges.reshape(-1, 2):
        at_rim = start <= _FRAME_PX or end >= len(full) - _FRAME_PX
        thin[start:end] = end - start <= max(2, (_STRIP_SHARE if at_rim else _LINE_SHARE) * len(full))
    return thin


def _union_of_bags(present: Image) -> Box | None:
    """Join over small gaps, split into connected pieces, drop what is too small for a bag, and unite the boxes."""
    side = max(present.shape)
    reach = max(3, round(_JOIN_SHARE * side)) | 1
    kernel = np.ones((reach, reach), np.uint8)
    joined = cv2.morphologyEx(np.pad(present, reach), cv2.MORPH_CLOSE, kernel)[reach:-reach, reach:-reach]
    joined = np.ascontiguousarray(joined)
    _, _, pieces, _ = cv2.connectedComponentsWithStats(joined, connectivity=8)
    x, y, width, height, area = pieces[1:].T
    bags = (np.maximum(width, height) >= _BAG_SIDE_SHARE * side) & (area >= _BAG_AREA_SHARE * present.size)
    if not bags.any():
        return None
    x0, y0 = x[bags].min(), y[bags].min()
    return int(x0), int(y0), int((x + width)[bags].max()), int((y + height)[bags].max())


def _to_frame(box: Box, size: tuple[int, int]) -> Box:
    """Give back the rim that `_without_lines` took from bags which reach it."""
    x0, y0, x1, y1 = box
    left, top = (0 if side <= _FRAME_PX else side for side in (x0, y0))
    right, bottom = (end if end - side <= _FRAME_PX else side for side, end in zip((x1, y1), size, strict=True))
    return left, top, right, bottom
