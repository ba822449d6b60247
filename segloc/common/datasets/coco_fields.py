"""The one table by which fields of COCO files are read, in annotations and results, for both stages.

Null means absent, for every field. docs/guide_own_data.md shows this table to users:

| field | read as | also accepted | refused |
|---|---|---|---|
| ids | whole number, or text | ``7.0``; text that is a whole number is that number | other numbers, flags, lists |
| sizes | whole number | the same | all other text |
| ``score``, edges of ``bbox`` | finite number | text that is a number | Infinity, NaN, true, false; negative sides |
| ``area`` | number from 0 to 1e10 | text that is a number | other numbers, true, false |
| ``iscrowd``, ``ignore`` | 0 or 1 | true, false, and text of any of these | other numbers and text |
| names | text | numbers | lists; category names that are empty or not Unicode |

Each function raises ValueError with a message that continues ``FIELD ...`` of the caller.
"""

from __future__ import annotations

import math
import re
import unicodedata
from typing import Any

from segloc.common.text import utf8_text

Id = int | str

# JSON has no larger numbers in Python: text and number of an id stay equal.
_MOST_DIGITS = 4300
_WHOLE = re.compile(rf"\s*([+-]?[0-9]{{1,{_MOST_DIGITS}}})(?:\.0*)?\s*")
_NUMBER = re.compile(r"\s*[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?\s*")
_NESTED: frozenset[type] = frozenset({list, dict})
_MOST_NESTING = 4  # polygons have one level less than some wrong exports of them
MOST_AREA = 1e10  # square pixels; COCO's largest
_FLAGS = {"true": True, "false": False}
# Unicode's Default_Ignorable_Code_Point beyond category Cf, and the blank of Braille, which shows nothing either.
_UNSEEN = re.compile(
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2065\u2800\u3164\ufe00-\ufe0f\uffa0\ufff0-\ufff8\U000e0000-\U000e0fff]"
)
# Beyond it a float may stand for several whole numbers, so an id written as one is not known.
_EXACT_FLOAT = 2.0**53


def is_number(value: Any) -> bool:
    """Whether a value read from JSON is a finite number that a float can hold."""
    try:
        return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:
        return False


def whole(value: Any) -> int:
    """Read a whole number, which may be written as 7.0 or as text.

    Raises:
        ValueError: it is not a whole number, or a float beyond 2^53, which does not identify one.
    """
    if type(value) is int:
        return value
    if isinstance(value, str) and (match := _WHOLE.fullmatch(value)):
        return int(match[1])
    if not is_number(value) or value != int(value):
        raise ValueError(f"{shown(value)} is not a whole number")
    if abs(value) > _EXACT_FLOAT:
        raise ValueError(f"{shown(value)} is a decimal number beyond 2^53, which is not exact; write a whole number")
    return int(value)


def identifier(value: Any) -> Id:
    """Read an id: a whole number, or text that is not a whole number.

    >>> identifier(7), identifier(7.0), identifier("7"), identifier("a7")
    (7, 7, 7, 'a7')

    Raises:
        ValueError: it is neither.
    """
    return value if isinstance(value, str) and not _WHOLE.fullmatch(value) else whole(value)


def id_order(value: Id) -> tuple[bool, Id]:
    """Sort key of ids: numbers first, then text."""
    return isinstance(value, str), value


def number(value: Any) -> float:
    """Read a finite number, which may be text.

    Raises:
        ValueError: it is not a number, or infinite.
    """
    if isinstance(value, str) and _NUMBER.fullmatch(value):
        value = float(value)
    if not is_number(value):
        raise ValueError(f"{shown(value)} is not a finite number")
    return value


def flag(value: Any) -> bool:
    """Read a flag: 0, 1, true or false, or text of one of these.

    Raises:
        ValueError: it is something else.
    """
    if isinstance(value, str):
        value = _FLAGS.get(value.strip().lower(), value)
    if isinstance(value, bool):
        return value
    if (read := number(value)) not in (0, 1):
        raise ValueError(f"{shown(value)} is neither 0 nor 1")
    return bool(read)


def area(value: Any) -> float:
    """Read an area in square pixels.

    Raises:
        ValueError: it is not from 0 to `MOST_AREA`; COCO's evaluation ignores items of other areas.
    """
    if not 0 <= (read := number(value)) <= MOST_AREA:
        raise ValueError(f"{shown(value)} is not between 0 and {MOST_AREA:g}")
    return read


def box(value: Any) -> list[float] | None:
    """Read x, y, width, height in pixels; an empty list is absent.

    Raises:
        ValueError: it is not four finite numbers, or the width or height is negative.
    """
    if value == []:
        return None
    if not isinstance(value, list) or len(value) != 4:
        raise ValueError(f"{shown(value)} is not x, y, width, height")
    x, y, width, height = map(number, value)
    if width < 0 or height < 0:
        raise ValueError(f"{shown(value)} has a negative width or height")
    return [x, y, width, height]


def shallow(value: Any) -> Any:
    """Return a segmentation, unchecked but for its nesting: processes could not send each other a deep one.

    Raises:
        ValueError: it is nested too deep.
    """
    if _is_deeper(value, _MOST_NESTING):
        raise ValueError("is nested too deep")
    return value


def _is_deeper(value: Any, most: int) -> bool:
    if isinstance(value, dict):
        return _is_deeper(list(value.values()), most)
    if not isinstance(value, list) or _NESTED.isdisjoint(map(type, value)):
        return False
    return most == 0 or any(_is_deeper(part, most - 1) for part in value)


def text(value: Any) -> str:
    """Read a name, which may be a number.

    Raises:
        ValueError: it is not text.
    """
    if isinstance(value, str):
        return value
    if not is_number(value):
        raise ValueError(f"{shown(value)} is not text")
    return str(value)


def class_name(value: Any) -> str:
    """Read the name of a category, without outer blanks and in Unicode's composed form; see `class_key`.

    Raises:
        ValueError: it is not text, is empty, or has characters that no UTF-8 file can hold.
    """
    name = text(value)
    try:
        name.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{shown(name)} is not valid Unicode text") from error
    if not class_key(name):
        raise ValueError(f"{shown(name)} is empty")
    return unicodedata.normalize("NFC", name.strip())


def class_key(name: str) -> str:
    """Return what the names of one class have in common, in one file and between files.

    Case, outer blanks, invisible characters and Unicode's form are ignored.

    >>> class_key(" Gu\u200bn ") == class_key("gun"), class_key("Caf\u00e9") == class_key("cafe\u0301")
    (True, True)
    """
    if not name.isascii():
        seen = _UNSEEN.sub("", unicodedata.normalize("NFC", name))
        name = "".join(letter for letter in seen if unicodedata.category(letter) != "Cf")
    return unicodedata.normalize("NFC", name.strip().casefold())


def shown(value: Any) -> str:
    """Show a value of any kind and size in a message."""
    try:
        plain = isinstance(value, (int, list, dict)) and not isinstance(value, bool)
        return utf8_text(repr(value if plain else str(value))[:60])
    except (RecursionError, ValueError):  # nested too deep, or more digits than Python writes
        return f"a {type(value).__name__}"
