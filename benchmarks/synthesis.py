"""Cost of a pair against its decoding and encoding and plain scripts: ``python -m benchmarks.synthesis --help``.

The lower bound (floor) is to read and decode two scans and to encode two images of the stored size at the same quality.
The peers make the same pairs from the same descriptions: they draw no random numbers and only transform, blend, encode
and write. All variants run on one core in one process, interleaved pair by pair.
"""

from __future__ import annotations

import argparse
import io
import resource
import tarfile
import tempfile
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from benchmarks.common import arguments, interleave, ratio, save
from pipeline import regions, segments
from pipeline.common.executors import tune_process
from pipeline.pairing.pairs import Recipe, make_pair, tables
from pipeline.simulate.__main__ import main as simulate
from pipeline.storage.shards import Job, TarWriter
from segloc.common.contract import Pair, View
from segloc.common.images import decode_rgba
from segloc.common.stores import LocalStore

QUALITY = 95
_JPEG = (cv2.IMWRITE_JPEG_QUALITY, QUALITY)


class Floor:
    """Lower bound: two decodes at full size and two encodes."""

    def __init__(self, recipe: Recipe, pairs: dict[int, Pair]) -> None:
        self.recipe, self.pairs = recipe, pairs
        # Encode the finished pictures, because the cost of encoding depends on the content.
        self.pictures = {number: make_pair(recipe, number)[1:] for number in pairs}

    def __call__(self, number: int) -> None:
        """Decode and encode the images of one pair."""
        pair = self.pairs[number]
        for view, picture in zip((pair.query, pair.key), self.pictures[number], strict=True):
            data = (self.recipe.backgrounds / view.background).read_bytes()
            cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
            cv2.imencode(".jpg", picture, _JPEG)


class Ours:
    """The work of a ``pipeline.synthesize`` worker, including tar and digest.

    A worker caches the segments it used last: all of a small table, few of a large one. So two cases are measured: all
    segments cached, and `cold`, each segment read from the table.
    """

    def __init__(self, recipe: Recipe, file: Any) -> None:
        self.job = Job(recipe, LocalStore(Path()), 1, quality=QUALITY)
        self.tar = TarWriter(file)
        self.table = tables(recipe.regions, recipe.segments)[1]
        self.kept = self.table.segment

    def __call__(self, number: int) -> None:
        """Make one pair."""
        self.tar.add_pair(self.job, number)

    def cold(self, number: int) -> None:
        """Make one pair with segments read from the table."""
        self.table.segment = self.table.read_segment
        self.tar.add_pair(self.job, number)
        self.table.segment = self.kept


class Pillow:
    """A plain script with PIL, numpy and tarfile."""

    def __init__(self, recipe: Recipe, pairs: dict[int, Pair], pngs: dict[str, bytes], file: Any) -> None:
        self.recipe, self.pairs, self.pngs = recipe, pairs, pngs
        self.tar = tarfile.TarFile(fileobj=file, mode="w")

    def __call__(self, number: int) -> None:
        """Make one pair."""
        pair = self.pairs[number]
        files = {"query.jpg": self._jpeg(pair.query), "key.jpg": self._jpeg(pair.key), "json": pair.to_json()}
        for name, data in files.items():
            member = tarfile.TarInfo(f"{number}.{name}")
            member.size = len(data)
            self.tar.addfile(member, io.BytesIO(data))

    def _jpeg(self, view: View) -> bytes:
        from PIL import Image, ImageOps

        with Image.open(self.recipe.backgrounds / view.background) as scan:
            background = scan.convert("RGB").resize(view.size, Image.Resampling.BILINEAR)
        item = Image.open(io.BytesIO(self.pngs[view.segment]))
        item = ImageOps.mirror(item) if view.flip_h else item
        item = ImageOps.flip(item) if view.flip_v else item
        item = item.rotate(view.rotation_deg, Image.Resampling.BILINEAR, expand=True)
        size = max(1, round(item.width * view.scale)), max(1, round(item.height * view.scale))
        item = item.resize(size, Image.Resampling.BILINEAR)
        canvas = Image.new("RGBA", background.size)
        canvas.paste(item, view.box[:2])
        rgba = np.asarray(canvas, np.float32)
        weight = view.coefficient * (rgba[..., 3:] >= 128)
        mixed = weight * rgba[..., :3] + (1 - weight) * np.asarray(background, np.float32)
        buffer = io.BytesIO()
        Image.fromarray(mixed.round().astype(np.uint8)).save(buffer, "JPEG", quality=QUALITY)
        return buffer.getvalue()


class Albumentations(Pillow):
    """The same script with albumentations' transforms and OpenCV's codec."""

    def __init__(self, recipe: Recipe, pairs: dict[int, Pair], pngs: dict[str, bytes], file: Any) -> None:
        import albumentations

        super().__init__(recipe, pairs, pngs, file)
        self.lib = albumentations

    def _jpeg(self, view: View) -> bytes:
        lib = self.lib
        scan = cv2.cvtColor(cv2.imread(str(self.recipe.backgrounds / view.background)), cv2.COLOR_BGR2RGB)
        background = lib.Resize(height=view.size[1], width=view.size[0])(image=scan)["image"]
        rgba = decode_rgba(self.pngs[view.segment])
        angle = view.rotation_deg
        transform = lib.Compose(
            [
                lib.HorizontalFlip(p=float(view.flip_h)),
                lib.VerticalFlip(p=float(view.flip_v)),
                lib.Affine(rotate=(angle, angle), scale=(view.scale, view.scale), fit_output=True, p=1),
            ]
        )
        moved = transform(image=np.ascontiguousarray(rgba[..., :3]), mask=np.ascontiguousarray(rgba[..., 3]))
        item, mask = moved["image"], moved["mask"]
        x, y = view.box[:2]
        height, width = min(item.shape[0], background.shape[0] - y), min(item.shape[1], background.shape[1] - x)
        window = background[y : y + height, x : x + width].astype(np.float32)
        weight = view.coefficient * (mask[:height, :width, None] >= 128)
        background[y : y + height, x : x + width] = (weight * item[:height, :width] + (1 - weight) * window).round()
        return cv2.imencode(".jpg", cv2.cvtColor(background, cv2.COLOR_RGB2BGR), _JPEG)[1].tobytes()


def measure(folder: Path, label: str, blend: str, pairs: int, rounds: int, peers: bool) -> dict[str, Any]:
    """Measure one set of scans; `folder` holds ``sixray``, ``regions.parquet`` and ``segments.parquet``."""
    recipe = Recipe(folder / "sixray", folder / "regions.parquet", folder / "segments.parquet", seed=0, blend=blend)
    backgrounds, items = tables(recipe.regions, recipe.segments)
    made = {number: make_pair(recipe, number)[0] for number in range(pairs)}
    variants: dict[str, Any] = {"floor": Floor(recipe, made)}
    with tempfile.TemporaryFile() as first, tempfile.TemporaryFile() as second, tempfile.TemporaryFile() as third:
        ours = variants["ours"] = Ours(recipe, first)
        variants["cold"] = ours.cold
        if peers:
            rows = {items.segment(row).segment_id: row for row in range(len(items))}
            pngs = {name: items.png(row) for name, row in rows.items()}
            variants["pillow"] = Pillow(recipe, made, pngs, second)
            try:
                variants["albumentations"] = Albumentations(recipe, made, pngs, third)
            except ImportError:
                print("albumentations is not installed; its comparison is left out")
        seconds = interleave(variants, range(pairs), rounds)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        for number in range(pairs):
            ours(number)
        faults = (resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) / pairs
    row: dict[str, Any] = {
        "scans": label,
        "megapixels": round(float(np.median(backgrounds.sizes.prod(1))) / 1e6, 2),
        "segments": len(items),
        "blend": blend,
        "pairs": pairs,
        "rounds": rounds,
        "ours/floor": round(ratio(seconds, "ours", "floor"), 3),
        "cold/floor": round(ratio(seconds, "cold", "floor"), 3),
        "page_faults_per_pair": round(faults, 1),
    }
    for peer in ("pillow", "albumentations"):
        row[f"{peer}/ours"] = round(ratio(seconds, peer, "ours"), 2) if peer in seconds else ""
    return row


def simulate_tables(folder: Path, scans: int, width: int) -> None:
    """Simulate scans and make the tables of regions and segments, unless they exist."""
    failed = not (folder / "segments.parquet").exists() and (
        simulate(["--out", str(folder), "--scans", str(scans), "--width", str(width), "--grey-belts", "0"])
        or regions.main(["--backgrounds", str(folder / "sixray"), "--out", str(folder / "regions.parquet")])
        or segments.main(["--annotations", str(folder / "pidray"), "--out", str(folder / "segments.parquet")])
    )
    if failed:
        raise SystemExit(failed)


def main() -> None:
    """Run the benchmark."""
    options = argparse.ArgumentParser(prog="python -m benchmarks.synthesis", description=__doc__.splitlines()[0])
    options.add_argument("--pairs", type=int, default=100, help="pairs per round (default: 100)")
    options.add_argument("--rounds", type=int, default=5, help="default: 5")
    options.add_argument("--scans", type=int, default=150, help="simulated scans per set (default: 150)")
    options.add_argument("--keep", type=Path, help="folder that keeps the simulated scans for other runs")
    args = arguments(options)
    tune_process()
    with tempfile.TemporaryDirectory() as temporary:
        rows = []
        for label, width in (("0.4 MP", 740), ("1.3 MP", 1300)):
            folder = (args.keep or Path(temporary)) / str(width)
            simulate_tables(folder, args.scans, width)
            for blend in ("alpha", "multiply", "ratio"):
                rows.append(measure(folder, label, blend, args.pairs, args.rounds, peers=blend == "alpha"))
                print(rows[-1])
    save("synthesis", rows)


if __name__ == "__main__":
    main()
