"""Shards to batches: which pair comes when is a pure function, everything else follows it.

The order depends on (index, seed, epoch) alone, never on threads, processes or on how often training was stopped.
Batches run on over the end of an epoch, so every pair is used exactly once an epoch and the batch at iteration *i* is
known without having read the ones before it.

A damaged pair (an image that cannot be decoded, a class the index does not know, a box outside its image) keeps its
place in the order; what is drawn there is the next usable pair of the group of shards that are mixed with each other,
round to the group's beginning. So no other pair moves, and where training resumes is still plain arithmetic.
"""

from __future__ import annotations

import dataclasses
import itertools
import logging
from collections import deque
from collections.abc import Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np

from segloc.common.contract import Index
from segloc.data.batches import Batch, Batcher, Group, Step, Views
from segloc.data.shard_folder import Sample, ShardFolder

__all__ = ["Batch", "PairStream", "ShardFolder", "Views", "epoch_order"]

# Shards that are read at the same time: reading is waiting, for a disk or a store, and must not keep decoding waiting.
READERS = 4
_log = logging.getLogger(__name__)


def epoch_order(index: Index, seed: int, epoch: int, mix_shards: int) -> list[tuple[list[int], np.ndarray]]:
    """Decide the order of an epoch's pairs.

    The shards are shuffled and cut into groups of `mix_shards`; the pairs of a group are shuffled together. Whoever
    reads along holds one group at a time and reads every shard once, from start to end.

    Args:
        index: the shards.
        seed: of the run.
        epoch: counted from 0; -1 is the pass that fills the queues.
        mix_shards: shards per group.

    Returns:
        Groups of (shard numbers, pairs), where pairs is [n, 2]: shard number and position in it.
    """
    rng = np.random.default_rng([seed, epoch + 1, 0x0DE])
    shards = rng.permutation(len(index.shards))
    groups = []
    for start in range(0, len(shards), mix_shards):
        group = shards[start : start + mix_shards].tolist()
        pairs = np.concatenate(
            [np.stack([np.full(n, s), np.arange(n)], 1) for s in group if (n := index.shards[s].pairs)]
            or [np.empty((0, 2), np.int64)]
        )
        groups.append((group, rng.permutation(pairs)))
    return groups


@dataclasses.dataclass(eq=False)
class PairStream:
    """Batches of pairs, decoded ahead by threads (cv2 releases the interpreter lock while it decodes).

    Attributes:
        folder: where the pairs are.
        batch: pairs per batch.
        image_size: images larger than this square are shrunk to fit it, pixels.
        seed: of the run.
        mix_shards: see `epoch_order`.
        threads: decoding threads.
        padded_together: batches, counted over all processes, whose images are padded to one size: those of a step.
        skipped: how often a damaged pair was replaced in the batches handed out; the first is logged, with its reason.
    """

    folder: ShardFolder
    batch: int
    image_size: int
    seed: int
    mix_shards: int
    threads: int
    padded_together: int = 1
    skipped: int = dataclasses.field(default=0, init=False)

    def batches(self, start: int = 0, epoch: int = 0, rank: int = 0, world: int = 1) -> Generator[Batch, None, None]:
        """Iterate without end over the batches from number `start`, counted from the beginning of `epoch`.

        Of several processes that share the batches, each takes those whose number, divided by `world`, leaves its
        `rank`. Each reads all shards and decodes its own pairs only, so that the order, and where a run resumes, do
        not depend on how many processes there are.

        The images of a batch lie in memory that serves for a later one as soon as nothing refers to the batch any
        more: keep it as long as you like, and let go of it soon, for speed.

        Args:
            start: number of the first batch over all processes, a multiple of `padded_together`.
            epoch: see `epoch_order`.
            rank: number of this process.
            world: number of processes.

        Raises:
            InputError: a shard is missing, cut short or not the file the index describes, or all pairs of a group of
                shards are damaged.
        """
        assert start % self.padded_together == 0
        batcher = Batcher(self.image_size)
        epochs, offset = divmod(start * self.batch, self.folder.index.num_pairs)
        readers, decoders = ThreadPoolExecutor(READERS), ThreadPoolExecutor(self.threads)
        parts = self._parts(self._places(readers, epoch + epochs, offset))
        ahead: deque[Future[tuple[Batch, list[str]]]] = deque()
        numbers = itertools.count(start)
        try:
            while True:
                while len(ahead) <= self.threads:
                    step, part = next(parts)
                    if next(numbers) % world == rank:
                        ahead.append(decoders.submit(batcher.make, step, part))
                batch, damaged = ahead.popleft().result()
                if damaged and not self.skipped:
                    _log.warning("%s: a pair is left out, and perhaps more: %s", self.folder.store, damaged[0])
                self.skipped += len(damaged)
                yield batch
                del batch  # or it would still be held while its successor is awaited
        finally:
            for pool in (readers, decoders):
                pool.shutdown(cancel_futures=True)

    def _parts(self, places: Iterator[tuple[Group, int]]) -> Iterator[tuple[Step, slice]]:
        """Each batch as a part of the batches that are padded together."""
        while True:
            step = Step(list(itertools.islice(places, self.batch * self.padded_together)), self.folder.index.classes)
            for first in range(0, len(step.places), self.batch):
                yield step, slice(first, first + self.batch)

    def _places(self, readers: ThreadPoolExecutor, epoch: int, offset: int) -> Iterator[tuple[Group, int]]:
        """Places from `offset` of `epoch` on; the next group is read while one is used."""
        groups = self._loading(readers, epoch, offset)
        following = next(groups)
        while True:
            order, first, shards = following
            group = Group(order, {shard: future.result() for shard, future in shards.items()})
            following = next(groups)
            for position in range(first, len(order)):
                yield group, position

    def _loading(
        self, readers: ThreadPoolExecutor, epoch: int, offset: int
    ) -> Iterator[tuple[np.ndarray, int, dict[int, Future[list[Sample]]]]]:
        """Start to read group after group: the order of its pairs (`epoch_order`), the first wanted, its shards."""
        load, shards = self.folder.load, self.folder.index.shards
        while True:
            for numbers, order in epoch_order(self.folder.index, self.seed, epoch, self.mix_shards):
                if offset < len(order):
                    yield order, offset, {number: readers.submit(load, shards[number]) for number in numbers}
                offset = max(offset - len(order), 0)
            epoch += 1
