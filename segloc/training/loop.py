"""The training loop's frame: Detectron2's `TrainerBase`, `HookBase` and `launch` if installed, the same names if not.

Detectron2 is on no package index, so it cannot be required. `NAME` says which engine runs; the trainers are written
once, against the names below.
"""

from __future__ import annotations

import logging
import socket
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import distributed, multiprocessing

__all__ = ["NAME", "HookBase", "TrainerBase", "init_processes", "launch"]


def init_processes(local_rank: int, **where: Any) -> None:
    """Initialise `torch.distributed`: NCCL with one GPU a process where there are GPUs, Gloo on CPUs.

    Args:
        local_rank: number of this process among those of its machine.
        where: of `torch.distributed.init_process_group`; left out, ``torchrun``'s environment tells.
    """
    has_gpu = torch.cuda.is_available()
    if has_gpu:
        torch.cuda.set_device(local_rank)
    distributed.init_process_group("nccl" if has_gpu else "gloo", **where)


try:
    with warnings.catch_warnings():
        # Its import compiles functions by torch.jit.script, which torch announces as deprecated each time.
        warnings.simplefilter("ignore")
        from detectron2.engine import HookBase, TrainerBase, launch

    NAME = "detectron2"
    # It logs the traceback of every exception that leaves the loop; ours are reported by whoever catches them.
    logging.getLogger("detectron2.engine.train_loop").setLevel(logging.CRITICAL)
except ImportError:
    NAME = "stand-in"

    class HookBase:  # type: ignore[no-redef]
        """Something to do around the steps of a `TrainerBase`, which sets `trainer`."""

        trainer: TrainerBase

        def before_train(self) -> None:
            """Run once before the first step."""

        def after_train(self) -> None:
            """Run once after the last step, also when training stops early."""

        def before_step(self) -> None:
            """Run before every step."""

        def after_step(self) -> None:
            """Run after every step."""

    class TrainerBase:  # type: ignore[no-redef]
        """Iterates `run_step` and calls the hooks in the order they were registered."""

        def __init__(self) -> None:
            self._hooks: list[HookBase] = []
            self.iter = 0
            self.start_iter = 0
            self.max_iter = 0

        def register_hooks(self, hooks: list[HookBase | None]) -> None:
            """Add hooks; a None is skipped."""
            for hook in hooks:
                if hook is not None:
                    hook.trainer = self
                    self._hooks.append(hook)

        def train(self, start_iter: int, max_iter: int) -> None:
            """Run steps ``start_iter`` up to but not including ``max_iter``."""
            self.iter = self.start_iter = start_iter
            self.max_iter = max_iter
            try:
                self._call("before_train")
                for self.iter in range(start_iter, max_iter):
                    self._call("before_step")
                    self.run_step()
                    self._call("after_step")
                self.iter += 1
            finally:
                self._call("after_train")

        def run_step(self) -> None:
            """Do one step; the trainer's own."""
            raise NotImplementedError

        def _call(self, moment: str) -> None:
            for hook in self._hooks:
                getattr(hook, moment)()

    def launch(
        main_func: Callable[..., None], num_gpus_per_machine: int, *, dist_url: str = "auto", args: tuple[Any, ...] = ()
    ) -> None:
        """Run `main_func` in so many processes of this machine, joined into a group; only `dist_url` ``auto`` is known.

        Raises:
            torch.multiprocessing.ProcessExitedException: one ended with another exit code than 0.
        """
        assert dist_url == "auto"
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        multiprocessing.spawn(_worker, (main_func, num_gpus_per_machine, port, args), num_gpus_per_machine)

    def _worker(rank: int, main_func: Callable[..., None], world: int, port: int, args: tuple[Any, ...]) -> None:
        init_processes(rank, init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=world)
        main_func(*args)
