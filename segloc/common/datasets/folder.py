"""Any folder of scans."""

from __future__ import annotations

import contextlib
import os
import re
from pathlib import Path

from segloc.common.errors import InputError
from segloc.common.files import safe_relative

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


def most_match(pattern: re.Pattern[str], names: list[str]) -> bool:
    """Whether most of `names` match: a few stray files do not make another data set of a folder."""
    return 2 * sum(pattern.fullmatch(name) is not None for name in names) > len(names)


def locate(root: Path, name: str) -> Path | None:
    """Find the scan that an annotation file calls `name`.

    Its own path comes first; then its base name, as re-packed copies keep a folder in the name that the disk no longer
    has.

    Returns:
        The path of a file under `root`; None where there is none.
    """
    with contextlib.suppress(ValueError):
        if (path := root / safe_relative(name)).is_file():
            return path
    base = name.replace("\\", "/").rpartition("/")[2]
    return path if base and "\0" not in base and (path := root / base).is_file() else None


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino
