"""Stores the results of experiments and writes docs/results.md from them: ``python -m benchmarks.study``.

``results/study/RECIPE/`` holds for each experiment: a line per run and test set, the probes, means over the last
quarter of each pretraining, the commands, the failures, and the environment. A test fails when the page differs.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import common
from benchmarks.study import study_page
from segloc.common import cli
from segloc.common.errors import InputError
from segloc.common.files import write_json
from segloc.detection.coco_eval import METRICS
from segloc.experiments.jobs import Job, changed, plan, with_needs
from segloc.experiments.run import experiment_folder
from segloc.reporting.results_table import baseline, group_by_seed
from segloc.reporting.run_results import KINDS, load_run
from segloc.settings.experiments import Experiment
from segloc.settings.loader import load
from segloc.training.run_folder import closing, read_metrics, read_run

EXAMPLES = """\
  # store the results of a finished experiment and write the page
  python -m benchmarks.study --recipe detectron_configs/experiment/study_cpu.yaml --from runs/study_cpu
  python -m benchmarks.study                          # write the page from the stored results
"""
PRETRAIN = "pretrain"


def failures(cells: Sequence[Job]) -> list[dict[str, str]]:
    """List the jobs that failed and the jobs that need them.

    Raises:
        InputError: a job is not finished, or has other settings than the recipe.
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
            raise InputError(f"{job.folder}: {job.name} is not finished; finish the experiment first")
        failed[job.name] = failure
    return [{"job": name, "failure": failure} for name, failure in failed.items()]


def runs(cells: Sequence[Job]) -> list[dict[str, Any]]:
    """Make a row per fine-tuning run, task and test set, in per cent.

    `base` names the runs with random initialisation and the same network and protocol, for the gain of a run.
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
    """Make a row per pretraining with means over the last quarter of the logged steps."""
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
    """List the commands for the first seed of every start, in execution order."""
    first = min(_name_and_seed(cell.name)[1] for cell in cells)
    jobs = with_needs([cell for cell in cells if _name_and_seed(cell.name)[1] == first])
    return [{"job": job.name, "command": str(step)} for job in jobs for step in job.steps]


def minutes(cells: Sequence[Job]) -> int:
    """Add up the minutes of all jobs, each from the record of its last start to its last file."""
    jobs = [job for job in with_needs(cells) if job.finished]
    return round(sum(job.steps[-1].makes.stat().st_mtime - job.record.stat().st_mtime for job in jobs) / 60)


def keep(recipe: Path, folder: Path, out: Path) -> None:
    """Copy the results of an experiment into result files.

    Args:
        recipe: the experiment's recipe.
        folder: ``--out`` of `segloc.experiment`.
        out: folder of the result files.

    Raises:
        InputError: the experiment is not finished, has another recipe, or has no detector or no probe.
    """
    experiment = load(Experiment, recipe)
    cells = plan(experiment, experiment_folder(str(folder)))
    if len(experiment.seeds) > (most := len(study_page.T_95) + 1):
        raise InputError(f"{recipe}: has {len(experiment.seeds)} seeds; the page supports at most {most}")
    failed = failures(cells)
    evaluated = _evaluated(cells)
    if not (folder / "probe.csv").is_file() or not evaluated:
        raise InputError(f"{folder}: has no probe.csv or no evaluated run; give the folder of a finished study")
    for name, rows in (("runs", runs(cells)), ("pretrainings", pretrainings(cells)), ("commands", commands(cells))):
        common.write_rows(out / f"{name}.csv", rows)
    for name in ("probe.csv", "probe.md"):
        (out / name).write_text((folder / name).read_text())
    abouts = [read_run(cell.folder) for cell in evaluated]
    ran_on = {key: sorted({about[key] for about in abouts}) for key in ("engine", "device", "torch", "git_revision")}
    about = {"title": experiment.title, "kept_on": common.machine(), **ran_on}
    about |= {"minutes": minutes(cells), "failed": failed}
    write_json(out / "about.json", about)


def _evaluated(cells: Sequence[Job]) -> list[Job]:
    return [cell for cell in cells if not cell.probes and cell.finished]


def _name_and_seed(name: str) -> tuple[str, int]:
    before, _, seed = name.rpartition("-seed")
    return before, int(seed)


def _command(args: argparse.Namespace) -> None:
    if bool(args.folder) != bool(args.recipe):
        raise InputError("--recipe is the recipe of the experiment in --from: give both or neither")
    if args.folder:
        keep(args.recipe, args.folder, study_page.RESULTS / args.recipe.stem)
    if not study_page.kept():
        raise InputError("no results are stored yet; give an experiment: --recipe FILE --from DIR")
    study_page.PAGE.write_text(study_page.render_study())
    print(f"wrote {study_page.PAGE}")


def main(argv: list[str] | None = None) -> int:
    """Run the command; return its exit code."""
    options = cli.parser("benchmarks.study", "Store a study's results and write docs/results.md.", EXAMPLES)
    options.add_argument("--recipe", type=Path, metavar="YAML", help="the experiment's recipe")
    options.add_argument("--from", dest="folder", type=Path, metavar="DIR", help="--out of segloc.experiment")
    return cli.run(_command, options, argv)


if __name__ == "__main__":
    raise SystemExit(main())
