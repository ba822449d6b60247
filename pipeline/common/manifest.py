"""Manifests: small files that list a folder of up to a million scans."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from tqdm import tqdm

from segloc.common.errors import InputError
from segloc.common.files import atomic_file, check_output, make_folder, naming, sha256_of


def entries(root: Path, with_mtime: bool, with_digest: bool = False) -> Iterator[bytes]:
    """List the files under `root` in a fixed order, without hidden files; see `scan_paths.walk` for links.

    Yields:
        Lines ``SIZE [MTIME_NS] [SHA256] PATH``: bytes; nanoseconds; hexadecimal digest of the content (``-`` if the
        file cannot be read); path relative to `root` in UTF-8, with ``/`` separators. Line breaks, backslashes and
        bytes that are not UTF-8 are escaped.
    """
    return _entries(os.fsencode(root), with_mtime, with_digest, b"", set())


def _entries(
    folder: bytes, with_mtime: bool, with_digest: bool, prefix: bytes, seen: set[tuple[int, int]]
) -> Iterator[bytes]:
    """List a folder, unless it is one of `seen`, so that a link to a parent ends."""
    own = os.stat(folder)
    if (own.st_dev, own.st_ino) in seen:
        return
    seen.add((own.st_dev, own.st_ino))
    with os.scandir(folder) as found:
        ordered = sorted((entry for entry in found if not entry.name.startswith(b".")), key=lambda entry: entry.name)
    for entry in ordered:
        path = prefix + entry.name
        if _is(entry.is_dir):
            yield from _entries(entry.path, with_mtime, with_digest, path + b"/", seen)
            continue
        # A link without a target still has a line, which changes when the link is repaired.
        status = entry.stat(follow_symlinks=_is(entry.is_file))
        escaped = path.replace(b"\\", b"\\\\").replace(b"\n", b"\\n").replace(b"\r", b"\\r")
        name = escaped.decode("utf-8", "backslashreplace").encode()
        time = b"%d " % status.st_mtime_ns if with_mtime else b""
        digest = _digest(entry.path) if with_digest else b""
        yield b"%d %s%s%s\n" % (status.st_size, time, digest, name)


def _is(test: Callable[[], bool]) -> bool:
    """Ask an entry for its kind. A link to itself, which has none, raises."""
    try:
        return test()
    except OSError:
        return False


def _digest(path: bytes) -> bytes:
    try:
        return sha256_of(os.fsdecode(path)).encode() + b" "
    except OSError:
        return b"- "


def write_manifest(root: Path, out: Path, with_mtime: bool = True, with_digest: bool = False) -> tuple[int, bool]:
    """Write the manifest of `root`. An unchanged manifest file is not touched.

    Returns:
        Number of files, and whether the manifest changed.

    Raises:
        InputError: the folder has no files, or `out` lies in it.
    """
    if out.resolve().is_relative_to(root.resolve()):
        raise InputError(f"{out}: lies in {root}, so the manifest would list itself; choose another folder")
    check_output(out)
    count, digest = 0, hashlib.sha256()
    with naming(out), tempfile.TemporaryFile(dir=make_folder(out.parent)) as fresh:
        lines = entries(root, with_mtime, with_digest)
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
    return count, changed
