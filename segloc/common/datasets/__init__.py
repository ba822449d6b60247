"""Finders of data sets: one file each, all giving the same things.

*Backgrounds* are paths of benign scans relative to a root. *Splits* are parts of a data set: a COCO instance file and
its scans. To add a data set, write a finder here (`records.Backgrounds`, `records.Annotated` or both) and enter it
below, before any whose layout it resembles. It is then found wherever a folder is asked for: ``--annotations``,
``--backgrounds`` and ``--data``.
"""

from __future__ import annotations

import functools
from pathlib import Path

from segloc.common.datasets import coco, folder, leakage, pidray, sixray
from segloc.common.datasets.records import Annotated, Annotations, Backgrounds, Instance, Split
from segloc.common.errors import InputError
from segloc.common.files import existing_file, existing_folder

__all__ = ["TRAIN", "Annotations", "Instance", "Split", "backgrounds", "read", "splits", "training_source"]

TRAIN = "train"

# Asked in this order; each gives None for a folder that holds another data set.
_BACKGROUNDS: tuple[Backgrounds, ...] = (pidray, sixray)
_ANNOTATED: tuple[Annotated, ...] = (pidray,)


def backgrounds(root: Path) -> list[str]:
    """List the benign scans under `root`.

    Of a SIXray copy these are the negatives, of PIDray's second release the training scans without annotations, of any
    folder that is no data set all scans.

    Returns:
        Paths relative to `root`, ``/`` separators, sorted.

    Raises:
        InputError: the folder is missing or holds no benign scan, as PIDray's first release and the folders of either.
    """
    names = functools.cache(functools.partial(folder.scans, existing_folder(root, "backgrounds")))
    for data_set in _BACKGROUNDS:
        if (found := data_set.backgrounds(root, names)) is not None:
            return found
    if any(data_set.splits(root) for data_set in _ANNOTATED):
        raise InputError(
            f"{root}: an annotated data set, whose scans have prohibited items; give a folder of benign scans"
        )
    return names()


def splits(root: Path) -> dict[str, Split]:
    """Find the parts of an annotated data set, the training part under the name ``train``; no file is opened.

    Raises:
        InputError: no such folder, or it holds no annotated data set.
    """
    root = existing_folder(root, "data set")
    for data_set in _ANNOTATED:
        if (found := data_set.splits(root)) is not None:
            assert TRAIN in found
            return found
    raise InputError(f"{root}: {', '.join(data_set.NOT_FOUND for data_set in _ANNOTATED)}")


def training_source(path: Path, images: Path | None) -> Split:
    """Find what segments are cut from.

    Args:
        path: a COCO instance file, or the root of a data set (see `splits`), whose training part is taken.
        images: the folder the file's image names refer to; None takes the data set's own, or the folder of the file.

    Raises:
        InputError: something is missing, or the part is for testing: segments come from training data only.
    """
    if path.is_dir():
        source = splits(path)[TRAIN]
        source = Split(TRAIN, source.annotations, images or source.images)
    else:
        source = Split(TRAIN, path, images or path.parent)
    existing_file(source.annotations, "annotations to cut segments from")
    leakage.refuse_test_parts(source.annotations, source.image_folder())
    return source


def read(source: Split) -> Annotations:
    """Read the instances of `source`; see `coco.read`."""
    return coco.read(source.annotations)
