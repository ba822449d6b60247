"""The simulated data set: its subsets, and their layout on disk."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from pipeline.simulate.annotations import annotate
from pipeline.simulate.energies import atomic_number_image, raw_images
from pipeline.simulate.items import BRANDS, CLASSES
from pipeline.simulate.raster import silhouette
from pipeline.simulate.scanner import scan
from pipeline.simulate.scenes import Scene, SceneRecipe, compose
from segloc.common.errors import InputError
from segloc.common.files import naming

# Raise when the same parameters give different pictures.
FORMAT_VERSION = 3

# Photon noise leaves only runs of belt to compress. Against OpenCV's default: three times as fast, 7 % larger.
PNG_OPTIONS = [
    cv2.IMWRITE_PNG_COMPRESSION, 3, cv2.IMWRITE_PNG_STRATEGY, cv2.IMWRITE_PNG_STRATEGY_RLE,
    cv2.IMWRITE_PNG_FILTER, cv2.IMWRITE_PNG_FILTER_SUB,
]  # fmt: skip
JPEG_OPTIONS = [cv2.IMWRITE_JPEG_QUALITY, 95]

# Raw images have the pictures' relative paths, below this folder. Raise the version when their content changes.
RAW_FOLDER = "energies"
RAW_FORMAT_VERSION = 2


@dataclasses.dataclass(frozen=True)
class Subset:
    """One part of the data set.

    Attributes:
        share: its share of all scans.
        images: folder of its images below the root, ``/`` separators.
        pattern: file name of scan number {}.
        annotations: its annotation file below the root; None for scans without any.
        recipe: how its bags are packed.
        first: number of its first file.
    """

    share: float
    images: str
    pattern: str
    annotations: str | None
    recipe: SceneRecipe
    first: int = 0

    def path(self, index: int) -> str:
        """Path of scan `index` below the root."""
        return f"{self.images}/{self.pattern.format(self.first + index)}"

    def raw_paths(self, index: int) -> list[str]:
        """Paths below the root of the raw images of scan `index`: low and high energy, effective atomic number."""
        stem = self.path(index).rpartition(".")[0]
        return [f"{RAW_FOLDER}/{stem}_{kind}.png" for kind in ("low", "high", "z")]


SUBSETS: dict[str, Subset] = {
    "negatives": Subset(
        0.40, "sixray/JPEGImage", "N{:07d}.jpg", None,
        SceneRecipe((9, 16), (3.5, 12.5), second_bag=0.1, machine="white", grey_belts=True), first=1,
    ),
    "train": Subset(
        0.36, "pidray/train", "xray_{:05d}.png", "pidray/annotations/xray_train.json",
        SceneRecipe((3, 9), (0.4, 4.5), second_item=0.3),
    ),
    "easy": Subset(
        0.08, "pidray/easy", "xray_easy{:05d}.png", "pidray/annotations/xray_test_easy.json",
        SceneRecipe((3, 7), (0.3, 2.5)),
    ),
    "hard": Subset(
        0.08, "pidray/hard", "xray_hard{:05d}.png", "pidray/annotations/xray_test_hard.json",
        SceneRecipe((5, 13), (0.5, 4.5), second_item=1.0),
    ),
    "hidden": Subset(
        0.08, "pidray/hidden", "xray_hidden{:05d}.png", "pidray/annotations/xray_test_hidden.json",
        SceneRecipe((7, 14), (1.5, 6.0), concealed=True),
    ),
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Parameters:
    """Every parameter that the data set depends on.

    Attributes:
        scans: total number of scans.
        seed: seed of all randomness.
        width: width of every scan in pixels.
        grey_belts: share of the negatives on a grey belt.
        raw: whether the two energies and the effective atomic number are written beside the pictures.
        swap_brands: whether training scans get the brands of test scans, and the reverse.
    """

    scans: int
    seed: int
    width: int
    grey_belts: float
    raw: bool = False
    swap_brands: bool = False

    def counts(self) -> dict[str, int]:
        """Scans per subset; the negatives take the remainder of rounding."""
        counts = {name: round(subset.share * self.scans) for name, subset in SUBSETS.items()}
        return counts | {"negatives": self.scans - sum(counts.values()) + counts["negatives"]}

    def check(self) -> None:
        """Raise `InputError` unless each annotated subset can hold every class, and train can hold each twice."""
        if self.seed < 0:
            raise InputError(f"--seed must be 0 or more, not {self.seed}")
        if not 96 <= self.width <= 4000:
            raise InputError(f"--width must be 96 to 4000 pixels, not {self.width}")
        if not 0 <= self.grey_belts <= 1:
            raise InputError(f"--grey-belts must be a share between 0 and 1, not {self.grey_belts}")
        fewest = next(scans for scans in range(10**6) if dataclasses.replace(self, scans=scans)._holds_every_class())
        if self.scans < fewest:
            raise InputError(f"--scans must be {fewest} or more, so that each subset has every class, not {self.scans}")

    def _holds_every_class(self) -> bool:
        counts = self.counts()
        return min(counts[name] for name in ("easy", "hard", "hidden")) >= len(CLASSES) <= counts["train"] / 2


@dataclasses.dataclass(frozen=True)
class Task:
    """One scan to make: number `index` of `subset`."""

    subset: str
    index: int


def tasks(counts: dict[str, int]) -> Iterator[Task]:
    """Every scan of the data set, subset by subset."""
    return (Task(subset, index) for subset, count in counts.items() for index in range(count))


def build_scene(task: Task, parameters: Parameters) -> tuple[Scene, np.random.Generator]:
    """The scene of a scan, a pure function of its arguments, and the generator for its picture."""
    subset = SUBSETS[task.subset]
    rng = np.random.default_rng([parameters.seed, list(SUBSETS).index(task.subset), task.index])
    wanted = [] if subset.annotations is None else _wanted(rng, task, parameters.swap_brands)
    return compose(rng, subset.recipe, wanted, parameters.width, parameters.grey_belts), rng


def _wanted(rng: np.random.Generator, task: Task, swap_brands: bool) -> list[tuple[str, int]]:
    """Class and brand of a scan's items. The first class follows the scan's index, so that all are equally frequent."""
    recipe = SUBSETS[task.subset].recipe
    names = [CLASSES[task.index % len(CLASSES)]]
    if rng.random() < recipe.second_item:
        names += [str(rng.choice(CLASSES)) for _ in range(1 + int(rng.random() < recipe.second_item / 2))]
    brands = BRANDS["train" if (task.subset == "train") != swap_brands else "test"]
    return [(name, int(rng.choice(brands))) for name in names]


def write_scan(task: Task, *, root: Path, parameters: Parameters) -> dict[str, Any]:
    """Make one scan and write it below `root`.

    Returns:
        ``{"file_name", "width", "height", "items": [annotation without ids, ...]}``. Annotations have COCO's fields and
        the item's `brand` (see `items.BRANDS`).

    Raises:
        OSError: the file could not be written.
    """
    subset = SUBSETS[task.subset]
    scene, rng = build_scene(task, parameters)
    made = scan(scene.maps(), scene.scanner, rng)
    path = root / subset.path(task.index)
    _write(path, cv2.cvtColor(made.picture, cv2.COLOR_RGB2BGR))
    if parameters.raw:
        images = [*raw_images(made.attenuation), atomic_number_image(made.attenuation)]
        for raw_path, image in zip(subset.raw_paths(task.index), images, strict=True):
            _write(root / raw_path, image)
    width, height = scene.size
    items = []
    for item in scene.items:
        geometry = annotate(silhouette(item.parts, scene.px_per_cm, width, height))
        items.append({"category_id": CLASSES.index(item.name) + 1, "brand": item.brand, **geometry})
    return {"file_name": path.name, "width": width, "height": height, "items": items}


def _write(path: Path, image: np.ndarray) -> None:
    done, data = cv2.imencode(path.suffix, image, PNG_OPTIONS if path.suffix == ".png" else JPEG_OPTIONS)
    assert done, path
    with naming(path):
        path.write_bytes(data.tobytes())


def coco_file(records: list[dict[str, Any]]) -> bytes:
    """Annotation file in PIDray's form; image and annotation ids start at 0 in every file, as in PIDray."""
    shown = ("file_name", "width", "height")
    items = [{"image_id": number, **item} for number, record in enumerate(records) for item in record["items"]]
    content = {
        "info": {"description": "simulated baggage scans", "version": str(FORMAT_VERSION)},
        "license": [],
        "categories": [{"id": id_, "name": name, "supercategory": "prohibited"} for id_, name in enumerate(CLASSES, 1)],
        "images": [{"id": id_, **{key: record[key] for key in shown}} for id_, record in enumerate(records)],
        "annotations": [{"id": id_, **item} for id_, item in enumerate(items)],
    }
    return json.dumps(content).encode()


def scan_writer(root: Path, parameters: Parameters) -> functools.partial[dict[str, Any]]:
    """Make the folders, and return `write_scan` for `root` in a form that can be sent to workers."""
    for subset in SUBSETS.values():
        for folder in (root, root / RAW_FOLDER) if parameters.raw else (root,):
            (folder / subset.images).mkdir(parents=True, exist_ok=True)
        if subset.annotations:
            (root / subset.annotations).parent.mkdir(parents=True, exist_ok=True)
    return functools.partial(write_scan, root=root, parameters=parameters)
