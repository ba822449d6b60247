"""Headers of image files: size and bit depth without decoding, and the kinds of pixels that a decoder would misread."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import NamedTuple

JPEG_START, PNG_START = b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n"
_TIFF_STARTS = b"II*\0", b"MM\0*"
# Marks of formats that people expect to work, with what to do about them.
_OTHER_FORMATS = {
    "DICOM": "convert it to 16-bit PNG",
    "JPEG 2000": "convert it to PNG",
    "BigTIFF": "convert it to PNG or to a TIFF below 4 GB",
    "WebP": "convert it to PNG",
    "GIF": "convert it to PNG",
}

_JPEG_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_JPEG_WITHOUT_LENGTH = frozenset({0x01, *range(0xD0, 0xD8)})
_JPEG_EXIF, _JPEG_SCAN = 0xE1, 0xDA

# Tags of TIFF, which Exif uses, too.
_WIDTH, _HEIGHT, _BITS, _PHOTOMETRIC, _ORIENTATION = 256, 257, 258, 262, 274
_EXTRA, _SAMPLE_FORMAT = 338, 339
_WHITE_IS_ZERO, _UNSIGNED, _SIGNED, _FLOAT, _PLAIN_ALPHA = 0, 1, 2, 3, 2
_READ = frozenset({_WIDTH, _HEIGHT, _BITS, _PHOTOMETRIC, _ORIENTATION, _EXTRA, _SAMPLE_FORMAT})
_TURNED = range(5, 9)  # orientations that swap width and height
_SHORT = 3  # type of a 16-bit number; the others that occur in these tags have 32 bits


class ImageError(ValueError):
    """A file that is not a usable scan. The message is the reason, without the file name."""


class Header(NamedTuple):
    """What a header says about an image.

    Attributes:
        width: in pixels, of the decoded image, which is turned as the file's orientation tag says.
        height: likewise.
        bits: per colour: 16, or 8 for 8 bits and less.
        darkened: whether OpenCV multiplies the colours by alpha, which it does in 8-bit TIFFs of one kind.
    """

    width: int
    height: int
    bits: int
    darkened: bool = False


def read_header(data: bytes) -> Header:
    """Read an image's header and check that the file is complete, without decoding it.

    Raises:
        ImageError: empty, of another format, truncated, or with pixels that would be misread: floating point, negative,
            12-bit JPEG, 32 bits, or 16 bits of which 0 is white.
    """
    if not data:
        raise ImageError("empty file")
    try:
        header = _parser(data)(data)
    except (struct.error, IndexError) as error:
        raise ImageError("truncated file") from error
    if header.width < 1 or header.height < 1:
        raise ImageError("broken header")
    return header


def may_have_16_bits(start: bytes) -> bool:
    """Whether an image may have 16 bits per colour, from its first 32 bytes. Certain except for TIFF."""
    if start.startswith(PNG_START):
        return start[24:25] == b"\x10"
    return start.startswith(_TIFF_STARTS)


def _parser(data: bytes) -> Callable[[bytes], Header]:
    for magic, parse in _PARSERS.items():
        if data.startswith(magic):
            return parse
    if name := _other_format(data):
        raise ImageError(f"{name} is not read, {_OTHER_FORMATS[name]}")
    raise ImageError("not a JPEG, PNG, BMP or TIFF file")


def _other_format(data: bytes) -> str:
    if data[128:132] == b"DICM":
        return "DICOM"
    if data.startswith((b"\0\0\0\x0cjP  ", b"\xff\x4f\xff\x51")):
        return "JPEG 2000"
    if data.startswith((b"II+\0", b"MM\0+")):
        return "BigTIFF"
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return "WebP"
    return "GIF" if data.startswith((b"GIF87a", b"GIF89a")) else ""


def _header(width: int, height: int, bits: int, orientation: int) -> Header:
    if orientation in _TURNED:
        width, height = height, width
    return Header(width, height, bits)


def _jpeg(data: bytes) -> Header:
    """Walk the segments to the frame header and the scan, and check that the end marker follows.

    Decoders fill a missing end with grey, without an error. The end marker cannot occur inside a scan. A thumbnail has
    its own end marker, but lies in a segment before the scan.
    """
    size, at, orientation = None, 2, 1
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
            bits, height, width = struct.unpack_from(">BHH", data, at + 4)
            if bits != 8:
                raise ImageError(f"{bits}-bit JPEG, convert it to 16-bit PNG")
            size = width, height
        (length,) = struct.unpack_from(">H", data, at + 2)
        if marker == _JPEG_SCAN:
            break
        if marker == 0xD9 or length < 2:
            raise ImageError("broken header")
        if marker == _JPEG_EXIF and data[at + 4 : at + 10] == b"Exif\0\0":
            orientation = _exif_orientation(data[at + 10 : at + 2 + length])
        at += 2 + length
    if size is None:
        raise ImageError("broken header")
    if data.rfind(b"\xff\xd9", at) < 0:  # searched from the end, where it should be
        raise ImageError("truncated file")
    return _header(*size, 8, orientation)


def _png(data: bytes) -> Header:
    width, height, bits = struct.unpack_from(">IIB", data, 16)
    at, orientation = 8, 1
    while True:
        length, kind = struct.unpack_from(">I4s", data, at)
        if kind == b"eXIf":
            orientation = _exif_orientation(data[at + 8 : at + 8 + length])
        at += 12 + length
        if at > len(data):
            raise ImageError("truncated file")
        if kind == b"IEND":
            return _header(width, height, max(bits, 8), orientation)


def _bmp(data: bytes) -> Header:
    offset, _, width, height, _, bits, compression = struct.unpack_from("<IIiiHHI", data, 10)
    row_bytes = (abs(width) * bits + 31) // 32 * 4
    if compression == 0 and len(data) < offset + row_bytes * abs(height):
        raise ImageError("truncated file")
    return Header(abs(width), abs(height), 8)


def _tiff(data: bytes) -> Header:
    tags = _tags(data)
    bits, kind = tags.get(_BITS, 1), tags.get(_SAMPLE_FORMAT, _UNSIGNED)
    if kind == _FLOAT:
        raise ImageError(f"{bits}-bit floating-point TIFF, convert it to 16 bits without sign")
    if bits > 16 or (kind == _SIGNED and bits != 16):
        raise ImageError(f"{bits}-bit{' signed' * (kind == _SIGNED)} TIFF, convert it to 16 bits without sign")
    if bits > 8 and bits != 16:
        raise ImageError(f"{bits}-bit TIFF, convert it to 16 bits")
    if bits == 16 and tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO:
        # The value of black is not known, if the scan uses a part of the range.
        raise ImageError("16-bit TIFF in which 0 is white, invert it so that 0 is black")
    header = _header(tags.get(_WIDTH, 0), tags.get(_HEIGHT, 0), max(bits, 8), tags.get(_ORIENTATION, 1))
    return header._replace(darkened=bits <= 8 and tags.get(_EXTRA) == _PLAIN_ALPHA)


def _tags(data: bytes) -> dict[int, int]:
    """First value of each tag in `_READ`, from the first folder of a TIFF or of Exif data."""
    order = "<" if data.startswith(b"II") else ">"
    (at,) = struct.unpack_from(order + "I", data, 4)
    (entries,) = struct.unpack_from(order + "H", data, at)
    tags = {}
    for entry in range(entries):
        tag, kind, count = struct.unpack_from(order + "HHI", data, at + 2 + 12 * entry)
        if tag not in _READ:
            continue
        place = at + 10 + 12 * entry
        if kind == _SHORT and count > 2:  # more than four bytes lie elsewhere
            (place,) = struct.unpack_from(order + "I", data, place)
        (tags[tag],) = struct.unpack_from(order + ("H" if kind == _SHORT else "I"), data, place)
    return tags


def _exif_orientation(exif: bytes) -> int:
    """Orientation in Exif data; 1 (upright) if there is none or the data are damaged, as decoders do."""
    try:
        return _tags(exif).get(_ORIENTATION, 1) if exif[:4] in _TIFF_STARTS else 1
    except struct.error:
        return 1


_PARSERS: dict[bytes, Callable[[bytes], Header]] = {
    JPEG_START: _jpeg,
    PNG_START: _png,
    b"BM": _bmp,
    **dict.fromkeys(_TIFF_STARTS, _tiff),
}
