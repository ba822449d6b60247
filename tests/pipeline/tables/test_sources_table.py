from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from pipeline.tables import region_table, sources_table
from segloc.common.errors import InputError

USES = Counter(
    {("segment", "b#1"): 2, ("background", "é.jpg"): 1, ("background", "a.jpg"): 3, ("occluder", "a.jpg"): 1}
)


def test_rows_are_sorted_and_read_back(tmp_path: Path) -> None:
    first, second = tmp_path / "1", tmp_path / "2"
    sources_table.write_sources(first, USES)
    sources_table.write_sources(second, Counter(dict(reversed(USES.items()))))
    assert first.read_bytes() == second.read_bytes()
    assert sources_table.read(first) == USES
    rows = [tuple(row.values()) for row in pq.read_table(first).to_pylist()]
    assert rows == sorted((kind, name, count) for (kind, name), count in USES.items())


def test_other_tables_are_refused(tmp_path: Path) -> None:
    with region_table.writer(tmp_path / "regions.parquet"):
        pass
    with pytest.raises(InputError, match="not a table of sources"):
        sources_table.read(tmp_path / "regions.parquet")
