"""The training loop and its hooks, for pretraining and fine-tuning.

If Detectron2 is installed, a `Trainer` is also an instance of Detectron2's ``TrainerBase`` and keeps an
``EventStorage``, so that Detectron2's hooks can be registered, too. The loop below is used in both cases.
"""

from __future__ import annotations

import contextlib
import warnings
import weakref
from collections.abc import Sequence
from typing import Any

__all__ = ["DETECTRON2", "Hook", "Trainer"]

try:
    with warnings.catch_warnings():
        # The import uses torch.jit.script, which prints deprecation warnings.
        warnings.simplefilter("ignore")
        from detectron2 import __version__ as DETECTRON2
        from detectron2.engine import HookBase, TrainerBase
        from detectron2.utils.events import EventStorage
except ImportError:
    DETECTRON2 = None
    HookBase = TrainerBase = object


class Hook(HookBase):  # type: ignore[misc]
    """Base class of hooks; the `Trainer` sets `trainer` and calls the methods."""

    trainer: Any

    def before_train(self) -> None:
        """Run once before the first step."""

    def after_train(self) -> None:
        """Run once after the last step, also when training stops early."""

    def before_step(self) -> None:
        """Run before every step."""

    def after_step(self) -> None:
        """Run after every step."""


class Trainer(TrainerBase):  # type: ignore[misc]
    """Repeats `run_step` and calls the hooks in the order of registration.

    Attributes:
        iter: the current step, from 0; after the last one, `max_iter`.
        start_iter: first step of this process.
        max_iter: number of steps of the run.
        metrics: metrics of the last step by name; empty if the step measured none.
        storage: Detectron2's ``EventStorage``, which gets the metrics; None if Detectron2 is not installed.
    """

    def __init__(self) -> None:
        super().__init__()
        self.iter = self.start_iter = self.max_iter = 0
        self.metrics: dict[str, float] = {}
        self._hooks: list[Any] = []

    def register_hooks(self, hooks: Sequence[Any]) -> None:
        """Add hooks, ours or Detectron2's."""
        for hook in hooks:
            hook.trainer = weakref.proxy(self)  # a proxy, so that deleting the trainer frees the model's memory
            self._hooks.append(hook)

    def train(self, start_iter: int, max_iter: int) -> None:
        """Run the steps from ``start_iter`` to ``max_iter - 1``."""
        self.iter, self.start_iter, self.max_iter = start_iter, start_iter, max_iter
        with EventStorage(start_iter) if DETECTRON2 else contextlib.nullcontext() as self.storage:
            begun: list[Any] = []
            try:
                for hook in self._hooks:
                    hook.before_train()
                    begun.append(hook)
                for self.iter in range(start_iter, max_iter):
                    self._call("before_step")
                    self.run_step()
                    if self.storage is not None:
                        self.storage.put_scalars(**self.metrics)
                    self._call("after_step")
                self.iter = max_iter
            finally:
                self._call("after_train", begun)  # one that could not begin has nothing to close

    def run_step(self) -> None:
        """Do one step; subclasses implement it."""
        raise NotImplementedError

    def _call(self, moment: str, hooks: Sequence[Any] | None = None) -> None:
        if self.storage is not None:
            self.storage.iter = self.iter
        for hook in self._hooks if hooks is None else hooks:
            getattr(hook, moment)()
