"""``python -m segloc.experiment``: a grid of starts, protocols and seeds, from pretraining to the tables."""

from __future__ import annotations

import argparse
import sys

from segloc.common import cli
from segloc.experiments.jobs import plan
from segloc.experiments.run import chosen_cells, experiment_folder, run_experiment, show
from segloc.settings.experiments import Experiment
from segloc.settings.loader import load

EXAMPLES = """\
  python -m segloc.experiment detectron_configs/experiment/demo.yaml --out runs/experiment
  python -m segloc.experiment detectron_configs/experiment/table1.yaml --out runs/table1 --list
  python -m segloc.experiment detectron_configs/experiment/table1.yaml --out runs/table1 data=/data/pidray seeds=[0]
  python -m segloc.experiment detectron_configs/experiment/table1.yaml --out runs/table1 --cell random-fair-seed1
The same command goes on after a stop: what is finished is skipped. Several may run at once, here or on other machines
that see the folder: each takes what no other works on. --cell runs one cell and what it needs, for a job array; then
the command without it makes report.html, table.md and table.csv of all that is finished. A recipe, relative to the
working directory, with protocols, `probe`, or both:
  data: data/raw/pidray                       # a PIDray folder; left out, what the fine-tuning recipes name
  seeds: [0, 1, 2]
  pretrainings:                               # every seed by itself; with `seed: 0` all share one
    paper: {config: detectron_configs/pretrain/paper_r101.yaml, shards: data/shards, overrides: [optim.amp=true]}
    random_dictionary: {config: ..., shards: data/shards, overrides: [queue.init=random]}
  starts:
    random: {weights: random}                 # or imagenet, or a path
    segloc: {pretraining: paper, insert_bn: true, overrides: [model.backbone.sda_norm=ln]}
  protocols:
    fair: {config: detectron_configs/finetune/sdanet_r101_fair.yaml, overrides: [optim.batch=8]}
  probe:                                      # segloc.probe of every start, the cheap stand-in for AP; it goes first
    shards: data/probe_shards                 # best of items that no pretraining has seen
    config: detectron_configs/pretrain/paper_r101.yaml    # the network of random and imagenet; also `overrides`
    starts: [random, segloc]                  # left out, all; also train: 2000, test: 1000, image_size: 500
Probes end in probe.md, mean and standard deviation over the seeds, and probe.csv, every seed by itself. All starts are
tested on the same views. One whose weights are the same for all seeds is probed once.
"""


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    options = cli.parser("segloc.experiment", "Pretrain, fine-tune and evaluate a grid of runs, and compare.", EXAMPLES)
    options.add_argument("recipe", metavar="RECIPE.yaml", help="the grid")
    options.add_argument("--out", required=True, metavar="DIR", help="folder of the experiment; each cell is one in it")
    options.add_argument("--list", action="store_true", help="show the cells, how far they are and what they run")
    options.add_argument("--cell", metavar="NAME", help="run this cell and what it needs, and write no report")
    cli.add_overrides(options)
    return cli.run(_command, options, argv)


def _command(args: argparse.Namespace) -> int:
    """Carry out the command; returns 1 when something failed."""
    experiment = load(Experiment, args.recipe, args.overrides)
    out = experiment_folder(args.out)
    cells = chosen_cells(plan(experiment, out), args.cell)
    if args.list:
        show(cells)
        return 0
    failures = run_experiment(experiment, cells, out, with_report=not args.cell)
    for failure in failures:
        print(f"failed: {failure}", file=sys.stderr)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
