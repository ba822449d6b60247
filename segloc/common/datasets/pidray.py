"""PIDray: finds the parts of both releases.

The first release has ``annotations/xray_train.json`` and ``xray_test_{easy,hard,hidden}.json`` with the folders
``train``, ``easy``, ``hard`` and ``hidden``; the second ``annotations/train.json`` and ``test*.json`` with ``train``
and one flat ``test``. Archives often unpack to ``pidray/pidray``. The second release also lists scans without a single
annotation, which can serve as backgrounds; in the first every scan has prohibited items.
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

    Only the names above are looked for, so litter such as ``._xray_train.json`` is never read.

    Returns:
        ``train``, ``easy``, ``hard`` and ``hidden``, of which at least one has its annotation file; None where `root`
        holds neither release.
    """
    found = [layout for layout in _layouts(root) if any(map(_is_there, layout.values()))]
    return next((layout for layout in found if _is_there(layout["train"])), found[0] if found else None)


def backgrounds(root: Path, names: Callable[[], list[str]]) -> list[str] | None:
    """List the training scans that the annotation file has without an annotation: benign as far as PIDray tells.

    A scan that the file does not list is left out, as nothing says that it is benign.

    Args:
        root: a folder.
        names: lists its scans.

    Returns:
        Paths relative to `root`, sorted; None where `root` is not PIDray's.

    Raises:
        InputError: there is none, as in the first release and in a bare folder of PIDray's scans; or it cannot be told
            which they are (`coco.unannotated`).
    """
    parts = splits(root)
    if parts is None or not _is_there(parts["train"]):
        if folder.most_match(_SCAN, names()):
            raise InputError(f"{root}: scans of PIDray, which have prohibited items; give its second release's root")
        return None
    train = parts["train"]
    images, benign = train.image_folder(), coco.unannotated(train.annotations)
    prefix = images.relative_to(root).as_posix() + "/"
    found = [prefix + name for name in folder.scans(images) if {name, name.rpartition("/")[2]} & benign]
    if not found:
        raise InputError(
            f"{root}: PIDray without a scan that {train.annotations.name} lists as free of annotations; its second "
            "release has them, in its first every scan has prohibited items: give SIXray or another folder"
        )
    return found


def _layouts(root: Path) -> Iterator[dict[str, Split]]:
    """Where the parts would lie in each release, nested or not."""
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


def _is_there(split: Split) -> bool:
    return split.annotations.is_file()
