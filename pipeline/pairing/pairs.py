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
from pipeline.pairing.composition import blend, occlude, place_occluder, share_on_matter
from pipeline.pairing.geometry import SCALE, fit, frame, place, reduction
from pipeline.tables import region_table
from pipeline.tables.region_table import Regions
from pipeline.tables.segment_table import Segment, SegmentTable
from segloc.common.contract import Box, Occluder, Pair, View
from segloc.common.errors import InputError
from segloc.common.files import safe_relative
from segloc.common.images import Image, ImageError, decode, read_file
from segloc.common.masks import Mask, encode_rle

# Raise it with every change that makes other pairs of the same inputs: shards of another version are then refused.
RECIPE_VERSION = 3
_BACKGROUND_DRAWS = 100
# Times that other items are drawn when no background can hold one; a line of a few pixels may fit nowhere.
_ITEM_DRAWS = 10


@dataclasses.dataclass(frozen=True)
class Recipe:
    """All that a pair depends on besides its number.

    Attributes:
        backgrounds: root of the background scans.
        regions: table of authentic regions.
        segments: table of segments.
        seed: of the synthesis.
        blend: composition mode.
        width: of the stored images, in pixels.
        scales: range of an item's scale; 1 shows it as large in the frame as it was in its own scan's.
        occluded: share of the items over which a piece of another background is laid.
        coefficients: range that the composition mode's coefficient is drawn from; None is the mode's own.
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


@functools.lru_cache(maxsize=2)
def tables(region_file: Path, segment_file: Path) -> tuple[Regions, SegmentTable]:
    """Open both tables, once per process."""
    return region_table.load(region_file), SegmentTable(segment_file)


def make_pair(recipe: Recipe, number: int) -> tuple[Pair, Image, Image]:
    """Make pair `number`: a pure function of its arguments and the files the recipe names.

    Returns:
        The description, the query image and the key image (uint8 RGB).

    Raises:
        InputError: a table or background cannot be read any more, or no background can hold items of the pair's class.
    """
    hosts, items = tables(recipe.regions, recipe.segments)
    rng = generator(recipe.seed, "pair", number)
    class_id = items.usable[int(rng.integers(len(items.usable)))]
    for _ in range(_ITEM_DRAWS):
        segments = [items.segment(rows[int(rng.integers(len(rows)))]) for rows in items.draw(rng, class_id)]
        query = _make_view(rng, recipe, hosts, segments[0], -1)
        key = query and _make_view(rng, recipe, hosts, segments[1], query[2])
        if query and key:
            return Pair(number, class_id, items.classes[class_id], query[0], key[0]), query[1], key[1]
    raise InputError(
        f"no background of {_BACKGROUND_DRAWS} tried can hold an item like {segments[0].segment_id!r} or "
        f"{segments[1].segment_id!r}; choose a larger --width or another --scale"
    )


def _make_view(
    rng: Generator, recipe: Recipe, hosts: Regions, segment: Segment, taken: int
) -> tuple[View, Image, int] | None:
    """Paste a segment on a background other than number `taken`; the number of the one used comes third.

    None when no background can hold it.
    """
    coefficients = recipe.coefficients or BLENDS[recipe.blend].coefficients
    for _ in range(_BACKGROUND_DRAWS):
        chosen = int(rng.integers(len(hosts.images)))
        if chosen == taken:
            continue
        size, region = _bag(rng, hosts, chosen, recipe.width)
        placed = place(rng, segment, region, recipe.width, recipe.scales)
        if placed is None:
            continue
        geometry, patch, (x, y) = placed
        box: Box = (x, y, x + patch.mask.shape[1], y + patch.mask.shape[0])
        coefficient = float(rng.uniform(*coefficients))
        host = fit(read_background(recipe, hosts, chosen), size)
        # A crop is not an item: it shows a bag of its own.
        on_matter = 1.0 if segment.upright else share_on_matter(host, patch, box, int(hosts.levels[chosen]))
        blend(host, patch, box, segment.background, recipe.blend, coefficient)
        occluder = None
        if recipe.occluded and rng.random() < recipe.occluded:
            occluder = _occlude(rng, recipe, hosts, host, box, region, {chosen, taken})
        view = View(
            box=box,
            size=size,
            background=hosts.images[chosen].as_py(),
            segment=segment.segment_id,
            region=region,
            blend=recipe.blend,
            coefficient=coefficient,
            **vars(geometry),
            occluder=occluder,
            mask=encode_rle(_in_frame(patch.mask, box, size)),
            on_matter=on_matter,
        )
        return view, host, chosen
    return None


def _in_frame(mask: Mask, box: Box, size: tuple[int, int]) -> Mask:
    """Put a mask into `box` of an empty frame of `size` (width, height), laid out as run-length encoding reads it."""
    frame = np.zeros((size[1], size[0]), bool, order="F")
    frame[box[1] : box[3], box[0] : box[2]] = mask
    return frame


def _bag(rng: Generator, hosts: Regions, number: int, width: int) -> tuple[tuple[int, int], Box]:
    """Draw a bag of a background: the stored (width, height), and the bag's box in its pixels."""
    native = int(hosts.sizes[number, 0]), int(hosts.sizes[number, 1])
    return frame(native, hosts.draw_bag(rng, number), width)


def _occlude(
    rng: Generator, recipe: Recipe, hosts: Regions, host: Image, box: Box, bag: Box, others: set[int]
) -> Occluder | None:
    """Lay a piece of a background that is none of the `others` over the item in `box`, within its bag.

    None when there is no third background.
    """
    if len(hosts.images) <= len(others):
        return None
    while (chosen := int(rng.integers(len(hosts.images)))) in others:
        pass
    size, room = _bag(rng, hosts, chosen, recipe.width)
    if min(room[2] - room[0], room[3] - room[1]) < 1:  # a bag that shrinks to nothing
        return None
    piece, corner = place_occluder(rng, box, bag, room)
    x0, y0, x1, y1 = piece
    clutter = fit(read_background(recipe, hosts, chosen), size)[y0:y1, x0:x1]
    occlude(host, clutter, corner, int(hosts.levels[chosen]))
    return Occluder(hosts.images[chosen].as_py(), piece, corner)


def read_background(recipe: Recipe, hosts: Regions, number: int) -> Image:
    """Read background `number` of `hosts`, reduced where that leaves enough of it (`geometry.reduction`).

    Raises:
        InputError: it cannot be read, or is not the file its region was measured on.
    """
    name = hosts.images[number].as_py()
    try:
        data = read_file(recipe.backgrounds / safe_relative(name))
        scan = decode(data, reduction=reduction(int(hosts.sizes[number, 0]), recipe.width))
        if zlib.crc32(data) != hosts.crcs[number]:
            raise ImageError("not the file it was")
        return scan
    except ValueError as error:  # ImageError is one
        path = str(recipe.backgrounds / name)
        raise InputError(f"background {path!r}: {error}; run pipeline.regions again") from error
