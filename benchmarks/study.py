"""Keeps what a study's experiment measured, and makes docs/results.md of it: ``python -m benchmarks.study``.

    python -m benchmarks.study --from runs/study_cpu    # copy the figures of a finished experiment, make the page
    python -m benchmarks.study                          # make the page of the figures kept

What is kept, in ``results/study/``: a line per run and test set, the probes, the last quarter of every pretraining, the
commands, and the machine. The page's test fails when it differs from them.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import common, study_page
from segloc.run_results import EVALUATION, KINDS, METRICS
from segloc.runs import closing, read_metrics, read_run

RUN_COLUMNS = ("start", "protocol", "seed", "task", "test_set", "images", *METRICS)
PRETRAINING_COLUMNS = ("pretraining", "seed", "steps", "chance_loss", "loss", "chance_accuracy", "accuracy", "spread")
COMMAND_COLUMNS = ("start", "command")
# Gauges of one level stand for all: P4 is where most items are pooled.
SPREAD = "embedding_std/p4"


def runs(folder: Path) -> Iterator[dict[str, Any]]:
    """Read the fine-tuning cells: a row per start, protocol, seed, task and test set; figures in per cent."""
    for cell in cells(folder, "*-seed*", EVALUATION):
        found = json.loads((cell / EVALUATION).read_text())
        start, protocol, seed = cell.name.rsplit("-", 2)
        about = {"start": start, "protocol": protocol, "seed": int(seed.removeprefix("seed"))}
        parts = {**found["subsets"], "mean": {"images": "", **found["mean"]}}
        for test_set, part in parts.items():
            for task in KINDS:
                figures = {name: f"{part[task][name]:.6g}" for name in METRICS}
                yield {**about, "task": task, "test_set": test_set, "images": part["images"], **figures}


def pretrainings(folder: Path) -> Iterator[dict[str, Any]]:
    """Read the pretrainings: a row each, with means over the last quarter of the logged steps."""
    for run in cells(folder / "pretrain", "*-seed*", "backbone.pth"):
        about, end = read_run(run), closing(read_metrics(run))
        name, seed = run.name.rsplit("-", 1)
        yield {
            "pretraining": name,
            "seed": int(seed.removeprefix("seed")),
            "steps": about["steps"],
            "chance_loss": f"{about['chance_loss']:.6g}",
            "loss": f"{end['loss']:.6g}",
            "chance_accuracy": f"{about['chance_class_accuracy']:.6g}",
            "accuracy": f"{end['class_accuracy']:.6g}",
            "spread": f"{end[SPREAD]:.6g}",
        }


def commands(folder: Path) -> Iterator[dict[str, str]]:
    """Read what made the first seed of every start, in the order it ran."""
    for job in sorted(folder.glob("**/*seed0/*.job.json"), key=lambda path: path.stat().st_mtime):
        for command in json.loads(job.read_text())["commands"]:
            yield {"start": job.parent.name, "command": command}


def cells(folder: Path, pattern: str, made: str) -> list[Path]:
    """Folders of finished jobs, by name."""
    return sorted(path for path in folder.glob(pattern) if (path / made).is_file())


def keep(folder: Path, out: Path) -> None:
    """Copy the figures of an experiment into result files."""
    out.mkdir(parents=True, exist_ok=True)
    _write(out / "runs.csv", RUN_COLUMNS, list(runs(folder)))
    _write(out / "pretrainings.csv", PRETRAINING_COLUMNS, list(pretrainings(folder)))
    _write(out / "commands.csv", COMMAND_COLUMNS, list(commands(folder)))
    (out / "probe.csv").write_text((folder / "probe.csv").read_text())
    any_run = read_run(cells(folder, "*-seed*", EVALUATION)[0])
    about = {"machine": common.machine(), **{key: any_run[key] for key in ("engine", "torch", "git_revision")}}
    (out / "about.json").write_text(json.dumps(about, indent=1) + "\n")


def _write(path: Path, columns: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def main(argv: list[str] | None = None) -> None:
    """Run the command."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--from", dest="folder", type=Path, metavar="DIR", help="--out of segloc.experiment")
    args = options.parse_args(argv)
    if args.folder:
        if not (args.folder / "probe.csv").is_file() or not cells(args.folder, "*-seed*", EVALUATION):
            sys.exit(f"{args.folder}: not the folder of a finished study (no probe.csv, or no evaluated run)")
        keep(args.folder, study_page.RESULTS)
    study_page.PAGE.write_text(study_page.render())
    print(f"wrote {study_page.PAGE}")


if __name__ == "__main__":
    main()
