"""Folders of scans without a known layout."""

from __future__ import annotations

import contextlib
import os
import re
from pathlib import Path

from segloc.common.errors import InputError
from segloc.common.files import safe_relative

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff"})


def scans(root: Path) -> list[str]:
    """List the images under `root`, including subfolders, without hidden files and folders.

    Returns:
        Paths relative to `root`, ``/`` separators, sorted by code point.

    Raises:
        InputError: there are no images.
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
                    # Follow links to folders, but visit each folder once, so that a link to a parent ends.
                    identity = _identity(entry.stat())
                    if identity not in seen:
                        seen.add(identity)
                        waiting.append(f"{prefix}{entry.name}/")
    if not found:
        raise InputError(f"{root}: no scan in this folder (looked for {', '.join(sorted(SUFFIXES))})")
    return sorted(found)


def most_match(pattern: re.Pattern[str], names: list[str]) -> bool:
    """Whether most of `names` match. A few stray files do not turn a folder into another data set."""
    return 2 * sum(pattern.fullmatch(name) is not None for name in names) > len(names)


def locate(root: Path, name: str) -> Path | None:
    """Find the scan with the name `name` in an annotation file.

    The full path is tried first, then the base name: names in repacked copies may include a folder that no longer
    exists on disk.

    Returns:
        The path of a file under `root`; None if there is none.
    """
    with contextlib.suppress(ValueError):
        if (path := root / safe_relative(name)).is_file():
            return path
    base = name.replace("\\", "/").rpartition("/")[2]
    return path if base and "\0" not in base and (path := root / base).is_file() else None


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino
