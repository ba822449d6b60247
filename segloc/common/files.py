"""Files: atomic writes, and checks before work starts."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from segloc.common.errors import InputError

READ_BYTES = 1 << 20


def sha256_of(path: str | os.PathLike[str]) -> str:
    """Hexadecimal SHA-256 of a file, read in blocks."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(READ_BYTES):
            digest.update(block)
    return digest.hexdigest()


def existing_folder(path: str | os.PathLike[str], what: str) -> Path:
    """Return `path` if it is a folder.

    Raises:
        InputError: it is missing or not a folder; `what` describes the expected folder.
    """
    path = Path(path)
    if not path.is_dir():
        raise InputError(f"{path}: {'not a folder' if path.exists() else 'no such folder'} ({what})")
    return path


def existing_file(path: str | os.PathLike[str], what: str) -> Path:
    """Return `path` if it is a file; see `existing_folder`."""
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: {'not a file' if path.exists() else 'no such file'} ({what})")
    return path


@contextlib.contextmanager
def atomic_file(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """Open a temporary file beside `path`. It replaces `path`, synced to disk, if the block ends without error.

    The temporary file is ``.NAME.*.tmp``. It is removed if the block raises; only a killed process leaves it.

    Raises:
        InputError: `path` is a folder, or lies in a file.
    """
    path = Path(path)
    check_output(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
        _sync_folder(path.parent)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def check_output(path: str | os.PathLike[str] | None) -> None:
    """Check, before work starts, that a file can be written at `path`. None is accepted.

    Raises:
        InputError: it is a folder, or lies in a file.
    """
    if path is None:
        return
    if Path(path).is_dir():
        raise InputError(f"{path}: is a folder, not a file to write")
    for parent in Path(path).absolute().parents:
        if parent.exists():
            if not parent.is_dir():
                raise InputError(f"{path}: {parent} is a file, not a folder")
            return


def write_atomic(path: str | os.PathLike[str], data: bytes) -> None:
    """Write `data` so that `path` always has either its old or its new content; see `atomic_file`.

    Raises:
        InputError: `path` is a folder, or lies in a file.
    """
    with atomic_file(path) as file:
        file.write(data)


def write_json(path: str | os.PathLike[str], content: Any) -> None:
    """Write `content` as indented JSON; see `write_atomic`."""
    write_atomic(path, (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode())


def _sync_folder(folder: Path) -> None:
    """Make renames in `folder` survive a power failure, if the file system can."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
