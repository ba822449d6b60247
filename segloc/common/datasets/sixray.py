"""SIXray: finds the benign scans in its different packagings.

Flat archives unpack to ``JPEGImage``, ``JPEGImages`` or ``Image``. Another copy has numbered folders ``0`` to ``20``.
All use the same names: ``N`` and seven digits is benign, ``P`` and five digits has prohibited items. Only the names
decide, so a positive in a folder of negatives is never used as a background. The lists in ``ImageSet`` are not read:
they are subsets, have no column for hammers, and are missing in some copies.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from segloc.common.datasets import folder
from segloc.common.errors import InputError

# The originals are .jpg; converted copies keep the names.
_SCAN = re.compile(r"(?:.*/)?([NP])(\d{5,7})\.\w+", re.IGNORECASE)


def backgrounds(root: Path, names: Callable[[], list[str]]) -> list[str] | None:
    """List the scans without prohibited items. A scan unpacked twice is listed once, so no pair repeats a bag.

    Args:
        root: a folder.
        names: lists its scans.

    Returns:
        Paths relative to `root`, sorted; None if `root` is not SIXray.

    Raises:
        InputError: there are only positives.
    """
    if not folder.most_match(_SCAN, names()):
        return None
    benign: dict[str, str] = {}
    for name in names():
        if (match := _SCAN.fullmatch(name)) and match[1] in "Nn":
            benign.setdefault(match[2], name)
        elif not folder.has_suffix(name):  # a link that may have been a folder of negatives
            benign[name] = name
    if not benign:
        raise InputError(f"{root}: SIXray positives only (P*.jpg); give a folder with its negatives (N*.jpg)")
    return sorted(benign.values())
