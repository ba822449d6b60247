"""Training batches and test images from annotated scans.

Both engines get the same tensors: RGB uint8, scaled to fit a square, neither normalised nor padded.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import functools
import hashlib
import itertools
import os
from collections.abc import Callable, Collection, Generator, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import cv2
import numpy as np
import torch

from segloc.common import datasets, images
from segloc.common.datasets import Split
from segloc.common.datasets.coco_fields import Id
from segloc.common.errors import InputError
from segloc.common.files import expanded
from segloc.common.images import Image, ImageError
from segloc.detection.splits import CocoSplit, Scan, box_of, is_trainable, mask_of
from segloc.settings.finetuning import DataSettings

# Random streams of a training run, derived from its seed.
ORDER, FLIP, SAMPLING = range(3)

WRONG_SIZE = "image size disagrees with the file"  # as in stage 1

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclasses.dataclass(frozen=True)
class Example:
    """One training image with n items.

    Attributes:
        image_id: id in the annotation file, a number or text.
        image: [3, h, w] uint8 RGB.
        boxes: [n, 4] float32, x0 y0 x1 y1 in pixels of `image`.
        classes: [n] int64, 0-based.
        masks: [n, h, w] bool.
        seeds: of the sampling of its anchors and of its proposals; if empty, torch's generator goes on as it is.
    """

    image_id: Id
    image: torch.Tensor
    boxes: torch.Tensor
    classes: torch.Tensor
    masks: torch.Tensor
    seeds: tuple[int, ...] = ()


def train_split(settings: DataSettings) -> Split:
    """Find the training set of a recipe.

    Raises:
        InputError: the recipe names no training set, or ``data.train`` is malformed.
    """
    if settings.train:
        if len(settings.train) != 2:
            raise InputError(f"data.train has {len(settings.train)} values; give [annotation file, image folder]")
        return Split("train", *(Path(expanded(path)) for path in settings.train))
    return _data_set(settings)[datasets.TRAIN]


def evaluation_splits(settings: DataSettings) -> list[Split]:
    """Find the test sets of a recipe, in report order.

    Raises:
        InputError: the recipe names no test set, or ``data.tests`` is malformed.
    """
    if settings.tests:
        if any(isinstance(test, str) or len(test) != 3 for test in settings.tests):
            raise InputError("data.tests is malformed; give [name, annotation file, image folder] for each test set")
        return [Split(str(name), Path(expanded(file)), Path(expanded(images))) for name, file, images in settings.tests]
    return [split for name, split in _data_set(settings).items() if name != datasets.TRAIN]


def read_scan(scan: Scan) -> Image:
    """Read a scan of any bit depth and number of channels as [h, w, 3] uint8 RGB.

    Raises:
        InputError: the file is missing, truncated, too large or damaged, or its annotations give another size.
    """
    try:
        image = images.read_image(scan.path, white=scan.white)
    except ImageError as error:
        raise InputError(f"{scan.path}: {error}") from error
    if image.shape[:2] != (scan.height, scan.width):
        found, annotated = f"{image.shape[1]} x {image.shape[0]}", f"{scan.width} x {scan.height}"
        raise InputError(f"{scan.path}: {WRONG_SIZE}: it has {found} pixels, its annotations say {annotated}")
    return image


def reason_of(scan: Scan, error: InputError | ImageError) -> str:
    """Return the reason in an error of `read_scan`, without the file and its sizes.

    A link without a target is a missing scan here, because the annotation file lists it.
    """
    reason = str(error).removeprefix(f"{scan.path}: ").partition(":")[0]
    return "no such file" if reason == images.BROKEN_LINK else reason


def fit(image: np.ndarray, size: int) -> np.ndarray:
    """Scale an image [h, w, ...] to a longer side of `size` pixels; the aspect ratio stays the same."""
    height, width = image.shape[:2]
    scale = size / max(height, width)
    shape = max(1, round(width * scale)), max(1, round(height * scale))
    return cv2.resize(image, shape, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)


def to_tensor(image: np.ndarray) -> torch.Tensor:
    """Convert an array [h, w, 3] to a tensor [3, h, w]."""
    # A copy, not `ascontiguousarray`, which keeps the negative stride of a flipped image that is one pixel wide.
    return torch.from_numpy(image.transpose(2, 0, 1).copy())


def in_threads(
    task: Callable[[Item], Result], items: Iterable[Item], threads: int, ahead: int
) -> Generator[Result, None, None]:
    """Run a task in threads and yield its results in the order of the items, up to `ahead` of them in advance."""
    futures: collections.deque[Future[Result]] = collections.deque()
    with ThreadPoolExecutor(threads) as pool:
        for item in items:
            futures.append(pool.submit(task, item))
            if len(futures) > ahead:
                yield futures.popleft().result()
        yield from (future.result() for future in futures)


def digest_of(scans: Iterable[Scan]) -> str:
    """Compute the SHA-256 digest of the file names, sizes and annotations of scans; pixels are not included."""
    digest = hashlib.sha256()
    for scan in scans:
        digest.update(repr((scan.path.name, scan.width, scan.height, scan.annotations)).encode())
    return digest.hexdigest()


class TrainingData:
    """Training batches, a pure function of (seed, iteration): a resumed run gets those of an uninterrupted one.

    Several processes share the slots of each batch, so the images of a step do not depend on their number.

    A scan that is known to be unusable is left out (`leave_out`). One that turns out to be unreadable during training
    is replaced by the next readable scan; the rest of the order stays the same.

    Args:
        split: the training set.
        settings: size, flip, threads.
        batch: images per step.
        seed: of the order, the flips and the sampling of anchors and proposals.

    Attributes:
        listed: the scans of the recipe, before any is left out.
        left_out: positions in `listed` of the scans that are left out.
        scans: those that are trained on.
        unreadable: message by position in `listed`, for the scans that turned out to be unreadable during training.

    Raises:
        InputError: no image can be trained on.
    """

    def __init__(self, split: CocoSplit, settings: DataSettings, batch: int, seed: int) -> None:
        self.settings = settings
        self.batch = batch
        self.seed = seed
        self.unreadable: dict[int, str] = {}
        self.class_of = {category: position for position, category in enumerate(split.category_ids)}
        scans = [
            scan
            for scan in split.scans
            if settings.train_empty or any(is_trainable(a, scan.height, scan.width) for a in scan.annotations)
        ]
        if not scans:
            raise InputError(f"{split.name}: no annotation to train on in any of the {len(split.scans)} images")
        self.scans = _fraction_of(scans, settings.fraction)
        if not self.scans:
            raise InputError(f"{split.name}: data.fraction={settings.fraction} of {len(scans)} images rounds to 0")
        self.listed, self.left_out = tuple(self.scans), list[int]()
        self._positions: Sequence[int] = range(len(self.listed))
        self._permutation = functools.lru_cache(maxsize=2)(
            lambda epoch: np.random.default_rng([seed, ORDER, epoch]).permutation(len(self))
        )

    def leave_out(self, positions: Collection[int]) -> None:
        """Train only on the other scans of `listed`. Call it before the first batch."""
        self.left_out = sorted(positions)
        left_out = frozenset(positions)
        self._positions = [position for position in range(len(self.listed)) if position not in left_out]
        self.scans = [self.listed[position] for position in self._positions]

    def __len__(self) -> int:
        return len(self.scans)

    def indices(self, iteration: int) -> list[int]:
        """Return the positions in `scans` of the images of a step; each epoch has its own order."""
        positions = range(iteration * self.batch, (iteration + 1) * self.batch)
        return [int(self._permutation(p // len(self))[p % len(self)]) for p in positions]

    def example(self, iteration: int, slot: int) -> Example:
        """Load the image in a slot of a step, with the random flip applied.

        Raises:
            InputError: no image can be read.
        """
        drawn = self.indices(iteration)[slot]
        flip = np.random.default_rng([self.seed, FLIP, iteration, slot]).random() < self.settings.flip
        seeds = np.random.SeedSequence([self.seed, SAMPLING, iteration, slot]).generate_state(2).tolist()
        for position in (*self._positions[drawn:], *self._positions[:drawn]):
            try:
                found = make_example(self.listed[position], self.class_of, self.settings.image_size, flip)
                return dataclasses.replace(found, seeds=tuple(seeds))
            except InputError as error:
                self.unreadable[position] = str(error)
        raise InputError(f"none of the {len(self)} training images can be read; {self.unreadable[position]}")

    def batches(self, start: int, stop: int, rank: int = 0, world: int = 1) -> Generator[list[Example], None, None]:
        """Yield the batches of steps ``start`` to ``stop - 1``, decoded ahead in threads.

        Args:
            start: first step.
            stop: the step after the last one.
            rank: number of the process, which gets that part of the slots of each step.
            world: number of processes, which divides the batch.
        """
        share = self.batch // world
        slots = itertools.product(range(start, stop), range(rank * share, (rank + 1) * share))
        examples = in_threads(lambda at: self.example(*at), slots, self.settings.threads, 2 * share)
        with contextlib.closing(examples):
            for _ in range(start, stop):
                yield list(itertools.islice(examples, share))


def make_example(scan: Scan, class_of: dict[Id, int], size: int, flip: bool) -> Example:
    """Load a scan and its annotations at training size.

    Args:
        scan: the scan.
        class_of: class id of each category id.
        size: see `fit`.
        flip: mirror the image left-right.
    """
    image = fit(read_scan(scan), size)
    height, width = image.shape[:2]
    kept = [a for a in scan.annotations if is_trainable(a, scan.height, scan.width)]
    boxes = np.array([box_of(a, scan.height, scan.width) for a in kept], np.float32).reshape(-1, 4)
    boxes *= np.array([width / scan.width, height / scan.height] * 2, np.float32)
    masks = np.zeros((len(kept), height, width), bool)
    for position, annotation in enumerate(kept):
        # Grey values thresholded at one half preserve the width of thin items better than nearest neighbour.
        masks[position] = fit(mask_of(annotation, scan.height, scan.width) * 255, size) > 127
    if flip:
        image, masks = image[:, ::-1], masks[:, :, ::-1]
        boxes[:, [0, 2]] = width - boxes[:, [2, 0]]
    classes = torch.tensor([class_of[a["category_id"]] for a in kept], dtype=torch.int64)
    tensors = torch.from_numpy(boxes), classes, torch.from_numpy(masks.copy())
    return Example(scan.image_id, to_tensor(image), *tensors)


def _fraction_of(scans: list[Scan], fraction: float) -> list[Scan]:
    """Select a fraction of the scans and keep their order; see `DataSettings.fraction`."""
    ranked = sorted(scans, key=lambda scan: hashlib.sha256(os.fsencode(scan.path.name)).digest())
    kept = {scan.image_id for scan in ranked[: round(fraction * len(scans))]}
    return [scan for scan in scans if scan.image_id in kept]


def _data_set(settings: DataSettings) -> dict[str, Split]:
    if not settings.root:
        raise InputError("no data: give --data PIDRAY_ROOT, or data.train and data.tests in the recipe")
    return datasets.splits(Path(expanded(settings.root)))
