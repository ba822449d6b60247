"""The pair stream against decoding alone and plain webdataset: ``python -m benchmarks.loader --help``.

The lower bound is to decode both images of every pair from bytes in memory, in one thread. The peer is a simple
`webdataset.WebDataset` that decodes with OpenCV, pads to one size and stacks, in torch's `DataLoader` with worker
processes; it checks no digest, class or box. A variant with n threads or workers has n cores, including the consumer,
which drops each batch. In each round the variants run in random order.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import itertools
import os
import random
import tarfile
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
import webdataset
from torch.nn.functional import pad
from torch.utils.data import DataLoader

from benchmarks.common import arguments, ratio, save
from segloc.common.contract import INDEX_NAME, SOURCES_NAME, Index, Pair, Shard, Sources, View, pair_key, shard_name
from segloc.common.masks import encode_rle
from segloc.data.shard_folder import KEY, QUERY
from segloc.data.stream import PairStream, ShardFolder
from segloc.models.backbone import padded_size

BATCH = 16
WARM_UP = 8  # batches
WIDTH = 500
HEIGHTS = {"one size": (375, 376), "varied height": (250, 500)}


def picture(rng: np.random.Generator, height: int) -> bytes:
    """Encode smooth blobs with noise: about 90 KB at 375 rows, the size of a stored view."""
    soft = cv2.resize(rng.integers(60, 256, (height // 8, WIDTH // 8, 3), np.uint8), (WIDTH, height))
    grain = rng.integers(0, 256, (height, WIDTH, 3), np.uint8)
    mixed = cv2.addWeighted(soft, 0.91, grain, 0.09, 0)
    return cv2.imencode(".jpg", mixed, [cv2.IMWRITE_JPEG_QUALITY, 95])[1].tobytes()


def view(size: tuple[int, int]) -> View:
    """Describe a view of this (width, height) whose item is a disc."""
    disc = cv2.circle(np.zeros((size[1], size[0]), np.uint8), (49, 49), 40, 1, -1).astype(bool)
    about = ((9, 9, 90, 90), size, "b", "s", (0, 0, *size), "alpha", 0.5, 0.0, 1.0, False, False)
    return View(*about, mask=encode_rle(disc), on_matter=0.5)


def write_shards(folder: Path, heights: tuple[int, int], shards: int, per_shard: int) -> float:
    """Write shards of random pictures of these heights (half-open); return the mean size of a pair in bytes."""
    rng = np.random.default_rng(0)
    infos = []
    for number in range(shards):
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w") as tar:
            for pair in range(number * per_shard, (number + 1) * per_shard):
                sizes = [(WIDTH, int(rng.integers(*heights))) for _ in range(2)]
                views = [view(size) for size in sizes]
                files = {QUERY: picture(rng, sizes[0][1]), KEY: picture(rng, sizes[1][1])}
                files["json"] = Pair(pair, pair % 2, "ab"[pair % 2], *views).to_json()
                for name, data in files.items():
                    member = tarfile.TarInfo(f"{pair_key(pair)}.{name}")
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))
        data = buffer.getvalue()
        (folder / shard_name(number)).write_bytes(data)
        digest = hashlib.sha256(data).hexdigest()
        infos.append(Shard(shard_name(number), per_shard, len(data), digest, (per_shard // 2, per_shard // 2)))
    index = Index(("a", "b"), 0, {}, {}, tuple(infos), Sources(SOURCES_NAME, "", 0))
    (folder / INDEX_NAME).write_bytes(index.to_json())
    return sum(info.bytes for info in infos) / (shards * per_shard)


def decode_only(images: list[np.ndarray]) -> float:
    """Return the seconds to decode these images in this thread."""
    start = time.perf_counter()
    for data in images:
        cv2.imdecode(data, cv2.IMREAD_COLOR_RGB)
    return time.perf_counter() - start


def consume(batches: Iterable[Any], count: int) -> float:
    """Return the seconds for `count` batches after `WARM_UP` batches, which start workers and fill buffers."""
    stream = iter(batches)
    deque(itertools.islice(stream, WARM_UP), maxlen=0)
    start = time.perf_counter()
    deque(itertools.islice(stream, count), maxlen=0)
    return time.perf_counter() - start


def ours(folder: ShardFolder, count: int, threads: int) -> float:
    """Time the stream; the shards' digests are checked before, as in all epochs but the first."""
    stream = PairStream(folder, BATCH, WIDTH, seed=0, mix_shards=4, threads=threads)
    batches = stream.batches()
    seconds = consume(batches, count)
    batches.close()  # type: ignore[attr-defined]
    return seconds


def decode(data: bytes) -> np.ndarray:
    """Decode an image with OpenCV, as users of webdataset do."""
    return cv2.cvtColor(cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)


def collate(samples: list[tuple[np.ndarray, np.ndarray, dict[str, Any]]]) -> list[torch.Tensor]:
    """Pad with white to one size and stack."""
    views = []
    for side in range(2):
        images = [torch.from_numpy(sample[side]).permute(2, 0, 1) for sample in samples]
        height, width = padded_size(*((image.shape[1], image.shape[2]) for image in images))
        pads = [(0, width - image.shape[2], 0, height - image.shape[1]) for image in images]
        views.append(torch.stack([pad(image, edges, value=255) for image, edges in zip(images, pads, strict=True)]))
    return [*views, torch.tensor([sample[2]["class_id"] for sample in samples])]


def plain(folder: Path, count: int, workers: int) -> float:
    """Time plain webdataset with worker processes."""
    urls = [str(path) for path in sorted(folder.glob("*.tar"))]
    data = (
        webdataset.WebDataset(urls, resampled=True, shardshuffle=False, nodesplitter=webdataset.split_by_node)
        .shuffle(500)
        .decode(webdataset.handle_extension("jpg", decode))
        .to_tuple(QUERY, KEY, "json")
        .batched(BATCH, collation_fn=collate)
    )
    return consume(DataLoader(data, batch_size=None, num_workers=workers), count)


def on_cores(count: int, task: Callable[[], float]) -> float:
    """Run a task on `count` cores."""
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(cores)[:count])
    try:
        return task()
    finally:
        os.sched_setaffinity(0, cores)


def measure(folder: Path, label: str, pairs: int, rounds: int) -> dict[str, Any]:
    """Measure one set of shards with `pairs` pairs per variant and round."""
    heights = HEIGHTS[label]
    size = write_shards(folder, heights, 8, max(BATCH, pairs // 8))
    shards = ShardFolder.open(str(folder))
    loaded = [sample for shard in shards.index.shards for sample in shards.load(shard)]
    images = [sample.files[name] for sample in loaded for name in (QUERY, KEY)]
    count = pairs // BATCH
    variants: dict[str, tuple[int, Callable[[], float]]] = {"decode": (1, partial(decode_only, images))}
    for n in (1, 2):
        variants[f"ours_{n}"] = (n, partial(ours, shards, count, n))
        variants[f"webdataset_{n}"] = (n, partial(plain, folder, count, n))
    done = {name: len(loaded) if name == "decode" else count * BATCH for name in variants}
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    order = list(variants)
    for _ in range(rounds):
        random.shuffle(order)
        for name in order:
            seconds[name].append(on_cores(*variants[name]) / done[name])
    row: dict[str, Any] = {"images": label, "kb_per_pair": round(size / 1000), "batch": BATCH, "pairs": pairs}
    row |= {"rounds": rounds, "decode_pairs_per_s": round(1 / sorted(seconds["decode"])[rounds // 2])}
    for n in (1, 2):
        row[f"ours_{n}/decode"] = round(ratio(seconds, f"ours_{n}", "decode"), 3)
        row[f"webdataset_{n}/decode"] = round(ratio(seconds, f"webdataset_{n}", "decode"), 3)
        row[f"webdataset_{n}/ours_{n}"] = round(ratio(seconds, f"webdataset_{n}", f"ours_{n}"), 2)
    return row


def main() -> None:
    """Run the benchmark."""
    options = argparse.ArgumentParser(prog="python -m benchmarks.loader", description=__doc__.splitlines()[0])
    options.add_argument("--pairs", type=int, default=1600, help="pairs per variant and round (default: 1600)")
    options.add_argument("--rounds", type=int, default=7, help="default: 7")
    args = arguments(options)
    cv2.setNumThreads(0)
    rows = []
    for label in HEIGHTS:
        with tempfile.TemporaryDirectory() as temporary:
            rows.append(measure(Path(temporary), label, args.pairs, args.rounds))
        print(rows[-1])
    save("loader", rows)


if __name__ == "__main__":
    main()
