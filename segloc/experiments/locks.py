"""A lock that processes on one or several machines share through a file."""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def locked(path: Path, what: str, wait: bool) -> Iterator[int | None]:
    """Hold a lock; yields the descriptor to be handed to commands that work under it, or None if another holds it.

    The kernel lets go of the lock when the last process that has the descriptor open ends, however that comes about. A
    command that outlives its killed parent still holds it, so nobody starts a second one beside it.

    Args:
        path: the file; made when missing, it says who has the lock.
        what: what is locked, for the message that it is waited for.
        wait: wait for whoever holds it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        if not _lock(descriptor, block=False):
            if not wait:
                yield None
                return
            owner = os.pread(descriptor, 200, 0).decode(errors="replace").strip()
            print(f"{what}: waiting for {owner or 'another process'}, which works on it", flush=True)
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
