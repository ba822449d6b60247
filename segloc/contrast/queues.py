"""One queue of negatives per class (paper section 4.1): a query never meets a negative of its own class.

Queue *c* of a level is exactly the last K keys of that level whose class is not *c*, in order of arrival. Twelve queues
share almost all of their keys, so one store of labelled keys serves them all; see `ClassQueues`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np
import torch

# Slots above K that the store starts with and grows by: with evenly mixed classes the union of all queues is 1.1 K.
SLACK = 0.125


class ClassQueues:
    """The class queues of every pyramid level, over one shared store of keys.

    All levels receive keys of the same pairs at the same time, so they share one log of the keys in the store: class,
    slot and arrival number, in order of arrival. Queue *c* is the last K entries whose class is not *c*; a cumulative
    count per class tells which. A key that no queue holds leaves the log, and its slot is free.

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
        self.num_classes, self.size, self.single, self.arrived = num_classes, size, single, 0
        self.keys = torch.zeros(levels, size + max(1, int(SLACK * size)), dim, device=device)
        self._left_out = torch.arange(num_classes + single, device=device)[:, None]  # the class that each queue lacks
        self._log = torch.empty(3, 0, dtype=torch.int64, device=device)  # class, slot, arrival number
        self._keep(*self._in_use(self._log))

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

    def negatives(self, label: int, level: int) -> torch.Tensor:
        """Return queue `label` of `level`: [m, dim] with m <= K, oldest first."""
        slots = self._log[1]
        return self.keys[level, slots[self._valid.expand(self.num_classes, -1)[label, slots]]]

    def valid(self, labels: torch.Tensor) -> torch.Tensor:
        """Tell which slots of `keys` are negatives of each query.

        Args:
            labels: [n] class ids of the queries, on the device of `keys`.

        Returns:
            [n, slots] bool.
        """
        return self._valid.expand(self.num_classes, -1)[labels]

    def slot_labels(self) -> torch.Tensor:
        """Class of the key in each slot, -1 where it is of no queue: [slots] int64."""
        labels, slots, _ = self._log
        by_slot = slots.new_zeros(self.keys.shape[1]).scatter_(0, slots, labels)
        return by_slot.where(self._valid.any(0), -1)

    def fill(self) -> torch.Tensor:
        """Number of keys in each class's queue, or in the single queue: [C] or [1] int64."""
        return self._valid.sum(1)

    def age(self) -> torch.Tensor:
        """Keys that have arrived since the oldest key of each queue did, itself included: [C] or [1] int64."""
        _, slots, arrivals = self._log
        ages = slots.new_zeros(self.keys.shape[1]).scatter_(0, slots, self.arrived - arrivals)
        return (ages * self._valid).amax(1)

    @property
    def full(self) -> bool:
        """Whether every queue holds K keys."""
        return bool((self.fill() == self.size).all())

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Return the keys in use and their classes in order of arrival, and the slots they lie in.

        The slots matter for the order in which a loss adds up its negatives, so for resuming bit for bit.
        """
        labels, slots, arrivals = self._log.cpu()
        return {
            "keys": self.keys[:, self._log[1]].cpu(),
            "labels": labels,
            "slots": slots,
            "arrivals": arrivals,
            "arrived": torch.tensor(self.arrived),
            "capacity": torch.tensor(self.keys.shape[1]),
        }

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        """Load a `state_dict`; what was stored before is dropped."""
        levels, _, dim = self.keys.shape
        self.keys = self.keys.new_zeros(levels, int(state["capacity"]), dim)
        self.keys[:, state["slots"].to(self.keys.device)] = state["keys"].to(self.keys)
        self.arrived = int(state["arrived"])
        log = torch.stack([state[name] for name in ("labels", "slots", "arrivals")])
        self._keep(*self._in_use(log.to(self.keys.device)))

    def _append(self, keys: torch.Tensor, labels: torch.Tensor) -> None:
        """Store at most K keys, in slots of keys that no queue holds any more, and in new slots if those do not do."""
        arrivals = torch.arange(self.arrived, self.arrived + len(labels), device=labels.device)
        self.arrived += len(labels)
        new = torch.stack([labels, torch.full_like(labels, -1), arrivals])
        log, held = self._in_use(torch.cat([self._log, new], 1))
        old, missing = log.shape[1] - len(labels), log.shape[1] - self.keys.shape[1]
        if missing > 0:
            extra = min(2 * self.size - self.keys.shape[1], max(missing, int(SLACK * self.size)))
            self.keys = torch.nn.functional.pad(self.keys, (0, 0, 0, extra))
        free = torch.ones(self.keys.shape[1], dtype=torch.bool, device=labels.device)
        free[log[1, :old]] = False
        slots = free.nonzero()[: len(labels), 0]
        log[1, old:] = slots
        self.keys[:, slots] = keys.to(self.keys)
        self._keep(log, held)

    def _in_use(self, log: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Drop from a log the keys that no queue holds; return it and which queue holds which: [queues, entries]."""
        others = log[0] != self._left_out
        count = others.cumsum(1, dtype=torch.int32)
        held = others & (count > count[:, -1:] - self.size)
        in_use = held.any(0)
        return log[:, in_use], held[:, in_use]

    def _keep(self, log: torch.Tensor, held: torch.Tensor) -> None:
        """Make this the log, and of what the queues of queries hold the mask of the slots."""
        self._log, held = log, held[-1:] if self.single else held
        self._valid = held.new_zeros(len(held), self.keys.shape[1])
        self._valid[:, log[1]] = held


QUEUES: dict[str, Callable[..., ClassQueues]] = {
    "class": ClassQueues,
    "single": functools.partial(ClassQueues, single=True),
}
