"""Folders of scans without a known layout."""

from __future__ import annotations

import os
import re
from pathlib import Path

from segloc.common.datasets.scan_paths import Entry, walk
from segloc.common.errors import InputError
from segloc.common.text import shortened

_NAMED = 3
SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff"})


def scans(root: Path) -> list[str]:
    """List the images under `root`, including subfolders and links, without hidden files and `is_litter` folders.

    Links without a target are listed like scans, so that their rows tell of them. Their names may lack a suffix,
    because they may have been folders of scans.

    Returns:
        Paths relative to `root`, ``/`` separators, sorted by code point.

    Raises:
        InputError: there are no images.
    """
    litter: list[str] = []
    found = sorted(entry.path for entry in walk(root, litter=litter) if _is_scan(entry))
    if litter:
        more = ", ..." if len(litter) > _NAMED else ""
        print(
            f"{root}: {len(litter)} folders not searched (hidden, of a system, or links to a folder above): "
            f"{', '.join(map(shortened, litter[:_NAMED]))}{more}"
        )
    if not found:
        raise InputError(f"{root}: no scan in this folder (looked for {', '.join(sorted(SUFFIXES))})")
    return found


def has_suffix(name: str) -> bool:
    """Whether a name ends like a file. Names of `scans` without are links that may have been folders."""
    return re.search(r"[A-Za-z]", os.path.splitext(name)[1]) is not None


def most_match(pattern: re.Pattern[str], names: list[str]) -> bool:
    """Whether most of `names` match. A few stray files do not turn a folder into another data set."""
    return 2 * sum(pattern.fullmatch(name) is not None for name in names) > len(names)


def _is_scan(entry: Entry) -> bool:
    suffix = os.path.splitext(entry.path)[1].lower()
    return suffix in SUFFIXES or (entry.is_broken and not has_suffix(entry.path))
