"""``python -m segloc.evaluate``: COCO average precision and recall of a fine-tuned detector or of any results file."""

from __future__ import annotations

import argparse
import sys

from segloc.common import cli, locks, stops
from segloc.common.errors import InputError
from segloc.common.skips import require
from segloc.detection import bootstrap, eval_tables
from segloc.detection.evaluation import (
    EVALUATION,
    evaluate_results,
    evaluate_weights,
    tables_beside,
    write_evaluation,
)
from segloc.training.processes import Group, run_on

EXAMPLES = """\
  python -m segloc.evaluate --weights runs/segloc --data data/raw/pidray --out runs/segloc/evaluation.json
  python -m segloc.evaluate --weights runs/segloc --data data/raw/pidray --out runs/segloc/evaluation.json --processes 8
  python -m segloc.evaluate --results hidden.results.json --annotations xray_test_hidden.json --out hidden.json
  python -m segloc.evaluate --results easy.results.json hard.results.json --bootstrap 1000 \\
      --annotations xray_test_easy.json xray_test_hard.json --out both.json
Metrics are in per cent. "mean" is the plain mean of the test sets, as published for PIDray. "pooled" treats the images
of all test sets as one set. OUT.csv and OUT.md have the same metrics as OUT.json.
Metrics equal those of pycocotools, with two exceptions. An annotation with id 0, which pycocotools never matches,
counts like any other. An annotation whose mask cannot be decoded counts only for boxes: all its polygons have fewer
than three points, a point is outside the image by more than its longer side, or run lengths do not fill the image.
Confidence intervals (--bootstrap) cover other test images of the same kind, not other training seeds.
"""


def main(argv: list[str] | None = None) -> int:
    """Run the command; return its exit code."""
    options = cli.parser("segloc.evaluate", "Compute COCO AP and AR of boxes and masks.", EXAMPLES)
    source = options.add_mutually_exclusive_group(required=True)
    source.add_argument("--weights", type=cli.place, help="fine-tuning run or checkpoint")
    source.add_argument(
        "--results", type=cli.place, nargs="+", metavar="FILE", help="COCO results files instead of a detector"
    )
    add = options.add_argument
    add("--annotations", type=cli.place, nargs="+", default=[], metavar="FILE", help="COCO files, one per results file")
    add("--config", type=cli.path, help="recipe (default: the one in the checkpoint)")
    add("--data", type=cli.place, help="PIDray folder of either release (default: the recipe's data section)")
    add("--subset", action="append", default=[], help="test set to evaluate (repeatable; default: all)")
    add("--bootstrap", type=cli.whole, metavar="N", help="95 %% confidence intervals from N bootstrap draws, e.g. 1000")
    add(
        "--out",
        type=cli.OutputFile(EVALUATION, beside=tables_beside),
        required=True,
        metavar="NAME.json",
        help="JSON file to write; beside it NAME.csv, NAME.md and, with --weights, NAME.SUBSET.results.json",
    )
    cli.add_processes(options)
    cli.add_max_skipped(options)
    cli.add_overrides(options)
    return cli.run(_command, options, argv)


def _command(args: argparse.Namespace) -> int:
    _check_arguments(args)
    return run_on(args.processes, _evaluate, args)


def _evaluate(args: argparse.Namespace, group: Group) -> int:
    """Evaluate as one process of a group; return its exit code."""
    out = args.out
    # Two evaluations at a time would leave tables of one beside the JSON file of the other.
    lock = locks.owned(out.with_name(f".{out.name}.lock"), f"{out}: another evaluation writes this file")
    with stops.handled(), group.in_main(lock):
        if args.results:
            report = evaluate_results(args.results, args.annotations, args.bootstrap) if group.is_main else None
        else:
            report = evaluate_weights(
                args.weights, out, args.config, args.data, args.subset, args.overrides, args.bootstrap, group
            )
        if report is None:
            return 0
        paths = write_evaluation(report, out)
    print(eval_tables.evaluation_text(report))  # after writing, because printing fails when a pipe is closed
    print(f"wrote {', '.join(map(str, paths))}")
    require(eval_tables.skips_of(report), args.max_skipped, "check the test sets", str(out))
    return 0


def _check_arguments(args: argparse.Namespace) -> None:
    if args.weights and args.annotations:
        raise InputError("--annotations is for --results; with --weights give test sets with --data or data.tests")
    if args.results and (args.config or args.data or args.subset or args.overrides):
        raise InputError("--config, --data, --subset and key=value are for --weights; leave them out with --results")
    if args.results and args.processes != 1:
        raise InputError("--processes is for --weights; leave it out with --results")
    least, most = bootstrap.LEAST_RESAMPLES, bootstrap.MOST_RESAMPLES
    if args.bootstrap is not None and not least <= args.bootstrap <= most:
        raise InputError(f"--bootstrap {args.bootstrap}: give a number of draws from {least} to {most}")


if __name__ == "__main__":
    sys.exit(main())
