"""``python -m segloc.report``: one self-contained HTML page that compares runs."""

from __future__ import annotations

import argparse
from pathlib import Path

from segloc.common import cli
from segloc.common.errors import InputError
from segloc.common.files import check_output, write_atomic
from segloc.reporting.page import WRITERS, _with_runs, picture, render
from segloc.reporting.results_table import results_table
from segloc.reporting.run_results import read

EXAMPLES = """\
  python -m segloc.report runs/pretrain runs/finetune-segloc runs/finetune-random --out report.html
  python -m segloc.report runs/* --picture "Positive pairs=data/pairs.png" --out report.html
  python -m segloc.report runs/segloc-seed* runs/random-seed* --out report.html --table table.md --table table.csv
  python -m segloc.report runs/segloc other_program.json --out report.html    # from segloc.evaluate --results
Runs that differ only in seed share a row: mean and sample standard deviation. Each start is compared with the random
start of the same recipe, training set and engine. Where the test sets are easy, hard and hidden, published figures on
PIDray follow, marked as such. Folders without run.json are named and left out.
"""


def _command(args: argparse.Namespace) -> None:
    for path in (args.out, *args.table):
        check_output(path)
    for path in args.table:
        if Path(path).suffix not in WRITERS:
            raise InputError(f"{path}: --table writes {' and '.join(WRITERS)} files")
    runs = [read(path) for path in _with_runs([Path(run) for run in args.runs])]
    page = render(runs, [picture(argument) for argument in args.picture], args.title)
    for path in args.table:
        write_atomic(path, WRITERS[Path(path).suffix](results_table(runs)).encode())
        print(Path(path).resolve())
    write_atomic(args.out, page.encode())
    print(Path(args.out).resolve())


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    options = cli.parser("segloc.report", "Write one self-contained HTML page that compares runs.", EXAMPLES)
    options.add_argument(
        "runs",
        nargs="+",
        metavar="RUN",
        help="run folder, its evaluation.json in it; or what segloc.evaluate wrote for another program's results",
    )
    options.add_argument("--out", required=True, metavar="FILE", help="the page")
    options.add_argument("--title", default="SegLoc report", help="headline (default: %(default)s)")
    options.add_argument(
        "--picture", action="append", default=[], metavar="CAPTION=FILE", help="show a picture (repeatable)"
    )
    options.add_argument(
        "--table", action="append", default=[], metavar="FILE", help="also write the table, as .md or .csv (repeatable)"
    )
    return cli.run(_command, options, argv)


if __name__ == "__main__":
    raise SystemExit(main())
