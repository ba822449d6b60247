"""Tables of regions, segments and sources."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.tables import region_table, segment_table, sources_table
from segloc.common.images import encode_rgba
from tests.faults.mutations import changed, damaged, odd
from tests.faults.readers.registry import target


def write_tables(folder: Path) -> None:
    """Write a small table of each kind."""
    with region_table.writer(folder / "regions.parquet") as table:
        for number in range(6):
            bags = [[1, 2, 30, 40], [31, 2, 60, 40]]
            row = {"image": f"{number}.jpg", "width": 80, "height": 60, "bags": bags, "background_level": 250}
            row |= {"x0": 1, "y0": 2, "x1": 60, "y1": 40, "crc32": 5, "status": "ok", "message": ""}
            table.write({name: value for name, value in row.items() if name in region_table.SCHEMA.names})
        table.parameters["mode"] = "paper"
    with segment_table.writer(folder / "segments.parquet") as table:
        for number in range(10):
            rgba = np.random.default_rng(number).integers(0, 255, (20, 16, 4), np.uint8)
            rgba[..., 3] = 255
            row = {"segment_id": f"{number}.png#{number}", "class_id": number % 2, "class_name": "ab"[number % 2]}
            row |= {"image": f"{number}.png", "annotation_id": str(number), "x0": 1, "y0": 2, "x1": 17, "y1": 22}
            row |= {"area": 320, "scan_width": 80, "scan_height": 60, "cut_by_frame": False, "whole": True}
            row |= dict.fromkeys(("background_r", "background_g", "background_b"), 250.0)
            row |= {"scan_group": number, "scan_fingerprint": bytes(32), "png": encode_rgba(rgba)}
            fingerprint = segment_table.SCHEMA.field("scan_fingerprint").type.byte_width
            row["scan_fingerprint"] = bytes(fingerprint)
            table.write({name: value for name, value in row.items() if name in segment_table.SCHEMA.names})
        table.parameters |= {"classes": ["a", "b"], "counts": {"a": 5, "b": 5}, "skipped": {}}
    uses = {("background", f"{number}.jpg"): number for number in range(6)}
    sources_table.write_sources(folder / "sources.parquet", uses)  # type: ignore[arg-type]


def _read_table(kind: str, path: Path, rng: np.random.Generator) -> None:
    if kind == "regions":
        regions = region_table.load(path)
        for number in range(min(len(regions.images), 3)):
            box = regions.draw_bag(rng, number)
            assert all(isinstance(edge, int) for edge in box)
    elif kind == "sources":
        assert all(count >= 0 for count in sources_table.read(path).values())
    else:
        table = segment_table.SegmentTable(path)
        for class_id in table.usable[:2]:
            for rows in table.draw(rng, class_id):
                segment = table.segment(rows[0])
                assert segment.hull.ndim == 2
                table.find(segment.segment_id)


@target("tables: bytes", write_tables)
def table_bytes(rng: np.random.Generator, folder: Path) -> None:
    """Random damage; what is read without an error has the right values."""
    kind = ("regions", "segments", "sources")[rng.integers(3)]
    whole = (folder / f"{kind}.parquet").read_bytes()
    (folder / "t.parquet").write_bytes(damaged(whole, rng))
    _read_table(kind, folder / "t.parquet", rng)


@target("tables: values", write_tables)
def table_values(rng: np.random.Generator, folder: Path) -> None:
    """Tables that another program wrote: odd values, types, columns and metadata."""
    kind = ("regions", "segments", "sources")[rng.integers(3)]
    good = pq.read_table(folder / f"{kind}.parquet")
    columns = {name: good[name].to_pylist() for name in good.schema.names}
    metadata = {key.decode(): value.decode() for key, value in good.schema.metadata.items() if key != b"segloc.checked"}
    if rng.random() < 0.4:
        key = list(metadata)[rng.integers(len(metadata))]
        value = json.dumps(changed(json.loads(metadata[key]), rng)) if rng.random() < 0.7 else str(odd(rng))
        metadata[key] = value.encode("utf-8", "replace").decode()
    else:
        name = list(columns)[rng.integers(len(columns))]
        values = changed(columns[name], rng)
        columns[name] = ((values if isinstance(values, list) else [values]) * len(good))[: len(good)]
        columns[name] += [None] * (len(good) - len(columns[name]))
    typed = rng.random() < 0.7
    try:
        arrays = [pa.array(v, good.schema.field(n).type if typed else None) for n, v in columns.items()]
        table = pa.table(dict(zip(columns, arrays, strict=True))).replace_schema_metadata(metadata)
        pq.write_table(table, folder / "t.parquet", row_group_size=4)
    except (pa.ArrowException, OverflowError, TypeError, ValueError):
        return  # no table can hold this value
    _read_table(kind, folder / "t.parquet", rng)
