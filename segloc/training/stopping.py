"""Save checkpoints, and stop training after a step on request."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from segloc.common.stops import Stopped
from segloc.training.loop import Hook


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
