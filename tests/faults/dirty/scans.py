"""Faults of the files of scans that have items."""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Callable

import cv2
import numpy as np

from tests.faults.dirty.world import HEIGHT, PIXELS, PROCESSED, WIDTH, Expect, Fault, World, faults


def _file(make: Callable[[bytes, World], bytes], reason: str) -> Fault:
    """Replace the scan's bytes by a function of them, so that it cannot be read."""

    def fault(world: World) -> Expect:
        world.scan.write_bytes(make(world.scan.read_bytes(), world))
        return world.skip_scan(f"image unreadable: {reason}" if reason else "image size disagrees with the file")

    return fault


def _converted(make: Callable[[np.ndarray], bytes], lossless: bool = True) -> Fault:
    """Store the scan in another way, under its old name."""

    def fault(world: World) -> Expect:
        image = cv2.imdecode(np.fromfile(world.scan, np.uint8), cv2.IMREAD_COLOR)
        world.scan.write_bytes(make(image))
        return PROCESSED if lossless else Expect(changed=dict.fromkeys(world.keys, PIXELS))

    return fault


def _encoded(suffix: str, *flags: int) -> Callable[[np.ndarray], bytes]:
    return lambda image: cv2.imencode(suffix, image, flags)[1].tobytes()


def _sixteen_bits(image: np.ndarray) -> bytes:
    return cv2.imencode(".png", image.astype(np.uint16) * 257)[1].tobytes()


def _with_alpha(image: np.ndarray) -> bytes:
    alpha = np.zeros(image.shape[:2], np.uint8)
    return cv2.imencode(".png", np.dstack([image, alpha]))[1].tobytes()


def _grey(image: np.ndarray) -> bytes:
    return cv2.imencode(".png", cv2.cvtColor(image, cv2.COLOR_BGR2GRAY))[1].tobytes()


def png_header(data: bytes, width: int, height: int) -> bytes:
    """A PNG with other sizes in its header."""
    header = struct.pack(">II", width, height) + data[24:29]
    return data[:16] + header + struct.pack(">I", zlib.crc32(b"IHDR" + header)) + data[33:]


def jpeg(data: bytes) -> bytes:
    """The same scan as JPEG."""
    return cv2.imencode(".jpg", cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR))[1].tobytes()


def _missing(world: World) -> Expect:
    world.scan.unlink()
    return world.skip_scan("image file missing")


def _noise(data: bytes, world: World) -> bytes:
    return world.rng.bytes(len(data))


def _at_random(data: bytes, world: World) -> bytes:
    return data[: int(world.rng.integers(40, len(data) - 12))]


def _rotated(data: bytes, world: World) -> bytes:
    image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    return cv2.imencode(".png", np.ascontiguousarray(image.transpose(1, 0, 2)))[1].tobytes()


def _sealed(world: World) -> Expect:
    """A file that cannot be opened; for root, who may read everything, it is missing."""
    world.scan.chmod(0)
    if os.geteuid():
        return world.skip_scan("image unreadable: cannot be read")
    return _missing(world)


_UNKNOWN = "not a JPEG, PNG, BMP or TIFF file"
FAULTS = faults(
    {
        "scan missing": _missing,
        "scan not readable": _sealed,
        "scan empty": _file(lambda data, world: b"", "empty file"),
        "scan cut short": _file(_at_random, "truncated file"),
        "JPEG cut short": _file(lambda data, world: jpeg(data)[:-40], "truncated file"),
        "JPEG of its first bytes": _file(lambda data, world: jpeg(data)[:20], "truncated file"),
        "scan of noise": _file(_noise, _UNKNOWN),
        "scan of zeros": _file(lambda data, world: bytes(len(data)), _UNKNOWN),
        "scan is text": _file(lambda data, world: b"<html>404 Not Found</html>", _UNKNOWN),
        "scan is a GIF": _file(lambda data, world: b"GIF89a" + data, "GIF is not read, convert it to PNG"),
        "scan is a Git LFS pointer": _file(
            lambda data, world: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", _UNKNOWN
        ),
        "scan of a bomb's size": _file(lambda data, world: png_header(data, 60_000, 60_000), "too large"),
        "scan without width": _file(lambda data, world: png_header(data, 0, HEIGHT), "broken header"),
        "scan turned": _file(_rotated, ""),
        "scan of another size": _file(
            lambda data, world: cv2.imencode(".png", np.zeros((HEIGHT, WIDTH + 1, 3), np.uint8))[1].tobytes(), ""
        ),
        "scan is a BMP": _converted(_encoded(".bmp")),
        "scan is a TIFF": _converted(_encoded(".tiff")),
        "scan has alpha": _converted(_with_alpha),
        "scan of 16 bits among 8": _converted(_sixteen_bits),
        "scan is grey": _converted(_grey, lossless=False),
        "scan is a JPEG": _converted(_encoded(".jpg"), lossless=False),
        "scan is a progressive JPEG": _converted(_encoded(".jpg", cv2.IMWRITE_JPEG_PROGRESSIVE, 1), lossless=False),
        "JPEG with more behind it": _converted(lambda image: _encoded(".jpg")(image) + b"\0" * 999, lossless=False),
        "PNG with more behind it": _converted(lambda image: _encoded(".png")(image) + b"trailer"),
    }
)
