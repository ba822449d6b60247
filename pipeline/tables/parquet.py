"""Parquet tables with their format version and parameters in the schema's metadata."""

from __future__ import annotations

import contextlib
import json
import mmap
import os
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from segloc.common.errors import InputError, one_line
from segloc.common.files import atomic_file, existing_file

_VERSION_KEY, _PARAMETERS_KEY = "segloc.{kind}.format_version", "segloc.parameters"


class TableWriter:
    """Collects the rows of a table; see `table_writer`.

    Attributes:
        parameters: JSON values to store in the schema's metadata.
    """

    def __init__(self, parquet: pq.ParquetWriter, schema: pa.Schema, group_rows: int) -> None:
        self.parameters: dict[str, Any] = {}
        self._parquet, self._schema, self._group_rows = parquet, schema, group_rows
        self._columns = frozenset(schema.names)
        self._rows: list[Mapping[str, Any]] = []

    def write(self, row: Mapping[str, Any]) -> None:
        """Append a row: a value per column, None or absent for null."""
        assert row.keys() <= self._columns, f"not in the schema: {sorted(row.keys() - self._columns)}"
        self._rows.append(row)
        if len(self._rows) == self._group_rows:
            self.flush()

    def flush(self) -> None:
        """Write the rows of an unfinished group."""
        if self._rows:
            self._parquet.write_table(pa.Table.from_pylist(self._rows, schema=self._schema))
            self._rows.clear()


@contextlib.contextmanager
def table_writer(
    path: str | os.PathLike[str],
    kind: str,
    version: int,
    schema: pa.Schema,
    *,
    group_rows: int,
    compression: str | dict[str, str] = "snappy",
) -> Iterator[TableWriter]:
    """Stream rows into a table. The file appears under its name, complete, when the ``with`` block ends without error.

    Row groups have a fixed number of rows, so equal rows give equal bytes.

    Args:
        path: output file.
        kind: kind of table, checked by readers.
        version: format version, checked by readers.
        schema: names and types of its columns.
        group_rows: rows per row group, the unit of reading.
        compression: codec, or a codec per column. Columns of codec ``none`` are stored uncompressed.
    """
    codecs = compression if isinstance(compression, dict) else {}
    repetitive = [name for name in schema.names if codecs.get(name) != "none"]
    # Without the stored Arrow schema, readers use the metadata that is added at the end.
    options = {"store_schema": False, "write_statistics": False}  # nobody filters by statistics
    with atomic_file(path) as file:
        parquet = pq.ParquetWriter(file, schema, compression=compression, use_dictionary=repetitive, **options)
        try:
            table = TableWriter(parquet, schema, group_rows)
            yield table
            table.flush()
            text = json.dumps(table.parameters, sort_keys=True, ensure_ascii=False)
            parquet.add_key_value_metadata({_VERSION_KEY.format(kind=kind): str(version), _PARAMETERS_KEY: text})
        except BaseException:
            # An open writer later complains about the closed file. On a full disk, closing fails again.
            with contextlib.suppress(OSError):
                parquet.close()
            raise
        parquet.close()


@contextlib.contextmanager
def reading(path: str | os.PathLike[str]) -> Iterator[None]:
    """Turn errors while reading a table into an `InputError` that names the file."""
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{path}: damaged ({one_line(error)}); make it again") from error


def open_table(
    path: str | os.PathLike[str], kind: str, version: int, columns: Iterable[str]
) -> tuple[pq.ParquetFile, dict[str, Any]]:
    """Open a table written by `table_writer`, memory-mapped.

    Returns:
        The file and its parameters.

    Raises:
        InputError: the file is missing, of another kind or version, or lacks one of the `columns`.
    """
    path = existing_file(path, f"table of {kind}")
    try:
        table = pq.ParquetFile(_mapped(path))
    except (ValueError, OSError) as error:  # pa.ArrowInvalid is a ValueError
        raise InputError(f"{path}: not a Parquet file, or truncated; choose another file or make it again") from error
    metadata = table.schema_arrow.metadata or {}
    found = metadata.get(_VERSION_KEY.format(kind=kind).encode())
    if found is None:
        raise InputError(f"{path}: not a table of {kind}; choose another file")
    if found != str(version).encode():
        raise InputError(f"{path}: format {found.decode()} of {kind}, but this version reads {version}; make it again")
    if missing := sorted(set(columns) - set(table.schema_arrow.names)):
        raise InputError(f"{path}: column {', '.join(missing)} is missing; make the table again")
    return table, json.loads(metadata[_PARAMETERS_KEY.encode()])


def _mapped(path: str | os.PathLike[str]) -> pa.BufferReader:
    """Map a file into memory. Arrow opens only paths that are UTF-8."""
    with open(path, "rb") as file:
        return pa.BufferReader(pa.py_buffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)))
