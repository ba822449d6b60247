"""Read finished shards from a local folder or an object store."""

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
from segloc.common.store_protocol import Store
from segloc.common.stores import open_store
from segloc.common.tars import tar_members

QUERY, KEY, DESCRIPTION = "query.jpg", "key.jpg", "json"
# Seconds between attempts to read a shard, because object stores are sometimes unreachable for a moment.
PAUSES_S = (1, 5, 20)


@dataclasses.dataclass(frozen=True)
class Sample:
    """A pair as stored.

    Attributes:
        name: common prefix of its file names.
        files: contents by file name suffix: two encoded images and the description, each [bytes] uint8.
        format_version: version of the description.
    """

    name: str
    files: dict[str, np.ndarray]
    format_version: int = FORMAT_VERSION

    def describe(self, classes: Sequence[str]) -> Pair:
        """Parse the description.

        Args:
            classes: class names, as in the index.

        Raises:
            InputError: the description is invalid, or a file of the pair is missing.
        """
        for name in (DESCRIPTION, QUERY, KEY):
            if name not in self.files:
                raise InputError(f"{name} is missing")
        pair = Pair.from_json(self.files[DESCRIPTION].tobytes(), self.format_version)
        if not 0 <= pair.class_id < len(classes):
            raise InputError(f"class id {pair.class_id} is not in the index, which has {len(classes)} classes")
        if pair.class_name != classes[pair.class_id]:
            raise InputError(f"class {pair.class_id} is {pair.class_name!r}, the index says {classes[pair.class_id]!r}")
        for side, view in (("query", pair.query), ("key", pair.key)):
            (x0, y0, x1, y1), (width, height) = view.box, view.size
            if not (0 <= x0 < x1 <= width and 0 <= y0 < y1 <= height):
                raise InputError(f"{side} box {view.box} is empty or outside the {width}x{height} image")
        return pair


@dataclasses.dataclass(frozen=True)
class ShardFolder:
    """A finished set of shards or a part of it, local or at any URL that fsspec opens.

    Attributes:
        store: location of the shards.
        index: index of the chosen shards.
    """

    store: Store
    index: Index
    _checked: set[str] = dataclasses.field(default_factory=set, repr=False, compare=False)

    @classmethod
    def open(cls, source: str) -> ShardFolder:
        """Read the index of a set of shards.

        Args:
            source: a folder or URL, optionally followed by ``/`` and a brace pattern of shards, such as
                ``pairs-{000000..000003}.tar``. Order and repetition in the pattern make no difference.

        Raises:
            InputError: there is no valid index, it lists no pairs, it does not list a named shard, or `source` is a
                command (``pipe:``, which webdataset would run).
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
        """Check that all shards exist and have the sizes in the index, without reading them.

        Raises:
            InputError: a shard is missing or has another size.
        """
        try:
            sizes = self.store.sizes([shard.name for shard in self.index.shards])
        except OSError as error:
            raise InputError(f"{self.store}: the shards cannot be accessed ({one_line(error)})") from error
        for shard, size in zip(self.index.shards, sizes, strict=True):
            if size is not None:  # some web servers do not report sizes
                self._check_length(shard, size)

    def _check_length(self, shard: Shard, size: int) -> None:
        if size != shard.bytes:
            raise InputError(f"{self.store}/{shard.name}: {size} bytes, the index says {shard.bytes}; is it truncated?")

    def load(self, shard: Shard) -> list[Sample]:
        """Read all pairs of a shard, in order.

        The size is checked each time. The digest is checked the first time only; this costs little compared to
        decoding the images.

        Raises:
            InputError: the shard is missing or differs from the index.
        """
        source = f"{self.store}/{shard.name}"
        data = self.store.read_array(shard.name, PAUSES_S)
        self._check_length(shard, len(data))
        if shard.name not in self._checked:
            if hashlib.sha256(data.data).hexdigest() != shard.sha256:
                raise InputError(f"{source}: sha256 differs from the index; copy or make the shard again")
            self._checked.add(shard.name)
        samples: dict[str, Sample] = {}
        for name, content in tar_members(data, source):
            key, _, end = name.partition(".")
            samples.setdefault(key, Sample(key, {}, self.index.format_version)).files[end] = content
        if len(samples) != shard.pairs:
            raise InputError(f"{source}: {len(samples)} pairs, the index says {shard.pairs}")
        return list(samples.values())

    def pairs(self) -> Iterator[tuple[Pair, Image, Image]]:
        """Read all pairs in order: the description, the query image and the key image (uint8 RGB [h, w, 3]).

        Raises:
            InputError: a shard is missing or differs from the index, or a pair is damaged.
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
        raise InputError(f"{source}: the index lists {len(index.shards)} shards, but not {unknown[0]!r}")
    return tuple(shard for shard in index.shards if shard.name in names)
