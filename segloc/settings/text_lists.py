"""Lists of texts on the command line, such as ``[a file.json, "a, folder"]``, taken literally."""

from __future__ import annotations

import re
import types
from typing import Any, Union, get_args, get_origin

import yaml

_QUOTED = re.compile(r"""\s*("(?:[^"\\]|\\.)*"|'(?:[^']|'')*')\s*(?=[,\]])""")
_BARE = re.compile(r"[^,\]]*")


def depth(hint: Any) -> int:
    """Levels of a type that is a list of texts: 1 for ``tuple[str, ...]``, 2 for a list of these, 0 for others."""
    if get_origin(hint) in (Union, types.UnionType):
        hint = next((part for part in get_args(hint) if part is not type(None)), None)
    levels = 0
    while get_origin(hint) is tuple:
        hint, levels = get_args(hint)[0], levels + 1
    return levels if hint is str else 0


def read(text: str, levels: int) -> list[Any]:
    """Read a list in brackets.

    Texts are separated by commas; blanks around them are dropped. A text that contains a comma, a bracket or blanks at
    its ends needs quotes: double ones as in YAML, or single ones, in which a quote is written twice. Nothing else has a
    meaning: ``null``, ``2024``, ``a #2`` and ``{x}`` are texts.

    Args:
        text: the list.
        levels: see `depth`.

    Raises:
        ValueError: brackets or quotes do not fit together.
    """
    items, end = _items(text.strip(), 0, levels)
    if text.strip()[end:]:
        raise ValueError(f"there is more after the list: {text.strip()[end:]!r}")
    return items


def _items(text: str, start: int, levels: int) -> tuple[list[Any], int]:
    """Read a list that begins at `start`; returns it and the position after it."""
    if text[start : start + 1] != "[":
        raise ValueError("a list begins with [")
    items: list[Any] = []
    at = start + 1
    while True:
        item, at = _item(text, at, levels)
        ends = text[at : at + 1] == "]"
        if item != "" or not ends:  # nothing before the closing bracket: an empty list, or a comma at the end
            items.append(item)
        if not ends and text[at : at + 1] != ",":
            raise ValueError("a list ends with ]")
        if items and items[-1] == "":
            raise ValueError("there is nothing between two commas")
        at += 1
        if ends:
            return [item.text if isinstance(item, _Quoted) else item for item in items], at


class _Quoted:
    """A text that was in quotes, and may be empty."""

    def __init__(self, text: str) -> None:
        self.text = text


def _item(text: str, at: int, levels: int) -> tuple[Any, int]:
    blanks = len(text[at:]) - len(text[at:].lstrip())
    if levels > 1 and text[at + blanks : at + blanks + 1] == "[":
        item, at = _items(text, at + blanks, levels - 1)
        return item, at + len(text[at:]) - len(text[at:].lstrip())
    if quoted := _QUOTED.match(text, at):
        try:
            return _Quoted(str(yaml.safe_load(quoted[1]))), quoted.end()
        except yaml.YAMLError as error:
            raise ValueError(f"{quoted[1]} has an unknown escape") from error
    bare = _BARE.match(text, at)
    assert bare
    return bare[0].strip(), bare.end()
