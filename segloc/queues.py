"""One queue of negatives per class (paper section 4.1): a query never meets a negative of its own class.

Queue *c* of a level is exactly the last K keys of that level whose class is not *c*, in order of arrival. Twelve queues
share almost all of their keys, so one store of labelled keys serves them all; see `ClassQueues`.
"""

from __future__ import annotations

import numpy as np
import torch

# Slots above K that the store starts with and grows by: with evenly mixed classes the union of all queues is 1.1 K.
SLACK = 0.125


class ClassQueues:
    """The class queues of every pyramid level, over one shared store of keys.

    A key is kept as long as some class needs it. Let ``cut[c]`` be the arrival number of the oldest key in queue *c*.
    A key of class *y* is needed exactly while it is not older than ``min(cut[c] for c != y)``.

    **The store never holds more than 2 K keys**, whatever the stream of classes. Let c1 be the class whose queue
    reaches furthest back and c2 the next one. A needed key not of class c1 lies in the queue of c1, which holds at
    most K. A needed key of class c1 lies in the queue of another class, and none of those reaches further back than
    c2's, which holds at most K. So slots are handed out on demand, from about 1.1 K for evenly mixed classes up to
    2 K, and each queue is exact always.

    All levels receive keys of the same pairs at the same time, so they share the bookkeeping, which lives on the host.

    Args:
        num_classes: number of classes C, at least 2.
        size: K, the keys in a full queue.
        dim: size of a key.
        levels: pyramid levels.
        device: where the keys are stored.

    Raises:
        ValueError: a size that cannot be.
    """

    def __init__(self, num_classes: int, size: int, dim: int, levels: int, device: torch.device | str = "cpu") -> None:
        if num_classes < 2 or min(size, dim, levels) < 1:
            raise ValueError(f"no queues for classes={num_classes} size={size} dim={dim} levels={levels}")
        self.num_classes = num_classes
        self.size = size
        capacity = size + max(1, int(SLACK * size))
        # Slots never written stay zero and invalid for every class.
        self.keys = torch.zeros(levels, capacity, dim, device=device)
        self._order = np.empty(0, np.int64)  # slots of the live keys, oldest first
        self._labels = np.empty(0, np.int64)  # their classes
        self._cuts = np.zeros(num_classes, np.int64)  # position in _order where each queue begins
        self._valid = torch.zeros(num_classes, capacity, dtype=torch.bool, device=device)

    @torch.no_grad()
    def enqueue(self, keys: torch.Tensor, labels: torch.Tensor | np.ndarray) -> None:
        """Append keys; every queue of another class then holds them, and forgets its oldest beyond K.

        Args:
            keys: [levels, n, dim].
            labels: [n] class ids, the order of arrival.

        Raises:
            ValueError: shapes that do not fit, or a class id out of range.
        """
        arriving = np.asarray(labels.cpu() if isinstance(labels, torch.Tensor) else labels, np.int64)
        levels, _, dim = self.keys.shape
        if keys.shape != (levels, len(arriving), dim):
            raise ValueError(f"keys {tuple(keys.shape)} do not fit {(levels, len(arriving), dim)}")
        if len(arriving) and (arriving.min() < 0 or arriving.max() >= self.num_classes):
            raise ValueError(f"class ids {arriving.min()}..{arriving.max()} are not in 0..{self.num_classes - 1}")
        not_stored = np.arange(-len(arriving), 0)  # instead of a slot: minus the distance from the end
        order = np.concatenate([self._order, not_stored])
        classes = np.concatenate([self._labels, arriving])
        kept = np.arange(len(order)) >= _oldest_needed(self._find_cuts(classes))[classes]
        order, classes = order[kept], classes[kept]
        new = order < 0
        source = torch.from_numpy(order[new] + keys.shape[1]).to(keys.device)
        order[new] = self._free_slots(order[~new], int(new.sum()))
        slots = torch.from_numpy(order[new]).to(self.keys.device)
        self.keys[:, slots] = keys[:, source].to(self.keys)
        self._order, self._labels = order, classes
        self._cuts = self._find_cuts(classes)
        self._refresh_valid()

    def negatives(self, label: int, level: int) -> torch.Tensor:
        """Return queue `label` of `level`: [m, dim] with m <= K, oldest first."""
        chosen = (self._labels != label) & (np.arange(len(self._order)) >= self._cuts[label])
        return self.keys[level, torch.from_numpy(self._order[chosen]).to(self.keys.device)]

    def valid(self, labels: torch.Tensor) -> torch.Tensor:
        """Tell which slots of `keys` are negatives of each query.

        Args:
            labels: [n] class ids of the queries, on the device of `keys`.

        Returns:
            [n, slots] bool.
        """
        return self._valid[labels]

    def slot_labels(self) -> torch.Tensor:
        """Class of the key in each slot, -1 where there is none: [slots] int64."""
        labels = torch.full((self.keys.shape[1],), -1, dtype=torch.int64)
        labels[torch.from_numpy(self._order)] = torch.from_numpy(self._labels)
        return labels.to(self.keys.device)

    def fill(self) -> np.ndarray:
        """Number of keys in each class's queue: [C] int64."""
        return np.array(
            [np.count_nonzero(self._labels[cut:] != label) for label, cut in enumerate(self._cuts)], np.int64
        )

    @property
    def full(self) -> bool:
        """Whether every queue holds K keys."""
        return bool((self.fill() == self.size).all())

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Return the live keys and their classes in order of arrival, and the slots they lie in.

        The slots matter for the order in which a loss adds up its negatives, so for resuming bit for bit.
        """
        slots = torch.from_numpy(self._order.copy())
        return {
            "keys": self.keys[:, slots.to(self.keys.device)].cpu(),
            "labels": torch.from_numpy(self._labels.copy()),
            "slots": slots,
            "capacity": torch.tensor(self.keys.shape[1]),
        }

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        """Take over a `state_dict`; what was stored before is dropped."""
        levels, _, dim = self.keys.shape
        self.keys = self.keys.new_zeros(levels, int(state["capacity"]), dim)
        self.keys[:, state["slots"].to(self.keys.device)] = state["keys"].to(self.keys)
        self._order, self._labels = state["slots"].numpy().copy(), state["labels"].numpy().copy()
        self._cuts = self._find_cuts(self._labels)
        self._refresh_valid()

    def _find_cuts(self, labels: np.ndarray) -> np.ndarray:
        """Position of the K-th youngest key not of each class; 0 where there are fewer."""
        cuts = np.zeros(self.num_classes, np.int64)
        for label in range(self.num_classes):
            others = np.flatnonzero(labels != label)
            if len(others) > self.size:
                cuts[label] = others[-self.size]
        return cuts

    def _free_slots(self, used: np.ndarray, count: int) -> np.ndarray:
        """Return `count` slots not in `used`, making the store larger when it has too few."""
        levels, capacity, dim = self.keys.shape
        missing = len(used) + count - capacity
        if missing > 0:
            grown = min(2 * self.size, capacity + max(missing, int(SLACK * self.size)))
            extra = self.keys.new_zeros(levels, grown - capacity, dim)
            self.keys = torch.cat([self.keys, extra], 1)
        free = np.ones(self.keys.shape[1], bool)
        free[used] = False
        return np.flatnonzero(free)[:count]

    def _refresh_valid(self) -> None:
        valid = np.zeros((self.num_classes, self.keys.shape[1]), bool)
        position = np.arange(len(self._order))
        for label, cut in enumerate(self._cuts):
            valid[label, self._order[(self._labels != label) & (position >= cut)]] = True
        self._valid = torch.from_numpy(valid).to(self.keys.device)


def _oldest_needed(cuts: np.ndarray) -> np.ndarray:
    """For each class y the smallest cut among the other classes: [C]."""
    first, second = np.partition(cuts, 1)[:2]
    oldest = np.full(len(cuts), first)
    oldest[np.argmin(cuts)] = second
    return oldest
