"""Runs the cells of an experiment, and concludes with report and tables."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from tqdm import tqdm

from segloc.common.errors import InputError, unknown_key
from segloc.common.files import write_atomic
from segloc.experiments.jobs import Job, Step, cell_name, changed, state, with_needs
from segloc.experiments.locks import locked
from segloc.reporting import probe_table
from segloc.settings.experiments import PROBE, Experiment


class Failed(Exception):
    """A command of a job ended without doing what it should have; says so in one line."""


def experiment_folder(out: str) -> Path:
    """Write the folder of the experiment in one way, however it was given: its name is in the commands that resume.

    Raises:
        InputError: it is a file.
    """
    path = Path(out).resolve()
    if path.exists() and not path.is_dir():
        raise InputError(f"{out}: is a file, not a folder")
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def show(cells: Sequence[Job]) -> None:
    """Print every cell and what it needs: state, name, commands."""
    for job in with_needs(cells):
        print(f"{state(job):9} {job.name}")
        for step in job.steps:
            print(f"          {step}")


def check(cells: Sequence[Job]) -> None:
    """Check before work starts that no finished part was made with other settings, and that the inputs are there.

    Raises:
        InputError: something is not as it should be.
    """
    for cell in cells:
        for job in cell.chain:
            if difference := changed(job):
                raise InputError(f"{difference}; choose another --out, or remove that folder to make it anew")
        if not cell.finished:
            for job in cell.chain:
                if not job.finished:
                    job.check()


def run_cells(cells: Sequence[Job]) -> list[str]:
    """Run what is not finished, first what no other process works on, then the rest.

    Returns:
        What failed, a line each.
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
    """Run a cell and what it needs, unless finished.

    Args:
        cell: the cell.
        wait: wait for jobs that another process works on.
        failures: by name of the job, what has failed so far; added to.
        stamps: by name of the job, its `Job.stamp` when this process began.

    Returns:
        Whether it was dealt with; not if another process works on it, or on what it needs.
    """
    for job in cell.chain if not cell.finished else ():
        if any(other.name in failures for other in job.chain):
            failures.setdefault(cell.name, f"{cell.name}: cannot run without what has failed before")
            return True
        try:
            if not run_job(job, wait, stamps[job.name]):
                return False
        except Failed as error:
            failures[job.name] = f"{job.name}: {error}"
    return True


def run_job(job: Job, wait: bool, stamp: int | None) -> bool:
    """Carry out the steps of a job whose files are not there yet.

    Args:
        job: the job.
        wait: wait for another process that works on it.
        stamp: its `Job.stamp` when this process began; what another has failed at since is not tried again.

    Returns:
        Whether it is finished; not if another process works on it and it is not to be waited for.

    Raises:
        Failed: a step failed, here or in another process.
        InputError: another process has made the folder with other settings in the meantime.
    """
    with locked(job.lock, job.name, wait) as descriptor:
        if descriptor is None:
            return False
        if difference := changed(job):
            raise InputError(difference)
        if job.finished:
            return True
        if (failure := job.read().get("failure")) and job.stamp != stamp:
            raise Failed(f"{failure} (in another process)")
        job.write()
        for step in job.steps:
            if not step.makes.is_file():
                log = job.folder / f"{step.name}.log"
                tqdm.write(f"{job.name}: {step.name} (log: {log})", file=sys.stderr)
                code = execute(step, log, (descriptor,))
                if code or not step.makes.is_file():
                    failure = f"{step.name} ended with exit code {code} and no {step.makes.name}: {_last_line(log)}"
                    job.write(failure)
                    raise Failed(f"{failure} ({log})")
    return True


def execute(step: Step, log: Path, descriptors: Sequence[int] = ()) -> int:
    """Run a command with its output added to `log`; stops it when this process is told to stop.

    Args:
        step: the command.
        log: made when missing.
        descriptors: files that it keeps open, for their locks.

    Returns:
        Its exit code.
    """
    with log.open("ab") as file:
        file.write(f"$ {step}\n".encode())
        file.flush()
        process = subprocess.Popen(
            [sys.executable, "-m", *step.arguments],
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            pass_fds=descriptors,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
        )
        try:
            return process.wait()
        except BaseException:
            process.terminate()
            process.wait()
            raise


def conclude(experiment: Experiment, finished: Sequence[Job], out: Path) -> list[str]:
    """Write report and tables of the finished cells, as far as there are cells for them.

    Returns:
        What failed, a line each.
    """
    tuned = [cell for cell in finished if not cell.probes]
    probed = {cell.name: cell.steps[-1].makes for cell in finished if cell.probes}
    failures = report(tuned, out, experiment.title) if tuned else []
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
        texts = {"probe.md": probe_table.probes_markdown(probes), "probe.csv": probe_table.probes_csv(probes)}
        for name, text in texts.items():
            write_atomic(out / name, text.encode())
            print(out / name)
    return failures


def report(tuned: Sequence[Job], out: Path, title: str) -> list[str]:
    """Write report.html, table.md and table.csv of finished fine-tunings.

    Returns:
        What failed, a line if anything.
    """
    # A pretraining may have been removed once nothing needed it any more.
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
    lines = log.read_text(errors="replace").replace("\r", "\n").split("\n")
    return next((line.strip() for line in reversed(lines) if line.strip()), "no output")


@contextlib.contextmanager
def _stopped_by_sigterm() -> Iterator[None]:
    """Treat SIGTERM, which clusters send, as Ctrl-C: the command that runs is stopped too."""
    previous = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


def chosen_cells(cells: Sequence[Job], name: str | None) -> list[Job]:
    """Choose the cell of a name; all without one.

    Raises:
        InputError: there is no such cell.
    """
    names = [cell.name for cell in cells]
    if name and name not in names:
        raise unknown_key(name, names, "--cell")
    return [cell for cell in cells if name in (None, cell.name)]


def run_experiment(experiment: Experiment, cells: Sequence[Job], out: Path, with_report: bool) -> list[str]:
    """Check and run cells, then write report and tables of what is finished.

    Returns:
        What failed, a line each.

    Raises:
        InputError: a finished part was made with other settings, or an input is missing.
    """
    check(cells)
    with _stopped_by_sigterm():
        failures = run_cells(cells)
        if with_report:
            failures += conclude(experiment, [cell for cell in cells if cell.finished], out)
    return failures
