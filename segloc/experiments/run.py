"""Runs the cells of an experiment, then writes the report and tables."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from tqdm import tqdm

from segloc.common import stops
from segloc.common.errors import InputError, RunError, unknown_key
from segloc.common.files import write_atomic
from segloc.common.locks import locked
from segloc.common.output_kinds import check_replaces
from segloc.experiments.jobs import Job, Step, cell_name, changed, state, with_needs
from segloc.reporting import probe_table
from segloc.settings.experiments import PROBE, Experiment

POLL_S = 0.1


class Failed(Exception):
    """A command of a job failed; the message is one line."""


class Flawed(Exception):
    """The commands of a job wrote their output, but skipped too many inputs; the message is one line."""


def experiment_folder(out: str) -> Path:
    """Normalise the experiment's folder: the commands in the records contain it and must be the same when resumed.

    Raises:
        InputError: the path is a file.
    """
    path = Path(out).resolve()
    if path.exists() and not path.is_dir():
        raise InputError(f"{out}: is a file, not a folder; choose another --out")
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def show(cells: Sequence[Job]) -> None:
    """Print state, name and commands of every cell and of the jobs it needs."""
    for job in with_needs(cells):
        print(f"{state(job):9} {job.name}")
        for step in job.steps:
            print(f"          {step}")


def check(cells: Sequence[Job]) -> None:
    """Check before running that finished jobs have the same settings and that all inputs exist.

    Raises:
        InputError: settings of a job have changed, or an input is missing.
    """
    for cell in cells:
        for job in cell.chain:
            if difference := changed(job):
                raise InputError(f"{difference}; choose another --out, or remove that folder to run the job again")
        if not cell.finished:
            for job in cell.chain:
                if not job.finished:
                    job.check()


def run_cells(cells: Sequence[Job]) -> list[str]:
    """Run the unfinished cells; cells that another process works on come last.

    Returns:
        A line for each failure.
    """
    failures: dict[str, str] = {}
    stamps = {job.name: job.stamp for job in with_needs(cells)}
    later: list[Job] = []
    with tqdm(total=len(cells), desc="cells", unit="cell", disable=None) as bar:
        for wait, queue in ((False, list(cells)), (True, later)):
            for cell in queue:
                if run_cell(cell, wait, failures, stamps):
                    bar.update()
                else:
                    later.append(cell)
    return list(failures.values())


def run_cell(cell: Job, wait: bool, failures: dict[str, str], stamps: Mapping[str, int | None]) -> bool:
    """Run a cell and the jobs it needs, unless finished.

    Args:
        cell: the cell.
        wait: wait for jobs that another process works on.
        failures: failures so far, by name of the job; updated in place.
        stamps: `Job.stamp` at the start of this process, by name of the job.

    Returns:
        False if another process works on the cell or on a job it needs, else True.
    """
    was_finished = cell.finished  # then jobs that it needed may have been removed
    for job in cell.chain:
        if was_finished and not job.finished:
            continue
        if any(other.name in failures for other in job.chain):
            failures.setdefault(cell.name, f"{cell.name}: not run, because a job it needs failed")
            return True
        try:
            if not run_job(job, wait, stamps[job.name]):
                return False
        except Failed as error:
            failures[job.name] = f"{job.name}: {error}"
        except Flawed as error:
            failures[f"{job.name} skipped inputs"] = f"{job.name}: {error}"  # no name of a job, so that others use it
    return True


def run_job(job: Job, wait: bool, stamp: int | None) -> bool:
    """Run the steps of a job whose files do not exist yet.

    Args:
        job: the job.
        wait: wait for another process that works on the job.
        stamp: `Job.stamp` at the start of this process; a job that failed in another process since is not tried again.

    Returns:
        Whether the job is finished; False if another process works on it and `wait` is false.

    Raises:
        Failed: a step failed, here or in another process.
        Flawed: the job is finished, but skipped too many inputs.
        InputError: another process has made the folder with other settings in the meantime.
    """
    with locked(job.lock, job.name, wait) as descriptor:
        if descriptor is None:
            return False
        if difference := changed(job):
            raise InputError(difference)
        record, flaws = job.read(), []
        failure, was_finished = record.get("failure"), job.finished
        if was_finished and not failure:
            return True
        if was_finished and record.get("commands") == job.commands:
            raise Flawed(failure)
        if failure and job.stamp != stamp:
            raise Failed(f"{failure} (in another process)")
        job.write()
        for step in job.steps:
            if was_finished or not step.makes.is_file():  # finished: with another --max-skipped
                log = job.folder / f"{step.name}.log"
                tqdm.write(f"{job.name}: {step.name} (log: {log})", file=sys.stderr)
                code = execute(step, log, (descriptor,))
                if code == RunError.exit_code and step.makes.is_file():
                    flaws.append(f"{step.name} ended with exit code {code}: {_last_line(log)} ({log})")
                elif code or not step.makes.is_file():
                    failure = f"{step.name} ended with exit code {code} and no {step.makes.name}: {_last_line(log)}"
                    job.write(failure)
                    raise Failed(f"{failure} ({log})")
        if flaws:
            job.write("; ".join(flaws))
            raise Flawed("; ".join(flaws))
    return True


def execute(step: Step, log: Path, descriptors: Sequence[int] = ()) -> int:
    """Run a command, append its output to `log`, and return its exit code; pass stops of this process on to it.

    A second stop kills it.

    Args:
        step: the command.
        log: created if missing.
        descriptors: lock files that the command inherits.

    Raises:
        Stopped: this process or the command was stopped; the command has saved what it can go on from.
    """
    with log.open("ab") as file:
        file.write(f"$ {step}\n".encode("utf-8", "backslashreplace"))
        file.flush()
        with stops.held(lambda: os.killpg(process.pid, signal.SIGKILL)) as stop:
            process = subprocess.Popen(
                [sys.executable, "-m", *step.arguments],
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                pass_fds=descriptors,
                env={**os.environ, "PYTHONUNBUFFERED": "1"},
                start_new_session=True,  # a terminal's signal reaches it once, from here
            )
            told, code = False, None
            while code is None:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    code = process.wait(POLL_S)
                if stop() and not told:
                    process.terminate()
                    told = True
    if number := stops.signal_of(code):
        raise stops.Stopped(number)
    return code


def conclude(experiment: Experiment, finished: Sequence[Job], out: Path) -> list[str]:
    """Write the report and tables of the finished cells.

    Returns:
        A line for each failure.
    """
    tuned = [cell for cell in finished if not cell.probes]
    probed = {cell.name: cell.steps[-1].makes for cell in finished if cell.probes}
    failures = write_reports(tuned, out, experiment.title) if tuned else []
    files = [
        (start, seed, probed[name])
        for start in experiment.starts
        for seed in experiment.seeds
        if (name := cell_name(start, PROBE, seed)) in probed
    ]
    if files:
        try:
            probes = probe_table.read_probes(files)
        except InputError as error:
            return [*failures, f"probe.md: {error}"]
        texts = {
            "probe.md": (probe_table.probes_markdown(probes), probe_table.MARKDOWN),
            "probe.csv": (probe_table.probes_csv(probes), probe_table.CSV),
        }
        for name, (text, kind) in texts.items():
            check_replaces(out / name, kind)
            write_atomic(out / name, text.encode("utf-8", "backslashreplace"))
            print(out / name)
    return failures


def write_reports(tuned: Sequence[Job], out: Path, title: str) -> list[str]:
    """Write report.html, table.md and table.csv of finished fine-tunings.

    Returns:
        A line if the report failed, else nothing.
    """
    # A pretraining may have been removed after its cells were finished.
    needed = [need.folder for cell in tuned for need in cell.chain[:-1] if need.finished]
    folders = map(str, dict.fromkeys([*needed, *(cell.folder for cell in tuned)]))
    page, *tables = (out / name for name in ("report.html", "table.md", "table.csv"))
    written = [part for table in tables for part in ("--table", str(table))]
    arguments = ("segloc.report", *folders, "--title", title, "--out", str(page), *written)
    log = out / "report.log"
    if execute(Step("report", arguments, page), log):
        return [f"report: {_last_line(log)} ({log})"]
    for path in (page, *tables):
        print(path)
    return []


def _last_line(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").replace("\r", "\n").split("\n")
    return next((line.strip() for line in reversed(lines) if line.strip()), "no output")


def chosen_cells(cells: Sequence[Job], name: str | None) -> list[Job]:
    """Select the cell `name`; all cells without a name.

    Raises:
        InputError: there is no such cell.
    """
    names = [cell.name for cell in cells]
    if name and name not in names:
        raise unknown_key(name, names, "--cell")
    return [cell for cell in cells if name in (None, cell.name)]


def run_experiment(experiment: Experiment, cells: Sequence[Job], out: Path, with_report: bool) -> list[str]:
    """Check and run cells, then write the report and tables of the finished ones.

    Returns:
        A line for each failure.

    Raises:
        InputError: a finished job was made with other settings, or an input is missing.
    """
    check(cells)
    failures = run_cells(cells)
    if with_report:
        failures += conclude(experiment, [cell for cell in cells if cell.finished], out)
    return failures
