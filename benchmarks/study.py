"""Keeps what a study's experiment measured, and makes docs/results.md of it: ``python -m benchmarks.study``.

What is kept, in ``results/study/``: a line per run and test set, the probes, the last quarter of every pretraining, the
commands, what failed, and what it ran on. A test fails when the page differs from them.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from pathlib import Path
from typing import Any

from benchmarks import common, study_page
from segloc import cli
from segloc.contract import InputError
from segloc.results_table import baseline, group
from segloc.run_results import EVALUATION, KINDS, METRICS, Run, read
from segloc.runs import closing, read_metrics, read_run

EXAMPLES = """\
  python -m benchmarks.study --from runs/study_cpu    # keep the figures of a finished experiment, make the page
  python -m benchmarks.study                          # make the page of the figures kept
"""
# The last file of a job, by the name of its first step.
MADE = {"pretrain": "backbone.pth", "insert-bn": "with_bn.pth", "probe": "probe.json", "finetune": EVALUATION}
KEPT = ("runs", "pretrainings", "commands")


def records(folder: Path) -> list[tuple[Path, dict[str, Any]]]:
    """Read the record of every job of an experiment, in the order they ran."""
    found = sorted(folder.glob("**/*.job.json"), key=lambda path: path.stat().st_mtime)
    return [(path, json.loads(path.read_text())) for path in found]


def failures(folder: Path) -> list[dict[str, str]]:
    """List the jobs that failed.

    Raises:
        InputError: a job was left unfinished, or a start has fewer cells than another: not all has been run.
    """
    failed, cells = [], Counter[str]()
    for path, record in records(folder):
        if "-seed" in path.parent.name and path.parent.parent == folder:
            cells[path.parent.name.rpartition("-seed")[0]] += 1
        if (path.parent / MADE[path.name.removesuffix(".job.json")]).is_file():
            continue
        if not record["failure"]:
            raise InputError(f"{path.parent}: not finished; run the experiment to its end first")
        failed.append({"job": path.parent.name, "failure": record["failure"]})
    most = max(cells.values(), default=0)
    for name, count in cells.items():
        if count < most:
            raise InputError(f"{folder}: {name} was run for {count} seeds, others for {most}; run the experiment first")
    if most > len(study_page.T_95) + 1:
        raise InputError(f"{folder}: more seeds ({most}) than the page knows quantiles of Student's t for")
    return failed


def runs(folder: Path) -> list[dict[str, Any]]:
    """Lay out the fine-tuning cells: a row per run, task and test set, per cent.

    `base` names the runs from random weights that a run's gain is over: those of the same network and protocol.
    """
    read_cells = [read(cell) for cell in cells(folder, EVALUATION)]
    groups = group(read_cells)
    rows: list[dict[str, Any]] = []
    for members in groups:
        base = baseline(groups, members)
        name = "" if base is None else _name_and_seed(groups[base][0].name)[0]
        rows += [row for run in members for row in _rows(run, name)]
    return rows


def pretrainings(folder: Path) -> list[dict[str, Any]]:
    """Lay out the pretrainings: a row each, with means over the last quarter of the logged steps."""
    rows = []
    for run in cells(folder / "pretrain", MADE["pretrain"]):
        about, end = read_run(run), closing(read_metrics(run))
        name, seed = _name_and_seed(run.name)
        figures = {
            "chance_loss": about["chance_loss"], "loss": end["loss"], "top1": end["top1"],
            "chance_accuracy": about["chance_class_accuracy"], "accuracy": end["class_accuracy"],
        }  # fmt: skip
        shown = {key: f"{value:.6g}" for key, value in figures.items()}
        rows.append({"pretraining": name, "seed": seed, "steps": about["steps"], **shown})
    return rows


def commands(folder: Path) -> list[dict[str, str]]:
    """List what made the first seed of every start, in the order it ran."""
    jobs = [(path.parent.name, record) for path, record in records(folder)]
    first = min(_name_and_seed(name)[1] for name, _ in jobs)
    chosen = [(name, record) for name, record in jobs if _name_and_seed(name)[1] == first]
    return [{"job": name, "command": command} for name, record in chosen for command in record["commands"]]


def cells(folder: Path, made: str) -> list[Path]:
    """Folders of finished jobs, by name."""
    return sorted(path for path in folder.glob("*-seed*") if (path / made).is_file())


def keep(folder: Path, out: Path) -> None:
    """Copy the figures of an experiment into result files.

    Raises:
        InputError: it is not finished, or holds no detector.
    """
    failed = failures(folder)
    if not (folder / "probe.csv").is_file() or not cells(folder, EVALUATION):
        raise InputError(f"{folder}: not the folder of a finished study (no probe.csv, or no evaluated run)")
    for name, rows in zip(KEPT, (runs(folder), pretrainings(folder), commands(folder)), strict=True):
        common.write_rows(out / f"{name}.csv", rows)
    for name in ("probe.csv", "probe.md"):
        (out / name).write_text((folder / name).read_text())
    abouts = [read_run(cell) for cell in cells(folder, EVALUATION)]
    ran_on = {key: sorted({about[key] for about in abouts}) for key in ("engine", "device", "torch", "git_revision")}
    about = {"kept_on": common.machine(), **ran_on, "failed": failed}
    (out / "about.json").write_text(json.dumps(about, indent=1, ensure_ascii=False) + "\n")


def _rows(run: Run, base: str) -> list[dict[str, Any]]:
    name, seed = _name_and_seed(run.name)
    rows = []
    for test_set, part in run.parts().items():
        for task in KINDS:
            figures = {metric: f"{part[task][metric]:.6g}" for metric in METRICS}
            images = part.get("images", "")
            rows.append(
                {
                    "run": name,
                    "base": base,
                    "seed": seed,
                    "task": task,
                    "test_set": test_set,
                    "images": images,
                    **figures,
                }
            )
    return rows


def _name_and_seed(name: str) -> tuple[str, int]:
    before, _, seed = name.rpartition("-seed")
    return before, int(seed)


def _command(args: argparse.Namespace) -> None:
    if args.folder:
        keep(args.folder, study_page.RESULTS)
    if not (study_page.RESULTS / "about.json").is_file():
        raise InputError("no results are kept yet; give the folder of the experiment: --from DIR")
    study_page.PAGE.write_text(study_page.render())
    print(f"wrote {study_page.PAGE}")


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    options = cli.parser("benchmarks.study", "Keep a study's figures and make docs/results.md of them.", EXAMPLES)
    options.add_argument("--from", dest="folder", type=Path, metavar="DIR", help="--out of segloc.experiment")
    return cli.run(_command, options, argv)


if __name__ == "__main__":
    raise SystemExit(main())
