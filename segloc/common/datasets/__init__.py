"""Readers of data sets: one file each, all giving the same things.

*Backgrounds* are paths of benign scans relative to a root. *Splits* are parts of a data set: a COCO instance file and
its scans. Another data set is one more file here, and a line in `_BACKGROUNDS` if it has benign scans.
"""

from __future__ import annotations

import functools
from pathlib import Path

from segloc.common.datasets import coco, folder, leakage, pidray, sixray
from segloc.common.datasets.records import Annotations, Instance, Split
from segloc.common.files import existing_file, existing_folder

__all__ = ["Annotations", "Instance", "Split", "backgrounds", "read", "training_source"]

_BACKGROUNDS = (pidray.backgrounds, sixray.backgrounds)  # asked in this order; of any other folder all scans count


def backgrounds(root: Path) -> list[str]:
    """List the benign scans under `root`.

    Of a SIXray copy these are the negatives, of PIDray's second release the training scans without annotations, of any
    other folder all scans.

    Returns:
        Paths relative to `root`, ``/`` separators, sorted.

    Raises:
        InputError: the folder is missing or holds no benign scan, as PIDray's first release and the folders of either.
    """
    names = functools.cache(functools.partial(folder.scans, existing_folder(root, "backgrounds")))
    for of_data_set in _BACKGROUNDS:
        if (found := of_data_set(root, names)) is not None:
            return found
    return names()


def training_source(path: Path, images: Path | None) -> Split:
    """Find what segments are cut from.

    Args:
        path: a COCO instance file, or the root of a PIDray copy, of which the training part is taken.
        images: the folder the file's image names refer to; None takes PIDray's own, or the folder of the file.

    Raises:
        InputError: something is missing, or the part is for testing: segments come from training data only.
    """
    if path.is_dir():
        source = pidray.training_part(path)
        source = Split(source.name, source.annotations, images or source.images)
    else:
        source = Split("train", existing_file(path, "annotations"), images or path.parent)
    leakage.refuse_test_parts(source.annotations, source.image_folder())
    return source


def read(source: Split) -> Annotations:
    """Read the instances of `source`; see `coco.read`."""
    return coco.read(source.annotations)
