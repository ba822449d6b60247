"""Instance masks: from COCO's three encodings to arrays, and from arrays to tight boxes."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
from pycocotools import mask as coco_mask

from segloc.common.contract import Box

Mask = npt.NDArray[np.bool_]


class MaskError(ValueError):
    """A segmentation that is not a usable mask. The message is the reason."""


def rasterise(segmentation: Any, width: int, height: int) -> Mask:
    """Draw a COCO segmentation.

    Args:
        segmentation: a list of polygons ``[x0, y0, x1, y1, ...]`` in pixels (their union is the mask), or a dict with
            ``size`` (height, width) and ``counts``: a list (uncompressed RLE) or a string (compressed RLE).
        width: of the scan, in pixels.
        height: of the scan, in pixels.

    Returns:
        bool array [height, width]. What lies outside the scan is cut off.

    Raises:
        MaskError: not one of the three encodings, made for another size, or empty.
    """
    if isinstance(segmentation, dict):
        encoded = _run_lengths(segmentation, width, height)
    elif isinstance(segmentation, list) and segmentation:
        encoded = coco_mask.merge(coco_mask.frPyObjects(_polygons(segmentation, width, height), height, width))
    else:
        raise MaskError("no mask")
    mask = coco_mask.decode(encoded).astype(bool)
    if not mask.any():
        raise MaskError("empty mask")
    return mask


def _polygons(parts: list[Any], width: int, height: int) -> list[list[float]]:
    """Check the parts; those of fewer than three points are left out (pycocotools takes four numbers for a box)."""
    if not all(isinstance(part, list) for part in parts):
        raise MaskError("malformed polygon")
    reach = max(width, height)
    whole = []
    for part in parts:
        if len(part) % 2 or not all(isinstance(value, (int, float)) for value in part):
            raise MaskError("malformed polygon")
        # Rasterising costs memory in proportion to the edges' length, so a stray 1e9 would exhaust it. NaN fails too.
        if any(not -reach <= value <= 2 * reach for value in part):
            raise MaskError("polygon far outside the image")
        if len(part) >= 6:
            whole.append([float(value) for value in part])
    if not whole:
        raise MaskError("polygon of fewer than three points")
    return whole


def _run_lengths(segmentation: dict[str, Any], width: int, height: int) -> dict[str, Any]:
    """Check both kinds of RLE. pycocotools leaves memory unset where runs end early, so they must add up."""
    counts, size = segmentation.get("counts"), segmentation.get("size")
    if size != [height, width]:
        raise MaskError("RLE made for another image size")
    if isinstance(counts, (str, bytes)):
        counts = _decompress(counts.encode() if isinstance(counts, str) else counts)
    if not isinstance(counts, list) or not all(isinstance(count, int) and count >= 0 for count in counts):
        raise MaskError("broken RLE")
    if sum(counts) != width * height:
        raise MaskError("broken RLE")
    return coco_mask.frPyObjects({"size": size, "counts": counts}, height, width)


def _decompress(text: bytes) -> list[int]:
    """Run lengths of a compressed RLE.

    Five bits a character, lowest first, the last one's highest bit the sign; from the fourth run on, the difference to
    the run before the last.
    """
    counts: list[int] = []
    value = shift = 0
    for character in text:
        bits = character - 48
        if not 0 <= bits < 64:
            raise MaskError("broken RLE")
        value |= (bits & 31) << shift
        shift += 5
        if bits & 32:
            continue
        if bits & 16:
            value -= 1 << shift
        counts.append(value + (counts[-2] if len(counts) > 2 else 0))
        value = shift = 0
    if shift:
        raise MaskError("broken RLE")
    return counts


def is_one_piece(mask: Mask) -> bool:
    """Whether the true pixels of `mask` [height, width] hang together, corners included. Holes do not matter.

    >>> is_one_piece(np.array([[1, 0, 0], [0, 1, 0]], bool)), is_one_piece(np.array([[1, 0, 1]], bool))
    (True, False)
    """
    count, _ = cv2.connectedComponents(mask.astype(np.uint8), connectivity=8)
    return int(count) == 2  # the background is one


def tight_box(mask: npt.NDArray[Any]) -> Box | None:
    """The smallest half-open box around the true pixels of `mask` [height, width]; None when there are none.

    >>> tight_box(np.array([[0, 0, 0], [0, 1, 1]]))
    (1, 1, 3, 2)
    """
    columns, rows = np.flatnonzero(mask.any(axis=0)), np.flatnonzero(mask.any(axis=1))
    if not len(columns):
        return None
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def encode_rle(mask: Mask) -> str:
    """Encode a mask [height, width] as the text of COCO's compressed run-length encoding (its ``counts``)."""
    text: bytes = coco_mask.encode(np.asfortranarray(mask.view(np.uint8)))["counts"]
    return text.decode()


def decode_rle(counts: str, width: int, height: int) -> Mask:
    """Undo `encode_rle`.

    Args:
        counts: the text.
        width: of the mask in pixels.
        height: of the mask in pixels.

    Returns:
        bool array [height, width].

    Raises:
        MaskError: the text is not sound, or of a mask of another size.
    """
    text = counts.encode(errors="surrogatepass")
    encoded = _run_lengths({"size": [height, width], "counts": text}, width, height)
    return np.asarray(coco_mask.decode(encoded), bool)
