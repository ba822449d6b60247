"""Lists the raw folders and writes the manifests that DVC watches."""

from __future__ import annotations

from pathlib import Path

from pipeline.common import manifest
from segloc.common.errors import InputError
from segloc.common.files import make_folder


def roots(foregrounds: Path, images: Path | None, backgrounds: Path) -> dict[str, Path]:
    """Name the folders to list.

    Args:
        foregrounds: PIDray's root, or a COCO file.
        images: the scans of that COCO file; None if they are in its folder.
        backgrounds: SIXray's root, PIDray's, or any folder of scans.
    """
    if foregrounds.is_file():
        listed = {"annotations": foregrounds.parent, "foregrounds": images or foregrounds.parent}
    else:
        listed = {"foregrounds": foregrounds}
    return {**listed, "backgrounds": backgrounds}


def write_manifests(listed: dict[str, Path], out: Path, simulated: Path | None) -> tuple[dict[str, int], bool]:
    """Write a manifest for each folder, and remove the manifests of folders that are no longer listed.

    Args:
        listed: folders by name, from `roots`.
        out: folder of the manifests.
        simulated: folder of simulated scans. Their parameters identify them, so their manifests omit times.

    Returns:
        Number of files by name, and whether any manifest changed.

    Raises:
        InputError: a folder is missing.
    """
    make_folder(out)
    files, changed = {}, False
    for name, root in listed.items():
        if not root.is_dir():
            raise InputError(f"{root}: no such file or folder; correct {name} in params.yaml")
        files[name], different, _ = manifest.write_manifest(
            root, out / f"{name}.manifest", not is_inside(root, simulated)
        )
        changed |= different
    for stale in set(out.glob("*.manifest")) - {out / f"{name}.manifest" for name in listed}:
        stale.unlink()
        changed = True
    return files, changed


def is_inside(path: Path, folder: Path | None) -> bool:
    """Whether `path` lies in `folder`."""
    return folder is not None and path.absolute().is_relative_to(folder.absolute())
