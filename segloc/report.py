"""``python -m segloc.report``: write a self-contained HTML page that compares runs."""

from __future__ import annotations

import argparse

from segloc.common import cli
from segloc.reporting.page import PAGE, TABLES, write_report

EXAMPLES = """\
  python -m segloc.report runs/pretrain runs/finetune-segloc runs/finetune-random --out report.html
  python -m segloc.report runs/* --picture "Positive pairs=data/pairs.png" --out report.html
  python -m segloc.report runs/segloc-seed* runs/random-seed* --out report.html --table table.md --table table.csv
  python -m segloc.report runs/segloc other_program.json --out report.html    # from segloc.evaluate --results
Runs that differ only in seed share a row with mean and sample standard deviation. Each run is compared with the random
initialisation of the same recipe, training set and engine. If the test sets are easy, hard and hidden, the page also
shows published results on PIDray, marked as such. Folders without run.json are printed and left out.
"""


def _command(args: argparse.Namespace) -> None:
    for path in write_report(args.runs, args.out, args.title, args.picture, args.table):
        print(path.resolve())


def main(argv: list[str] | None = None) -> int:
    """Run the command; return its exit code."""
    options = cli.parser("segloc.report", "Write a self-contained HTML page that compares runs.", EXAMPLES)
    add = options.add_argument
    runs_help = "run folder with its evaluation.json, or a JSON file of segloc.evaluate --results"
    add("runs", type=cli.path, nargs="+", metavar="RUN", help=runs_help)
    add("--out", type=cli.OutputFile(PAGE), required=True, metavar="FILE", help="HTML file to write")
    add("--title", default="SegLoc report", help="title of the page (default: %(default)s)")
    add("--picture", action="append", default=[], metavar="CAPTION=FILE", help="picture to include (repeatable)")
    table_help = "also write the table as .md or .csv (repeatable)"
    add("--table", type=cli.OutputFile(*TABLES), action="append", default=[], metavar="FILE", help=table_help)
    return cli.run(_command, options, argv)


if __name__ == "__main__":
    raise SystemExit(main())
