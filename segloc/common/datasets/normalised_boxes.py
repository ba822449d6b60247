"""Finds boxes that were written as shares of the image, 0 to 1, instead of COCO's pixels."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

# In smaller images, boxes of less than a pixel may be meant.
_LEAST_SIDE_PX = 8
_ROUNDING = 1e-3


def are_normalised(boxes: Sequence[Sequence[float]], sizes: Sequence[tuple[int, int]]) -> bool:
    """Whether all boxes lie in the first pixel of images that have many, and some are fractions with an area.

    Boxes such as 0, 0, 0, 0 and 0, 0, 1, 1, which stand for none beside a mask, are not fractions.

    Args:
        boxes: x, y, width, height each.
        sizes: width and height of their images, in pixels.
    """
    if not boxes or min(map(min, sizes)) < _LEAST_SIDE_PX:
        return False
    start, extent = np.array(boxes, np.float64).reshape(-1, 2, 2).swapaxes(0, 1)
    with np.errstate(over="ignore"):
        inside = (start >= -_ROUNDING).all() and (start + extent <= 1 + _ROUNDING).all()
    return bool(inside and ((extent > 0) & (extent < 1)).all(1).any())
