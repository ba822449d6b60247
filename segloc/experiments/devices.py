"""Devices of an experiment: every GPU runs one job at a time, also when several commands run on one machine."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from segloc.common.errors import InputError
from segloc.common.locks import locked

VISIBLE = "CUDA_VISIBLE_DEVICES"
LOCKS = Path("/tmp") / f"segloc-devices-{os.getuid()}"  # not TMPDIR, which schedulers set for each job
# As in CUDA_VISIBLE_DEVICES: a number, or the UUID of a GPU or of a part of one.
_NAME = re.compile(r"\d+|(GPU|MIG)-[A-Za-z0-9/-]+")
# CUDA numbers cards by speed and schedulers number those of a job from 0, so only their UUIDs tell two cards apart. A
# process of its own asks for them, because whoever asks keeps a part of every card's memory.
_ASK = "import torch; [print(torch.cuda.get_device_properties(i).uuid) for i in range(torch.cuda.device_count())]"


@dataclasses.dataclass(frozen=True)
class Devices:
    """The GPUs that an experiment may use.

    Attributes:
        names: as in CUDA_VISIBLE_DEVICES; empty on a machine without a GPU, which runs one job at a time.
        locks: the lock file of each.
    """

    names: tuple[str, ...] = ()
    locks: tuple[Path, ...] = ()

    @property
    def slots(self) -> int:
        """Number of jobs of one process that can run at the same time."""
        return len(self.names) or 1

    @contextlib.contextmanager
    def taken(self, number: int, what: str) -> Iterator[dict[str, int] | None]:
        """Hold GPUs in the block; yield the descriptor of each one's lock by name, or None if too few are free.

        Without GPUs, hold none.

        Args:
            number: how many.
            what: name of the job, for the locks.
        """
        number = min(number, len(self.names))
        with contextlib.ExitStack() as stack:
            found: dict[str, int] = {}
            for name, path in zip(self.names, self.locks, strict=True):
                if len(found) < number:
                    descriptor = stack.enter_context(locked(path, what, wait=False))
                    if descriptor is not None:
                        found[name] = descriptor
            yield found if len(found) == number else None


def find_devices(wanted: str | None = None) -> Devices:
    """Find the GPUs to use: those of the option ``--devices``, or all that are visible.

    Raises:
        InputError: a name is not one of CUDA_VISIBLE_DEVICES, or another user owns the folder of the locks.
    """
    visible = os.environ.get(VISIBLE)
    allowed = [name.strip() for name in visible.split(",")] if visible else []
    if wanted is None:
        count = torch.cuda.device_count()
        names = (allowed or [str(number) for number in range(count)])[:count]
    else:
        names = wanted.split(",")
        _check(names, allowed, visible)
    if not names:
        return Devices()
    _check_locks()
    cards = _uuids(names) if torch.cuda.is_available() else names
    return Devices(tuple(names), tuple(LOCKS / f"{card.replace('/', '_')}.lock" for card in cards))


def _check(names: Sequence[str], allowed: Sequence[str], visible: str | None) -> None:
    for name in names:
        if not _NAME.fullmatch(name):
            raise InputError(f"--devices: {name!r} is not a GPU; give numbers or UUIDs, such as 0,1,2")
        if names.count(name) > 1:
            raise InputError(f"--devices: {name} is named twice")
        if visible is not None and name not in allowed:
            raise InputError(f"--devices: {name} is not in {VISIBLE} ({visible}); choose from those")


def _check_locks() -> None:
    """Make the folder of the locks; refuse one of another user, who could hold all GPUs."""
    LOCKS.mkdir(mode=0o700, exist_ok=True)
    if LOCKS.is_symlink() or LOCKS.stat().st_uid != os.getuid():
        raise InputError(f"{LOCKS}: belongs to another user; ask the administrator to remove it")


def _uuids(names: Sequence[str]) -> list[str]:
    """Return the UUID of each GPU; two names of one card have the same.

    Raises:
        InputError: there is no such GPU, or two names mean the same one.
    """
    environment = {**os.environ, VISIBLE: ",".join(names)}
    done = subprocess.run([sys.executable, "-c", _ASK], env=environment, capture_output=True, text=True, check=False)
    found = done.stdout.split()
    if done.returncode or len(found) != len(names):
        raise InputError(f"--devices: {','.join(names)}: CUDA finds {len(found)} of these GPUs; name existing ones")
    if len({*found}) < len(found):
        raise InputError(f"--devices: {','.join(names)}: two of these names mean the same GPU")
    return found
