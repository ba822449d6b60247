"""Run a detector on a test set and return COCO results."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from tqdm import tqdm

from segloc.common.datasets.coco_fields import Id
from segloc.common.errors import InputError
from segloc.common.skips import Skips
from segloc.common.text import shortened
from segloc.detection.data import fit, in_threads, read_scan, reason_of, to_tensor
from segloc.detection.detector import Detections, Detector
from segloc.detection.splits import CocoSplit, Scan
from segloc.training.processes import ALONE, Group


class Predicted(NamedTuple):
    """What a detector found in a test set.

    Attributes:
        results: COCO results with the file's own image and category ids, boxes as x y w h, scores, and masks as RLE.
        unreadable: a message for each image that cannot be read. It stays in the test set without detections.
        skips: their counts.
    """

    results: list[dict[str, Any]]
    unreadable: list[str]
    skips: Skips


def predict_split(
    detector: Detector, split: CocoSplit, image_size: int, threads: int, group: Group = ALONE
) -> Predicted | None:
    """Run a detector on a test set, one image at a time, so results do not depend on how images are batched.

    Args:
        detector: set to evaluation mode.
        split: the test set.
        image_size: see `fit`.
        threads: decoding threads.
        group: the processes that share the images; process r of n takes image r and every n-th image after it.

    Returns:
        What all processes found, in the order of the test set; None in all but the main process.

    Raises:
        InputError: no image can be read.
    """
    with group.together():
        own = _predict(detector, split, image_size, threads, group)
    parts = group.gather_in_main(own)
    with group.together():
        return None if parts is None else _joined(parts, split)


def _predict(
    detector: Detector, split: CocoSplit, image_size: int, threads: int, group: Group
) -> list[list[dict[str, Any]] | InputError]:
    """Return the results of each of this process's images, or why it cannot be read."""

    def read(scan: Scan) -> torch.Tensor | InputError:
        try:
            return to_tensor(fit(read_scan(scan), image_size))
        except InputError as error:
            return error

    detector.eval()
    found: list[list[dict[str, Any]] | InputError] = []
    scans, silent = split.scans[group.rank :: group.world], not group.is_main
    images = in_threads(read, scans, threads, 2 * threads)
    with tqdm(total=len(split.scans), desc=f"testing {shortened(split.name)}", unit="scan", disable=silent) as bar:
        for scan, image in zip(scans, images, strict=True):
            if isinstance(image, InputError):
                found.append(image)
            else:
                detections = detector.predict(image, (scan.height, scan.width))
                found.append(to_results(detections, scan.image_id, split.category_ids))
            bar.update(min(group.world, len(split.scans) - bar.n))
    return found


def _joined(parts: list[list[list[dict[str, Any]] | InputError]], split: CocoSplit) -> Predicted:
    """Put the results of the images of all processes in the order of the test set."""
    joined = Predicted([], [], Skips("scans", len(split.scans)))
    for position, scan in enumerate(split.scans):
        found = parts[position % len(parts)][position // len(parts)]
        if isinstance(found, InputError):
            joined.unreadable.append(str(found))
            joined.skips.add(reason_of(scan, found), scan.path.name)
        else:
            joined.results.extend(found)
    if joined.unreadable and len(joined.unreadable) == len(split.scans):
        raise InputError(
            f"{split.name}: none of its {len(joined.unreadable)} images can be read; {joined.unreadable[0]}"
        )
    return joined


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
