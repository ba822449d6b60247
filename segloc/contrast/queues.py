"""One queue of negatives per class (paper section 4.1): the negatives of a query are never of its own class.

Queue *c* of a level holds the last K keys of that level whose class is not *c*, in order of arrival. The queues share
almost all of their keys, so all use one store of labelled keys; see `ClassQueues`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np
import torch
from torch.nn.functional import pad

# Initial slots beyond K, and growth step, as a fraction of K. With evenly mixed classes all queues together hold 1.1 K.
SLACK = 0.125


class ClassQueues:
    """The class queues of every pyramid level, over one shared store of keys.

    All levels receive keys of the same pairs at the same time, so they share the bookkeeping. A slot stores the class
    and arrival number of its key and, for each queue *c*, the count of keys not of class *c* that had arrived by then.
    Queue *c* holds the keys with the last K counts. A slot is free if no queue holds its key.

    **The store never holds more than 2 K keys**, for any stream of classes. Let c1 be the class whose queue reaches
    furthest back, and c2 the next one. Keys in use that are not of class c1 are in queue c1: at most K. Keys of class
    c1 are in other queues. No other queue reaches further back than c2, so they are in queue c2: at most K.

    Args:
        num_classes: number of classes C, at least 2, or 1 for a single queue.
        size: K, the keys in a full queue.
        dim: dimension of a key.
        levels: number of pyramid levels.
        device: device of the keys.
        single: whether all queries use one queue, the last K keys of all classes. This is the dictionary of MoCo and
            InsLoc, the baseline of the class queues. It is implemented as the queue of an extra class without keys.

    Attributes:
        keys: [levels, slots, dim], the store; `valid` returns the mask of negatives.
        arrived: number of keys that have arrived so far.

    Raises:
        ValueError: a size is too small.
    """

    def __init__(
        self,
        num_classes: int,
        size: int,
        dim: int,
        levels: int,
        device: torch.device | str = "cpu",
        single: bool = False,
    ) -> None:
        if num_classes < (1 if single else 2) or min(size, dim, levels) < 1:
            raise ValueError(f"sizes are too small: classes={num_classes} size={size} dim={dim} levels={levels}")
        self.num_classes, self.size, self.single = num_classes, size, single
        self._clear(torch.zeros(levels, size + max(1, int(SLACK * size)), dim, device=device))

    @torch.no_grad()
    def enqueue(self, keys: torch.Tensor, labels: torch.Tensor | np.ndarray) -> None:
        """Append keys to every queue of another class; each queue drops its oldest keys beyond K.

        Args:
            keys: [levels, n, dim].
            labels: [n] int64 class ids, in order of arrival.

        Raises:
            ValueError: shapes do not match, or a class id is out of range.
        """
        labels = torch.as_tensor(labels, dtype=torch.int64, device=self.keys.device)
        levels, _, dim = self.keys.shape
        if keys.shape != (levels, len(labels), dim):
            raise ValueError(f"keys have shape {tuple(keys.shape)}, expected {(levels, len(labels), dim)}")
        wrong = labels[(labels < 0) | (labels >= self.num_classes)]
        if len(wrong):
            raise ValueError(f"class ids {wrong.tolist()} are not in 0..{self.num_classes - 1}")
        # At most K keys at a time, so that keys that arrive together do not replace each other.
        for some_keys, some_labels in zip(keys.split(self.size, 1), labels.split(self.size), strict=True):
            self._append(some_keys, some_labels)

    def negatives(self, label: int, level: int) -> torch.Tensor:
        """Return the negatives of a query of class `label` on `level`: [m, dim] with m <= K, oldest first."""
        slots = self._seen().expand(self.num_classes, -1)[label].nonzero()[:, 0]
        return self.keys[level, slots[self._entries[1, slots].argsort()]]

    def valid(self, labels: torch.Tensor) -> torch.Tensor:
        """Return which slots of `keys` are negatives of each query.

        Args:
            labels: [n] class ids of the queries, on the device of `keys`.

        Returns:
            [n, slots] bool.
        """
        return self._seen().expand(self.num_classes, -1).index_select(0, labels)

    def slot_labels(self) -> torch.Tensor:
        """Return the class of the key in each slot, -1 if no queue holds it: [slots] int64."""
        return self._entries[0].where(self._seen().any(0), -1)

    def fill(self) -> torch.Tensor:
        """Return the number of keys in each class's queue, or in the single queue: [C] or [1] int64."""
        return self._seen().sum(1)

    def age(self) -> torch.Tensor:
        """Return the number of arrivals since each queue's oldest key, including that key: [C] or [1] int64."""
        return ((self.arrived - self._entries[1]) * self._seen()).amax(1)

    @property
    def full(self) -> bool:
        """Whether every queue holds K keys."""
        return bool((self.fill() == self.size).all())

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Return the keys in use with their classes and slots, in order of arrival.

        The slots determine the order in which a loss sums its negatives, so bitwise resuming needs them.
        """
        slots = self._held().any(0).nonzero()[:, 0]
        slots = slots[self._entries[1, slots].argsort()]
        return {
            "keys": self.keys[:, slots].cpu(),
            "labels": self._entries[0, slots].cpu(),
            "slots": slots.cpu(),
            "arrivals": self._entries[1, slots].cpu(),
            "arrived": torch.tensor(self.arrived),
            "capacity": torch.tensor(self.keys.shape[1]),
        }

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        """Load a `state_dict`; replaces all stored keys.

        Raises:
            ValueError: it is of other queues, or damaged.
        """
        levels, _, dim = self.keys.shape
        capacity, slots = int(state["capacity"]), state["slots"]
        if not self.size <= capacity <= 2 * self.size or state["keys"].shape != (levels, len(slots), dim):
            raise ValueError(f"{capacity} slots with keys {tuple(state['keys'].shape)} do not fit the queues")
        if len(slots.unique()) < len(slots) or ((slots < 0) | (slots >= capacity)).any():
            raise ValueError("a slot is out of range or holds two keys")
        if ((state["labels"] < 0) | (state["labels"] >= self.num_classes)).any():
            raise ValueError("a class id is out of range")
        self._clear(self.keys.new_zeros(levels, capacity, dim))
        slots, labels, arrivals = (state[name].to(self.keys.device) for name in ("slots", "labels", "arrivals"))
        self.arrived = int(state["arrived"])
        self.keys[:, slots] = state["keys"].to(self.keys)
        self._entries[:, slots] = self._count(labels, arrivals)

    def _clear(self, keys: torch.Tensor) -> None:
        """Reset to an empty store in the memory of `keys`, [levels, slots, dim]."""
        queues = self.num_classes + self.single
        self.keys, self.arrived = keys, 0
        # Rows: class, arrival number, then the count of each queue. A key with count -K is in no queue.
        self._entries = torch.full((2 + queues, keys.shape[1]), -self.size, device=keys.device)
        self._total = torch.zeros(queues, 1, dtype=torch.int64, device=keys.device)

    def _held(self) -> torch.Tensor:
        """Return which queue holds the key of each slot: [queues, slots] bool."""
        return self._entries[2:] > self._total - self.size

    def _seen(self) -> torch.Tensor:
        """Return the rows of `_held` that queries use: [C, slots], or [1, slots] for a single queue."""
        return self._held()[-1:] if self.single else self._held()

    def _append(self, keys: torch.Tensor, labels: torch.Tensor) -> None:
        """Store at most K keys in free slots; add slots if there are too few."""
        arrivals = torch.arange(self.arrived, self.arrived + len(labels), device=labels.device)
        self.arrived += len(labels)
        entries = self._count(labels, arrivals)
        # As bytes: a maximum over rows is many times faster than `any`.
        free = (self._held().view(torch.uint8).amax(0) == 0).nonzero()[:, 0]
        if (missing := len(labels) - len(free)) > 0:
            capacity = self.keys.shape[1]
            extra = min(2 * self.size - capacity, max(missing, int(SLACK * self.size)))
            self.keys = pad(self.keys, (0, 0, 0, extra))
            self._entries = pad(self._entries, (0, extra), value=-self.size)
            free = torch.cat([free, torch.arange(capacity, capacity + extra, device=free.device)])
        slots = free[: len(labels)]
        self.keys[:, slots] = keys.to(self.keys)
        self._entries[:, slots] = entries

    def _count(self, labels: torch.Tensor, arrivals: torch.Tensor) -> torch.Tensor:
        """Add new keys to the totals and return their entries: [2 + queues, n] int64."""
        others = labels != torch.arange(len(self._total), device=labels.device)[:, None]
        counts = (self._total + others.cumsum(1)).where(others, -self.size)
        self._total += others.sum(1, keepdim=True)
        return torch.cat([labels[None], arrivals[None], counts])


QUEUES: dict[str, Callable[..., ClassQueues]] = {
    "class": ClassQueues,
    "single": functools.partial(ClassQueues, single=True),
}
