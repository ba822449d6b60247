"""The look at every training file: it finds what reading the whole file would find."""

import dataclasses

import cv2
import numpy as np
import pytest

from segloc.common.errors import InputError
from segloc.common.images import encode_jpeg, encode_png
from segloc.detection import scan_headers
from segloc.detection.data import read_scan, reason_of
from segloc.detection.scan_headers import unreadable_scans
from segloc.detection.splits import Scan

NOISE = np.random.default_rng(0).integers(0, 256, (260, 400, 3)).astype(np.uint8)  # its files exceed the ends read
FLAT = np.full((260, 400, 3), 90, np.uint8)


def exif(data, orientation):
    """Add an EXIF segment with an orientation to a JPEG."""
    tiff = b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01" + bytes([0, orientation]) + b"\0\0\0\0\0\0"
    body = b"Exif\0\0" + tiff
    return data[:2] + b"\xff\xe1" + (len(body) + 2).to_bytes(2, "big") + body + data[2:]


def long_header(data):
    """Add 130 kB of comments to a JPEG."""
    return data[:2] + 2 * (b"\xff\xfe\xff\xff" + bytes(65_533)) + data[2:]


def bmp(image):
    return cv2.imencode(".bmp", image)[1].tobytes()


FILES = {
    "good.png": (encode_png(NOISE), ""),
    "small.png": (encode_png(FLAT), ""),
    "good.jpg": (encode_jpeg(NOISE, 95), ""),
    "good.bmp": (bmp(NOISE), ""),
    "good.tif": (cv2.imencode(".tif", NOISE)[1].tobytes(), ""),
    "trailing.png": (encode_png(NOISE) + b"padding of a camera", ""),
    "trailing.jpg": (encode_jpeg(NOISE, 95) + bytes(9000), ""),
    "long header.jpg": (long_header(encode_jpeg(NOISE, 95)), ""),
    "cut.png": (encode_png(NOISE)[:-100], "truncated file"),
    "half.png": (encode_png(NOISE)[:100_000], "truncated file"),
    "cut.jpg": (encode_jpeg(NOISE, 95)[:-100], "truncated file"),
    "cut.bmp": (bmp(NOISE)[:-100], "truncated file"),
    "empty.png": (b"", "empty file"),
    "text.png": (b"hello" * 20_000, "not a JPEG, PNG, BMP or TIFF file"),
    "other size.png": (encode_png(NOISE[:200]), "image size disagrees with the file"),
    "other size.jpg": (encode_jpeg(NOISE[:, :200], 95), "image size disagrees with the file"),
    "turned.jpg": (exif(encode_jpeg(NOISE.transpose(1, 0, 2), 95), 6), ""),
    "missing.png": (None, "no such file"),
    "dangling.png": (None, "no such file"),
}  # fmt: skip


@pytest.fixture
def scans(tmp_path):
    for name, (data, _) in FILES.items():
        if data is not None:
            (tmp_path / name).write_bytes(data)
    (tmp_path / "dangling.png").symlink_to(tmp_path / "nowhere.png")
    return [Scan(number, tmp_path / name, 400, 260, ()) for number, name in enumerate(FILES)]


@pytest.mark.parametrize("threads", [1, 4])
def test_reasons_are_those_of_reading_the_whole_file(scans, threads):
    found = unreadable_scans(scans, threads)
    assert {scans[position].path.name: reason for position, reason in found.items()} == {
        name: reason for name, (_, reason) in FILES.items() if reason
    }
    for position, scan in enumerate(scans):
        try:
            read_scan(scan)
            reason = ""
        except InputError as error:
            reason = reason_of(scan, error)
        assert found.get(position, "") == reason


def test_huge_files_are_refused_without_decoding(scans):
    header = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\1\0\0\0\1\0\0\x08\2\0\0\0" + bytes(8) + b"IEND" + bytes(4)
    scans[0].path.write_bytes(header)
    huge = dataclasses.replace(scans[0], width=65_536, height=65_536)
    assert unreadable_scans([huge], 1) == {0: "too large"}


def test_only_the_ends_of_large_files_are_read(scans, monkeypatch):
    by_name = {scan.path.name: scan for scan in scans}
    monkeypatch.setattr(scan_headers, "read_file", lambda path: pytest.fail(f"{path} is read whole"))
    assert unreadable_scans([by_name["good.png"], by_name["good.jpg"]], 1) == {}
