"""Geometry: resizes backgrounds, transforms segments and places them (paper section 3.1).

All functions are pure. Random draws come from a generator argument.
"""

from __future__ import annotations

import dataclasses
import math

import cv2
import numpy as np
import numpy.typing as npt
from numpy.random import Generator

from pipeline.tables.segment_table import Segment
from segloc.common.contract import Box
from segloc.common.images import Image
from segloc.common.masks import Mask

# The paper gives only rotation and a 500 px frame (sections 3.1 and 4). The other ranges are this project's choice.
SCALE = (0.75, 1.33)
FILL = 0.9  # maximum share of the region's width and height that an item takes
LEAST_SIDE_PX, LEAST_SIDE_AT_WIDTH_PX = 16, 500
GEOMETRY_DRAWS = 10
_HALF_PIXEL = np.full(2, 0.5)
# Below this scale plain bilinear warping would skip donor pixels.
SMOOTH_BELOW = 0.5


@dataclasses.dataclass(frozen=True)
class Patch:
    """A transformed segment, tight around its mask: uint8 RGB [h, w, 3] and bool [h, w]."""

    rgb: Image
    mask: Mask


@dataclasses.dataclass(frozen=True)
class Geometry:
    """How a segment is transformed: flipped, then rotated, then scaled. Fields as in `segloc.common.contract.View`."""

    rotation_deg: float
    scale: float
    flip_h: bool
    flip_v: bool

    def matrix(self) -> npt.NDArray[np.float64]:
        """The linear map [2, 2] from donor pixels to pixels of the stored image, x right and y down."""
        angle = math.radians(self.rotation_deg)
        cosine, sine = self.scale * math.cos(angle), self.scale * math.sin(angle)
        x, y = -1.0 if self.flip_h else 1.0, -1.0 if self.flip_v else 1.0
        return np.array([[cosine * x, sine * y], [-sine * x, cosine * y]])


def frame(size: tuple[int, int], region: Box, width: int) -> tuple[tuple[int, int], Box]:
    """Scale a background's size and region to the stored width, keeping the aspect.

    Args:
        size: (width, height) of the scan in pixels.
        region: box in pixels of the scan.
        width: width of the stored image in pixels.

    Returns:
        The stored (width, height), and the region in stored pixels, rounded inwards (so it may be empty).
    """
    height = max(1, round(size[1] * width / size[0]))
    factor_x, factor_y = width / size[0], height / size[1]
    x0, y0, x1, y1 = region
    scaled = math.ceil(x0 * factor_x), math.ceil(y0 * factor_y), math.floor(x1 * factor_x), math.floor(y1 * factor_y)
    return (width, height), scaled


def reduction(native: int, width: int) -> int:
    """Largest factor (1, 2, 4, 8) by which decoding can reduce a scan `native` pixels wide to `width` pixels or more.

    For scans up to 16 times as wide, the decoded image is less than twice `width`, so `fit` skips no pixels.
    """
    return next(part for part in (8, 4, 2, 1) if native >= part * width or part == 1)


def fit(background: Image, size: tuple[int, int]) -> Image:
    """Resize a decoded scan [h, w, 3] to `size` (width, height). Bilinear down to a half, which skips no pixels."""
    height, width = background.shape[:2]
    if (width, height) == size:
        return background
    is_half_at_least = width <= 2 * size[0] + 1 and height <= 2 * size[1] + 1
    interpolation = cv2.INTER_LINEAR if is_half_at_least else cv2.INTER_AREA
    return np.asarray(cv2.resize(background, size, interpolation=interpolation), np.uint8)


def least_side(width: int) -> int:
    """Minimum width and height of a pasted item's box in a stored image of `width`, all in pixels."""
    return max(2, math.ceil(LEAST_SIDE_PX * width / LEAST_SIDE_AT_WIDTH_PX))


def draw_geometry(rng: Generator, segment: Segment, width: int, scales: tuple[float, float] = SCALE) -> Geometry:
    """Draw rotation, scale and flips. Scale 1 keeps the item's width relative to its scan."""
    rotation = 0.0 if segment.upright else float(rng.uniform(0, 360))
    scale = float(rng.uniform(*scales)) * width / segment.scan_width
    flips = (False, False) if segment.upright else (bool(rng.random() < 0.5), bool(rng.random() < 0.5))
    return Geometry(rotation, scale, *flips)


def extent(segment: Segment, geometry: Geometry) -> tuple[float, float]:
    """Width and height in pixels of the transformed mask, before it is rendered."""
    low, high = _bounds(segment, geometry.matrix())
    return high[0] - low[0], high[1] - low[1]


def _bounds(segment: Segment, matrix: npt.NDArray[np.float64]) -> tuple[list[float], list[float]]:
    """Minimum and maximum (x, y) of a mask's pixels under `matrix`, relative to the mapped centre of the crop."""
    points = segment.hull @ matrix.T
    around: npt.NDArray[np.float64] = np.abs(matrix) @ _HALF_PIXEL
    return (points.min(axis=0) - around).tolist(), (points.max(axis=0) + around).tolist()


def place(
    rng: Generator, segment: Segment, region: Box, width: int, scales: tuple[float, float] = SCALE
) -> tuple[Geometry, Patch, tuple[int, int]] | None:
    """Draw the geometry and the position of a segment. Its whole box lies in the region, uniformly.

    The item is shrunk to fit `FILL` of the region. If a side is then shorter than `least_side`, the geometry is drawn
    again; the last draw is enlarged instead.

    Args:
        rng: generator of all draws.
        segment: the segment to paste.
        region: box that contains the item, in pixels of the stored image.
        width: width of the stored image.
        scales: range of the scale.

    Returns:
        Geometry, rendered patch and its top-left (x, y); None if the region is too small for this segment.
    """
    room = region[2] - region[0], region[3] - region[1]
    least = least_side(width)
    if min(room) < least:
        return None
    for draw in range(1, GEOMETRY_DRAWS + 1):
        geometry = _shrunk(segment, draw_geometry(rng, segment, width, scales), room)
        if draw == GEOMETRY_DRAWS:
            geometry = _enlarged(segment, geometry, room, least)
        patch = render(segment, geometry)
        if patch is None:
            continue
        high, wide = patch.mask.shape
        if min(high, wide) >= least and wide <= room[0] and high <= room[1]:
            return geometry, patch, draw_corner(rng, region, patch)
    return None


def draw_corner(rng: Generator, region: Box, patch: Patch) -> tuple[int, int]:
    """Draw the top-left (x, y) of a patch uniformly, so that its whole box lies in the region."""
    high, wide = patch.mask.shape
    x = int(rng.integers(region[0], region[2] - wide, endpoint=True))
    y = int(rng.integers(region[1], region[3] - high, endpoint=True))
    return x, y


def _shrunk(segment: Segment, geometry: Geometry, room: tuple[int, int]) -> Geometry:
    sides = extent(segment, geometry)
    factor = min(1.0, FILL * room[0] / sides[0], FILL * room[1] / sides[1])
    return dataclasses.replace(geometry, scale=geometry.scale * factor)


def _enlarged(segment: Segment, geometry: Geometry, room: tuple[int, int], least: int) -> Geometry:
    """Enlarge until the shorter side is `least` or the room is full. Items of a few pixels need several steps."""
    while all(side <= space for side, space in zip(extent(segment, geometry), room, strict=True)):
        patch = render(segment, geometry)
        side = min(patch.mask.shape) if patch is not None else 1
        if side >= least:
            break
        geometry = dataclasses.replace(geometry, scale=geometry.scale * min(4.0, (least + 0.5) / side))
    return geometry


def render(segment: Segment, geometry: Geometry) -> Patch | None:
    """Transform a segment, with one interpolation for colours and mask.

    The mask holds pixels that are at least half covered. Strongly shrunk segments are smoothed first, over the donor
    pixels that one output pixel covers.

    Returns:
        The patch, tight around the mask; None if no pixel is left.
    """
    matrix = geometry.matrix()
    smooth = 2 * int(0.5 / geometry.scale) + 1 if geometry.scale < SMOOTH_BELOW else 1
    # A border with the rim's colours and alpha 0: smoothing and warping fade the mask out but not the colours. Black
    # from beyond the border reaches no pixel of the mask.
    rim = 2 + smooth // 2
    rgba = np.asarray(cv2.copyMakeBorder(segment.rgba, rim, rim, rim, rim, cv2.BORDER_REPLICATE), np.uint8)
    rgba[:rim, :, 3] = rgba[-rim:, :, 3] = rgba[:, :rim, 3] = rgba[:, -rim:, 3] = 0
    if smooth > 1:
        rgba = np.asarray(cv2.blur(rgba, (smooth, smooth), borderType=cv2.BORDER_REPLICATE), np.uint8)
    (left, top), (right, bottom) = _bounds(segment, matrix)
    canvas = max(1, math.ceil(right - left - 1e-6)), max(1, math.ceil(bottom - top - 1e-6))
    affine = np.empty((2, 3))
    affine[:, :2] = matrix
    # Move the centre of the bounds, which are relative to the crop's centre, to the centre of the canvas.
    affine[:, 2] = matrix @ ((1 - rgba.shape[1]) / 2, (1 - rgba.shape[0]) / 2)
    affine[:, 2] += (canvas[0] - 1 - left - right) / 2, (canvas[1] - 1 - top - bottom) / 2
    warped = cv2.warpAffine(rgba, affine, canvas, flags=cv2.INTER_LINEAR)
    _, mask = cv2.threshold(cv2.extractChannel(warped, 3), 127, 1, cv2.THRESH_BINARY)
    x, y, wide, high = cv2.boundingRect(mask)
    if not wide:
        return None
    inside = slice(y, y + high), slice(x, x + wide)
    rgb = np.asarray(cv2.cvtColor(warped[inside], cv2.COLOR_RGBA2RGB), np.uint8)
    return Patch(rgb, mask[inside].view(bool))
