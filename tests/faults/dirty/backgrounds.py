"""Faults of benign scans: ``pipeline.regions`` gives each a row with the right status."""

from __future__ import annotations

import functools
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import cv2
import numpy as np
import pyarrow.parquet as pq

from pipeline import regions
from tests.faults import common
from tests.faults.dirty import scans
from tests.faults.dirty.world import HEIGHT, SCANS, WIDTH, Problem, Row, ended, picture

# Spoils a scan; returns the path that has a row, relative to the root, and (status, start of the message).
Spoil = Callable[[Path, np.random.Generator], "tuple[str, str, str]"]


def _bytes(make: Callable[[bytes], bytes], status: str, message: str) -> Spoil:
    def spoil(scan: Path, rng: np.random.Generator) -> tuple[str, str, str]:
        scan.write_bytes(make(scan.read_bytes()))
        return scan.name, status, message

    return spoil


def _replaced(make: Callable[[Path], object], message: str = "") -> Spoil:
    def spoil(scan: Path, rng: np.random.Generator) -> tuple[str, str, str]:
        scan.unlink()
        make(scan)
        return scan.name, "unreadable", message

    return spoil


def _flat(value: int, width: int = WIDTH, height: int = HEIGHT) -> bytes:
    return cv2.imencode(".png", np.full((height, width, 3), value, np.uint8))[1].tobytes()


def _small_bag() -> bytes:
    scan = np.full((HEIGHT, WIDTH, 3), 255, np.uint8)
    scan[30:50, 30:50] = 90
    return cv2.imencode(".png", scan)[1].tobytes()


def _no_utf8(scan: Path, rng: np.random.Generator) -> tuple[str, str, str]:
    os.rename(scan, os.fsencode(scan.parent) + b"/caf\xe9.png")
    return "caf", "unreadable", "file name is not UTF-8"


def _folder_no_utf8(scan: Path, rng: np.random.Generator) -> tuple[str, str, str]:
    folder = os.fsencode(scan.parent) + b"/d\xe9p\xf4t"
    os.mkdir(folder)
    os.rename(scan, folder + b"/x.png")
    return "d", "unreadable", ""


def _renamed(name: str) -> Spoil:
    def spoil(scan: Path, rng: np.random.Generator) -> tuple[str, str, str]:
        target = scan.parent / name
        target.parent.mkdir(parents=True, exist_ok=True)
        scan.rename(target)
        return name, "ok", ""

    return spoil


def _cached(scan: Path, rng: np.random.Generator) -> tuple[str, str, str]:
    target = scan.parent.parent / "cache" / "0a"
    target.parent.mkdir()
    shutil.move(scan, target)
    scan.symlink_to(target)
    return scan.name, "ok", ""


def _litter(scan: Path, rng: np.random.Generator) -> tuple[str, str, str]:
    (scan.parent / f"._{scan.name}").write_bytes(b"\0")
    (scan.parent / ".cache").mkdir()
    shutil.copy(scan, scan.parent / ".cache" / "c.png")
    (scan.parent / "list.txt").write_text(scan.name)
    (scan.parent / "loop").symlink_to("..")
    return scan.name, "ok", ""


_UNKNOWN = "not a JPEG, PNG, BMP or TIFF file"
SPOILED: dict[str, Spoil] = {
    "empty": _bytes(lambda data: b"", "unreadable", "empty file"),
    "cut short": _bytes(lambda data: data[: len(data) // 2], "unreadable", "truncated file"),
    "JPEG cut short": _bytes(lambda data: scans.jpeg(data)[:-30], "unreadable", "truncated file"),
    "text": _bytes(lambda data: b"not found", "unreadable", _UNKNOWN),
    "WebP": _bytes(lambda data: b"RIFF\0\0\0\0WEBP" + data, "unreadable", "WebP is not read"),
    "of a bomb's size": _bytes(lambda data: scans.png_header(data, 65_000, 65_000), "unreadable", "too large"),
    "without height": _bytes(lambda data: scans.png_header(data, WIDTH, 0), "unreadable", "broken header"),
    "broken inside": _bytes(lambda data: data[:60] + bytes(400) + data[460:], "unreadable", ""),
    "tiny": _bytes(lambda data: _flat(90, 20, 20), "too_small", "scan of 20x20 pixels"),
    "one pixel high": _bytes(lambda data: _flat(90, 500, 1), "too_small", "scan of 500x1 pixels"),
    "belt only": _bytes(lambda data: _flat(255), "empty", "nothing but belt"),
    "small bag": _bytes(lambda data: _small_bag(), "too_small", "region of"),
    "JPEG": _bytes(scans.jpeg, "ok", ""),
    "dangling link": _replaced(lambda scan: scan.symlink_to("nowhere")),
    "link to itself": _replaced(lambda scan: scan.symlink_to(scan.name)),
    "name is no UTF-8": _no_utf8,
    "folder is no UTF-8": _folder_no_utf8,
    "name with a line break": _renamed("a\nb.png"),
    "name with \\": _renamed("a\\b.png"),
    "name with # and %": _renamed("a#b%41[{c}].png"),
    "in a folder": _renamed("deep/er/x.png"),
    "suffix in capitals": _renamed("X.PNG"),
    "behind a link": _cached,
    "litter beside it": _litter,
}


def _measure(root: Path) -> tuple[object, dict[str, Row]]:
    out = root / "regions.parquet"
    options = ["--backgrounds", root / "scans", "--out", out, "--workers", 1, "--max-skipped", 1]
    done = ended(regions.main, *options)
    rows = pq.read_table(out).to_pylist() if out.is_file() else []
    return done, {row["image"]: row for row in rows}


def _write(root: Path) -> None:
    (root / "scans").mkdir(parents=True)
    for number in range(SCANS):
        (root / "scans" / f"b{number}.png").write_bytes(cv2.imencode(".png", picture(number))[1].tobytes())


@functools.cache
def _clean() -> dict[str, Row]:
    root = common.fresh("clean-backgrounds")
    _write(root)
    rows = _measure(root)[1]
    assert len(rows) == SCANS
    assert {row["status"] for row in rows.values()} == {"ok"}
    return rows


def _problem(spoil: Spoil, seed: tuple[int, ...]) -> str | None:
    root, rng = common.fresh("backgrounds"), np.random.default_rng(seed)
    _write(root)
    victim = f"b{rng.integers(SCANS)}.png"
    name, status, message = spoil(root / "scans" / victim, rng)
    done, rows = _measure(root)
    if done.traceback or done.code:  # type: ignore[attr-defined]
        return f"{done}"[-300:]
    clean = {key: row for key, row in _clean().items() if key != victim}
    if different := [key for key, row in clean.items() if rows.get(key) != row]:
        return f"rows of other scans differ: {different[:3]}"
    found = [row for key, row in rows.items() if key not in clean]
    if len(found) != 1 or not found[0]["image"].startswith(name):
        return f"rows {[row['image'] for row in found]} instead of one for {name!r}"
    if found[0]["status"] != status or not found[0]["message"].startswith(message):
        return f"status {found[0]['status']!r} ({found[0]['message']}) instead of {status!r} ({message})"
    if status == "unreadable" and not found[0]["message"]:
        return "no reason"
    return None


FAULTS: Mapping[str, Problem] = {name: functools.partial(_problem, spoil) for name, spoil in SPOILED.items()}
