"""What every reader of annotated scans returns."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any


@dataclasses.dataclass(frozen=True)
class Source:
    """An annotation file and the folder its image names refer to."""

    annotations: Path
    images: Path


@dataclasses.dataclass(frozen=True)
class Instance:
    """One annotated item.

    Attributes:
        segment_id: unique and stable: the image's path, ``#``, the annotation's id.
        annotation_id: as the source has it.
        class_id: from 0.
        image: path of the scan relative to the image folder, ``/`` separators.
        size: (width, height) the source claims for the scan, in pixels; None when it claims none.
        segmentation: COCO polygons or RLE, not yet checked (`segloc.common.masks.rasterise`).
    """

    segment_id: str
    annotation_id: str
    class_id: int
    image: str
    size: tuple[int, int] | None
    segmentation: Any


@dataclasses.dataclass(frozen=True)
class Annotations:
    """The usable instances of a source, and how many were left out for which reason.

    Attributes:
        classes: names; the position is the class id.
        instances: sorted by class, then segment id.
        skipped: count per reason.
    """

    classes: tuple[str, ...]
    instances: tuple[Instance, ...]
    skipped: dict[str, int]
