"""Every kind of image file gives its pixels or a reason; none is misread in silence."""

import io
import struct
import zlib

import cv2
import numpy as np
import pytest

from segloc.common.images import ImageError, decode, dimensions

Image = pytest.importorskip("PIL.Image")

GREY = (np.arange(40 * 60).reshape(40, 60) % 251).astype(np.uint8)
RGB = np.dstack([GREY, 255 - GREY, GREY // 2])
THREE_GREYS = np.dstack([GREY] * 3)
ALPHA = np.where(GREY > 100, 255, 0).astype(np.uint8)
DEEP = GREY.astype(np.uint16) * 257


def pil(image, kind, **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def of(pixels):
    return Image.fromarray(pixels)


def tiff(pixels, bits, order="<", **tags):
    """Write a TIFF of one strip. Pixels have the byte order of the file; `tags` override or add numbers by name."""
    names = {"photometric": 262, "orientation": 274, "samples": 277, "extra": 338, "sample_format": 339}
    height, width = pixels.shape[:2]
    data = pixels.astype(pixels.dtype.newbyteorder(order)).tobytes()
    samples = tags.get("samples", 1)
    entries = {256: [width], 257: [height], 258: [bits] * samples, 259: [1], 262: [1], 273: [8], 277: [1]}
    entries |= {278: [height], 279: [len(data)]} | {names[name]: [value] for name, value in tags.items()}
    start = 8 + len(data)
    elsewhere, body = b"", b""
    for tag, values in sorted(entries.items()):
        letter, kind = ("I", 4) if tag in (256, 257, 273, 278, 279) else ("H", 3)
        packed = struct.pack(f"{order}{len(values)}{letter}", *values)
        if len(packed) > 4:
            place = struct.pack(order + "I", start + 2 + 12 * len(entries) + 4 + len(elsewhere))
            packed, elsewhere = place, elsewhere + packed
        body += struct.pack(order + "HHI", tag, kind, len(values)) + packed.ljust(4, b"\0")
    magic = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "I", 8 + len(data))
    return magic + data + struct.pack(order + "H", len(entries)) + body + bytes(4) + elsewhere


def with_chunk(png, kind, content):
    chunk = struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
    return png[:33] + chunk + png[33:]


def pages(*images):
    return pil(of(images[0]), "TIFF", save_all=True, append_images=[of(image) for image in images[1:]])


PALETTE = of(RGB).quantize(64)
IN_PALETTE = np.array(PALETTE.convert("RGB"))
CMYK = of(RGB).convert("CMYK")
BITS = np.dstack([np.where(GREY > 128, 255, 0).astype(np.uint8)] * 3)

READ = {
    "grey PNG": (pil(of(GREY), "PNG"), THREE_GREYS),
    "palette PNG": (pil(PALETTE, "PNG"), IN_PALETTE),
    "palette PNG with a transparent entry": (pil(PALETTE, "PNG", transparency=3), IN_PALETTE),
    "grey PNG with a transparent level": (pil(of(GREY), "PNG", transparency=100), THREE_GREYS),
    "1-bit PNG": (pil(of(GREY > 128), "PNG"), BITS),
    "grey PNG with alpha": (pil(Image.merge("LA", (of(GREY), of(ALPHA))), "PNG"), THREE_GREYS),
    "RGB PNG with alpha": (pil(of(np.dstack([RGB, ALPHA])), "PNG"), RGB),
    "PNG with gamma 1": (with_chunk(pil(of(GREY), "PNG"), b"gAMA", struct.pack(">I", 100_000)), THREE_GREYS),
    "PNG with gamma 1/2.2": (with_chunk(pil(of(GREY), "PNG"), b"gAMA", struct.pack(">I", 45_455)), THREE_GREYS),
    "CMYK JPEG": (pil(CMYK, "JPEG", quality=100), np.array(CMYK.convert("RGB"))),
    "palette BMP": (pil(PALETTE, "BMP"), IN_PALETTE),
    "1-bit BMP": (pil(of(GREY > 128), "BMP"), BITS),
    "palette TIFF": (pil(PALETTE, "TIFF"), IN_PALETTE),
    "LZW TIFF": (pil(of(RGB), "TIFF", compression="tiff_lzw"), RGB),
    "TIFF of two pages": (pages(RGB, THREE_GREYS), RGB),
    "TIFF, 0 is white": (tiff(GREY, 8, photometric=0), 255 - THREE_GREYS),
    "RGB TIFF with opaque alpha": (
        tiff(np.dstack([RGB, ALPHA * 0 + 255]), 8, photometric=2, samples=4, extra=2),
        RGB,
    ),
    "16-bit TIFF": (tiff(DEEP, 16), THREE_GREYS),
    "16-bit TIFF, big-endian": (tiff(DEEP, 16, ">"), THREE_GREYS),
    "16-bit TIFF with a sign, none negative": (tiff(DEEP // 2, 16, sample_format=2), THREE_GREYS),
    "16-bit RGB TIFF": (tiff(RGB.astype(np.uint16) * 257, 16, photometric=2, samples=3), RGB),
    "16-bit RGB TIFF with alpha": (
        tiff(np.dstack([RGB, ALPHA]).astype(np.uint16) * 257, 16, photometric=2, samples=4, extra=2),
        RGB,
    ),
    "16-bit RGB PNG": (cv2.imencode(".png", RGB[..., ::-1].astype(np.uint16) * 257)[1].tobytes(), RGB),
}


@pytest.mark.parametrize("kind", READ)
def test_it_is_read_as_rgb(kind):
    data, expected = READ[kind]
    halved = kind == "16-bit TIFF with a sign, none negative"
    image = decode(data, white=(32_125 if halved else 65_535) if kind.startswith("16") else None)
    scale = 255 / 250 if halved else 1
    assert abs(image - np.minimum(expected * scale, 255)).max() <= (2 if "JPEG" in kind else 1)
    assert dimensions(data) == (60, 40)
    grey = decode(data, "grey", white=(32_125 if halved else 65_535) if kind.startswith("16") else None)
    assert abs(grey - np.minimum(expected * scale, 255) @ (0.299, 0.587, 0.114)).max() <= 3


REFUSED = {
    "12-bit JPEG": (
        pil(of(RGB), "JPEG").replace(b"\xff\xc0\0\x11\x08", b"\xff\xc0\0\x11\x0c"),
        "12-bit JPEG, convert it to 16-bit PNG",
    ),
    "floating-point TIFF": (tiff(GREY / np.float32(255), 32, sample_format=3), "32-bit floating-point TIFF"),
    "half-precision TIFF": (tiff((GREY / 255).astype(np.float16), 16, sample_format=3), "16-bit floating-point TIFF"),
    "32-bit TIFF": (tiff(GREY.astype(np.uint32), 32), "32-bit TIFF, convert it to 16 bits"),
    "8-bit TIFF with a sign": (tiff(GREY.astype(np.int8), 8, sample_format=2), "8-bit signed TIFF"),
    "negative TIFF": (tiff(DEEP.astype(np.int16) - 9, 16, sample_format=2), "negative values in a signed 16-bit TIFF"),
    "16-bit TIFF, 0 is white": (tiff(DEEP, 16, photometric=0), "16-bit TIFF in which 0 is white, invert it"),
    "transparent TIFF": (
        tiff(np.dstack([RGB, ALPHA]), 8, photometric=2, samples=4, extra=2),
        "TIFF with transparent pixels, whose colours would be lost",
    ),
    "DICOM": (bytes(128) + b"DICM" + bytes(99), "DICOM is not read, convert it to 16-bit PNG"),
    "JPEG 2000": (pil(of(RGB), "JPEG2000"), "JPEG 2000 is not read"),
    "WebP": (b"RIFF\x24\0\0\0WEBPVP8 " + bytes(40), "WebP is not read"),
    "GIF": (pil(PALETTE, "GIF"), "GIF is not read"),
    "BigTIFF": (b"II+\0\x08\0\0\0" + bytes(40), "BigTIFF is not read"),
}


@pytest.mark.parametrize("kind", REFUSED)
@pytest.mark.parametrize("mode", ["rgb", "grey"])
def test_it_is_refused_with_a_reason(kind, mode):
    data, reason = REFUSED[kind]
    with pytest.raises(ImageError) as refused:
        decode(data, mode, white=65_535)
    assert str(refused.value).startswith(reason)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "16-bit TIFF"])
def test_an_orientation_tag_turns_the_image_and_its_size(kind, orientation):
    exif = Image.Exif()
    exif[0x112] = orientation
    if kind == "16-bit TIFF":
        data = tiff(DEEP, 16, orientation=orientation)
    else:
        data = pil(of(GREY), kind, exif=exif, **({"quality": 100} if kind == "JPEG" else {}))
    turns = {2: [np.fliplr], 3: [np.fliplr, np.flipud], 4: [np.flipud], 5: [np.transpose]}
    turns |= {6: [np.transpose, np.fliplr], 7: [np.transpose, np.fliplr, np.flipud], 8: [np.transpose, np.flipud]}
    expected = GREY
    for turn in turns.get(orientation, []):
        expected = turn(expected)
    image = decode(data, "grey")
    assert dimensions(data) == (expected.shape[1], expected.shape[0])
    assert image.shape == expected.shape
    assert abs(image.astype(int) - expected).max() <= (3 if kind == "JPEG" else 0)
