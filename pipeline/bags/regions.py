"""Measures the authentic region of every background scan and draws the results (paper section 3.2)."""

from __future__ import annotations

import functools
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from pipeline.bags import authentic_region
from pipeline.common import gallery
from pipeline.common.executors import run_tasks
from pipeline.tables import region_table
from segloc.common import white_level
from segloc.common.contract import Box
from segloc.common.images import BROKEN_LINK, Image, ImageError, decode, read_file, read_image
from segloc.common.skips import Skips
from segloc.common.text import utf8_text

MODES = ("adaptive", "paper")
# A region narrower than this at native resolution holds no recognisable item.
LEAST_SIDE_PX = 32
# Scans per chunk sent to a worker. A scan takes a millisecond, so single scans would cost more to send.
CHUNK = 64
_GALLERY_TILES, _GALLERY_COLUMNS = 60, 6
_STEP_PX = 360


def measure(name: str, *, root: Path, mode: str, white: int | None = None) -> dict[str, Any]:
    """Make the table's row of one background. A bad file does not raise; its row has a status and a message.

    Args:
        name: path of the scan relative to `root`.
        root: folder of the backgrounds.
        mode: ``adaptive`` or ``paper``.
        white: white level of the backgrounds; None if they have none.
    """
    row: dict[str, Any] = {"image": utf8_text(name), "status": "ok", "message": ""}
    if row["image"] != name:
        return row | {"status": "unreadable", "message": "file name is not UTF-8"}
    try:
        data = read_file(root / name)
        row["crc32"] = zlib.crc32(data)
        grey = decode(data, "grey", white=white)
    except ImageError as error:
        return row | {"status": "unreadable", "message": str(error)}
    height, width = grey.shape
    row |= {"width": width, "height": height}
    if min(width, height) < LEAST_SIDE_PX:
        return row | {"status": "too_small", "message": f"scan of {width}x{height} pixels"}
    bags, row["background_level"] = find_bags(grey, mode)
    box = authentic_region.union(bags)
    if box is None:
        return row | {"status": "empty", "message": "nothing but belt"}
    x0, y0, x1, y1 = box
    row |= {"x0": x0, "y0": y0, "x1": x1, "y1": y1, "bags": bags}
    if min(x1 - x0, y1 - y0) < LEAST_SIDE_PX:
        return row | {"status": "too_small", "message": f"region of {x1 - x0}x{y1 - y0} pixels"}
    return row


def find_bags(grey: Image, mode: str) -> tuple[list[Box], int]:
    """Find the bags of a grey scan [h, w] in the given mode, and the belt's level. The region is the bags' union."""
    if mode == "paper":
        box = authentic_region.paper(grey)
        return [box] if box else [], authentic_region.belt_level(grey)
    return authentic_region.bags(grey)


def draw_steps(path: Path, mode: str, white: int | None = None) -> Image:
    """Draw the steps that find the region of a scan, as in the paper's figure 5.

    Args:
        path: the scan.
        mode: mode of the boxes in the last picture, in blue; the paper's are red.
        white: white level of the scan's data set; None if it has none.

    Returns:
        uint8 RGB: grey, inverted, eroded, threshold and the scan with its boxes, side by side.

    Raises:
        ImageError: the scan cannot be read.
    """
    grey, colour = read_image(path, "grey", white), read_image(path, white=white)
    steps = authentic_region.paper_steps(grey)
    tiles = [gallery.tile(step[..., None].repeat(3, 2), [], name, _STEP_PX) for name, step in steps.items()]
    tiles.append(gallery.tile(colour, _boxes(grey, mode), f"red: paper, blue: {mode}", _STEP_PX))
    return gallery.sheet(tiles, len(tiles))


def _boxes(grey: Image, mode: str) -> list[tuple[Box, tuple[int, int, int]]]:
    """Return the paper's region, the bags of `mode` and, on top, their union."""
    bags, _ = find_bags(grey, mode)
    paper, region = authentic_region.paper(grey), authentic_region.union(bags)
    found = [(paper, gallery.RED), *((bag, gallery.GREEN) for bag in bags), (region, gallery.BLUE)]
    return [(box, tone) for box, tone in found if box]


def write_regions(
    root: Path,
    names: Sequence[str],
    out: Path,
    mode: str,
    workers: int,
    executor: str,
    white: int | None = None,
) -> tuple[Counter[str], Skips]:
    """Measure backgrounds and write their table.

    Args:
        root: folder of the backgrounds.
        names: their paths relative to `root`.
        out: output file.
        mode: ``adaptive`` or ``paper``.
        workers: see `pipeline.common.executors.run_tasks`.
        executor: see `pipeline.common.executors.run_tasks`.
        white: white level of the backgrounds; None if they have none.

    Returns:
        Number of backgrounds by status, and the unreadable ones by reason.
    """
    counts, skips, links = Counter[str](), Skips("backgrounds"), 0
    task = functools.partial(measure, root=root.absolute(), mode=mode, white=white)
    results: Iterator[dict[str, Any]] = run_tasks(task, names, workers=workers, executor=executor, chunk=CHUNK)
    with region_table.writer(out) as table:
        for row in tqdm(results, total=len(names), unit="scan", desc="regions", disable=None):
            counts[row["status"]] += 1
            skips.total += 1
            if row["status"] == "unreadable":
                skips.add(row["message"].partition(":")[0], row["image"])
                links += row["message"] == BROKEN_LINK
            table.write(row)
        if links == len(names):
            skips = Skips("backgrounds", links)
            skips.add(f"{BROKEN_LINK}: nothing was fetched", names[0], links)
        table.parameters |= {"mode": mode, "least_side_px": LEAST_SIDE_PX, "counts": dict(sorted(counts.items()))}
        table.parameters |= skips.table_parameters()
        table.parameters |= white_level.parameters(white)
    return counts, skips


def draw_region_gallery(root: Path, names: Sequence[str], out: Path, mode: str, white: int | None = None) -> None:
    """Draw the regions of up to 60 backgrounds, evenly spread, on one sheet (PNG)."""
    tiles = []
    for position in gallery.spread(_GALLERY_TILES, len(names)):
        path = root / names[position]
        try:
            grey, colour = read_image(path, "grey", white), read_image(path, white=white)
        except ImageError:
            continue
        tiles.append(gallery.tile(colour, _boxes(grey, mode), names[position]))
    if tiles:
        gallery.save(out, tiles, _GALLERY_COLUMNS)
