"""Composition: pastes a transformed segment into a background and lays occluders over it (paper section 3.1).

All functions are pure. Random draws come from a generator argument and are recorded in the `View`, from which `paste`
reproduces the picture.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import cv2
import numpy as np
import numpy.typing as npt

from pipeline.bags.belt import LEAST_CONTRAST
from pipeline.pairing.blends import BLENDS, RATIO_FLOOR
from pipeline.pairing.geometry import Geometry, Patch, draw_corner, fit, render
from pipeline.tables.segment_table import Segment
from segloc.common.contract import Box, View
from segloc.common.images import Image
from segloc.common.masks import Mask

OCCLUDER_SIDES = (0.7, 1.2)  # relative to the item's box
PLACE_DRAWS = 16


class Placed(NamedTuple):
    """Position of an item, and the share of its pixels on matter rather than empty belt (`share_on_matter`)."""

    box: Box
    on_matter: float


def paste(background: Image, segment: Segment, view: View, occluder: tuple[Image, int] | None = None) -> Image:
    """Make the stored image a view describes.

    Args:
        background: the scan `view.background`, uint8 RGB [h, w, 3], decoded with `reduction`; may be modified.
        segment: the segment `view.segment`.
        view: the recipe.
        occluder: the scan of `view.occluder` at the stored width, and the level of its belt.

    Returns:
        uint8 RGB [view height, view width, 3].

    Raises:
        ValueError: the view has an occluder, but `occluder` is None.
    """
    if view.occluder is not None and occluder is None:
        raise ValueError(f"the view needs the scan of its occluder, {view.occluder.background!r}; pass `occluder`")
    patch = render(segment, Geometry(view.rotation_deg, view.scale, view.flip_h, view.flip_v))
    assert patch is not None  # views are only made of segments that render
    image = fit(background, view.size)
    blend(image, patch, view.box, segment.background, view.blend, view.coefficient)
    if view.occluder is not None and occluder is not None:
        x0, y0, x1, y1 = view.occluder.box
        occlude(image, occluder[0][y0:y1, x0:x1], view.occluder.corner, occluder[1])
    return image


def share_on_matter(background: Image, patch: Patch, box: Box, level: int) -> float:
    """Share of an item's pixels under which the background is darker than its belt, to four digits.

    Darker means more than the adaptive rule's minimum contrast (`belt.LEAST_CONTRAST`) below the level of the belt. The
    rule raises that contrast with the noise of a reduced scan, which is unknown here.

    Args:
        background: the background at its stored size, uint8 RGB [H, W, 3], before pasting.
        patch: the item.
        box: position of the item.
        level: grey level of the belt.
    """
    return _share(_matter(background, box, level), patch)


def _matter(background: Image, box: Box, level: int) -> Mask:
    """Mark the pixels of a box of the background that are darker than its belt: bool [height, width]."""
    x0, y0, x1, y1 = box
    grey = cv2.cvtColor(background[y0:y1, x0:x1], cv2.COLOR_RGB2GRAY)
    return np.asarray(grey < math.ceil(level - LEAST_CONTRAST), np.bool_)


def _share(dark: Mask, patch: Patch) -> float:
    return round(float(np.count_nonzero(dark & patch.mask) / np.count_nonzero(patch.mask)), 4)


def move_onto_matter(
    rng: np.random.Generator, background: Image, patch: Patch, first: Placed, region: Box, level: int, least: float
) -> Placed:
    """Draw other positions for an item that lies on too much empty belt, as in the corners of a turned bag's box.

    Args:
        rng: generator of the positions.
        background: the background at its stored size, uint8 RGB [H, W, 3], before pasting.
        patch: the item.
        first: the first position drawn.
        region: box that contains the item.
        level: grey level of the belt.
        least: share of the item to lie on matter.

    Returns:
        The first of `PLACE_DRAWS` positions, `first` included, with at least that share; else the one with the largest.
    """
    dark, best = _matter(background, region, level), first
    high, wide = patch.mask.shape
    for _ in range(1, PLACE_DRAWS):
        if best.on_matter >= least:
            break
        x, y = draw_corner(rng, region, patch)
        left, top = x - region[0], y - region[1]
        share = _share(dark[top : top + high, left : left + wide], patch)
        if share > best.on_matter:
            best = Placed((x, y, x + wide, y + high), share)
    return best


def place_occluder(rng: np.random.Generator, box: Box, bag: Box, room: Box) -> tuple[Box, tuple[int, int]]:
    """Draw a crop of another scan and its position over an item: about the item's size, centred on the item.

    Args:
        rng: generator of all draws.
        box: box of the item, in pixels of the stored image.
        bag: the item's region, which contains the crop.
        room: a bag of the other scan, at the stored width.

    Returns:
        The crop, a box within `room`, and its top left corner (x, y) in the stored image.
    """
    crop, corner = [], []
    for axis in (0, 1):
        low, high = box[axis], box[axis + 2]
        first, last = bag[axis], bag[axis + 2]
        side = max(1, round((high - low) * rng.uniform(*OCCLUDER_SIDES)))
        side = min(side, room[axis + 2] - room[axis], last - first)
        start = int(rng.integers(room[axis], room[axis + 2] - side, endpoint=True))
        crop.append((start, start + side))
        corner.append(min(max(first, int(rng.integers(low, high)) - side // 2), last - side))
    (x0, x1), (y0, y1) = crop
    return (x0, y0, x1, y1), (corner[0], corner[1])


def occlude(image: Image, crop: Image, corner: tuple[int, int], level: int) -> None:
    """Lay a crop of another scan over `image`, in place: transmissions multiply (Beer-Lambert).

    The crop fades out towards an elliptic rim, so that it shows no straight edges.

    Args:
        image: uint8 RGB [H, W, 3]; modified.
        crop: uint8 RGB [h, w, 3].
        corner: position of the crop's top left corner (x, y).
        level: grey level of the belt in the crop, which means full transmission.
    """
    height, width = crop.shape[:2]
    rows, columns = ((np.arange(side) + 0.5) / side * 2 - 1 for side in (height, width))
    weight = np.clip(1.5 * (1 - rows[:, None] ** 2 - columns**2), 0, 1)[..., None]
    transmission = np.clip(crop / max(1, level), RATIO_FLOOR, 1)
    window = image[corner[1] : corner[1] + height, corner[0] : corner[0] + width]
    window[:] = np.rint(window * (1 + weight * (transmission - 1)))


def blend(image: Image, patch: Patch, box: Box, donor: npt.NDArray[np.float32], mode: str, coefficient: float) -> None:
    """Blend a patch into `box` of `image`, in place; pixels outside the mask do not change.

    Args:
        image: uint8 RGB [H, W, 3]; modified.
        patch: as large as the box.
        box: position of the patch.
        donor: float32 [3], colour of the donor around the item.
        mode: a name in `BLENDS`.
        coefficient: coefficient of the mode.
    """
    x0, y0, x1, y1 = box
    window = image[y0:y1, x0:x1]
    mixed = BLENDS[mode].mix(window, patch, donor, coefficient)
    cv2.copyTo(mixed, patch.mask.view(np.uint8), window)
