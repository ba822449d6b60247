"""Parquet tables with their format version and parameters in the schema's metadata, and with checksums.

The checksums stand between the last row group and Parquet's footer, where other readers do not look. They cover every
byte of the values and of the footer, and are checked before Arrow decodes what they cover: one part at a time, so that
a table of many gigabytes opens without reading its pictures.
"""

from __future__ import annotations

import contextlib
import json
import mmap
import multiprocessing
import os
import struct
import sys
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from segloc.common.errors import InputError, one_line
from segloc.common.files import atomic_file, existing_file
from segloc.common.output_kinds import Kind, parquet
from segloc.common.parse import WRONG, parse_json, shown

_VERSION_KEY, _PARAMETERS_KEY, _PARTS_KEY = "segloc.{kind}.format_version", "segloc.parameters", "segloc.checked"
# A part of the file and its CRC-32. The table of parts ends with their number, its own CRC-32 and the magic.
_PART = np.dtype([("start", "<u8"), ("bytes", "<u8"), ("crc", "<u4")])
_END = struct.Struct("<II8s")
_MAGIC = b"SEGLOC/1"
_FOOTER_TAIL = struct.Struct("<I4s")  # Parquet's: bytes of the footer before it, "PAR1"
# Names and digests hardly repeat, so that a row takes more than a byte of the file and unpacks to little more. Ten
# bytes of Parquet can claim a billion rows.
_MOST_EXPANDED, _ANY_BYTES = 64, 1 << 26


def file_kind(kind: str) -> Kind:
    """Return what a table of this kind may replace."""
    return parquet(f"a table of {kind}", _VERSION_KEY.format(kind=kind))


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
    parts = [part for part in (repetitive, [name for name in schema.names if name not in repetitive]) if part]
    assert [name for part in parts for name in part] == schema.names, "uncompressed columns come last"
    # Without the stored Arrow schema, readers use the metadata that is added at the end.
    options: dict[str, Any] = {"store_schema": False, "write_statistics": False}  # nobody filters by statistics
    with atomic_file(path) as file:
        written: list[pq.FileMetaData] = []
        options |= {"use_dictionary": repetitive, "metadata_collector": written}
        parquet = pq.ParquetWriter(file, schema, compression=compression, **options)
        try:
            table = TableWriter(parquet, schema, group_rows)
            yield table
            table.flush()
            text = json.dumps(table.parameters, sort_keys=True, ensure_ascii=False)
            about = {_VERSION_KEY.format(kind=kind): str(version), _PARAMETERS_KEY: text}
            parquet.add_key_value_metadata({**about, _PARTS_KEY: json.dumps({"parts": parts, "end": file.tell()})})
            parquet.close()
        except BaseException:
            # An open writer later complains about the closed file. On a full disk, closing fails again, or has no
            # metadata to collect.
            with contextlib.suppress(OSError, RuntimeError):
                parquet.close()
            raise
        _insert_checksums(file, written[0], [len(part) for part in parts])


def _insert_checksums(file: BinaryIO, written: pq.FileMetaData, parts: Sequence[int]) -> None:
    """Insert the table of parts before the footer of a finished Parquet file.

    Args:
        file: a new file, open for reading and writing.
        written: its metadata.
        parts: number of columns of each part of a row group.
    """
    file.flush()
    with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        footer, found = _footer(data), []
        for group in (written.row_group(number) for number in range(written.num_row_groups)):
            column = 0
            for columns in parts:
                chunks = [group.column(column + offset) for offset in range(columns)]
                column += columns
                # A dictionary, where there is one, comes first.
                start = chunks[0].dictionary_page_offset or chunks[0].data_page_offset
                found.append((start, sum(chunk.total_compressed_size for chunk in chunks)))
        last = bytes(data[footer:])
        table = np.zeros(len(found) + 1, _PART)
        for row, (start, length) in enumerate(found):
            table[row] = start, length, zlib.crc32(memoryview(data)[start : start + length])
    table[-1] = footer + _block_bytes(len(found)), len(last), zlib.crc32(last)
    block = table.tobytes()
    file.seek(footer)
    file.write(block + _END.pack(len(table), zlib.crc32(block), _MAGIC) + last)


@contextlib.contextmanager
def reading(path: str | os.PathLike[str]) -> Iterator[None]:
    """Turn errors while reading a table into an `InputError` that names the file."""
    try:
        yield
    except InputError:
        raise
    except (pa.ArrowException, OSError, *WRONG) as error:
        raise InputError(f"{path}: damaged ({one_line(error)}); make it again") from error


class TableFile:
    """A table opened for reading; see `open_table`.

    Attributes:
        parameters: as its writer stored them.
        metadata: Parquet's.
    """

    def __init__(self, path: Path) -> None:
        """Open a table, check its footer, and print a note if it has no checksums."""
        self._path = path
        with open(path, "rb") as file:
            self._data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self._most_bytes = max(_MOST_EXPANDED * len(self._data), _ANY_BYTES)
        self._parts = _read_parts(self._data)
        self.metadata: pq.FileMetaData = pq.read_metadata(_mapped(path))
        leaves = [self.metadata.schema.column(number) for number in range(self.metadata.num_columns)]
        texts = [leaf.path for leaf in leaves if leaf.physical_type == "BYTE_ARRAY"]
        # A value that repeats is read once, so that its rows can be counted before they are filled with copies.
        self._file = pq.ParquetFile(_mapped(path), metadata=self.metadata, read_dictionary=texts)
        self._schema = pa.schema([_plain(field) for field in self._file.schema_arrow])
        self._refuse_bombs()
        about = {key.decode(): value for key, value in (self.metadata.metadata or {}).items()}
        self._runs: list[list[str]] = []
        checked = parse_json(about.get(_PARTS_KEY, b"null"), path)
        if self._parts is not None:
            self._runs = checked["parts"]
        elif checked and _footer(self._data) == checked["end"] + _block_bytes(
            len(checked["parts"]) * self.num_row_groups
        ):
            raise ValueError("its checksums are damaged")
        elif multiprocessing.parent_process() is None:
            # Written by an earlier version, or by another program that copied the metadata.
            print(f"{path}: written without checksums, so damage would not be found; make it again", file=sys.stderr)
        self._about = about

    @property
    def num_row_groups(self) -> int:
        """Number of row groups."""
        return int(self.metadata.num_row_groups)

    @property
    def names(self) -> list[str]:
        """Names of the columns."""
        return list(self._schema.names)

    def schema_matches(self, schema: pa.Schema) -> str:
        """Name a column of `schema` that is of another type here; empty if there is none."""
        found = self._schema
        return next((f.name for f in schema if f.name in found.names and found.field(f.name).type != f.type), "")

    def about(self, key: str) -> bytes | None:
        """Value of a key of the metadata; None if it is missing."""
        return self._about.get(key)

    def read(self, columns: Sequence[str] | None = None) -> pa.Table:
        """Read columns; None reads all.

        Raises:
            InputError: the table is damaged.
        """
        with reading(self._path):
            self._check(range(self.num_row_groups), columns)
            return self._expanded(self._file.read(columns=columns))

    def read_row_group(self, group: int, columns: Sequence[str] | None = None, use_threads: bool = True) -> pa.Table:
        """Read columns of one row group; see `read`."""
        with reading(self._path):
            self._check([group], columns)
            return self._expanded(self._file.read_row_group(group, columns=columns, use_threads=use_threads))

    def _expanded(self, table: pa.Table) -> pa.Table:
        """Copy repeated values into their rows, unless they would take far more than a real file's."""
        lengths = (
            pc.sum(pc.take(pc.binary_length(chunk.dictionary), chunk.indices).cast(pa.int64())).as_py() or 0
            for column in table.columns
            if pa.types.is_dictionary(column.type)
            for chunk in column.chunks
        )
        if (needed := sum(lengths)) > self._most_bytes:
            raise ValueError(f"its text takes {needed} bytes, and a real file's of its size at most {self._most_bytes}")
        return table.cast(pa.schema([self._schema.field(name) for name in table.column_names]))

    def _check(self, groups: Iterable[int], columns: Sequence[str] | None) -> None:
        """Compare the CRC of the parts that hold these columns."""
        if self._parts is None:
            return
        wanted = [run for run, names in enumerate(self._runs) if columns is None or set(names) & set(columns)]
        view = memoryview(self._data)
        for group in groups:
            for start, length, crc in self._parts[[group * len(self._runs) + run for run in wanted]].tolist():
                if zlib.crc32(view[start : start + length]) != crc:
                    raise ValueError(f"wrong checksum of row group {group}")

    def _refuse_bombs(self) -> None:
        """Refuse a file that claims far more values than a real one of its size holds."""
        groups = [self.metadata.row_group(number) for number in range(self.num_row_groups)]
        nested = [n for n in range(self.metadata.num_columns) if self.metadata.schema.column(n).max_repetition_level]
        values = sum(group.column(number).num_values for group in groups for number in nested)
        unpacked = sum(group.total_byte_size for group in groups)
        if max(self.metadata.num_rows, values) > len(self._data) or unpacked > self._most_bytes:
            raise ValueError(
                f"claims {self.metadata.num_rows} rows, {values} numbers in lists and {unpacked} bytes in a file of "
                f"{len(self._data)}"
            )


def _plain(field: pa.Field) -> pa.Field:
    return field.with_type(field.type.value_type) if pa.types.is_dictionary(field.type) else field


def _mapped(path: str | os.PathLike[str]) -> pa.MemoryMappedFile:
    """Map a file into memory for Arrow.

    Its threads would release a buffer of Python's while Python ends, which aborts the process.
    """
    try:
        os.fspath(path).encode()
    except UnicodeEncodeError:  # Arrow opens only paths that are UTF-8
        with open(path, "rb") as file:
            return pa.memory_map(f"/dev/fd/{file.fileno()}")
    return pa.memory_map(os.fspath(path))


def refuse_nulls(table: pa.Table) -> None:
    """Check that all columns of a table have a value in each row.

    Raises:
        ValueError: one has not.
    """
    for name, column in zip(table.column_names, table.columns, strict=True):
        if column.null_count:
            raise ValueError(f"column {name} has rows without a value")


def _footer(data: mmap.mmap) -> int:
    """Position of Parquet's footer, whose length is near the end of the file; negative for another file."""
    end = len(data) - _FOOTER_TAIL.size
    return int(end - _FOOTER_TAIL.unpack_from(data, end)[0]) if end > 0 else -1


def _block_bytes(parts: int) -> int:
    """Size of the table of parts, with the footer as one part more."""
    return (parts + 1) * _PART.itemsize + _END.size


def _read_parts(data: mmap.mmap) -> np.ndarray | None:
    """Read the table of parts; None if the file has none. The footer, its last part, is checked.

    Raises:
        ValueError: the table of parts or the footer is damaged.
    """
    footer = _footer(data)
    if footer < _END.size:
        return None
    count, crc, magic = _END.unpack_from(data, footer - _END.size)
    if magic != _MAGIC:
        return None
    start = footer - _END.size - count * _PART.itemsize
    if start < 0 or zlib.crc32(block := data[start : footer - _END.size]) != crc or not count:
        raise ValueError("wrong checksum of the table of parts")
    parts = np.frombuffer(block, _PART)
    begin, length, crc = parts[-1].tolist()
    if begin != footer or length != len(data) - footer or zlib.crc32(data[footer:]) != crc:
        raise ValueError("wrong checksum of the footer")
    return parts[:-1]


def open_table(
    path: str | os.PathLike[str], kind: str, version: int, schema: pa.Schema
) -> tuple[TableFile, dict[str, Any]]:
    """Open a table written by `table_writer`, memory-mapped.

    Returns:
        The file and its parameters.

    Raises:
        InputError: the file is missing, damaged, of another kind or version, or lacks a column of `schema` or has it
            with another type.
    """
    path = existing_file(path, f"table of {kind}")
    try:
        table = TableFile(path)
    except InputError:
        raise
    except (pa.ArrowException, OSError, struct.error, *WRONG) as error:
        raise InputError(
            f"{path}: not a Parquet file, truncated or damaged ({one_line(error)}); choose another or make it again"
        ) from error
    found = table.about(_VERSION_KEY.format(kind=kind))
    if found is None:
        raise InputError(f"{path}: not a table of {kind}; choose another file")
    if found != str(version).encode():
        shown_version = shown(found.decode(errors="replace"))
        raise InputError(f"{path}: format {shown_version} of {kind}, but this version reads {version}; make it again")
    if missing := sorted(set(schema.names) - set(table.names)):
        raise InputError(f"{path}: column {', '.join(missing)} is missing; make the table again")
    if other := table.schema_matches(schema):
        raise InputError(f"{path}: column {other} is of another type; make the table again")
    parameters = parse_json(table.about(_PARAMETERS_KEY) or b"null", f"{path}: its parameters")
    if not isinstance(parameters, dict):
        raise InputError(f"{path}: its parameters are {shown(parameters)}; make the table again")
    return table, parameters
