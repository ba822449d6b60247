"""Composition: pastes a placed segment into a background, and lays occluders over it (paper section 3.1).

Everything here is a pure function; randomness comes from a generator that is passed in and ends up in the `View`,
from which `paste` makes the same picture again.
"""

from __future__ import annotations

import math

import cv2
import numpy as np
import numpy.typing as npt

from pipeline.bags.belt import LEAST_CONTRAST
from pipeline.pairing.blends import BLENDS, RATIO_FLOOR
from pipeline.pairing.geometry import Geometry, Patch, fit, render
from pipeline.tables.segment_table import Segment
from segloc.common.contract import Box, View
from segloc.common.images import Image

OCCLUDER_SIDES = (0.7, 1.2)  # of the item's box


def paste(background: Image, segment: Segment, view: View, occluder: tuple[Image, int] | None = None) -> Image:
    """Make the stored image a view describes.

    Args:
        background: the scan `view.background`, uint8 RGB [h, w, 3], decoded with `reduction`. It may be changed.
        segment: the segment `view.segment`.
        view: the recipe.
        occluder: the scan `view.occluder` names, at the stored width, and its belt's level.

    Returns:
        uint8 RGB [view height, view width, 3].

    Raises:
        ValueError: the view has an occluder and none is given.
    """
    if view.occluder is not None and occluder is None:
        raise ValueError(f"the scan {view.occluder.background!r} lies over the item and is not given")
    patch = render(segment, Geometry(view.rotation_deg, view.scale, view.flip_h, view.flip_v))
    assert patch is not None  # views are only made of segments that render
    host = fit(background, view.size)
    blend(host, patch, view.box, segment.background, view.blend, view.coefficient)
    if view.occluder is not None and occluder is not None:
        x0, y0, x1, y1 = view.occluder.box
        occlude(host, occluder[0][y0:y1, x0:x1], view.occluder.corner, occluder[1])
    return host


def share_on_matter(host: Image, patch: Patch, box: Box, level: int) -> float:
    """Share of an item's pixels under which a background is darker than its belt, to four digits.

    Darker is what lies more than the adaptive rule's least margin (`belt.LEAST_CONTRAST`) below the belt's level. The
    rule widens its margin with the noise of a reduced scan, which is not known here.

    Args:
        host: the background at its stored size, uint8 RGB [H, W, 3], before anything is pasted.
        patch: the item.
        box: where it goes.
        level: grey level of the belt.
    """
    x0, y0, x1, y1 = box
    dark = cv2.cvtColor(host[y0:y1, x0:x1], cv2.COLOR_RGB2GRAY) < math.ceil(level - LEAST_CONTRAST)
    return round(float(np.count_nonzero(dark & patch.mask) / np.count_nonzero(patch.mask)), 4)


def place_occluder(rng: np.random.Generator, box: Box, bag: Box, room: Box) -> tuple[Box, tuple[int, int]]:
    """Draw which piece of another scan goes over an item, and where: of about the item's size, its centre on the item.

    Args:
        rng: source of all that is drawn.
        box: of the item, in pixels of the stored image.
        bag: the region the item lies in, which the piece stays within.
        room: a bag of the other scan, at the stored width.

    Returns:
        The piece, a box within `room`, and its top left corner (x, y) in the stored image.
    """
    piece, corner = [], []
    for axis in (0, 1):
        low, high = box[axis], box[axis + 2]
        first, last = bag[axis], bag[axis + 2]
        side = max(1, round((high - low) * rng.uniform(*OCCLUDER_SIDES)))
        side = min(side, room[axis + 2] - room[axis], last - first)
        start = int(rng.integers(room[axis], room[axis + 2] - side, endpoint=True))
        piece.append((start, start + side))
        corner.append(min(max(first, int(rng.integers(low, high)) - side // 2), last - side))
    (x0, x1), (y0, y1) = piece
    return (x0, y0, x1, y1), (corner[0], corner[1])


def occlude(host: Image, clutter: Image, corner: tuple[int, int], level: int) -> None:
    """Lay a piece of another scan over `host`, in place: transmissions multiply (Beer-Lambert).

    The piece fades out towards its rim, an ellipse, so that no edge of it shows where no matter ends.

    Args:
        host: uint8 RGB [H, W, 3]; changed.
        clutter: uint8 RGB [h, w, 3], the piece.
        corner: where its top left corner (x, y) goes.
        level: grey level of the piece's belt, which lets all through.
    """
    height, width = clutter.shape[:2]
    rows, columns = ((np.arange(side) + 0.5) / side * 2 - 1 for side in (height, width))
    weight = np.clip(1.5 * (1 - rows[:, None] ** 2 - columns**2), 0, 1)[..., None]
    transmission = np.clip(clutter / max(1, level), RATIO_FLOOR, 1)
    window = host[corner[1] : corner[1] + height, corner[0] : corner[0] + width]
    window[:] = np.rint(window * (1 + weight * (transmission - 1)))


def blend(host: Image, patch: Patch, box: Box, donor: npt.NDArray[np.float32], mode: str, coefficient: float) -> None:
    """Blend a patch into `box` of `host`, in place; pixels outside the mask stay as they are.

    Args:
        host: uint8 RGB [H, W, 3]; changed.
        patch: of the box's size.
        box: where.
        donor: float32 [3], the segment's surroundings in its donor.
        mode: a name in `BLENDS`.
        coefficient: the mode's, see there.
    """
    x0, y0, x1, y1 = box
    window = host[y0:y1, x0:x1]
    mixed = BLENDS[mode].mix(window, patch, donor, coefficient)
    cv2.copyTo(mixed, patch.mask.view(np.uint8), window)
