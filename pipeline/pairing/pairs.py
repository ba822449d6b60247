"""Positive pairs: two different items of one class on two different backgrounds (paper section 3.1, algorithm 1)."""

from __future__ import annotations

import dataclasses
import functools
import zlib
from pathlib import Path

import numpy as np
from numpy.random import Generator

from pipeline.common.seeds import generator
from pipeline.pairing.blends import BLENDS
from pipeline.pairing.composition import Placed, blend, move_onto_matter, occlude, place_occluder, share_on_matter
from pipeline.pairing.geometry import SCALE, fit, frame, place, reduction
from pipeline.tables import region_table
from pipeline.tables.region_table import Regions
from pipeline.tables.segment_table import Segment, SegmentTable
from segloc.common.contract import Box, Occluder, Pair, View
from segloc.common.datasets.scan_paths import below
from segloc.common.errors import InputError
from segloc.common.images import Image, ImageError, decode, read_file
from segloc.common.masks import Mask, encode_rle

# Raise after every change that gives different pairs from the same inputs; shards of another version are then refused.
RECIPE_VERSION = 3
_BACKGROUND_DRAWS = 100
# Number of times that other items are drawn if no background fits one. A line of a few pixels may fit nowhere.
_ITEM_DRAWS = 10


@dataclasses.dataclass(frozen=True)
class Recipe:
    """Everything that a pair depends on, except its number.

    Attributes:
        backgrounds: root of the background scans.
        regions: table of authentic regions.
        segments: table of segments.
        seed: seed of the synthesis.
        blend: composition mode.
        width: width of the stored images, in pixels.
        scales: range of an item's scale; 1 keeps its width relative to its scan.
        occluded: share of the items that get an occluder, a crop of another background.
        coefficients: range of the composition coefficient; None uses the mode's default.
        on_matter: share of an item's pixels to lie on matter rather than empty belt; its position is drawn up to
            `composition.PLACE_DRAWS` times. 0 is the paper's rule, the first draw.
    """

    backgrounds: Path
    regions: Path
    segments: Path
    seed: int
    blend: str = "ratio"
    width: int = 500
    scales: tuple[float, float] = SCALE
    occluded: float = 0.0
    coefficients: tuple[float, float] | None = None
    on_matter: float = 0.5


@functools.lru_cache(maxsize=2)
def tables(region_file: Path, segment_file: Path) -> tuple[Regions, SegmentTable]:
    """Open both tables, once per process."""
    return region_table.load(region_file), SegmentTable(segment_file)


def make_pair(recipe: Recipe, number: int) -> tuple[Pair, Image, Image]:
    """Make pair `number`, a pure function of its arguments and the recipe's files.

    Returns:
        The description, the query image and the key image (uint8 RGB).

    Raises:
        InputError: a table or background is no longer readable, or no background fits items of the pair's class.
    """
    regions, items = tables(recipe.regions, recipe.segments)
    rng = generator(recipe.seed, "pair", number)
    class_id = items.usable[int(rng.integers(len(items.usable)))]
    for _ in range(_ITEM_DRAWS):
        segments = [items.segment(rows[int(rng.integers(len(rows)))]) for rows in items.draw(rng, class_id)]
        query = _make_view(rng, recipe, number, regions, segments[0], -1)
        key = query and _make_view(rng, recipe, number, regions, segments[1], query[2])
        if query and key:
            return Pair(number, class_id, items.classes[class_id], query[0], key[0]), query[1], key[1]
    raise InputError(
        f"none of {_BACKGROUND_DRAWS} drawn backgrounds can hold an item like {segments[0].segment_id!r} or "
        f"{segments[1].segment_id!r}; choose a larger --width or another --scale"
    )


def _make_view(
    rng: Generator, recipe: Recipe, number: int, regions: Regions, segment: Segment, taken: int
) -> tuple[View, Image, int] | None:
    """Paste a segment of pair `number` on a background other than number `taken` (-1 for the query).

    Returns the view, its image and the background's number; None if no background can hold the segment.
    """
    coefficients = recipe.coefficients or BLENDS[recipe.blend].coefficients
    for _ in range(_BACKGROUND_DRAWS):
        chosen = int(rng.integers(len(regions.images)))
        if chosen == taken:
            continue
        size, region = _bag(rng, regions, chosen, recipe.width)
        placed = place(rng, segment, region, recipe.width, recipe.scales)
        if placed is None:
            continue
        geometry, patch, (x, y) = placed
        box: Box = (x, y, x + patch.mask.shape[1], y + patch.mask.shape[0])
        coefficient = float(rng.uniform(*coefficients))
        image = fit(read_background(recipe, regions, chosen), size)
        level = int(regions.levels[chosen])
        # A crop is not an item: it shows a whole bag.
        at = Placed(box, 1.0 if segment.upright else share_on_matter(image, patch, box, level))
        if at.on_matter < recipe.on_matter:
            # A stream of their own, so that all other draws of the pair are the same as without them.
            places = generator(recipe.seed, "place", number, int(taken >= 0))
            at = move_onto_matter(places, image, patch, at, region, level, recipe.on_matter)
        box, on_matter = at
        blend(image, patch, box, segment.background, recipe.blend, coefficient)
        occluder = None
        if recipe.occluded and rng.random() < recipe.occluded:
            occluder = _occlude(rng, recipe, regions, image, box, region, {chosen, taken})
        view = View(
            box=box,
            size=size,
            background=regions.images[chosen].as_py(),
            segment=segment.segment_id,
            region=region,
            blend=recipe.blend,
            coefficient=coefficient,
            **vars(geometry),
            occluder=occluder,
            mask=encode_rle(_in_frame(patch.mask, box, size)),
            on_matter=on_matter,
        )
        return view, image, chosen
    return None


def _in_frame(mask: Mask, box: Box, size: tuple[int, int]) -> Mask:
    """Put a mask into `box` of an empty frame of `size` (width, height), in the column-major order of run lengths."""
    frame = np.zeros((size[1], size[0]), bool, order="F")
    frame[box[1] : box[3], box[0] : box[2]] = mask
    return frame


def _bag(rng: Generator, regions: Regions, number: int, width: int) -> tuple[tuple[int, int], Box]:
    """Draw a bag of a background. Return the stored (width, height), and the bag's box in stored pixels."""
    native = int(regions.sizes[number, 0]), int(regions.sizes[number, 1])
    return frame(native, regions.draw_bag(rng, number), width)


def _occlude(
    rng: Generator, recipe: Recipe, regions: Regions, image: Image, box: Box, bag: Box, others: set[int]
) -> Occluder | None:
    """Lay a crop of a background that is not one of `others` over the item in `box`, within its bag.

    Returns None if there is no third background, or if its bag is empty at the stored width.
    """
    if len(regions.images) <= len(others):
        return None
    while (chosen := int(rng.integers(len(regions.images)))) in others:
        pass
    size, room = _bag(rng, regions, chosen, recipe.width)
    if min(room[2] - room[0], room[3] - room[1]) < 1:
        return None
    crop, corner = place_occluder(rng, box, bag, room)
    x0, y0, x1, y1 = crop
    scan = fit(read_background(recipe, regions, chosen), size)
    occlude(image, scan[y0:y1, x0:x1], corner, int(regions.levels[chosen]))
    return Occluder(regions.images[chosen].as_py(), crop, corner)


def read_background(recipe: Recipe, regions: Regions, number: int) -> Image:
    """Read background `number` of `regions`, reduced by the factor of `geometry.reduction`.

    Raises:
        InputError: it cannot be read, or differs from the file that its region was measured on.
    """
    name = regions.images[number].as_py()
    try:
        data = read_file(below(recipe.backgrounds, name))
        smaller = reduction(int(regions.sizes[number, 0]), recipe.width)
        scan = decode(data, reduction=smaller, white=regions.white)
        if zlib.crc32(data) != regions.crcs[number]:
            raise ImageError("changed since its region was measured")
        return scan
    except ValueError as error:  # ImageError is one
        path = str(recipe.backgrounds / name)
        raise InputError(f"background {path!r}: {error}; run pipeline.regions again") from error
