"""Stage ``manifest``: one small file that stands in for a folder of a million scans.

Hashing the content of a million files takes DVC many minutes at every run. The manifest lists path, size and
modification time instead, takes seconds, and changes only when the folder does, so stages depend on it alone. Content
digests are added on request, where neither size nor time can be trusted.
"""

from __future__ import annotations

import argparse
import sys

from pipeline.common.manifest import write
from segloc.common import cli
from segloc.common.files import existing_folder


def _command(args: argparse.Namespace) -> None:
    count, changed = write(existing_folder(args.root, "root of the manifest"), args.out, not args.no_mtime, args.digest)
    print(f"{args.out}: {count} files, {'written' if changed else 'unchanged'}")


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
