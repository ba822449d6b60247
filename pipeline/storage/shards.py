"""Shards: byte-stable tars of pairs. Each is made, synced and recorded separately, so a killed run can resume."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import re
import tarfile
from collections import Counter
from typing import IO

from pipeline.pairing.pairs import Recipe, make_pair, tables
from pipeline.storage.progress import Record, digest_of, is_intact, read_plan, read_record, write_record, write_uses
from pipeline.tables import sources_table
from segloc.common.contract import INDEX_NAME, Pair, Shard, pair_key, shard_name
from segloc.common.errors import InputError
from segloc.common.images import ImageError, encode_jpeg
from segloc.common.store_protocol import Store

# Fields of a USTAR header.
_NAME, _SIZE, _CHECKSUM = slice(0, 100), slice(124, 136), slice(148, 156)
_TEMPORARY = re.compile(r"\.pairs-(\d{6,})\.tar\..*\.tmp")


@dataclasses.dataclass(frozen=True)
class Job:
    """Everything that a worker needs to make any shard of a folder.

    Attributes:
        recipe: recipe of the pairs.
        out: output folder.
        pairs: number of pairs over all shards.
        per_shard: pairs per shard; the last shard may have fewer.
        quality: JPEG quality, 1..100.
        plan: digest of the plan (`pipeline.storage.progress.digest_of`), set when the folder is prepared.
    """

    recipe: Recipe
    out: Store
    pairs: int
    per_shard: int = 1000
    quality: int = 95
    plan: str = ""

    @property
    def num_shards(self) -> int:
        """Number of shards."""
        return -(-self.pairs // self.per_shard)

    def numbers(self, shard: int) -> range:
        """Numbers of the pairs in a shard."""
        return range(shard * self.per_shard, min(self.pairs, (shard + 1) * self.per_shard))


def ensure_shard(job: Job, number: int) -> tuple[Shard, bool]:
    """Make shard `number`, unless a recorded, intact one exists.

    Returns:
        Its entry for the index, and whether this call made it.

    Raises:
        InputError: an input is unusable, or another run has made the folder its own.
    """
    recorded = read_record(job.out, number) or _listed(job.out, number)
    if recorded is not None and recorded.plan in (None, job.plan) and is_intact(job.out, recorded):
        return recorded.shard, False
    # An index marks the folder as complete, which stops being true here.
    job.out.delete(INDEX_NAME)
    _, items = tables(job.recipe.regions, job.recipe.segments)
    name, numbers, classes = shard_name(number), job.numbers(number), [0] * len(items.classes)
    uses = Counter[sources_table.Source]()
    with job.out.create(name) as file:
        tar = TarWriter(file)
        for place in numbers:
            pair = tar.add_pair(job, place)
            classes[pair.class_id] += 1
            uses.update(sources_table.of_pair(pair))
        tar.close()
        _check_plan(job)  # the file gets its name after this
    shard = Shard(name, len(numbers), tar.bytes, tar.sha256, tuple(classes))
    write_uses(job.out, name, uses)
    written = job.out.stat(name)
    write_record(job.out, number, Record(shard, written and written.tag, job.plan))
    return shard, True


def _listed(out: Store, number: int) -> Record | None:
    """The entry of a shard in the index, which replaces the records once a folder is complete."""
    if out.stat(INDEX_NAME):
        with contextlib.suppress(InputError, IndexError):
            return Record(out.index().shards[number])
    return None


def _check_plan(job: Job) -> None:
    """Check that no other run has rebuilt the folder with other settings meanwhile."""
    plan = read_plan(job.out)
    if plan is not None and digest_of(plan) != job.plan:
        raise InputError(f"{job.out}: a run with other settings has rebuilt this folder; choose another --out")


def remove_strays(out: Store, numbers: range) -> None:
    """Remove the temporary files that killed writers of the shards `numbers` left."""
    for name in out.names():
        match = _TEMPORARY.fullmatch(name)
        if match and int(match[1]) in numbers:
            out.delete_temporary(name)


class TarWriter:
    """Writes pairs into a tar whose headers are constant except for name and size.

    The bytes equal those of `tarfile` in USTAR format, but are written faster.

    Args:
        file: open for writing.

    Attributes:
        bytes: number of bytes written.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._digest = hashlib.sha256()
        self.bytes = 0
        blank = tarfile.TarInfo("")
        blank.mode, blank.mtime, blank.uid, blank.gid, blank.uname, blank.gname = 0o444, 0, 0, 0, "", ""
        self._header = bytearray(blank.tobuf(tarfile.USTAR_FORMAT))

    def add_pair(self, job: Job, number: int) -> Pair:
        """Make pair `number` and append its three members.

        Raises:
            InputError: see `make_pair`; or an image is too large for JPEG.
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
        """Append a member of at most 8 GB with an ASCII name of at most 100 characters."""
        header = self._header.copy()
        header[_NAME] = name.encode("ascii").ljust(_NAME.stop, b"\0")
        header[_SIZE] = b"%011o\0" % len(data)
        header[_CHECKSUM] = b" " * 8  # the checksum is computed with a blank field
        header[_CHECKSUM] = b"%06o\0 " % sum(header)
        for part in (header, data, bytes(-len(data) % tarfile.BLOCKSIZE)):
            self._write(part)

    def close(self) -> None:
        """Write the end marker."""
        self._write(bytes(2 * tarfile.BLOCKSIZE + -(self.bytes + 2 * tarfile.BLOCKSIZE) % tarfile.RECORDSIZE))

    @property
    def sha256(self) -> str:
        """Digest of the written bytes, hexadecimal."""
        return self._digest.hexdigest()

    def _write(self, data: bytes | bytearray) -> None:
        self.bytes += self._file.write(data)
        self._digest.update(data)
