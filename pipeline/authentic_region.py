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

# Points of an outline as OpenCV gives them: int32 [n, 1, 2], (x, y).
Outline = npt.NDArray[np.int32]

PAPER_KERNEL_PX = 9
PAPER_THRESHOLD = 50


def paper_steps(grey: Image) -> dict[str, Image]:
    """Return the pictures that the paper's rule passes through (its figure 5), each uint8 [height, width]."""
    inverted = 255 - grey
    eroded = np.asarray(cv2.erode(inverted, np.ones((PAPER_KERNEL_PX, PAPER_KERNEL_PX), np.uint8)), np.uint8)
    kept = np.where(eroded > PAPER_THRESHOLD, 255, 0).astype(np.uint8)
    return {"grey": grey, "inverted": inverted, "eroded": eroded, f"above {PAPER_THRESHOLD}": kept}


def paper(grey: Image) -> Box | None:
    """The paper's rule: invert, erode 9x9, keep > 50, take the bounding box of what is left.

    A pixel survives when every pixel of the 9x9 window around it (clipped to the image) is darker than 205. Written
    without the inversion that is a dilation and a comparison, which is exact and needs one pass less.

    Args:
        grey: uint8 [height, width].

    Returns:
        The box, not grown; None when nothing is left.
    """
    return _paper_by_strips(grey) if grey.size >= _LARGE_PX and min(grey.shape) > _STRIP_PX else _dark_box(grey)


def _dark_box(grey: Image, above: int = 0, below: int = 0) -> Box | None:
    """Bound the survivors; the first and last rows given as `above` and `below` only lend them their windows."""
    brightest = cv2.dilate(grey, np.ones((PAPER_KERNEL_PX, PAPER_KERNEL_PX), np.uint8))
    _, kept = cv2.threshold(brightest, 254 - PAPER_THRESHOLD, 255, cv2.THRESH_BINARY_INV)
    x, y, width, height = cv2.boundingRect(kept[above : len(kept) - below])
    return (x, y, x + width, y + height) if width else None


# Above this size it is faster to look from the four sides than at all pixels.
_LARGE_PX, _STRIP_PX = 500_000, 32


def _paper_by_strips(grey: Image) -> Box | None:
    """Find the same box from its four sides inwards.

    Every window holds a whole row of nine pixels of the fifth, fourteenth, ... or last row of the scan (one that the
    frame clips, those of it in the scan): where no such row is dark, nothing survives.
    """
    height, width = grey.shape
    reach = PAPER_KERNEL_PX // 2
    sampled = np.concatenate([grey[reach::PAPER_KERNEL_PX], grey[-1:]])
    _, dark = cv2.threshold(
        cv2.dilate(sampled, np.ones((1, PAPER_KERNEL_PX), np.uint8)), 254 - PAPER_THRESHOLD, 255, cv2.THRESH_BINARY_INV
    )
    x, first, columns, rows = cv2.boundingRect(dark)
    if not columns:
        return None
    last = height - 1 if first + rows == len(sampled) else (first + rows) * PAPER_KERNEL_PX - 1
    top = _first_dark(grey, first * PAPER_KERNEL_PX)
    if top is None:
        return None
    bottom = _first_dark(grey[::-1], max(0, height - 1 - last)) or 0
    left = _first_dark(grey.T, x) or 0
    right = _first_dark(grey.T[::-1], width - x - columns) or 0
    return left, top, width - right, height - bottom


def _first_dark(lines: Image, start: int) -> int | None:
    """Return the first line from `start` on that holds a survivor; None if none does."""
    reach = PAPER_KERNEL_PX // 2
    for line in range(start, len(lines), _STRIP_PX):
        lent = min(reach, line)
        strip = np.ascontiguousarray(lines[line - lent : line + _STRIP_PX + reach])
        box = _dark_box(strip, lent, max(0, len(strip) - lent - _STRIP_PX))
        if box is not None:
            return line + box[1]
    return None


# The constants of `adaptive` were set by eye on 53 white and 10 grey SIXray scans and 34 with items
# (tests/pipeline/region_boxes.csv). Lengths and areas are pixels of the working image, whose longer side is 224 to
# 447 px where the scan has that many.
_WORK_SIDE_PX = 224
_BELT_ROWS = 64  # the belt's level is read from about this many rows
_BELT_SHARE = 0.01  # a tone is the belt's when this part of the scan has it, give or take two levels
_LEAST_CONTRAST = 5.0  # grey levels; the faintest fabric seen is 8 darker than its belt
_NOISE_FACTOR = 5.0
_NOISE_ROW_STEP = 4  # every fourth row tells the noise well enough
_RIM_PX = 2  # rows and columns at the scan's rim, at its own resolution, that scanners fill with artefacts
_LINE_FILL = 0.9  # a row is part of a belt line when this much of it is covered
_LINE_PX, _LINE_SHARE = 6, 0.02  # (a part of the height or width); thicker than both is no line,
_STRIP_SHARE = 0.1  # unless it lies along the scan's rim, where the belt's own edge may show
_JOIN_SHARE = 0.02  # gaps up to this part of the longer side do not split a bag
_BAG_SIDE_SHARE, _BAG_AREA_SHARE = 0.03, 0.002
_CUT_SIDE_SHARE, _CUT_AREA_SHARE = 0.05, 0.0003  # less shows of a bag that the frame cuts
_LEAST_TRAY_PX, _TRAY_SIDE_SHARE, _TRAY_FILL = 32, 0.25, 0.88
_TRAY_CONTRAST = 6
_TRAY_STEP = 3  # every third pixel along a side is looked at
_TRAY_GAP_FILL = 0.85
_TRAY_RIM_SHARE = 0.2
_TRAY_RIM_CONTRAST, _TRAY_RIM_FILL, _TRAY_RIM_ROW_FILL = 90, 0.8, 0.3


def belt_level(grey: Image) -> int:
    """Estimate the grey level of the empty belt: the brightest tone that a fair part of the scan has.

    Matter only darkens, so nothing large is brighter than the belt, while a full bag may well cover more of the scan.

    Args:
        grey: uint8 [height, width].

    Returns:
        A level in 0..255. White scans give 255, grey belts about 196.
    """
    return _brightest_common(grey[:: max(1, len(grey) // _BELT_ROWS)], _BELT_SHARE)


def _brightest_common(grey: Image, share: float) -> int:
    counts = cv2.calcHist([grey], [0], None, [256], [0, 256]).ravel()
    around = np.convolve(counts, np.ones(5), "same")
    common = np.flatnonzero(around >= share * grey.size)
    top = int(common[-1] if len(common) else np.argmax(around))
    lowest = max(0, top - 12)
    return lowest + int(np.argmax(counts[lowest : top + 1]))


def adaptive(grey: Image) -> tuple[Box | None, int]:
    """Find the outline of all bags: the union of `bags`.

    Args:
        grey: uint8 [height, width].

    Returns:
        The box, or None when the scan is empty belt, and the belt's level.
    """
    found, level = bags(grey)
    return union(found), level


def union(boxes: list[Box]) -> Box | None:
    """Return the smallest box around all of `boxes`, None around none."""
    if not boxes:
        return None
    x0, y0, x1, y1 = zip(*boxes, strict=True)
    return min(x0), min(y0), max(x1), max(y1)


def bags(grey: Image) -> tuple[list[Box], int]:
    """Find the outline of each bag, faint fabric and thin straps included.

    What is darker than the belt by more than its noise is kept, without speckle and belt lines; joined over small gaps;
    pieces too small for a bag are dropped. Of a tray, what lies in it counts, not its rim. Bags that touch or overlap
    are one. All this on a reduced image; each side is then moved to its place at the scan's own resolution.

    Args:
        grey: uint8 [height, width].

    Returns:
        The boxes from left to right, and the belt's level.
    """
    level = belt_level(grey)
    small, factor = _reduce(grey)
    cut = level - max(_LEAST_CONTRAST, _NOISE_FACTOR * _belt_noise(small, level) / 3)  # a 3x3 mean: 1/3 of the noise
    boxes = []
    for outline in _outlines(_without_lines(_matter(small, cut), factor)):
        inside = _tray_contents(small, outline)
        if inside is outline:
            boxes.append(_place(_box(outline), grey, factor, cut))
        elif len(inside):  # next to a tray's rim and on its floor a side cannot be placed from the belt's level
            boxes.append(_clip(_box(inside), grey, factor))
    # What is no deeper than an artefact of the frame is one.
    return _merge([box for box in boxes if min(box[2] - box[0], box[3] - box[1]) > 2 * _RIM_PX]), level


def _reduce(grey: Image) -> tuple[Image, int]:
    """Halve the scan until its longer side is below twice the working size; halving by means is fast and exact."""
    small, factor = grey, 1
    while max(small.shape) >= 2 * _WORK_SIDE_PX and min(small.shape) >= 2:
        height, width = small.shape[0] // 2, small.shape[1] // 2
        # The row or column left over is the scan's rim.
        small = np.asarray(
            cv2.resize(small[: 2 * height, : 2 * width], (width, height), interpolation=cv2.INTER_AREA), np.uint8
        )
        factor *= 2
    return small, factor


def _matter(small: Image, cut: float) -> Image:
    """Mark with 255 what is darker than `cut`, without speckle."""
    _, dark = cv2.threshold(cv2.blur(small, (3, 3)), math.ceil(cut) - 1, 255, cv2.THRESH_BINARY_INV)
    # Speckle is 3x3 by now, a thin strap three wide: the median of 5x5 (here of two values) takes the one only.
    return np.asarray(cv2.threshold(cv2.blur(dark, (5, 5)), 127, 255, cv2.THRESH_BINARY)[1], np.uint8)


def _belt_noise(small: Image, level: int) -> float:
    """Estimate the standard deviation of the belt from how far its pixels lie from their neighbours' mean."""
    rows = np.ascontiguousarray(small[::_NOISE_ROW_STEP])
    near = cv2.blur(rows, (9, 1))
    belt = cv2.inRange(near, level - _LEAST_CONTRAST, level + _LEAST_CONTRAST)  # type: ignore[call-overload]
    # The mean deviation of a Gaussian is 0.80 of its standard deviation.
    return cv2.mean(cv2.absdiff(rows, near), belt)[0] / 0.8


def _without_lines(present: Image, factor: int) -> Image:
    """Clear all rows and columns that belong to a thin line across the whole scan, and the rim."""
    rim = -(-_RIM_PX // factor) if factor < _RIM_PX else 0
    if rim:
        present[:rim] = present[-rim:] = present[:, :rim] = present[:, -rim:] = 0
    rows, columns = (cv2.reduce(present, axis, cv2.REDUCE_AVG).ravel() for axis in (1, 0))
    for view, fill in ((present, rows), (present.T, columns)):
        full = fill >= _LINE_FILL * 255
        if full.any():
            view[_thin_runs(full)] = 0
    return present


def _thin_runs(full: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """Keep the runs of true values that are as thin as a line or, at either end, as a strip."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], full, [0]])))
    thin = np.zeros_like(full)
    for start, end in edges.reshape(-1, 2):
        at_rim = start <= _RIM_PX or end >= len(full) - _RIM_PX
        thin[start:end] = end - start <= max(_LINE_PX, (_STRIP_SHARE if at_rim else _LINE_SHARE) * len(full))
    return thin


def _outlines(present: Image) -> list[Outline]:
    """Join over small gaps and return the outer outlines of the pieces that are large enough for a bag."""
    height, width = present.shape
    side = max(height, width)
    reach = max(3, round(_JOIN_SHARE * side)) | 1
    padded = cv2.copyMakeBorder(present, reach, reach, reach, reach, cv2.BORDER_CONSTANT, value=0)
    joined = cv2.morphologyEx(padded, cv2.MORPH_CLOSE, np.ones((reach, reach), np.uint8))
    outlines, _ = cv2.findContours(joined, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE, offset=(-reach, -reach))
    kept = []
    for outline in outlines:
        x0, y0, x1, y1 = _box(np.asarray(outline, np.int32))
        cut = x0 <= 0 or y0 <= 0 or x1 >= width or y1 >= height
        least_side, least_area = (_CUT_SIDE_SHARE, _CUT_AREA_SHARE) if cut else (_BAG_SIDE_SHARE, _BAG_AREA_SHARE)
        # An outline runs through the middle of its pixels.
        area = cv2.contourArea(outline) + cv2.arcLength(outline, True) / 2
        if max(x1 - x0, y1 - y0) >= least_side * side and area >= least_area * present.size:
            kept.append(np.asarray(outline, np.int32))
    return kept


def _box(outline: Outline) -> Box:
    x, y, width, height = cv2.boundingRect(outline)
    return x, y, x + width, y + height


def _tray_contents(small: Image, outline: Outline) -> Outline:
    """If the outline is a tray's, return the points around what lies in it (none when it is empty); else the outline.

    A tray is a large rectangle with a light rim on at least three sides and, behind the rim on at least two of them
    that meet, its empty floor.

    Args:
        small: uint8 [height, width], the working image.
        outline: int32 [n, 1, 2], points of a piece.

    Returns:
        int32 [m, 1, 2].
    """
    centre, (width, height), angle = cv2.minAreaRect(outline)
    side = max(small.shape)
    if (
        min(width, height) < max(_LEAST_TRAY_PX, _TRAY_SIDE_SHARE * side)
        or cv2.contourArea(cv2.convexHull(outline)) < _TRAY_FILL * width * height
    ):
        return outline
    patch, to_frame = _turn_upright(small, (centre[0], centre[1]), (width, height), angle)
    inner = _floor_box(patch)
    if inner is None:
        return outline
    x0, y0, x1, y1, floor = inner
    inside = np.ascontiguousarray(patch[y0:y1, x0:x1])
    pieces = _outlines(_matter(inside, floor - _TRAY_CONTRAST))
    if not pieces:
        return np.empty((0, 1, 2), np.int32)
    # The wall of a tray may show as a rim within the rim.
    contents = np.concatenate([_tray_contents(inside, piece) for piece in pieces])
    points = contents.astype(np.float64) + np.array([x0, y0])
    if not len(points):
        return np.empty((0, 1, 2), np.int32)
    return np.rint(cv2.transform(points, to_frame)).astype(np.int32)


def _turn_upright(
    small: Image, centre: tuple[float, float], size: tuple[float, float], angle: float
) -> tuple[Image, npt.NDArray[np.float64]]:
    """Cut a turned rectangle out of an image.

    Args:
        small: uint8 [height, width].
        centre: of the rectangle, (x, y) in pixels.
        size: of the rectangle, (width, height) in pixels.
        angle: degrees, as `cv2.minAreaRect` gives them.

    Returns:
        The upright cut, and the affine map [2, 3] from its pixels to those of the image.
    """
    turn = math.radians(angle)
    matrix = np.array([[math.cos(turn), -math.sin(turn)], [math.sin(turn), math.cos(turn)]])
    offset = np.array(centre) - matrix @ (np.array(size) / 2)
    to_image = np.hstack([matrix, offset[:, None]])
    # Without interpolation, which is slower and makes a thin rim lighter.
    flags = cv2.INTER_NEAREST | cv2.WARP_INVERSE_MAP
    shape = round(size[0]) + 1, round(size[1]) + 1
    return np.asarray(
        cv2.warpAffine(small, to_image, shape, flags=flags, borderMode=cv2.BORDER_REPLICATE), np.uint8
    ), to_image


def _floor_box(patch: Image) -> tuple[int, int, int, int, int] | None:
    """Find the floor of a tray that fills `patch`: the box inside its rim, and its level; None when it is no tray."""
    height, width = patch.shape
    margin = max(2, round(0.04 * min(height, width)))
    floor = _brightest_common(patch[margin:-margin:_TRAY_STEP, margin:-margin], 0.05)
    sides, rims = [], []
    for pair in ((patch, patch[::-1]), (patch.T, patch.T[::-1])):
        sides += [_side(turned) for turned in pair]
        rims += [_rim_depth(side, floor) for side in sides[-2:]]
        if not any(rims[-2:]):
            return None
    # A bag may touch the rim of one side or two; one side may lie beyond the frame.
    usual = max(rims)
    top, bottom, left, right = insets = [
        rim or (usual if _rim_darkness(side[:usual], floor)[1] >= _TRAY_RIM_FILL else 0)
        for rim, side in zip(rims, sides, strict=True)
    ]
    if insets.count(0) > 1:
        return None
    return left, top, width - right, height - bottom, floor


def _side(turned: Image) -> Image:
    """Copy the first rows, without the ends that belong to the sides next to them, every few pixels."""
    depth, length = turned.shape
    ends = length // 8
    return np.ascontiguousarray(turned[: max(2, round(_TRAY_RIM_SHARE * depth)), ends:-ends:_TRAY_STEP])


def _rim_depth(side: Image, floor: int) -> int:
    """Return how many of the first rows a tray's rim takes, with the belt before it; 0 when no rim is there."""
    dark = (side < floor - _TRAY_CONTRAST).mean(axis=1)
    start = np.flatnonzero(dark >= _TRAY_RIM_ROW_FILL)
    if not len(start):
        return 0
    inward = side[start[0] :]
    empty = (inward >= floor - _TRAY_CONTRAST) & (inward <= floor + _TRAY_CONTRAST)
    gaps = np.flatnonzero(empty.mean(axis=1) >= _TRAY_GAP_FILL)
    if not len(gaps):
        return 0
    rim = int(start[0] + gaps[0])
    darkness, share = _rim_darkness(side[:rim], floor)
    return rim + 1 if darkness < _TRAY_RIM_CONTRAST and share >= _TRAY_RIM_FILL else 0


def _rim_darkness(side: Image, floor: int) -> tuple[float, float]:
    """Return how much darker than the floor the rows at a tray's side are, and along which part of it they are so.

    A rim is darker all along; a bag's fabric has only the belt beside it.
    """
    darkness = floor - side.min(axis=0).astype(int)
    return float(np.median(darkness)), float((darkness > _TRAY_CONTRAST).mean())


def _place(box: Box, grey: Image, factor: int, cut: float) -> Box:
    """Move each side of a box of the working image to where matter begins at the scan's own resolution.

    A side within the scan's rim is the frame's.
    """
    height, width = grey.shape
    x0, y0, x1, y1 = _clip(box, grey, factor)
    reach = 2 * factor + 1
    rows, columns = grey[:, x0:x1], grey[y0:y1].T
    top, bottom = _first(rows, y0, reach, cut), height - _first(rows[::-1], height - y1, reach, cut)
    left, right = _first(columns, x0, reach, cut), width - _first(columns[::-1], width - x1, reach, cut)
    return left, top, right, bottom


def _clip(box: Box, grey: Image, factor: int) -> Box:
    """Scale a box of the working image to the scan, clipped to it."""
    height, width = grey.shape
    x0, y0, x1, y1 = (side * factor for side in box)
    # Halving may have left out the last rows and columns.
    x1, y1 = (width if width - x1 < 2 * factor else x1), (height if height - y1 < 2 * factor else y1)
    return max(0, x0), max(0, y0), x1, y1


def _first(lines: Image, expected: int, reach: int, cut: float) -> int:
    """Return the first line within `reach` of the expected one that holds matter; the expected one when none does."""
    start = max(0, expected - reach)
    strip = np.ascontiguousarray(lines[start : expected + 2 * reach])
    _, matter = cv2.threshold(cv2.blur(strip, (3, 3)), math.ceil(cut) - 1, 255, cv2.THRESH_BINARY_INV)
    least = 255 * max(3, 0.004 * strip.shape[1])
    held = np.flatnonzero(cv2.reduce(matter, 1, cv2.REDUCE_SUM, dtype=cv2.CV_32S).ravel() >= least)
    first = start + int(held[0]) if len(held) else expected
    return 0 if first <= _RIM_PX else first


def _merge(boxes: list[Box]) -> list[Box]:
    """Unite boxes that overlap, until none do; from left to right."""
    merged: list[Box] = []
    for box in boxes:
        while touching := [b for b in merged if b[0] < box[2] and box[0] < b[2] and b[1] < box[3] and box[1] < b[3]]:
            merged = [b for b in merged if b not in touching]
            box = union([box, *touching]) or box
        merged.append(box)
    return sorted(merged)
