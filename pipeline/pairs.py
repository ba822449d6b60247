"""Positive pairs: two different items of one class on two different backgrounds (paper section 3.1, algorithm 1)."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from pipeline import composition, regions, segments
from pipeline.blends import BLENDS
from pipeline.composition import Segment, blend, fit, frame, place
from pipeline.files import safe_relative
from pipeline.images import Image, decode_rgba, read_image
from pipeline.seeds import generator
from pipeline.tables import open_table
from segloc.contract import Box, InputError, Pair, View

# Raise it with every change that makes other pairs of the same inputs: shards of another version are then refused.
RECIPE_VERSION = 2
_BACKGROUND_DRAWS = 100
_CACHED_GROUPS = 64  # of about a megabyte each


@dataclasses.dataclass(frozen=True)
class Recipe:
    """All that a pair depends on besides its number.

    Attributes:
        backgrounds: root of the background scans.
        regions: table of authentic regions.
        segments: table of segments.
        seed: of the synthesis.
        blend: composition mode.
        width: of the stored images, in pixels.
        scales: range of an item's scale; 1 shows it as large in the frame as it was in its own scan's.
    """

    backgrounds: Path
    regions: Path
    segments: Path
    seed: int
    blend: str = "alpha"
    width: int = 500
    scales: tuple[float, float] = composition.SCALE


class SegmentTable:
    """The segments of a table, read a row group at a time so that no worker holds them all.

    Items cut by the frame of their scan are left out, as a straight edge in the middle of a bag gives them away, unless
    their class then lacks the two bags a pair needs.

    Attributes:
        classes: names by class id.
        rows: for each class the rows to draw from, by scan group: scans of the same bag are one group, so items of
            different groups are never the same item.
    """

    def __init__(self, path: Path) -> None:
        """Open the table.

        Raises:
            InputError: not a table of segments.
        """
        self._file, parameters = open_table(path, segments.KIND, segments.FORMAT_VERSION, segments.SCHEMA.names)
        self.classes: tuple[str, ...] = tuple(parameters["classes"])
        columns = self._file.read(columns=["class_id", "scan_group", "cut_by_frame"]).to_pydict()
        every: list[dict[int, list[int]]] = [{} for _ in self.classes]
        uncut: list[dict[int, list[int]]] = [{} for _ in self.classes]
        for row, (class_id, bag, is_cut) in enumerate(zip(*columns.values(), strict=True)):
            for rows in (every,) if is_cut else (every, uncut):
                rows[class_id].setdefault(bag, []).append(row)
        self.rows = [some if len(some) >= 2 else all_of_them for some, all_of_them in zip(uncut, every, strict=True)]
        self._starts = np.cumsum([0] + [_group_rows(self._file, i) for i in range(self._file.num_row_groups)])
        self._group = functools.lru_cache(maxsize=_CACHED_GROUPS)(self._read_group)

    def __len__(self) -> int:
        return int(self._starts[-1])

    @property
    def usable(self) -> list[int]:
        """Class ids a pair can be made of: those with items from at least two bags."""
        return [class_id for class_id, bags in enumerate(self.rows) if len(bags) >= 2]

    def _read_group(self, group: int) -> list[dict]:
        columns = ["segment_id", "scan_width", "background_r", "background_g", "background_b", "png"]
        return self._file.read_row_group(group, columns=columns).to_pylist()

    def segment(self, row: int) -> Segment:
        """Decode the segment of a row."""
        group = int(np.searchsorted(self._starts, row, side="right")) - 1
        record = self._group(group)[row - int(self._starts[group])]
        around = np.array([record[f"background_{channel}"] for channel in "rgb"], np.float32)
        return Segment(record["segment_id"], decode_rgba(record["png"]), record["scan_width"], around)


def _group_rows(file: pq.ParquetFile, group: int) -> int:
    return file.metadata.row_group(group).num_rows


@functools.lru_cache(maxsize=2)
def tables(region_file: Path, segment_file: Path) -> tuple[regions.Regions, SegmentTable]:
    """Open both tables, once per process."""
    return regions.load(region_file), SegmentTable(segment_file)


def make_pair(recipe: Recipe, number: int) -> tuple[Pair, Image, Image]:
    """Make pair `number`: a pure function of its arguments and the files the recipe names.

    Returns:
        The description, the query image and the key image (uint8 RGB).

    Raises:
        InputError: a background cannot be read any more, or no background can hold the item.
    """
    hosts, items = tables(recipe.regions, recipe.segments)
    rng = generator(recipe.seed, "pair", number)
    usable = items.usable
    class_id = usable[int(rng.integers(len(usable)))]
    by_image = items.rows[class_id]
    scans = list(by_image)
    views, pictures, taken = [], [], -1
    for position in rng.choice(len(scans), 2, replace=False):
        rows = by_image[scans[int(position)]]
        segment = items.segment(rows[int(rng.integers(len(rows)))])
        view, picture, taken = _make_view(rng, recipe, hosts, segment, taken)
        views.append(view)
        pictures.append(picture)
    return Pair(number, class_id, items.classes[class_id], *views), pictures[0], pictures[1]


def _make_view(
    rng: np.random.Generator, recipe: Recipe, hosts: regions.Regions, segment: Segment, taken: int
) -> tuple[View, Image, int]:
    """Paste a segment on a background other than number `taken`; the number of the one used comes third."""
    mode = BLENDS[recipe.blend]
    for _ in range(_BACKGROUND_DRAWS):
        chosen = int(rng.integers(len(hosts.images)))
        if chosen == taken:
            continue
        native = int(hosts.sizes[chosen, 0]), int(hosts.sizes[chosen, 1])
        size, region = frame(native, tuple(map(int, hosts.boxes[chosen])), recipe.width)  # type: ignore[arg-type]
        placed = place(rng, segment, region, recipe.width, recipe.scales)
        if placed is None:
            continue
        geometry, patch, (x, y) = placed
        box: Box = (x, y, x + patch.mask.shape[1], y + patch.mask.shape[0])
        coefficient = float(rng.uniform(*mode.coefficients))
        name = hosts.images[chosen].as_py()
        view = View(
            box=box,
            size=size,
            background=name,
            segment=segment.segment_id,
            region=region,
            blend=recipe.blend,
            alpha=coefficient,
            **dataclasses.asdict(geometry),
        )
        host = fit(_read_background(recipe.backgrounds, name, native), size)
        return view, blend(host, patch, box, segment.background, recipe.blend, coefficient), chosen
    raise InputError(f"no background of {_BACKGROUND_DRAWS} tried can hold segment {segment.segment_id!r}")


def _read_background(root: Path, name: str, size: tuple[int, int]) -> Image:
    try:
        scan = read_image(root / safe_relative(name))
    except ValueError as error:  # ImageError is one
        raise InputError(f"background {str(root / name)!r}: {error}; run pipeline.regions again") from error
    if (scan.shape[1], scan.shape[0]) != size:
        raise InputError(f"background {str(root / name)!r}: not the size it had; run pipeline.regions again")
    return scan
