"""What the readers of data sets return."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from segloc.common.errors import InputError
from segloc.common.files import existing_folder


class Backgrounds(Protocol):
    """Finder of a data set that has benign scans."""

    def backgrounds(self, root: Path, names: Callable[[], list[str]]) -> list[str] | None:
        """List the benign scans below `root`; None where that is another data set.

        Args:
            root: a folder.
            names: lists all its scans, relative to `root`.

        Raises:
            InputError: it is this data set, but holds no benign scan.
        """


class Annotated(Protocol):
    """Finder of a data set with COCO files. What its test parts are called goes to `leakage.TEST_WORDS`.

    Attributes:
        NOT_FOUND: says, of a folder, that it is not this data set and what was looked for.
    """

    NOT_FOUND: str

    def splits(self, root: Path) -> dict[str, Split] | None:
        """Find the parts, ``train`` and any test parts; None where `root` is another data set. No file is opened."""


@dataclasses.dataclass(frozen=True)
class Split:
    """A part of a data set.

    Attributes:
        name: of the part.
        annotations: a COCO instance file.
        images: the folder its file names are relative to; None where no scan is read.
    """

    name: str
    annotations: Path
    images: Path | None

    def image_folder(self) -> Path:
        """Return `images`, checked.

        Raises:
            InputError: there is no such folder, or the split has none.
        """
        if self.images is None:
            raise InputError(f"{self.annotations}: no folder of images is given")
        return existing_folder(self.images, f"the scans of {self.annotations.name}")


@dataclasses.dataclass(frozen=True)
class Instance:
    """One annotated item to cut out.

    Attributes:
        segment_id: unique and stable: the image's path, ``#``, the annotation's id.
        annotation_id: of the file; the position in the file where it has none.
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
