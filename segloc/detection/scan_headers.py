"""The look at every training file before the first step: is it there, complete, and of the annotated size?"""

from __future__ import annotations

import os
from collections.abc import Sequence

from tqdm import tqdm

from segloc.common.errors import InputError
from segloc.common.image_headers import JPEG_START, PNG_START
from segloc.common.images import MAX_PIXELS, ImageError, dimensions, read_file
from segloc.detection.data import in_threads, read_scan, reason_of
from segloc.detection.splits import Scan

_AHEAD = 64  # files looked at before the first of them is needed
# A JPEG's header lies in front of its pixels; photographs may have a long one. Its end marker ends the file.
_HEAD_BYTES, _TAIL_BYTES = 65_536, 4_096
_PNG_END = b"\0\0\0\0IEND\xaeB`\x82"
_JPEG_END = b"\xff\xd9"


def unreadable_scans(scans: Sequence[Scan], threads: int) -> dict[int, str]:
    """Look at the header and the end of every file, without decoding its pixels.

    Args:
        scans: the scans.
        threads: files read at once.

    Returns:
        The reason why a scan cannot be used, by its position in `scans`.
    """
    bar = tqdm(
        in_threads(_problem, scans, threads, _AHEAD), total=len(scans), unit="scan", desc="headers", disable=None
    )
    return {position: reason for position, reason in enumerate(bar) if reason}


def _problem(scan: Scan) -> str:
    """Return the reason why a scan cannot be used; empty if there is none."""
    try:
        width, height = _dimensions(scan.path)
        if width * height > MAX_PIXELS:
            return "too large"
        if (width, height) == (scan.width, scan.height):
            return ""
        read_scan(scan)  # decoders turn a photograph as its header asks
    except (ImageError, InputError) as error:
        return reason_of(scan, error)
    return ""


def _dimensions(path: str | os.PathLike[str]) -> tuple[int, int]:
    """Read (width, height) from both ends of a file, or from the whole file where these are not enough.

    Raises:
        ImageError: see `read_file` and `dimensions`.
    """
    try:
        ends = _ends(path)
        if ends is not None:
            return dimensions(ends)
    except (OSError, ValueError):  # ImageError is one
        pass
    return dimensions(read_file(path))


def _ends(path: str | os.PathLike[str]) -> bytes | None:
    """Return the head of a file with its tail, as a shorter image; None if `dimensions` could not judge it."""
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        head = file.read(_HEAD_BYTES)
        if size <= _HEAD_BYTES + _TAIL_BYTES:
            return None
        file.seek(size - _TAIL_BYTES)
        tail = file.read()
    if head.startswith(PNG_START) and tail.endswith(_PNG_END):
        return head[:33] + _PNG_END  # the signature and the chunk of the header
    if head.startswith(JPEG_START) and _JPEG_END in tail:
        return head + tail
    return None
