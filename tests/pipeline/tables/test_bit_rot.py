"""Damage to a table is found before its values are used."""

from __future__ import annotations

import itertools
import zlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.tables import parquet, region_table, segment_table, sources_table
from pipeline.tables.parquet import open_table, table_writer
from segloc.common.errors import InputError
from tests.faults.readers.tables import write_tables

FLIPS = 600  # per table; 1,800 in all
TABLES = {"regions": region_table, "segments": segment_table, "sources": sources_table}


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tables")
    write_tables(folder)
    return folder


def content(path: Path) -> object:
    """Everything that a table gives to its users."""
    kind = TABLES[path.stem]
    file, parameters = open_table(path, kind.KIND, kind.FORMAT_VERSION, kind.SCHEMA)
    return file.read().to_pylist(), parameters


@pytest.mark.parametrize("kind", TABLES)
def test_no_flipped_bit_passes_as_other_values(kind: str, tables: Path, tmp_path: Path) -> None:
    path = tmp_path / f"{kind}.parquet"
    whole, expected = (tables / path.name).read_bytes(), content(tables / path.name)
    rng, refused = np.random.default_rng(0), 0
    for place in rng.integers(0, 8 * len(whole), FLIPS).tolist():
        data = bytearray(whole)
        data[place // 8] ^= 1 << place % 8
        path.write_bytes(data)
        try:
            found = content(path)
        except InputError as error:
            refused += str(path) in str(error)
        else:
            assert found == expected, f"bit {place}"
    assert refused > 0.98 * FLIPS


def test_a_picture_is_checked_when_it_is_read(tables: Path, tmp_path: Path) -> None:
    whole = (tables / "segments.parquet").read_bytes()
    data = bytearray(whole)
    data[whole.index(b"\x89PNG") + 60] ^= 1
    (tmp_path / "s.parquet").write_bytes(data)
    table = segment_table.SegmentTable(tmp_path / "s.parquet")  # reads no picture
    assert table.segment(9).segment_id == "9.png#9"
    with pytest.raises(InputError, match=r"s\.parquet: damaged \(wrong checksum of row group 0\)"):
        table.segment(0)


def test_a_table_without_checksums_is_read_with_a_note(
    tables: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old = pq.read_table(tables / "regions.parquet")
    about = {key: value for key, value in old.schema.metadata.items() if key != b"segloc.checked"}
    pq.write_table(old.replace_schema_metadata(about), tmp_path / "regions.parquet")
    assert capsys.readouterr().err == ""
    assert content(tmp_path / "regions.parquet") == content(tables / "regions.parquet")
    assert capsys.readouterr().err == (
        f"{tmp_path / 'regions.parquet'}: written without checksums, so damage would not be found; make it again\n"
    )


def test_checksums_that_were_cut_off_are_missed(tables: Path, tmp_path: Path) -> None:
    data = (tables / "regions.parquet").read_bytes()
    at = data.index(b"SEGLOC/1")
    (tmp_path / "t.parquet").write_bytes(data[:at] + b"SEGLOC/0" + data[at + 8 :])
    with pytest.raises(InputError, match="its checksums are damaged"):
        region_table.load(tmp_path / "t.parquet")


def test_other_readers_of_parquet_read_the_table(tables: Path) -> None:
    rows = pq.read_table(tables / "segments.parquet", columns=["segment_id"]).to_pylist()
    assert [row["segment_id"] for row in rows] == [f"{number}.png#{number}" for number in range(10)]


def test_a_file_that_claims_a_billion_values_is_refused(tmp_path: Path) -> None:
    schema = pa.schema([("name", pa.string()), ("numbers", pa.list_(pa.int32()))])
    with table_writer(tmp_path / "rows.parquet", "things", 1, schema, group_rows=10**6) as table:
        for _ in range(200_000):
            table.write({"name": "a", "numbers": []})
    with table_writer(tmp_path / "list.parquet", "things", 1, schema, group_rows=10) as table:
        table.write({"name": "a", "numbers": [7] * 10**6})
    for name, message in (("rows", "claims 200000 rows"), ("list", "1000000 numbers in lists")):
        with pytest.raises(InputError, match=message):
            open_table(tmp_path / f"{name}.parquet", "things", 1, schema)


@pytest.mark.parametrize(("rows", "refused"), [(600, False), (700, True)])
@pytest.mark.parametrize("groups", [1000, 300])
def test_a_long_value_that_repeats_is_not_copied_into_every_row(tmp_path, rows, refused, groups):
    schema = pa.schema([("name", pa.string()), ("png", pa.binary())])
    path = tmp_path / "t.parquet"
    with table_writer(path, "things", 1, schema, group_rows=groups) as table:
        for number in range(rows):
            table.write({"name": "a" * 100_000 if number else None, "png": b"x"})
    assert path.stat().st_size < 100_000
    file, _ = open_table(path, "things", 1, schema)
    assert file.read(["png"]).column(0).to_pylist() == [b"x"] * rows
    if refused:
        before = pa.total_allocated_bytes()
        with pytest.raises(InputError, match=f"its text takes {(rows - 1) * 100_000 + rows} bytes.*make it again"):
            file.read()
        assert pa.total_allocated_bytes() - before < 1 << 20
    else:
        found = file.read()
        assert found.schema.equals(schema)
        assert found.column("name").to_pylist() == [None, *["a" * 100_000] * (rows - 1)]


def test_every_part_has_the_checksum_of_its_bytes(tables: Path) -> None:
    data = (tables / "segments.parquet").read_bytes()
    footer = len(data) - 8 - int.from_bytes(data[-8:-4], "little")
    count = int.from_bytes(data[footer - 16 : footer - 12], "little")
    parts = np.frombuffer(data[footer - 16 - 20 * count : footer - 16], parquet._PART)
    assert [zlib.crc32(data[start : start + size]) for start, size, _ in parts.tolist()] == parts["crc"].tolist()
    covered = sorted((start, start + size) for start, size, _ in parts.tolist())
    assert covered[0][0] == 4  # after the file's first four bytes, everything but the table of parts is covered
    assert all(end == start for (_, end), (start, _) in itertools.pairwise(covered[:-1]))
    assert covered[-1] == (footer, len(data))


def test_a_copy_by_another_program_is_read_with_a_note(
    tables: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = pq.read_table(tables / "sources.parquet")  # with its metadata
    pq.write_table(table, tmp_path / "sources.parquet")
    assert content(tmp_path / "sources.parquet") == content(tables / "sources.parquet")
    assert "written without checksums" in capsys.readouterr().err
