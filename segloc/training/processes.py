"""Several processes that train one model: who they are, and what they tell each other.

The processes come from ``torchrun`` or from `segloc.training.loop.launch`. Everything here also works in a lone
process, where nothing is sent.
"""

from __future__ import annotations

import contextlib
import dataclasses
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import distributed
from torch.multiprocessing import ProcessExitedException

from segloc.common.errors import InputError, RunError, describe
from segloc.training import loop


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
    """Join the processes that ``torchrun`` or `segloc.training.loop.launch` started; alone, a group of one."""
    if distributed.is_initialized():  # by whoever launched
        rank, world = distributed.get_rank(), distributed.get_world_size()
        yield Group(rank, world, rank % (torch.cuda.device_count() or world))
        return
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield ALONE
        return
    local_rank = int(os.environ["LOCAL_RANK"])
    loop.init_processes(local_rank)
    try:
        yield Group(distributed.get_rank(), distributed.get_world_size(), local_rank)
    finally:
        distributed.destroy_process_group()


def launch(function: Callable[..., int], processes: int, *args: Any) -> int:
    """Run ``function(*args, group)`` in several processes of this machine; SIGTERM is passed on to them.

    The function is a module's and returns an exit code; the arguments are picklable.

    Returns:
        The exit code of the first process that did not end with 0, 1 if a signal ended it; or 0.

    Raises:
        InputError: more processes than GPUs.
    """
    if 0 < (gpus := torch.cuda.device_count()) < processes:
        raise InputError(f"{processes} processes, but this machine has {gpus} GPUs")

    def pass_on(number: int, _: object) -> None:
        for child in multiprocessing.active_children():
            os.kill(child.pid or 0, number)

    previous = signal.signal(signal.SIGTERM, pass_on)
    try:
        loop.launch(_run, processes, dist_url="auto", args=(function, args))
    except ProcessExitedException as error:
        return error.exit_code if error.exit_code > 0 else 1  # below zero: a signal ended it
    finally:
        signal.signal(signal.SIGTERM, previous)
    return 0


def _run(function: Callable[..., int], args: tuple[Any, ...]) -> None:
    """Be one of the launched processes."""
    with join() as group:
        try:
            code = function(*args, group)
        except (InputError, RunError) as error:
            print(error, file=sys.stderr)
            code = error.exit_code
        except OSError as error:
            print(describe(error), file=sys.stderr)
            code = InputError.exit_code
    if code:
        sys.exit(code)
