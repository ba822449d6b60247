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

    All levels receive keys of the same pairs at the same time, so they share the bookkeeping, which lives on the host:
    a log of arrivals, from which each queue takes everything from its cut on that is not of its class. Cuts only move
    forward, so an enqueue looks at the few entries they pass and at nothing else.

    Args:
        num_classes: number of classes C, at least 2.
        size: K, the keys in a full queue.
        dim: size of a key.
        levels: pyramid levels.
        device: where the keys are stored.

    Attributes:
        keys: [levels, slots, dim], the store; which slots are whose negatives is told by `valid`.
        arrived: how many keys have ever arrived.

    Raises:
        ValueError: a size that cannot be.
    """

    def __init__(self, num_classes: int, size: int, dim: int, levels: int, device: torch.device | str = "cpu") -> None:
        if num_classes < 2 or min(size, dim, levels) < 1:
            raise ValueError(f"no queues for classes={num_classes} size={size} dim={dim} levels={levels}")
        self.num_classes = num_classes
        self.size = size
        # Slots never written stay zero and invalid for every class.
        self.keys = torch.zeros(levels, size + max(1, int(SLACK * size)), dim, device=device)
        self._clear()

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
        # Of at most K keys that arrive together none can push out another.
        for start in range(0, len(arriving), self.size):
            some = slice(start, start + self.size)
            slots = torch.from_numpy(self._append(arriving[some])).to(self.keys.device)
            self.keys[:, slots] = keys[:, some].to(self.keys)

    def negatives(self, label: int, level: int) -> torch.Tensor:
        """Return queue `label` of `level`: [m, dim] with m <= K, oldest first."""
        queue = slice(self._cuts[label], self._end)
        slots = self._log_slots[queue][self._log_labels[queue] != label]
        return self.keys[level, torch.from_numpy(slots).to(self.keys.device)]

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
        return torch.from_numpy(self._slot_labels.copy()).to(self.keys.device)

    def fill(self) -> np.ndarray:
        """Number of keys in each class's queue: [C] int64."""
        return self._fill.copy()

    def age(self) -> np.ndarray:
        """Keys that have arrived since the oldest key of each class's queue did, itself included: [C] int64."""
        ages = np.zeros(self.num_classes, np.int64)
        for label, cut in enumerate(self._cuts):
            others = np.flatnonzero(self._log_labels[cut : self._end] != label)
            if len(others):
                ages[label] = self.arrived - self._log_arrivals[cut + others[0]]
        return ages

    @property
    def full(self) -> bool:
        """Whether every queue holds K keys."""
        return bool((self.fill() == self.size).all())

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Return the live keys and their classes in order of arrival, and the slots they lie in.

        The slots matter for the order in which a loss adds up its negatives, so for resuming bit for bit.
        """
        live = self._live()
        slots = torch.from_numpy(self._log_slots[live])
        return {
            "keys": self.keys[:, slots.to(self.keys.device)].cpu(),
            "labels": torch.from_numpy(self._log_labels[live]),
            "slots": slots,
            "arrivals": torch.from_numpy(self._log_arrivals[live]),
            "arrived": torch.tensor(self.arrived),
            "capacity": torch.tensor(self.keys.shape[1]),
        }

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        """Take over a `state_dict`; what was stored before is dropped."""
        levels, _, dim = self.keys.shape
        self.keys = self.keys.new_zeros(levels, int(state["capacity"]), dim)
        self.keys[:, state["slots"].to(self.keys.device)] = state["keys"].to(self.keys)
        self._clear()
        labels, slots = state["labels"].numpy(), state["slots"].numpy()
        self._end = len(labels)
        self._log_labels[: self._end], self._log_slots[: self._end] = labels, slots
        self._log_arrivals[: self._end], self.arrived = state["arrivals"].numpy(), int(state["arrived"])
        self._slot_labels[slots] = labels
        for label in range(self.num_classes):
            others = np.flatnonzero(labels != label)[-self.size :]
            self._fill[label] = len(others)
            self._cuts[label] = others[0] if len(others) == self.size else 0
            self._valid[label, torch.from_numpy(slots[others]).to(self.keys.device)] = True

    def _clear(self) -> None:
        """Forget all keys."""
        capacity, device = self.keys.shape[1], self.keys.device
        self._valid = torch.zeros(self.num_classes, capacity, dtype=torch.bool, device=device)
        self._slot_labels = np.full(capacity, -1, np.int64)
        # The log of arrivals is its first _end entries. Some may be of keys that nobody needs any more.
        self._log_labels, self._log_slots, self._log_arrivals = np.empty((3, 4 * self.size), np.int64)
        self._end = self.arrived = 0
        self._cuts = np.zeros(self.num_classes, np.int64)  # where in the log each queue begins
        self._fill = np.zeros(self.num_classes, np.int64)

    def _append(self, labels: np.ndarray) -> np.ndarray:
        """Log the arrival of at most K keys and return the slots they get, letting go of keys no longer needed."""
        self._make_room(len(labels))
        new = slice(self._end, self._end + len(labels))
        self._log_labels[new] = labels
        self._log_arrivals[new] = self.arrived + np.arange(len(labels))
        self._end, self.arrived = new.stop, self.arrived + len(labels)
        needed = _oldest_needed(self._cuts)
        self._fill += len(labels) - np.bincount(labels, minlength=self.num_classes)
        excess = np.maximum(self._fill - self.size, 0)
        self._fill -= excess
        self._forget(excess)
        self._release(needed, _oldest_needed(self._cuts))
        slots = self._free_slots(len(labels))
        self._log_slots[new], self._slot_labels[slots] = slots, labels
        seen_by = torch.from_numpy(np.arange(self.num_classes)[:, None] != labels).to(self._valid.device)
        self._valid[:, torch.from_numpy(slots).to(self._valid.device)] = seen_by
        return slots

    def _forget(self, excess: np.ndarray) -> None:
        """Move each class's cut past its `excess` [C] oldest keys."""
        classes = np.arange(self.num_classes)[:, None]
        width = 2 * int(excess.max()) + 1
        while True:
            window = np.minimum(self._cuts[:, None] + np.arange(width), self._end - 1)
            others = self._log_labels[window] != classes
            count = others.cumsum(1)
            if (count[:, -1] >= excess).all():
                break
            width *= 4
        passed = others & (count <= excess[:, None])
        rows, _ = np.nonzero(passed)
        slots = self._log_slots[window[passed]]
        device = self._valid.device
        self._valid[torch.from_numpy(rows).to(device), torch.from_numpy(slots).to(device)] = False
        self._cuts += np.where(excess > 0, (count < excess[:, None]).sum(1) + 1, 0)

    def _release(self, before: np.ndarray, after: np.ndarray) -> None:
        """Free the slots of each class's keys between where its oldest needed was, `before`, and is, `after`: [C]."""
        position = np.arange(before.min(), after.max())
        labels = self._log_labels[position]
        gone = position[(position >= before[labels]) & (position < after[labels])]
        self._slot_labels[self._log_slots[gone]] = -1

    def _free_slots(self, count: int) -> np.ndarray:
        """Return the first `count` free slots, making the store larger when it has too few."""
        free = np.flatnonzero(self._slot_labels < 0)
        if len(free) < count:
            self._grow(count - len(free))
            free = np.flatnonzero(self._slot_labels < 0)
        return free[:count]

    def _grow(self, missing: int) -> None:
        levels, capacity, dim = self.keys.shape
        extra = min(2 * self.size - capacity, max(missing, int(SLACK * self.size)))
        self.keys = torch.cat([self.keys, self.keys.new_zeros(levels, extra, dim)], 1)
        self._valid = torch.cat([self._valid, self._valid.new_zeros(self.num_classes, extra)], 1)
        self._slot_labels = np.concatenate([self._slot_labels, np.full(extra, -1, np.int64)])

    def _live(self) -> np.ndarray:
        """Positions in the log of the keys that some class needs."""
        position = np.arange(self._end)
        return position[position >= _oldest_needed(self._cuts)[self._log_labels[: self._end]]]

    def _make_room(self, count: int) -> None:
        """Strike keys nobody needs out of the log when it has no room for `count` more; at most 2 K stay."""
        if self._end + count <= len(self._log_labels):
            return
        live = self._live()
        self._end = len(live)
        for log in (self._log_labels, self._log_slots, self._log_arrivals):
            log[: self._end] = log[live]
        self._cuts = np.searchsorted(live, self._cuts)


def _oldest_needed(cuts: np.ndarray) -> np.ndarray:
    """For each class y the smallest cut among the other classes: [C]."""
    first, second = np.partition(cuts, 1)[:2]
    oldest = np.full(len(cuts), first)
    oldest[np.argmin(cuts)] = second
    return oldest
