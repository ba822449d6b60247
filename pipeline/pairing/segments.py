"""Cuts the labelled items out of their scans (paper section 3.1)."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import pickle
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from tqdm import tqdm

from pipeline.common.executors import run_tasks
from pipeline.tables import segment_table
from segloc.common import datasets, masks, white_level
from segloc.common.contract import Box
from segloc.common.datasets import Instance, near_duplicates
from segloc.common.errors import InputError
from segloc.common.files import check_output
from segloc.common.images import Image, ImageError, encode_rgba, read_image
from segloc.common.skips import Skips
from segloc.common.text import utf8_text

# The donor's surroundings are measured close to the item, but outside its blurred rim.
RING_PX = (3, 12)
# An outline drawn to the index of the last pixel ends one pixel before the frame.
FRAME_MARGIN_PX = 1
_WHITE = np.full(3, 255.0, np.float32)

Row = dict[str, Any]


def cut_segment(
    instances: list[Instance], *, images: Path, classes: tuple[str, ...], white: int | None = None
) -> tuple[list[Row], list[str]]:
    """Cut the items of one class out of one scan.

    Args:
        instances: annotations of one class in one image.
        images: folder of the scans.
        classes: names by class id.
        white: white level of the scans; None if they have none.

    Returns:
        Rows of the table without the scan group, and a reason for each instance without a row.
    """
    try:
        scan = read_image(images / instances[0].image, white=white)
    except ImageError as error:
        return [], [f"image unreadable: {str(error).partition(':')[0]}"] * len(instances)
    rows, reasons = [], []
    fingerprint = near_duplicates.fingerprint(scan)
    for instance in instances:
        try:
            rows.append(_row(instance, scan, classes) | {"scan_fingerprint": fingerprint})
        except masks.MaskError as error:
            reasons.append(str(error))
    return rows, reasons


def _row(instance: Instance, scan: Image, classes: tuple[str, ...]) -> Row:
    height, width = scan.shape[:2]
    if instance.size not in (None, (width, height)):
        raise masks.MaskError("image size disagrees with the file")
    mask = masks.rasterise(instance.segmentation, width, height)
    box = masks.tight_box(mask)
    assert box is not None  # rasterise refuses empty masks
    cut_off = is_cut_by_frame(box, width, height)
    red, green, blue = surroundings(scan, mask, box)
    return {
        "segment_id": instance.segment_id,
        "class_id": instance.class_id,
        "class_name": classes[instance.class_id],
        "image": utf8_text(instance.image),
        "annotation_id": instance.annotation_id,
        **dict(zip(("x0", "y0", "x1", "y1"), box, strict=True)),
        "area": int(mask.sum()),
        "scan_width": width,
        "scan_height": height,
        "background_r": red,
        "background_g": green,
        "background_b": blue,
        "cut_by_frame": cut_off,
        "whole": not cut_off and masks.is_connected(mask),
        "png": encode_rgba(crop(scan, mask, box)),
    }


def is_cut_by_frame(box: Box, width: int, height: int) -> bool:
    """Whether an item reaches the edge of its scan, up to `FRAME_MARGIN_PX`, and so may continue beyond it."""
    x0, y0, x1, y1 = box
    return min(x0, y0, width - x1, height - y1) <= FRAME_MARGIN_PX


def crop(scan: Image, mask: masks.Mask, box: Box) -> Image:
    """Cut `box` out of a scan [h, w, 3], with the mask [h, w] as alpha (0 or 255).

    Pixels with alpha 0 keep the donor's colours, so that interpolation at the mask's rim never mixes in black.
    """
    x0, y0, x1, y1 = box
    alpha = mask[y0:y1, x0:x1].astype(np.uint8) * 255
    return np.dstack([scan[y0:y1, x0:x1], alpha])


def surroundings(scan: Image, mask: masks.Mask, box: Box) -> np.ndarray:
    """Estimate the colour of the donor scan around an item: the colour of its pixels without the item.

    Args:
        scan: uint8 RGB [h, w, 3].
        mask: bool [h, w].
        box: tight box of the mask.

    Returns:
        float32 [3]: per channel the mean of the middle half of the pixels 3 to 12 px outside the mask, which is robust
        against a neighbouring item or the bag's rim. White if there is no such pixel.
    """
    inner, outer = RING_PX
    height, width = mask.shape
    x0, y0 = max(0, box[0] - outer), max(0, box[1] - outer)
    x1, y1 = min(width, box[2] + outer), min(height, box[3] + outer)
    distance = cv2.distanceTransform((~mask[y0:y1, x0:x1]).astype(np.uint8), cv2.DIST_L2, 5)
    ring = scan[y0:y1, x0:x1][(distance >= inner) & (distance <= outer)]
    if not len(ring):
        return _WHITE
    ordered = np.sort(ring, axis=0)
    quarter = len(ordered) // 4
    return ordered[quarter : len(ordered) - quarter].mean(axis=0).astype(np.float32)


def _tasks(instances: tuple[Instance, ...]) -> list[list[Instance]]:
    """Group by class and image, in the table's order, so that rows can be written as they arrive."""
    groups = itertools.groupby(instances, key=lambda instance: (instance.class_id, instance.image))
    return [list(group) for _, group in groups]


@dataclasses.dataclass(frozen=True)
class Made:
    """Counts of a new table of segments.

    Attributes:
        segments: number of segments by class name.
        skips: annotations without a segment, by reason.
        scans_of_bag: number of scans by bag.
    """

    segments: Counter[str]
    skips: Skips
    scans_of_bag: Counter[int]


def write_segments(
    annotations: Path,
    images: Path | None,
    out: Path,
    workers: int,
    executor: str,
    white: int | None = None,
    same_bag_bits: int = near_duplicates.THRESHOLD_BITS,
) -> Made:
    """Cut all items out of their scans and write their table.

    Args:
        annotations: a COCO instance file, or PIDray's root.
        images: folder of the scans; None uses the data set's own.
        out: output file.
        workers: see `pipeline.common.executors.run_tasks`.
        executor: see `pipeline.common.executors.run_tasks`.
        white: white level of the scans; None measures it.
        same_bag_bits: most bits in which the fingerprints of two scans of one bag differ.

    Raises:
        InputError: the data set cannot be used, or gives no segment.
    """
    check_output(out)
    source = datasets.training_source(annotations, images)
    found = datasets.read_split_instances(source)
    tasks = _tasks(found.instances)
    skips, counts = found.skips, Counter[str]()
    fingerprints: dict[str, bytes] = {}
    root = source.image_folder().absolute()
    names = white_level.sample({instance.image for instance in found.instances})
    level, text = white_level.choose((root / name for name in names), white)
    if text:
        print(text)
    task = functools.partial(cut_segment, images=root, classes=found.classes, white=level)
    results: Iterator[tuple[list[Row], list[str]]] = run_tasks(task, tasks, workers=workers, executor=executor, chunk=4)
    # Groups are known only after all scans. Until then the rows wait in a temporary file.
    with segment_table.writer(out) as table, tempfile.TemporaryFile(dir=out.parent) as waiting:
        bar = tqdm(results, total=len(tasks), unit="scan", desc="segments", disable=None)
        for instances, (rows, reasons) in zip(tasks, bar, strict=True):
            for reason in reasons:
                skips.add(reason, instances[0].image)
            for row in rows:
                counts[row["class_name"]] += 1
                fingerprints[row["image"]] = row["scan_fingerprint"]
                pickle.dump(row, waiting)
        if not counts:
            why = ", ".join(f"{reason} ({count})" for reason, count in skips.counts.most_common(3)) or "no annotations"
            raise InputError(f"{source.annotations}: no usable segment ({why}); check the annotations")
        groups = near_duplicates.group(fingerprints, same_bag_bits)
        waiting.seek(0)
        for _ in range(counts.total()):
            row = pickle.load(waiting)
            table.write(row | {"scan_group": groups[row["image"]]})
        table.parameters |= {
            "classes": list(found.classes),
            "counts": {name: counts[name] for name in found.classes},
            **skips.table_parameters(),
            **white_level.parameters(level),
            "ring_px": list(RING_PX),
            "scan_group_threshold_bits": same_bag_bits,
        }
    return Made(counts, skips, Counter(groups.values()))
