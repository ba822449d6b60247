"""``python -m pipeline.sources``: the first stage of ``dvc repro``. Makes sure the raw scans are there and lists them.

DVC would have to read a million files to notice that one has changed. The manifests written here stand in for them:
made anew at every ``dvc repro``, in seconds, and left untouched when nothing has changed, so that nothing after runs.
"""

from __future__ import annotations

import argparse

from pipeline.common import manifest as manifest_body
from pipeline.common.sources import _inside, roots
from pipeline.simulate import __main__ as simulator
from segloc.common import cli
from segloc.common.errors import InputError

EXAMPLES = """\
  python -m pipeline.sources --foregrounds data/raw/pidray --backgrounds data/raw/sixray --out data/manifest
  python -m pipeline.sources --foregrounds data/simulated/pidray --backgrounds data/simulated/sixray \\
      --simulated data/simulated --scans 300 --out data/manifest"""


def _command(args: argparse.Namespace) -> None:
    simulated = [root for root in (args.foregrounds, args.backgrounds) if _inside(root, args.simulated)]
    if simulated:
        simulator.simulate(
            argparse.Namespace(
                out=args.simulated, scans=args.scans, seed=args.seed, width=args.width, grey_belts=args.grey_belts,
                raw=False, swap_brands=False, workers=args.workers, executor=args.executor,
            )
        )  # fmt: skip
    args.out.mkdir(parents=True, exist_ok=True)
    listed = roots(args.foregrounds, args.images, args.backgrounds)
    changed = False
    for name, root in listed.items():
        if not root.is_dir():
            raise InputError(f"{root}: no such file or folder ({name} in params.yaml)")
        # A simulated scan is known by its parameters; its time would only differ from machine to machine.
        files, different = manifest_body.write(root, args.out / f"{name}.manifest", not _inside(root, args.simulated))
        changed |= different
        print(f"{name}: {files} files in {root}")
    for stale in set(args.out.glob("*.manifest")) - {args.out / f"{name}.manifest" for name in listed}:
        stale.unlink()
        changed = True
    print("the scans have changed" if changed else "nothing changed")


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    options = cli.parser("pipeline.sources", "Make sure the raw scans are there, and list them for DVC.", EXAMPLES)
    options.add_argument(
        "--foregrounds", type=cli.path, required=True, metavar="PATH", help="PIDray's root, or a COCO file"
    )
    options.add_argument(
        "--images", type=cli.optional_path, metavar="DIR", help="scans of that COCO file, if not beside it"
    )
    options.add_argument(
        "--backgrounds",
        type=cli.path,
        required=True,
        metavar="DIR",
        help="SIXray, PIDray v2 (its unannotated training scans), or a folder of scans",
    )
    options.add_argument("--out", type=cli.path, required=True, metavar="DIR", help="folder of the manifests")
    options.add_argument("--simulated", type=cli.path, metavar="DIR", help="simulate the roots that lie in here")
    simulator.add_options(options)
    cli.add_executor_options(options)
    return cli.run(_command, options, argv)


if __name__ == "__main__":
    raise SystemExit(main())
