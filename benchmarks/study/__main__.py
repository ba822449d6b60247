"""Keeps what a study's experiments measured, and makes docs/results.md of it: ``python -m benchmarks.study``.

What is kept of each, in ``results/study/RECIPE/``: a line per run and test set, the probes, the last quarter of every
pretraining, the commands, what failed, and what it ran on. A test fails when the page differs from them.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import common
from benchmarks.study import study_page
from segloc.common import cli
from segloc.common.errors import InputError
from segloc.common.files import check_output, check_output_folder, write_atomic, write_json
from segloc.detection.coco_eval import METRICS
from segloc.experiments.jobs import Job, changed, plan, with_needs
from segloc.experiments.run import experiment_folder
from segloc.reporting.results_table import baseline, group_by_seed
from segloc.reporting.run_results import KINDS, load_run
from segloc.settings.experiments import Experiment
from segloc.settings.loader import load
from segloc.training.run_folder import closing, read_metrics, read_run

EXAMPLES = """\
  # keep the figures of a finished experiment, and make the page
  python -m benchmarks.study --recipe detectron_configs/experiment/study_cpu.yaml --from runs/study_cpu
  python -m benchmarks.study                          # make the page of the figures kept
"""
PRETRAIN = "pretrain"


def failures(cells: Sequence[Job]) -> list[dict[str, str]]:
    """List the jobs that failed, and those that could not run without them.

    Raises:
        InputError: a job was left unfinished, or was made with other settings than the recipe's.
    """
    failed: dict[str, str] = {}
    for job in with_needs(cells):
        if difference := changed(job):
            raise InputError(difference)
        if job.finished:
            continue
        broken = next((need.name for need in job.chain if need.name in failed), "")
        failure = job.read().get("failure") or (f"not run without {broken}" if broken else "")
        if not failure:
            raise InputError(f"{job.folder}: {job.name} is not finished; run the experiment to its end first")
        failed[job.name] = failure
    return [{"job": name, "failure": failure} for name, failure in failed.items()]


def runs(cells: Sequence[Job]) -> list[dict[str, Any]]:
    """Lay out the fine-tuning cells: a row per run, task and test set, per cent.

    `base` names the runs from random weights that a run's gain is over: those of the same network and protocol.
    """
    groups = group_by_seed([load_run(cell.folder) for cell in _evaluated(cells)])
    rows: list[dict[str, Any]] = []
    for members in groups:
        base = baseline(groups, members)
        base_name = "" if base is None else _name_and_seed(groups[base][0].name)[0]
        for run in members:
            name, seed = _name_and_seed(run.name)
            for test_set, part in run.parts().items():
                for task in KINDS:
                    about = {"run": name, "base": base_name, "seed": seed, "task": task, "test_set": test_set}
                    figures = {metric: f"{part[task][metric]:.6g}" for metric in METRICS}
                    rows.append({**about, "images": part.get("images", ""), **figures})
    return rows


def pretrainings(cells: Sequence[Job]) -> list[dict[str, Any]]:
    """Lay out the pretrainings: a row each, with means over the last quarter of the logged steps."""
    rows = []
    for job in with_needs(cells):
        if job.steps[0].name != PRETRAIN or not job.finished:
            continue
        about, end = read_run(job.folder), closing(read_metrics(job.folder))
        name, seed = _name_and_seed(job.folder.name)
        figures = {
            "chance_loss": about["chance_loss"], "loss": end["loss"], "top1": end["top1"],
            "chance_accuracy": about["chance_class_accuracy"], "accuracy": end["class_accuracy"],
        }  # fmt: skip
        shown = {key: f"{value:.6g}" for key, value in figures.items()}
        rows.append({"pretraining": name, "seed": seed, "steps": about["steps"], **shown})
    return sorted(rows, key=lambda row: (row["pretraining"], row["seed"]))


def commands(cells: Sequence[Job]) -> list[dict[str, str]]:
    """List what makes the first seed of every start, in the order it runs."""
    first = min(_name_and_seed(cell.name)[1] for cell in cells)
    jobs = with_needs([cell for cell in cells if _name_and_seed(cell.name)[1] == first])
    return [{"job": job.name, "command": str(step)} for job in jobs for step in job.steps]


def minutes(cells: Sequence[Job]) -> int:
    """Add up how long the jobs took, from the record written at their (last) beginning to their last file."""
    jobs = [job for job in with_needs(cells) if job.finished]
    return round(sum(job.steps[-1].makes.stat().st_mtime - job.record.stat().st_mtime for job in jobs) / 60)


def keep(recipe: Path, folder: Path, out: Path) -> None:
    """Copy the figures of an experiment into result files.

    Args:
        recipe: what it was run by.
        folder: ``--out`` of `segloc.experiment`.
        out: folder of the result files.

    Raises:
        InputError: it is not finished, was run by another recipe, or holds no detector or no probe.
    """
    experiment = load(Experiment, recipe)
    cells = plan(experiment, experiment_folder(str(folder)))
    failed = failures(cells)
    evaluated = _evaluated(cells)
    if not (folder / "probe.csv").is_file() or not evaluated:
        raise InputError(f"{folder}: not the folder of a finished study (no probe.csv, or no evaluated run)")
    for name, rows in (("runs", runs(cells)), ("pretrainings", pretrainings(cells)), ("commands", commands(cells))):
        common.write_rows(out / f"{name}.csv", rows)
    for name in ("probe.csv", "probe.md"):
        write_atomic(out / name, (folder / name).read_bytes())
    abouts = [read_run(cell.folder) for cell in evaluated]
    ran_on = {key: sorted({about[key] for about in abouts}) for key in ("engine", "device", "torch", "git_revision")}
    about = {"title": experiment.title, "kept_on": common.machine(), **ran_on}
    about |= {"minutes": minutes(cells), "failed": failed, "compare": dataclasses.asdict(experiment.compare)}
    write_json(out / "about.json", about)


def _evaluated(cells: Sequence[Job]) -> list[Job]:
    return [cell for cell in cells if not cell.probes and cell.finished]


def _name_and_seed(name: str) -> tuple[str, int]:
    before, _, seed = name.rpartition("-seed")
    return before, int(seed)


def _command(args: argparse.Namespace) -> None:
    if bool(args.folder) != bool(args.recipe):
        raise InputError("--recipe says what the experiment in --from should hold: give both or neither")
    check_output(study_page.PAGE)
    if args.folder:
        check_output_folder(study_page.RESULTS)
        keep(args.recipe, args.folder, study_page.RESULTS / args.recipe.stem)
    if not study_page.kept():
        raise InputError("no results are kept yet; give an experiment: --recipe FILE --from DIR")
    write_atomic(study_page.PAGE, study_page.render_study().encode())
    print(f"wrote {study_page.PAGE}")


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    options = cli.parser("benchmarks.study", "Keep a study's figures and make docs/results.md of them.", EXAMPLES)
    options.add_argument("--recipe", type=Path, metavar="YAML", help="the experiment's recipe")
    options.add_argument("--from", dest="folder", type=Path, metavar="DIR", help="--out of segloc.experiment")
    return cli.run(_command, options, argv)


if __name__ == "__main__":
    raise SystemExit(main())
