"""Stage ``regions``: measures the authentic region of every background scan (paper section 3.2)."""

from __future__ import annotations

import argparse
import dataclasses
import functools
import sys
import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from tqdm import tqdm

from pipeline import authentic_region, cli, gallery
from pipeline.datasets import backgrounds
from pipeline.executors import run_tasks
from pipeline.images import Image, ImageError, decode, encode_png, read_file, read_image
from pipeline.tables import TableWriter, open_table, reading
from segloc.contract import Box, InputError, check_output, write_atomic

KIND, FORMAT_VERSION = "regions", 3
SCHEMA = pa.schema(
    [
        ("image", pa.string()),
        *((name, pa.int32()) for name in ("width", "height", "x0", "y0", "x1", "y1")),
        # The bags that the region unites, from left to right: x0, y0, x1, y1 each. Mode `paper` knows only the region.
        ("bags", pa.list_(pa.list_(pa.int32()))),
        ("background_level", pa.uint8()),
        # Of the file, so that an edited scan makes another table even where its region stays.
        ("crc32", pa.uint32()),
        ("status", pa.string()),
        ("message", pa.string()),
    ]
)
MODES = ("adaptive", "paper")
# A region narrower than this at native resolution holds no recognisable item.
LEAST_SIDE_PX = 32
# Scans sent to a worker at a time: they take a millisecond each, and sending costs.
CHUNK = 64
_GROUP_ROWS = 65_536
_GALLERY_TILES, _GALLERY_COLUMNS = 60, 6
_STEP_PX = 360


def measure(name: str, *, root: Path, mode: str) -> dict[str, Any]:
    """Make the table's row of one background. Never raises for a bad file: that is a row with a status and a message.

    Args:
        name: path of the scan relative to `root`.
        root: folder of the backgrounds.
        mode: ``adaptive`` or ``paper``.
    """
    row: dict[str, Any] = {"image": name, "status": "ok", "message": ""}
    try:
        name.encode()
    except UnicodeEncodeError:
        shown = name.encode("utf-8", "backslashreplace").decode()
        return {"image": shown, "status": "unreadable", "message": "file name is not UTF-8"}
    try:
        data = read_file(root / name)
        row["crc32"] = zlib.crc32(data)
        grey = decode(data, "grey")
    except ImageError as error:
        return row | {"status": "unreadable", "message": str(error)}
    height, width = grey.shape
    row |= {"width": width, "height": height}
    if min(width, height) < LEAST_SIDE_PX:
        return row | {"status": "too_small", "message": f"scan of {width}x{height} pixels"}
    bags, row["background_level"] = find(grey, mode)
    box = authentic_region.union(bags)
    if box is None:
        return row | {"status": "empty", "message": "nothing but belt"}
    x0, y0, x1, y1 = box
    row |= {"x0": x0, "y0": y0, "x1": x1, "y1": y1, "bags": bags}
    if min(x1 - x0, y1 - y0) < LEAST_SIDE_PX:
        return row | {"status": "too_small", "message": f"region of {x1 - x0}x{y1 - y0} pixels"}
    return row


def find(grey: Image, mode: str) -> tuple[list[Box], int]:
    """Find the bags of a grey scan [h, w] in the given mode, whose union is the region, and the belt's level."""
    if mode == "paper":
        box = authentic_region.paper(grey)
        return [box] if box else [], authentic_region.belt_level(grey)
    return authentic_region.bags(grey)


def draw_steps(path: Path, mode: str) -> Image:
    """Draw how the region of a scan is found, as in the paper's figure 5.

    Args:
        path: the scan.
        mode: whose boxes are drawn in the last picture, in blue; the paper's is red.

    Returns:
        uint8 RGB: grey, inverted, eroded, threshold and the scan with its boxes, side by side.

    Raises:
        ImageError: the scan cannot be read.
    """
    grey, colour = read_image(path, "grey"), read_image(path)
    steps = authentic_region.paper_steps(grey)
    tiles = [gallery.tile(step[..., None].repeat(3, 2), [], name, _STEP_PX) for name, step in steps.items()]
    tiles.append(gallery.tile(colour, _boxes(grey, mode), f"red: paper, blue: {mode}", _STEP_PX))
    return gallery.sheet(tiles, len(tiles))


def _boxes(grey: Image, mode: str) -> list[tuple[Box, tuple[int, int, int]]]:
    """Return the paper's region and, over it, that of `mode` and its bags."""
    bags, _ = find(grey, mode)
    region = authentic_region.union(bags)
    found = [
        (authentic_region.paper(grey), gallery.RED),
        *((bag, gallery.GREEN) for bag in bags),
        (region, gallery.BLUE),
    ]
    return [(box, tone) for box, tone in found if box]


@dataclasses.dataclass(frozen=True)
class Regions:
    """The usable backgrounds of a table.

    Attributes:
        images: paths relative to the root, sorted.
        sizes: int32 [n, 2], (width, height) in pixels.
        bags: of each scan its bags, from left to right, a list of x0, y0, x1, y1 in pixels of the scan each.
        levels: uint8 [n], grey level of the empty belt.
        crcs: uint32 [n], CRC-32 of the file.
    """

    images: pa.ChunkedArray
    sizes: np.ndarray
    bags: pa.ChunkedArray
    levels: np.ndarray
    crcs: np.ndarray

    def draw_bag(self, rng: np.random.Generator, number: int) -> Box:
        """Draw one of the bags of scan `number`, a larger one as much likelier as it is larger."""
        bags = self.bags[number].as_py()
        areas = [(x1 - x0) * (y1 - y0) for x0, y0, x1, y1 in bags]
        place = rng.random() * sum(areas) if len(bags) > 1 else 0.0
        x0, y0, x1, y1 = bags[min(int(np.searchsorted(np.cumsum(areas), place, side="right")), len(bags) - 1)]
        return x0, y0, x1, y1


def load(path: Path) -> Regions:
    """Read the rows with status ``ok``.

    Raises:
        InputError: not a table of regions, or fewer than the two backgrounds a pair needs.
    """
    file, _ = open_table(path, KIND, FORMAT_VERSION, SCHEMA.names)
    with reading(path):
        table = file.read(columns=["image", "width", "height", "bags", "background_level", "crc32", "status"])
    table = table.filter(pc.equal(table["status"], "ok"))
    if len(table) < 2:
        raise InputError(f"{path}: {len(table)} usable backgrounds, a pair needs two")
    sizes = np.stack([table["width"].to_numpy(), table["height"].to_numpy()], 1)
    return Regions(
        table["image"], sizes, table["bags"], table["background_level"].to_numpy(), table["crc32"].to_numpy()
    )


def _write(args: argparse.Namespace, names: list[str]) -> Counter[str]:
    counts: Counter[str] = Counter()
    task = functools.partial(measure, root=args.backgrounds.absolute(), mode=args.mode)
    results: Iterator[dict[str, Any]] = run_tasks(
        task, names, workers=args.workers, executor=args.executor, chunk=CHUNK
    )
    with TableWriter(args.out, KIND, FORMAT_VERSION, SCHEMA, group_rows=_GROUP_ROWS) as table:
        for row in tqdm(results, total=len(names), unit="scan", desc="regions", disable=None):
            counts[row["status"]] += 1
            table.write(row)
        table.parameters |= {"mode": args.mode, "least_side_px": LEAST_SIDE_PX, "counts": dict(sorted(counts.items()))}
    return counts


def _draw(args: argparse.Namespace, names: list[str]) -> None:
    tiles = []
    for position in gallery.spread(_GALLERY_TILES, len(names)):
        path = args.backgrounds / names[position]
        try:
            grey, colour = read_image(path, "grey"), read_image(path)
        except ImageError:
            continue
        tiles.append(gallery.tile(colour, _boxes(grey, args.mode), names[position]))
    if tiles:
        gallery.save(args.gallery, tiles, _GALLERY_COLUMNS)


def _command(args: argparse.Namespace) -> int:
    for path in (args.out, args.gallery):
        check_output(path)
    if args.steps:
        try:
            write_atomic(args.out, encode_png(draw_steps(args.steps, args.mode)))
        except ImageError as error:
            raise InputError(f"{args.steps}: {error}") from error
        return 0
    names = backgrounds(args.backgrounds)
    counts = _write(args, names)
    summary = ", ".join(f"{count} {status}" for status, count in sorted(counts.items()))
    print(f"{args.out}: {len(names)} backgrounds ({summary})")
    if args.gallery:
        _draw(args, names)
        print(f"{args.gallery}: red is the paper's region, blue the one of mode {args.mode}, green its bags")
    return 0


def main(argv: list[str] | None = None) -> int:
    """Run the command."""
    options = cli.parser(
        "pipeline.regions",
        "Find the part of each benign scan that is bag rather than empty belt.",
        "  python -m pipeline.regions --backgrounds data/raw/sixray --out data/regions.parquet\n"
        "  python -m pipeline.regions --backgrounds scans --out regions.parquet --mode paper --gallery regions.png\n"
        "  python -m pipeline.regions --steps scans/N0000001.jpg --out steps.png",
    )
    source = options.add_mutually_exclusive_group(required=True)
    source.add_argument("--backgrounds", type=cli.path, metavar="DIR", help="SIXray, or any folder of scans")
    source.add_argument("--steps", type=cli.path, metavar="IMAGE", help="only draw how the region of a scan is found")
    options.add_argument(
        "--out", type=cli.path, required=True, metavar="FILE", help="the table to write (Parquet); with --steps, a PNG"
    )
    options.add_argument(
        "--mode", choices=MODES, default="adaptive", help="how the region is found (default: adaptive)"
    )
    options.add_argument("--gallery", type=cli.path, metavar="PNG", help="also draw the regions of up to 60 scans")
    cli.add_executor_options(options)
    return cli.run(_command, options, argv)


if __name__ == "__main__":
    sys.exit(main())
