"""PIDray: finds the parts of both releases.

The first release has ``annotations/xray_train.json`` and ``xray_test_{easy,hard,hidden}.json`` with the folders
``train``, ``easy``, ``hard`` and ``hidden``; the second ``annotations/train.json`` and ``test*.json`` with ``train``
and one flat ``test``. Archives often unpack to ``pidray/pidray``. The second release also lists scans without a single
annotation, which can serve as backgrounds; in the first every scan has prohibited items.
"""

from __future__ import annotations

import re
from pathlib import Path

from segloc.common.datasets import coco, folder
from segloc.common.datasets.records import Source
from segloc.common.errors import InputError

_TRAINING_FILES = ("xray_train.json", "train.json")
_SCAN = re.compile(r"(?:.*/)?xray_(?:easy|hard|hidden)?\d{5}\.png", re.IGNORECASE)


def find(root: Path) -> Path | None:
    """The training annotations of a PIDray copy of either release, None if `root` holds none.

    Only the names above are looked for, so litter such as ``._xray_train.json`` is never read.
    """
    bases = (root, root / "pidray", root / "pidray" / "pidray")
    files = (base / "annotations" / name for base in bases for name in _TRAINING_FILES)
    return next((file for file in files if file.is_file()), None)


def training_part(root: Path) -> Source:
    """Find the training annotations and scans of a PIDray copy of either release.

    Raises:
        InputError: no annotation file, or no folder of scans beside it.
    """
    annotations = find(root)
    if annotations is None:
        raise InputError(f"{root}: not a PIDray folder (no annotations/{' or annotations/'.join(_TRAINING_FILES)})")
    images = annotations.parent.parent / "train"
    if not images.is_dir():
        raise InputError(f"{images}: no such folder; the scans of {annotations.name} belong there")
    return Source(annotations, images)


def recognise(names: list[str]) -> bool:
    """Whether most of `names` are PIDray's: such a folder holds prohibited items and is no background pool."""
    return 2 * sum(_SCAN.fullmatch(name) is not None for name in names) > len(names)


def unannotated(root: Path) -> list[str]:
    """List the training scans that the annotation file has without an annotation: benign as far as PIDray tells.

    A scan that the file does not list is left out, as nothing says that it is benign.

    Returns:
        Paths relative to `root`, sorted.

    Raises:
        InputError: there is none, as in the first release; or it cannot be told which they are (`coco.unannotated`).
    """
    source = training_part(root)
    benign = coco.unannotated(source.annotations)
    prefix = source.images.relative_to(root).as_posix() + "/"
    names = [prefix + name for name in folder.scans(source.images) if {name, name.rpartition("/")[2]} & benign]
    if not names:
        raise InputError(
            f"{root}: PIDray without a scan that {source.annotations.name} lists as free of annotations; its second "
            "release has them, in its first every scan has prohibited items: give SIXray or another folder"
        )
    return names
