"""Refuse what cannot fit into memory before it is allocated."""

from __future__ import annotations

import os

import torch

from segloc.common.errors import InputError


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
