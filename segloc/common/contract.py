"""The shard contract: the format that stage 1 (`pipeline`) writes and stage 2 (`segloc`) reads.

A shard folder contains ``pairs-000000.tar``, ``pairs-000001.tar``, ..., ``sources.parquet`` and ``index.json``. A tar
contains ``KEY.query.jpg``, ``KEY.key.jpg`` and ``KEY.json`` for each pair, where KEY is the zero-padded number of the
pair over all shards. ``index.json`` is written last: readers refuse a folder without it as unfinished.

This is format 2 (docs/shards.md). Readers also accept format 1, which has no masks, no `on_matter` and no
``sources.parquet``, and names the coefficient ``alpha``.

Boxes are ``(x0, y0, x1, y1)`` in pixels, half-open, origin top left. Class ids are 0-based and follow the class list in
the index.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from pathlib import Path
from typing import Any

from segloc.common.errors import InputError
from segloc.common.parse import parse_json, parsing, shown

FORMAT_VERSION = 2
READ_VERSIONS = (1, FORMAT_VERSION)
# Three members of a tar, each a header and at least one block of 512 bytes.
PAIR_BYTES = 3 * 2 * 512
MOST_PAIRS = 10**9  # what the nine digits of a pair's key can number
INDEX_NAME, SOURCES_NAME = "index.json", "sources.parquet"

Box = tuple[int, int, int, int]


@dataclasses.dataclass(frozen=True)
class Occluder:
    """A crop of another benign scan, laid over the item to hide it as a bag's contents do.

    Attributes:
        background: path of the scan, relative to the root of the backgrounds.
        box: the crop, in pixels of that scan at the stored width.
        corner: position (x, y) of its top left corner, in pixels of the stored image.
    """

    background: str
    box: Box
    corner: tuple[int, int]


@dataclasses.dataclass(frozen=True)
class View:
    """One image of a pair, and the recipe that made it.

    Attributes:
        box: tight box of the pasted item's mask, in pixels of the stored image.
        size: (width, height) of the stored image in pixels.
        background: path of the background scan, relative to its root, ``/`` separators.
        segment: id of the pasted segment (`segments.parquet`).
        region: authentic region (one bag, drawn if there are several) around the box, in pixels of the stored image.
        blend: composition mode, a name in `pipeline.pairing.blends.BLENDS`.
        coefficient: composition coefficient; for ``alpha`` the item's weight.
        rotation_deg: counter-clockwise rotation of the (already flipped) segment, degrees.
        scale: pixels of the stored image per pixel of the donor scan.
        flip_h: whether the segment was mirrored left-right, before rotation.
        flip_v: whether the segment was mirrored top-bottom, before rotation.
        occluder: crop that lies over the item; usually None.
        mask: the item's mask, COCO's compressed run-length text in pixels of the stored image (`masks.decode_rle`);
            its tight box is `box`. None in format 1.
        on_matter: share, 0..1, of the mask's pixels where the background is darker than the belt, so that they lie on
            the bag or its contents. None in format 1.
    """

    box: Box
    size: tuple[int, int]
    background: str
    segment: str
    region: Box
    blend: str
    coefficient: float
    rotation_deg: float
    scale: float
    flip_h: bool
    flip_v: bool
    occluder: Occluder | None = None
    mask: str | None = None
    on_matter: float | None = None


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
        # `dataclasses.asdict` copies every value and takes several times as long.
        views = {"query": _plain(self.query), "key": _plain(self.key)}
        return json.dumps(vars(self) | views, sort_keys=True, ensure_ascii=False).encode()

    @classmethod
    def from_json(cls, data: bytes | str, format_version: int = FORMAT_VERSION) -> Pair:
        """Parse ``KEY.json`` of a folder of this format. Unknown fields are ignored, so that later fields can be added.

        Raises:
            InputError: the text is not JSON, or a field is missing or invalid.
        """
        with parsing("", "not a pair description"):
            raw = json.loads(data)
            views = {side: _view(raw[side], format_version) for side in ("query", "key")}
            return cls(_whole(raw["pair"]), _whole(raw["class_id"]), _text(raw["class_name"]), **views)


def _plain(view: View) -> dict[str, Any]:
    return vars(view) | {"occluder": view.occluder and vars(view.occluder)}


def _occluder(raw: dict[str, Any]) -> Occluder:
    return Occluder(_text(raw["background"]), _wholes(raw, "box", 4), _wholes(raw, "corner", 2))


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{shown(value)} is not text")
    value.encode()  # raises ValueError for text that no file can hold
    return value


def _whole(value: Any) -> int:
    if not -(2**31) <= value < 2**31:
        raise ValueError(f"{shown(value)} is out of range for a pixel, class id or pair number")
    return int(value)


def _count(value: Any) -> int:
    """Read a number of pairs or bytes, or a seed; a negative one is refused with the index."""
    if isinstance(value, bool) or not isinstance(value, int) or not -(2**63) <= value < 2**63:
        raise ValueError(f"{shown(value)} is not a whole number")
    return value


def _wholes(raw: dict[str, Any], name: str, length: int) -> Any:
    """Read a field of `length` whole numbers."""
    values = tuple(map(_whole, raw[name]))
    if len(values) != length:
        raise ValueError(f"{name} has {len(values)} numbers, not {length}")
    return values


def _flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise TypeError(f"{shown(value)} is neither true nor false")
    return value


def _view(raw: dict[str, Any], format_version: int) -> View:
    is_first = format_version == 1
    return View(
        box=_wholes(raw, "box", 4),
        size=_wholes(raw, "size", 2),
        background=_text(raw["background"]),
        segment=_text(raw["segment"]),
        region=_wholes(raw, "region", 4),
        blend=_text(raw["blend"]),
        coefficient=float(raw["alpha" if is_first else "coefficient"]),
        rotation_deg=float(raw["rotation_deg"]),
        scale=float(raw["scale"]),
        flip_h=_flag(raw["flip_h"]),
        flip_v=_flag(raw["flip_v"]),
        occluder=_occluder(raw["occluder"]) if raw.get("occluder") else None,
        mask=None if is_first else _text(raw["mask"]),
        on_matter=None if is_first else float(raw["on_matter"]),
    )


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
class Sources:
    """The table beside the index that counts every background, segment and occluder used (`pipeline.tables`).

    Attributes:
        name: file name.
        sha256: digest of the file, hexadecimal.
        rows: number of its rows.
    """

    name: str
    sha256: str
    rows: int


@dataclasses.dataclass(frozen=True)
class Index:
    """Content of ``index.json``. It holds no absolute path and no time, so equal data give equal bytes.

    Attributes:
        classes: class names; the position is the class id.
        seed: seed of the synthesis.
        parameters: every parameter that the pairs depend on, including digests of the inputs.
        counts: totals (``pairs``, ``shards``, ``backgrounds``, ``segments``, ...).
        shards: the shards in order of their number.
        sources: the table of sources of the pairs; None in format 1.
        format_version: version of this contract.
    """

    classes: tuple[str, ...]
    seed: int
    parameters: dict[str, Any]
    counts: dict[str, int]
    shards: tuple[Shard, ...]
    sources: Sources | None = None
    format_version: int = FORMAT_VERSION

    @property
    def num_pairs(self) -> int:
        """Number of pairs over all shards."""
        return sum(shard.pairs for shard in self.shards)

    @property
    def lacks(self) -> tuple[str, ...]:
        """Parts of the current format that are missing from these shards."""
        return ("mask", "on_matter", SOURCES_NAME) if self.format_version == 1 else ()

    def to_json(self) -> bytes:
        """Serialise to the bytes of ``index.json``."""
        return _json({**dataclasses.asdict(self), "digest": self.digest})

    @classmethod
    def from_json(cls, data: bytes | str, source: str = INDEX_NAME) -> Index:
        """Parse and check ``index.json``. Error messages name it as `source`.

        Raises:
            InputError: not JSON, another format version, a missing field, inconsistent counts, or a file name that
                differs from the contract's (some openers run commands from names).
        """
        raw = parse_json(data, source)
        with parsing(source, "not a shard index"):
            version = raw["format_version"]
            if type(version) is not int or version not in READ_VERSIONS:
                known = " and ".join(map(str, READ_VERSIONS))
                raise InputError(f"{source}: shard format {shown(version)}, but this version reads {known}")
            shards = tuple(shard_entry(one) for one in raw["shards"])
            sources = None
            if version > 1:
                table = raw["sources"]
                sources = Sources(_text(table["name"]), _text(table["sha256"]), _count(table["rows"]))
            classes, seed = tuple(map(_text, raw["classes"])), _count(raw["seed"])
            index = cls(classes, seed, dict(raw["parameters"]), dict(raw["counts"]), shards, sources, version)
        index._check(source)
        recorded = raw.pop("digest", None)
        if recorded is not None and recorded != hashlib.sha256(_json(raw)).hexdigest():
            raise InputError(f"{source}: its digest differs from its content; it is damaged, or was edited")
        return index

    @property
    def digest(self) -> str:
        """SHA-256 of the index, hexadecimal, by which a run recognises its shards."""
        return hashlib.sha256(_json(dataclasses.asdict(self))).hexdigest()

    def _check(self, source: str) -> None:
        if any(min(shard.pairs, shard.bytes, *shard.classes, 0) < 0 for shard in self.shards):
            raise InputError(f"{source}: a shard has a negative count")
        if any(len(shard.classes) != len(self.classes) for shard in self.shards):
            raise InputError(f"{source}: a shard has a class histogram that does not fit the index's classes")
        if self.sources and self.sources.name != SOURCES_NAME:
            raise InputError(f"{source}: sources are named {self.sources.name!r}, expected {SOURCES_NAME!r}")
        for number, shard in enumerate(self.shards):
            if sum(shard.classes) != shard.pairs:
                total = sum(shard.classes)
                raise InputError(f"{source}: shard {number} has {shard.pairs} pairs, but its classes add up to {total}")
            if shard.name != shard_name(number):
                raise InputError(f"{source}: shard {number} is named {shard.name!r}, expected {shard_name(number)!r}")
            if shard.pairs * PAIR_BYTES > shard.bytes:
                raise InputError(
                    f"{source}: shard {number} has {shard.pairs} pairs in {shard.bytes} bytes, but a pair takes at "
                    f"least {PAIR_BYTES}"
                )
        if self.num_pairs > MOST_PAIRS:
            raise InputError(f"{source}: {self.num_pairs} pairs, but a folder has at most {MOST_PAIRS}")


def _json(content: dict[str, Any]) -> bytes:
    return (json.dumps(content, sort_keys=True, indent=1, ensure_ascii=False) + "\n").encode()


def shard_entry(raw: dict[str, Any]) -> Shard:
    """Read a shard's entry of the index. Wrong content raises whatever it causes, for the caller's `parsing`."""
    classes = tuple(map(_count, raw["classes"]))
    return Shard(_text(raw["name"]), _count(raw["pairs"]), _count(raw["bytes"]), _text(raw["sha256"]), classes)


def shard_name(number: int) -> str:
    """File name of shard `number`."""
    return f"pairs-{number:06d}.tar"


def pair_key(pair: int) -> str:
    """Base name of the three files of pair `pair` inside its tar."""
    return f"{pair:09d}"


def read_index(folder: str | os.PathLike[str]) -> Index:
    """Read the index of a local shard folder.

    Raises:
        InputError: the folder is missing, unfinished (no index), or its index is invalid.
    """
    path = Path(folder) / INDEX_NAME
    if not Path(folder).is_dir():
        raise InputError(f"{folder}: no such folder of shards")
    if not path.is_file():
        raise InputError(f"{folder}: no {INDEX_NAME}, so its synthesis has not finished; run it again")
    return Index.from_json(path.read_bytes(), source=str(path))
