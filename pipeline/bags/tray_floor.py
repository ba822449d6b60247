"""How a tray is told from a bag: by its floor and its rim.

A tray is thin plastic. Seen from above its floor is one even sheet, a little darker than the belt; its walls, seen
aslant, are a darker band around it. Nothing in a tray is lighter than its floor.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from pipeline.bags.belt import brightest_common
from pipeline.bags.blobs import RIM_PX, Outline, bounds, halved
from segloc.common.contract import Box
from segloc.common.images import Image

# The constants were set by eye on 2 SIXray scans of trays and 27 of other sources, against the 76 scans without trays
# of tests/pipeline/bags/region_boxes.csv: none of these is taken for a tray. Lengths are pixels of the working image.
_LEAST_SIDE_PX, _LEAST_SIDE_SHARE = 32, 0.25
_FLOOR_SHARE = 0.05  # the floor is at least this part of the tray: the rest may lie under the bag
_FLOOR_DEPTH = 16  # grey levels below the belt; floors are 0 to 15, the fabric of bags mostly 17 and more
TONE = 6  # grey levels; what differs less is as dark as the floor
_STRAP_SHARE = 0.15  # straps that hang over the rim are thinner than this
_OPEN_SHARE = 0.3  # the floor shows along this part of a side that the frame cuts
_LEAST_FILL = 0.86  # of the rectangle around the tray; seen askew 0.87, upright 0.94 and more
_LEAST_FLOOR = 0.08  # the hull of the floor, as a part of the tray
_FLOOR_PART = 0.1  # a part of the floor that a bag cuts off is this part of the largest, or more,
_FLOOR_DISTANCE = 0.05  # and keeps this far from the outline; else it lies between lip and wall
_LEAST_PART, _LEAST_PART_LIKE_BELT = 0.06, 0.12  # the largest part; belt may show between straps
_FLOOR_REACH = 0.15  # and how deep inside it reaches; 0.19 and more, the outer fabric of bags at most 0.11
_LIGHTER_SHARE = 0.012  # bags: 0.015 and more, trays: at most 0.007
_BAND_SHARE = 0.05  # the band along the outline in which walls are looked for is this part of the shorter side wide
_LEAST_WALL, _MOST_DARK = 0.35, 0.3  # parts of the band: trays 0.42 and more, and at most 0.22
WALL_DARKNESS = 60  # grey levels below the floor; a rim of metal is darker
_CORE, _CORE_SHARE = 0.12, 0.028  # this part of the piece is floor and so deep inside it
_RIB_SHARE = 0.02  # of the shorter side


@dataclass(frozen=True)
class Tray:
    """A tray, in the box around it.

    Attributes:
        box: in the working image.
        patch: uint8 [height, width], the working image there, each pixel the mean of 3x3.
        distance: float32 [height, width], how far inside the tray each pixel is; 0 outside.
        floor: bool [height, width], the empty floor.
        tone: grey level of the floor.
        fine: size of a kernel, in pixels, that ribs and the edges of walls are thinner than.
    """

    box: Box
    patch: Image
    distance: npt.NDArray[np.float32]
    floor: npt.NDArray[np.bool_]
    tone: int
    fine: int


def light(small: Image, level: int) -> Image:
    """Mark with 255 what is as light as a tray's floor, or lighter, in a quarter of the height and width.

    Args:
        small: uint8 [height, width], the working image.
        level: of the belt.

    Returns:
        uint8 [height // 4, width // 4]; what `find` looks at first. Empty where the image is too small for trays.
    """
    if min(small.shape) < _LEAST_SIDE_PX:
        return np.zeros((0, 0), np.uint8)
    return np.asarray(cv2.threshold(_quartered(small), level - _FLOOR_DEPTH - 3, 255, cv2.THRESH_BINARY)[1], np.uint8)


def find(small: Image, outline: Outline, level: int, glance: Image) -> Tray | None:
    """Tell whether a piece of matter is a tray.

    Args:
        small: uint8 [height, width], the working image.
        outline: int32 [n, 1, 2], points of the piece.
        level: of the belt.
        glance: what `light` gives for this image and level.
    """
    x0, y0, x1, y1 = bounds(outline)
    x0, y0, x1, y1 = box = max(0, x0), max(0, y0), min(small.shape[1], x1), min(len(small), y1)
    if min(x1 - x0, y1 - y0) < max(_LEAST_SIDE_PX, _LEAST_SIDE_SHARE * max(small.shape)):
        return None
    at_frame = [y0 <= RIM_PX, y1 >= len(small) - RIM_PX, x0 <= RIM_PX, x1 >= small.shape[1] - RIM_PX]
    x, y = x0 // 4, y0 // 4
    if not _is_light_within(glance[y : y1 // 4, x : x1 // 4], outline - (4 * x, 4 * y), at_frame):  # as most bags
        return None
    patch = np.asarray(cv2.blur(small[y0:y1, x0:x1], (3, 3)), np.uint8)
    piece = _filled(outline - (x0, y0), patch.shape, 0, at_frame)
    fine = max(3, round(_RIB_SHARE * min(patch.shape))) | 1
    inner = _eroded(piece, fine)
    tone = brightest_common(patch, _FLOOR_SHARE, inner)
    if level - tone > _FLOOR_DEPTH:
        return None
    even = np.asarray(cv2.inRange(patch, tone - TONE, tone + TONE), np.uint8) & inner  # type: ignore[call-overload]
    if cv2.countNonZero(even & _core(piece)) < _CORE_SHARE * cv2.countNonZero(piece):
        return None
    distance = _tray_distance(patch, piece, at_frame, tone)
    if not _is_rimmed(patch, distance, tone):
        return None
    floor = _floor(even, distance, level - tone, fine)
    return None if floor is None else Tray(box, patch, distance, floor, tone, fine)


def _is_light_within(glance: Image, outline: Outline, at_frame: list[bool]) -> bool:
    """Tell whether a fair part of a piece is light and well inside it; in a quarter of its height and width."""
    inset, least = _inset(glance), _CORE_SHARE * 0.5 * glance.size
    # The box without a margin holds all that is well inside.
    if cv2.countNonZero(glance[inset:-inset, inset:-inset]) < least:
        return False
    piece = _filled(outline, glance.shape, 2, at_frame)
    return cv2.countNonZero(glance & _core(piece)) >= _CORE_SHARE * cv2.countNonZero(piece)


def _quartered(picture: Image) -> Image:
    """Reduce a picture to a quarter of its height and width: by halves, which is many times faster than at once."""
    return halved(halved(picture))


def _core(piece: Image) -> Image:
    return _eroded(piece, 2 * _inset(piece) + 1)


def _inset(piece: Image) -> int:
    return max(1, round(_CORE * min(piece.shape)))


def _filled(outline: Outline, shape: tuple[int, ...], shift: int, at_frame: list[bool]) -> Image:
    """Draw an outline filled, its points divided by 2 ** shift; one that the frame cuts open is closed along it."""
    piece = np.zeros(shape, np.uint8)
    cv2.fillPoly(piece, [outline], 255, shift=shift)
    if any(at_frame):
        for side, touches in zip(_sides(piece), at_frame, strict=True):
            held = np.flatnonzero(side[0])
            if touches and len(held):
                side[0, held[0] : held[-1] + 1] = 255
        closed, _ = cv2.findContours(piece, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
        cv2.drawContours(piece, closed, -1, 255, cv2.FILLED)
    return piece


def _sides(picture: Image) -> tuple[Image, Image, Image, Image]:
    """Return views of which the first row is the top, bottom, left and right side of the picture."""
    return picture, picture[::-1], picture.T, picture.T[::-1]


def _eroded(mask: Image, size: int) -> Image:
    # What lies beyond the frame is not the piece's.
    kernel = np.ones((size, size), np.uint8)
    return np.asarray(cv2.erode(mask, kernel, borderType=cv2.BORDER_CONSTANT, borderValue=0), np.uint8)


def _tray_distance(patch: Image, piece: Image, at_frame: list[bool], tone: int) -> npt.NDArray[np.float32]:
    """Return how far inside a piece each pixel is, straps left out: float32 [height, width] in pixels, 0 outside.

    Where the frame shows the floor and not a wall, the tray goes on beyond it.
    """
    walled = [
        not touches or bool(np.mean(side[0] >= tone - TONE) < _OPEN_SHARE)
        for side, touches in zip(_sides(patch), at_frame, strict=True)
    ]
    top, bottom, left, right = map(int, walled)
    bordered = cv2.copyMakeBorder(_without_straps(piece), top, bottom, left, right, cv2.BORDER_CONSTANT, value=0)
    distance = cv2.distanceTransform(bordered, cv2.DIST_L2, 3)
    return np.asarray(distance[top : top + piece.shape[0], left : left + piece.shape[1]], np.float32)


def _without_straps(piece: Image) -> Image:
    """Open a mask with a large disc; in a quarter of its height and width, which is fast, and fine enough."""
    small = _quartered(piece)
    size = round(_STRAP_SHARE * min(small.shape)) | 1
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (size, size))
    return np.asarray(cv2.resize(cv2.morphologyEx(small, cv2.MORPH_OPEN, disc), piece.shape[::-1]), np.uint8) & piece


def _is_rimmed(patch: Image, distance: npt.NDArray[np.float32], tone: int) -> bool:
    """Tell whether a piece is a rectangle with light walls around its floor, and with nothing lighter than that."""
    hull = hull_of((distance > 0).astype(np.uint8))
    if not len(hull):
        return False
    width, height = cv2.minAreaRect(hull)[1]
    if cv2.contourArea(hull) < _LEAST_FILL * width * height:
        return False
    inside = patch[distance > 3]
    if np.count_nonzero(inside > tone + TONE - 2) > _LIGHTER_SHARE * inside.size:
        return False
    band = patch[(distance > 0) & (distance <= max(3, _BAND_SHARE * min(distance.shape)))]
    wall, dark = (np.count_nonzero(band < tone - darker) for darker in (TONE - 2, WALL_DARKNESS))
    return band.size > 0 and wall >= _LEAST_WALL * band.size and dark <= _MOST_DARK * band.size


def _floor(even: Image, distance: npt.NDArray[np.float32], depth: int, fine: int) -> npt.NDArray[np.bool_] | None:
    """Mark the floor: what is even and neither thin nor close to the outline; None when it is too small for one."""
    closed = cv2.morphologyEx(even, cv2.MORPH_CLOSE, np.ones((3, 3), np.uint8))  # over ribs
    opened = cv2.morphologyEx(closed, cv2.MORPH_OPEN, np.ones((fine, fine), np.uint8))
    _, labels, statistics, _ = cv2.connectedComponentsWithStats(opened)
    areas = statistics[:, cv2.CC_STAT_AREA].copy()
    areas[0] = 0
    size, largest = np.count_nonzero(distance), int(areas.argmax())
    if areas[largest] < (_LEAST_PART if depth >= TONE else _LEAST_PART_LIKE_BELT) * size:
        return None
    side = min(distance.shape)
    if distance[labels == largest].max() < _FLOOR_REACH * side:
        return None
    parts = [
        part
        for part in np.flatnonzero(areas >= _FLOOR_PART * areas[largest])
        if part == largest or np.percentile(distance[labels == part], 10) >= _FLOOR_DISTANCE * side
    ]
    # Where a wall shows as a rim within the rim, what is between the two is no floor.
    parts = [part for part in parts if not any(_encloses(statistics[part], statistics[other]) for other in parts)]
    floor = np.isin(labels, parts)
    hull = hull_of(floor.astype(np.uint8))
    return floor if cv2.contourArea(hull) >= _LEAST_FLOOR * size else None


def _encloses(outer: npt.NDArray[np.int32], inner: npt.NDArray[np.int32]) -> bool:
    """Tell from two rows of OpenCV's statistics whether one part's box holds another that is half as large or more."""
    x, y, width, height, area = (int(value) for value in outer)
    left, top, columns, rows, least = (int(value) for value in inner)
    within = x < left and y < top and left + columns < x + width and top + rows < y + height
    return within and least >= area / 2


def hull_of(mask: Image) -> Outline:
    """Return the convex hull of what is not 0 in a mask; of the outlines' points, as those are few."""
    found, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    points = np.concatenate([np.zeros((0, 1, 2), np.int32), *found])
    return np.asarray(cv2.convexHull(points), np.int32) if len(points) else points
