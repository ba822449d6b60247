"""Contact sheets: many small pictures on one sheet, with boxes and captions."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from segloc.common.contract import Box
from segloc.common.files import write_atomic
from segloc.common.images import Image, encode_png
from segloc.common.output_kinds import marked_png
from segloc.common.text import shortened

RED, GREEN, BLUE = (220, 40, 40), (20, 150, 60), (40, 80, 220)

_GAP_PX, _CAPTION_PX = 6, 16


def tile(image: Image, boxes: Sequence[tuple[Box, tuple[int, int, int]]], caption: str, side_px: int = 240) -> Image:
    """Shrink a picture into a square, draw boxes on it and write a caption under it.

    Args:
        image: uint8 RGB [h, w, 3].
        boxes: (box in pixels of `image`, RGB colour) each.
        caption: one line; characters missing from the built-in font become ``?``.
        side_px: side of the square.

    Returns:
        uint8 RGB [side_px + 16, side_px, 3].
    """
    height, width = image.shape[:2]
    factor = side_px / max(height, width)
    size = max(1, round(width * factor)), max(1, round(height * factor))
    small = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    for (x0, y0, x1, y1), colour in boxes:
        corner, opposite = (round(x0 * factor), round(y0 * factor)), (round(x1 * factor) - 1, round(y1 * factor) - 1)
        cv2.rectangle(small, corner, opposite, colour, 1)
    canvas = np.full((side_px + _CAPTION_PX, side_px, 3), 235, np.uint8)
    canvas[: small.shape[0], : small.shape[1]] = small
    text = shortened(caption).encode("ascii", "replace").decode()
    cv2.putText(canvas, text, (2, side_px + 12), cv2.FONT_HERSHEY_SIMPLEX, 0.36, (20, 20, 20), 1, cv2.LINE_AA)
    return canvas


def sheet(tiles: Sequence[Image], columns: int) -> Image:
    """Arrange tiles of one size in rows on white.

    Raises:
        ValueError: there are no tiles.
    """
    if not tiles:
        raise ValueError("a contact sheet needs at least one picture")
    height, width = tiles[0].shape[:2]
    rows = -(-len(tiles) // columns)
    canvas = np.full((rows * (height + _GAP_PX), columns * (width + _GAP_PX), 3), 255, np.uint8)
    for position, picture in enumerate(tiles):
        y, x = position // columns * (height + _GAP_PX), position % columns * (width + _GAP_PX)
        canvas[y : y + height, x : x + width] = picture
    return canvas


def save(path: Path, tiles: Sequence[Image], columns: int) -> None:
    """Write a contact sheet as PNG."""
    write_png(path, sheet(tiles, columns))


def write_png(path: Path, image: Image) -> None:
    """Write a drawing as PNG, marked as one that may be replaced."""
    write_atomic(path, marked_png(encode_png(image)))


def spread(count: int, total: int) -> list[int]:
    """Positions of at most `count` of `total` items, evenly spaced, including the first."""
    return [position * total // min(count, total) for position in range(min(count, total))]
