"""File locks between processes on one or several machines.

The kernel holds a lock as long as a process has its file open. A killed process frees its locks, and a lock file that
is left means nothing.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from segloc.common.errors import InputError

_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)


@contextlib.contextmanager
def locked(path: Path, what: str, wait: bool) -> Iterator[int | None]:
    """Hold a lock; yield its file descriptor, or None if another process holds the lock.

    Pass the descriptor to the commands that run under the lock. The kernel releases the lock when the last process with
    the descriptor ends. A command that outlives its killed parent therefore keeps the lock, and no second one starts.

    Args:
        path: the lock file, created if missing; it names the process that holds the lock.
        what: name of the locked job, for the message while waiting.
        wait: wait until the lock is free.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        if not _lock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB):
            if not wait:
                yield None
                return
            print(f"{what}: waiting for {_owner(descriptor)}", flush=True)
            _lock(descriptor, fcntl.LOCK_EX)
        _sign(descriptor)
        yield descriptor
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def owned(path: Path, what: str, shared: bool = False) -> Iterator[None]:
    """Hold a lock in the block. Its file is removed afterwards, unless a process is killed or others share the lock.

    On a file system without locks, say so in one line and go on.

    Args:
        path: the lock file; its folder is created if missing.
        what: for the error, which adds who holds the lock: "runs/x: another process works in this folder".
        shared: whether others may hold it shared at the same time.

    Raises:
        InputError: another process holds the lock.
    """
    is_new = not path.parent.exists()
    path.parent.mkdir(parents=True, exist_ok=True)
    mode = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    try:
        descriptor = _open_locked(path, mode)
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        print(f"{path.parent}: no locks on this file system; make sure that no second run works here", flush=True)
        yield
        return
    if isinstance(descriptor, str):
        raise InputError(f"{what} ({descriptor}); wait until it ends")
    try:
        yield
    finally:
        if not shared or _lock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB):
            path.unlink(missing_ok=True)
        os.close(descriptor)
        if is_new:  # and empty: nothing was done
            with contextlib.suppress(OSError):
                path.parent.rmdir()


def _open_locked(path: Path, mode: int) -> int | str:
    """Open and lock a file; return its descriptor, or who holds the lock."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            if not _lock(descriptor, mode | fcntl.LOCK_NB):
                return _owner(descriptor)
            _sign(descriptor)
            if _is_at(path, descriptor):
                kept, descriptor = descriptor, -1
                return kept
        finally:
            if descriptor >= 0:
                os.close(descriptor)


def _is_at(path: Path, descriptor: int) -> bool:
    """Whether the open file still is the one at `path`; the last owner may have removed it meanwhile."""
    with contextlib.suppress(FileNotFoundError):
        return os.path.samestat(os.stat(path), os.fstat(descriptor))
    return False


def _lock(descriptor: int, mode: int) -> bool:
    try:
        fcntl.flock(descriptor, mode)
    except BlockingIOError:
        return False
    return True


def _sign(descriptor: int) -> None:
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)


def _owner(descriptor: int) -> str:
    return os.pread(descriptor, 200, 0).decode(errors="replace").strip() or "another process"
