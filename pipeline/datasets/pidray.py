"""PIDray: finds the parts of both releases.

The first release has ``annotations/xray_train.json`` and ``xray_test_{easy,hard,hidden}.json`` with the folders
``train``, ``easy``, ``hard`` and ``hidden``; the second ``annotations/train.json`` and ``test*.json`` with ``train``
and one flat ``test``. Archives often unpack to ``pidray/pidray``.
"""

from __future__ import annotations

import re
from pathlib import Path

from pipeline.datasets.records import Source
from segloc.contract import InputError

_TRAINING_FILES = ("xray_train.json", "train.json")
_TEST_WORD = re.compile(r"(?:^|[^a-z])(?:test|easy|hard|hidden)(?:[^a-z]|$)", re.IGNORECASE)
_TEST_SCAN = re.compile(r"xray_(?:test|easy|hard|hidden)[_\d]", re.IGNORECASE)


def training_part(root: Path) -> Source:
    """Find the training annotations and scans of a PIDray copy of either release.

    Only the names above are looked for, so litter such as ``._xray_train.json`` is never read.

    Raises:
        InputError: no annotation file, or no folder of scans beside it.
    """
    for base in (root, root / "pidray", root / "pidray" / "pidray"):
        for name in _TRAINING_FILES:
            annotations = base / "annotations" / name
            if annotations.is_file():
                if not (base / "train").is_dir():
                    raise InputError(f"{base / 'train'}: no such folder; the scans of {name} belong there")
                return Source(annotations, base / "train")
    raise InputError(f"{root}: not a PIDray folder (no annotations/{' or annotations/'.join(_TRAINING_FILES)})")


def refuse_test_parts(source: Source) -> None:
    """Keep test scans out of pretraining (paper section 3.1: segments are PIDray's training items).

    Raises:
        InputError: the annotation file's or the image folder's name is that of a test part.
    """
    for name in (source.annotations.stem, source.images.resolve().name):
        if _TEST_WORD.search(name):
            raise InputError(f"{name!r} looks like a test part; segments are cut from training data only")


def is_test_scan(image: str) -> bool:
    """Whether an image has the name of a scan of PIDray's test parts, such as ``xray_hard00014.png``."""
    return _TEST_SCAN.search(image.rpartition("/")[2]) is not None
