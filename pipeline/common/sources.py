"""Names the folders whose manifests DVC watches."""

from __future__ import annotations

from pathlib import Path


def roots(foregrounds: Path, images: Path | None, backgrounds: Path) -> dict[str, Path]:
    """Name the folders to list.

    Args:
        foregrounds: PIDray's root, or a COCO file.
        images: the scans of that COCO file, None if they lie beside it.
        backgrounds: SIXray's root, PIDray's, or any folder of scans.
    """
    if foregrounds.is_file():
        listed = {"annotations": foregrounds.parent, "foregrounds": images or foregrounds.parent}
    else:
        listed = {"foregrounds": foregrounds}
    return {**listed, "backgrounds": backgrounds}


def _inside(path: Path, folder: Path | None) -> bool:
    return folder is not None and path.absolute().is_relative_to(folder.absolute())
