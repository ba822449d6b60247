"""``python -m pipeline.simulate``: simulated scans for trying the whole chain without any data set."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

from tqdm import tqdm

from pipeline.common.executors import run_tasks
from pipeline.simulate.dataset import (
    FORMAT_VERSION,
    RAW_FORMAT_VERSION,
    SUBSETS,
    Parameters,
    coco_file,
    scan_writer,
    tasks,
)
from segloc.common import cli
from segloc.common.errors import InputError
from segloc.common.files import write_atomic

MARKER = "simulation.json"

DESCRIPTION = """Simulate a dual-energy X-ray baggage scanner and write its scans in the on-disk layouts of PIDray
(OUT/pidray: train, easy, hard, hidden, annotations) and SIXray (OUT/sixray: scans without prohibited items).
Of N scans 40 % are SIXray negatives, 36 % PIDray train and 8 % each PIDray easy (one item), hard (two or more) and
hidden (one, concealed). All 12 classes occur in every PIDray subset. No product ("brand") occurs both in the training
and in the test scans, whatever their seeds. Same arguments, same bytes. See docs/simulator.md."""

EXAMPLES = """  python -m pipeline.simulate --out data/raw
  python -m pipeline.simulate --out data/raw --scans 300 --width 320 --seed 1 --workers 2
  python -m pipeline.simulate --out dual-energy --scans 200 --raw"""


def make_parser() -> argparse.ArgumentParser:
    """Options of the command."""
    parser = cli.parser("pipeline.simulate", DESCRIPTION, EXAMPLES)
    parser.add_argument("--out", type=cli.path, required=True, metavar="DIR", help="folder to make")
    add_options(parser)
    parser.add_argument(
        "--raw",
        action="store_true",
        help="also write the two energies and the effective atomic number as 16-bit images: OUT/energies/.../"
        "NAME_low.png and NAME_high.png (transmissions, 50000 an empty belt), NAME_z.png (the number times 1000)",
    )
    parser.add_argument(
        "--swap-brands",
        action="store_true",
        help="give the training scans the brands that test scans have otherwise, and the reverse: items for trials of "
        "a network that was trained on a simulation without it",
    )
    cli.add_executor_options(parser)
    return parser


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that decide what is simulated."""
    parser.add_argument("--scans", type=int, default=1200, metavar="N", help="scans in all (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="0 or more (default: %(default)s)")
    parser.add_argument("--width", type=int, default=500, metavar="PX", help="width of a scan (default: %(default)s)")
    parser.add_argument(
        "--grey-belts",
        type=float,
        default=0.15,
        metavar="SHARE",
        help="share of the negatives on a grey belt (default: %(default)s)",
    )


def simulate(args: argparse.Namespace) -> None:
    """Make the data set, unless it is there already."""
    parameters = Parameters(args.scans, args.seed, args.width, args.grey_belts, args.raw, args.swap_brands)
    parameters.check()
    description = {
        "format_version": FORMAT_VERSION,
        **({"raw_format_version": RAW_FORMAT_VERSION} if parameters.raw else {}),
        "parameters": dataclasses.asdict(parameters),
        "counts": parameters.counts(),
    }
    earlier = _earlier(args.out)
    if earlier == description:
        print(f"{args.out}: already there, nothing to do")
        return
    out = args.out.resolve()  # a symlink stays, and the files move within one file system
    partial = out.parent / f".{out.name}.partial"
    shutil.rmtree(partial, ignore_errors=True)  # what a killed run of ours left behind
    try:
        _write(partial, parameters, args.workers, args.executor)
        _move(partial, out, earlier, description)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _earlier(out: Path) -> dict[str, Any] | None:
    """Description of the simulation that `out` holds, None if it is new or empty.

    Raises:
        InputError: `out` is a file, or a folder with something else in it.
    """
    if out.exists() and not out.is_dir():
        raise InputError(f"{out}: is a file; --out must be a folder")
    if not out.exists() or not any(out.iterdir()):
        return None
    try:
        description = json.loads((out / MARKER).read_bytes())
        ours = description["counts"].keys() == SUBSETS.keys()
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        ours = False
    if not ours:
        raise InputError(f"{out}: not empty and not made by this command; choose another folder")
    return description


def _write(root: Path, parameters: Parameters, workers: int, executor: str) -> None:
    counts = parameters.counts()
    records: dict[str, list[dict[str, Any]]] = {name: [] for name in counts}
    results = run_tasks(scan_writer(root, parameters), tasks(counts), workers=workers, executor=executor, chunk=4)
    progress = tqdm(results, total=parameters.scans, desc="simulate", unit="scan")
    for task, record in zip(tasks(counts), progress, strict=True):
        records[task.subset].append(record)
    for name, subset in SUBSETS.items():
        if subset.annotations:
            (root / subset.annotations).write_bytes(coco_file(records[name]))


def _files(counts: dict[str, int], raw: bool) -> set[str]:
    """Paths of every file that a simulation of these counts writes, but the marker."""
    files = {subset.annotations for subset in SUBSETS.values() if subset.annotations}
    for name, subset in SUBSETS.items():
        for index in range(counts[name]):
            files |= {subset.path(index), *(subset.raw_paths(index) if raw else ())}
    return files


def _move(partial: Path, out: Path, earlier: dict[str, Any] | None, description: dict[str, Any]) -> None:
    """Put the finished files in their place, the marker last; what is not ours in `out` stays."""
    counts: dict[str, int] = description["counts"]
    earlier_counts = earlier["counts"] if earlier else dict.fromkeys(counts, 0)
    # Until all is in place the marker claims both sets of files and fits no parameters, so that a run that ends here
    # is made good by the next.
    most = {name: max(count, earlier_counts[name]) for name, count in counts.items()}
    write_atomic(out / MARKER, _encode({**description, "parameters": None, "counts": most}))
    new, old = _files(counts, bool(description["parameters"]["raw"])), _files(most, raw=True)
    for path in sorted(new):
        (out / path).parent.mkdir(parents=True, exist_ok=True)
        os.replace(partial / path, out / path)
    for path in old - new:
        (out / path).unlink(missing_ok=True)
    write_atomic(out / MARKER, _encode(description))


def _encode(description: dict[str, Any]) -> bytes:
    return (json.dumps(description, indent=1, sort_keys=True) + "\n").encode()


def main(argv: list[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    return cli.run(simulate, make_parser(), argv)


if __name__ == "__main__":
    sys.exit(main())
