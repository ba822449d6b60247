"""Runs one job: the steps whose files do not exist yet, under the job's lock."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from pathlib import Path

from tqdm import tqdm

from segloc.common.errors import InputError, RunError
from segloc.common.locks import locked
from segloc.experiments.commands import Commands
from segloc.experiments.jobs import Job, Step, changed


class Failed(Exception):
    """A command of a job failed; the message is one line."""


class Flawed(Exception):
    """The commands of a job wrote their output, but skipped too many inputs; the message is one line."""


def run_job(job: Job, stamp: int | None, commands: Commands, devices: Mapping[str, int]) -> bool:
    """Run the steps of a job whose files do not exist yet.

    Args:
        job: the job.
        stamp: `Job.stamp` at the start of this process; a job that failed in another process since is not tried again.
        commands: runs the steps.
        devices: the GPUs of the job, each with the descriptor of its lock.

    Returns:
        Whether the job is finished; False if another process works on it.

    Raises:
        Failed: a step failed, here or in another process.
        Flawed: the job is finished, but skipped too many inputs.
        InputError: another process has made the folder with other settings in the meantime.
        Stopped: see `Commands.execute`.
    """
    with locked(job.lock, job.name, wait=False) as descriptor:
        if descriptor is None:
            return False
        if difference := changed(job):
            raise InputError(difference)
        if job.settled:
            if flaw := job.read().get("failure"):
                raise Flawed(flaw)
            return True
        record, flaws, was_finished = job.read(), [], job.finished
        if record.get("failure") and not was_finished and job.stamp != stamp:
            raise Failed(f"{record['failure']} (in another process)")
        seconds = dict(record.get("seconds", {}))
        job.write(seconds)
        for step in job.steps:
            if was_finished or not step.makes.is_file():  # finished: with another --max-skipped
                log = job.folder / f"{step.name}.log"
                code = _run_step(job, step, log, commands, devices, (descriptor, *devices.values()), seconds)
                if code == RunError.exit_code and step.makes.is_file():
                    flaws.append(f"{step.name} ended with exit code {code}: {last_line(log)} ({log})")
                elif code or not step.makes.is_file():
                    failure = f"{step.name} ended with exit code {code} and no {step.makes.name}: {last_line(log)}"
                    job.write(seconds, failure)
                    raise Failed(f"{failure} ({log})")
        job.write(seconds, "; ".join(flaws))
        if flaws:
            raise Flawed("; ".join(flaws))
    return True


def _run_step(
    job: Job,
    step: Step,
    log: Path,
    commands: Commands,
    devices: Mapping[str, int],
    descriptors: tuple[int, ...],
    seconds: dict[str, float],
) -> int:
    """Run a step with a line at its begin and its end; add its time to `seconds`, also when it is stopped."""
    _say(f"{job.name}: {step.name}{' on GPU ' * bool(devices)}{','.join(devices)} (log: {log})")
    began = time.monotonic()
    try:
        code = commands.execute(step, log, descriptors, tuple(devices))
    finally:
        took = time.monotonic() - began
        seconds[step.name] = round(seconds.get(step.name, 0) + took, 1)
        job.write(seconds)
    _say(f"{job.name}: {step.name} {f'failed ({code})' if code else 'done'} after {tqdm.format_interval(took)}")
    return code


def _say(line: str) -> None:
    tqdm.write(line, file=sys.stderr)


def last_line(log: Path) -> str:
    """Return the last line of a log that is not empty."""
    lines = log.read_text(encoding="utf-8", errors="replace").replace("\r", "\n").split("\n")
    return next((line.strip() for line in reversed(lines) if line.strip()), "no output")
