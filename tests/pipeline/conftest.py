"""Tiny synthetic data sets in the layouts of PIDray and SIXray."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from pipeline import regions, segments, synthesize
from segloc.common.images import encode_jpeg, encode_png

ROOT = Path(__file__).resolve().parents[2]
CLASSES = ("Baton", "Pliers", "Gun", "Knife")


def draw_bag(rng: np.random.Generator, width: int, height: int, belt: int = 255) -> np.ndarray:
    """Belt with one speckled bag in the middle; RGB [height, width, 3]."""
    scan = np.full((height, width, 3), belt, np.uint8)
    y, x = height // 5, width // 5
    tone = np.array([230, 190, 130]) * belt // 255
    scan[y : height - y, x : width - x] = tone - rng.integers(0, 60, (height - 2 * y, width - 2 * x, 1))
    return scan


def triangle(x: int, y: int, side: int) -> list[float]:
    return [x, y, x + side, y, x, y + side]


@pytest.fixture(scope="session")
def sixray(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten negatives and a positive, flat in ``JPEGImage``."""
    root = tmp_path_factory.mktemp("sixray")
    folder = root / "JPEGImage"
    folder.mkdir()
    for number in range(10):
        rng = np.random.default_rng(number)
        scan = draw_bag(rng, 240 + 10 * number, 180, belt=196 if number == 9 else 255)
        (folder / f"N{number:07d}.jpg").write_bytes(encode_jpeg(scan, 95))
    (folder / "P00001.jpg").write_bytes((folder / "N0000000.jpg").read_bytes())
    return root


@pytest.fixture(scope="session")
def pidray(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six training scans of the first release: a Gun in each, a Knife in three, a Pliers in one, no Baton."""
    root = tmp_path_factory.mktemp("pidray")
    (root / "annotations").mkdir()
    (root / "train").mkdir()
    images, annotations = [], []
    for number in range(6):
        scan = draw_bag(np.random.default_rng(100 + number), 300, 220)
        items = (
            [(3, 80 + 5 * number, 60)]
            + ([(4, 180, 120)] if number % 2 else [])
            + ([(2, 100, 130)] if not number else [])
        )
        for category, x, y in items:
            polygon = triangle(x, y, 40)
            mask = np.add.outer(np.arange(40), np.arange(40)) < 40
            scan[y : y + 40, x : x + 40][mask] = (30, 60, 90 + 10 * category)
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number,
                    "category_id": category,
                    "bbox": [x, y, 40, 40],
                    "area": 800,
                    "iscrowd": 0,
                    "segmentation": [polygon],
                }
            )
        name = f"xray_{number:05d}.png"
        (root / "train" / name).write_bytes(encode_png(scan))
        images.append({"id": number, "file_name": name, "width": 300, "height": 220})
    categories = [{"id": number, "name": name} for number, name in enumerate(CLASSES, 1)]
    content = {"info": {}, "license": [], "categories": categories, "images": images, "annotations": annotations}
    (root / "annotations" / "xray_train.json").write_text(json.dumps(content))
    (root / "annotations" / "._xray_train.json").write_bytes(b"\0\5\x16\7litter")
    return root


@pytest.fixture(scope="session")
def region_file(sixray: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("regions") / "regions.parquet"
    assert regions.main(["--backgrounds", str(sixray), "--out", str(out), "--workers", "1"]) == 0
    return out


@pytest.fixture(scope="session")
def segment_file(pidray: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("segments") / "segments.parquet"
    assert segments.main(["--annotations", str(pidray), "--out", str(out), "--workers", "1"]) == 0
    return out


class Synthesis:
    """Runs ``pipeline.synthesize`` on the tiny data sets: 24 pairs, 4 per shard, 160 px wide, blended by `alpha`."""

    def __init__(self, sixray: Path, region_file: Path, segment_file: Path) -> None:
        self.inputs = ["--backgrounds", sixray, "--regions", region_file, "--segments", segment_file]

    def arguments(self, out: Path | str, **changes: object) -> list[str]:
        options = {"pairs": 24, "per-shard": 4, "width": 160, "seed": 0, "workers": 1, "blend": "alpha"} | changes
        flags = [part for name, value in options.items() for part in (f"--{name.replace('_', '-')}", value)]
        return [str(part) for part in [*self.inputs, "--out", out, *flags]]

    def __call__(self, out: Path | str, **changes: object) -> int:
        return synthesize.main(self.arguments(out, **changes))


@pytest.fixture(scope="session")
def synthesis(sixray: Path, region_file: Path, segment_file: Path) -> Synthesis:
    return Synthesis(sixray, region_file, segment_file)


@pytest.fixture(scope="session")
def shards(synthesis: Synthesis, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished folder; tests must not change it."""
    out = tmp_path_factory.mktemp("shards") / "shards"
    assert synthesis(out) == 0
    return out


def digests(folder: Path) -> dict[str, bytes]:
    """Content of every file of a folder."""
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.is_file()}


def run_module(module: str, *arguments: object, **options: object) -> subprocess.CompletedProcess[str]:
    """Run ``python -m module`` in a separate process."""
    command = [sys.executable, "-m", module, *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, **options)  # type: ignore[call-overload]


def listen_to_ctrl_c() -> None:
    """For a child process: background jobs of a shell ignore Ctrl-C, and so do their children."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
