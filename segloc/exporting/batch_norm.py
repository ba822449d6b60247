"""Measure statistics on shards, insert batch norm, and compare the outputs before and after.

Images are processed one at a time, in the order of a pretraining run with the same seed, so results do not depend on
batches. The pairs after the measured ones are used to compare the outputs.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
from collections.abc import Iterator
from typing import Any

import torch
from tqdm import tqdm

from segloc.common.errors import InputError
from segloc.common.skips import Skips
from segloc.data.stream import PairStream, ShardFolder
from segloc.exporting.insert_bn import insert, measure_moments
from segloc.models.backbone import SegLocBackbone, normalize
from segloc.models.initial_weights import StoredBackbone
from segloc.settings.fields import MAX_IMAGE_SIZE_PX
from segloc.settings.pretraining import DataConfig
from segloc.training.processes import ALONE

# Pairs to compare the outputs on; at most half of the pairs in the shards.
COMPARED = 8


@dataclasses.dataclass(frozen=True)
class Measuring:
    """How to measure the statistics of batch norm.

    Attributes:
        shards: folder or URL of finished shards.
        views: number of images to measure.
        seed: seed of the order of the pairs.
        image_size: side of the square that larger images are shrunk to fit, pixels.
    """

    shards: str
    views: int = 512
    seed: int = 0
    image_size: int = 500

    def __post_init__(self) -> None:
        if min(self.views, self.image_size) < 1 or self.image_size > MAX_IMAGE_SIZE_PX or self.seed < 0:
            raise InputError(
                f"--views must be at least 1, --image-size from 1 to {MAX_IMAGE_SIZE_PX}, and --seed at least 0"
            )


def insert_batch_norm(stored: StoredBackbone, measuring: Measuring) -> tuple[StoredBackbone, dict[str, Any]]:
    """Insert batch norm into a norm-free backbone without changing its outputs.

    Args:
        stored: the backbone.
        measuring: the images to measure statistics on.

    Returns:
        The backbone with its new state dict and norm, and the entries for the report.

    Raises:
        InputError: the weights already have a norm, or shards or weights are invalid.
    """
    if (norm := stored.settings["norm"]) != "none":
        raise InputError(
            f"{stored.source}: has norm={norm}; batch norm can only be inserted into weights with norm=none"
        )
    folder = ShardFolder.open(measuring.shards)
    if folder.index.num_pairs < 2:
        raise InputError(
            f"{measuring.shards}: contains one pair; use shards with at least two, one to measure and one to compare"
        )
    device = ALONE.device()
    before = stored.build().to(device)
    compared = min(COMPARED, folder.index.num_pairs // 2)
    pairs = min(-(-measuring.views // 2), folder.index.num_pairs - compared)
    data = DataConfig()
    stream = PairStream(folder, 1, measuring.image_size, measuring.seed, data.mix_shards, data.threads)
    views = _views(stream, pairs + compared, device)
    moments = measure_moments(before, itertools.islice(views, 2 * pairs))
    for name, found in moments.items():
        if not torch.isfinite(found.variance).all():
            raise InputError(
                f"{stored.source}: the input of {name} is not finite; the training of these weights diverged"
            )
    settings, tensors = {**stored.settings, "norm": "bn"}, insert(before, moments)
    changed = dataclasses.replace(stored, source="inserted batch norm", settings=settings, tensors=tensors)
    after = changed.build().to(device)
    report = {
        "layers": {name: len(found.mean) for name, found in moments.items()},
        "constant_channels": sum(int((found.variance == 0).sum()) for found in moments.values()),
        "shards": folder.index.digest,
        "seed": measuring.seed,
        "image_size": measuring.image_size,
        "measured_views": 2 * pairs,
        "compared_views": 2 * compared,
        **_differences(before, after, views),
    }
    skips = Skips("drawn pairs", pairs + compared + stream.skipped)
    if stream.skipped:
        skips.add("damaged", "replaced by others", stream.skipped)
    report["skipped"] = skips.to_json()
    return dataclasses.replace(changed, tensors=after.cpu().state_dict()), report


def _views(stream: PairStream, pairs: int, device: torch.device) -> Iterator[torch.Tensor]:
    """Yield normalised images [1, 3, H, W] of the first `pairs` pairs of the stream: query, key, query, ..."""
    with contextlib.closing(stream.batches()) as batches:
        for batch in tqdm(itertools.islice(batches, pairs), total=pairs, desc="batch norm", unit="pair"):
            for images in (batch.query.images, batch.key.images):
                yield normalize(images.to(device))


@torch.no_grad()
def _differences(before: SegLocBackbone, after: SegLocBackbone, views: Iterator[torch.Tensor]) -> dict[str, float]:
    """Return the largest difference of the two pyramids, absolute and relative to the level's maximum."""
    absolute = relative = 0.0
    for images in views:
        one, other = before(images), after(images)
        for level, x in one.items():
            difference = float((x - other[level]).abs().max())
            absolute = max(absolute, difference)
            relative = max(relative, difference / max(float(x.abs().max()), torch.finfo(x.dtype).tiny))
    return {"largest_difference": absolute, "largest_relative_difference": relative}
