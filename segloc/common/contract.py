"""The shard contract: what stage 1 (`pipeline`) writes and stage 2 (`segloc`) reads.

A shard folder holds ``pairs-000000.tar``, ``pairs-000001.tar``, ... and ``index.json``. Per pair a tar holds
``KEY.query.jpg``, ``KEY.key.jpg`` and ``KEY.json``, where KEY is the zero-padded number of the pair over all shards.
``index.json`` is written last: a folder without one is unfinished, and readers refuse it.

Boxes are ``(x0, y0, x1, y1)`` in pixels, half-open, origin top left. Class ids are 0-based and follow the class list in
the index.
"""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

from segloc.common.errors import InputError

FORMAT_VERSION = 1
INDEX_NAME = "index.json"

Box = tuple[int, int, int, int]


@dataclasses.dataclass(frozen=True)
class Occluder:
    """A piece of another benign scan laid over the item, to hide it as bags do.

    Attributes:
        background: path of the scan, relative to the root of the backgrounds.
        box: the piece, in pixels of that scan brought to the stored width.
        corner: where its top left corner (x, y) goes, in pixels of the stored image.
    """

    background: str
    box: Box
    corner: tuple[int, int]


@dataclasses.dataclass(frozen=True)
class View:
    """One image of a pair and the recipe it was made by.

    Attributes:
        box: tight box of the pasted item's mask, in pixels of the stored image.
        size: (width, height) of the stored image in pixels.
        background: path of the background scan, relative to its root, ``/`` separators.
        segment: id of the pasted segment (`segments.parquet`).
        region: authentic region the box lies in (of several bags, the one drawn), in pixels of the stored image.
        blend: composition mode, ``alpha``, ``multiply``, ``ratio`` or ``paste``.
        alpha: the mode's coefficient; for ``alpha`` the item's weight.
        rotation_deg: counter-clockwise rotation of the (already flipped) segment, degrees.
        scale: pixels of the stored image per pixel of the donor scan.
        flip_h: whether the segment was mirrored left-right, before rotation.
        flip_v: whether the segment was mirrored top-bottom, before rotation.
        occluder: what lies over the item; None as a rule.
    """

    box: Box
    size: tuple[int, int]
    background: str
    segment: str
    region: Box
    blend: str
    alpha: float
    rotation_deg: float
    scale: float
    flip_h: bool
    flip_v: bool
    occluder: Occluder | None = None


@dataclasses.dataclass(frozen=True)
class Pair:
    """A positive pair: two different items of one class on two different backgrounds."""

    pair: int
    class_id: int
    class_name: str
    query: View
    key: View

    def to_json(self) -> bytes:
        """Serialise to the bytes stored as ``KEY.json`` (sorted keys, so equal pairs give equal bytes)."""
        # `dataclasses.asdict` copies every value, which takes several times as long.
        views = {"query": _plain(self.query), "key": _plain(self.key)}
        return json.dumps(vars(self) | views, sort_keys=True, ensure_ascii=False).encode()

    @classmethod
    def from_json(cls, data: bytes | str) -> Pair:
        """Parse ``KEY.json``. Fields this version does not know are ignored: the format may grow.

        Raises:
            InputError: a field is missing or the text is not JSON.
        """
        try:
            raw = json.loads(data)
            views = {side: _view(raw[side]) for side in ("query", "key")}
            return cls(_whole(raw["pair"]), _whole(raw["class_id"]), _text(raw["class_name"]), **views)
        except (KeyError, TypeError, ValueError, OverflowError, RecursionError) as error:
            raise InputError(f"not a pair description: {error!r}") from error


def _plain(view: View) -> dict[str, Any]:
    return vars(view) | {"occluder": view.occluder and vars(view.occluder)}


def _occluder(raw: dict[str, Any]) -> Occluder:
    box, corner = (tuple(map(_whole, raw[name])) for name in ("box", "corner"))
    if (len(box), len(corner)) != (4, 2):
        raise ValueError("an occluder has a box of four numbers and a corner of two")
    return Occluder(_text(raw["background"]), box, corner)  # type: ignore[arg-type]


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is not text")
    value.encode()  # what no file can hold is a ValueError
    return value


def _whole(value: Any) -> int:
    if not -(2**31) <= value < 2**31:
        raise ValueError(f"{value} is no number of a pixel, class or pair")
    return int(value)


def _view(raw: dict[str, Any]) -> View:
    fields = {field.name: raw[field.name] for field in dataclasses.fields(View) if field.name != "occluder"}
    fields["occluder"] = _occluder(raw["occluder"]) if raw.get("occluder") else None
    for name, length in (("box", 4), ("size", 2), ("region", 4)):
        fields[name] = tuple(map(_whole, fields[name]))
        if len(fields[name]) != length:
            raise ValueError(f"{name} has {len(fields[name])} numbers, not {length}")
    for name in ("alpha", "rotation_deg", "scale"):
        fields[name] = float(fields[name])
    for name in ("background", "segment", "blend"):
        _text(fields[name])
    for name in ("flip_h", "flip_v"):
        if not isinstance(fields[name], bool):
            raise TypeError(f"{name} is {fields[name]!r}")
    return View(**fields)


@dataclasses.dataclass(frozen=True)
class Shard:
    """One finished shard, as the index lists it.

    Attributes:
        name: file name.
        pairs: number of pairs it holds.
        bytes: size of the file.
        sha256: digest of the file, hexadecimal.
        classes: pairs per class id, in the order of the index's class list.
    """

    name: str
    pairs: int
    bytes: int
    sha256: str
    classes: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Index:
    """What ``index.json`` says of a shard folder. Holds no absolute path and no time, so equal data give equal bytes.

    Attributes:
        classes: class names; the position is the class id.
        seed: seed of the synthesis.
        parameters: every parameter the pairs depend on, digests of the inputs included.
        counts: totals (``pairs``, ``shards``, ``backgrounds``, ``segments``, ...).
        shards: the shards in order of their number.
        format_version: version of this contract.
    """

    classes: tuple[str, ...]
    seed: int
    parameters: dict[str, Any]
    counts: dict[str, int]
    shards: tuple[Shard, ...]
    format_version: int = FORMAT_VERSION

    @property
    def num_pairs(self) -> int:
        """Number of pairs over all shards."""
        return sum(shard.pairs for shard in self.shards)

    def to_json(self) -> bytes:
        """Serialise to the bytes of ``index.json``."""
        return (json.dumps(dataclasses.asdict(self), sort_keys=True, indent=1, ensure_ascii=False) + "\n").encode()

    @classmethod
    def from_json(cls, data: bytes | str, source: str = INDEX_NAME) -> Index:
        """Parse and check ``index.json``.

        Args:
            data: its content.
            source: name used in error messages.

        Raises:
            InputError: not JSON, another format version, a missing field, or a shard name that is not a plain shard
                name (names go to openers that may run commands, so nothing else is let through).
        """
        try:
            raw = json.loads(data)
            version = raw["format_version"]
            if version != FORMAT_VERSION:
                raise InputError(f"{source}: shard format {version}, this version reads {FORMAT_VERSION}")
            shards = tuple(
                Shard(str(s["name"]), int(s["pairs"]), int(s["bytes"]), str(s["sha256"]), tuple(map(int, s["classes"])))
                for s in raw["shards"]
            )
            index = cls(
                tuple(map(str, raw["classes"])), int(raw["seed"]), dict(raw["parameters"]), dict(raw["counts"]), shards
            )
        except InputError:
            raise
        except (KeyError, TypeError, ValueError, OverflowError, RecursionError) as error:
            raise InputError(f"{source}: not a shard index ({error!r})") from error
        if any(min(shard.pairs, shard.bytes, *shard.classes, 0) < 0 for shard in index.shards):
            raise InputError(f"{source}: a shard of less than nothing")
        if any(len(shard.classes) != len(index.classes) for shard in index.shards):
            raise InputError(f"{source}: a shard whose histogram is not of the index's classes")
        for number, shard in enumerate(index.shards):
            if sum(shard.classes) != shard.pairs:
                raise InputError(f"{source}: shard {number} has {shard.pairs} pairs, its classes {sum(shard.classes)}")
            if shard.name != shard_name(number):
                raise InputError(f"{source}: shard {number} is named {shard.name!r}, expected {shard_name(number)!r}")
        return index


def shard_name(number: int) -> str:
    """File name of shard `number`."""
    return f"pairs-{number:06d}.tar"


def pair_key(pair: int) -> str:
    """Base name of the three files of pair `pair` inside its tar."""
    return f"{pair:09d}"


def read_index(folder: str | os.PathLike[str]) -> Index:
    """Read the index of a local shard folder.

    Raises:
        InputError: the folder is missing, unfinished (no index) or its index is not valid.
    """
    path = Path(folder) / INDEX_NAME
    if not Path(folder).is_dir():
        raise InputError(f"{folder}: no such folder of shards")
    if not path.is_file():
        raise InputError(f"{folder}: no {INDEX_NAME}, so the synthesis into it has not finished; run it again")
    return Index.from_json(path.read_bytes(), source=str(path))
