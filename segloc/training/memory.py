"""Memory: refuse what cannot fit before it is allocated, and say what to set when there is not enough."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator

import torch

from segloc.common.errors import InputError, RunError

# What torch, its libraries and their CPU allocator say; only some of these errors have a class of their own.
_FULL = re.compile(r"out of memory|can't allocate memory|not enough memory|ALLOC_FAILED", re.IGNORECASE)
_TRIED = re.compile(r"tried to allocate ([\d.]+ \w+)", re.IGNORECASE)


def require(needed_bytes: int, device: torch.device, what: str) -> None:
    """Check that the memory of a device, all of it, could hold `needed_bytes`.

    Raises:
        InputError: it could not; the message begins with `what`.
    """
    if device.type == "cuda":
        has_bytes = torch.cuda.get_device_properties(device).total_memory
    else:
        has_bytes = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if needed_bytes > has_bytes:
        raise InputError(f"{what} needs {needed_bytes} bytes, this {device.type} has {has_bytes}; lower it")


@contextlib.contextmanager
def advice(settings: str) -> Iterator[None]:
    """Turn an out-of-memory error in the block, of a GPU or of the CPU, into one sentence.

    Args:
        settings: what to set.

    Raises:
        RunError: the memory was not enough.
    """
    try:
        yield
    except RunError:
        raise
    except (RuntimeError, MemoryError) as error:
        if not isinstance(error, MemoryError) and not _FULL.search(str(error)):
            raise
        tried = f" (tried to allocate {found[1]})" if (found := _TRIED.search(str(error))) else ""
        raise RunError(f"out of memory{tried}; set {settings}, and run the command again") from error
