"""Several processes that train one model: who they are, and what they tell each other.

The processes come from ``torchrun`` or from `launch`. Everything here also works in a lone process, where nothing is
sent.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import multiprocessing
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import distributed
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from segloc.common.errors import InputError, RunError, describe

LOST_PEER_S = 3.0


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

    Each SIGTERM and Ctrl-C that this process gets is passed on to them as one SIGTERM.

    Args:
        function: a module's function that returns an exit code.
        processes: how many; at most one a GPU.
        args: picklable.

    Returns:
        The exit code of the first process that did not end with 0, 1 if a signal ended it; or 0.

    Raises:
        InputError: more processes than GPUs.
    """
    if 0 < (gpus := torch.cuda.device_count()) < processes:
        raise InputError(f"{processes} processes, but this machine has {gpus} GPUs")
    config = LaunchConfig(
        min_nodes=1, max_nodes=1, nproc_per_node=processes, run_id="segloc", max_restarts=0, start_method="spawn",
        rdzv_backend="c10d", rdzv_endpoint="localhost:0",
    )  # fmt: skip
    # The launcher reports what a process prints itself.
    logging.getLogger("torch.distributed.elastic").propagate = False
    logging.getLogger("torch.distributed.elastic").addHandler(logging.NullHandler())

    def pass_on(*_: object) -> None:
        for child in multiprocessing.active_children():
            os.kill(child.pid or 0, signal.SIGTERM)

    previous = {number: signal.signal(number, pass_on) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        # In a thread the launcher leaves the signals alone; its own handling would kill a process that saves for long.
        with ThreadPoolExecutor(1) as pool:
            pool.submit(elastic_launch(config, _run), function, args).result()
    except ChildFailedError as error:
        code: int = error.get_first_failure()[1].exitcode
        return code if code > 0 else 1  # below zero: a signal ended it
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
    return 0


def _run(function: Callable[..., int], args: tuple[Any, ...]) -> None:
    """Be one of the launched processes, which take their stop from the launcher only, not from the terminal."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with join() as group:
        try:
            code = function(*args, group)
        except (InputError, RunError) as error:
            print(error, file=sys.stderr)
            code = error.exit_code
        except OSError as error:
            print(describe(error), file=sys.stderr)
            code = InputError.exit_code
        except Exception:
            # If another process failed, it ends first and its exit code counts; the launcher then ends this one.
            time.sleep(LOST_PEER_S)
            traceback.print_exc()
            code = RunError.exit_code
    if code:
        sys.exit(code)
