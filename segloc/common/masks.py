"""Instance masks: checks, decoding and encoding of COCO's three encodings, and tight boxes of arrays.

`rle` checks run lengths before pycocotools reads them.
"""

from __future__ import annotations

import math
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
from pycocotools import mask as coco_mask

from segloc.common import rle
from segloc.common.contract import Box

Mask = npt.NDArray[np.bool_]
# An item's outline is some thousand pixels long. Drawing takes five points a pixel, so this takes a second at most.
MOST_OUTLINE_PX = 1_000_000

NO_MASK = "no mask"  # reason of an annotation that has none


class MaskError(ValueError):
    """A segmentation that is not a usable mask. The message is the reason."""


def rasterise(segmentation: Any, width: int, height: int) -> Mask:
    """Draw a COCO segmentation.

    Args:
        segmentation: see `checked`.
        width: of the scan, in pixels.
        height: of the scan, in pixels.

    Returns:
        bool array [height, width]. Pixels outside the scan are cut off.

    Raises:
        MaskError: see `checked`; or the mask is empty.
    """
    mask = _decode(checked(segmentation, width, height), width, height)
    if not mask.any():
        raise MaskError("empty mask")
    return mask


def checked(segmentation: Any, width: int, height: int) -> Any:
    """Check a COCO segmentation before pycocotools reads it.

    Args:
        segmentation: as in JSON: a list of polygons ``[x0, y0, x1, y1, ...]`` in pixels (their union is the mask),
            or a dict with ``size`` (height, width) and ``counts``: a list (uncompressed RLE) or text (compressed RLE).
        width: of the scan, in pixels.
        height: of the scan, in pixels.

    Returns:
        The same, without polygons of fewer than three points (pycocotools reads four numbers as a box).

    Raises:
        MaskError: not one of the three encodings, or made for another size.
    """
    if isinstance(segmentation, list) and segmentation:
        return _polygons(segmentation, max(width, height))
    if not isinstance(segmentation, dict) or not segmentation:
        raise MaskError(NO_MASK)
    if segmentation.get("size") != [height, width]:
        raise MaskError("RLE made for another image size")
    if not rle.sound([segmentation], [(height, width)])[0]:
        raise MaskError("broken RLE")
    return segmentation


def to_rle(segmentation: Any, height: int, width: int) -> dict[str, Any]:
    """Convert a checked segmentation to compressed RLE, the only encoding that pycocotools computes with."""
    if isinstance(segmentation, list):
        return coco_mask.merge(coco_mask.frPyObjects(segmentation, height, width))
    if isinstance(segmentation["counts"], list):
        return coco_mask.frPyObjects(segmentation, height, width)
    return segmentation


def is_connected(mask: Mask) -> bool:
    """Whether the true pixels of `mask` [height, width] are one 8-connected component, with or without holes.

    >>> is_connected(np.array([[1, 0, 0], [0, 1, 0]], bool)), is_connected(np.array([[1, 0, 1]], bool))
    (True, False)
    """
    count, _ = cv2.connectedComponents(mask.astype(np.uint8), connectivity=8)
    return int(count) == 2  # OpenCV counts the background too


def tight_box(mask: npt.NDArray[Any]) -> Box | None:
    """The smallest half-open box around the true pixels of `mask` [height, width]; None if there are none.

    >>> tight_box(np.array([[0, 0, 0], [0, 1, 1]]))
    (1, 1, 3, 2)
    """
    columns, rows = np.flatnonzero(mask.any(axis=0)), np.flatnonzero(mask.any(axis=1))
    if not len(columns):
        return None
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def encode_mask(mask: npt.NDArray[Any]) -> dict[str, Any]:
    """Encode a mask [height, width] as COCO's compressed RLE, with text counts for use in JSON."""
    return {"size": [int(side) for side in mask.shape], "counts": encode_rle(mask)}


def encode_rle(mask: npt.NDArray[Any]) -> str:
    """Encode a mask [height, width] as the text of COCO's compressed run-length encoding (its ``counts``)."""
    text: bytes = coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))["counts"]
    return text.decode()


def decode_rle(counts: str, width: int, height: int) -> Mask:
    """Decode the text of `encode_rle`.

    Args:
        counts: the text.
        width: of the mask in pixels.
        height: of the mask in pixels.

    Returns:
        bool array [height, width].

    Raises:
        MaskError: the text is invalid, or belongs to a mask of another size.
    """
    return _decode(checked({"size": [height, width], "counts": counts}, width, height), width, height)


def _decode(segmentation: Any, width: int, height: int) -> Mask:
    return np.asarray(coco_mask.decode(to_rle(segmentation, height, width)), bool)


def _polygons(parts: list[Any], reach: int) -> list[list[float]]:
    for part in parts:
        if not isinstance(part, list) or len(part) % 2 or any(type(value) not in (int, float) for value in part):
            raise MaskError("malformed polygon")
        # Drawing needs memory in proportion to the edges' length, so a stray 1e9 would exhaust it.
        if not all(-reach <= value <= 2 * reach for value in part):
            numbers = all(abs(value) < math.inf for value in part)  # false for NaN too
            raise MaskError("polygon far outside the image" if numbers else "malformed polygon")
    if not (whole := [part for part in parts if len(part) >= 6]):
        raise MaskError("polygon of fewer than three points")
    if sum(map(_length, whole)) > MOST_OUTLINE_PX:
        raise MaskError("polygon with too long an outline")
    return whole


def _length(part: list[float]) -> float:
    """Length of a closed polygon, as the larger of its steps in x and y, which is what drawing it takes."""
    points = np.reshape(np.asarray(part, np.float64), (-1, 2))
    return float(np.abs(points - np.roll(points, 1, axis=0)).max(axis=1).sum())
