"""Decode stored pairs into batches; image buffers are reused."""

from __future__ import annotations

import dataclasses
import math
import threading
import weakref
from collections import deque
from collections.abc import Sequence

import cv2
import numpy as np
import torch

from segloc.common.contract import Pair, View
from segloc.common.errors import InputError
from segloc.common.images import ImageError, decode
from segloc.data.shapes import shrunk_to_fit
from segloc.data.shard_folder import KEY, QUERY, Sample
from segloc.models.backbone import WHITE, padded_size


@dataclasses.dataclass(frozen=True)
class Views:
    """One side (queries or keys) of a batch.

    Attributes:
        images: [N, 3, H, W] uint8 RGB (channels-last memory), padded with white at the right and bottom; H and W
            multiples of 32. White looks like the empty belt; other padding would look like an object.
        boxes: [N, 4] float32, x0 y0 x1 y1 in pixels of `images`.
    """

    images: torch.Tensor
    boxes: torch.Tensor

    def on(self, device: torch.device, size: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor]:
        """Copy images and boxes to a device; the images are padded there to `size` (height, width)."""
        images, boxes = (x.to(device, non_blocking=True) for x in (self.images, self.boxes))
        rows, columns = (least - side for least, side in zip(size, images.shape[-2:], strict=True))
        if rows or columns:
            images = torch.nn.functional.pad(images, (0, columns, 0, rows), value=WHITE)
        return images, boxes


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


class Buffers:
    """A pool of image buffers. A buffer is reused when its array is no longer referenced.

    Allocating a new memory page costs more time than copying a page of pixels.
    """

    def __init__(self) -> None:
        self._free: deque[np.ndarray] = deque()
        self._largest = 0

    def take(self, shape: tuple[int, ...]) -> np.ndarray:
        """Return an uninitialised uint8 array; thread-safe."""
        size = math.prod(shape)
        self._largest = max(self._largest, size)
        try:
            memory = self._free.pop()
        except IndexError:
            memory = np.empty(0, np.uint8)
        if len(memory) < size:
            memory = np.empty(self._largest, np.uint8)
        # Tensors made from the array keep it alive; NumPy views would keep only `memory` alive.
        array = memory[:size].reshape(shape)
        weakref.finalize(array, self._free.append, memory).atexit = False
        return array


class _Draw:
    """The pair for one place of a batch; if it is damaged, the next usable pair of its shard.

    Raises:
        InputError: all pairs of the shard are damaged.
    """

    def __init__(self, shard: list[Sample], position: int, classes: Sequence[str]) -> None:
        self.shard, self.position, self.classes = shard, position, classes
        self.tried = 0
        self.damage = ""  # of the original pair of this place
        self.pair = self._describe()

    def replace(self, damage: str) -> None:
        """Replace the damaged pair by the next usable one."""
        self._skip(damage)
        self.pair = self._describe()

    @property
    def sample(self) -> Sample:
        """The pair as stored."""
        return self.shard[(self.position + self.tried) % len(self.shard)]

    def _describe(self) -> Pair:
        while True:
            try:
                return self.sample.describe(self.classes)
            except InputError as error:
                self._skip(str(error))

    def _skip(self, damage: str) -> None:
        self.damage = self.damage or f"pair {self.sample.name}: {damage}"
        self.tried += 1
        if self.tried == len(self.shard):
            raise InputError(f"all {self.tried} pairs of a shard are damaged; the first: {self.damage}")


class BatchStep:
    """The pairs of a process in an optimiser step.

    Args:
        places: the shard and the position in it of each pair. Threads may use different parts at the same time.
        classes: class names, as in the index.
    """

    def __init__(self, places: list[tuple[list[Sample], int]], classes: Sequence[str]) -> None:
        self.places, self.classes = places, classes
        self._lock = threading.Lock()
        self._draws: list[_Draw] = []

    def draws(self) -> list[_Draw]:
        """Return the pair of each place; pairs with a damaged description are already replaced."""
        with self._lock:
            if not self._draws:
                self._draws = [_Draw(shard, position, self.classes) for shard, position in self.places]
        return self._draws


class Batcher:
    """Makes batches of images shrunk to fit a square of `image_size` pixels; thread-safe."""

    def __init__(self, image_size: int) -> None:
        self.image_size = image_size
        self.buffers = Buffers()

    def make(self, step: BatchStep, part: slice = slice(None)) -> tuple[Batch, list[str]]:
        """Decode part of a step's pairs; also return the damage of each replaced pair.

        Raises:
            InputError: all pairs of a shard are damaged.
        """
        draws = step.draws()[part]
        while True:
            bad: dict[int, str] = {}
            query = self._views([(d.sample.files[QUERY], d.pair.query) for d in draws], bad)
            key = self._views([(d.sample.files[KEY], d.pair.key) for d in draws], bad)
            if not bad:
                break
            # The replacement may need another height or width, so decode the batch again. This is rare.
            for row, damage in bad.items():
                draws[row].replace(damage)
        labels, pairs = (torch.tensor([getattr(d.pair, name) for d in draws]) for name in ("class_id", "pair"))
        return Batch(query, key, labels, pairs), [d.damage for d in draws if d.tried]

    def _views(self, stored: list[tuple[np.ndarray, View]], bad: dict[int, str]) -> Views:
        """Decode one side's images; write the damage of each bad row to `bad`."""
        sizes = [shrunk_to_fit(view.size, self.image_size) for _, view in stored]
        width, height = padded_size(*sizes)
        images = self.buffers.take((len(stored), height, width, 3))
        boxes = np.empty((len(stored), 4), np.float32)
        for row, ((data, view), size) in enumerate(zip(stored, sizes, strict=True)):
            try:
                image = _decode(data, view, size)
            except InputError as error:
                bad[row] = str(error)
            else:
                h, w = image.shape[:2]
                images[row, :h, :w] = image
                images[row, :h, w:] = images[row, h:] = WHITE
            scale = np.array([size[0] / view.size[0], size[1] / view.size[1]] * 2, np.float32)
            boxes[row] = np.array(view.box, np.float32) * scale
        return Views(torch.from_numpy(images).permute(0, 3, 1, 2), torch.from_numpy(boxes))


def _decode(data: np.ndarray, view: View, size: tuple[int, int]) -> np.ndarray:
    """Decode an image and shrink it to `size` (width, height): [h, w, 3] uint8 RGB."""
    try:
        image = decode(data.tobytes())
    except ImageError as error:
        raise InputError(f"image: {error}") from error
    stored = (image.shape[1], image.shape[0])
    if stored != view.size:
        raise InputError(f"image is {stored[0]}x{stored[1]}, its description says {view.size[0]}x{view.size[1]}")
    return image if size == stored else cv2.resize(image, size, interpolation=cv2.INTER_AREA)
