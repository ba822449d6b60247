"""Tables as text: CSV for programs, Markdown for people."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from typing import Any


def csv_text(columns: Sequence[str], rows: Iterable[Iterable[Any]]) -> str:
    """Write a header and rows as CSV, each line ended by a line feed; None is an empty cell."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([columns, *rows])
    return text.getvalue()


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]], align: str = "l") -> str:
    """Write a Markdown table, each line ended by a line feed.

    Args:
        header: titles of the columns.
        rows: as many cells each.
        align: ``l`` (left) or ``r`` (right) for the first columns; its last letter is for all others.
    """
    rule = [{"l": "---", "r": "---:"}[mark] for mark in align.ljust(len(header), align[-1])]
    lines = (" | ".join(cell.replace("|", "\\|") for cell in cells) for cells in (header, rule, *rows))
    return "".join(f"| {line} |\n" for line in lines)
