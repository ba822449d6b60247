"""A pool of worker processes that always ends, whatever its workers are doing.

Each worker has a pipe of its own, and a thread of this process that writes tasks to it and reads results from it. There
is no queue or lock that processes share, so a worker that dies or is killed while it sends holds up nobody.
"""

from __future__ import annotations

import atexit
import contextlib
import multiprocessing
import os
import queue
import signal
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from multiprocessing.reduction import ForkingPickler
from typing import Any

from segloc.common import stops, terminal
from segloc.common.errors import RunError

# A worker whose last task was quick has the next one already, so that it never waits for this process. After a slow one
# the next task goes to whichever worker is free first.
QUICK_S = 0.05
# Most time for the system to end a killed worker; one that hangs in a network file system may need longer.
KILL_S = 5.0


class WorkerLostError(RunError):
    """A worker process ended without a result, for example because the system ran out of memory."""

    def __init__(self, detail: str = "killed, or out of memory") -> None:
        super().__init__(f"a worker process died ({detail}); run the same command again, perhaps with fewer --workers")


class WorkerTracebackError(Exception):
    """The traceback of a worker's exception, as its cause."""

    def __str__(self) -> str:
        return f"\n{self.args[0]}"


class WorkerPool:
    """Processes that apply a function to tasks.

    Workers ignore all stops (`segloc.common.stops`): this process ends them. They also end when this process does.
    Each of the first tasks starts one, so there are never more than tasks, and a stop can come between two starts.

    Args:
        function: a picklable callable of one task.
        workers: largest number of processes.
        prepare: a module's function that each worker calls first.
    """

    def __init__(self, function: Callable[[Any], Any], workers: int, prepare: Callable[[], None]) -> None:
        self._tasks: queue.SimpleQueue[tuple[Any, Future[Any]] | None] = queue.SimpleQueue()
        self._processes: list[BaseProcess] = []
        self._threads: list[threading.Thread] = []
        self._broken, self._lock = False, threading.Lock()
        self._function, self._workers, self._prepare = function, workers, prepare
        atexit.register(self.close)  # before multiprocessing, which would wait for the workers

    def submit(self, task: Any) -> Future[Any]:
        """Give a task to the next free worker.

        The result raises the exception of the function, unchanged, or `WorkerLostError` if its worker died.
        """
        if len(self._processes) < self._workers and not self._broken:
            self._start()
        future: Future[Any] = Future()
        with self._lock:
            if self._broken:
                future.set_exception(WorkerLostError())
            else:
                self._tasks.put((task, future))
        return future

    def _start(self) -> None:
        """Start one more worker."""
        # Forking a process whose OpenCV has threads can hang the child, so processes are spawned.
        context = multiprocessing.get_context("spawn")
        with stops.starting_processes():
            here, there = context.Pipe()
            process = context.Process(target=_work, args=(there, self._function, self._prepare), daemon=True)
            process.start()
            there.close()
            self._processes.append(process)
            self._threads.append(threading.Thread(target=self._serve, args=(here,), daemon=True))
            self._threads[-1].start()

    def close(self) -> None:
        """End the workers now, whatever they are doing."""
        with stops.held():
            atexit.unregister(self.close)
            self._broken = True
            for process in self._processes:
                process.kill()
            for process in self._processes:
                process.join(KILL_S)
            self._tasks.put(None)
            for thread in self._threads:
                thread.join(KILL_S)

    def _serve(self, pipe: Connection) -> None:
        """Pass tasks to one worker and its results to their futures, until the pool ends or the worker dies."""
        at_worker: deque[Future[Any]] = deque()
        quick = False
        with pipe:
            try:
                while self._send(pipe, at_worker, 2 if quick else 1):
                    began = time.monotonic()
                    try:
                        result, error, where = pipe.recv()
                    except (EOFError, OSError):
                        raise
                    except Exception as unreadable:
                        result, error, where = None, unreadable, "in the worker"
                    quick = time.monotonic() - began < QUICK_S
                    future = at_worker.popleft()
                    if error is None:
                        future.set_result(result)
                    else:
                        error.__cause__ = WorkerTracebackError(where)
                        future.set_exception(error)
            except (EOFError, OSError):
                self._give_up(at_worker)

    def _send(self, pipe: Connection, at_worker: deque[Future[Any]], most: int) -> bool:
        """Give the worker tasks, up to `most`; wait for one if it has none. Returns whether it has any."""
        while len(at_worker) < most:
            try:
                entry = self._tasks.get(block=not at_worker)
            except queue.Empty:
                break
            if entry is None:
                self._tasks.put(None)
                break
            task, future = entry
            try:
                data = ForkingPickler.dumps(task)
            except Exception as error:  # a task that cannot be sent
                future.set_exception(error)
                continue
            at_worker.append(future)
            pipe.send_bytes(data)
        return bool(at_worker)

    def _give_up(self, at_worker: deque[Future[Any]]) -> None:
        """Fail the tasks of a lost worker, and all that are waiting."""
        with self._lock:
            self._broken = True
            with contextlib.suppress(queue.Empty):
                while entry := self._tasks.get_nowait():
                    at_worker.append(entry[1])
            self._tasks.put(None)  # ends the other threads
        for future in at_worker:
            future.set_exception(WorkerLostError())


def _work(pipe: Connection, function: Callable[[Any], Any], prepare: Callable[[], None]) -> None:
    """Be a worker: apply the function to the tasks in the pipe, and end with the pipe."""
    for number in stops.SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, stops.SIGNALS)
    terminal.prepare()
    prepare()
    tasks: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    threading.Thread(target=_receive, args=(pipe, tasks), daemon=True).start()
    while True:
        data = _apply(function, tasks.get())
        with contextlib.suppress(OSError):  # the other process has ended, and `_receive` ends this one
            pipe.send_bytes(data)


def _apply(function: Callable[[Any], Any], task: bytes) -> Any:
    """Return, pickled: the result of a task, its exception, and where that was raised."""
    try:
        return ForkingPickler.dumps((function(ForkingPickler.loads(task)), None, ""))
    except Exception as error:
        where = traceback.format_exc()
        try:
            ForkingPickler.loads(data := ForkingPickler.dumps((None, error, where)))
        except Exception:  # an exception of a class that cannot be sent
            return ForkingPickler.dumps((None, RuntimeError(f"{type(error).__name__}: {error}"), where))
        return data


def _receive(pipe: Connection, tasks: queue.SimpleQueue[bytes]) -> None:
    """Read tasks, so that the other process never waits to send one; end this process with it."""
    try:
        while True:
            tasks.put(pipe.recv_bytes())
    except (EOFError, OSError):
        with contextlib.suppress(Exception):
            sys.stdout.flush()
        os._exit(1)
