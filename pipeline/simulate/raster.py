"""Draws parts into thickness maps, with anti-aliased edges."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator

import cv2
import numpy as np

from pipeline.simulate.materials import INDEX, MATERIALS
from pipeline.simulate.parts import Part, Profile

SUBPIXEL_BITS = 4
EDGE_STEPS_PER_PX = 8
# Width of OpenCV's anti-aliased line of one pixel, measured over angles and offsets.
THINNEST_LINE_PX = 1.3
# Windows of fewer pixels are drawn at four times the size, others at twice the size.
SMALL_WINDOW_PX = 4_000
# In windows of more pixels, profiles are evaluated at the size of the maps.
LARGE_WINDOW_PX = 40_000


def empty_maps(width: int, height: int) -> np.ndarray:
    """Thickness of every material over an empty belt: zeros, float32 [materials, height, width], cm."""
    return np.zeros((len(MATERIALS), height, width), np.float32)


def draw(maps: np.ndarray, parts: Iterable[Part], px_per_cm: float) -> None:
    """Add the thickness of `parts` to `maps` in place. Parts outside the maps are cut off."""
    for part, window in _windows(parts, px_per_cm, maps.shape[2], maps.shape[1]):
        if part.profile is None:
            thickness = window.coverage(part.thickness_cm)
        else:
            thickness = window.profiled(part.profile, px_per_cm)
            thickness *= np.float32(part.thickness_cm)
        if part.texture is not None:
            texture = cv2.resize(part.texture, thickness.shape[::-1], interpolation=cv2.INTER_CUBIC)
            thickness *= np.maximum(texture, 0, out=texture)
        maps[INDEX[part.material], window.rows, window.columns] += thickness


def silhouette(parts: Iterable[Part], px_per_cm: float, width: int, height: int) -> np.ndarray:
    """Pixels that `parts` cover at least half: uint8 [height, width], 0 or 1."""
    mask = np.zeros((height, width), np.uint8)
    for _, window in _windows(parts, px_per_cm, width, height):
        mask[window.rows, window.columns] |= window.coverage() >= 0.5
    return mask


@dataclasses.dataclass(frozen=True)
class _Window:
    """A part drawn large: uint8 0..255, `scale` times the size of the window `rows`, `columns` of the maps."""

    large: np.ndarray
    scale: int
    rows: slice
    columns: slice

    def _shrunk(self, image: np.ndarray) -> np.ndarray:
        size = self.columns.stop - self.columns.start, self.rows.stop - self.rows.start
        return image if self.scale == 1 else cv2.resize(image, size, interpolation=cv2.INTER_AREA)

    def coverage(self, times: float = 1) -> np.ndarray:
        """Share of every pixel that the part covers, float32 0..1, times a factor."""
        return self._shrunk(self.large) * np.float32(times / 255)

    def profiled(self, profile: Profile, px_per_cm: float) -> np.ndarray:
        """Coverage times the profile, float32."""
        if self.scale > 1 and self.large.size > LARGE_WINDOW_PX * self.scale**2:
            return _Window(self._shrunk(self.large), 1, self.rows, self.columns).profiled(profile, px_per_cm)
        # Looking up eighths of a pixel is five times as fast as evaluating the profile at every pixel.
        inside = cv2.copyMakeBorder((self.large >= 128).view(np.uint8), 1, 1, 1, 1, cv2.BORDER_REPLICATE)
        distance = cv2.distanceTransform(inside, cv2.DIST_L2, cv2.DIST_MASK_3)[1:-1, 1:-1]  # the frame is not an edge
        steps = (np.maximum(distance - 0.5, 0) * EDGE_STEPS_PER_PX).astype(np.int32)
        edge_cm = (np.arange(steps.max() + 1) + 0.5) / (EDGE_STEPS_PER_PX * self.scale * px_per_cm)
        return self._shrunk((profile(edge_cm) / 255).astype(np.float32)[steps] * self.large)


def _windows(parts: Iterable[Part], px_per_cm: float, width: int, height: int) -> Iterator[tuple[Part, _Window]]:
    """Draw every part into a window of maps of this size; parts outside are left out."""
    for part in parts:
        line_px = part.line_cm * px_per_cm
        margin = 2 + line_px / 2
        x, y, across, down = cv2.boundingRect((part.outline * px_per_cm).astype(np.float32))
        x0, y0 = max(int(x - margin), 0), max(int(y - margin), 0)
        x1, y1 = min(int(x + across + margin) + 1, width), min(int(y + down + margin) + 1, height)
        if x0 < x1 and y0 < y1:
            large, scale = _draw_large(part, px_per_cm, line_px, (x0, y0), (x1 - x0, y1 - y0))
            yield part, _Window(large, scale, slice(y0, y1), slice(x0, x1))


def _draw_large(
    part: Part, px_per_cm: float, line_px: float, corner: tuple[int, int], size: tuple[int, int]
) -> tuple[np.ndarray, int]:
    """Draw one part into a window of the maps with this top left corner and (width, height): uint8 image and its scale.

    OpenCV's own anti-aliasing makes every shape half a pixel fatter all around and a line of one pixel 1.3 wide. So it
    is used only for lines thinner than that, weakened to keep their mass. All other parts are drawn large and averaged.
    """
    width, height = size
    thin = 0 < line_px < THINNEST_LINE_PX
    scale = 1 if thin else 4 if width * height < SMALL_WINDOW_PX else 2
    # OpenCV's fixed-point coordinates: integers are pixel centres, not corners.
    steps = scale * 2**SUBPIXEL_BITS
    origin = np.array(corner) * steps + 2 ** (SUBPIXEL_BITS - 1)
    curves = [np.rint(curve * (px_per_cm * steps) - origin).astype(np.int32) for curve in (part.outline, *part.holes)]
    image = np.zeros((height * scale, width * scale), np.uint8)
    if thin:
        cv2.polylines(image, curves, False, 255 * line_px / THINNEST_LINE_PX, 1, cv2.LINE_AA, SUBPIXEL_BITS)
    elif line_px:
        # A line drawn without anti-aliasing is 0.7 pixels too wide, measured over angles and widths.
        across = max(1, round(line_px * scale - 0.7))
        cv2.polylines(image, curves, False, 255, across, cv2.LINE_8, SUBPIXEL_BITS)
    else:
        cv2.fillPoly(image, curves, 255, cv2.LINE_8, SUBPIXEL_BITS)
    return image, scale
