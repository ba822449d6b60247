"""Progress of an experiment: states, how many jobs are done, and how long the rest takes."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from segloc.experiments.jobs import Job, needed_jobs, state, with_needs


def show(cells: Sequence[Job], slots: int) -> None:
    """Print state, name and commands of every cell and of the jobs it needs, then the `summary`."""
    for job in with_needs(cells):
        print(f"{state(job):9} {job.name}")
        for step in job.steps:
            print(f"          {step}")
    for line in summary(cells, slots):
        print(line)


def summary(cells: Sequence[Job], slots: int) -> list[str]:
    """Say how many jobs are done, and estimate the rest from the times of finished jobs of the same kind.

    Args:
        cells: the cells.
        slots: number of jobs of one process that can run at the same time.
    """
    jobs = needed_jobs(cells)
    left = [job for job in jobs if not job.finished]
    lines = [f"{len(jobs) - len(left)} of {len(jobs)} jobs are done"]
    usual = {job.kind: _usual_s(jobs, job.kind) for job in left}
    known = [job for job in left if usual[job.kind]]
    if known:
        # A job that was stopped goes on where it was.
        rest_s = sum(max(usual[job.kind] - job.seconds, 0) * min(job.processes, slots) for job in known) / slots
        what = "the rest takes" if known == left else f"{len(known)} of the other {len(left)} take"
        at_once = f"{slots} at a time" if slots > 1 else "one at a time"
        lines.append(f"{what} about {_hours(rest_s)}, {at_once}: the mean time of finished jobs of the same kind")
    for kind in (kind for kind, seconds in usual.items() if not seconds):
        count = sum(job.kind == kind for job in left)
        lines.append(f"no estimate for {kind}, {count} to run: no finished job of this kind has its time")
    return lines


def _usual_s(jobs: Sequence[Job], kind: str) -> float:
    """Mean time of the finished jobs of a kind, seconds; 0 if there is none, or no record of its time."""
    times = [job.seconds for job in jobs if job.kind == kind and job.finished and job.seconds]
    return statistics.mean(times) if times else 0.0


def _hours(seconds: float) -> str:
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60:02} min"
