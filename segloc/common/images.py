"""Reading scans. Files that would make a decoder guess, crash or fill the memory are refused with a reason."""

from __future__ import annotations

import errno
import os
import stat
import struct
from pathlib import Path
from typing import Literal

import cv2
import numpy as np
import numpy.typing as npt

Image = npt.NDArray[np.uint8]

# The size at which Pillow refuses to decode (twice its warning level). No scanner reaches it; a few kB of PNG can.
MAX_PIXELS = 178_956_970

_JPEG_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_JPEG_WITHOUT_LENGTH = frozenset({0x01, *range(0xD0, 0xD8)})


_JPEG_START = b"\xff\xd8\xff"
# OpenCV's flags of a reduced size include a colour mode; in the grey flags that bit is zero.
_REDUCED = {
    1: 0,
    2: cv2.IMREAD_REDUCED_GRAYSCALE_2,
    4: cv2.IMREAD_REDUCED_GRAYSCALE_4,
    8: cv2.IMREAD_REDUCED_GRAYSCALE_8,
}


BROKEN_LINK = "link without a target"  # reason of a link to a file that is missing, or to itself


class ImageError(ValueError):
    """A file that is not a usable scan. The message is the reason, without the file name."""


def read_image(path: str | os.PathLike[str], mode: Literal["rgb", "grey"] = "rgb") -> Image:
    """Read a scan; see `decode`.

    Raises:
        ImageError: the file is missing, cannot be read, or is not a usable image.
    """
    return decode(read_file(path), mode)


def read_file(path: str | os.PathLike[str]) -> bytes:
    """Read a scan's file without decoding it.

    Raises:
        ImageError: it is missing or cannot be read.
    """
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # opening a pipe would wait for its writer
            raise ImageError("cannot be read: not a regular file")
        return Path(path).read_bytes()
    except FileNotFoundError as error:
        raise ImageError(BROKEN_LINK if os.path.islink(path) else "no such file") from error
    except ImageError:
        raise
    except (OSError, ValueError) as error:
        if getattr(error, "errno", None) == errno.ELOOP:
            raise ImageError(BROKEN_LINK) from error
        raise ImageError(f"cannot be read: {getattr(error, 'strerror', None) or error}") from error


def decode(data: bytes, mode: Literal["rgb", "grey"] = "rgb", reduction: int = 1) -> Image:
    """Decode a JPEG, PNG, BMP or TIFF scan.

    OpenCV reduces sixteen bits to their high byte, drops alpha, and converts grey and CMYK to RGB. Grey images are
    those of `cv2.IMREAD_GRAYSCALE`: for a JPEG its luma plane, which differs from a conversion of the decoded colours
    by up to 15 levels.

    Args:
        data: the file's content.
        mode: ``rgb`` or ``grey``.
        reduction: 1, 2, 4 or 8: factor by which height and width are reduced, rounded up, with each pixel a mean. For a
            JPEG, the decoder's transform does this at almost no cost.

    Returns:
        uint8 array, [height, width, 3] in RGB order or [height, width].

    Raises:
        ImageError: empty, of another format, truncated, too large, or broken.
    """
    width, height = dimensions(data)
    if width * height > MAX_PIXELS:
        raise ImageError(f"too large: {width}x{height} pixels")
    colours = cv2.IMREAD_GRAYSCALE if mode == "grey" else cv2.IMREAD_COLOR_RGB
    in_decoder = data.startswith(_JPEG_START)  # for other formats OpenCV would skip pixels
    image = decode_unchecked(np.frombuffer(data, np.uint8), _REDUCED[reduction if in_decoder else 1] | colours)
    if reduction > 1 and not in_decoder:
        size = -(-image.shape[1] // reduction), -(-image.shape[0] // reduction)
        image = np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), np.uint8)
    return image


def decode_unchecked(data: npt.NDArray[np.uint8], flags: int = cv2.IMREAD_COLOR_RGB) -> Image:
    """Decode a file [bytes] without the checks of `decode`: missing pixels of a truncated JPEG become grey.

    The flags are OpenCV's flags of the colour mode and reduction.

    Raises:
        ImageError: it cannot be decoded.
    """
    try:
        image = cv2.imdecode(data, flags)
    except cv2.error as error:  # an empty file, or more pixels than OpenCV accepts
        raise ImageError("cannot be decoded") from error
    if image is None or image.size == 0:
        raise ImageError("cannot be decoded")
    return np.asarray(image, np.uint8)


def encode_png(image: npt.NDArray[np.uint8]) -> bytes:
    """Encode an [h, w, 3] RGB array as PNG."""
    return cv2.imencode(".png", cv2.cvtColor(image, cv2.COLOR_RGB2BGR))[1].tobytes()


# Compressed crops of scans would be no less than 0.6 of the size, and would take much longer to decode.
_UNCOMPRESSED = (cv2.IMWRITE_PNG_COMPRESSION, 0, cv2.IMWRITE_PNG_FILTER, cv2.IMWRITE_PNG_FILTER_NONE)


def encode_rgba(image: npt.NDArray[np.uint8]) -> bytes:
    """Encode an [h, w, 4] RGBA array as uncompressed PNG."""
    return cv2.imencode(".png", cv2.cvtColor(image, cv2.COLOR_RGBA2BGRA), _UNCOMPRESSED)[1].tobytes()


def decode_rgba(png: bytes) -> Image:
    """Decode a PNG of `encode_rgba`.

    Raises:
        ImageError: the bytes are damaged.
    """
    try:
        bgra = decode_unchecked(np.frombuffer(png, np.uint8), cv2.IMREAD_UNCHANGED)
    except ImageError as error:
        raise ImageError("not an RGBA picture") from error
    if bgra.ndim != 3 or bgra.shape[2] != 4:
        raise ImageError("not an RGBA picture")
    return np.asarray(cv2.cvtColor(bgra, cv2.COLOR_BGRA2RGBA), np.uint8)


LONGEST_JPEG_SIDE_PX = 65_500


def encode_jpeg(image: Image, quality: int) -> bytes:
    """Encode an [h, w, 3] RGB array as JPEG of `quality` (1..100), with colours at half resolution (4:2:0).

    Raises:
        ImageError: a side is longer than the format allows.
    """
    if max(image.shape[:2]) > LONGEST_JPEG_SIDE_PX:
        raise ImageError(f"{image.shape[1]}x{image.shape[0]} pixels are too many for a JPEG file")
    bgr = cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
    return cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, quality])[1].tobytes()


def dimensions(data: bytes) -> tuple[int, int]:
    """Read (width, height) in pixels from the header, and check that the file is complete, without decoding it.

    Raises:
        ImageError: empty, of another format, or truncated.
    """
    if not data:
        raise ImageError("empty file")
    try:
        for magic, parse in _PARSERS.items():
            if data.startswith(magic):
                width, height = parse(data)
                break
        else:
            raise ImageError("not a JPEG, PNG, BMP or TIFF file")
    except (struct.error, IndexError) as error:
        raise ImageError("truncated file") from error
    if width < 1 or height < 1:
        raise ImageError("broken header")
    return width, height


def _jpeg(data: bytes) -> tuple[int, int]:
    """Walk the segments to the frame header and the scan, and check that the end marker follows.

    Decoders fill a missing end with grey, without an error. The end marker cannot occur inside a scan. A thumbnail has
    its own end marker, but lies in a segment before the scan.
    """
    size, at = None, 2
    while True:
        if data[at] != 0xFF:
            raise ImageError("broken header")
        marker = data[at + 1]
        if marker == 0xFF:  # fill byte
            at += 1
            continue
        if marker in _JPEG_WITHOUT_LENGTH:
            at += 2
            continue
        if marker in _JPEG_FRAMES:
            height, width = struct.unpack_from(">HH", data, at + 5)
            size = width, height
        (length,) = struct.unpack_from(">H", data, at + 2)
        if marker == 0xDA:
            break
        if marker == 0xD9 or length < 2:
            raise ImageError("broken header")
        at += 2 + length
    if size is None:
        raise ImageError("broken header")
    if data.rfind(b"\xff\xd9", at) < 0:  # searched from the end, where it should be
        raise ImageError("truncated file")
    return size


def _png(data: bytes) -> tuple[int, int]:
    width, height = struct.unpack_from(">II", data, 16)
    at = 8
    while True:
        length, kind = struct.unpack_from(">I4s", data, at)
        at += 12 + length
        if at > len(data):
            raise ImageError("truncated file")
        if kind == b"IEND":
            return width, height


def _bmp(data: bytes) -> tuple[int, int]:
    offset, _, width, height, _, bits, compression = struct.unpack_from("<IIiiHHI", data, 10)
    row_bytes = (abs(width) * bits + 31) // 32 * 4
    if compression == 0 and len(data) < offset + row_bytes * abs(height):
        raise ImageError("truncated file")
    return abs(width), abs(height)


def _tiff(data: bytes) -> tuple[int, int]:
    order = "<" if data.startswith(b"II") else ">"
    (at,) = struct.unpack_from(order + "I", data, 4)
    (entries,) = struct.unpack_from(order + "H", data, at)
    size = {}
    for entry in range(entries):
        tag, kind = struct.unpack_from(order + "HH", data, at + 2 + 12 * entry)
        (size[tag],) = struct.unpack_from(order + ("H" if kind == 3 else "I"), data, at + 10 + 12 * entry)
    return size.get(256, 0), size.get(257, 0)


_PARSERS = {
    _JPEG_START: _jpeg,
    b"\x89PNG\r\n\x1a\n": _png,
    b"BM": _bmp,
    b"II*\0": _tiff,
    b"MM\0*": _tiff,
}
