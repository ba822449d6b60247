import os
import struct
import tracemalloc
import zlib
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

from segloc.common import images
from segloc.common.images import (
    ImageError,
    decode,
    decode_rgba,
    dimensions,
    encode_jpeg,
    encode_png,
    encode_rgba,
    read_image,
)

RGB = np.random.default_rng(0).integers(0, 256, (24, 31, 3), np.uint8)


def encoded(suffix: str, image: np.ndarray = RGB) -> bytes:
    return cv2.imencode(suffix, image)[1].tobytes()


def png_header(width: int, height: int) -> bytes:
    body = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    end = b"IEND" + struct.pack(">I", zlib.crc32(b"IEND"))
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + body + struct.pack(">I", zlib.crc32(body)) + b"\0\0\0\0" + end


def jpeg_header(width: int, height: int) -> bytes:
    data = bytearray(encoded(".jpg"))
    at = data.index(b"\xff\xc0")
    struct.pack_into(">HH", data, at + 5, height, width)
    return bytes(data)


BROKEN: dict[str, tuple[Callable[[], bytes], str]] = {
    "empty": (lambda: b"", "empty file"),
    "text": (lambda: b"not an image at all", "not a JPEG"),
    "html page saved as jpg": (lambda: b"<html>404</html>", "not a JPEG"),
    "jpeg cut in half": (lambda: encoded(".jpg")[: len(encoded(".jpg")) // 2], "truncated"),
    "jpeg without its last two bytes": (lambda: encoded(".jpg")[:-2], "truncated"),
    "jpeg of three bytes": (lambda: encoded(".jpg")[:3], "truncated"),
    "png cut in half": (lambda: encoded(".png")[: len(encoded(".png")) // 2], "truncated"),
    "png without its end": (lambda: encoded(".png")[:-12], "truncated"),
    "bmp cut in half": (lambda: encoded(".bmp")[:900], "truncated"),
    "tiff cut in half": (lambda: encoded(".tif")[:60], "truncated|decoded"),
    "png bomb": (lambda: png_header(60_000, 60_000), "too large: 60000x60000"),
    "jpeg bomb": (lambda: jpeg_header(65_000, 65_000), "too large: 65000x65000"),
    "png of nothing": (lambda: png_header(0, 5), "broken header"),
    "png without pixels": (lambda: png_header(5, 5), "cannot be decoded"),
    "jpeg of noise": (lambda: b"\xff\xd8\xff" + bytes(range(200)), "broken header|truncated"),
}


@pytest.mark.parametrize("name", BROKEN)
@pytest.mark.parametrize("mode", ["rgb", "grey"])
def test_broken_files_are_refused_with_a_reason(name: str, mode: str) -> None:
    make, reason = BROKEN[name]
    with pytest.raises(ImageError, match=reason):
        decode(make(), mode)


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".bmp", ".tif"])
def test_header_size_is_the_decoded_size(suffix: str) -> None:
    assert dimensions(encoded(suffix)) == (31, 24)
    assert decode(encoded(suffix)).shape == (24, 31, 3)


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".tif"])
def test_lossless_formats_come_out_as_rgb(suffix: str) -> None:
    assert (decode(encoded(suffix, RGB[..., ::-1])) == RGB).all()


@pytest.mark.parametrize("quality", [30, 75, 95])
def test_grey_equals_opencvs(quality: int) -> None:
    data = encode_jpeg(RGB, quality)
    assert (decode(data, "grey") == cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_GRAYSCALE)).all()


def test_sixteen_bits_keep_their_high_byte() -> None:
    deep = RGB.astype(np.uint16) * 256 + 77
    assert (decode(encoded(".png", deep[..., ::-1])) == RGB).all()
    assert (decode(encoded(".png", deep[..., 0])) == RGB[..., :1]).all()


def test_grey_and_rgba_become_rgb() -> None:
    assert (decode(encoded(".png", RGB[..., 0])) == RGB[..., :1]).all()
    assert (decode(encode_png(np.dstack([RGB, RGB[..., 0]]))) == RGB).all()


def test_progressive_jpeg_with_trailing_bytes_is_complete() -> None:
    data = cv2.imencode(".jpg", RGB, [cv2.IMWRITE_JPEG_PROGRESSIVE, 1])[1].tobytes()
    assert decode(data + b"\0\0camera notes").shape == (24, 31, 3)


def test_a_thumbnails_end_is_not_the_images() -> None:
    whole, thumbnail = encoded(".jpg"), encoded(".jpg", RGB[:8, :8])
    segment = b"\xff\xe1" + struct.pack(">H", len(thumbnail) + 2) + thumbnail
    with_thumbnail = whole[:2] + segment + whole[2:]
    assert dimensions(with_thumbnail) == (31, 24)
    with pytest.raises(ImageError, match="truncated"):
        dimensions(with_thumbnail[:-2])


def test_cmyk_jpeg_becomes_rgb() -> None:
    pil = pytest.importorskip("PIL.Image")
    import io

    buffer = io.BytesIO()
    pil.fromarray(np.full((16, 16, 3), 200, np.uint8)).convert("CMYK").save(buffer, "JPEG", quality=95)
    image = decode(buffer.getvalue())
    assert image.shape == (16, 16, 3)
    assert abs(image.astype(int) - 200).max() <= 6


def test_missing_file_and_folder(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="no such file"):
        read_image(tmp_path / "none.png")
    with pytest.raises(ImageError, match="cannot be read"):
        read_image(tmp_path)


def test_rgba_png_keeps_colours_under_alpha_zero() -> None:
    rgba = np.dstack([RGB, np.where(RGB[..., 0] > 99, 255, 0).astype(np.uint8)])
    assert (decode_rgba(encode_rgba(rgba)) == rgba).all()


@pytest.mark.parametrize("encode", [lambda image: encode_jpeg(image, 95), encode_png])
def test_a_reduced_scan_has_its_sides_rounded_up_and_means_for_pixels(encode) -> None:
    columns = np.arange(401) % 5 < 2  # stripes that would change if pixels were skipped
    scan = np.broadcast_to(np.where(columns, 0, 255).astype(np.uint8)[None, :, None], (313, 401, 3))
    for reduction in (2, 4, 8):
        small = decode(encode(np.ascontiguousarray(scan)), reduction=reduction)
        assert small.shape == (-(-313 // reduction), -(-401 // reduction), 3)
        assert abs(small.mean() - scan.mean()) < 5
    assert small.std() < 40


def png_that_claims(width, height):
    """A complete PNG of 600 bytes whose header claims another size than its pixels have."""
    data = bytearray(cv2.imencode(".png", np.zeros((9, 9, 3), np.uint8))[1].tobytes())
    data[16:24] = struct.pack(">II", width, height)
    data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    return bytes(data)


@pytest.mark.parametrize("reader", [images.decode, images.decode_rgba])
def test_a_size_in_the_header_is_checked_before_pixels_take_memory(reader):
    tracemalloc.start()
    with pytest.raises(images.ImageError):
        reader(png_that_claims(40_000, 50_000))
    assert tracemalloc.get_traced_memory()[1] < 1e6
    tracemalloc.stop()


def test_opencv_itself_keeps_to_the_limit():
    assert int(os.environ["OPENCV_IO_MAX_IMAGE_PIXELS"]) == images.MAX_PIXELS
    with pytest.raises(images.ImageError, match="cannot be decoded"):
        images.decode_unchecked(np.frombuffer(png_that_claims(40_000, 50_000), np.uint8))
