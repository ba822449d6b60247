"""Checking files and the paths that data files name."""

from __future__ import annotations

import errno
import hashlib
import os
from pathlib import Path

from segloc.contract import InputError

READ_BYTES = 1 << 20


def sha256_of(path: str | os.PathLike[str]) -> str:
    """Hexadecimal SHA-256 of a file, read in pieces."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while piece := file.read(READ_BYTES):
            digest.update(piece)
    return digest.hexdigest()


def existing_folder(path: str | os.PathLike[str], what: str) -> Path:
    """Return `path`, checked.

    Raises:
        InputError: it is missing or not a folder; `what` says what it should have been.
    """
    path = Path(path)
    if not path.is_dir():
        raise InputError(f"{path}: {'not a folder' if path.exists() else 'no such folder'} ({what})")
    return path


def existing_file(path: str | os.PathLike[str], what: str) -> Path:
    """Return `path`, checked; see `existing_folder`."""
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: {'not a file' if path.exists() else 'no such file'} ({what})")
    return path


def safe_relative(name: str) -> str:
    """Check a path that came from a data file and must stay under its root.

    Returns:
        The path with ``/`` separators and without ``.`` parts.

    Raises:
        ValueError: it is empty, absolute, or climbs out with ``..``.
    """
    parts = [part for part in name.replace("\\", "/").split("/") if part not in ("", ".")]
    if not parts or ".." in parts or name.startswith(("/", "\\")) or "\0" in name or parts[0].endswith(":"):
        raise ValueError(f"path {name!r} leaves its folder")
    return "/".join(parts)


def describe(error: OSError) -> str:
    """One sentence for an `OSError`, without its number."""
    reason = "the disk is full; free some space and run the same command again"
    if error.errno not in (errno.ENOSPC, errno.EDQUOT):
        reason = error.strerror or str(error)
    return f"{error.filename}: {reason}" if error.filename else reason
