"""What the processes of a fine-tuning exchange in a step: gradients, losses, and scans that cannot be read.

The losses of a process are shares of the step's. So their sums, and the sums of the gradients, are those of one process
that takes all micro-batches in turn.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch

from segloc.detection.data import TrainingData
from segloc.training.processes import Group


def add_up(
    parameters: Iterable[torch.nn.Parameter], losses: Mapping[str, torch.Tensor], news: int, group: Group
) -> tuple[dict[str, torch.Tensor], int]:
    """Sum the gradients of all processes in place, in one collective call with the losses.

    A parameter that has no gradient in any process gets none, so that the optimiser skips it as in one process.

    Args:
        parameters: of the detector.
        losses: this process's share of each loss, [] float32; the names are the same in all processes.
        news: a number to sum.
        group: the processes.

    Returns:
        The losses of the step, and the sum of `news`.
    """
    if group.world == 1:
        return dict(losses), news
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    has_gradient = torch.tensor([x.grad is not None for x in trained], dtype=torch.float32, device=group.device())
    for parameter in trained:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    sums = torch.stack(list(losses.values()))
    count = torch.tensor([float(news)], device=group.device())
    group.add_up([*(parameter.grad for parameter in trained if parameter.grad is not None), has_gradient, sums, count])
    for parameter, processes in zip(trained, has_gradient.tolist(), strict=True):
        if not processes:
            parameter.grad = None
    return dict(zip(losses, sums, strict=True)), int(count)


class SharedUnreadable:
    """The scans that some process could not read, told to all when a step ends.

    Args:
        data: each process's own; its ``unreadable`` gets those of all.
        group: the processes.
    """

    def __init__(self, data: TrainingData, group: Group) -> None:
        self.data, self.group = data, group
        self._told: set[int] = set(data.unreadable)

    def news(self) -> dict[int, str]:
        """Return the scans that the other processes do not know of yet. Threads add to them at any time."""
        return {place: text for place, text in self.data.unreadable.copy().items() if place not in self._told}

    def tell(self, news: dict[int, str]) -> None:
        """Exchange `news`; a collective call."""
        for part in self.group.gather_objects(news):
            self.data.unreadable.update(part)
            self._told |= part.keys()
