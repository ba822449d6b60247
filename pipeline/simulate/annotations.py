"""COCO annotations from silhouettes."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from pycocotools import mask as coco_mask


def polygons(mask: np.ndarray) -> list[list[float]]:
    """Outer contours of a mask as COCO polygons.

    Args:
        mask: uint8 [height, width], 0 or 1. Holes are filled, as annotators do.

    Returns:
        One flat list x0, y0, x1, y1, ... per part, in pixels; parts of fewer than three points are left out.
    """
    # At double size, contour points lie a quarter of a pixel inside the pixels' outer edges. So the polygon covers the
    # centres of exactly the pixels of the mask.
    doubled = cv2.resize(mask, None, fx=2, fy=2, interpolation=cv2.INTER_NEAREST)
    contours, _ = cv2.findContours(doubled, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    parts = [(cv2.approxPolyDP(contour, 0.8, True).reshape(-1, 2) + 0.5) / 2 for contour in contours]
    return [part.ravel().tolist() for part in parts if len(part) >= 3]


def annotate(mask: np.ndarray) -> dict[str, Any]:
    """The geometry of an annotation: segmentation, area and box of one silhouette.

    Area and box (x, y, width, height) are those of the polygons as pycocotools decodes them, so they agree exactly with
    the mask that readers decode.
    """
    height, width = mask.shape
    segmentation = polygons(mask)
    encoded = coco_mask.merge(coco_mask.frPyObjects(segmentation, height, width))
    return {
        "segmentation": segmentation,
        "area": int(coco_mask.area(encoded)),
        "bbox": [int(value) for value in coco_mask.toBbox(encoded)],
        "iscrowd": 0,
    }
