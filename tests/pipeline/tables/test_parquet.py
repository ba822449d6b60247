"""Common behaviour of all tables."""

import resource
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.tables.parquet import open_table, table_writer
from segloc.common.errors import InputError

SCHEMA = pa.schema([("name", pa.string()), ("width", pa.int32())])


def test_rows_and_parameters_come_back_and_absent_is_null(tmp_path: Path) -> None:
    with table_writer(tmp_path / "t.parquet", "things", 4, SCHEMA, group_rows=2) as table:
        for row in ({"name": "a", "width": 1}, {"name": "b"}, {"width": 3}):
            table.write(row)
        table.parameters["mode"] = "paper"
    file, parameters = open_table(tmp_path / "t.parquet", "things", 4, SCHEMA)
    rows = [{"name": "a", "width": 1}, {"name": "b", "width": None}, {"name": None, "width": 3}]
    assert file.read().to_pylist() == rows
    assert parameters == {"mode": "paper"}
    assert [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)] == [2, 1]


def test_a_value_without_a_column_raises(tmp_path: Path) -> None:
    with (
        pytest.raises(AssertionError, match=r"not in the schema: \['colour'\]"),
        table_writer(tmp_path / "t.parquet", "things", 4, SCHEMA, group_rows=2) as table,
    ):
        table.write({"name": "a", "colour": "red"})
    assert not (tmp_path / "t.parquet").exists()


@pytest.mark.parametrize(
    ("kind", "version", "columns", "message"),
    [
        ("others", 4, {}, "not a table of others"),
        ("things", 5, {}, "format .4. of things, but this version reads 5"),
        ("things", 4, {"height": pa.int32()}, "column height is missing"),
        ("things", 4, {"width": pa.string()}, "column width is of another type"),
    ],
)
def test_another_table_is_refused(
    kind: str, version: int, columns: dict[str, pa.DataType], message: str, tmp_path: Path
) -> None:
    with table_writer(tmp_path / "t.parquet", "things", 4, SCHEMA, group_rows=2) as table:
        table.write({"name": "a"})
    with pytest.raises(InputError, match=message):
        open_table(tmp_path / "t.parquet", kind, version, pa.schema(columns))


def test_a_truncated_file_is_refused(tmp_path: Path) -> None:
    pq.write_table(pa.table({"name": ["a"]}), tmp_path / "t.parquet")
    (tmp_path / "t.parquet").write_bytes((tmp_path / "t.parquet").read_bytes()[:-9])
    with pytest.raises(InputError, match="not a Parquet file, truncated or damaged"):
        open_table(tmp_path / "t.parquet", "things", 4, pa.schema([]))


@pytest.mark.filterwarnings(
    "error::pytest.PytestUnraisableExceptionWarning"
)  # an open writer complains when it is deleted
@pytest.mark.parametrize("share", [0.0, 0.3, 0.6, 0.9, 0.99])
def test_a_file_that_cannot_grow_is_one_error_that_names_it(tmp_path: Path, share: float) -> None:
    """Wherever the disk ends: in a group of rows, in the footer or in the checksums."""

    def write(path: Path) -> None:
        with table_writer(path, "things", 4, SCHEMA, group_rows=4, compression="none") as table:
            for number in range(2000):
                table.write({"name": f"{number:09d}", "width": number})

    write(tmp_path / "whole.parquet")
    path, before = tmp_path / "t.parquet", resource.getrlimit(resource.RLIMIT_FSIZE)
    limit = int(share * (tmp_path / "whole.parquet").stat().st_size)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        with pytest.raises(OSError, match="File too large") as error:
            write(path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert error.value.filename == str(path)
    assert [found.name for found in tmp_path.iterdir()] == ["whole.parquet"]
