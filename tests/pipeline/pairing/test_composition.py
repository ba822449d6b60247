import dataclasses

import numpy as np

from pipeline.pairing.composition import paste
from pipeline.pairing.geometry import fit, frame, place
from segloc.common.contract import View
from segloc.common.masks import tight_box
from tests.pipeline.pairing.items import blob, segment


def test_the_recipe_makes_the_picture_again_and_only_inside_the_box() -> None:
    item = segment(blob(80, 50))
    scan = np.random.default_rng(1).integers(0, 256, (300, 400, 3), np.uint8)
    size, region = frame((400, 300), (50, 50, 350, 250), 200)
    geometry, patch, (x, y) = place(np.random.default_rng(2), item, region, 200)
    box = (x, y, x + patch.mask.shape[1], y + patch.mask.shape[0])
    view = View(box, size, "b", "s", region, "alpha", 0.5, **dataclasses.asdict(geometry))
    made, host = paste(scan.copy(), item, view), fit(scan, size)
    changed = (made != host).any(2)
    assert tight_box(changed) is not None
    whole = np.zeros(changed.shape, bool)
    whole[y : box[3], x : box[2]] = patch.mask
    assert not (changed & ~whole).any()
    assert (paste(scan.copy(), item, view) == made).all()
