"""Checkpoints: contain only tensors, numbers and strings; written atomically, loaded without running code."""

from __future__ import annotations

import hashlib
import io
import pickle
import re
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from segloc.common.errors import InputError, one_line
from segloc.common.files import expanded, write_atomic
from segloc.common.parse import check_text, shown
from segloc.common.run_files import BACKBONE, LAST, MODEL
from segloc.training.file_kinds import file_kind, more_than_data

# Version 2 introduced YAML recipes, version 3 bn_images. Weights of earlier versions can be read; their runs cannot be
# resumed.
FORMAT_VERSION = 3
READABLE = (1, 2, 3)
READABLE_NAMES = " or ".join(map(str, READABLE))
# Tensors may share memory: our detectors are stored twice, as model and as backbone. A view that repeats a number,
# which ten bytes of a file can expand to a billion, is far beyond.
MOST_SHARED = 16
LEAST_BYTES = 1 << 26  # of small files, more is shared
# Torch's loader allows a bytearray, whose length is one number in the file. Large integers can collide in sets and
# dicts, which take a time that grows with the square of their number.
_BYTEARRAY = b"\nbytearray\n"
_LARGE_INTEGER, MOST_LARGE_INTEGERS = re.compile(rb"\x8a[\x05-\xff]|\x8b", re.DOTALL), 10_000


class Damaged(InputError):
    """A checkpoint whose content is not what a run writes."""


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
    version = content.get("format_version") if isinstance(content, dict) else None
    return type(version) is int and version in READABLE


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
        _check_records(data)
        with warnings.catch_warnings():  # torch's, about files that are refused below
            warnings.simplefilter("ignore")
            content = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
        _check_sizes(content, len(data))
        return content, hashlib.sha256(data).hexdigest()
    except Exception as error:  # damaged bytes fail in many ways
        if kind := file_kind(path, data):
            raise InputError(f"{path}: not a checkpoint, but {kind}") from error
        reason = one_line(error)
        if isinstance(error, pickle.UnpicklingError):  # torch's message is long and advises to run the file's code
            objects = more_than_data(str(error))
            reason = f"{objects}; for a pickled model, save its state_dict() instead"
        raise InputError(f"{path}: not a checkpoint that can be loaded safely ({reason})") from error


def _check_records(data: bytes) -> None:
    """Check the CRC of every record of a file of ``torch.save``, which `torch.load` does not. Old files have none."""
    if not data.startswith(b"PK"):
        _refuse_bytearray(data)
        return
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        records = archive.infolist()
        # Torch never compresses; a thousandth of the size could be written.
        if any(one.compress_type for one in records) or sum(one.file_size for one in records) > len(data):
            raise ValueError("its records are larger than the file")
        if (bad := archive.testzip()) is not None:
            raise ValueError(f"the CRC of its record {bad!r} is wrong: the file is damaged")
        for one in records:
            if one.filename.endswith(".pkl"):
                content = archive.read(one)
                _refuse_bytearray(content)
                if sum(1 for _ in _LARGE_INTEGER.finditer(content)) > MOST_LARGE_INTEGERS:
                    raise ValueError(f"it has more than {MOST_LARGE_INTEGERS} large integers")


def _refuse_bytearray(data: bytes) -> None:
    if _BYTEARRAY in data:
        raise ValueError("it has a bytearray, which no state dict has")


def tensors_in(content: Any) -> Iterator[torch.Tensor]:
    """Yield all tensors in nested dicts and lists, each object once."""
    seen: set[int] = set()
    waiting = [content]
    while waiting:
        value = waiting.pop()
        if isinstance(value, torch.Tensor):
            yield value
        elif isinstance(value, (dict, list, tuple)) and id(value) not in seen:
            seen.add(id(value))
            waiting += value.values() if isinstance(value, dict) else value


def _check_sizes(content: Any, file_bytes: int) -> None:
    total = 0
    for tensor in tensors_in(content):
        if tensor.layout != torch.strided or tensor.device.type != "cpu" or tensor.is_quantized:
            raise ValueError(f"it has a tensor that is not a plain array ({tensor.layout}, {tensor.device})")
        total += tensor.numel() * tensor.element_size()
    if total > max(MOST_SHARED * file_bytes, LEAST_BYTES):
        raise ValueError(f"its tensors expand to {total} bytes, the file has {file_bytes}")


def require_finite(content: Any, source: str | Path) -> None:
    """Check that all numbers in the tensors of `content` are finite.

    Raises:
        Damaged: some are not.
    """
    for tensor in tensors_in(content):
        if not is_finite(tensor):
            raise Damaged(f"{source}: has values that are not finite; its training diverged, or the file is damaged")


def is_finite(tensor: torch.Tensor) -> bool:
    """Return whether all values are finite numbers that float32 can hold."""
    return bool(torch.isfinite(tensor.to(torch.float32) if tensor.is_floating_point() else tensor).all())


def kind_of(content: dict[str, Any]) -> str:
    """Name the kind of a checkpoint for a message."""
    kind = content.get("kind", "unknown")
    return kind if isinstance(kind, str) and kind.isidentifier() else shown(kind)


def count_in(content: dict[str, Any], field: str, source: str | Path) -> int:
    """Return a field that holds a count, such as ``iteration``.

    Raises:
        Damaged: it is missing, or no whole number from 0 on.
    """
    value = content.get(field)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 2**63:
        raise Damaged(f"{source}: its {field} is {shown(value)}, not a whole number from 0 on")
    return value


def text_in(content: dict[str, Any], field: str, source: str | Path) -> str:
    """Return a field that holds text.

    Raises:
        Damaged: it is missing or of another type.
    """
    value = content.get(field)
    if not isinstance(value, str):
        raise Damaged(f"{source}: its {field} is {shown(value)}, not text")
    check_text(value, f"{source}: its {field}")
    return value


def load_optimizer(optimizer: torch.optim.Optimizer, state: Any, source: str | Path) -> None:
    """Load the state of an optimiser, whose own check covers neither shapes nor types.

    Raises:
        Damaged: it does not belong to this optimiser.
    """
    try:
        optimizer.load_state_dict(state)
        for parameter, values in optimizer.state.items():
            for name, value in values.items():
                if isinstance(value, torch.Tensor) and value.dim() and value.shape != parameter.shape:
                    raise ValueError(f"{name} is {tuple(value.shape)}, not {tuple(parameter.shape)}")
    except Exception as error:  # torch raises whatever a wrong type happens to cause
        raise Damaged(f"{source}: the state of its optimiser does not fit ({one_line(error)})") from error


def find(path: str | Path) -> Path:
    """Return `path` if it is a file, or the best checkpoint of a run folder (final before intermediate).

    Raises:
        InputError: there is no checkpoint.
    """
    path = Path(expanded(str(path)))
    if path.is_dir():
        for name in (BACKBONE, MODEL, LAST):
            if (path / name).is_file():
                return path / name
        raise InputError(f"{path}: contains no checkpoint ({BACKBONE}, {MODEL} or {LAST})")
    if not path.is_file():
        raise InputError(f"{path}: no such checkpoint")
    return path
