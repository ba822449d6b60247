"""Run a detector on a test set and return COCO results."""

from __future__ import annotations

from typing import Any

import torch
from tqdm import tqdm

from segloc.common.datasets.coco_fields import Id
from segloc.common.errors import InputError
from segloc.common.skips import Skips
from segloc.common.text import shortened
from segloc.detection.data import fit, in_threads, read_scan, reason_of, to_tensor
from segloc.detection.detector import Detections, Detector
from segloc.detection.splits import CocoSplit, Scan


def predict_split(
    detector: Detector, split: CocoSplit, image_size: int, threads: int
) -> tuple[list[dict[str, Any]], list[str], Skips]:
    """Run a detector on a test set, one image at a time, so results do not depend on how images are batched.

    An image that cannot be read stays in the test set without detections.

    Args:
        detector: set to evaluation mode.
        split: the test set.
        image_size: see `fit`.
        threads: decoding threads.

    Returns:
        COCO results with the file's own image and category ids, boxes as x y w h, scores, and masks as RLE; a
        message for each image that cannot be read; and their counts.

    Raises:
        InputError: no image can be read.
    """

    def read(scan: Scan) -> torch.Tensor | InputError:
        try:
            return to_tensor(fit(read_scan(scan), image_size))
        except InputError as error:
            return error

    detector.eval()
    results: list[dict[str, Any]] = []
    unreadable, skips = [], Skips("scans", len(split.scans))
    images = in_threads(read, split.scans, threads, 2 * threads)
    bar = tqdm(split.scans, desc=f"testing {shortened(split.name)}", unit="scan")
    for scan, image in zip(bar, images, strict=True):
        if isinstance(image, InputError):
            unreadable.append(str(image))
            skips.add(reason_of(scan, image), scan.path.name)
        else:
            found = detector.predict(image, (scan.height, scan.width))
            results += to_results(found, scan.image_id, split.category_ids)
    if unreadable and len(unreadable) == len(split.scans):
        raise InputError(f"{split.name}: none of its {len(unreadable)} images can be read; {unreadable[0]}")
    return results, unreadable, skips


def to_results(found: Detections, image_id: Id, category_ids: tuple[Id, ...]) -> list[dict[str, Any]]:
    """Convert the detections of one image to COCO results."""
    results = []
    for box, score, class_id, mask in zip(found.boxes, found.scores, found.classes, found.masks, strict=True):
        x0, y0, x1, y1 = (float(edge) for edge in box)
        results.append(
            {
                "image_id": image_id,
                "category_id": category_ids[class_id],
                "bbox": [x0, y0, x1 - x0, y1 - y0],
                "score": float(score),
                "segmentation": mask,
            }
        )
    return results
