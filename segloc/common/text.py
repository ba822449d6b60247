"""Text for people and files: names from data in one line, and tables as CSV and Markdown."""

from __future__ import annotations

import csv
import io
import re
import unicodedata
from collections.abc import Iterable, Sequence
from typing import Any

_LONGEST = 120  # letters of a name in a message
# Control characters, and line and paragraph separators.
_UNPRINTABLE = ("Cc", "Zl", "Zp")
# Marks that change the direction of the text around them, and the byte order mark.
_DIRECTIONS = {*"\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\ufeff"}
# What Markdown and HTML read as more than a letter; an underscore counts only at the end of a word.
_MARKUP = re.compile(r"[\\`*\[\]<>|~$]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])|&(?=#?\w+;)")
# A spreadsheet runs a cell that starts with one of these as a formula.
_FORMULA = ("=", "+", "-", "@")
_UNESCAPED_BAR = re.compile(r"(?<!\\)\|")


def printable(text: str) -> str:
    """Escape what would break a line, move the cursor or turn the text around, as Python's ``repr`` does."""

    def escaped(letter: str) -> str:
        if letter in _DIRECTIONS or unicodedata.category(letter) in _UNPRINTABLE:
            return letter.encode("unicode_escape").decode()
        return letter

    return text if text.isprintable() else "".join(map(escaped, utf8_text(text)))


def shortened(text: str, letters: int = _LONGEST) -> str:
    """Make text `printable` and cut it if it is too long for a message."""
    text = printable(text)
    return text if len(text) <= letters else f"{text[: letters - 3]}..."


def markdown(text: str) -> str:
    """Escape text from data, so that Markdown shows it as it is, in one line."""
    return _MARKUP.sub(lambda match: f"\\{match[0]}", printable(text))


def csv_text(columns: Sequence[str], rows: Iterable[Iterable[Any]]) -> str:
    """Write a header and rows as CSV, a line each.

    Each line ends with a line feed; None is an empty cell. Text is made `printable`. Text that a spreadsheet would run
    as a formula gets an apostrophe in front.
    """
    text, lines = io.StringIO(), [[_cell(value) for value in row] for row in rows]
    assert all(len(line) == len(columns) for line in lines), "a row is not as wide as the header"
    csv.writer(text, lineterminator="\n").writerows([columns, *lines])
    return text.getvalue()


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]], align: str = "l") -> str:
    """Write a Markdown table. Each line ends with a line feed.

    Args:
        header: titles of the columns, in Markdown.
        rows: cells in Markdown, as many per row as columns; see `markdown` for text from data.
        align: ``l`` (left) or ``r`` (right) per column; the last letter also applies to all further columns.
    """
    lines = list(rows)
    assert all(len(cells) == len(header) for cells in lines), "a row is not as wide as the header"
    rule = [{"l": "---", "r": "---:"}[mark] for mark in align.ljust(len(header), align[-1])]
    texts = [[_UNESCAPED_BAR.sub(r"\|", printable(cell)) for cell in cells] for cells in (header, rule, *lines)]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in texts)


def _cell(value: Any) -> Any:
    """Return the value of a cell of CSV."""
    if not isinstance(value, str):
        return value
    value = printable(value)
    return f"'{value}" if value.startswith(_FORMULA) and len(value) > 1 and not _is_number(value) else value


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def utf8_text(value: str) -> str:
    r"""Escape what UTF-8 cannot hold, such as bytes of file names that are not UTF-8 (``\xe4``)."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return "".join(f"\\x{ord(c) - 0xDC00:02x}" if "\udc80" <= c <= "\udcff" else _escaped(c) for c in value)
    return value


def _escaped(character: str) -> str:
    return character.encode("utf-8", "backslashreplace").decode()
