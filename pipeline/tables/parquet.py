"""Parquet tables that say what they are: format version and parameters travel in the schema's metadata."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from types import TracebackType
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from segloc.common.errors import InputError, one_line
from segloc.common.files import atomic_file, existing_file

_VERSION_KEY, _PARAMETERS_KEY = "segloc.{kind}.format_version", "segloc.parameters"


class TableWriter:
    """Streams rows into a table that appears under its name, complete, when the ``with`` block ends well.

    Row groups have a fixed number of rows, so equal rows give equal bytes however they arrive.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        kind: str,
        version: int,
        schema: pa.Schema,
        *,
        group_rows: int,
        compression: str | dict[str, str] = "snappy",
    ) -> None:
        """Prepare the table; the file is opened by ``with``.

        Args:
            path: where the table goes.
            kind: what it holds, checked by readers.
            version: format version, checked by readers.
            schema: names and types of its columns.
            group_rows: rows per row group, the unit of reading.
            compression: codec, or a codec per column. Columns of codec ``none`` are stored as they are.
        """
        self.parameters: dict[str, Any] = {}
        self._version = {_VERSION_KEY.format(kind=kind): str(version)}
        self._schema, self._group_rows, self._compression = schema, group_rows, compression
        codecs = compression if isinstance(compression, dict) else {}
        self._repetitive = [name for name in schema.names if codecs.get(name) != "none"]
        self._rows: list[Mapping[str, Any]] = []
        self._file = atomic_file(path)

    def __enter__(self) -> TableWriter:
        # Without the stored Arrow schema, readers take the schema's metadata from what is added at the end.
        self._parquet = pq.ParquetWriter(
            self._file.__enter__(),
            self._schema,
            compression=self._compression,
            use_dictionary=self._repetitive,
            store_schema=False,
            write_statistics=False,  # nobody filters by them
        )
        return self

    def write(self, row: Mapping[str, Any]) -> None:
        """Append a row: a value per column, None or absent for null."""
        self._rows.append(row)
        if len(self._rows) == self._group_rows:
            self._flush()

    def _flush(self) -> None:
        if self._rows:
            self._parquet.write_table(pa.Table.from_pylist(list(self._rows), schema=self._schema))
            self._rows.clear()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            # Closed first, as a writer left open complains of a closed file; on a full disk it fails once more.
            with contextlib.suppress(OSError):
                self._parquet.close()
            self._file.__exit__(kind, error, trace)
            return
        try:
            self._flush()
            text = json.dumps(self.parameters, sort_keys=True, ensure_ascii=False)
            self._parquet.add_key_value_metadata({**self._version, _PARAMETERS_KEY: text})
            self._parquet.close()
        except BaseException as failure:
            self._file.__exit__(type(failure), failure, failure.__traceback__)
            raise
        self._file.__exit__(None, None, None)


@contextlib.contextmanager
def reading(path: str | os.PathLike[str]) -> Iterator[None]:
    """Turn what goes wrong while a table is read into an `InputError` that names it."""
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{path}: damaged, make it again ({one_line(error)})") from error


def open_table(
    path: str | os.PathLike[str], kind: str, version: int, columns: Iterable[str]
) -> tuple[pq.ParquetFile, dict[str, Any]]:
    """Open a table written by `TableWriter`, memory-mapped.

    Returns:
        The file and its parameters.

    Raises:
        InputError: missing, not a table of this kind and version, or without one of the `columns`.
    """
    path = existing_file(path, f"table of {kind}")
    try:
        table = pq.ParquetFile(path, memory_map=True)
    except (pa.ArrowInvalid, OSError) as error:
        raise InputError(f"{path}: not a Parquet file, or cut short") from error
    metadata = table.schema_arrow.metadata or {}
    found = metadata.get(_VERSION_KEY.format(kind=kind).encode())
    if found is None:
        raise InputError(f"{path}: not a table of {kind}")
    if found != str(version).encode():
        raise InputError(f"{path}: format {found.decode()} of {kind}, this version reads {version}; make it again")
    if missing := sorted(set(columns) - set(table.schema_arrow.names)):
        raise InputError(f"{path}: no column {', '.join(missing)}")
    return table, json.loads(metadata[_PARAMETERS_KEY.encode()])
