"""PIDray: finds the parts of both releases.

The first release has ``annotations/xray_train.json`` and ``xray_test_{easy,hard,hidden}.json`` with the folders
``train``, ``easy``, ``hard`` and ``hidden``. The second has ``annotations/train.json`` and ``test*.json`` with
``train`` and one flat ``test``. Archives often unpack to ``pidray/pidray``. The second release also lists scans without
annotations, which can serve as backgrounds. In the first release every scan has prohibited items.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path

from segloc.common.datasets import coco, folder
from segloc.common.datasets.records import Split
from segloc.common.errors import InputError

SUBSETS = ("easy", "hard", "hidden")
NOT_FOUND = "not a PIDray folder (no annotations/xray_train.json and no annotations/train.json)"

_SCAN = re.compile(r"(?:.*/)?xray_(?:easy|hard|hidden)?\d{5}\.png", re.IGNORECASE)


def splits(root: Path) -> dict[str, Split] | None:
    """Find the training part and the three test parts of a PIDray copy of either release.

    Only the names above are searched, so stray files such as ``._xray_train.json`` are never read.

    Returns:
        ``train``, ``easy``, ``hard`` and ``hidden``, at least one of them with an annotation file; None if `root` holds
        neither release.
    """
    found = [layout for layout in _layouts(root) if any(map(_exists, layout.values()))]
    return next((layout for layout in found if _exists(layout["train"])), found[0] if found else None)


def backgrounds(root: Path, names: Callable[[], list[str]]) -> list[str] | None:
    """List the training scans that the annotation file lists without an annotation, which PIDray implies are benign.

    Scans that the file does not list are left out, because they may contain prohibited items.

    Args:
        root: a folder.
        names: lists its scans.

    Returns:
        Paths relative to `root`, sorted; None if `root` is not PIDray.

    Raises:
        InputError: there are no such scans, as in the first release and in a bare folder of PIDray scans; or the
            annotation file does not identify them (`coco.unannotated`).
    """
    parts = splits(root)
    if parts is None or not _exists(parts["train"]):
        if folder.most_match(_SCAN, names()):
            raise InputError(f"{root}: scans of PIDray, which have prohibited items; give its second release's root")
        return None
    train = parts["train"]
    images = train.image_folder()
    prefix = images.relative_to(root).as_posix() + "/"
    found = [prefix + name for name in coco.unannotated(train.annotations, images)]
    if not found:
        raise InputError(
            f"{root}: PIDray, but {train.annotations.name} lists no scan without annotations (in the first release "
            "every scan has prohibited items); give the second release, SIXray or another folder"
        )
    return found


def _layouts(root: Path) -> Iterator[dict[str, Split]]:
    """Possible locations of the parts in each release, nested or not."""
    for base in (root, root / "pidray", root / "pidray" / "pidray"):
        for prefix, test in (("xray_", None), ("", "test")):
            files = {"train": "train"} | {subset: f"test_{subset}" for subset in SUBSETS}
            yield {
                name: Split(
                    name,
                    base / "annotations" / f"{prefix}{file}.json",
                    base / (name if name == "train" else test or name),
                )
                for name, file in files.items()
            }


def _exists(split: Split) -> bool:
    return split.annotations.is_file()
