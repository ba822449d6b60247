"""Kinds of output files, recognised by their content, so that an output replaces only a file of its own kind.

A file that a command wrote may be replaced: by a rerun, by DVC, by an experiment. Anything else that exists under the
name of an output belongs to the user.
"""

from __future__ import annotations

import os
import re
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from segloc.common.errors import InputError
from segloc.common.image_headers import PNG_START

_HEAD_BYTES, _MOST_FOOTER_BYTES = 1 << 13, 1 << 28
_FOOTER_TAIL = struct.Struct("<I4s")  # Parquet's: bytes of the footer before it, "PAR1"
_MARK = b"tEXtSoftware\0segloc"
_HEADER_BYTES = 33  # of a PNG: signature and first chunk


class Kind(NamedTuple):
    """A kind of output file.

    Attributes:
        what: it is, with its article.
        is_one: tells whether an existing file is of this kind.
    """

    what: str
    is_one: Callable[[Path], bool]


def starting(what: str, pattern: bytes) -> Kind:
    """Return the kind of files that begin with `pattern`, a regular expression."""
    begin = re.compile(pattern, re.DOTALL)
    return Kind(what, lambda path: begin.match(_head(path)) is not None)


def lines_under(what: str, *columns: str) -> Kind:
    """Return the kind of CSV files whose first columns have these names."""
    return starting(what, re.escape(",".join(columns)).encode() + rb"[,\r\n]")


def parquet(what: str, key: str) -> Kind:
    """Return the kind of Parquet files with `key` in their metadata."""

    def is_one(path: Path) -> bool:
        with open(path, "rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - _FOOTER_TAIL.size))
            tail = file.read()
            if len(tail) < _FOOTER_TAIL.size:
                return False
            length, magic = _FOOTER_TAIL.unpack(tail)
            if magic != b"PAR1" or length > min(size, _MOST_FOOTER_BYTES):
                return False
            file.seek(max(0, size - _FOOTER_TAIL.size - length))
            return key.encode() in file.read()

    return Kind(what, is_one)


def marked_png(data: bytes) -> bytes:
    """Add the mark of `PNG` to an encoded PNG."""
    chunk = struct.pack(">I", len(_MARK) - 4) + _MARK + struct.pack(">I", zlib.crc32(_MARK))
    return data[:_HEADER_BYTES] + chunk + data[_HEADER_BYTES:]


PNG = starting("a PNG that segloc drew", re.escape(PNG_START) + b".{0,200}" + re.escape(_MARK))


def check_replaces(path: str | os.PathLike[str], *kinds: Kind) -> None:
    """Check that nothing is lost when a file of one of these kinds is written to `path`. An empty file is no loss.

    Raises:
        InputError: `path` is a file of another kind.
    """
    file = Path(path)
    if file.is_file() and file.stat().st_size and not any(kind.is_one(file) for kind in kinds):
        what = " or ".join(kind.what for kind in kinds)
        raise InputError(f"{path}: exists and is not {what}; choose another place for the output, or remove it")


def _head(path: Path) -> bytes:
    with open(path, "rb") as file:
        return file.read(_HEAD_BYTES)
