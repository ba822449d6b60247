"""Stream batches from shards, in an order that is a pure function.

The order depends only on (shards, seed, epoch), not on threads, processes or interruptions of training. Steps may span
the end of an epoch, so every pair is used exactly once per epoch, and the position of step *i* in the order is known
without reading earlier steps.

The shards of an epoch are dealt to lanes, which are read side by side: a step takes equally many pairs from each. The
pairs of a step are sorted by lane and divided among the processes, so a process reads the shards of its own lanes, and
few others at the end of an epoch. All lanes take pairs of similar aspect ratio at the same time, so that the images of
a step need little padding (`segloc.data.shapes`).

A damaged pair (an image that cannot be decoded, a class that is not in the index, a box outside its image) is replaced
by the next usable pair of its shard, wrapping around at the shard's end. The other pairs keep their places, so resuming
needs no record of damaged pairs.
"""

from __future__ import annotations

import dataclasses
import logging
from collections import Counter, deque
from collections.abc import Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import numpy as np

from segloc.common.contract import Index
from segloc.data.batches import Batch, Batcher, BatchStep, Views
from segloc.data.shapes import by_shape
from segloc.data.shard_folder import Sample, ShardFolder

__all__ = ["Batch", "PairStream", "ShardFolder", "Views", "epoch_order"]

# Shards read in parallel, so that decoding does not wait for the disk or the store.
READERS = 4
# Share of a shard's time of use before which the next shard of a lane is read.
READ_AHEAD = 0.25
KEPT_ORDERS = 4  # epochs whose order is kept, for shards that are still to be read
_log = logging.getLogger(__name__)


def epoch_order(index: Index, seed: int, epoch: int, lanes: int, group: int = 1) -> np.ndarray:
    """Return the order of the pairs in an epoch.

    The shards are shuffled and dealt to the lanes; the groups of each shard are shuffled. The order takes a pair from
    each lane in turn. Lanes that are longer than others go on alone at the end.

    Args:
        index: index of the shards.
        seed: seed of the run.
        epoch: counted from 0; -1 is the pass that fills the queues.
        lanes: number of lanes.
        group: pairs of a lane in a step. Shards of equal length that are first, second, ... in their lanes have their
            groups in the same order.

    Returns:
        [n, 4] int64: lane, shard number, place of each pair in the order of `by_shape`, and its position in the shard
        if all pairs have one shape. Without groups both are its position.
    """
    rng = np.random.default_rng([seed, epoch + 1, 0x0DE])
    shards = rng.permutation(len(index.shards))
    parts = [np.empty((0, 5), np.int64)]
    for lane in range(lanes):
        turn = 0
        for number, shard in enumerate(shards[lane::lanes]):
            positions = rng.permutation(index.shards[shard].pairs)
            places = positions
            if group > 1:
                places = _shuffled_groups([seed, epoch + 1, number], len(positions), group)
            turns = np.arange(turn, turn + len(positions))
            parts.append(np.stack(np.broadcast_arrays(turns, lane, shard, places, positions), 1))
            turn += len(positions)
    pairs = np.concatenate(parts)
    return pairs[np.lexsort((pairs[:, 1], pairs[:, 0])), 1:]


def _shuffled_groups(seed: list[int], count: int, group: int) -> np.ndarray:
    """Return 0 .. count - 1 in whole groups of consecutive numbers, in random order; the rest comes last."""
    whole = count // group
    order = np.random.default_rng(seed).permutation(whole)[:, None] * group + np.arange(group)
    return np.append(order, np.arange(whole * group, count))


class Share(NamedTuple):
    """The pairs of a step that one process reads.

    Attributes:
        pairs: [n, 3] int64, epoch, shard number and place in the shard's order, in order of use.
        finished: (epoch, shard number) of the shards that no process needs after the step.
    """

    pairs: np.ndarray
    finished: list[tuple[int, int]]


@dataclasses.dataclass(eq=False)
class PairStream:
    """Stream of batches, decoded ahead by threads (cv2 releases the GIL while it decodes).

    Attributes:
        folder: the shards.
        batch: pairs per batch.
        image_size: side of the square that larger images are shrunk to fit, pixels.
        seed: seed of the run.
        mix_shards: largest number of lanes; see `lanes`.
        threads: decoding threads.
        batches_per_step: over all processes.
        skipped: number of damaged pairs replaced in the batches so far; the first is logged with its reason.
    """

    folder: ShardFolder
    batch: int
    image_size: int
    seed: int
    mix_shards: int
    threads: int
    batches_per_step: int = 1
    skipped: int = dataclasses.field(default=0, init=False)
    _orders: dict[int, np.ndarray] = dataclasses.field(default_factory=dict, init=False)

    @property
    def step(self) -> int:
        """Pairs per step, over all processes."""
        return self.batch * self.batches_per_step

    @property
    def lanes(self) -> int:
        """Number of lanes: the largest that divides the pairs of a step or is a multiple of them.

        Then a process keeps its lanes. If it would be less than half of `mix_shards`, mixing counts more, and it is
        `mix_shards`.
        """
        numbers = range(self.mix_shards, self.mix_shards // 2, -1)
        return next((n for n in numbers if self.step % n == 0 or n % self.step == 0), self.mix_shards)

    @property
    def group(self) -> int:
        """Pairs of a lane in a step, which are of similar shape; 1 if lanes have no equal parts in a step."""
        return max(1, self.step // self.lanes) if self.step % self.lanes == 0 else 1

    def batches(self, start: int = 0, epoch: int = 0, rank: int = 0, world: int = 1) -> Generator[Batch, None, None]:
        """Yield the batches of a process endlessly, from step `start`, counted from the beginning of `epoch`.

        Neither the pairs of a step nor their order depend on the number of processes; process `rank` gets part `rank`
        of `world` equal parts of each step.

        Image memory is reused when a batch is no longer referenced. Drop batches early for speed.

        Args:
            start: number of the first step.
            epoch: see `epoch_order`.
            rank: number of this process.
            world: number of processes, a divisor of `batches_per_step`.

        Raises:
            InputError: a shard is missing, truncated or differs from the index, or all pairs of a shard are damaged.
        """
        assert self.batches_per_step % world == 0
        batcher = Batcher(self.image_size)
        readers, decoders = ThreadPoolExecutor(READERS), ThreadPoolExecutor(self.threads)
        parts = self._parts(self._steps(readers, self._shares(start, epoch, rank, world)))
        ahead: deque[Future[tuple[Batch, list[str]]]] = deque()
        try:
            while True:
                # A step takes all its batches at once.
                while len(ahead) <= max(self.threads, self.batches_per_step // world):
                    ahead.append(decoders.submit(batcher.make, *next(parts)))
                batch, damaged = ahead.popleft().result()
                if damaged and not self.skipped:
                    _log.warning("%s: skipping damaged pairs; the first: %s", self.folder.store, damaged[0])
                self.skipped += len(damaged)
                yield batch
                del batch  # so that its memory is free while the next one is decoded
        finally:
            for pool in (readers, decoders):
                pool.shutdown(cancel_futures=True)

    def _parts(self, steps: Iterator[BatchStep]) -> Iterator[tuple[BatchStep, slice]]:
        """Yield each batch as a slice of the step it belongs to."""
        for step in steps:
            for first in range(0, len(step.places), self.batch):
                yield step, slice(first, first + self.batch)

    def _steps(self, readers: ThreadPoolExecutor, shares: Iterator[Share]) -> Iterator[BatchStep]:
        """Yield the pairs of this process in each step; read shards a little before their first use."""
        shards = self.folder.index.shards
        loading: dict[tuple[int, int], Future[list[Sample]]] = {}
        planned: deque[Share] = deque()
        a_round = self.lanes * max(shard.pairs for shard in shards)  # pairs until every lane needs its next shard
        while True:
            while len(planned) * self.step <= READ_AHEAD * a_round:
                planned.append(next(shares))
                for epoch, shard in dict.fromkeys(map(tuple, planned[-1].pairs[:, :2].tolist())):
                    if (epoch, shard) not in loading:
                        loading[epoch, shard] = readers.submit(self._load, epoch, shard)
            pairs, finished = planned.popleft()
            places = [(loading[epoch, shard].result(), position) for epoch, shard, position in pairs.tolist()]
            yield BatchStep(places, self.folder.index.classes)
            for name in finished:
                loading.pop(name, None)

    def _load(self, epoch: int, shard: int) -> list[Sample]:
        """Read a shard, its pairs in the order of the places of `epoch_order`."""
        samples, index = self.folder.load(self.folder.index.shards[shard]), self.folder.index
        if self.group == 1:
            return samples
        order = self._epoch(epoch)
        places, positions = order[order[:, 2] == shard, 3:].T
        ranks = np.empty(len(samples), np.int64)
        ranks[positions] = places
        return by_shape(samples, index.classes, self.image_size, self.group, ranks)

    def _shares(self, first: int, epoch: int, rank: int, world: int) -> Iterator[Share]:
        """Yield the share of process `rank` in every step from step `first` on."""
        index, size, part = self.folder.index, self.step, self.step // world
        epochs, offset = divmod(first * size, index.num_pairs)
        coming = self._epoch(epoch := epoch + epochs)[offset:]
        left = _count(coming)
        while True:
            while len(coming) < size:
                following = self._epoch(epoch := epoch + 1)
                coming = np.concatenate([coming, following])
                left.update(_count(following))
            step, coming = coming[:size], coming[size:]
            left.subtract(used := _count(step))
            mine = step[np.argsort(step[:, 1], kind="stable")][rank * part : (rank + 1) * part]
            yield Share(mine[:, [0, 2, 3]], [name for name in used if not left[name]])

    def _epoch(self, epoch: int) -> np.ndarray:
        """Return [n, 5] int64: the epoch, and the columns of `epoch_order`."""
        order = self._orders.get(epoch)
        if order is None:
            order = epoch_order(self.folder.index, self.seed, epoch, self.lanes, self.group)
            order = self._orders[epoch] = np.insert(order, 0, epoch, axis=1)
            self._orders.pop(epoch - KEPT_ORDERS, None)
        return order


def _count(pairs: np.ndarray) -> Counter[tuple[int, int]]:
    """Count the pairs of each (epoch, shard)."""
    names, counts = np.unique(pairs[:, [0, 2]], axis=0, return_counts=True)
    return Counter(dict(zip(map(tuple, names.tolist()), counts.tolist(), strict=True)))
