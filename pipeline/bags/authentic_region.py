"""The authentic region: the box of a scan that shows bags rather than empty belt (paper section 3.2).

`paper` and `adaptive` are pure and take the grey scan at its native resolution: on a resized scan the same 9x9 kernel
gives a different box.
"""

from __future__ import annotations

import cv2
import numpy as np

from pipeline.bags import tray_floor, trays
from pipeline.bags.belt import LEAST_CONTRAST, NOISE_FACTOR, belt_level, belt_noise
from pipeline.bags.blobs import RIM_PX, bounds, matter, outlines, place, reduced, scaled, without_lines
from pipeline.bags.touching import parts
from segloc.common.contract import Box
from segloc.common.images import Image

PAPER_KERNEL_PX = 9
PAPER_THRESHOLD = 50
_PIECE_SHARE = 0.25  # a box smaller than this share of one that it overlaps is a piece of that bag,
_PIECE_INSIDE = 0.5  # and so is one with at least this share of it inside
_KERNEL, _KERNEL_ROW = (np.ones((rows, PAPER_KERNEL_PX), np.uint8) for rows in (PAPER_KERNEL_PX, 1))


def paper_steps(grey: Image) -> dict[str, Image]:
    """Return the intermediate pictures of the paper's rule (its figure 5), each uint8 [height, width]."""
    inverted = 255 - grey
    eroded = np.asarray(cv2.erode(inverted, _KERNEL), np.uint8)
    kept = np.where(eroded > PAPER_THRESHOLD, 255, 0).astype(np.uint8)
    return {"grey": grey, "inverted": inverted, "eroded": eroded, f"above {PAPER_THRESHOLD}": kept}


def paper(grey: Image) -> Box | None:
    """Apply the paper's rule: invert, erode 9x9, keep > 50, take the bounding box of the remaining pixels.

    A pixel remains when every pixel of the 9x9 window around it (clipped to the image) is darker than 205. Without the
    inversion this is a dilation and a comparison, which is exact and saves one pass.

    Args:
        grey: uint8 [height, width].

    Returns:
        The box, not grown; None if no pixel remains.
    """
    return _paper_by_strips(grey) if grey.size >= _LARGE_PX and min(grey.shape) > _STRIP_PX else _dark_box(grey)


def _dark_box(grey: Image, margins: tuple[int, int, int, int] = (0, 0, 0, 0)) -> Box | None:
    """Bound the remaining pixels, except those in the margins.

    Args:
        grey: uint8 [height, width].
        margins: rows and columns at the top, bottom, left and right that only fill the windows of the other pixels.
    """
    top, bottom, left, right = margins
    _, kept = cv2.threshold(cv2.dilate(grey, _KERNEL), 254 - PAPER_THRESHOLD, 255, cv2.THRESH_BINARY_INV)
    x, y, width, height = cv2.boundingRect(kept[top : grey.shape[0] - bottom, left : grey.shape[1] - right])
    return (left + x, top + y, left + x + width, top + y + height) if width else None


# Above this size it is faster to search from the four sides than to test all pixels.
_LARGE_PX, _STRIP_PX = 200_000, 16


def _paper_by_strips(grey: Image) -> Box | None:
    """Find the same box by searching from its four sides inwards.

    Every window spans one of the sampled rows (the fifth, fourteenth, ... and the last row of the scan) with nine
    pixels, or fewer at the frame. Where these are not all dark, no pixel remains.
    """
    height, width = grey.shape
    reach = PAPER_KERNEL_PX // 2
    sampled = np.concatenate([grey[reach::PAPER_KERNEL_PX], grey[-1:]])
    _, dark = cv2.threshold(cv2.dilate(sampled, _KERNEL_ROW), 254 - PAPER_THRESHOLD, 255, cv2.THRESH_BINARY_INV)
    x, first, columns, rows = cv2.boundingRect(dark)
    if not columns:
        return None
    last = height - 1 if first + rows == len(sampled) else (first + rows) * PAPER_KERNEL_PX - 1
    top = _first_dark(grey, first * PAPER_KERNEL_PX)
    if top is None:
        return None
    bottom = height - (_first_dark(grey[::-1], max(0, height - 1 - last)) or 0)
    # No pixel remains beyond those rows, but the next few rows are in the windows of remaining pixels.
    above, below = min(reach, top), min(reach, height - bottom)
    band = grey[top - above : bottom + below].T
    left = _first_dark(band, x, (above, below)) or 0
    right = _first_dark(band[::-1], width - x - columns, (above, below)) or 0
    return left, top, width - right, bottom


def _first_dark(lines: Image, start: int, margins: tuple[int, int] = (0, 0)) -> int | None:
    """Return the first line from `start` on that has a remaining pixel; None if there is none.

    Args:
        lines: uint8 [lines, length].
        start: first line to search.
        margins: number of pixels at the two ends of the lines that only fill the windows of the other pixels.
    """
    reach = PAPER_KERNEL_PX // 2
    for line in range(start, len(lines), _STRIP_PX):
        before = min(reach, line)
        strip = np.ascontiguousarray(lines[line - before : line + _STRIP_PX + reach])
        box = _dark_box(strip, (before, max(0, len(strip) - before - _STRIP_PX), *margins))
        if box is not None:
            return line - before + box[1]
    return None


def adaptive(grey: Image) -> tuple[Box | None, int]:
    """Find the box around all bags: the union of `bags`.

    Args:
        grey: uint8 [height, width].

    Returns:
        The box, or None if the scan shows only belt, and the belt's level.
    """
    found, level = bags(grey)
    return union(found), level


def union(boxes: list[Box]) -> Box | None:
    """Return the smallest box around all `boxes`; None for an empty list."""
    if not boxes:
        return None
    x0, y0, x1, y1 = zip(*boxes, strict=True)
    return min(x0), min(y0), max(x1), max(y1)


def bags(grey: Image) -> tuple[list[Box], int]:
    """Find the box of each bag, including faint fabric and thin straps.

    Steps, on a reduced image: keep pixels darker than the belt by more than its noise, without speckle and belt lines;
    join them over small gaps; drop blobs too small for a bag; replace a tray by its contents. Each side is then moved
    to the edge of the matter at the scan's own resolution. Bags that touch or overlap are separated where their
    outlines meet in two notches; otherwise they count as one.

    Args:
        grey: uint8 [height, width].

    Returns:
        The boxes from left to right, and the belt's level.
    """
    level = belt_level(grey)
    small, factor = reduced(grey)
    cut = level - max(LEAST_CONTRAST, NOISE_FACTOR * belt_noise(small, level) / 3)  # a 3x3 mean: 1/3 of the noise
    present, light_map = without_lines(matter(small, cut), factor), tray_floor.light(small, level)
    found: list[tuple[Box, set[int]]] = []
    for number, outline in enumerate(outlines(present)):
        for part in parts(outline, present):
            tray = trays.contents(small, part, level, light_map)
            if tray is None:
                found.append((place(bounds(part), grey, factor, cut), {number}))
            elif len(tray[0]):
                found.append((_place_in_tray(bounds(tray[0]), grey, factor, tray[1]), {number}))
    # Boxes no deeper than the artefacts at the frame are artefacts.
    return _merge([(box, of) for box, of in found if min(box[2] - box[0], box[3] - box[1]) > 2 * RIM_PX]), level


def _place_in_tray(box: Box, grey: Image, factor: int, cut: float) -> Box:
    """Place the sides of a tray's contents. Sides move only inwards, because the tray's wall may be outside."""
    (x0, y0, x1, y1), found = place(box, grey, factor, cut), scaled(box, grey, factor)
    return max(x0, found[0]), max(y0, found[1]), min(x1, found[2]), min(y1, found[3])


def _merge(found: list[tuple[Box, set[int]]]) -> list[Box]:
    """Unite the boxes of a bag and its pieces. Return all boxes from left to right.

    A box is a piece of one that it overlaps if it is much smaller or lies mostly inside it. Two boxes of one outline
    are bags that touch, and are not united.

    Args:
        found: boxes, each with the numbers of the outlines that it holds.
    """
    merged: list[tuple[Box, set[int]]] = []
    for box, of in found:
        while pieces := [one for one in merged if not one[1] & of and _are_pieces(one[0], box)]:
            most = max(pieces, key=lambda one: _shared(one[0], box))
            merged.remove(most)
            box, of = union([box, most[0]]) or box, of | most[1]
        merged.append((box, of))
    return sorted(box for box, _ in merged)


def _are_pieces(a: Box, b: Box) -> bool:
    """Whether two boxes overlap, and the smaller is much smaller than the other or mostly inside it."""
    shared, (small, large) = _shared(a, b), sorted(_shared(box, box) for box in (a, b))
    return shared > 0 and (small < _PIECE_SHARE * large or shared >= _PIECE_INSIDE * small)


def _shared(a: Box, b: Box) -> int:
    """Area that two boxes share, in square pixels."""
    return max(0, min(a[2], b[2]) - max(a[0], b[0])) * max(0, min(a[3], b[3]) - max(a[1], b[1]))
