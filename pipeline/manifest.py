"""Stage ``manifest``: one small file that stands in for a folder of a million scans.

Hashing the content of a million files takes DVC many minutes at every run. The manifest lists path, size and
modification time instead, takes seconds, and changes only when the folder does, so stages depend on it alone. Content
digests are added on request, where neither size nor time can be trusted.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from tqdm import tqdm

from segloc.common import cli
from segloc.common.errors import InputError
from segloc.common.files import atomic_file, existing_folder, sha256_of


def entries(root: Path, with_mtime: bool, with_digest: bool = False) -> Iterator[bytes]:
    """List the files under `root`, hidden ones left out, in a fixed order.

    Yields:
        Lines ``SIZE [MTIME_NS] [SHA256] PATH``: bytes, nanoseconds, hexadecimal digest of the content (``-`` for a file
        that cannot be read), and the path relative to `root` with ``/`` separators, line breaks and backslashes in it
        escaped.
    """
    yield from _walk(os.fsencode(root), b"", with_mtime, with_digest)


def _walk(folder: bytes, prefix: bytes, with_mtime: bool, with_digest: bool) -> Iterator[bytes]:
    with os.scandir(folder) as found:
        ordered = sorted((entry for entry in found if not entry.name.startswith(b".")), key=lambda entry: entry.name)
    for entry in ordered:
        path = prefix + entry.name
        if entry.is_dir():
            if not _is_parent(entry):
                yield from _walk(entry.path, path + b"/", with_mtime, with_digest)
            continue
        # A link that leads nowhere still has a line: it changes when the link is mended.
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
    """Whether a link leads to a folder above itself, where following it would never end."""
    if not entry.is_symlink():
        return False
    here = os.path.realpath(os.path.dirname(entry.path))
    there = os.path.realpath(entry.path)
    return os.path.commonpath([here, there]) == there


def write(root: Path, out: Path, with_mtime: bool = True, with_digest: bool = False) -> tuple[int, bool]:
    """Write the manifest of `root`; a file that would stay the same is not touched.

    Returns:
        Number of files, and whether the manifest changed.

    Raises:
        InputError: the folder holds no file, or `out` lies in it.
    """
    if out.resolve().is_relative_to(root.resolve()):
        raise InputError(f"{out}: lies in {root}, so the manifest would list itself")
    count = 0
    fresh = out.with_name(f"{out.name}.new")
    try:
        with atomic_file(fresh) as file:
            lines = entries(root, with_mtime, with_digest)
            for line in tqdm(lines, unit="file", unit_scale=True, desc="manifest", disable=None):
                file.write(line)
                count += 1
        if not count:
            raise InputError(f"{root}: no file in this folder")
        changed = not (
            out.is_file() and out.stat().st_size == fresh.stat().st_size and sha256_of(out) == sha256_of(fresh)
        )
        if changed:
            os.replace(fresh, out)
    finally:
        fresh.unlink(missing_ok=True)
    return count, changed


def _command(args: argparse.Namespace) -> int:
    count, changed = write(existing_folder(args.root, "root of the manifest"), args.out, not args.no_mtime, args.digest)
    print(f"{args.out}: {count} files, {'written' if changed else 'unchanged'}")
    return 0


def main(argv: list[str] | None = None) -> int:
    """Run the command."""
    options = cli.parser(
        "pipeline.manifest",
        "List a folder's files with sizes and times, as a cheap stand-in for their content.",
        "  python -m pipeline.manifest --root data/raw/sixray --out data/sixray.manifest\n"
        "  python -m pipeline.manifest --root scans --out scans.manifest --no-mtime    # copies compare equal\n"
        "  python -m pipeline.manifest --root scans --out scans.manifest --no-mtime --digest    # only equal copies do",
    )
    options.add_argument("--root", type=cli.path, required=True, metavar="DIR", help="the folder")
    options.add_argument("--out", type=cli.path, required=True, metavar="FILE", help="the manifest to write")
    options.add_argument("--no-mtime", action="store_true", help="leave modification times out")
    options.add_argument("--digest", action="store_true", help="add SHA-256 digests, for which every file is read")
    return cli.run(_command, options, argv)


if __name__ == "__main__":
    sys.exit(main())
