"""Files: atomic writes, and checks before work starts."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import re
import secrets
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from segloc.common.errors import InputError

READ_BYTES = 1 << 20
_LONGEST_NAME_BYTES = 255  # of Linux and macOS
_CHECK = "check"  # name in the temporary file that tries whether a folder can be written
# Errors of the system that only a write can have.
_WRITE_ERRORS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS})
_written: set[Path] = set()


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


def expanded(path: str) -> str:
    """Expand ``~`` and ``~/...`` as a shell does; take every other path literally.

    ``~name`` is the home of that user, unless the working directory has a file or folder of that name.
    """
    literal = path.startswith("~") and path.partition("/")[0] != "~" and os.path.lexists(path)
    return path if literal else os.path.expanduser(path)


def output_target(path: str | os.PathLike[str]) -> Path:
    """Return the file that a write to `path` changes: `path` itself, or the end of its chain of links.

    Raises:
        InputError: it is a folder, a device, a pipe or a socket, a link to itself, a read-only file, or no valid path.
    """
    target = _end_of_links(path)
    try:
        status = os.stat(target)
    except (FileNotFoundError, NotADirectoryError):
        return target
    except OSError as error:
        raise InputError(_cannot_write(path, error)) from error
    if stat.S_ISDIR(status.st_mode):
        raise InputError(f"{path}: is a folder, not a file to write")
    if not stat.S_ISREG(status.st_mode):
        raise InputError(f"{path}: is a device, pipe or socket, not a file to write; choose another file")
    if not status.st_mode & 0o222:
        raise InputError(f"{path}: is read-only; choose another file, or make it writable")
    return target


def check_output(path: str | os.PathLike[str] | None) -> None:
    """Check, before work starts, that a file can be written at `path`. None is accepted.

    A temporary file is created and removed in the nearest folder that exists.

    Raises:
        InputError: see `output_target`; or nothing can be written there.
    """
    if path is not None:
        _try_to_write(path, output_target(path).parent, len(os.fsencode(output_target(path).name)))


def check_output_folder(path: str | os.PathLike[str] | None) -> None:
    """Check, before work starts, that files can be written in the folder `path`, which may not exist yet.

    Raises:
        InputError: it is not a folder, or nothing can be written there.
    """
    if path is None:
        return
    target = _end_of_links(path)
    try:
        if not stat.S_ISDIR(os.stat(target).st_mode):
            raise InputError(f"{path}: is a file, not a folder to write to; choose another folder")
    except (FileNotFoundError, NotADirectoryError):
        pass
    except OSError as error:
        raise InputError(_cannot_write(path, error)) from error
    _try_to_write(path, target)


def make_folder(path: str | os.PathLike[str]) -> Path:
    """Make a folder and its parents, unless they exist; a dangling link gets its target. Returns `path`."""
    _end_of_links(path).mkdir(parents=True, exist_ok=True)
    return Path(path)


@contextlib.contextmanager
def atomic_file(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """Open a temporary file beside `path`. It replaces `path`, synced to disk, if the block ends without error.

    A link is written through: it stays, and the file it leads to is replaced. A new file gets the permissions that the
    umask leaves; a replaced one keeps its own.

    The temporary file is ``.NAME.XXXXXXXX.tmp``. It is removed if the block raises. Only a killed process leaves it;
    the next write to `path` removes it. A process locks its temporary file, so that no other removes it.

    Raises:
        InputError: see `output_target`; or a parent of `path` is a file.
        OSError: it cannot be written; names `path`.
    """
    target = output_target(path)
    for parent in target.parents:
        if parent.exists():
            if not parent.is_dir():
                raise InputError(f"{path}: {parent} is a file, not a folder")
            break
    target.parent.mkdir(parents=True, exist_ok=True)
    remove_stale(target)
    # Outermost, because closing a file on a full disk fails again.
    with naming(path, str(target.parent / _temporary_prefix(target.name))), _temporary(target) as (file, name):
        yield file
        file.flush()
        if target.exists():
            os.fchmod(file.fileno(), stat.S_IMODE(target.stat().st_mode))
        os.fsync(file.fileno())
        os.replace(name, target)
        _sync_folder(target.parent)
    _written.add(target)


@contextlib.contextmanager
def naming(path: str | os.PathLike[str], temporary: str = "") -> Iterator[None]:
    """Name `path` in errors of writing in the block that name no file, or a file that begins with `temporary`."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            is_ours = error.errno in _WRITE_ERRORS
        else:
            is_ours = bool(temporary) and os.fsdecode(error.filename).startswith(temporary)
        if is_ours:
            error.filename, error.filename2 = os.fspath(path), None
        raise


def was_removed(path: str | os.PathLike[str]) -> bool:
    """Whether this process wrote `path` by `atomic_file`, and it is gone."""
    target = _end_of_links(path)
    return target in _written and not target.exists()


def remove_stale(path: str | os.PathLike[str]) -> None:
    """Remove the temporary files that killed processes left when they wrote `path`; see `atomic_file`."""
    target = _end_of_links(path)
    pattern = re.compile(rf"{re.escape(_temporary_prefix(target.name))}[0-9a-z_]{{8}}\.tmp")
    try:
        left = [entry.path for entry in os.scandir(target.parent) if pattern.fullmatch(entry.name)]
    except (FileNotFoundError, NotADirectoryError):
        return
    for name in left:
        remove_temporary(name)


def remove_temporary(name: str | os.PathLike[str]) -> None:
    """Remove a temporary file of `atomic_file`, unless another process is still writing it."""
    # Another process may remove it first. Without locks on this file system nobody can tell: it stays.
    with contextlib.suppress(OSError):
        descriptor = os.open(name, os.O_RDWR | os.O_NOFOLLOW)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.unlink(name)
        finally:
            os.close(descriptor)


def write_atomic(path: str | os.PathLike[str], data: bytes) -> None:
    """Write `data` so that `path` always has either its old or its new content; see `atomic_file`.

    Raises:
        InputError: see `atomic_file`.
    """
    with atomic_file(path) as file:
        file.write(data)


def write_json(path: str | os.PathLike[str], content: Any) -> None:
    """Write `content` as indented JSON; see `write_atomic`. Names that are not UTF-8 become escapes of JSON."""
    text = json.dumps(content, indent=1, ensure_ascii=False) + "\n"
    write_atomic(path, text.encode("utf-8", "backslashreplace"))


@contextlib.contextmanager
def _temporary(target: Path) -> Iterator[tuple[BinaryIO, str]]:
    """Open a locked temporary file beside `target`; yields it and its path. It is removed if it is still there."""
    while True:
        name = str(target.parent / f"{_temporary_prefix(target.name)}{secrets.token_hex(4)}.tmp")
        # Not `tempfile`, whose files ignore the umask.
        descriptor = os.open(name, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o666)
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        if os.path.exists(name):
            break
        os.close(descriptor)  # another process took it for a stale one before it was locked
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield file, name
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name)


def _temporary_prefix(name: str) -> str:
    """Start of the names of temporary files for `name`, cut so that they are not longer than names may be."""
    return os.fsdecode(b"." + os.fsencode(name)[: _LONGEST_NAME_BYTES - 14]) + "."


def _end_of_links(path: str | os.PathLike[str]) -> Path:
    """Follow all links of a path, also those that lead to nothing.

    Raises:
        InputError: a link leads to itself, or the path is invalid.
    """
    try:
        target = os.path.realpath(path)
    except ValueError as error:  # a null character
        raise InputError(f"{os.fspath(path)!r}: is not a path ({error})") from error
    if os.path.islink(target):
        raise InputError(f"{path}: is a link that leads to itself; remove it or choose another path")
    return Path(target)


def _try_to_write(path: str | os.PathLike[str], folder: Path, name_bytes: int = 0) -> None:
    """Create and remove a temporary file in `folder`, or in its nearest parent that exists.

    Raises:
        InputError: this fails, or a name in `path` is too long.
    """
    try:
        missing = [name_bytes]
        while not os.path.lexists(folder):
            missing.append(len(os.fsencode(folder.name)))
            folder = folder.parent
        if not folder.is_dir():
            raise InputError(f"{path}: {folder} is a file, not a folder")
        if max(missing) > os.pathconf(folder, "PC_NAME_MAX"):
            raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG))
        remove_stale(folder / _CHECK)
        with _temporary(folder / _CHECK):
            pass
    except OSError as error:
        where = "" if error.errno == errno.ENAMETOOLONG else f": no file can be made in {folder}"
        raise InputError(_cannot_write(path, error, where)) from error


def _cannot_write(path: str | os.PathLike[str], error: OSError, where: str = "") -> str:
    """Sentence for an output that cannot be written."""
    return f"{path}: cannot be written{where} ({error.strerror or error}); choose another place for the output"


def _sync_folder(folder: Path) -> None:
    """Make renames in `folder` survive a power failure, if the file system can."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
