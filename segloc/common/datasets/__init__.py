"""Finders of data sets, one per file, with a common interface.

*Backgrounds* are paths of benign scans relative to a root. *Splits* are parts of a data set: a COCO instance file and
its scans. To add a data set, write a finder here (`records.Backgrounds`, `records.Annotated` or both) and add it to the
tuples below, before finders of similar layouts; add the names of its test parts to `leakage.TEST_WORDS`. Every option
that takes a data set then accepts it: ``--annotations``, ``--backgrounds`` and ``--data``.
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

# Tried in this order. Each returns None for a folder that holds another data set.
_BACKGROUNDS: tuple[Backgrounds, ...] = (pidray, sixray)
_ANNOTATED: tuple[Annotated, ...] = (pidray,)


def backgrounds(root: Path) -> list[str]:
    """List the benign scans under `root`.

    For SIXray these are the negatives, for PIDray's second release the training scans without annotations, and for a
    folder that is not a known data set all scans.

    Returns:
        Paths relative to `root`, ``/`` separators, sorted.

    Raises:
        InputError: the folder is missing or has no benign scans, like PIDray's first release and all its folders.
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
    """Find the parts of an annotated data set, including the training part ``train``. No file is opened.

    Raises:
        InputError: there is no such folder, or it is not an annotated data set.
    """
    root = existing_folder(root, "data set")
    for data_set in _ANNOTATED:
        if (found := data_set.splits(root)) is not None:
            assert TRAIN in found
            return found
    raise InputError(f"{root}: {', '.join(data_set.NOT_FOUND for data_set in _ANNOTATED)}")


def training_source(path: Path, images: Path | None) -> Split:
    """Find the scans and annotations from which segments are cut.

    Args:
        path: a COCO instance file, or the root of a data set (see `splits`), whose training part is used.
        images: folder of the image names in the file; None uses the data set's own, or the folder of the file.

    Raises:
        InputError: a file or folder is missing, or belongs to a test part: segments come from training data only.
    """
    if path.is_dir():
        source = splits(path)[TRAIN]
        source = Split(TRAIN, source.annotations, images or source.images)
    else:
        source = Split(TRAIN, path, images or path.parent)
    existing_file(source.annotations, "annotations to cut segments from")
    leakage.refuse_test_parts(source.annotations, source.image_folder())
    return source


def read_split_instances(source: Split) -> Annotations:
    """Read the instances of `source`; see `coco.read_instances`."""
    return coco.read_instances(source.annotations, source.image_folder())
