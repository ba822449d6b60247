"""Shards: byte-stable tars of pairs, each made, synced and recorded on its own, so that a killed run loses nothing."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import re
import tarfile
from pathlib import Path
from typing import BinaryIO

from pipeline.files import sha256_of
from pipeline.images import ImageError, encode_jpeg
from pipeline.pairs import Recipe, make_pair, tables
from segloc.contract import INDEX_NAME, InputError, Shard, atomic_file, pair_key, shard_name, write_atomic

PROGRESS_NAME = ".progress"
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


def _write_tar(job: Job, numbers: range, file: BinaryIO, classes: list[int]) -> None:
    with tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for number in numbers:
            pair, query, key = make_pair(job.recipe, number)
            classes[pair.class_id] += 1
            name = pair_key(number)
            for side, image in (("query", query), ("key", key)):
                try:
                    _add(tar, f"{name}.{side}.jpg", encode_jpeg(image, job.quality))
                except ImageError as error:
                    raise InputError(f"background {getattr(pair, side).background}: {error}") from error
            _add(tar, f"{name}.json", pair.to_json())


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    """Append a member with every header field fixed."""
    member = tarfile.TarInfo(name)
    member.size, member.mode, member.mtime = len(data), 0o444, 0
    member.uid = member.gid = 0
    member.uname = member.gname = ""
    tar.addfile(member, io.BytesIO(data))


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
