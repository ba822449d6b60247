"""SIXray: the benign scans of its several packagings.

Flat archives unpack to ``JPEGImage``, ``JPEGImages`` or ``Image``; another copy has numbered folders ``0`` to ``20``.
What they share are the names: ``N`` and seven digits is benign, ``P`` and five digits has prohibited items.
The names alone decide, so a positive in a folder of negatives is never taken for a background.
"""

from __future__ import annotations

import re
from pathlib import Path

from segloc.contract import InputError

_SCAN = re.compile(r"(?:.*/)?([NP])\d{5,7}\.jpe?g", re.IGNORECASE)


def recognise(names: list[str]) -> bool:
    """Whether most of `names` are SIXray's: a few stray files must not open the door to the positives."""
    return 2 * sum(_SCAN.fullmatch(name) is not None for name in names) > len(names)


def negatives(names: list[str], root: Path) -> list[str]:
    """Keep the scans without prohibited items.

    Args:
        names: paths of a SIXray copy, relative to its root.
        root: the root, for the error message.

    Raises:
        InputError: there is none.
    """
    benign = [name for name in names if (match := _SCAN.fullmatch(name)) and match[1] in "Nn"]
    if not benign:
        raise InputError(f"{root}: SIXray positives only (P*.jpg); backgrounds are its negatives (N*.jpg)")
    return benign
