"""Manifests: small files that list a folder of up to a million scans."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from tqdm import tqdm

from segloc.common.datasets.scan_paths import is_litter
from segloc.common.errors import InputError
from segloc.common.files import atomic_file, check_output, make_folder, naming, sha256_of
from segloc.common.images import BROKEN_LINK
from segloc.common.output_kinds import check_replaces, starting
from segloc.common.skips import Skips

MANIFEST = starting("a manifest", rb"\d+ (\d{10,} )?([0-9a-f]{64} |- )?[^\n]+\n")


def entries(root: Path, with_mtime: bool, skips: Skips, with_digest: bool = False) -> Iterator[bytes]:
    """List the files under `root` in a fixed order, without hidden files and litter; see `scan_paths.walk` for links.

    Files without a digest, because they cannot be read, are counted in `skips`. A file that is removed meanwhile is not
    listed.

    Yields:
        Lines ``SIZE [MTIME_NS] [SHA256] PATH``: bytes; nanoseconds; hexadecimal digest of the content (``-`` if the
        file cannot be read); path relative to `root` in UTF-8, with ``/`` separators. Line breaks, backslashes and
        bytes that are not UTF-8 are escaped.
    """
    return _entries(os.fsencode(root), with_mtime, skips if with_digest else None, b"", set())


def _entries(
    folder: bytes, with_mtime: bool, skips: Skips | None, prefix: bytes, seen: set[tuple[int, int]]
) -> Iterator[bytes]:
    """List a folder, unless it is one of `seen`, so that a link to a parent ends; with digests, if `skips` is given."""
    own = os.stat(folder)
    if (own.st_dev, own.st_ino) in seen:
        return
    seen.add((own.st_dev, own.st_ino))
    with os.scandir(folder) as found:
        ordered = sorted((entry for entry in found if not entry.name.startswith(b".")), key=lambda entry: entry.name)
    for entry in ordered:
        path = prefix + entry.name
        if _is(entry.is_dir):
            if not is_litter(os.fsdecode(entry.name)):
                yield from _entries(entry.path, with_mtime, skips, path + b"/", seen)
            continue
        try:
            # A link without a target still has a line, which changes when the link is repaired.
            status = entry.stat(follow_symlinks=_is(entry.is_file))
            digest = b"" if skips is None else _digest(entry, skips, path)
        except FileNotFoundError:  # removed since the folder was listed
            continue
        escaped = path.replace(b"\\", b"\\\\").replace(b"\n", b"\\n").replace(b"\r", b"\\r")
        name = escaped.decode("utf-8", "backslashreplace").encode()
        time = b"%d " % status.st_mtime_ns if with_mtime else b""
        yield b"%d %s%s%s\n" % (status.st_size, time, digest, name)


def _is(test: Callable[[], bool]) -> bool:
    """Ask an entry for its kind. A link to itself, which has none, raises."""
    try:
        return test()
    except OSError:
        return False


def _digest(entry: os.DirEntry[bytes], skips: Skips, path: bytes) -> bytes:
    """Return the digest of a file; ``-`` for a link without a target, and for a file that cannot be read.

    Raises:
        FileNotFoundError: the file is gone.
    """
    skips.total += 1
    try:
        if not stat.S_ISREG(os.stat(entry.path).st_mode):  # opening a pipe would wait for its writer
            raise OSError(errno.EINVAL, "not a regular file")
        return sha256_of(os.fsdecode(entry.path)).encode() + b" "
    except OSError as error:
        if isinstance(error, FileNotFoundError) and not entry.is_symlink():
            skips.total -= 1
            raise
        broken = entry.is_symlink() and error.errno in (errno.ENOENT, errno.ELOOP)
        skips.add(BROKEN_LINK if broken else f"cannot be read: {error.strerror}", os.fsdecode(path))
        return b"- "


def write_manifest(
    root: Path, out: Path, with_mtime: bool = True, with_digest: bool = False
) -> tuple[int, bool, Skips]:
    """Write the manifest of `root`. An unchanged manifest file is not touched.

    Returns:
        Number of files, whether the manifest changed, and the files without a digest.

    Raises:
        InputError: the folder has no files, or `out` lies in it.
    """
    if out.resolve().is_relative_to(root.resolve()):
        raise InputError(f"{out}: lies in {root}, so the manifest would list itself; choose another folder")
    check_output(out)
    check_replaces(out, MANIFEST)
    count, digest, skips = 0, hashlib.sha256(), Skips("files")
    with naming(out), tempfile.TemporaryFile(dir=make_folder(out.parent)) as fresh:
        lines = entries(root, with_mtime, skips, with_digest)
        for line in tqdm(lines, unit="file", unit_scale=True, desc="manifest", disable=None):
            fresh.write(line)
            digest.update(line)
            count += 1
        if not count:
            raise InputError(f"{root}: no files in this folder")
        changed = not out.is_file() or sha256_of(out) != digest.hexdigest()
        if changed:
            fresh.seek(0)
            with atomic_file(out) as file:
                shutil.copyfileobj(fresh, file)
    return count, changed, skips
