"""Save checkpoints, and stop training on SIGTERM, which cluster schedulers send."""

from __future__ import annotations

import contextlib
import dataclasses
import signal
from collections.abc import Callable, Iterator

from segloc.training.loop import Hook


class StopTraining(Exception):
    """Raised between two steps to stop training early."""


@contextlib.contextmanager
def sigterm() -> Iterator[Callable[[], bool]]:
    """Hold SIGTERM back; yields a function that tells whether one came. A second one ends the process.

    A SIGTERM that came while the signal was blocked, as in a process of `segloc.training.processes.launch`, counts.
    """
    came: list[int] = []

    def note(number: int, _: object) -> None:
        came.append(number)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)

    previous = signal.signal(signal.SIGTERM, note)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM])
    try:
        yield lambda: bool(came)
    finally:
        signal.signal(signal.SIGTERM, previous)


@dataclasses.dataclass(eq=False)
class Keeper(Hook):
    """Saves checkpoints, and stops training after a step on request.

    Args:
        save: writes a checkpoint; its argument is the number of finished steps.
        every: steps between checkpoints; the end of training and early stopping also write one.
        stop: returns whether to stop; called once after every step.
    """

    save: Callable[[int], None]
    every: int
    stop: Callable[[], bool]

    def after_step(self) -> None:
        """Save every `every` steps, at the end and before stopping.

        Raises:
            StopTraining: `stop` returned True; the checkpoint is saved.
        """
        done, stop = self.trainer.iter + 1, self.stop()
        if done % self.every == 0 or done == self.trainer.max_iter or stop:
            self.save(done)
        if stop:
            raise StopTraining
