"""Reading scans. Files that would make a decoder guess, crash or fill the memory are refused with a reason."""

from __future__ import annotations

import errno
import functools
import math
import os
import stat
from pathlib import Path
from typing import Literal

import cv2
import numpy as np
import numpy.typing as npt

from segloc.common.image_headers import JPEG_START, Header, ImageError, read_header

Image = npt.NDArray[np.uint8]

# The size at which Pillow refuses to decode (twice its warning level). No scanner reaches it; a few kB of PNG can.
MAX_PIXELS = 178_956_970

# OpenCV's flags of a reduced size include a colour mode; in the grey flags that bit is zero.
_REDUCED = {
    1: 0,
    2: cv2.IMREAD_REDUCED_GRAYSCALE_2,
    4: cv2.IMREAD_REDUCED_GRAYSCALE_4,
    8: cv2.IMREAD_REDUCED_GRAYSCALE_8,
}


BROKEN_LINK = "link without a target"  # reason of a link to a file that is missing, or to itself

# A 16-bit scan is refused as one of another scale: without a white level, if it uses less than this share of the range;
# with one, if its own level is outside these multiples of it. Scans of 10, 12, 14 and 16 bits differ by factors of 4.
LEAST_USED, DARKEST, BRIGHTEST = 0.5, 1 / 12, 2.0
FULL = 65_535
_CHECKED_PIXELS = 1 << 15  # of each 16-bit scan, to find its own level


def read_image(path: str | os.PathLike[str], mode: Literal["rgb", "grey"] = "rgb", white: int | None = None) -> Image:
    """Read a scan; see `decode`.

    Raises:
        ImageError: the file is missing, cannot be read, or is not a usable image.
    """
    return decode(read_file(path), mode, white=white)


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


def decode(data: bytes, mode: Literal["rgb", "grey"] = "rgb", reduction: int = 1, white: int | None = None) -> Image:
    """Decode a JPEG, PNG, BMP or TIFF scan.

    OpenCV drops alpha, converts grey and CMYK to RGB, and turns the image as its orientation tag says. Grey images are
    those of `cv2.IMREAD_GRAYSCALE`: for a JPEG its luma plane, which differs from a conversion of the decoded colours
    by up to 15 levels. Of a TIFF with several pages the first is read.

    Args:
        data: the file's content.
        mode: ``rgb`` or ``grey``.
        reduction: 1, 2, 4 or 8: factor by which height and width are reduced, rounded up, with each pixel a mean. For a
            JPEG, the decoder's transform does this at almost no cost.
        white: white level of the data set (`segloc.common.white_level`). Values v of 16-bit scans become
            255 * min(v / white, 1). None keeps their high byte. Scans of 8 bits are the same with any level.

    Returns:
        uint8 array, [height, width, 3] in RGB order or [height, width].

    Raises:
        ImageError: empty, of another format, truncated, too large, broken, or of 16 bits on another scale than `white`.
    """
    header = _bounded(data)
    colours = cv2.IMREAD_GRAYSCALE if mode == "grey" else cv2.IMREAD_COLOR_RGB
    if header.bits == 16:
        image = to_8_bits(decode_16_bits(data, mode), white)
    else:
        in_decoder = data.startswith(JPEG_START)  # for other formats OpenCV would skip pixels
        flags = _REDUCED[reduction if in_decoder else 1] | colours
        image = decode_unchecked(np.frombuffer(data, np.uint8), flags)
        if header.darkened and _imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)[..., -1].min() < 255:
            raise ImageError("TIFF with transparent pixels, whose colours would be lost, remove its alpha channel")
        reduction = 1 if in_decoder else reduction
    if reduction > 1:
        size = -(-image.shape[1] // reduction), -(-image.shape[0] // reduction)
        image = np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), np.uint8)
    return image


def decode_16_bits(data: bytes, mode: Literal["rgb", "grey"] = "rgb") -> npt.NDArray[np.uint16]:
    """Decode a file whose header has 16 bits: uint16 [h, w, 3] in RGB order or [h, w].

    Raises:
        ImageError: it cannot be decoded, or has negative values.
    """
    # OpenCV 5.0 swaps colours of a 16-bit TIFF wrongly when asked for RGB.
    colours = cv2.IMREAD_GRAYSCALE if mode == "grey" else cv2.IMREAD_COLOR_BGR
    image = _imdecode(np.frombuffer(data, np.uint8), colours | cv2.IMREAD_ANYDEPTH)
    if image.dtype == np.int16 and image.min() < 0:
        raise ImageError("negative values in a signed 16-bit TIFF, convert it to 16 bits without sign")
    image = image.astype(np.uint16, copy=False)
    return image if mode == "grey" else np.asarray(cv2.cvtColor(image, cv2.COLOR_BGR2RGB), np.uint16)


def level_of(values: npt.NDArray[np.int64]) -> int:
    """Level that 99.9 % of the pixels do not exceed, from the count of each value (int64 [65536])."""
    counts = np.cumsum(values)
    # In whole numbers: 0.999 has no exact floating-point value.
    return int(np.searchsorted(1000 * counts, 999 * counts[-1]))


def histogram(image: npt.NDArray[np.uint16], pixels: int) -> npt.NDArray[np.int64]:
    """Count each value of a 16-bit image, over about `pixels` pixels on a regular grid: int64 [65536]."""
    step = max(1, math.isqrt(image.shape[0] * image.shape[1] // pixels))
    return np.bincount(image[::step, ::step].ravel(), minlength=FULL + 1)


def to_8_bits(image: npt.NDArray[np.uint16], white: int | None) -> Image:
    """Map 16-bit values to 8 bits by the white level of their data set; see `decode`.

    Raises:
        ImageError: the image is on another scale, so that it would become black or white.
    """
    level = level_of(histogram(image, _CHECKED_PIXELS))
    if white is None:
        if level < LEAST_USED * FULL:
            raise ImageError(f"16 bits without a white level: used up to {level}; give --white or data.white")
        return (image >> 8).astype(np.uint8)
    if not DARKEST * white <= level <= BRIGHTEST * white:
        raise ImageError(f"16 bits on another scale: used up to {level}, but the white level is {white}")
    return np.take(_to_white(white), image)


@functools.lru_cache(maxsize=4)
def _to_white(white: int) -> Image:
    """Table of 255 * min(v / white, 1), rounded, for each 16-bit value v."""
    values = np.minimum(np.arange(FULL + 1), white)
    return ((2 * 255 * values + white) // (2 * white)).astype(np.uint8)


def decode_unchecked(data: npt.NDArray[np.uint8], flags: int = cv2.IMREAD_COLOR_RGB) -> Image:
    """Decode a file [bytes] without the checks of `decode`: missing pixels of a truncated JPEG become grey.

    The flags are OpenCV's flags of the colour mode and reduction.

    Raises:
        ImageError: it cannot be decoded.
    """
    return np.asarray(_imdecode(data, flags), np.uint8)


def _imdecode(data: npt.NDArray[np.uint8], flags: int) -> np.ndarray:
    try:
        image = cv2.imdecode(data, flags)
    except cv2.error as error:  # an empty file, or more pixels than OpenCV accepts
        raise ImageError("cannot be decoded") from error
    if image is None or image.size == 0:
        raise ImageError("cannot be decoded")
    return image


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
        _bounded(png)
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


def _bounded(data: bytes) -> Header:
    """Read the header, and refuse a size whose pixels would fill the memory."""
    header = read_header(data)
    if header.width * header.height > MAX_PIXELS:
        raise ImageError(f"too large: {header.width}x{header.height} pixels")
    return header


def dimensions(data: bytes) -> tuple[int, int]:
    """Read (width, height) in pixels from the header; see `read_header`.

    Raises:
        ImageError: see `read_header`.
    """
    header = read_header(data)
    return header.width, header.height
