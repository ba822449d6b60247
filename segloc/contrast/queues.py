"""One queue of negatives per class (paper section 4.1): a query never meets a negative of its own class.

Queue *c* of a level is exactly the last K keys of that level whose class is not *c*, in order of arrival. Twelve queues
share almost all of their keys, so one store of labelled keys serves them all; see `ClassQueues`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np
import torch
from torch.nn.functional import pad

# Slots above K that the store starts with and grows by: with evenly mixed classes the union of all queues is 1.1 K.
SLACK = 0.125


class ClassQueues:
    """The class queues of every pyramid level, over one shared store of keys.

    All levels receive keys of the same pairs at the same time, so they share the bookkeeping. Each slot has the class
    and arrival number of its key, and for each queue *c* the number of keys not of class *c* that had arrived by then;
    queue *c* holds the keys whose number is one of the last K. The slot of a key that no queue holds is free.

    **The store never holds more than 2 K keys**, whatever the stream of classes. Let c1 be the class whose queue
    reaches furthest back and c2 the next one. The keys in use that are not of class c1 lie in queue c1: at most K.
    Those of class c1 lie in other queues, none of which reaches further back than queue c2, so in queue c2: at most K.

    Args:
        num_classes: number of classes C, at least 2, or 1 for a single queue.
        size: K, the keys in a full queue.
        dim: size of a key.
        levels: pyramid levels.
        device: where the keys are stored.
        single: whether all queries see one queue, the last K keys whatever their class. It is MoCo's and InsLoc's
            dictionary, the baseline of the class queues, and here the queue of one more class, which no key has.

    Attributes:
        keys: [levels, slots, dim], the store; `valid` tells which slots are negatives of which query.
        arrived: how many keys have ever arrived.

    Raises:
        ValueError: sizes too small.
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
            raise ValueError(f"no queues for classes={num_classes} size={size} dim={dim} levels={levels}")
        self.num_classes, self.size, self.single = num_classes, size, single
        self._clear(torch.zeros(levels, size + max(1, int(SLACK * size)), dim, device=device))

    @torch.no_grad()
    def enqueue(self, keys: torch.Tensor, labels: torch.Tensor | np.ndarray) -> None:
        """Append keys; every queue of another class then holds them, and forgets its oldest beyond K.

        Args:
            keys: [levels, n, dim].
            labels: [n] class ids, the order of arrival.

        Raises:
            ValueError: shapes that do not fit, or a class id out of range.
        """
        labels = torch.as_tensor(labels, dtype=torch.int64, device=self.keys.device)
        levels, _, dim = self.keys.shape
        if keys.shape != (levels, len(labels), dim):
            raise ValueError(f"keys {tuple(keys.shape)} do not fit {(levels, len(labels), dim)}")
        wrong = labels[(labels < 0) | (labels >= self.num_classes)]
        if len(wrong):
            raise ValueError(f"class ids {wrong.tolist()} are not in 0..{self.num_classes - 1}")
        # Of at most K keys that arrive together none can push out another.
        for some_keys, some_labels in zip(keys.split(self.size, 1), labels.split(self.size), strict=True):
            self._append(some_keys, some_labels)

    def valid(self, labels: torch.Tensor) -> torch.Tensor:
        """Tell which slots of `keys` are negatives of each query.

        Args:
            labels: [n] class ids of the queries, on the device of `keys`.

        Returns:
            [n, slots] bool.
        """
        return self._seen().expand(self.num_classes, -1)[labels]

    def slot_labels(self) -> torch.Tensor:
        """Class of the key in each slot, -1 where it is of no queue: [slots] int64."""
        return self._entries[0].where(self._seen().any(0), -1)

    def fill(self) -> torch.Tensor:
        """Number of keys in each class's queue, or in the single queue: [C] or [1] int64."""
        return self._seen().sum(1)

    def age(self) -> torch.Tensor:
        """Keys that have arrived since the oldest key of each queue did, itself included: [C] or [1] int64."""
        return ((self.arrived - self._entries[1]) * self._seen()).amax(1)

    @property
    def full(self) -> bool:
        """Whether every queue holds K keys."""
        return bool((self.fill() == self.size).all())

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Return the keys in use and their classes in order of arrival, and the slots they lie in.

        The slots matter for the order in which a loss adds up its negatives, so for resuming bit for bit.
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
        """Load a `state_dict`; what was stored before is dropped."""
        levels, _, dim = self.keys.shape
        self._clear(self.keys.new_zeros(levels, int(state["capacity"]), dim))
        slots, labels, arrivals = (state[name].to(self.keys.device) for name in ("slots", "labels", "arrivals"))
        self.arrived = int(state["arrived"])
        self.keys[:, slots] = state["keys"].to(self.keys)
        self._entries[:, slots] = self._count(labels, arrivals)

    def _clear(self, keys: torch.Tensor) -> None:
        """Use this store, [levels, slots, dim], as an empty one."""
        queues = self.num_classes + self.single
        self.keys, self.arrived = keys, 0
        # Rows: class, arrival number, then the count of each queue. A count of -K is in no queue.
        self._entries = torch.full((2 + queues, keys.shape[1]), -self.size, device=keys.device)
        self._total = torch.zeros(queues, 1, dtype=torch.int64, device=keys.device)

    def _held(self) -> torch.Tensor:
        """Tell which queue holds the key of which slot: [queues, slots] bool."""
        return self._entries[2:] > self._total - self.size

    def _seen(self) -> torch.Tensor:
        """Choose from `_held` the queues that queries see: [C, slots], or [1, slots] of a single queue."""
        return self._held()[-1:] if self.single else self._held()

    def _append(self, keys: torch.Tensor, labels: torch.Tensor) -> None:
        """Store at most K keys in free slots; add slots when there are too few."""
        arrivals = torch.arange(self.arrived, self.arrived + len(labels), device=labels.device)
        self.arrived += len(labels)
        entries = self._count(labels, arrivals)
        free = (~self._held().any(0)).nonzero()[:, 0]
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
        """Add arriving keys to the totals and return their entries: [2 + queues, n]."""
        others = labels != torch.arange(len(self._total), device=labels.device)[:, None]
        counts = (self._total + others.cumsum(1)).where(others, -self.size)
        self._total += others.sum(1, keepdim=True)
        return torch.cat([labels[None], arrivals[None], counts])


QUEUES: dict[str, Callable[..., ClassQueues]] = {
    "class": ClassQueues,
    "single": functools.partial(ClassQueues, single=True),
}
