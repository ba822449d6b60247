"""Several processes that train one model: who they are, and what they tell each other.

The processes come from ``torchrun`` or from `launch`. Everything here also works in a lone process, where nothing is
sent.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import logging
import multiprocessing
import os
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, wait
from multiprocessing import resource_tracker
from typing import Any

import torch
from torch import distributed
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch
from torch.multiprocessing import _prctl_pr_set_pdeathsig  # type: ignore[attr-defined]

from segloc.common.cli import EXPECTED, report
from segloc.common.errors import InputError, RunError

LOST_PEER_S = 3.0
POLL_S = 0.1
STOPS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


@dataclasses.dataclass(frozen=True)
class Group:
    """The processes of a run.

    Attributes:
        rank: number of this one.
        world: how many there are.
        local_rank: number of this one among those of its machine.
    """

    rank: int = 0
    world: int = 1
    local_rank: int = 0

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and speaks to the user."""
        return self.rank == 0

    def device(self) -> torch.device:
        """The GPU of this process, or the CPU where there is none."""
        return torch.device("cuda", self.local_rank) if torch.cuda.is_available() else torch.device("cpu")

    def gather(self, tensor: torch.Tensor) -> torch.Tensor:
        """Collect a tensor of the same shape from everyone: [world, ...], in the order of the ranks, no gradient."""
        if self.world == 1:
            return tensor.detach()[None]
        tensor = tensor.detach().contiguous()
        parts = [torch.empty_like(tensor) for _ in range(self.world)]
        distributed.all_gather(parts, tensor)
        return torch.stack(parts)

    def gather_images(self, images: torch.Tensor, fill: float) -> torch.Tensor:
        """Collect images [N, 3, H, W] of sizes that may differ from rank to rank: [world * N, 3, max H, max W].

        What is added at the right and the bottom is `fill`.
        """
        sizes = self.gather(torch.tensor(images.shape[-2:], device=images.device))
        height, width = sizes.amax(0).tolist()
        padding = (0, width - images.shape[-1], 0, height - images.shape[-2])
        return self.gather(torch.nn.functional.pad(images, padding, value=fill)).flatten(0, 1)

    def any(self, flag: bool, device: torch.device) -> bool:
        """Whether the flag is set anywhere; everyone gets the same answer."""
        return bool(self.gather(torch.tensor(flag, device=device)).any())

    def mean(self, values: Mapping[str, float], device: torch.device) -> dict[str, float]:
        """Average figures of the same names over all processes."""
        mine = torch.tensor(list(values.values()), dtype=torch.float64, device=device)
        return dict(zip(values, self.gather(mine).mean(0).tolist(), strict=True))


ALONE = Group()


@contextlib.contextmanager
def join() -> Iterator[Group]:
    """Join the processes that ``torchrun`` or `launch` started; alone, a group of one.

    On GPUs they talk by NCCL, on CPUs by Gloo.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield ALONE
        return
    local_rank = int(os.environ["LOCAL_RANK"])
    if torch.cuda.is_available():
        torch.cuda.set_device(local_rank)
    distributed.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    yield Group(distributed.get_rank(), distributed.get_world_size(), local_rank)
    # Not after an error: the others may be waiting in it.
    distributed.destroy_process_group()


def launch(function: Callable[..., int], processes: int, *args: Any) -> int:
    """Run ``function(*args, group)`` in several processes of this machine, by torch's elastic launcher.

    Each SIGTERM, SIGHUP and Ctrl-C that this process gets is passed on to them as one SIGTERM. They also get one when
    this process dies.

    Args:
        function: a module's function that returns an exit code and uses `segloc.training.stopping.sigterm`.
        processes: how many; at most one a GPU.
        args: picklable.

    Returns:
        The exit code of the first process that did not end with 0, 1 if a signal ended it; or 0.

    Raises:
        InputError: more processes than GPUs.
    """
    if 0 < (gpus := torch.cuda.device_count()) < processes:
        raise InputError(f"{processes} processes, but this machine has {gpus} GPUs")
    stops: list[int] = []
    previous = {number: signal.signal(number, lambda number, _: stops.append(number)) for number in STOPS}
    try:
        # In a thread the launcher leaves the signals alone; its own handling kills a process that saves for long.
        with ThreadPoolExecutor(1) as pool, tempfile.TemporaryDirectory() as logs:
            launched = pool.submit(_launch, function, args, processes, logs)
            passed_on: collections.Counter[int | None] = collections.Counter()
            while not wait([launched], POLL_S).done:
                for child in multiprocessing.active_children() if stops else ():
                    if passed_on[child.pid] < len(stops):
                        child.terminate()
                        passed_on[child.pid] += 1
            launched.result()
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        if failure.exitcode > 0:
            return int(failure.exitcode)
        print(f"process {rank} was ended by {signal.Signals(-failure.exitcode).name}", file=sys.stderr)
        return RunError.exit_code
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
    return 0


def _launch(function: Callable[..., int], args: tuple[Any, ...], processes: int, logs: str) -> None:
    """Start the processes and wait for their end."""
    # They inherit the mask, so that no signal ends them before they can save: see `_run` and `sigterm`. Starting
    # multiprocessing's tracker resets the mask, so it comes first.
    resource_tracker.ensure_running()
    signal.pthread_sigmask(signal.SIG_BLOCK, STOPS)
    # The launcher reports what a process prints itself.
    logging.getLogger("torch.distributed.elastic").propagate = False
    logging.getLogger("torch.distributed.elastic").addHandler(logging.NullHandler())
    config = LaunchConfig(
        min_nodes=1, max_nodes=1, nproc_per_node=processes, run_id="segloc", max_restarts=0, start_method="spawn",
        rdzv_backend="c10d", rdzv_endpoint="localhost:0", logs_specs=DefaultLogsSpecs(log_dir=logs),
    )  # fmt: skip
    elastic_launch(config, _run)(function, args, os.getpid())


def _run(function: Callable[..., int], args: tuple[Any, ...], launcher: int) -> None:
    """Be one of the launched processes, which take their stop from the launcher only, not from the terminal."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _prctl_pr_set_pdeathsig(signal.SIGTERM)  # instead of SIGINT, which torch sets
    if os.getppid() != launcher:  # it died before
        sys.exit(RunError.exit_code)
    with join() as group:
        try:
            code = function(*args, group)
        except EXPECTED as error:
            code = report(error, f"process {group.rank}")
        except Exception:
            # If another process failed, it ends first and its exit code counts; the launcher then ends this one.
            signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPS)
            time.sleep(LOST_PEER_S)
            traceback.print_exc()
            code = RunError.exit_code
    if code:
        sys.exit(code)
