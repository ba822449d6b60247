"""What lies in a tray: that counts, not the tray's rim."""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt

from pipeline.bags import tray_floor
from pipeline.bags.blobs import Outline, outlines
from pipeline.bags.tray_floor import TONE, WALL_DARKNESS, Tray
from segloc.common.images import Image

# Set on the scans that tray_floor.py names.
_WALL_MARGIN = 8  # grey levels that what lies over a wall is darker than the darkest walls
_LEAST_DEPTH = 0.1  # and how deep inside it reaches, as a part of the tray's shorter side
_EDGE_FILL = 0.3  # an edge of the floor's hull is the floor's own when it runs along the floor for this part
_EDGE_INSET_PX = 2  # so much nearer the floor's middle than the hull, to keep the soft edge of a wall out


def contents(small: Image, outline: Outline, level: int, glance: Image) -> tuple[Outline, float] | None:
    """If the outline is a tray's, find what lies in it.

    Args:
        small: uint8 [height, width], the working image.
        outline: int32 [n, 1, 2], points of a piece of matter.
        level: of the belt.
        glance: what `tray_floor.light` gives for this image and level.

    Returns:
        The points around what lies in the tray, int32 [m, 1, 2] (none when it is empty), and the level that all of it
        on the floor is darker than. None when the piece is no tray.
    """
    tray = tray_floor.find(small, outline, level, glance)
    if tray is None:
        return None
    x0, y0, x1, y1 = tray.box
    held = np.zeros_like(small)
    held[y0:y1, x0:x1] = _held(tray)
    return np.concatenate([np.empty((0, 1, 2), np.int32), *outlines(held)]), tray.tone - TONE


def _held(tray: Tray) -> Image:
    """Mark with 255 what lies in a tray.

    Between its walls that is all that is darker than the floor, and not as thin as a rib; over the walls, what is
    darker than these.
    """
    patch, distance = tray.patch, tray.distance
    between, thickness = _between_walls(tray)
    between &= distance > thickness
    kernel = np.ones((tray.fine, tray.fine), np.uint8)
    on_floor = cv2.morphologyEx(((patch < tray.tone - TONE) & between).astype(np.uint8), cv2.MORPH_OPEN, kernel)
    away = cv2.dilate(on_floor, np.ones((4 * tray.fine + 1, 4 * tray.fine + 1), np.uint8)) == 0
    walls = tray.tone - patch[(distance > 2) & ~between & away].astype(int)
    walls = walls[walls <= WALL_DARKNESS]
    darkness = (np.percentile(walls, 95) if walls.size else WALL_DARKNESS) + _WALL_MARGIN
    dense = cv2.morphologyEx(((patch < tray.tone - darkness) & (distance > 0)).astype(np.uint8), cv2.MORPH_OPEN, kernel)
    _, labels = cv2.connectedComponents(dense)
    # Where a tray is seen aslant, its edge is as dark as a bag.
    deep = np.unique(labels[(distance > max(_LEAST_DEPTH * min(patch.shape), thickness + 1)) & (dense > 0)])
    return np.where((on_floor > 0) | np.isin(labels, deep[deep > 0]), 255, 0).astype(np.uint8)


def _between_walls(tray: Tray) -> tuple[npt.NDArray[np.bool_], float]:
    """Mark what the walls enclose, and tell how thick the thinnest is.

    A bag hides a part of the floor. So the floor's hull is not it; but the edges of the hull that run along the floor
    lie along walls, and what is beyond such an edge is wall.
    """
    floor, (height, width) = tray.floor, tray.floor.shape
    hull = tray_floor.hull_of(floor.astype(np.uint8))
    corners = cv2.approxPolyDP(hull, 1.0, True)[:, 0].astype(float)
    centre, far = corners.mean(axis=0), 2.0 * (height + width)
    within = np.full(floor.shape, 1, np.uint8)
    distances = []
    for start, end in zip(corners, np.roll(corners, -1, axis=0), strict=True):
        length = float(np.hypot(*(end - start)))
        along = (end - start) / max(length, 1e-6)
        outward = np.array([along[1], -along[0]])
        outward *= np.sign(outward @ (start - centre))
        places = start + np.outer(np.arange(0.5, length), along) - _EDGE_INSET_PX * outward
        x, y = np.rint(places).astype(int).clip(0, [width - 1, height - 1]).T
        if length < 2 or floor[y, x].mean() < _EDGE_FILL:
            continue
        near = [start - far * along, end + far * along] - _EDGE_INSET_PX * outward
        beyond = np.concatenate([near, near[::-1] + far * outward])
        cv2.fillConvexPoly(within, np.rint(beyond).astype(np.int32), 0)
        distances.append(tray.distance[y, x])
    return within > 0, float(np.percentile(np.concatenate(distances), 10)) if distances else 0.0
