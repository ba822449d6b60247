import dataclasses

import numpy as np

from pipeline.bags.belt import LEAST_CONTRAST
from pipeline.pairing.composition import paste, share_on_matter
from pipeline.pairing.geometry import Patch, fit, frame, place
from segloc.common.contract import View
from segloc.common.masks import tight_box
from tests.pipeline.pairing.items import blob, segment


def test_the_recipe_reproduces_the_picture_and_changes_only_the_box() -> None:
    item = segment(blob(80, 50))
    scan = np.random.default_rng(1).integers(0, 256, (300, 400, 3), np.uint8)
    size, region = frame((400, 300), (50, 50, 350, 250), 200)
    geometry, patch, (x, y) = place(np.random.default_rng(2), item, region, 200)
    box = (x, y, x + patch.mask.shape[1], y + patch.mask.shape[0])
    view = View(box, size, "b", "s", region, "alpha", 0.5, **dataclasses.asdict(geometry))
    made, background = paste(scan.copy(), item, view), fit(scan, size)
    changed = (made != background).any(2)
    assert tight_box(changed) is not None
    whole = np.zeros(changed.shape, bool)
    whole[y : box[3], x : box[2]] = patch.mask
    assert not (changed & ~whole).any()
    assert (paste(scan.copy(), item, view) == made).all()


def test_share_on_matter_counts_the_masks_pixels_that_are_darker_than_the_belt() -> None:
    background = np.full((40, 60, 3), 200, np.uint8)
    background[:, 30:] = 200 - LEAST_CONTRAST  # the darkest level that still counts as belt
    background[:, 45:] = 200 - LEAST_CONTRAST - 1
    mask = np.ones((20, 40), bool)
    mask[:, 39] = False  # a column on matter
    share = share_on_matter(background, Patch(background[10:30, 16:56], mask), (16, 10, 56, 30), 200)
    assert share == round(10 / 39, 4)
    everywhere = Patch(background[:, 45:50], np.ones((40, 5), bool))
    assert share_on_matter(background, everywhere, (45, 0, 50, 40), 200) == 1
    assert share_on_matter(background, everywhere, (45, 0, 50, 40), 3) == 0
