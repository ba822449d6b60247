"""The table of sources: how often each background, segment and occluder was used."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa

from pipeline.tables.parquet import open_table, reading, refuse_nulls, table_writer
from segloc.common.contract import Pair

KIND, FORMAT_VERSION = "sources", 1
SCHEMA = pa.schema([("kind", pa.string()), ("name", pa.string()), ("count", pa.int64())])
_GROUP_ROWS = 65_536

Source = tuple[str, str]  # kind (background, segment or occluder) and name


def of_pair(pair: Pair) -> Iterator[Source]:
    """Yield each source of a pair once per use."""
    for view in (pair.query, pair.key):
        yield "background", view.background
        yield "segment", view.segment
        if view.occluder is not None:
            yield "occluder", view.occluder.background


def write_sources(path: Path, uses: Counter[Source]) -> None:
    """Write how often each source was used, sorted by kind and name."""
    with table_writer(path, KIND, FORMAT_VERSION, SCHEMA, group_rows=_GROUP_ROWS) as table:
        for (kind, name), count in sorted(uses.items()):
            table.write({"kind": kind, "name": name, "count": count})


def read(path: Path) -> Counter[Source]:
    """Read how often each source was used.

    Raises:
        InputError: the file is missing, damaged or another table.
    """
    file, _ = open_table(path, KIND, FORMAT_VERSION, SCHEMA)
    table = file.read(columns=SCHEMA.names)
    with reading(path):
        refuse_nulls(table)
        columns = table.to_pydict()
        if min(columns["count"], default=1) < 1:
            raise ValueError(f"a count of {min(columns['count'])}")
    return Counter({(kind, name): count for kind, name, count in zip(*columns.values(), strict=True)})
