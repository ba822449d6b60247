"""Mutations for fuzzing: of bytes, and of the structure that JSON, YAML and checkpoints hold."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np

_LONG = "a" * 10_000
# Values that have broken a reader somewhere, or that look like code to some library.
ODD: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 7.5, -0.0, 1e308, -1e308, 5e-324),
    *(float("nan"), float("inf"), -float("inf"), 2**31, 2**53 + 1, 2**63, -(2**63) - 1, 2**64, 10**25, 10**400),
    *("", " ", "7", "-1", "1e3", "nan", "null", "x", "\0", "a\nb", "\ud800", "é", "$x$", "$_", "%s", "{0}", "\\", "~"),
    *(
        "<script>alert(1)</script>",
        "../../x",
        "/etc/passwd",
        "..",
        ".",
        "a/../../b",
        "pipe:true",
        "file:///x",
        "s3://x/y",
    ),
    *("${oc.env:HOME}", "${oc.decode:'1'}", "!!python/name:os.system", "{{7*7}}", "__class__", _LONG),
    *(
        [],
        {},
        [[]],
        [{}],
        {"": None},
        {"a": {"a": []}},
        [0] * 1000,
        [None] * 4,
        [float("nan")] * 4,
        ["1", "2", "3", "4"],
    ),
)
_INTERESTING = (b"\0" * 4, b"\xff" * 4, b"\x7f\xff\xff\xff", b"\x80\0\0\0", b"\xff\xff\xff\x7f", b"\0" * 8, b"9" * 12)


def deep(levels: int) -> Any:
    """A list in a list and so on."""
    value: Any = []
    for _ in range(levels):
        value = [value]
    return value


def odd(rng: np.random.Generator) -> Any:
    """One odd value, not shared with other cases."""
    if rng.random() < 0.02:
        return deep(int(rng.choice([50, 150, 250])))
    return copy.deepcopy(ODD[rng.integers(len(ODD))])


def damaged(data: bytes, rng: np.random.Generator) -> bytes:
    """Change bytes in one to three places: flips, other bytes, cuts, repeats, lengths of fields."""
    out = bytearray(data)
    for _ in range(int(rng.integers(1, 4))):
        if not out:
            return bytes(out)
        at, length = int(rng.integers(len(out))), int(2 ** rng.integers(0, 8))
        match rng.integers(8):
            case 0 | 1:
                out[at] ^= 1 << int(rng.integers(8))
            case 2:
                out[at : at + length] = rng.bytes(min(length, len(out) - at))
            case 3:
                del out[at : at + length]
            case 4:
                out[at:at] = out[at : at + length] * int(rng.integers(1, 4))
            case 5:
                value = _INTERESTING[rng.integers(len(_INTERESTING))]
                out[at : at + len(value)] = value
            case 6:
                other = int(rng.integers(len(out)))
                out[at : at + length] = out[other : other + length]
            case 7 if rng.random() < 0.3:
                del out[at:]
    return bytes(out)


def changed(value: Any, rng: np.random.Generator) -> Any:
    """Change one to three places of a copy of nested dicts and lists: odd, missing, repeated, renamed, swapped."""
    root = [copy.deepcopy(value)]
    for _ in range(int(rng.integers(1, 4))):
        _change(root, rng)
    return root[0]


def _change(root: list[Any], rng: np.random.Generator) -> None:
    holder, key = _place(root, rng)
    kind = rng.integers(6)
    if holder is root or kind <= 2:
        holder[key] = odd(rng)
    elif kind == 3:
        del holder[key]
    elif kind == 4 and isinstance(holder, list):
        holder.insert(key, copy.deepcopy(holder[key]))
    elif kind == 4:
        name = odd(rng)
        holder[name if isinstance(name, str) else str(type(name))] = holder.pop(key)
    else:
        other, other_key = _place(root, rng)
        if other is not root:
            holder[key] = copy.deepcopy(other[other_key])


def _place(root: list[Any], rng: np.random.Generator) -> tuple[Any, Any]:
    """A random place in the tree: each level is as likely as not the last."""
    holder: Any = root
    key: Any = 0
    while isinstance(holder[key], (dict, list)) and holder[key] and (holder is root or rng.random() < 0.8):
        holder = holder[key]
        keys = list(holder) if isinstance(holder, dict) else range(len(holder))
        key = keys[int(rng.integers(len(keys)))]
    return holder, key
