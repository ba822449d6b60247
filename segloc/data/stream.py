"""Stream batches from shards, in an order that is a pure function.

The order depends only on (index, seed, epoch), not on threads, processes or interruptions of training. Batches may
span the end of an epoch, so every pair is used exactly once per epoch, and the position of batch *i* in the order is
known without reading earlier batches.

A damaged pair (an image that cannot be decoded, a class that is not in the index, a box outside its image) is replaced
by the next usable pair of its shuffle group, wrapping around at the group's end. The other pairs keep their places, so
resuming needs no record of damaged pairs.
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
from segloc.data.batches import Batch, Batcher, BatchStep, ImageGroup, Views
from segloc.data.shard_folder import Sample, ShardFolder

__all__ = ["Batch", "PairStream", "ShardFolder", "Views", "epoch_order"]

# Shards read in parallel, so that decoding does not wait for the disk or the store.
READERS = 4
_log = logging.getLogger(__name__)


def epoch_order(index: Index, seed: int, epoch: int, mix_shards: int) -> list[tuple[list[int], np.ndarray]]:
    """Return the order of the pairs in an epoch.

    The shards are shuffled and divided into groups of `mix_shards`; the pairs of a group are shuffled together. So a
    reader holds one group at a time and reads every shard once.

    Args:
        index: index of the shards.
        seed: seed of the run.
        epoch: counted from 0; -1 is the pass that fills the queues.
        mix_shards: shards per group.

    Returns:
        Groups of (shard numbers, pairs); pairs is [n, 2] int: shard number and position in the shard.
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
    """Stream of batches, decoded ahead by threads (cv2 releases the GIL while it decodes).

    Attributes:
        folder: the shards.
        batch: pairs per batch.
        image_size: side of the square that larger images are shrunk to fit, pixels.
        seed: seed of the run.
        mix_shards: see `epoch_order`.
        threads: decoding threads.
        padded_together: number of batches, over all processes, that are padded to one size: the batches of a step.
        skipped: number of damaged pairs replaced in the batches so far; the first is logged with its reason.
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
        """Yield batches endlessly, from batch number `start`, counted from the beginning of `epoch`.

        Process `rank` yields the batches whose number modulo `world` is `rank`. Each process reads all shards but
        decodes only its own pairs, so the order and the resume position do not depend on the number of processes.

        Image memory is reused when a batch is no longer referenced. Drop batches early for speed.

        Args:
            start: number of the first batch over all processes, a multiple of `padded_together`.
            epoch: see `epoch_order`.
            rank: number of this process.
            world: number of processes.

        Raises:
            InputError: a shard is missing, truncated or differs from the index, or all pairs of a group of shards are
                damaged.
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
                    _log.warning("%s: skipping damaged pairs; the first: %s", self.folder.store, damaged[0])
                self.skipped += len(damaged)
                yield batch
                del batch  # so that its memory is free while the next one is decoded
        finally:
            for pool in (readers, decoders):
                pool.shutdown(cancel_futures=True)

    def _parts(self, places: Iterator[tuple[ImageGroup, int]]) -> Iterator[tuple[BatchStep, slice]]:
        """Yield each batch as a slice of the step it belongs to."""
        while True:
            step = BatchStep(
                list(itertools.islice(places, self.batch * self.padded_together)), self.folder.index.classes
            )
            for first in range(0, len(step.places), self.batch):
                yield step, slice(first, first + self.batch)

    def _places(self, readers: ThreadPoolExecutor, epoch: int, offset: int) -> Iterator[tuple[ImageGroup, int]]:
        """Yield places from `offset` of `epoch` on; read the next group while one is in use."""
        groups = self._loading(readers, epoch, offset)
        following = next(groups)
        while True:
            order, first, shards = following
            group = ImageGroup(order, {shard: future.result() for shard, future in shards.items()})
            following = next(groups)
            for position in range(first, len(order)):
                yield group, position

    def _loading(
        self, readers: ThreadPoolExecutor, epoch: int, offset: int
    ) -> Iterator[tuple[np.ndarray, int, dict[int, Future[list[Sample]]]]]:
        """Start reading each group; yield its order (`epoch_order`), the first index wanted, and its shards."""
        load, shards = self.folder.load, self.folder.index.shards
        while True:
            for numbers, order in epoch_order(self.folder.index, self.seed, epoch, self.mix_shards):
                if offset < len(order):
                    yield order, offset, {number: readers.submit(load, shards[number]) for number in numbers}
                offset = max(offset - len(order), 0)
            epoch += 1
