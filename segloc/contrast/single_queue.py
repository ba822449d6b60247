"""One queue for all queries: MoCo's and InsLoc's dictionary, the baseline the class queues are compared with."""

from __future__ import annotations

import numpy as np
import torch

from segloc.contrast.queues import ClassQueues


class SingleQueue(ClassQueues):
    """The last K keys of every level, whatever their class, as negatives of every query.

    They are the class queue of a class that no key has, so `ClassQueues` keeps them: with one class more than the data
    have, of which every query is. All it promises holds: exactly the last K keys, no rule between K and the batch. Its
    store, made for the other classes' queues too, is somewhat larger than K and never more than 2 K; what lies in it
    beyond the last K is negative of nobody.

    Args:
        num_classes: number of classes in the data, at least 1.
        size: K, the keys in a full queue.
        dim: size of a key.
        levels: pyramid levels.
        device: where the keys are stored.

    Raises:
        ValueError: a size that cannot be.
    """

    def __init__(self, num_classes: int, size: int, dim: int, levels: int, device: torch.device | str = "cpu") -> None:
        super().__init__(num_classes + 1, size, dim, levels, device)
        self._nobody = num_classes

    def enqueue(self, keys: torch.Tensor, labels: torch.Tensor | np.ndarray) -> None:
        """See `ClassQueues.enqueue`."""
        if len(labels) and labels.max() >= self._nobody:
            raise ValueError(f"class id {int(labels.max())} is not in 0..{self._nobody - 1}")
        super().enqueue(keys, labels)

    def negatives(self, label: int, level: int) -> torch.Tensor:
        """Return the queue of `level`, the same for every `label`: [m, dim] with m <= K, oldest first."""
        return super().negatives(self._nobody, level)

    def valid(self, labels: torch.Tensor) -> torch.Tensor:
        """Tell which slots of `keys` are negatives: [n, slots] bool, the same for each of the n `labels`."""
        return super().valid(torch.full_like(labels, self._nobody))

    def slot_labels(self) -> torch.Tensor:
        """Class of the key in each slot, -1 where there is none of the queue: [slots] int64."""
        nobody = torch.tensor([self._nobody], device=self.keys.device)
        return super().slot_labels().masked_fill(~super().valid(nobody)[0], -1)

    def fill(self) -> np.ndarray:
        """Number of keys in the queue: [1] int64."""
        return super().fill()[self._nobody :]

    def age(self) -> np.ndarray:
        """See `ClassQueues.age`: [1] int64."""
        return super().age()[self._nobody :]


QUEUES: dict[str, type[ClassQueues]] = {"class": ClassQueues, "single": SingleQueue}
