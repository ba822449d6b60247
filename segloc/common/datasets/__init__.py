"""Readers of data sets: one file each, all giving the same two things.

*Backgrounds* are paths of benign scans relative to a root. *Annotations* are instances with masks, with class ids
from 0 in the order of the source's own category list. Another data set is one more file here and a line in
`backgrounds` or `training_source`.
"""

from __future__ import annotations

from pathlib import Path

from segloc.common.datasets import coco, folder, leakage, pidray, sixray
from segloc.common.datasets.records import Annotations, Instance, Source
from segloc.common.errors import InputError
from segloc.common.files import existing_file, existing_folder

__all__ = ["Annotations", "Instance", "Source", "backgrounds", "read", "training_source"]


def backgrounds(root: Path) -> list[str]:
    """List the benign scans under `root`.

    Of a SIXray copy these are the negatives, of PIDray's second release the training scans without annotations, of any
    other folder all scans.

    Returns:
        Paths relative to `root`, ``/`` separators, sorted.

    Raises:
        InputError: the folder is missing or holds no benign scan, as PIDray's first release and the folders of either.
    """
    if pidray.find(existing_folder(root, "backgrounds")):
        return pidray.unannotated(root)
    names = folder.scans(root)
    if pidray.recognise(names):
        raise InputError(f"{root}: scans of PIDray, which have prohibited items; give the root of its second release")
    return sixray.negatives(names, root) if sixray.recognise(names) else names


def training_source(path: Path, images: Path | None) -> Source:
    """Find what segments are cut from.

    Args:
        path: a COCO instance file, or the root of a PIDray copy, of which the training part is taken.
        images: the folder the file's image names refer to; None takes PIDray's own, or the folder of the file.

    Raises:
        InputError: something is missing, or the part is for testing: segments come from training data only.
    """
    if path.is_dir():
        source = pidray.training_part(path)
        source = Source(source.annotations, images or source.images)
    else:
        source = Source(existing_file(path, "annotations"), images or path.parent)
    existing_folder(source.images, "scans of the annotation file")
    leakage.refuse_test_parts(source)
    return source


def read(source: Source) -> Annotations:
    """Read the instances of `source`; see `coco.read`."""
    return coco.read(source.annotations)
