"""Distinguishes trays from bags, by floor and rim.

A tray is thin plastic. Seen from above, its floor is one even sheet, a little darker than the belt. Its walls are
oblique and form a darker band around the floor. Nothing in a tray is lighter than its floor.
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

# The constants were chosen by eye on 2 SIXray scans of trays and 27 from other sources, and on the 76 scans without
# trays in tests/pipeline/bags/region_boxes.csv. None of the 76 is detected as a tray. Lengths are in pixels of the
# working image.
_LEAST_SIDE_PX, _LEAST_SIDE_SHARE = 32, 0.25
_FLOOR_SHARE = 0.05  # minimum visible floor, as a share of the tray; the bag may hide the rest
_FLOOR_DEPTH = 16  # grey levels below the belt; floors are 0 to 15, the fabric of bags mostly 17 and more
TONE = 6  # grey levels; smaller differences count as the floor's tone
_STRAP_SHARE = 0.15  # straps that hang over the rim are thinner than this
_OPEN_SHARE = 0.3  # minimum share of floor along a side that the frame cuts
_LEAST_FILL = 0.86  # of the rectangle around the tray; trays seen obliquely 0.87, upright 0.94 and more
_LEAST_FLOOR = 0.08  # minimum hull of the floor, as a share of the tray
_FLOOR_PART = 0.1  # minimum size of a floor part that a bag cuts off, relative to the largest part,
_FLOOR_DISTANCE = 0.05  # and its minimum distance from the outline; nearer parts lie between lip and wall
_LEAST_PART, _LEAST_PART_LIKE_BELT = 0.06, 0.12  # minimum of the largest part; belt may be visible between straps
_FLOOR_REACH = 0.15  # minimum depth of that part inside the tray; trays 0.19 and more, fabric of bags at most 0.11
_LIGHTER_SHARE = 0.012  # bags: 0.015 and more, trays: at most 0.007
_BAND_SHARE = 0.05  # width of the band along the outline that is searched for walls, as a share of the shorter side
_LEAST_WALL, _MOST_DARK = 0.35, 0.3  # shares of the band: trays 0.42 and more, and at most 0.22
WALL_DARKNESS = 60  # grey levels below the floor; a rim of metal is darker
_CORE, _CORE_SHARE = 0.12, 0.028  # depth of the core, and minimum share of the blob that is floor in the core
_RIB_SHARE = 0.02  # of the shorter side


@dataclass(frozen=True)
class Tray:
    """A tray, cropped to its box.

    Attributes:
        box: box in the working image.
        patch: uint8 [height, width], that part of the working image, each pixel the mean of 3x3.
        distance: float32 [height, width], depth of each pixel inside the tray; 0 outside.
        floor: bool [height, width], the empty floor.
        tone: grey level of the floor.
        fine: kernel size in pixels; ribs and the edges of walls are thinner.
    """

    box: Box
    patch: Image
    distance: npt.NDArray[np.float32]
    floor: npt.NDArray[np.bool_]
    tone: int
    fine: int


def light(small: Image, level: int) -> Image:
    """Mark pixels at least as light as a tray's floor with 255, at a quarter of the height and width.

    Args:
        small: uint8 [height, width], the working image.
        level: level of the belt.

    Returns:
        uint8 [height // 4, width // 4], for a first test in `find_floor`. Empty if the image is too small for trays.
    """
    if min(small.shape) < _LEAST_SIDE_PX:
        return np.zeros((0, 0), np.uint8)
    return np.asarray(cv2.threshold(_quartered(small), level - _FLOOR_DEPTH - 3, 255, cv2.THRESH_BINARY)[1], np.uint8)


def find_floor(small: Image, outline: Outline, level: int, light_map: Image) -> Tray | None:
    """Return the tray that a blob of matter shows; None if it is not a tray.

    Args:
        small: uint8 [height, width], the working image.
        outline: int32 [n, 1, 2], points of the blob.
        level: level of the belt.
        light_map: result of `light` for this image and level.
    """
    x0, y0, x1, y1 = bounds(outline)
    x0, y0, x1, y1 = box = max(0, x0), max(0, y0), min(small.shape[1], x1), min(len(small), y1)
    if min(x1 - x0, y1 - y0) < max(_LEAST_SIDE_PX, _LEAST_SIDE_SHARE * max(small.shape)):
        return None
    at_frame = [y0 <= RIM_PX, y1 >= len(small) - RIM_PX, x0 <= RIM_PX, x1 >= small.shape[1] - RIM_PX]
    x, y = x0 // 4, y0 // 4
    # This test rejects most bags.
    if not _is_light_within(light_map[y : y1 // 4, x : x1 // 4], outline - (4 * x, 4 * y), at_frame):
        return None
    patch = np.asarray(cv2.blur(small[y0:y1, x0:x1], (3, 3)), np.uint8)
    blob = _filled(outline - (x0, y0), patch.shape, 0, at_frame)
    fine = max(3, round(_RIB_SHARE * min(patch.shape))) | 1
    inner = _eroded(blob, fine)
    tone = brightest_common(patch, _FLOOR_SHARE, inner)
    if level - tone > _FLOOR_DEPTH:
        return None
    even = np.asarray(cv2.inRange(patch, tone - TONE, tone + TONE), np.uint8) & inner  # type: ignore[call-overload]
    if cv2.countNonZero(even & _core(blob)) < _CORE_SHARE * cv2.countNonZero(blob):
        return None
    distance = _tray_distance(patch, blob, at_frame, tone)
    if not _is_rimmed(patch, distance, tone):
        return None
    floor = _floor(even, distance, level - tone, fine)
    return None if floor is None else Tray(box, patch, distance, floor, tone, fine)


def _is_light_within(light_map: Image, outline: Outline, at_frame: list[bool]) -> bool:
    """Whether a fair share of a blob is light and well inside it, at a quarter of its height and width."""
    inset, least = _inset(light_map), _CORE_SHARE * 0.5 * light_map.size
    # The box without a margin contains all pixels well inside.
    if cv2.countNonZero(light_map[inset:-inset, inset:-inset]) < least:
        return False
    blob = _filled(outline, light_map.shape, 2, at_frame)
    return cv2.countNonZero(light_map & _core(blob)) >= _CORE_SHARE * cv2.countNonZero(blob)


def _quartered(picture: Image) -> Image:
    """Reduce a picture to a quarter of its height and width, in halves, which is much faster than in one step."""
    return halved(halved(picture))


def _core(blob: Image) -> Image:
    return _eroded(blob, 2 * _inset(blob) + 1)


def _inset(blob: Image) -> int:
    return max(1, round(_CORE * min(blob.shape)))


def _filled(outline: Outline, shape: tuple[int, ...], shift: int, at_frame: list[bool]) -> Image:
    """Draw a filled outline, its points divided by 2 ** shift. Close outlines that the frame cuts along the frame."""
    blob = np.zeros(shape, np.uint8)
    cv2.fillPoly(blob, [outline], 255, shift=shift)
    if any(at_frame):
        for side, touches in zip(_sides(blob), at_frame, strict=True):
            held = np.flatnonzero(side[0])
            if touches and len(held):
                side[0, held[0] : held[-1] + 1] = 255
        closed, _ = cv2.findContours(blob, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
        cv2.drawContours(blob, closed, -1, 255, cv2.FILLED)
    return blob


def _sides(picture: Image) -> tuple[Image, Image, Image, Image]:
    """Return views whose first rows are the top, bottom, left and right side of the picture."""
    return picture, picture[::-1], picture.T, picture.T[::-1]


def _eroded(mask: Image, size: int) -> Image:
    # Pixels beyond the frame do not belong to the blob.
    kernel = np.ones((size, size), np.uint8)
    return np.asarray(cv2.erode(mask, kernel, borderType=cv2.BORDER_CONSTANT, borderValue=0), np.uint8)


def _tray_distance(patch: Image, blob: Image, at_frame: list[bool], tone: int) -> npt.NDArray[np.float32]:
    """Return the depth of each pixel inside a blob without its straps: float32 [height, width] in pixels, 0 outside.

    Where the floor and not a wall touches the frame, the tray continues beyond it.
    """
    walled = [
        not touches or bool(np.mean(side[0] >= tone - TONE) < _OPEN_SHARE)
        for side, touches in zip(_sides(patch), at_frame, strict=True)
    ]
    top, bottom, left, right = map(int, walled)
    bordered = cv2.copyMakeBorder(_without_straps(blob), top, bottom, left, right, cv2.BORDER_CONSTANT, value=0)
    distance = cv2.distanceTransform(bordered, cv2.DIST_L2, 3)
    return np.asarray(distance[top : top + blob.shape[0], left : left + blob.shape[1]], np.float32)


def _without_straps(blob: Image) -> Image:
    """Open a mask with a large disc, at a quarter of its height and width, which is fast and fine enough."""
    small = _quartered(blob)
    size = round(_STRAP_SHARE * min(small.shape)) | 1
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (size, size))
    return np.asarray(cv2.resize(cv2.morphologyEx(small, cv2.MORPH_OPEN, disc), blob.shape[::-1]), np.uint8) & blob


def _is_rimmed(patch: Image, distance: npt.NDArray[np.float32], tone: int) -> bool:
    """Whether a blob is a rectangle with light walls around its floor and with nothing lighter than the floor."""
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
    """Mark the floor: even parts that are neither thin nor close to the outline. None if it is too small for a tray."""
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
    # Where a wall appears as a rim within the rim, the part between both rims is not floor.
    parts = [part for part in parts if not any(_encloses(statistics[part], statistics[other]) for other in parts)]
    floor = np.isin(labels, parts)
    hull = hull_of(floor.astype(np.uint8))
    return floor if cv2.contourArea(hull) >= _LEAST_FLOOR * size else None


def _encloses(outer: npt.NDArray[np.int32], inner: npt.NDArray[np.int32]) -> bool:
    """Whether the box of one part contains another part of at least half its area (rows of OpenCV's statistics)."""
    x, y, width, height, area = (int(value) for value in outer)
    left, top, columns, rows, least = (int(value) for value in inner)
    within = x < left and y < top and left + columns < x + width and top + rows < y + height
    return within and least >= area / 2


def hull_of(mask: Image) -> Outline:
    """Return the convex hull of the nonzero pixels of a mask, computed from the few points of their outlines."""
    found, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    points = np.concatenate([np.zeros((0, 1, 2), np.int32), *found])
    return np.asarray(cv2.convexHull(points), np.int32) if len(points) else points
