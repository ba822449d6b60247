"""The table of regions: a row per background scan, with its bags or the reason why it has none."""

from __future__ import annotations

import dataclasses
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.tables.parquet import TableWriter, file_kind, open_table, reading, refuse_nulls, table_writer
from segloc.common import white_level
from segloc.common.contract import Box
from segloc.common.errors import InputError
from segloc.common.parse import shown

KIND, FORMAT_VERSION = "regions", 3
FILE = file_kind(KIND)
SCHEMA = pa.schema(
    [
        ("image", pa.string()),
        *((name, pa.int32()) for name in ("width", "height", "x0", "y0", "x1", "y1")),
        # Bags that make up the region, from left to right: x0, y0, x1, y1 each. Mode `paper` finds only the region.
        ("bags", pa.list_(pa.list_(pa.int32()))),
        ("background_level", pa.uint8()),
        # Of the file: an edited scan gives a different table even when its region is the same.
        ("crc32", pa.uint32()),
        ("status", pa.string()),
        ("message", pa.string()),
    ]
)
_GROUP_ROWS = 65_536


def writer(path: Path) -> AbstractContextManager[TableWriter]:
    """Prepare a table of regions."""
    return table_writer(path, KIND, FORMAT_VERSION, SCHEMA, group_rows=_GROUP_ROWS)


@dataclasses.dataclass(frozen=True)
class Regions:
    """The usable backgrounds of a table.

    Attributes:
        images: paths relative to the root, sorted.
        sizes: int32 [n, 2], (width, height) in pixels.
        bags: per scan a list of its bags from left to right, each x0, y0, x1, y1 in pixels of the scan.
        levels: uint8 [n], grey level of the empty belt.
        crcs: uint32 [n], CRC-32 of the file.
        white: white level that the scans were read with; None for 8-bit scans and in older tables.
        mode: how the regions were found, ``adaptive`` or ``paper``.
    """

    images: pa.ChunkedArray
    sizes: np.ndarray
    bags: pa.ChunkedArray
    levels: np.ndarray
    crcs: np.ndarray
    white: int | None
    mode: str

    def draw_bag(self, rng: np.random.Generator, number: int) -> Box:
        """Draw one of the bags of scan `number`, with probability proportional to its area."""
        bags = self.bags[number].as_py()
        areas = [(x1 - x0) * (y1 - y0) for x0, y0, x1, y1 in bags]
        place = rng.random() * sum(areas) if len(bags) > 1 else 0.0
        x0, y0, x1, y1 = bags[min(int(np.searchsorted(np.cumsum(areas), place, side="right")), len(bags) - 1)]
        return x0, y0, x1, y1


def load(path: Path) -> Regions:
    """Read the rows with status ``ok``.

    Raises:
        InputError: not a table of regions, damaged, or fewer than two usable backgrounds.
    """
    file, parameters = open_table(path, KIND, FORMAT_VERSION, SCHEMA)
    table = file.read(columns=["image", "width", "height", "bags", "background_level", "crc32", "status"])
    table = table.filter(pc.equal(table["status"], "ok"))
    with reading(path):
        refuse_nulls(table)
        _check_bags(table)
    if len(table) < 2:
        raise InputError(f"{path}: {len(table)} usable backgrounds, but a pair needs two; add benign scans")
    sizes = np.stack([table["width"].to_numpy(), table["height"].to_numpy()], 1)
    levels, crcs = table["background_level"].to_numpy(), table["crc32"].to_numpy()
    white, mode = white_level.stored(parameters, path), parameters.get("mode")
    if not isinstance(mode, str):
        raise InputError(f"{path}: its mode is {shown(mode)}, not a text; make the table again")
    return Regions(table["image"], sizes, table["bags"], levels, crcs, white, mode)


def _check_bags(table: pa.Table) -> None:
    """Check that every scan has a bag, and that each bag is four edges inside its scan.

    Raises:
        ValueError: a bag is missing or impossible.
    """
    table = table.combine_chunks()
    bags = table["bags"].combine_chunks()
    edges = bags.flatten()
    if len(table) == 0:
        return
    if edges.null_count or edges.flatten().null_count or pc.min(pc.list_value_length(bags)).as_py() < 1:
        raise ValueError("a scan without a bag")
    if pc.any(pc.not_equal(pc.list_value_length(edges), 4)).as_py():
        raise ValueError("a bag that is not four edges")
    x0, y0, x1, y1 = edges.flatten().to_numpy().reshape(-1, 4).T
    scan = pc.list_parent_indices(bags).to_numpy()
    width, height = (table[name].to_numpy()[scan] for name in ("width", "height"))
    if not ((x0 >= 0) & (y0 >= 0) & (x0 < x1) & (y0 < y1) & (x1 <= width) & (y1 <= height)).all():
        raise ValueError("a bag outside its scan")
