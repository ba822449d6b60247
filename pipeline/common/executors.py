"""Runs a function over many tasks: in this process, in several processes, or on a Ray cluster.

Results arrive in the order of the tasks with every executor, so a stage's output never depends on the number of
workers. To add an executor, write a function like `_local`, add it to `EXECUTORS`, and add its name to
`segloc.common.cli.EXECUTORS`, a separate list that keeps ``--help`` fast and free of imports.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import itertools
import os
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future
from typing import Any, TypeVar

from pipeline.common.workers import WorkerLostError, WorkerPool
from segloc.common import stops
from segloc.common.errors import InputError

__all__ = ["EXECUTORS", "IN_FLIGHT_PER_WORKER", "WorkerLostError", "run_tasks", "tune_process"]

T = TypeVar("T")
R = TypeVar("R")

# Chunks submitted per worker before waiting for the oldest result: enough to keep all workers busy, and few enough that
# a hundred million tasks never fill the memory.
IN_FLIGHT_PER_WORKER = 4

# More local workers would only fill the memory: each takes 100 MB before it does anything.
MOST_WORKERS, WORKERS_PER_CORE = 64, 4
# A cluster may grow with its tasks, so its cores are no bound; all tasks in flight are kept in this process.
MOST_ON_RAY = 16_384

# Parameters of mallopt(3).
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_KEEP_BYTES = 1 << 30


def run_tasks(
    function: Callable[[T], R], tasks: Iterable[T], *, workers: int = 0, executor: str = "local", chunk: int = 1
) -> Generator[R, None, None]:
    """Apply `function` to every task.

    Args:
        function: a picklable callable (a module's function, or a `functools.partial` of one).
        tasks: picklable arguments; read lazily, a bounded number ahead of the results.
        workers: most parallel processes, and never more than chunks; 0 uses every core (for Ray: every CPU of the
            cluster), 1 stays in this process.
        executor: a name in `EXECUTORS`.
        chunk: tasks sent to a worker at a time; raise it if a task takes only milliseconds.

    Returns:
        The results in the order of the tasks, each as soon as it and all earlier ones are ready. Closing them,
        or an exception, stops the workers; use `contextlib.closing` where they must have ended before cleaning up.

    Raises:
        InputError: unknown executor, negative or absurd `workers`, or Ray is not installed.
        WorkerLostError: a worker was killed.
        Exception: any exception of `function`, unchanged.
    """
    if executor not in EXECUTORS:
        raise InputError(f"unknown executor {executor!r}; choose one of {', '.join(EXECUTORS)}")
    if workers < 0:
        raise InputError(f"--workers must be 0 (all cores) or more, not {workers}")
    most = max(MOST_WORKERS, WORKERS_PER_CORE * _usable_cores())
    if executor == "local" and workers > most:
        raise InputError(f"--workers is {workers}, but this machine has {_usable_cores()} cores; give at most {most}")
    if executor == "ray" and workers > MOST_ON_RAY:
        raise InputError(f"--workers is {workers}, more than a Ray cluster is given; give at most {MOST_ON_RAY}")
    source = iter(tasks)
    chunks = iter(lambda: list(itertools.islice(source, chunk)), [])
    return EXECUTORS[executor](function, chunks, workers)


def _run_chunk(function: Callable[[T], R], chunk: list[T]) -> list[R]:
    return [function(task) for task in chunk]


def _in_order(
    submit: Callable[..., Any], wait: Callable[..., list[R]], chunks: Iterator[Any], ahead: int, waiting: deque[Any]
) -> Iterator[R]:
    """Submit chunks, keep at most `ahead` of them in `waiting`, and yield the results of the oldest."""
    for chunk in chunks:
        waiting.append(submit(chunk))
        if len(waiting) >= ahead:
            yield from wait(waiting.popleft())
    while waiting:
        yield from wait(waiting.popleft())


def _local(function: Callable[[T], R], chunks: Iterator[list[T]], workers: int) -> Generator[R, None, None]:
    workers = workers or _usable_cores()
    if workers == 1:
        tune_process()
        for chunk in chunks:
            yield from _run_chunk(function, chunk)
        return
    pool = WorkerPool(functools.partial(_run_chunk, function), workers, tune_process)
    try:
        yield from _in_order(pool.submit, Future.result, chunks, workers * IN_FLIGHT_PER_WORKER, deque())
    finally:
        pool.close()


def _usable_cores() -> int:
    """Count the cores of this process; a container or job scheduler may allow fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def tune_process() -> None:
    """Configure this process as a worker.

    OpenCV starts no threads, because tasks already run in parallel. Freed memory stays with the process: otherwise
    images of equal size would be returned to the system and mapped again, page by page, each time.
    """
    import cv2

    cv2.setNumThreads(0)
    with contextlib.suppress(OSError, AttributeError):  # glibc only
        mallopt = ctypes.CDLL(None).mallopt
        for parameter in (_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD):
            mallopt(parameter, _KEEP_BYTES)


def _ray(function: Callable[[T], R], chunks: Iterator[list[T]], workers: int) -> Generator[R, None, None]:
    try:
        import ray
    except ImportError as error:
        raise InputError("--executor ray needs Ray: pip install ray") from error
    if not ray.is_initialized():
        ray.init(include_dashboard=False)
        stops.keep_handlers()
    workers = workers or int(ray.cluster_resources().get("CPU", 1))
    remote: Any = ray.remote(num_cpus=1)(_run_on_ray)
    submit = functools.partial(remote.remote, ray.put(function))
    waiting: deque[Any] = deque()
    try:
        yield from _in_order(submit, ray.get, chunks, workers * IN_FLIGHT_PER_WORKER, waiting)
    except ray.exceptions.RayTaskError as error:
        raise error.cause from error
    except ray.exceptions.RayError as error:
        raise WorkerLostError(type(error).__name__) from error
    finally:
        for reference in waiting:
            ray.cancel(reference, force=True)


def _run_on_ray(function: Callable[[T], R], chunk: list[T]) -> list[R]:
    tune_process()
    return _run_chunk(function, chunk)


EXECUTORS: dict[str, Callable[[Any, Iterator[list[Any]], int], Generator[Any, None, None]]] = {
    "local": _local,
    "ray": _ray,
}
