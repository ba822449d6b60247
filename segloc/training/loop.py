"""The training loop and its hooks, of pretraining and fine-tuning alike.

With Detectron2 installed a `Trainer` is also an instance of Detectron2's ``TrainerBase`` and keeps the ``EventStorage``
that Detectron2's hooks write to, so that these can be registered beside our own. The loop is the one below in any case.
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
        # Its import compiles functions by torch.jit.script, which torch announces as deprecated each time.
        warnings.simplefilter("ignore")
        from detectron2 import __version__ as DETECTRON2
        from detectron2.engine import HookBase, TrainerBase
        from detectron2.utils.events import EventStorage
except ImportError:
    DETECTRON2 = None
    HookBase = TrainerBase = object


class Hook(HookBase):  # type: ignore[misc]
    """Something to do around the steps of a `Trainer`, which sets `trainer`."""

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
    """Iterates `run_step` and calls the hooks in the order they were registered.

    Attributes:
        iter: the current step; after the last one, the number of steps.
        start_iter: the step that this process began with.
        max_iter: the step to stop before.
        metrics: figures of the last step by name; empty where it took none.
        storage: Detectron2's ``EventStorage``, which gets the metrics; None where Detectron2 is not installed.
    """

    def __init__(self) -> None:
        super().__init__()
        self.iter = self.start_iter = self.max_iter = 0
        self.metrics: dict[str, float] = {}
        self._hooks: list[Any] = []

    def register_hooks(self, hooks: Sequence[Any]) -> None:
        """Add hooks, ours or Detectron2's."""
        for hook in hooks:
            hook.trainer = weakref.proxy(self)  # so that the model's memory is free once the trainer is gone
            self._hooks.append(hook)

    def train(self, start_iter: int, max_iter: int) -> None:
        """Run the steps ``start_iter`` up to but not including ``max_iter``."""
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
        """Do one step; a trainer's own."""
        raise NotImplementedError

    def _call(self, moment: str, hooks: Sequence[Any] | None = None) -> None:
        if self.storage is not None:
            self.storage.iter = self.iter
        for hook in self._hooks if hooks is None else hooks:
            getattr(hook, moment)()
