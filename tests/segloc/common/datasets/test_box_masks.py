"""Boxes that do not fit their masks: most of a file are refused, single ones are skipped and counted."""

import json
import re

import pytest

from segloc.common.datasets import Split, box_masks
from segloc.common.datasets.coco import read_coco, read_instances
from segloc.common.errors import InputError
from segloc.detection.splits import read_split
from tests.segloc.common.datasets.test_corner_boxes import HEIGHT, WIDTH, boxes_of, corners, write


def changed(path, change, kind="polygon", every=1):
    """A file of 40 items of which each `every`-th is changed: `change` gets its box and outline."""
    write(path, boxes_of(40), kind)
    content = json.loads(path.read_text())
    for item in content["annotations"][::every]:
        item["bbox"], item["segmentation"] = change(item["bbox"], item["segmentation"])
    path.write_text(json.dumps(content))
    return path


def swapped(outline):
    return [[value for y, x in zip(part[::2], part[1::2], strict=True) for value in (x, y)] for part in outline]


WRONG = {
    "polygons as y, x": lambda box, outline: (box, swapped(outline)),
    "polygons at half scale": lambda box, outline: (box, [[value / 2 for value in part] for part in outline]),
    "one box for all": lambda box, outline: ([0, 0, 5, 5], outline),
    "boxes as y, x, h, w": lambda box, outline: ([box[1], box[0], box[3], box[2]], outline),
}
ANY_MASK = ["one box for all", "boxes as y, x, h, w"]


@pytest.mark.parametrize(
    ("fault", "kind"), [*((fault, "polygon") for fault in WRONG), *((fault, "rle") for fault in ANY_MASK)]
)
def test_a_file_in_which_most_boxes_do_not_fit_is_refused(tmp_path, fault, kind):
    file = changed(tmp_path / "a.json", WRONG[fault], kind)
    readers = (read_coco, lambda path: read_instances(path, tmp_path), lambda path: read_split(Split("a", path, None)))
    for read in readers:
        with pytest.raises(InputError, match=rf"^{re.escape(str(file))}: boxes do not fit their masks: \d\d of \d\d "):
            read(file)


def test_the_example_names_the_annotation_and_both_boxes(tmp_path):
    file = changed(tmp_path / "a.json", WRONG["one box for all"])
    true = [float(edge) for edge in boxes_of(40)[0]]
    said = f"such as bbox [0, 0, 5, 5] of annotation 0 of image 0, whose mask has the box {true}; {box_masks.HINT}"
    with pytest.raises(InputError, match=f"{re.escape(said)}$"):
        read_coco(file)


@pytest.mark.parametrize("kind", ["polygon", "rle"])
@pytest.mark.parametrize("change", [lambda box, outline: ([0, 0, 5, 5], outline), lambda b, m: (corners(b), m)])
def test_single_boxes_that_do_not_fit_are_skipped_and_counted(tmp_path, kind, change):
    file = changed(tmp_path / "a.json", change, kind, every=10)
    assert read_split(Split("a", file, None)).skips.counts == {box_masks.REASON: 4}
    for number in range(40):
        (tmp_path / f"{number}.png").touch()
    assert read_instances(file, tmp_path).skips.counts == {box_masks.REASON: 4}


def loose(share):
    """A box around an item of which the mask covers a share of the width, because the rest is hidden."""

    def change(box, outline):
        x, y, w, h = box
        return box, [[x, y, x + share * w, y, x + share * w, y + h, x, y + h]]

    return change


def test_loose_boxes_are_read(tmp_path):
    assert not read_split(Split("a", changed(tmp_path / "a.json", loose(0.6)), None)).skips.counts
    assert not read_split(Split("a", changed(tmp_path / "b.json", loose(0.25), every=3), None)).skips.counts


@pytest.mark.parametrize(
    "fits",
    [
        ([10, 10, 1, 40], [[10.4, 10, 10.6, 10, 10.6, 50, 10.4, 50]]),  # thinner than a pixel
        ([10, 10, 0, 40], [[10, 10, 11, 10, 11, 50, 10, 50]]),  # width counted without the last pixel
        ([-50, -50, 80, 80], [[-50, -50, 30, -50, 30, 30, -50, 30]]),  # both leave the image
        ([0, 0, 30, 30], [[-50, -50, 30, -50, 30, 30, -50, 30]]),
    ],
)
def test_rounding_and_the_image_edge_do_not_matter(fits):
    assert box_masks.fit(*fits, (WIDTH, HEIGHT)).overlap >= box_masks.LOOSE


@pytest.mark.parametrize(
    "mask",
    [None, [], {}, 7, "text", [[1, 2]], [["a"] * 6], [[1, 1, 1e9, 1, 5, 5]], [[5, 5, 5, 5, 5, 5]], [[10**400] * 6]],
)
def test_masks_that_cannot_be_used_are_left_to_their_own_check(mask):
    assert box_masks.fit([1, 2, 3, 4], mask, (WIDTH, HEIGHT)) is None


@pytest.mark.parametrize("size", [(-5, 40), (0, 40), (40, 1 << 40)])
def test_sizes_that_no_image_has_are_left_to_their_own_check(size):
    assert box_masks.fit([1, 2, 3, 4], [[1, 2, 30, 2, 30, 20, 1, 20]], size) is None
