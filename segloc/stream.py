"""Shards to batches: which pair comes when is a pure function, everything else follows it.

The order depends on (index, seed, epoch) alone, never on threads or on how often training was stopped. Batches run on
over the end of an epoch, so every pair is used exactly once an epoch and the batch at iteration *i* is known without
having read the ones before it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import itertools
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import cv2
import fsspec
import numpy as np
import torch
from webdataset.tariterators import group_by_keys, tar_file_expander

from segloc.contract import INDEX_NAME, Index, InputError, Pair, Shard, pair_key, read_index
from segloc.models.backbone import WHITE

# Images are padded to multiples of this, the coarsest stride the ResNet itself has.
MULTIPLE = 32


@dataclasses.dataclass(frozen=True)
class Views:
    """One side (queries or keys) of a batch.

    Attributes:
        images: [N, 3, H, W] uint8 RGB, padded with white at the right and bottom; H and W multiples of 32.
        boxes: [N, 4] float32, x0 y0 x1 y1 in pixels of `images`.
    """

    images: torch.Tensor
    boxes: torch.Tensor


@dataclasses.dataclass(frozen=True)
class Batch:
    """Positive pairs.

    Attributes:
        query: the query views.
        key: the key views.
        labels: [N] int64 class ids.
        pairs: [N] int64 pair numbers.
    """

    query: Views
    key: Views
    labels: torch.Tensor
    pairs: torch.Tensor

    def __len__(self) -> int:
        return len(self.labels)


@dataclasses.dataclass(frozen=True)
class Sample:
    """A pair as stored: two encoded JPEG files and their description."""

    query: bytes
    key: bytes
    pair: Pair


@dataclasses.dataclass(frozen=True)
class ShardFolder:
    """A finished set of shards, local or at any URL fsspec opens.

    Attributes:
        base: folder or URL without trailing slash.
        index: its index.
    """

    base: str
    index: Index

    @classmethod
    def open(cls, base: str) -> ShardFolder:
        """Read the index at `base`.

        Raises:
            InputError: there is no valid one, or it lists no pairs.
        """
        base = str(base).rstrip("/")
        if "://" in base:
            source = f"{base}/{INDEX_NAME}"
            index = Index.from_json(_read(source), source)
        else:
            index = read_index(base)
        if not index.num_pairs:
            raise InputError(f"{base}: the index lists no pairs")
        return cls(base, index)

    def load(self, shard: Shard) -> list[Sample]:
        """Read a shard whole, its pairs in order.

        Raises:
            InputError: it is missing or is not the file the index describes.
        """
        source = f"{self.base}/{shard.name}"
        data = _read(source)
        if len(data) != shard.bytes:
            raise InputError(f"{source}: {len(data)} bytes, the index says {shard.bytes}; is it cut short?")
        if hashlib.sha256(data).hexdigest() != shard.sha256:
            raise InputError(f"{source}: not the file the index describes (another sha256)")
        groups = group_by_keys(tar_file_expander([{"url": source, "stream": io.BytesIO(data)}]))
        samples = [Sample(g["query.jpg"], g["key.jpg"], Pair.from_json(g["json"])) for g in groups]
        if len(samples) != shard.pairs:
            raise InputError(f"{source}: {len(samples)} pairs, the index says {shard.pairs}")
        return samples


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


class PairStream:
    """Batches of pairs, decoded ahead by threads (cv2 releases the interpreter lock while it decodes).

    Args:
        folder: where the pairs are.
        batch: pairs per batch.
        image_size: images larger than this square are shrunk to fit it, pixels.
        seed: of the run.
        mix_shards: see `epoch_order`.
        threads: decoding threads.
    """

    def __init__(
        self, folder: ShardFolder, batch: int, image_size: int, seed: int, mix_shards: int, threads: int
    ) -> None:
        self.folder = folder
        self.batch = batch
        self.image_size = image_size
        self.seed = seed
        self.mix_shards = mix_shards
        self.threads = threads

    def batches(self, start: int = 0, epoch: int = 0, rank: int = 0, world: int = 1) -> Iterator[Batch]:
        """Iterate without end over the batches from number `start`, counted from the beginning of `epoch`.

        Raises:
            InputError: a shard or an image in it cannot be read.
        """
        pairs = self.folder.index.num_pairs
        skipped_epochs, offset = divmod(start * self.batch, pairs)
        with ThreadPoolExecutor(self.threads) as pool:
            samples = self._samples(pool, epoch + skipped_epochs, offset)
            ahead: deque[Future[Batch]] = deque()
            numbers = itertools.count(start)
            try:
                while True:
                    while len(ahead) <= self.threads:
                        chunk = [next(samples) for _ in range(self.batch)]
                        if next(numbers) % world == rank:
                            ahead.append(pool.submit(make_batch, chunk, self.image_size))
                    yield ahead.popleft().result()
            finally:
                for future in ahead:
                    future.cancel()

    def _samples(self, pool: ThreadPoolExecutor, epoch: int, offset: int) -> Iterator[Sample]:
        """Samples from position `offset` of `epoch` on; the next group is loaded while one is used."""
        groups = self._groups(epoch, offset)
        group = next(groups)
        loading = self._load(pool, group[0])
        while True:
            loaded = {shard: future.result() for shard, future in loading.items()}
            following = next(groups)
            loading = self._load(pool, following[0])
            for shard, position in group[1]:
                yield loaded[shard][position]
            group = following

    def _groups(self, epoch: int, offset: int) -> Iterator[tuple[list[int], np.ndarray]]:
        while True:
            for shards, pairs in epoch_order(self.folder.index, self.seed, epoch, self.mix_shards):
                if offset < len(pairs):
                    yield shards, pairs[offset:]
                offset = max(offset - len(pairs), 0)
            epoch += 1

    def _load(self, pool: ThreadPoolExecutor, shards: list[int]) -> dict[int, Future[list[Sample]]]:
        return {shard: pool.submit(self.folder.load, self.folder.index.shards[shard]) for shard in shards}


def make_batch(samples: list[Sample], image_size: int) -> Batch:
    """Decode samples and stack them."""
    query = _views([_decode(s.query, s.pair.query.box, s.pair.pair, image_size) for s in samples])
    key = _views([_decode(s.key, s.pair.key.box, s.pair.pair, image_size) for s in samples])
    labels = torch.tensor([sample.pair.class_id for sample in samples])
    return Batch(query, key, labels, torch.tensor([sample.pair.pair for sample in samples]))


def stack_images(images: list[np.ndarray]) -> torch.Tensor:
    """Stack RGB images [h, w, 3] uint8 into [N, 3, H, W] (channels-last memory), padded with white to multiples of 32.

    White is what the empty belt looks like; any other padding would be something to detect.
    """
    height = max(-(-image.shape[0] // MULTIPLE) for image in images) * MULTIPLE
    width = max(-(-image.shape[1] // MULTIPLE) for image in images) * MULTIPLE
    batch = np.full((len(images), height, width, 3), WHITE, np.uint8)
    for row, image in zip(batch, images, strict=True):
        row[: image.shape[0], : image.shape[1]] = image
    return torch.from_numpy(batch).permute(0, 3, 1, 2)


def _views(decoded: list[tuple[np.ndarray, np.ndarray]]) -> Views:
    images, boxes = zip(*decoded, strict=True)
    return Views(stack_images(list(images)), torch.from_numpy(np.stack(boxes)))


def _decode(data: bytes, box: tuple[int, ...], pair: int, image_size: int) -> tuple[np.ndarray, np.ndarray]:
    image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    if image is None:
        raise InputError(f"pair {pair_key(pair)}: its image cannot be decoded")
    image = cv2.cvtColor(image, cv2.COLOR_BGR2RGB)
    height, width = image.shape[:2]
    scaled = np.array(box, np.float32)
    shrink = image_size / max(height, width)
    if shrink < 1:
        size = (max(1, round(width * shrink)), max(1, round(height * shrink)))
        image = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
        scaled *= np.array([size[0] / width, size[1] / height] * 2, np.float32)
    return image, scaled


def _read(source: str) -> bytes:
    try:
        with fsspec.open(source, "rb") as file:
            return file.read()
    except Exception as error:  # every store has exceptions of its own
        raise InputError(
            f"{source}: cannot be read ({' '.join(str(error).split()) or type(error).__name__})"
        ) from error
