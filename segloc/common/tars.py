"""Reads the tars of shards: plain files with short names, as `pipeline.storage.shards` writes them, and nothing else.

Links, sparse files and extended headers could name files elsewhere, or claim gigabytes in a few bytes. No member is
ever written to disk, and no name of a member is used as a path.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from segloc.common.parse import parsing, shown

_BLOCK = 512
_PLAIN = (b"0", b"\0")
_CHECKSUM = slice(148, 156)


def tar_members(data: np.ndarray, where: object) -> Iterator[tuple[str, np.ndarray]]:
    """Yield names and contents of the members of a tar file; the contents share its memory.

    webdataset's reader copies every member, which is slow compared to decoding.

    Args:
        data: the file, [bytes] uint8.
        where: its name for messages.

    Raises:
        InputError: truncated or damaged, or a member is no plain file or occurs twice.
    """
    with parsing(where, "not a tar file"):
        start, seen = 0, set()
        while any(header := data[start : start + _BLOCK].tobytes()):
            start += _BLOCK
            if start > len(data):
                raise ValueError("truncated")
            checksum = sum(header) - sum(header[_CHECKSUM]) + 8 * ord(" ")
            if int(header[_CHECKSUM].strip(b"\0 ") or b"0", 8) != checksum:
                raise ValueError(f"the header at byte {start - _BLOCK} has a wrong checksum")
            name = header[:100].partition(b"\0")[0].decode()
            if header[156:157] not in _PLAIN or header[345]:
                raise ValueError(f"member {shown(name)} is a link or another special member, not a plain file")
            size = int(header[124:136].strip(b"\0 ") or b"0", 8)
            if not 0 <= size <= len(data) - start:
                raise ValueError(f"member {shown(name)} of {size} bytes at byte {start} does not fit")
            if name in seen:
                raise ValueError(f"member {shown(name)} occurs twice")
            seen.add(name)
            yield name, data[start : start + size]
            start += -(-size // _BLOCK) * _BLOCK


def read_tar(path: object, where: object) -> Iterator[tuple[str, bytes]]:
    """Yield names and contents of the members of a local tar file, mapped into memory; see `tar_members`."""
    with parsing(where, "not a tar file"):
        data = np.memmap(str(path), np.uint8, mode="r")
    for name, content in tar_members(data, where):
        yield name, content.tobytes()
