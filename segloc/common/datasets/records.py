"""Interfaces and return types of the data set readers."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from segloc.common.errors import InputError
from segloc.common.files import existing_folder
from segloc.common.skips import Skips


class Backgrounds(Protocol):
    """Finder of a data set that has benign scans."""

    def backgrounds(self, root: Path, names: Callable[[], list[str]]) -> list[str] | None:
        """List the benign scans below `root`; None if that is another data set.

        Args:
            root: a folder.
            names: lists all its scans, relative to `root`.

        Raises:
            InputError: it is this data set, but has no benign scans.
        """


class Annotated(Protocol):
    """Finder of a data set with COCO files. Add the names of its test parts to `leakage.TEST_WORDS`.

    Attributes:
        NOT_FOUND: message that a folder is not this data set, with the files that were searched.
    """

    NOT_FOUND: str

    def splits(self, root: Path) -> dict[str, Split] | None:
        """Find the parts, ``train`` and any test parts; None if `root` is another data set. No file is opened."""


@dataclasses.dataclass(frozen=True)
class Split:
    """A part of a data set.

    Attributes:
        name: name of the part.
        annotations: a COCO instance file.
        images: folder of its file names; None if no scan is read.
    """

    name: str
    annotations: Path
    images: Path | None

    def image_folder(self) -> Path:
        """Return `images` after checking it.

        Raises:
            InputError: the folder is missing, or the split has none.
        """
        if self.images is None:
            raise InputError(f"{self.annotations}: its folder of images is unknown; give one")
        return existing_folder(self.images, f"the scans of {self.annotations.name}")


@dataclasses.dataclass(frozen=True)
class Instance:
    """One annotated item to cut out.

    Attributes:
        segment_id: unique and stable: the image's path, ``#``, the annotation's id. Valid UTF-8.
        annotation_id: id in the file, or the position in the file if there is none; ``#`` and ``%`` are escaped.
        class_id: from 0.
        image: path of the scan's file relative to the image folder, ``/`` separators; possibly not UTF-8.
        size: (width, height) in pixels according to the file; None if absent.
        segmentation: COCO polygons or RLE, unchecked (`segloc.common.masks.rasterise`).
    """

    segment_id: str
    annotation_id: str
    class_id: int
    image: str
    size: tuple[int, int] | None
    segmentation: Any


@dataclasses.dataclass(frozen=True)
class Annotations:
    """The usable instances of a file, and counts of the others by reason.

    Attributes:
        classes: names; the position is the class id.
        instances: sorted by class, then segment id.
        skips: the other annotations by reason; the total is that of the file.
    """

    classes: tuple[str, ...]
    instances: tuple[Instance, ...]
    skips: Skips

    @property
    def skipped(self) -> dict[str, int]:
        """Number of annotations that are no instance, by reason."""
        return dict(sorted(self.skips.counts.items()))
