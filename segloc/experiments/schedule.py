"""Runs the jobs of cells, several at a time: each on GPUs that no other job has."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait

from tqdm import tqdm

from segloc.common.errors import InputError
from segloc.common.stops import Stopped
from segloc.experiments.commands import POLL_S, Commands
from segloc.experiments.devices import Devices
from segloc.experiments.jobs import Job, needed_jobs
from segloc.experiments.work import Failed, Flawed, run_job

RETRY_S = 1.0  # between two looks for GPUs, and for jobs, that other processes have freed


class Schedule:
    """The jobs of cells, and what has become of them.

    Args:
        cells: the cells.
        devices: the GPUs to use.

    Attributes:
        failures: a line for each failure, by name of the job.
    """

    def __init__(self, cells: Sequence[Job], devices: Devices) -> None:
        self.failures: dict[str, str] = {}
        self._cells, self._devices = {cell.name for cell in cells}, devices
        self._open = {job.name: job for job in needed_jobs(cells)}
        self._stamps = {name: job.stamp for name, job in self._open.items()}
        self._failed: set[str] = set()
        self._elsewhere: set[str] = set()
        self._running: dict[Future[bool], tuple[Job, contextlib.ExitStack]] = {}

    def run(self, commands: Commands, on_cell: Callable[[], object]) -> None:
        """Run all jobs; call `on_cell` for each cell that has ended. After a stop, begin no more and wait for the rest.

        Raises:
            Stopped: a command was stopped.
        """
        with ThreadPoolExecutor(self._devices.slots) as pool:
            look_at = 0.0
            while self._open or self._running:
                if commands.stop() and not self._running:
                    raise Stopped(commands.stop())
                if not commands.stop() and time.monotonic() >= look_at:
                    self._start(pool, commands, on_cell)
                    look_at = time.monotonic() + RETRY_S
                if self._running:
                    ended = wait(self._running, POLL_S, FIRST_COMPLETED).done
                    if sum(self._end(future, on_cell) for future in ended):
                        look_at = 0.0
                elif self._open:
                    time.sleep(POLL_S)

    def _start(self, pool: ThreadPoolExecutor, commands: Commands, on_cell: Callable[[], object]) -> None:
        """Start the jobs that can run, in order. Those of other processes come last."""
        busy = {job.name for job, _ in self._running.values()}
        for elsewhere in (False, True):
            for job in list(self._open.values()):
                if job.name in busy or (job.name in self._elsewhere) != elsewhere or self._settle(job, on_cell):
                    continue
                if any(need.name in self._open for need in job.needs):
                    continue
                if not self._submit(job, pool, commands):
                    return  # a job of many GPUs would never get them if later ones of one GPU went first
                busy.add(job.name)

    def _settle(self, job: Job, on_cell: Callable[[], object]) -> bool:
        """End a job that has nothing to run: it is finished, or one that it needs has failed."""
        if job.settled:
            if flaw := job.read().get("failure"):
                self._flawed(job, flaw)
        elif any(need.name in self._failed for need in job.needs):
            self._failed.add(job.name)
            if job.name in self._cells:
                self.failures[job.name] = f"{job.name}: not run, because a job it needs failed"
        else:
            return False
        self._close(job, on_cell)
        return True

    def _submit(self, job: Job, pool: ThreadPoolExecutor, commands: Commands) -> bool:
        """Start a job if enough GPUs are free."""
        if len(self._running) == self._devices.slots:
            return False
        with contextlib.ExitStack() as stack:
            taken = stack.enter_context(self._devices.taken(job.processes, job.name))
            if taken is None:
                return False
            future = pool.submit(run_job, job, self._stamps[job.name], commands, taken)
            self._running[future] = job, stack.pop_all()
        return True

    def _end(self, future: Future[bool], on_cell: Callable[[], object]) -> bool:
        """Take the result of a job; return whether it has ended, not put off."""
        job, taken = self._running.pop(future)
        taken.close()
        try:
            if not future.result():
                if job.name not in self._elsewhere:
                    tqdm.write(f"{job.name}: another process works on it; comes last")
                self._elsewhere.add(job.name)
                return False
        except (Failed, InputError) as error:
            self._failed.add(job.name)
            self.failures[job.name] = f"{job.name}: {error}"
        except Flawed as error:
            self._flawed(job, str(error))
        except Stopped:
            return False
        self._close(job, on_cell)
        return True

    def _flawed(self, job: Job, flaw: str) -> None:
        self.failures[job.name] = f"{job.name}: {flaw}"  # others use what it made

    def _close(self, job: Job, on_cell: Callable[[], object]) -> None:
        del self._open[job.name]
        if job.name in self._cells:
            on_cell()


def run_cells(cells: Sequence[Job], devices: Devices) -> list[str]:
    """Run the unfinished cells and the jobs they need; jobs that another process works on come last.

    Returns:
        A line for each failure.

    Raises:
        Stopped: this process or a command was stopped; finished jobs and what the others saved stay.
    """
    schedule, commands = Schedule(cells, devices), Commands()
    with commands.stoppable(), tqdm(total=len(cells), desc="cells", unit="cell", disable=None) as bar:
        schedule.run(commands, bar.update)
    return list(schedule.failures.values())
