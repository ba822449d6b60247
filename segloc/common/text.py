"""Tables as text: CSV and Markdown; text that every file can hold."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from typing import Any

_LONGEST = 120


def csv_text(columns: Sequence[str], rows: Iterable[Iterable[Any]]) -> str:
    """Write a header and rows as CSV. Each line ends with a line feed; None is an empty cell."""
    text, lines = io.StringIO(), [list(row) for row in rows]
    assert all(len(line) == len(columns) for line in lines), "a row is not as wide as the header"
    csv.writer(text, lineterminator="\n").writerows([columns, *lines])
    return text.getvalue()


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]], align: str = "l") -> str:
    """Write a Markdown table. Each line ends with a line feed.

    Args:
        header: titles of the columns.
        rows: cells, as many per row as columns.
        align: ``l`` (left) or ``r`` (right) per column; the last letter also applies to all further columns.
    """
    lines = list(rows)
    assert all(len(cells) == len(header) for cells in lines), "a row is not as wide as the header"
    rule = [{"l": "---", "r": "---:"}[mark] for mark in align.ljust(len(header), align[-1])]
    texts = (" | ".join(cell.replace("|", "\\|") for cell in cells) for cells in (header, rule, *lines))
    return "".join(f"| {text} |\n" for text in texts)


def shortened(value: str) -> str:
    """Cut a text that is too long for a message."""
    return value if len(value) <= _LONGEST else f"{value[: _LONGEST - 3]}..."


def utf8_text(value: str) -> str:
    r"""Escape what UTF-8 cannot hold, such as bytes of file names that are not UTF-8 (``\xe4``)."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return "".join(f"\\x{ord(c) - 0xDC00:02x}" if "\udc80" <= c <= "\udcff" else _escaped(c) for c in value)
    return value


def _escaped(character: str) -> str:
    return character.encode("utf-8", "backslashreplace").decode()
