"""Shards: byte-stable tars of pairs, each made, synced and recorded on its own, so that a killed run loses nothing."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import re
import tarfile
from pathlib import Path
from typing import BinaryIO

from pipeline.files import sha256_of
from pipeline.images import ImageError, encode_jpeg
from pipeline.pairs import Recipe, make_pair, tables
from segloc.contract import INDEX_NAME, InputError, Pair, Shard, atomic_file, pair_key, shard_name, write_atomic

PROGRESS_NAME = ".progress"
# Fields of a USTAR header.
_NAME, _SIZE, _CHECKSUM = slice(0, 100), slice(124, 136), slice(148, 156)
_TEMPORARY = re.compile(r"\.pairs-(\d{6,})\.tar\..*\.tmp")


@dataclasses.dataclass(frozen=True)
class Job:
    """What a worker needs to make any shard of a folder.

    Attributes:
        recipe: how pairs are made.
        out: the folder.
        pairs: number of pairs over all shards.
        per_shard: pairs in a shard; the last may have fewer.
        quality: of the JPEGs, 1..100.
    """

    recipe: Recipe
    out: Path
    pairs: int
    per_shard: int = 1000
    quality: int = 95

    @property
    def num_shards(self) -> int:
        """Number of shards."""
        return -(-self.pairs // self.per_shard)

    def numbers(self, shard: int) -> range:
        """Numbers of the pairs in a shard."""
        return range(shard * self.per_shard, min(self.pairs, (shard + 1) * self.per_shard))


def ensure_shard(job: Job, number: int) -> tuple[Shard, bool]:
    """Make shard `number`, unless it is there, recorded, and its bytes are what the record says.

    Returns:
        Its entry for the index, and whether it was made now.
    """
    path = job.out / shard_name(number)
    recorded = read_record(job.out, number)
    if recorded is not None and _is_intact(path, recorded):
        return recorded, False
    # A folder with an index claims to be complete, which from here on it is not.
    (job.out / INDEX_NAME).unlink(missing_ok=True)
    _, items = tables(job.recipe.regions, job.recipe.segments)
    classes = [0] * len(items.classes)
    with atomic_file(path) as file:
        _write_tar(job, job.numbers(number), file, classes)
    shard = Shard(path.name, len(job.numbers(number)), path.stat().st_size, sha256_of(path), tuple(classes))
    write_record(job.out, number, shard)
    return shard, True


def remove_strays(out: Path, numbers: range) -> None:
    """Remove the temporaries that killed writers of the shards `numbers` left behind."""
    for path in out.iterdir():
        match = _TEMPORARY.fullmatch(path.name)
        if match and int(match[1]) in numbers:
            path.unlink(missing_ok=True)


class TarWriter:
    """Writes pairs into a tar whose headers are all fixed but for name and size.

    The bytes are those of `tarfile` in USTAR format, which takes twice as long to make them.

    Args:
        file: open for writing.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._written = 0
        blank = tarfile.TarInfo("")
        blank.mode, blank.mtime, blank.uid, blank.gid, blank.uname, blank.gname = 0o444, 0, 0, 0, "", ""
        self._header = bytearray(blank.tobuf(tarfile.USTAR_FORMAT))

    def add_pair(self, job: Job, number: int) -> Pair:
        """Make pair `number` and append its three members.

        Raises:
            InputError: as `make_pair`, or an image too large for JPEG.
        """
        pair, query, key = make_pair(job.recipe, number)
        name = pair_key(number)
        for side, image in (("query", query), ("key", key)):
            try:
                self.add(f"{name}.{side}.jpg", encode_jpeg(image, job.quality))
            except ImageError as error:
                raise InputError(f"background {getattr(pair, side).background}: {error}") from error
        self.add(f"{name}.json", pair.to_json())
        return pair

    def add(self, name: str, data: bytes) -> None:
        """Append a member of at most 8 GB under an ASCII name of at most 100 characters."""
        header = self._header.copy()
        header[_NAME] = name.encode("ascii").ljust(_NAME.stop, b"\0")
        header[_SIZE] = b"%011o\0" % len(data)
        header[_CHECKSUM] = b" " * 8  # it is taken with itself blank
        header[_CHECKSUM] = b"%06o\0 " % sum(header)
        for part in (header, data, bytes(-len(data) % tarfile.BLOCKSIZE)):
            self._written += self._file.write(part)

    def close(self) -> None:
        """Write the end marker."""
        self._file.write(bytes(2 * tarfile.BLOCKSIZE + -(self._written + 2 * tarfile.BLOCKSIZE) % tarfile.RECORDSIZE))


def _write_tar(job: Job, numbers: range, file: BinaryIO, classes: list[int]) -> None:
    tar = TarWriter(file)
    for number in numbers:
        classes[tar.add_pair(job, number).class_id] += 1
    tar.close()


def _is_intact(path: Path, shard: Shard) -> bool:
    with contextlib.suppress(OSError):
        return path.stat().st_size == shard.bytes and sha256_of(path) == shard.sha256
    return False


def _record(out: Path, number: int) -> Path:
    return out / PROGRESS_NAME / f"{shard_name(number)}.json"


def write_record(out: Path, number: int, shard: Shard) -> None:
    """Note that a shard is finished."""
    write_atomic(_record(out, number), json.dumps(dataclasses.asdict(shard)).encode())


def read_record(out: Path, number: int) -> Shard | None:
    """Read the note of a finished shard; None when there is none that makes sense."""
    try:
        raw = json.loads(_record(out, number).read_bytes())
        return Shard(**{**raw, "classes": tuple(raw["classes"])})
    except (OSError, ValueError, TypeError, KeyError):
        return None
