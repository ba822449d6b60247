"""``python -m pipeline.sources``: the first stage of ``dvc repro``. Checks that the raw scans exist and lists them.

DVC would have to read a million files to notice a changed one. Every ``dvc repro`` writes the manifests again, in
seconds, and leaves an unchanged manifest untouched, so that later stages do not run.
"""

from __future__ import annotations

import argparse

from pipeline.common.sources import is_inside, roots, write_manifests
from pipeline.simulate.__main__ import add_options
from pipeline.simulate.dataset import Parameters
from pipeline.simulate.generate import make
from segloc.common import cli

EXAMPLES = """\
  python -m pipeline.sources --foregrounds data/raw/pidray --backgrounds data/raw/sixray --out data/manifest
  python -m pipeline.sources --foregrounds data/simulated/pidray --backgrounds data/simulated/sixray \\
      --simulated data/simulated --scans 300 --out data/manifest"""


def _command(args: argparse.Namespace) -> None:
    if any(is_inside(root, args.simulated) for root in (args.foregrounds, args.backgrounds)):
        parameters = Parameters(args.scans, args.seed, args.width, args.grey_belts)
        if not make(args.simulated, parameters, args.workers, args.executor, "rebuild"):
            print(f"{args.simulated}: already there, nothing to do")
    listed = roots(args.foregrounds, args.images, args.backgrounds)
    files, changed = write_manifests(listed, args.out, args.simulated)
    for name, root in listed.items():
        print(f"{name}: {files[name]} files in {root}")
    print("the scans have changed" if changed else "nothing changed")


def main(argv: list[str] | None = None) -> int:
    """Run the command line and return the exit code."""
    options = cli.parser("pipeline.sources", "Check that the raw scans exist, and list them for DVC.", EXAMPLES)
    add = options.add_argument
    add("--foregrounds", type=cli.path, required=True, metavar="PATH", help="PIDray's root, or a COCO file")
    add("--images", type=cli.optional_path, metavar="DIR", help="scans of the COCO file (default: its folder)")
    scans = "SIXray, PIDray v2 (its unannotated training scans), or a folder of scans"
    add("--backgrounds", type=cli.path, required=True, metavar="DIR", help=scans)
    add("--out", type=cli.output_folder, required=True, metavar="DIR", help="output folder of the manifests")
    add("--simulated", type=cli.path, metavar="DIR", help="simulate those roots that lie in this folder")
    add_options(options)
    cli.add_executor_options(options)
    return cli.run(_command, options, argv)


if __name__ == "__main__":
    raise SystemExit(main())
