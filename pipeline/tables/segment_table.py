"""The table of segments: a row per labelled item with its picture, and a reader that draws items."""

from __future__ import annotations

import dataclasses
import functools
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.tables.parquet import TableWriter, file_kind, open_table, reading, refuse_nulls, table_writer
from segloc.common import white_level
from segloc.common.datasets.near_duplicates import FINGERPRINT_BYTES
from segloc.common.errors import InputError
from segloc.common.images import Image, ImageError, decode_rgba
from segloc.common.parse import shown

KIND, FORMAT_VERSION = "segments", 2
FILE = file_kind(KIND)
SCHEMA = pa.schema(
    [
        ("segment_id", pa.string()),
        ("class_id", pa.int32()),
        ("class_name", pa.string()),
        ("image", pa.string()),
        ("annotation_id", pa.string()),
        *((name, pa.int32()) for name in ("x0", "y0", "x1", "y1", "area", "scan_width", "scan_height")),
        *((name, pa.float32()) for name in ("background_r", "background_g", "background_b")),
        ("cut_by_frame", pa.bool_()),
        ("whole", pa.bool_()),
        ("scan_group", pa.int32()),
        ("scan_fingerprint", pa.binary(FINGERPRINT_BYTES)),
        ("png", pa.binary()),
    ]
)
# Synthesis reads single segments and must read the whole row group of each. Each group also adds a kilobyte to the
# file's footer, which every process reads. PNGs are uncompressed for fast reading.
GROUP_ROWS = 4
_COMPRESSION = {name: "none" if name == "png" else "snappy" for name in SCHEMA.names}
# Decoded segments that a process keeps, some tens of kB each: a twentieth of PIDray's, or all of a small data set's.
_CACHED_SEGMENTS = 2048


def writer(path: Path) -> AbstractContextManager[TableWriter]:
    """Open a table of segments for writing. Its `parameters` must include ``classes``, the names by class id."""
    return table_writer(path, KIND, FORMAT_VERSION, SCHEMA, group_rows=GROUP_ROWS, compression=_COMPRESSION)


@dataclasses.dataclass(frozen=True)
class Segment:
    """An item cut out of its scan.

    Attributes:
        segment_id: id in the table.
        rgba: uint8 [h, w, 4], alpha 0 or 255, tight around the mask; pixels with alpha 0 keep the donor's colours.
        scan_width: width of the donor scan, in pixels.
        background: float32 [3], colour of the donor around the item (RGB, 0..255).
        upright: whether it is pasted without rotation and flips.
    """

    segment_id: str
    rgba: Image
    scan_width: int
    background: npt.NDArray[np.float32]
    upright: bool = False

    @functools.cached_property
    def hull(self) -> npt.NDArray[np.float64]:
        """Convex hull of the mask's pixel centres, float64 [n, 2] as x, y relative to the crop's centre."""
        contours, _ = cv2.findContours(cv2.extractChannel(self.rgba, 3), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
        points = cv2.convexHull(np.concatenate(contours)).reshape(-1, 2).astype(np.float64)
        height, width = self.rgba.shape[:2]
        return points - ((width - 1) / 2, (height - 1) / 2)


class Found(NamedTuple):
    """Position of a segment in its table.

    Attributes:
        row: row number.
        class_id: class of the segment.
        bag: number of its bag; all scans of one bag have the same number.
    """

    row: int
    class_id: int
    bag: int


class SegmentTable:
    """The segments of a table, read one at a time so that workers need little memory.

    Items cut by the frame of their scan are left out, because a straight edge in the middle of a bag gives them away.
    They are kept for classes that otherwise have fewer than the two bags a pair needs.

    Attributes:
        classes: names by class id.
        rows: per class a list of bags, each a list of its rows. All scans of a bag are grouped, so two bags never
            contain the same item.
        instances: whether both items of a pair come from one scan (`pipeline.crops`), not from two bags.
        white: white level that the scans were read with; None for 8-bit scans and in older tables.
        same_bag_bits: most bits in which the fingerprints of two scans of one bag differ; None in older tables.
        usable: ids of the classes that can make pairs: those with items from at least two bags.
        segment: ``segment(row)`` reads and decodes a segment; the most recent ones are cached.
    """

    def __init__(self, path: Path) -> None:
        """Open the table.

        Raises:
            InputError: not a table of segments.
        """
        self._path = path
        self._file, parameters = open_table(path, KIND, FORMAT_VERSION, SCHEMA)
        self.white = white_level.stored(parameters, path)
        self.instances: bool = parameters.get("positives") == "instance"
        self.same_bag_bits = parameters.get("scan_group_threshold_bits")
        columns = ["segment_id", "scan_width", "background_r", "background_g", "background_b"]
        columns += ["class_id", "scan_group", "cut_by_frame"]
        table = self._file.read(columns=columns)
        with reading(path):
            self.classes = _class_names(parameters)
            refuse_nulls(table)
            self._ids, self._widths, *around = (table[name] for name in columns[:5])
            self._around = np.stack([channel.to_numpy() for channel in around], 1).astype(np.float32)
            self._class_ids, self._groups, cut = (table[name].to_numpy() for name in columns[5:])
            if ((self._class_ids < 0) | (self._class_ids >= len(self.classes))).any():
                raise ValueError(f"a class id that is not in 0..{len(self.classes) - 1}")
            if (self._widths.to_numpy() < 1).any() or not np.isfinite(self._around).all():
                raise ValueError("a scan without width or belt colour")
        self.rows = self._bags(cut)
        self.usable = [class_id for class_id, bags in enumerate(self.rows) if len(bags) >= 2]
        about = self._file.metadata
        self._starts = np.cumsum([0] + [about.row_group(i).num_rows for i in range(about.num_row_groups)])
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
        """Draw the candidate rows of both items of a pair: from two bags, or two crops of one scan."""
        bags = self.rows[class_id]
        first = int(rng.integers(len(bags)))
        if self.instances:
            query, key = rng.choice(bags[first], 2, replace=False).tolist()
            return [query], [key]
        return bags[first], bags[(first + int(rng.integers(1, len(bags)))) % len(bags)]

    def segment_id(self, row: int) -> str:
        """Return the id of a row."""
        name: str = self._ids[row].as_py()
        return name

    def find(self, segment_id: str) -> Found | None:
        """Look up a segment; None if the table has no such id."""
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
            if not rgba[..., 3].any():
                raise ImageError("no pixel of it is opaque")
        except ImageError as error:
            raise InputError(f"{self._path}: segment {name!r}: {error}; make the table again") from error
        return Segment(name, rgba, width, self._around[row], upright=self.instances)

    def png(self, row: int) -> bytes:
        """Read the PNG of a row."""
        group = int(np.searchsorted(self._starts, row, side="right")) - 1
        pngs = self._file.read_row_group(group, columns=["png"], use_threads=False).column(0)
        return pngs[row - int(self._starts[group])].as_py() or b""


def _class_names(parameters: dict[str, Any]) -> tuple[str, ...]:
    names = parameters.get("classes")
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        raise ValueError(f"its classes are {shown(names)}, not a list of names")
    return tuple(names)
