"""Any folder of scans."""

from __future__ import annotations

import os
from pathlib import Path

from segloc.common.errors import InputError

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff"})


def scans(root: Path) -> list[str]:
    """List the images under `root`, nested ones included, hidden files and folders not.

    Returns:
        Paths relative to `root`, ``/`` separators, sorted by code point.

    Raises:
        InputError: there is none.
    """
    found: list[str] = []
    waiting, seen = [""], {_identity(os.stat(root))}
    while waiting:
        prefix = waiting.pop()
        with os.scandir(root / prefix) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                if os.path.splitext(entry.name)[1].lower() in SUFFIXES and entry.is_file():
                    found.append(prefix + entry.name)
                elif entry.is_dir():
                    # Links to folders are followed, each folder once, so a link to a parent ends.
                    identity = _identity(entry.stat())
                    if identity not in seen:
                        seen.add(identity)
                        waiting.append(f"{prefix}{entry.name}/")
    if not found:
        raise InputError(f"{root}: no scan in this folder (looked for {', '.join(sorted(SUFFIXES))})")
    return sorted(found)


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino
