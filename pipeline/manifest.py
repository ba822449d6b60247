"""Stage ``manifest``: lists a folder of up to a million scans in one small file, which DVC watches instead.

Hashing a million files takes DVC many minutes in every run. The manifest lists path, size and modification time, takes
seconds, and changes only when the folder changes, so stages depend on the manifest alone. Content digests are optional,
for folders where neither size nor time can be trusted.
"""

from __future__ import annotations

import argparse
import sys

from pipeline.common.manifest import MANIFEST, write_manifest
from segloc.common import cli
from segloc.common.files import existing_folder
from segloc.common.skips import require


def _command(args: argparse.Namespace) -> None:
    count, changed, skips = write_manifest(
        existing_folder(args.root, "root of the manifest"), args.out, not args.no_mtime, args.digest
    )
    print(f"{args.out}: {count} files, {'written' if changed else 'unchanged'}")
    if skips.counts:
        print(skips.summary())
    require([skips], args.max_skipped, "make these files readable", str(args.out))


def main(argv: list[str] | None = None) -> int:
    """Run the command."""
    options = cli.parser(
        "pipeline.manifest",
        "List a folder's files with sizes and times, for DVC to watch instead of their content.",
        "  python -m pipeline.manifest --root data/raw/sixray --out data/sixray.manifest\n"
        "  python -m pipeline.manifest --root scans --out scans.manifest --no-mtime    # ignores copying\n"
        "  python -m pipeline.manifest --root scans --out scans.manifest --no-mtime --digest    # compares content",
    )
    options.add_argument("--root", type=cli.path, required=True, metavar="DIR", help="folder to list")
    options.add_argument(
        "--out", type=cli.OutputFile(MANIFEST), required=True, metavar="FILE", help="the manifest to write"
    )
    options.add_argument("--no-mtime", action="store_true", help="omit modification times")
    options.add_argument("--digest", action="store_true", help="add SHA-256 digests (reads every file)")
    cli.add_max_skipped(options)
    return cli.run(_command, options, argv)


if __name__ == "__main__":
    sys.exit(main())
