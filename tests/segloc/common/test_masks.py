import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from pycocotools import mask as coco_mask

from segloc.common.masks import MaskError, decode_rle, encode_mask, encode_rle, is_connected, rasterise, tight_box


def drawn(picture: str) -> np.ndarray:
    return np.array([[character == "#" for character in line] for line in picture.split()])


RING = drawn(
    """
    ........
    .#####..
    .#...#..
    .#...#.#
    .#####.#
    """
)


def uncompressed(mask: np.ndarray) -> dict:
    """Run lengths column by column, from the definition."""
    counts, value = [0], False
    for pixel in mask.T.ravel():
        if pixel != value:
            counts.append(0)
            value = not value
        counts[-1] += 1
    return {"size": list(mask.shape), "counts": counts}


def compressed(mask: np.ndarray) -> dict:
    encoded = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": list(mask.shape), "counts": encoded["counts"].decode()}


def test_parts_of_a_polygon_are_united() -> None:
    left, right = [1, 1, 3, 1, 3, 4, 1, 4], [5, 0, 7, 0, 7, 2, 5, 2]
    expected = drawn(
        """
        .....##.
        .##..##.
        .##.....
        .##.....
        ........
        """
    )
    assert (rasterise([left, right], 8, 5) == expected).all()


@pytest.mark.parametrize("encode", [uncompressed, compressed])
def test_run_lengths_keep_holes_and_parts(encode) -> None:
    assert (rasterise(encode(RING), 8, 5) == RING).all()


@given(arrays(bool, st.tuples(st.integers(1, 20), st.integers(1, 20))).filter(np.any))
def test_both_run_lengths_restore_any_mask(mask: np.ndarray) -> None:
    height, width = mask.shape
    assert (rasterise(uncompressed(mask), width, height) == mask).all()
    assert (rasterise(compressed(mask), width, height) == mask).all()


def test_pixels_outside_the_scan_are_cut_off() -> None:
    mask = rasterise([[-5, -5, 4, -5, 4, 3, -5, 3]], 10, 6)
    assert tight_box(mask) == (0, 0, 4, 3)
    assert mask.sum() == 12


SQUARE = [1, 1, 4, 1, 4, 4, 1, 4]


@pytest.mark.parametrize(
    ("segmentation", "reason"),
    [
        (None, "no mask"),
        ([], "no mask"),
        ("abc", "no mask"),
        ([[1, 1, 4, 4]], "fewer than three points"),
        ([[1, 1, 4, 1, 4]], "malformed polygon"),
        ([[1, 1, "4", 1, 4, 4]], "malformed polygon"),
        ([1, 1, 4, 1, 4, 4], "malformed polygon"),
        ([[1, 1, float("nan"), 1, 4, 4]], "malformed polygon"),
        ([[1, 1, 10**400, 1, 4, 4]], "far outside"),
        ([[1, 1, 1e9, 1, 4, 4]], "far outside"),
        ([[-6, -6, -2, -6, -2, -2]], "empty mask"),
        ({"size": [5, 8], "counts": [40]}, "empty mask"),
        ({"size": [8, 5], "counts": [3, 37]}, "another image size"),
        ({"counts": [3, 37]}, "another image size"),
        ({"size": [5, 8], "counts": [3, 36]}, "broken RLE"),
        ({"size": [5, 8], "counts": [3, -1, 38]}, "broken RLE"),
        ({"size": [5, 8], "counts": "zzzz"}, "broken RLE"),
        ({"size": [5, 8], "counts": ""}, "broken RLE"),
        ({"size": [5, 8], "counts": "é"}, "broken RLE"),
        ({"size": [5, 8], "counts": 7}, "broken RLE"),
    ],
)
def test_unusable_segmentations_are_refused(segmentation, reason: str) -> None:
    with pytest.raises(MaskError, match=reason):
        rasterise(segmentation, 8, 5)


def test_a_degenerate_part_beside_a_good_one_is_left_out() -> None:
    assert (rasterise([[0, 0, 8, 5], SQUARE], 8, 5) == rasterise([SQUARE], 8, 5)).all()


@given(arrays(bool, st.tuples(st.integers(1, 12), st.integers(1, 12))))
def test_tight_box_against_its_definition(mask: np.ndarray) -> None:
    box = tight_box(mask)
    points = np.argwhere(mask)
    if box is None:
        assert not len(points)
    else:
        assert box == (*points.min(0)[::-1], *(points.max(0)[::-1] + 1))


def test_overlapping_polygons_are_united_not_cancelled() -> None:
    # COCO's parts are a union: a polygon inside another is not a hole. Holes need run lengths.
    outer, inner = [1, 0, 7, 0, 7, 5, 1, 5], [3, 1, 5, 1, 5, 4, 3, 4]
    assert (rasterise([outer, inner], 8, 5) == rasterise([outer], 8, 5)).all()
    holed = rasterise([outer], 8, 5) & ~rasterise([inner], 8, 5)
    assert holed.sum() == 30 - 6
    for encode in (uncompressed, compressed):
        assert (rasterise(encode(holed), 8, 5) == holed).all()


@given(arrays(bool, st.tuples(st.integers(1, 9), st.integers(1, 9))))
def test_connected_against_its_definition(mask: np.ndarray) -> None:
    left = {tuple(point) for point in np.argwhere(mask)}
    waiting = [left.pop()] if left else []
    while waiting:
        y, x = waiting.pop()
        near = {(y + dy, x + dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)} & left
        left -= near
        waiting += near
    assert is_connected(mask) == (mask.any() and not left)


@given(arrays(bool, st.tuples(st.integers(1, 12), st.integers(1, 12))))
def test_run_length_text_is_cocos_and_is_read_back(mask: np.ndarray) -> None:
    height, width = mask.shape
    for laid_out in (mask, np.asfortranarray(mask)):
        text = encode_rle(laid_out)
        assert text == compressed(mask)["counts"]
        assert encode_mask(laid_out) == compressed(mask)
        assert (decode_rle(text, width, height) == mask).all()


@pytest.mark.parametrize("text", ["", "0", encode_rle(RING)[:-1], encode_rle(RING) + "1", "\ud800", "~~", "M0", "é"])
def test_invalid_run_length_text_is_refused(text: str) -> None:
    with pytest.raises(MaskError):
        decode_rle(text, 8, 5)


@pytest.mark.parametrize(("width", "height"), [(8, 6), (9, 5), (0, 0)])
def test_run_length_text_of_another_size_is_refused(width: int, height: int) -> None:
    with pytest.raises(MaskError):
        decode_rle(encode_rle(RING), width, height)


def test_outlines_and_run_lengths_that_would_take_minutes_are_refused():
    began = time.monotonic()
    for segmentation, reason in (
        ([[0, 0, 80, 56] * 100_000], "polygon with too long an outline"),
        ({"size": [56, 80], "counts": "0" * 10**6}, "broken RLE"),
        ({"size": [56, 80], "counts": [0] * 10**6 + [56 * 80]}, "broken RLE"),
    ):
        with pytest.raises(MaskError, match=reason):
            rasterise(segmentation, 80, 56)
    assert time.monotonic() - began < 2


def test_the_longest_outline_of_a_real_item_is_far_below_the_limit():
    comb = [point for x in range(0, 2000, 2) for point in ((x, 0), (x, 400), (x + 1, 400), (x + 1, 0))]
    assert rasterise([[float(value) for point in comb for value in point]], 2000, 400).any()
