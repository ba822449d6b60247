"""Save checkpoints, and stop training after a step on request."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator

import torch

from segloc.common.stops import Stopped, held
from segloc.training.loop import Hook
from segloc.training.processes import Group


@contextlib.contextmanager
def held_together(group: Group, device: torch.device) -> Iterator[Callable[[], int]]:
    """Hold stops back in the block; if one process gets a stop, all stop after the same step.

    Yields:
        A function for `Keeper.stop`, a collective call: it returns the signal that came in any process, or 0.

    Raises:
        Stopped: the block raised it after the main process saved a checkpoint.
    """
    with held() as came:
        try:
            yield lambda: group.most(came(), device)
        except Stopped:
            group.most(0, device)  # wait for the checkpoint: a launcher ends all processes once one has ended
            raise


@dataclasses.dataclass(eq=False)
class Keeper(Hook):
    """Saves checkpoints, and stops training after a step on request.

    Args:
        save: writes a checkpoint; its argument is the number of finished steps.
        every: steps between checkpoints; the end of training and early stopping also write one.
        stop: returns the signal that asks to stop, or 0; called once after every step.
    """

    save: Callable[[int], None]
    every: int
    stop: Callable[[], int]

    def after_step(self) -> None:
        """Save every `every` steps, at the end and before stopping.

        Raises:
            Stopped: `stop` returned a signal; the checkpoint is saved.
        """
        done, number = self.trainer.iter + 1, self.stop()
        if done % self.every == 0 or done == self.trainer.max_iter or number:
            self.save(done)
        if number:
            raise Stopped(number)
