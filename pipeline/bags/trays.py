"""Finds the contents of a tray, which count as bags, without the tray's rim."""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt

from pipeline.bags import tray_floor
from pipeline.bags.blobs import Outline, outlines
from pipeline.bags.tray_floor import TONE, WALL_DARKNESS, Tray
from segloc.common.images import Image

# Chosen on the scans named in tray_floor.py.
_WALL_MARGIN = 8  # grey levels by which contents over a wall are darker than the darkest walls
_LEAST_DEPTH = 0.1  # minimum depth of such contents inside the tray, as a share of its shorter side
_EDGE_FILL = 0.3  # minimum share of floor along an edge of the floor's hull that counts as the floor's own edge
_EDGE_INSET_PX = 2  # distance by which such an edge is moved inwards, to exclude the soft edge of a wall


def contents(small: Image, outline: Outline, level: int, light_map: Image) -> tuple[Outline, float] | None:
    """Find the contents of a tray.

    Args:
        small: uint8 [height, width], the working image.
        outline: int32 [n, 1, 2], points of a blob of matter.
        level: level of the belt.
        light_map: result of `tray_floor.light` for this image and level.

    Returns:
        The points around the contents, int32 [m, 1, 2] (none if the tray is empty), and the level below which pixels on
        the floor are contents. None if the blob is not a tray.
    """
    tray = tray_floor.find_floor(small, outline, level, light_map)
    if tray is None:
        return None
    x0, y0, x1, y1 = tray.box
    held = np.zeros_like(small)
    held[y0:y1, x0:x1] = _contents_mask(tray)
    return np.concatenate([np.empty((0, 1, 2), np.int32), *outlines(held)]), tray.tone - TONE


def _contents_mask(tray: Tray) -> Image:
    """Mark the contents of a tray with 255.

    Between the walls, contents are darker than the floor and thicker than a rib. Over the walls, contents are darker
    than the walls.
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
    # Where a tray is seen obliquely, its edge is as dark as a bag.
    deep = np.unique(labels[(distance > max(_LEAST_DEPTH * min(patch.shape), thickness + 1)) & (dense > 0)])
    return np.where((on_floor > 0) | np.isin(labels, deep[deep > 0]), 255, 0).astype(np.uint8)


def _between_walls(tray: Tray) -> tuple[npt.NDArray[np.bool_], float]:
    """Mark the area between the walls, and return the thickness of the thinnest wall.

    A bag hides a part of the floor, so the floor's hull is too small. But hull edges that run along the floor also run
    along walls, and the area beyond such an edge is wall.
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
