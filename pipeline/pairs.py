"""Positive pairs: two different items of one class on two different backgrounds (paper section 3.1, algorithm 1)."""

from __future__ import annotations

import dataclasses
import functools
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq

from pipeline import composition, regions, segments
from pipeline.blends import BLENDS
from pipeline.composition import Segment, blend, fit, frame, occlude, place, place_occluder, reduction
from pipeline.files import safe_relative
from pipeline.images import Image, ImageError, decode, decode_rgba, read_file
from pipeline.seeds import generator
from pipeline.tables import open_table, reading
from segloc.contract import Box, InputError, Occluder, Pair, View

# Raise it with every change that makes other pairs of the same inputs: shards of another version are then refused.
RECIPE_VERSION = 3
_BACKGROUND_DRAWS = 100
# Times that other items are drawn when no background can hold one; a line of a few pixels may fit nowhere.
_ITEM_DRAWS = 10
# Decoded segments a process keeps, of some tens of kB each: a twentieth of PIDray's, all of a small data set's.
_CACHED_SEGMENTS = 2048


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
        occluded: share of the items over which a piece of another background is laid.
        coefficients: range that the composition mode's coefficient is drawn from; None is the mode's own.
    """

    backgrounds: Path
    regions: Path
    segments: Path
    seed: int
    blend: str = "alpha"
    width: int = 500
    scales: tuple[float, float] = composition.SCALE
    occluded: float = 0.0
    coefficients: tuple[float, float] | None = None


class Found(NamedTuple):
    """Where a segment stands in its table.

    Attributes:
        row: its number.
        class_id: its class.
        bag: number of the bag it was cut from; scans of one bag share it.
    """

    row: int
    class_id: int
    bag: int


class SegmentTable:
    """The segments of a table, read one by one so that no worker holds them all.

    Items cut by the frame of their scan are left out, as a straight edge in the middle of a bag gives them away, unless
    their class then lacks the two bags a pair needs.

    Attributes:
        classes: names by class id.
        rows: per class a list of bags, each a list of the rows to draw from. Scans of the same bag are one, so items of
            different bags are never the same item.
        instances: whether the two items of a pair are of one scan (`pipeline.crops`), not of two bags.
        usable: class ids a pair can be made of: those with items from at least two bags.
        segment: ``segment(row)`` reads and decodes a segment; the last used are kept.
    """

    def __init__(self, path: Path) -> None:
        """Open the table.

        Raises:
            InputError: not a table of segments.
        """
        self._path = path
        self._file, parameters = open_table(path, segments.KIND, segments.FORMAT_VERSION, segments.SCHEMA.names)
        self.classes: tuple[str, ...] = tuple(parameters["classes"])
        self.instances: bool = parameters.get("positives") == "instance"
        columns = ["segment_id", "scan_width", "background_r", "background_g", "background_b"]
        with reading(path):
            self._ids, self._widths, *around = self._file.read(columns=columns).columns
            columns = ["class_id", "scan_group", "cut_by_frame"]
            named = self._file.read(columns=columns).columns
        self._around = np.stack([channel.to_numpy() for channel in around], 1).astype(np.float32)
        self._class_ids, self._groups, cut = (column.to_numpy() for column in named)
        self.rows = self._bags(cut)
        self.usable = [class_id for class_id, bags in enumerate(self.rows) if len(bags) >= 2]
        self._starts = np.cumsum([0] + [_group_rows(self._file, i) for i in range(self._file.num_row_groups)])
        self.segment = functools.lru_cache(maxsize=_CACHED_SEGMENTS)(self.read_segment)

    def __len__(self) -> int:
        return int(self._starts[-1])

    def _bags(self, cut: npt.NDArray[np.bool_]) -> list[list[list[int]]]:
        every: list[dict[int, list[int]]] = [{} for _ in self.classes]
        uncut: list[dict[int, list[int]]] = [{} for _ in self.classes]
        columns = (self._class_ids.tolist(), self._groups.tolist(), cut.tolist())
        for row, (class_id, bag, is_cut) in enumerate(zip(*columns, strict=True)):
            for rows in (every,) if is_cut else (every, uncut):
                rows[class_id].setdefault(bag, []).append(row)
        chosen = (some if len(some) >= 2 else all_of_them for some, all_of_them in zip(uncut, every, strict=True))
        return [list(bags.values()) for bags in chosen]

    def draw(self, rng: np.random.Generator, class_id: int) -> tuple[list[int], list[int]]:
        """Draw, for each side of a pair, the rows its item is drawn from: two bags, or two crops of one scan."""
        bags = self.rows[class_id]
        first = int(rng.integers(len(bags)))
        if self.instances:
            query, key = rng.choice(bags[first], 2, replace=False).tolist()
            return [query], [key]
        return bags[first], bags[(first + int(rng.integers(1, len(bags)))) % len(bags)]

    def find(self, segment_id: str) -> Found | None:
        """Look a segment up; None when the table has none of that id."""
        row = self._row_of.get(segment_id)
        return None if row is None else Found(row, int(self._class_ids[row]), int(self._groups[row]))

    @functools.cached_property
    def _row_of(self) -> dict[str, int]:
        return {segment_id: row for row, segment_id in enumerate(self._ids.to_pylist())}

    def read_segment(self, row: int) -> Segment:
        """Read and decode the segment of a row.

        Raises:
            InputError: the table is damaged.
        """
        name, width = self._ids[row].as_py(), self._widths[row].as_py()
        try:
            rgba = decode_rgba(self.png(row))
        except ImageError as error:
            raise InputError(f"{self._path}: segment {name!r}: {error}; make the table again") from error
        return Segment(name, rgba, width, self._around[row], upright=self.instances)

    def png(self, row: int) -> bytes:
        """Read the PNG of a row."""
        group = int(np.searchsorted(self._starts, row, side="right")) - 1
        with reading(self._path):
            pngs = self._file.read_row_group(group, columns=["png"], use_threads=False).column(0)
        return pngs[row - int(self._starts[group])].as_py()


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
        InputError: a table or background cannot be read any more, or no background can hold items of the pair's class.
    """
    hosts, items = tables(recipe.regions, recipe.segments)
    rng = generator(recipe.seed, "pair", number)
    class_id = items.usable[int(rng.integers(len(items.usable)))]
    for _ in range(_ITEM_DRAWS):
        segments = [items.segment(rows[int(rng.integers(len(rows)))]) for rows in items.draw(rng, class_id)]
        query = _make_view(rng, recipe, hosts, segments[0], -1)
        key = query and _make_view(rng, recipe, hosts, segments[1], query[2])
        if query and key:
            return Pair(number, class_id, items.classes[class_id], query[0], key[0]), query[1], key[1]
    raise InputError(
        f"no background of {_BACKGROUND_DRAWS} tried can hold an item like {segments[0].segment_id!r} or "
        f"{segments[1].segment_id!r}; choose a larger --width or another --scale"
    )


def _make_view(
    rng: np.random.Generator, recipe: Recipe, hosts: regions.Regions, segment: Segment, taken: int
) -> tuple[View, Image, int] | None:
    """Paste a segment on a background other than number `taken`; the number of the one used comes third.

    None when no background can hold it.
    """
    coefficients = recipe.coefficients or BLENDS[recipe.blend].coefficients
    for _ in range(_BACKGROUND_DRAWS):
        chosen = int(rng.integers(len(hosts.images)))
        if chosen == taken:
            continue
        size, region = _bag(rng, hosts, chosen, recipe.width)
        placed = place(rng, segment, region, recipe.width, recipe.scales)
        if placed is None:
            continue
        geometry, patch, (x, y) = placed
        box: Box = (x, y, x + patch.mask.shape[1], y + patch.mask.shape[0])
        coefficient = float(rng.uniform(*coefficients))
        name = hosts.images[chosen].as_py()
        host = fit(read_background(recipe, hosts, chosen), size)
        blend(host, patch, box, segment.background, recipe.blend, coefficient)
        occluder = None
        if recipe.occluded and rng.random() < recipe.occluded:
            occluder = _occlude(rng, recipe, hosts, host, box, region, {chosen, taken})
        view = View(
            box=box,
            size=size,
            background=name,
            segment=segment.segment_id,
            region=region,
            blend=recipe.blend,
            alpha=coefficient,
            **vars(geometry),
            occluder=occluder,
        )
        return view, host, chosen
    return None


def _bag(rng: np.random.Generator, hosts: regions.Regions, number: int, width: int) -> tuple[tuple[int, int], Box]:
    """Draw a bag of a background: the stored (width, height), and the bag's box in its pixels."""
    native = int(hosts.sizes[number, 0]), int(hosts.sizes[number, 1])
    return frame(native, hosts.draw_bag(rng, number), width)


def _occlude(
    rng: np.random.Generator,
    recipe: Recipe,
    hosts: regions.Regions,
    host: Image,
    box: Box,
    bag: Box,
    others: set[int],
) -> Occluder | None:
    """Lay a piece of a background that is none of the `others` over the item in `box`, within its bag.

    None when there is no third background.
    """
    if len(hosts.images) <= len(others):
        return None
    while (chosen := int(rng.integers(len(hosts.images)))) in others:
        pass
    size, room = _bag(rng, hosts, chosen, recipe.width)
    if min(room[2] - room[0], room[3] - room[1]) < 1:  # a bag that shrinks to nothing
        return None
    piece, corner = place_occluder(rng, box, bag, room)
    name = hosts.images[chosen].as_py()
    x0, y0, x1, y1 = piece
    clutter = fit(read_background(recipe, hosts, chosen), size)[y0:y1, x0:x1]
    occlude(host, clutter, corner, int(hosts.levels[chosen]))
    return Occluder(name, piece, corner)


def read_background(recipe: Recipe, hosts: regions.Regions, number: int) -> Image:
    """Read background `number` of `hosts`, reduced where that leaves enough of it (`composition.reduction`).

    Raises:
        InputError: it cannot be read, or is not the file its region was measured on.
    """
    name = hosts.images[number].as_py()
    try:
        data = read_file(recipe.backgrounds / safe_relative(name))
        scan = decode(data, reduction=reduction(int(hosts.sizes[number, 0]), recipe.width))
        if zlib.crc32(data) != hosts.crcs[number]:
            raise ImageError("not the file it was")
        return scan
    except ValueError as error:  # ImageError is one
        raise InputError(
            f"background {str(recipe.backgrounds / name)!r}: {error}; run pipeline.regions again"
        ) from error
