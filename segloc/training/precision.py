"""The precision of a training: which dtype autocast uses on which device."""

from __future__ import annotations

import torch

from segloc.common.errors import InputError
from segloc.training.processes import ALONE, Group


def resolve(precision: str, name: str, device: torch.device, group: Group = ALONE) -> str:
    """Return ``float32`` or ``bfloat16``; the same in all processes. A collective call.

    Args:
        precision: one of `segloc.settings.backbone.PRECISIONS`; ``auto`` is bfloat16 if the devices of all processes
            compute in it, else float32.
        name: of the setting or record that `precision` is from, for the message.
        device: of this process.
        group: the processes.

    Raises:
        InputError: a device cannot compute in the precision that was asked for.
    """
    if precision == "float32":
        return precision
    lacks = bool(group.most(not has_bfloat16(device, emulated=precision != "auto"), device))
    if precision == "auto":
        return "float32" if lacks else "bfloat16"
    if lacks:
        raise InputError(f"{name} is bfloat16, which this GPU does not have; use float32 and another --out")
    return precision


def has_bfloat16(device: torch.device, emulated: bool = False) -> bool:
    """Return whether a device computes in bfloat16.

    Args:
        device: a CPU only emulates it on most machines.
        emulated: whether slow emulation is enough.
    """
    if device.type != "cuda":
        return emulated
    return torch.cuda.is_bf16_supported(including_emulation=emulated)


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """Return the context of forward passes in a resolved precision."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16")
