"""Boxes that were written as x0, y0, x1, y1 are refused; boxes that only reach beyond their image are not."""

import json
import re

import numpy as np
import pytest

from segloc.common.datasets.coco import read_coco
from segloc.common.datasets.coco_fields import shown
from segloc.common.errors import InputError
from segloc.common.masks import encode_mask
from segloc.detection.coco_eval import evaluate
from tests.segloc.toy_coco import annotation, coco

WIDTH, HEIGHT = 400, 300


def corners(box):
    x, y, w, h = box
    return [x, y, x + w, y + h]


def boxes_of(count, seed=0):
    """Boxes of a typical set: an eighth to a half of the image's side."""
    rng = np.random.default_rng(seed)
    sides = rng.integers((WIDTH // 8, HEIGHT // 8), (WIDTH // 2, HEIGHT // 2), (count, 2))
    return [[*map(int, rng.integers(0, (WIDTH, HEIGHT) - side)), *map(int, side)] for side in sides]


def write(path, boxes, masks="none", of=None):
    """A file of one image for each box, with masks of the boxes `of` (x, y, width, height)."""
    images = [{"id": n, "file_name": f"{n}.png", "width": WIDTH, "height": HEIGHT} for n in range(len(boxes))]
    items = []
    for number, (box, true) in enumerate(zip(boxes, of or boxes, strict=True)):
        x0, y0, x1, y1 = corners(true)
        mask = np.zeros((HEIGHT, WIDTH), np.uint8)
        mask[y0:y1, x0:x1] = 1
        outline = [[x0, y0, x1, y0, x1, y1, x0, y1]]
        kinds = {"none": None, "polygon": outline, "rle": encode_mask(mask), "broken": [[1, 2]]}
        items.append({**annotation(number, number, 1, mask), "bbox": box, "segmentation": kinds[masks]})
    path.write_text(json.dumps(coco(images, items)))
    return path


@pytest.mark.parametrize("masks", ["none", "polygon", "rle", "broken"])
def test_corners_are_refused_in_one_sentence(tmp_path, masks):
    boxes = boxes_of(40)
    file = write(tmp_path / "a.json", list(map(corners, boxes)), masks, boxes)
    wrong = [n for n, (x, y, w, h) in enumerate(boxes) if x + x + w > WIDTH + 1 or y + y + h > HEIGHT + 1]
    first = wrong[0]
    said = (
        f"{file}: boxes look like x0, y0, x1, y1: {len(wrong)} of 40 leave their image as x, y, width, height, such as "
        f"bbox {shown(corners(boxes[first]))} of annotation {first} of image {first}; write bbox as x, y, width, height"
    )
    with pytest.raises(InputError, match=f"^{re.escape(said)}$"):
        read_coco(file)


@pytest.mark.parametrize("masks", ["none", "polygon", "rle"])
def test_boxes_of_the_right_kind_are_read(tmp_path, masks):
    assert len(read_coco(write(tmp_path / "a.json", boxes_of(40), masks)).items) == 40


def test_boxes_that_reach_beyond_the_image_are_read(tmp_path):
    boxes = [[x, y, w + 60, h + 60] for x, y, w, h in boxes_of(60)]
    assert sum(x + w > WIDTH or y + h > HEIGHT for x, y, w, h in boxes) > 10
    assert len(read_coco(write(tmp_path / "a.json", boxes)).items) == 60


def test_masks_decide(tmp_path):
    large = [[90, 80, 330, 240]] * 8  # would fit as corners, but the masks agree with width and height
    assert len(read_coco(write(tmp_path / "a.json", large, "rle", [[90, 80, 310, 220]] * 8)).items) == 8
    few = boxes_of(3, seed=1)
    assert read_coco(write(tmp_path / "b.json", [corners(box) for box in few]))  # too few without masks
    with pytest.raises(InputError, match="boxes look like x0, y0, x1, y1"):
        read_coco(write(tmp_path / "c.json", [corners(box) for box in few], "rle", few))


@pytest.mark.parametrize("side", [10**400, 10**12, 0])
def test_sizes_of_any_value_do_not_stop_the_check(tmp_path, side):
    file = write(tmp_path / "a.json", boxes_of(8))
    content = json.loads(file.read_text())
    content["images"][0]["width"], content["annotations"][1]["bbox"] = side, [1e308] * 4
    file.write_text(json.dumps(content))
    assert len(read_coco(file).items) == 8


def test_results_of_corners_are_refused(tmp_path):
    boxes = boxes_of(40)
    truth = json.loads(write(tmp_path / "a.json", boxes, "rle").read_text())
    for number, item in enumerate(truth["annotations"], start=1):
        item["id"] = number
    found = [{"image_id": n, "category_id": 1, "bbox": box, "score": 0.5} for n, box in enumerate(boxes)]
    assert evaluate(truth, found, "bbox")["AP"] == pytest.approx(100)
    with pytest.raises(InputError, match=r"boxes look like x0, y0, x1, y1: \d+ of 40 .* of result \d+; write bbox"):
        evaluate(truth, [one | {"bbox": corners(one["bbox"])} for one in found], "bbox")
