"""Tables as text: CSV and Markdown."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from typing import Any


def csv_text(columns: Sequence[str], rows: Iterable[Iterable[Any]]) -> str:
    """Write a header and rows as CSV. Each line ends with a line feed; None is an empty cell."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([columns, *rows])
    return text.getvalue()


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]], align: str = "l") -> str:
    """Write a Markdown table. Each line ends with a line feed.

    Args:
        header: titles of the columns.
        rows: cells, as many per row as columns.
        align: ``l`` (left) or ``r`` (right) per column; the last letter also applies to all further columns.
    """
    rule = [{"l": "---", "r": "---:"}[mark] for mark in align.ljust(len(header), align[-1])]
    lines = (" | ".join(cell.replace("|", "\\|") for cell in cells) for cells in (header, rule, *rows))
    return "".join(f"| {line} |\n" for line in lines)
