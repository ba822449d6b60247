"""Checkpoints: contain only tensors, numbers and strings; written atomically, loaded without running code."""

from __future__ import annotations

import hashlib
import io
import pickle
import warnings
from pathlib import Path
from typing import Any

import torch

from segloc.common.errors import InputError, one_line
from segloc.common.files import expanded, write_atomic
from segloc.training.file_kinds import file_kind, more_than_data

# Version 2 introduced YAML recipes. Weights of version 1 can be read; its runs cannot be resumed.
FORMAT_VERSION = 2
READABLE = (1, 2)
READABLE_NAMES = " or ".join(map(str, READABLE))
LAST = "checkpoint.pth"
BACKBONE = "backbone.pth"


def save(path: str | Path, content: dict[str, Any]) -> None:
    """Write `content` (nested dicts and lists of tensors, numbers, strings) atomically."""
    buffer = io.BytesIO()
    torch.save({"format_version": FORMAT_VERSION, **content}, buffer)
    write_atomic(path, buffer.getvalue())


def load(path: str | Path) -> dict[str, Any]:
    """Read a checkpoint onto the CPU.

    Raises:
        InputError: no such file, not a segloc checkpoint, or it contains more than data.
    """
    return require_readable(read_any(path)[0], path)


def require_readable(content: Any, path: str | Path) -> dict[str, Any]:
    """Return `content` if it is a segloc checkpoint of a readable format; raise `InputError` if not."""
    if not is_ours(content):
        raise InputError(f"{path}: not a segloc checkpoint of format {READABLE_NAMES}")
    return content  # type: ignore[no-any-return]


def is_ours(content: Any) -> bool:
    """Return whether the result of `read_any` is a segloc checkpoint of a readable format."""
    return isinstance(content, dict) and content.get("format_version") in READABLE


def read_any(path: str | Path) -> tuple[Any, str]:
    """Read any file of ``torch.save`` that contains only data, onto the CPU.

    Returns:
        The content, and the SHA-256 of the bytes it was read from.

    Raises:
        InputError: no such file, damaged, or it contains more than data.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such checkpoint")
    try:
        data = path.read_bytes()
        with warnings.catch_warnings():  # torch's, about files that are refused below
            warnings.simplefilter("ignore")
            content = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
        return content, hashlib.sha256(data).hexdigest()
    except Exception as error:  # damaged bytes fail in many ways
        if kind := file_kind(path, data):
            raise InputError(f"{path}: not a checkpoint, but {kind}") from error
        reason = one_line(error)
        if isinstance(error, pickle.UnpicklingError):  # torch's message is long and advises to run the file's code
            objects = more_than_data(str(error))
            reason = f"{objects}; for a pickled model, save its state_dict() instead"
        raise InputError(f"{path}: not a checkpoint that can be loaded safely ({reason})") from error


def find(path: str | Path) -> Path:
    """Return `path` if it is a file, or the best checkpoint of a run folder (final before intermediate).

    Raises:
        InputError: there is no checkpoint.
    """
    path = Path(expanded(str(path)))
    if path.is_dir():
        for name in (BACKBONE, "model.pth", LAST):
            if (path / name).is_file():
                return path / name
        raise InputError(f"{path}: contains no checkpoint ({BACKBONE}, model.pth or {LAST})")
    if not path.is_file():
        raise InputError(f"{path}: no such checkpoint")
    return path
