"""How both trainings save, and how they stop when they are asked to (SIGTERM, as a cluster's scheduler sends it)."""

from __future__ import annotations

import contextlib
import dataclasses
import signal
from collections.abc import Callable, Iterator

from segloc.training.loop import Hook


class StopTraining(Exception):
    """Raised between two steps to leave the loop early."""


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
    """Saves checkpoints, and stops the training after a step when it is asked to.

    Args:
        save: writes a checkpoint, given the number of finished steps.
        every: steps between checkpoints; there is one at the end and one before stopping, too.
        stop: tells whether to stop; asked once after every step.
    """

    save: Callable[[int], None]
    every: int
    stop: Callable[[], bool]

    def after_step(self) -> None:
        """Save now and then, and before stopping.

        Raises:
            StopTraining: it was asked for; all is saved.
        """
        done, stop = self.trainer.iter + 1, self.stop()
        if done % self.every == 0 or done == self.trainer.max_iter or stop:
            self.save(done)
        if stop:
            raise StopTraining
