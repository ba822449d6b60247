"""Small shards made by hand: coloured shapes on white, written straight from the contract."""

import hashlib
import io
import tarfile

import cv2
import numpy as np
import pytest
import torch

from segloc.common.contract import INDEX_NAME, SOURCES_NAME, Index, Pair, Shard, Sources, View, pair_key, shard_name
from segloc.common.masks import encode_rle

# The tensors here are too small to share out, and idle threads only get in each other's way.
torch.set_num_threads(1)

CLASSES = ("Gun", "Knife", "Wrench")
NO_SOURCES = Sources(SOURCES_NAME, "", 0)  # an entry of the index; nothing that trains reads the table
COLOURS = ((40, 60, 200), (230, 140, 40), (60, 170, 60))


def draw(rng, class_id, width=96, height=64):
    """One scan with one item: its class decides colour and shape. Returns the image and the item's box."""
    image = np.full((height, width, 3), 255, np.uint8)
    image -= rng.integers(0, 12, image.shape, dtype=np.uint8)
    w, h = (int(v) for v in rng.integers(18, 36, 2))
    x0, y0 = int(rng.integers(0, width - w)), int(rng.integers(0, height - h))
    patch = image[y0 : y0 + h, x0 : x0 + w]
    if class_id == 0:
        patch[:] = COLOURS[0]
    elif class_id == 1:
        cv2.ellipse(patch, (w // 2, h // 2), (w // 2, h // 2), 0, 0, 360, COLOURS[1], -1)
    else:
        patch[:, w // 3 : 2 * w // 3] = patch[h // 3 : 2 * h // 3] = COLOURS[2]
    return image, (x0, y0, x0 + w, y0 + h)


def write_shards(folder, shards=3, per_shard=8, seed=0, heights=(64,), spoil=None, classes=3):
    """Write a finished shard folder and return its path.

    Args:
        folder: where.
        shards: how many.
        per_shard: pairs in each.
        seed: of the pictures.
        heights: of the images, taken in turn, pixels.
        spoil: function that may damage a pair: (its files' contents by name, its number) -> the contents to write.
        classes: how many of `CLASSES` the items are of.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    infos = []
    for number in range(shards):
        buffer, counts = io.BytesIO(), [0] * classes
        with tarfile.open(fileobj=buffer, mode="w") as tar:
            for i in range(number * per_shard, (number + 1) * per_shard):
                class_id = int(rng.integers(classes))
                counts[class_id] += 1
                images, views = [], []
                for second, side in enumerate(("query", "key")):
                    image, box = draw(rng, class_id, height=heights[(2 * i + second) % len(heights)])
                    size = (image.shape[1], image.shape[0])
                    images.append(cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 95])[1].tobytes())
                    item = f"{i}-{side}"
                    about = (box, size, "b.jpg", item, (0, 0, *size), "alpha", 0.5, 0.0, 1.0, False, False)
                    mask = np.zeros(image.shape[:2], bool)
                    mask[box[1] : box[3], box[0] : box[2]] = True
                    views.append(View(*about, mask=encode_rle(mask), on_matter=0.0))
                pair = Pair(i, class_id, CLASSES[class_id], *views)
                files = {"query.jpg": images[0], "key.jpg": images[1], "json": pair.to_json()}
                for name, data in (spoil(files, i) if spoil else files).items():
                    entry = tarfile.TarInfo(f"{pair_key(i)}.{name}")
                    entry.size = len(data)
                    tar.addfile(entry, io.BytesIO(data))
        data = buffer.getvalue()
        (folder / shard_name(number)).write_bytes(data)
        infos.append(Shard(shard_name(number), per_shard, len(data), hashlib.sha256(data).hexdigest(), tuple(counts)))
    index = Index(CLASSES[:classes], seed, {}, {"pairs": shards * per_shard}, tuple(infos), NO_SOURCES)
    (folder / INDEX_NAME).write_bytes(index.to_json())
    return folder


@pytest.fixture(scope="session")
def shards(tmp_path_factory):
    return write_shards(tmp_path_factory.mktemp("data") / "shards")


@pytest.fixture(scope="session")
def varied(tmp_path_factory):
    """Shards whose images differ in height, so that what a batch is padded to depends on what is in it."""
    return write_shards(tmp_path_factory.mktemp("varied") / "shards", heights=(64, 40, 96, 80, 50))
