"""File lock between processes on one or several machines."""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
from collections.abc import Iterator
from pathlib import Path


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
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        if not _lock(descriptor, block=False):
            if not wait:
                yield None
                return
            owner = os.pread(descriptor, 200, 0).decode(errors="replace").strip()
            print(f"{what}: waiting for {owner or 'another process'}", flush=True)
            _lock(descriptor, block=True)
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
        yield descriptor
    finally:
        os.close(descriptor)


def _lock(descriptor: int, block: bool) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if block else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    return True
