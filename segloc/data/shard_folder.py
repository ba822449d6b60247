"""Finished shards, local or on a store: which there are, and what is in one."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from braceexpand import braceexpand

from segloc.common.contract import FORMAT_VERSION, Index, Pair, Shard
from segloc.common.errors import InputError, one_line
from segloc.common.images import Image, decode
from segloc.common.stores import Store, open_store

QUERY, KEY, DESCRIPTION = "query.jpg", "key.jpg", "json"
_BLOCK = 512  # of a tar file, bytes
# In a long run a store is out of reach for a moment now and then: seconds between the attempts to read a shard.
PAUSES_S = (1, 5, 20)


@dataclasses.dataclass(frozen=True)
class Sample:
    """A pair as stored.

    Attributes:
        name: what the names of its files begin with.
        files: content of each of its files by the name's end: two encoded images and the description, [bytes] uint8.
        format_version: of the description.
    """

    name: str
    files: dict[str, np.ndarray]
    format_version: int = FORMAT_VERSION

    def describe(self, classes: Sequence[str]) -> Pair:
        """Parse the description of a pair of one of these classes.

        Raises:
            InputError: it is not valid, or a file of the pair is missing.
        """
        for name in (DESCRIPTION, QUERY, KEY):
            if name not in self.files:
                raise InputError(f"no {name}")
        pair = Pair.from_json(self.files[DESCRIPTION].tobytes(), self.format_version)
        if not 0 <= pair.class_id < len(classes):
            raise InputError(f"class id {pair.class_id} is not one of the index's {len(classes)}")
        if pair.class_name != classes[pair.class_id]:
            raise InputError(f"class {pair.class_id} is {pair.class_name!r}, in the index {classes[pair.class_id]!r}")
        for side, view in (("query", pair.query), ("key", pair.key)):
            (x0, y0, x1, y1), (width, height) = view.box, view.size
            if not (0 <= x0 < x1 <= width and 0 <= y0 < y1 <= height):
                raise InputError(f"{side} box {view.box} is not in an image of {width}x{height}")
        return pair


@dataclasses.dataclass(frozen=True)
class ShardFolder:
    """A finished set of shards, or some of its shards, local or at any URL fsspec opens.

    Attributes:
        store: where they lie.
        index: its index, of the chosen shards.
    """

    store: Store
    index: Index
    _checked: set[str] = dataclasses.field(default_factory=set, repr=False, compare=False)

    @classmethod
    def open(cls, source: str) -> ShardFolder:
        """Read the index of a set of shards.

        Args:
            source: a folder; a URL; or either followed by ``/`` and shards of it as a brace pattern, such as
                ``pairs-{000000..000003}.tar``, for a part of the set. The order in which a pattern names shards, or
                that it names one twice, makes no difference.

        Raises:
            InputError: there is no valid index, it lists no pairs or not a shard that is named, or `source` is a
                command (``pipe:``, which other readers of such shards would run).
        """
        source = str(source)
        if any(part.strip().lower().startswith("pipe:") for part in source.split("::")):
            raise InputError(f"{source}: commands are never run; give a folder or URL of shards")
        folder, pattern = source, ""
        if source.endswith(".tar") and not Path(source).is_dir():
            folder, _, pattern = source.rpartition("/")
            folder = folder or ("/" if source.startswith("/") else ".")
        store = open_store(folder)
        index = store.index()
        if pattern:
            index = dataclasses.replace(index, shards=_select(index, pattern, source))
        if not index.num_pairs:
            raise InputError(f"{source}: the index lists no pairs")
        return cls(store, index)

    def check_sizes(self) -> None:
        """Look, without reading them, whether all shards are there and as long as the index says.

        Raises:
            InputError: one is not.
        """
        try:
            sizes = self.store.sizes([shard.name for shard in self.index.shards])
        except OSError as error:
            raise InputError(f"{self.store}: its shards cannot be had ({one_line(error)})") from error
        for shard, size in zip(self.index.shards, sizes, strict=True):
            if size is not None:  # some web servers do not tell
                self._check_length(shard, size)

    def _check_length(self, shard: Shard, size: int) -> None:
        if size != shard.bytes:
            raise InputError(f"{self.store}/{shard.name}: {size} bytes, the index says {shard.bytes}; is it cut short?")

    def load(self, shard: Shard) -> list[Sample]:
        """Read a shard whole, its pairs in order.

        Its length is checked each time, its digest the first time, which costs little beside decoding its images.

        Raises:
            InputError: it is missing or is not the file the index describes.
        """
        source = f"{self.store}/{shard.name}"
        data = self.store.read_array(shard.name, PAUSES_S)
        self._check_length(shard, len(data))
        if shard.name not in self._checked:
            if hashlib.sha256(data.data).hexdigest() != shard.sha256:
                raise InputError(f"{source}: not the file the index describes (another sha256)")
            self._checked.add(shard.name)
        samples: dict[str, Sample] = {}
        try:
            for name, content in _members(data):
                key, _, end = name.partition(".")
                samples.setdefault(key, Sample(key, {}, self.index.format_version)).files[end] = content
        except ValueError as error:
            raise InputError(f"{source}: not a tar file ({error})") from error
        if len(samples) != shard.pairs:
            raise InputError(f"{source}: {len(samples)} pairs, the index says {shard.pairs}")
        return list(samples.values())

    def pairs(self) -> Iterator[tuple[Pair, Image, Image]]:
        """Read all pairs in order: the description, the query image and the key image (uint8 RGB [h, w, 3]).

        Raises:
            InputError: a shard is missing or is not the file the index describes, or a pair is damaged.
        """
        for shard in self.index.shards:
            for sample in self.load(shard):
                try:
                    pair = sample.describe(self.index.classes)
                    yield pair, decode(sample.files[QUERY].tobytes()), decode(sample.files[KEY].tobytes())
                except ValueError as error:
                    raise InputError(f"{self.store}/{shard.name}: pair {sample.name}: {error}") from error


def _select(index: Index, pattern: str, source: str) -> tuple[Shard, ...]:
    for first, last in re.findall(r"\{(-?\d+)\.\.(-?\d+)", pattern):
        if abs(int(last) - int(first)) >= len(index.shards):
            raise InputError(f"{source}: {first}..{last} are more than the {len(index.shards)} shards of the index")
    try:
        names = set(itertools.islice(braceexpand(pattern), 10 * len(index.shards) + 10))
    except ValueError as error:
        raise InputError(f"{source}: not a brace pattern ({error})") from error
    unknown = sorted(names - {shard.name for shard in index.shards})
    if unknown:
        raise InputError(f"{source}: the index lists {len(index.shards)} shards, and {unknown[0]!r} is none of them")
    return tuple(shard for shard in index.shards if shard.name in names)


def _members(data: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    """List the plain files in a tar file: names, and contents that share its memory.

    Written out because webdataset's reader copies every member and so takes a share of the time that decoding takes.
    Extended headers are passed over: names of a shard are short.
    """
    start = 0
    while start + _BLOCK <= len(data):
        header = data[start : start + _BLOCK].tobytes()
        if not header[0]:
            return
        size = int(header[124:136].strip(b"\0 ") or b"0", 8)
        start += _BLOCK
        if not 0 <= size <= len(data) - start:
            raise ValueError(f"a member of {size} bytes at byte {start}")
        if header[156:157] in (b"0", b"\0"):
            yield header[:100].partition(b"\0")[0].decode(), data[start : start + size]
        start += -(-size // _BLOCK) * _BLOCK
