"""``python -m segloc.report``: one self-contained HTML page that compares runs."""

from __future__ import annotations

import argparse

from segloc.common import cli
from segloc.reporting.page import write_report

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
    for path in write_report(args.runs, args.out, args.title, args.picture, args.table):
        print(path.resolve())


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    options = cli.parser("segloc.report", "Write one self-contained HTML page that compares runs.", EXAMPLES)
    add = options.add_argument
    runs_help = "run folder, its evaluation.json in it; or what segloc.evaluate wrote for another program's results"
    add("runs", nargs="+", metavar="RUN", help=runs_help)
    add("--out", required=True, metavar="FILE", help="the page")
    add("--title", default="SegLoc report", help="headline (default: %(default)s)")
    add("--picture", action="append", default=[], metavar="CAPTION=FILE", help="show a picture (repeatable)")
    table_help = "also write the table, as .md or .csv (repeatable)"
    add("--table", action="append", default=[], metavar="FILE", help=table_help)
    return cli.run(_command, options, argv)


if __name__ == "__main__":
    raise SystemExit(main())
