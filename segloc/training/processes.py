"""Distributed training: the group of processes, its collective operations and its launcher.

``torchrun`` or `launch` starts the processes. Everything also works with a single process, which sends nothing.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import logging
import multiprocessing
import multiprocessing.util
import os
import re
import signal
import socket
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from multiprocessing import resource_tracker
from typing import Any, TypeVar

import torch
from torch import distributed
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch
from torch.multiprocessing import _prctl_pr_set_pdeathsig  # type: ignore[attr-defined]
from tqdm import tqdm

from segloc.common import stops, terminal
from segloc.common.cli import EXPECTED, report
from segloc.common.errors import FailedElsewhere, InputError, RunError, exit_code_of, one_line

T = TypeVar("T")

# The others wait while the main process looks at all scans. A process that ends is noticed at once.
LONGEST_WAIT = datetime.timedelta(hours=2)
LOST_PEER_S = 45.0
POLL_S = 0.1
LOST = "lost the connection to another process ({}); run the same command again to continue"
# Such as "[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:553] Connection closed by peer".
_GLOO = re.compile(r"\[[^\]]*/gloo/transport/[^\]]*:\d+\] ")


@dataclasses.dataclass(frozen=True)
class Group:
    """The processes of a run.

    Attributes:
        rank: number of this process.
        world: number of processes.
        local_rank: number of this process on its machine.
    """

    rank: int = 0
    world: int = 1
    local_rank: int = 0

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and prints messages."""
        return self.rank == 0

    def device(self) -> torch.device:
        """Return the GPU of this process, or the CPU if there is no GPU."""
        return torch.device("cuda", self.local_rank) if torch.cuda.is_available() else torch.device("cpu")

    def gather(self, tensor: torch.Tensor) -> torch.Tensor:
        """Gather a tensor of equal shape from all processes: [world, ...], in rank order, without gradient."""
        if self.world == 1:
            return tensor.detach()[None]
        tensor = tensor.detach().contiguous()
        parts = [torch.empty_like(tensor) for _ in range(self.world)]
        distributed.all_gather(parts, tensor)
        return torch.stack(parts)

    def gather_objects(self, value: T) -> list[T]:
        """Gather picklable objects from all processes, in rank order."""
        if self.world == 1:
            return [value]
        found: list[Any] = [None] * self.world
        distributed.all_gather_object(found, value)
        return found

    def gather_in_main(self, value: T) -> list[T] | None:
        """Gather picklable objects from all processes in the main process, in rank order; None in the others."""
        if self.world == 1:
            return [value]
        found: list[Any] | None = [None] * self.world if self.is_main else None
        distributed.gather_object(value, found)
        return found

    def neighbours(self, count: int) -> distributed.ProcessGroup:
        """Form groups of `count` consecutive processes, which divides their number; return this process's group."""
        groups = [distributed.new_group([*range(first, first + count)]) for first in range(0, self.world, count)]
        return groups[self.rank // count]  # type: ignore[return-value]

    def add_up(self, tensors: Sequence[torch.Tensor]) -> None:
        """Sum tensors of one type over all processes in place, in one collective call."""
        if self.world == 1:
            return
        total = torch.cat([tensor.detach().flatten() for tensor in tensors])
        distributed.all_reduce(total)
        for tensor, part in zip(tensors, total.split([tensor.numel() for tensor in tensors]), strict=True):
            tensor.detach().copy_(part.view(tensor.shape))

    def say(self, text: str) -> None:
        """Print a line in the main process."""
        if self.is_main:
            print(text)

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """Wait at the end of a block for all processes. If the block fails in one, all end, and only that one says why.

        The block may not have collective calls.

        Raises:
            FailedElsewhere: the block failed in another process.
        """
        if self.world == 1:
            yield
            return
        failure: Exception | None = None
        try:
            yield
        except Exception as error:
            failure = error
        code = exit_code_of(failure) if failure else 0
        codes = self.gather(torch.tensor(code, device=self.device())).tolist()
        if not any(codes):
            return
        first = next(rank for rank, code in enumerate(codes) if code)
        if failure and first == self.rank:
            raise failure
        raise FailedElsewhere(codes[first]) from failure

    def of_main(self, function: Callable[[], T]) -> T:
        """Call a function in the main process only; return its result, which is picklable, in all.

        Raises:
            FailedElsewhere: it failed, in a process that is not the main one.
        """
        found: list[Any] = [None]
        with self.together():
            if self.is_main:
                found = [function()]
        if self.world > 1:
            distributed.broadcast_object_list(found)
        return found[0]  # type: ignore[no-any-return]

    @contextlib.contextmanager
    def in_main(self, context: contextlib.AbstractContextManager[Any]) -> Iterator[None]:
        """Enter a context, such as a lock, in the main process only; if that fails, all processes end."""
        with contextlib.ExitStack() as stack:
            with self.together():
                if self.is_main:
                    stack.enter_context(context)
            yield

    def most(self, number: int, device: torch.device) -> int:
        """Return the largest number of all processes; the same result in all processes."""
        return number if self.world == 1 else int(self.gather(torch.tensor(number, device=device)).max())

    def mean(self, values: Mapping[str, float], device: torch.device) -> dict[str, float]:
        """Average values over all processes; the names must be the same in all."""
        mine = torch.tensor(list(values.values()), dtype=torch.float64, device=device)
        return dict(zip(values, self.gather(mine).mean(0).tolist(), strict=True))


ALONE = Group()


@contextlib.contextmanager
def join(meeting_place: str | None = None) -> Iterator[Group]:
    """Join the processes started by ``torchrun`` or `launch`; a single process gets a group of one.

    The backend is NCCL on GPUs and Gloo on CPUs.

    Args:
        meeting_place: a file where processes of one machine meet. They then listen on the loopback interface only.

    Raises:
        RunError: another process has ended.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield ALONE
        return
    local_rank = int(os.environ["LOCAL_RANK"])
    if torch.cuda.is_available():
        torch.cuda.set_device(local_rank)
    backend = "nccl" if torch.cuda.is_available() else "gloo"
    # No process leaves before all are connected; one that ended early would break the connection of the others.
    os.environ["TORCH_DIST_INIT_BARRIER"] = "1"
    if meeting_place is None:
        distributed.init_process_group(backend, timeout=LONGEST_WAIT)
    else:
        loopback = next((name for _, name in socket.if_nameindex() if name.startswith("lo")), "lo")
        os.environ |= dict.fromkeys(("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"), loopback)
        rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        where = f"file://{meeting_place}"
        distributed.init_process_group(backend, where, timeout=LONGEST_WAIT, rank=rank, world_size=world)
    try:
        yield Group(distributed.get_rank(), distributed.get_world_size(), local_rank)
    except Exception as error:
        if is_lost_peer(error):
            raise RunError(LOST.format(one_line(error))) from error
        raise
    # Not after an error, because the other processes may be waiting in a collective call.
    distributed.destroy_process_group()


def run_on(processes: int, function: Callable[..., int], *args: Any) -> int:
    """Run ``function(*args, group)`` in processes that this one starts, or as one of torchrun's; return the exit code.

    Args:
        processes: the option ``--processes``; 1 starts no process.
        function: see `launch`.
        args: see `launch`.

    Raises:
        InputError: `processes` cannot be used; see also `launch`.
    """
    if processes < 1:
        raise InputError(f"--processes is {processes}, it must be at least 1")
    if processes > 1:
        if "WORLD_SIZE" in os.environ:
            raise InputError("--processes cannot be used under torchrun; use one of them")
        return launch(function, processes, *args)
    with join() as group:
        return function(*args, group)


def launch(function: Callable[..., int], processes: int, *args: Any) -> int:
    """Run ``function(*args, group)`` in several processes on this machine, with torch's elastic launcher.

    They get a stop of this process (`segloc.common.stops`) as SIGTERM, and also when this process dies. A second stop
    kills them.

    Args:
        function: a module-level function that returns an exit code and uses `segloc.common.stops.held` or `handled`.
        processes: number of processes; at most one per GPU.
        args: picklable arguments.

    Returns:
        The exit code of the first process that failed (1 if a signal ended it), or 0.

    Raises:
        InputError: there are more processes than GPUs.
        Stopped: this process was stopped, or all others were.
    """
    if 0 < (gpus := torch.cuda.device_count()) < processes:
        raise InputError(f"--processes is {processes}, but this machine has {gpus} GPUs; set at most {gpus}")
    # In a thread the launcher does not handle signals; its handler would kill a process during a long save.
    with stops.held(_kill_processes) as stop, ThreadPoolExecutor(1) as pool, tempfile.TemporaryDirectory() as logs:
        launched = pool.submit(_launch, function, args, processes, logs)
        told: set[int | None] = set()
        while not wait([launched], POLL_S).done:
            for child in multiprocessing.active_children() if stop() else ():
                if child.pid not in told:
                    child.terminate()
                    told.add(child.pid)
        try:
            launched.result()
        except ChildFailedError as error:
            rank, failure = error.get_first_failure()
            if number := stop() or stops.signal_of(failure.exitcode):
                raise stops.Stopped(number) from None
            if failure.exitcode > 0:
                return int(failure.exitcode)
            name = signal.Signals(-failure.exitcode).name
            print(f"process {rank} was ended by {name}; run the same command again to continue", file=sys.stderr)
            return RunError.exit_code
    return 0


def _kill_processes() -> None:
    for child in multiprocessing.active_children():
        child.kill()
    # Without this, multiprocessing's tracker warns of semaphores.
    multiprocessing.util._run_finalizers(0)  # type: ignore[attr-defined]


def _launch(function: Callable[..., int], args: tuple[Any, ...], processes: int, logs: str) -> None:
    """Start the processes and wait for their end."""
    # They inherit the mask, so that no signal ends them before they can save: see `_run` and `stops.held`. Starting
    # multiprocessing's tracker resets the mask of Ctrl-C and SIGTERM, so it comes first.
    signal.pthread_sigmask(signal.SIG_BLOCK, stops.SIGNALS)
    resource_tracker.ensure_running()
    signal.pthread_sigmask(signal.SIG_BLOCK, stops.SIGNALS)
    # Silence the launcher's report; the failed process prints its own error.
    for name in ("torch.distributed.elastic", "torch.multiprocessing.spawn"):
        logging.getLogger(name).propagate = False
        logging.getLogger(name).addHandler(logging.NullHandler())
        logging.getLogger(name).setLevel(logging.CRITICAL)
    # The launcher, too, meets in a file: a server, which it would share with the processes, listens on all interfaces.
    os.environ["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
    config = LaunchConfig(
        min_nodes=1, max_nodes=1, nproc_per_node=processes, run_id="segloc", max_restarts=0, start_method="spawn",
        rdzv_backend="c10d", rdzv_endpoint=f"{logs}/launcher", rdzv_configs={"store_type": "file"},
        logs_specs=DefaultLogsSpecs(log_dir=logs),
    )  # fmt: skip
    elastic_launch(config, _run)(function, args, os.getpid(), f"{logs}/processes")


def _run(function: Callable[..., int], args: tuple[Any, ...], launcher: int, meeting_place: str) -> None:
    """Run one launched process. The launcher forwards each stop as SIGTERM."""
    stops.obey_launcher()
    terminal.prepare()
    tqdm.set_lock(threading.RLock())  # tqdm's own lock is a semaphore; a kill would leak it
    _prctl_pr_set_pdeathsig(signal.SIGTERM)  # instead of SIGINT, which torch sets
    if os.getppid() != launcher:  # it died before
        sys.exit(RunError.exit_code)
    with join(meeting_place) as group:
        try:
            code = function(*args, group)
        except EXPECTED as error:
            code = report(error, f"process {group.rank}")
        except stops.Stopped as stop:  # the launcher says so
            code = stop.exit_code
        except Exception as error:
            if is_lost_peer(error):
                # Let the process that failed exit first, so that its exit code counts; the launcher then ends this one.
                signal.pthread_sigmask(signal.SIG_UNBLOCK, stops.SIGNALS)
                time.sleep(LOST_PEER_S)
                print(f"process {group.rank}: {LOST.format(one_line(error))}", file=sys.stderr)
            else:
                traceback.print_exc()
            code = RunError.exit_code
    if code:
        sys.exit(code)


def is_lost_peer(error: Exception) -> bool:
    """Whether an error is of a collective call that lost another process.

    NCCL and the rendezvous have their own type of error. Gloo's is a plain `RuntimeError`, which begins with its place.
    """
    of_gloo = type(error) is RuntimeError and _GLOO.match(str(error)) is not None
    return of_gloo or isinstance(error, distributed.DistError)
