"""The kinds of files that fuzzing reads, and what their modules share."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import torch

from segloc.common.errors import InputError
from segloc.common.images import ImageError
from segloc.common.masks import MaskError
from tests.faults.mutations import changed, damaged

DOCUMENTED = (InputError, ImageError, MaskError)
WIDTH, HEIGHT = 80, 56
Target = Callable[[np.random.Generator, Path], None]
TARGETS: dict[str, Target] = {}
_PREPARE: dict[str, Callable[[Path], None]] = {}


def target(kind: str, prepare: Callable[[Path], None]) -> Callable[[Target], Target]:
    """Register a target with what writes its valid files into a folder."""

    def register(run: Target) -> Target:
        TARGETS[kind], _PREPARE[kind] = run, prepare
        return run

    return register


def prepare(kind: str, folder: Path) -> None:
    """Write the valid files of a kind, unless an earlier worker has; limit the threads of libraries."""
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
    pa.set_cpu_count(1)
    if not (folder / "ready").exists():
        _PREPARE[kind](folder)
        (folder / "ready").touch()


def write_changed(path: Path, content: Any, rng: np.random.Generator, share_bytes: float = 0.3) -> None:
    """Write JSON after a change of its structure or of its bytes."""
    if rng.random() < share_bytes:
        path.write_bytes(damaged(json.dumps(content).encode(), rng))
    else:
        path.write_bytes(json.dumps(changed(content, rng)).encode())


def copied(folder: Path) -> Path:
    """A new copy of the valid files."""
    out = folder / "copy"
    shutil.rmtree(out, ignore_errors=True)
    shutil.copytree(folder / "good", out)
    return out
