"""Runs the cells of an experiment, then writes the report and tables."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from segloc.common.errors import InputError, unknown_key
from segloc.common.files import write_atomic
from segloc.common.output_kinds import check_replaces
from segloc.experiments.commands import Commands
from segloc.experiments.devices import Devices
from segloc.experiments.jobs import PRETRAIN, Job, Step, cell_name, changed, with_needs
from segloc.experiments.schedule import run_cells
from segloc.experiments.work import last_line
from segloc.reporting import probe_table
from segloc.settings.experiments import PROBE, Experiment


def experiment_folder(out: str) -> Path:
    """Normalise the experiment's folder: the commands in the records contain it and must be the same when resumed.

    Raises:
        InputError: the path is a file.
    """
    path = Path(out).resolve()
    if path.exists() and not path.is_dir():
        raise InputError(f"{out}: is a file, not a folder; choose another --out")
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def check(cells: Sequence[Job], devices: Devices) -> None:
    """Check before running that finished jobs have the same settings, and that all inputs and enough GPUs exist.

    Raises:
        InputError: settings of a job have changed, an input is missing, or a job needs more GPUs than there are.
    """
    for cell in cells:
        for job in cell.chain:
            if difference := changed(job):
                raise InputError(f"{difference}; choose another --out, or remove that folder to run the job again")
        if not cell.finished:
            for job in cell.chain:
                if not job.finished:
                    job.check()
                    if devices.names and job.processes > devices.slots:
                        raise InputError(
                            f"{job.name} has processes: {job.processes}, but there are {devices.slots} GPUs to use "
                            f"({','.join(devices.names)}); set fewer processes"
                        )


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
    commands = Commands()
    with commands.stoppable():
        code = commands.execute(Step("report", arguments, page), log)
    if code:
        return [f"report: {last_line(log)} ({log})"]
    for path in (page, *tables):
        print(path)
    return []


def chosen_cells(cells: Sequence[Job], name: str | None) -> list[Job]:
    """Select the cell `name`, or the pretraining of that name (``pretrain-NAME-seedN``); all cells without a name.

    Raises:
        InputError: there is no such cell.
    """
    if not name:
        return list(cells)
    pretrainings = [job for job in with_needs(cells) if job.name == f"{PRETRAIN}/{job.folder.name}"]
    # Cells last: of two with one name the cell counts.
    found = {f"{PRETRAIN}-{job.folder.name}": job for job in pretrainings} | {cell.name: cell for cell in cells}
    if name not in found:
        raise unknown_key(name, found, "--cell")
    return [found[name]]


def run_experiment(
    experiment: Experiment, cells: Sequence[Job], out: Path, devices: Devices, with_report: bool
) -> list[str]:
    """Check and run cells, then write the report and tables of the finished ones.

    Returns:
        A line for each failure.

    Raises:
        InputError: a finished job was made with other settings, or an input is missing.
    """
    check(cells, devices)
    failures = run_cells(cells, devices)
    if with_report:
        failures += conclude(experiment, [cell for cell in cells if cell.finished], out)
    return failures
