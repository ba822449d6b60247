"""Manifests: small files that list a folder of up to a million scans."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from tqdm import tqdm

from segloc.common.errors import InputError
from segloc.common.files import atomic_file, sha256_of


def entries(root: Path | bytes, with_mtime: bool, with_digest: bool = False, prefix: bytes = b"") -> Iterator[bytes]:
    """List the files under `root` in a fixed order, without hidden files.

    Yields:
        Lines ``SIZE [MTIME_NS] [SHA256] PATH``: bytes; nanoseconds; hexadecimal digest of the content (``-`` if the
        file cannot be read); `prefix` and the path relative to `root`, with ``/`` separators and with line breaks and
        backslashes escaped.
    """
    with os.scandir(os.fsencode(root)) as found:
        ordered = sorted((entry for entry in found if not entry.name.startswith(b".")), key=lambda entry: entry.name)
    for entry in ordered:
        path = prefix + entry.name
        if entry.is_dir():
            if not _is_parent(entry):
                yield from entries(entry.path, with_mtime, with_digest, path + b"/")
            continue
        # A dangling link still has a line, which changes when the link is repaired.
        status = entry.stat(follow_symlinks=entry.is_file())
        name = path.replace(b"\\", b"\\\\").replace(b"\n", b"\\n").replace(b"\r", b"\\r")
        time = b"%d " % status.st_mtime_ns if with_mtime else b""
        digest = _digest(entry.path) if with_digest else b""
        yield b"%d %s%s%s\n" % (status.st_size, time, digest, name)


def _digest(path: bytes) -> bytes:
    try:
        return sha256_of(os.fsdecode(path)).encode() + b" "
    except OSError:
        return b"- "


def _is_parent(entry: os.DirEntry[bytes]) -> bool:
    """Whether a link leads to a folder above itself, so that following it would never end."""
    if not entry.is_symlink():
        return False
    here = os.path.realpath(os.path.dirname(entry.path))
    there = os.path.realpath(entry.path)
    return os.path.commonpath([here, there]) == there


def write_manifest(root: Path, out: Path, with_mtime: bool = True, with_digest: bool = False) -> tuple[int, bool]:
    """Write the manifest of `root`. An unchanged manifest file is not touched.

    Returns:
        Number of files, and whether the manifest changed.

    Raises:
        InputError: the folder has no files, or `out` lies in it.
    """
    if out.resolve().is_relative_to(root.resolve()):
        raise InputError(f"{out}: lies in {root}, so the manifest would list itself; choose another folder")
    count = 0
    fresh = out.with_name(f"{out.name}.new")
    try:
        with atomic_file(fresh) as file:
            lines = entries(root, with_mtime, with_digest)
            for line in tqdm(lines, unit="file", unit_scale=True, desc="manifest", disable=None):
                file.write(line)
                count += 1
        if not count:
            raise InputError(f"{root}: no files in this folder")
        changed = not out.is_file() or sha256_of(out) != sha256_of(fresh)
        if changed:
            os.replace(fresh, out)
    finally:
        fresh.unlink(missing_ok=True)
    return count, changed
