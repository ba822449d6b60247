from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.region_score import iou
from pipeline.bags.authentic_region import _paper_by_strips, adaptive, bags, belt_level, paper, paper_steps, union
from segloc.common.contract import Box
from segloc.common.images import read_image
from tests.pipeline.bags.boxes import drawn_boxes


def plain_paper(grey: np.ndarray) -> Box | None:
    """The paper's rule, step by step, in numpy."""
    inverted = 255 - grey.astype(int)
    height, width = grey.shape
    kept = np.zeros((height, width), bool)
    for y in range(height):
        for x in range(width):
            window = inverted[max(0, y - 4) : y + 5, max(0, x - 4) : x + 5]
            kept[y, x] = window.min() > 50
    rows, columns = np.nonzero(kept.any(1))[0], np.nonzero(kept.any(0))[0]
    return (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1) if len(rows) else None


@settings(max_examples=150, deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 2**32 - 1), st.sampled_from([0.0, 0.02, 0.1, 0.5]))
def test_paper_mode_is_the_papers_rule(height: int, width: int, seed: int, bright: float) -> None:
    rng = np.random.default_rng(seed)
    grey = rng.choice(np.array([0, 100, 203, 204], np.uint8), (height, width))
    grey[rng.random(grey.shape) < bright] = rng.choice(np.array([205, 206, 255], np.uint8))
    assert paper(grey) == plain_paper(grey)


@pytest.mark.parametrize(("level", "kept"), [(203, True), (204, True), (205, False), (206, False)])
@pytest.mark.parametrize("shape", [(1, 1), (1, 30), (30, 1), (20, 30)])
def test_paper_threshold_is_exact(level: int, kept: bool, shape: tuple[int, int]) -> None:
    box = (0, 0, shape[1], shape[0]) if kept else None
    assert paper(np.full(shape, level, np.uint8)) == box


def test_paper_kernel_is_exact() -> None:
    grey = np.full((40, 50), 255, np.uint8)
    grey[10:30, 20:41] = 90
    assert paper(grey) == (24, 14, 37, 26)
    grey[10:30, 20:28] = 255
    grey[10:18] = 255
    assert paper(grey) == (32, 22, 37, 26)
    grey[22, 36] = 205  # one bright pixel removes all windows around it
    assert paper(grey) is None


@pytest.mark.parametrize("kind", ["sixray/JPEGImage/*.jpg", "pidray/train/*.png"])
def test_paper_mode_on_real_scans(kind: str, real_scans) -> None:
    paths = sorted(real_scans.glob(kind))[::8]
    assert paths
    for path in paths:
        grey = read_image(path, "grey")
        kept = np.argwhere(cv2.erode(255 - grey, np.ones((9, 9), np.uint8)) > 50)
        assert paper(grey) == (*kept.min(0)[::-1], *(kept.max(0)[::-1] + 1))


def belt_with_bag(
    level: int, contrast: int, noise: float, box: Box, shape: tuple[int, int], seed: int = 0
) -> np.ndarray:
    rng = np.random.default_rng(seed)
    grey = np.full(shape, level, float)
    x0, y0, x1, y1 = box
    grey[y0:y1, x0:x1] -= contrast
    grey[y0 + 40 : y1 - 40, x0 + 40 : x1 - 40] -= 60
    return np.clip(np.rint(grey + rng.normal(0, noise, shape)), 0, 255).astype(np.uint8)


BAG = (110, 90, 430, 300)


@pytest.mark.parametrize("level", [255, 240, 196])
@pytest.mark.parametrize(("contrast", "noise"), [(9, 0.5), (20, 2.0), (60, 3.0)])
def test_adaptive_mode_finds_faint_bags_on_any_belt(level: int, contrast: int, noise: float) -> None:
    box, found = adaptive(belt_with_bag(level, contrast, noise, BAG, (400, 600)))
    assert box is not None
    assert iou(box, BAG) > 0.95
    assert abs(found - level) <= 2


def test_adaptive_mode_ignores_speckle_lines_and_the_last_row() -> None:
    grey = belt_with_bag(250, 30, 1.0, BAG, (400, 600))
    rng = np.random.default_rng(1)
    grey[rng.integers(0, 400, 60), rng.integers(0, 600, 60)] = 120
    grey[30:33] = 200
    grey[:, 560:562] = 210
    grey[-1, ::2] = 0
    box, _ = adaptive(grey)
    assert box is not None
    assert iou(box, BAG) > 0.95


def test_adaptive_mode_unites_bags() -> None:
    grey = np.full((300, 900), 196, np.uint8)
    grey[50:150, 40:200] = 120
    grey[100:260, 500:800] = 150
    box, level = adaptive(grey)
    assert level == 196
    assert box is not None
    assert iou(box, (40, 50, 800, 260)) > 0.97


@pytest.mark.parametrize("level", [255, 196])
def test_adaptive_mode_finds_nothing_on_empty_belt(level: int) -> None:
    grey = np.clip(np.random.default_rng(0).normal(level, 2, (400, 600)), 0, 255).astype(np.uint8)
    assert adaptive(grey)[0] is None


@pytest.mark.parametrize("shape", [(1, 1), (1, 700), (2000, 3), (9, 9), (513, 511), (1025, 64)])
def test_any_size_gives_a_box_inside_the_scan(shape: tuple[int, int]) -> None:
    grey = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    for box in (paper(grey), adaptive(grey)[0]):
        if box is not None:
            assert 0 <= box[0] < box[2] <= shape[1]
            assert 0 <= box[1] < box[3] <= shape[0]


def test_belt_level_is_the_brightest_common_tone_not_the_most_common() -> None:
    grey = np.full((100, 100), 150, np.uint8)
    grey[:10] = 240
    grey[50, :5] = 255
    assert belt_level(grey) == 240


def test_grey_belts_are_distinguished_from_bags_on_real_scans(real_scans) -> None:
    for path in sorted((real_scans / "sixray" / "JPEGImage").glob("N9*.jpg")):
        grey = read_image(path, "grey")
        box, level = adaptive(grey)
        assert 190 <= level <= 200
        assert box is not None
        assert box[3] - box[1] < grey.shape[0] or "N9000231" in path.name  # its trolley reaches the frame
        assert paper(grey) == (0, 0, grey.shape[1], grey.shape[0])  # the fault that the adaptive mode corrects


# Minimum per group: the target is 0.95 over all and 0.90 in each. For trays see test_trays.py.
LEAST_IOU = {"grey belt": 0.97, "white belt": 0.975, "with items": 0.965}


@pytest.mark.parametrize("group", LEAST_IOU)
def test_adaptive_mode_agrees_with_boxes_drawn_by_eye(group: str, real_scans: Path) -> None:
    scores = []
    for name, grey, drawn in drawn_boxes(group, real_scans):
        found, _ = adaptive(grey)
        assert found is not None, name
        scores.append(iou(found, drawn))
    assert len(scores) >= 10
    assert np.mean(scores) >= LEAST_IOU[group]
    assert min(scores) >= 0.9


def test_sides_are_placed_to_the_pixel_at_any_size() -> None:
    for width in (300, 700, 1500, 3000):
        grey = np.full((width // 2, width), 250, np.uint8)
        box = (width // 5 + 3, width // 9 + 1, width // 2 + 5, width // 3 + 2)
        grey[box[1] : box[3], box[0] : box[2]] = 100
        found, _ = adaptive(grey)
        assert found is not None
        assert np.abs(np.subtract(found, box)).max() <= 1  # because of the 3x3 mean against noise


def test_the_visible_part_of_a_bag_cut_by_the_frame_counts() -> None:
    grey = np.full((1000, 1700), 196, np.uint8)
    grey[300:700, 600:1300] = 120
    grey[320:450, :30] = 100
    found, _ = adaptive(grey)
    assert found is not None
    assert np.abs(np.subtract(found, (0, 300, 1300, 700))).max() <= 1


@pytest.mark.parametrize("factor", [1, 2, 4])
def test_jagged_last_rows_are_not_a_bag(factor: int) -> None:
    grey = np.full((300 * factor, 400 * factor), 250, np.uint8)
    grey[50 * factor : 200 * factor, 100 * factor : 250 * factor] = 120
    grey[-2:, 150 * factor : 320 * factor] = 30
    grey[-1, ::3] = 0
    found, _ = bags(grey)
    assert len(found) == 1
    assert iou(found[0], (100 * factor, 50 * factor, 250 * factor, 200 * factor)) > 0.97


def test_there_is_a_box_for_each_bag() -> None:
    grey = np.full((500, 900), 196, np.uint8)
    drawn = [(40, 50, 200, 150), (500, 100, 800, 260), (510, 330, 700, 450)]
    for x0, y0, x1, y1 in drawn:
        grey[y0:y1, x0:x1] = 120
    found, _ = bags(grey)
    assert len(found) == 3
    assert all(iou(a, b) > 0.95 for a, b in zip(found, drawn, strict=True))
    assert union(found) == adaptive(grey)[0]


def test_union() -> None:
    assert union([]) is None
    assert union([(5, 6, 7, 8), (1, 7, 3, 20)]) == (1, 6, 7, 20)


@settings(max_examples=30, deadline=None)
@given(st.integers(9, 60), st.integers(9, 60), st.integers(0, 2**32 - 1))
def test_the_steps_end_at_the_papers_box(height: int, width: int, seed: int) -> None:
    grey = np.random.default_rng(seed).choice(
        np.array([60, 204, 205, 255], np.uint8), (height, width), p=[0.9, 0.08, 0.01, 0.01]
    )
    steps = paper_steps(grey)
    assert list(steps) == ["grey", "inverted", "eroded", "above 50"]
    kept = np.argwhere(steps["above 50"])
    assert paper(grey) == ((*kept.min(0)[::-1], *(kept.max(0)[::-1] + 1)) if len(kept) else None)


def test_paper_mode_on_large_random_images() -> None:
    rng = np.random.default_rng(5)
    for height, width in ((900, 1300), (1, 2000), (1500, 8), (500, 701)):
        for share in (0.0, 1e-4, 2e-3, 0.02):
            grey = np.full((height, width), 255, np.uint8)
            y, x = sorted(rng.integers(0, height + 1, 2)), sorted(rng.integers(0, width + 1, 2))
            grey[y[0] : y[1], x[0] : x[1]] = rng.choice(np.array([100, 204], np.uint8))
            grey[rng.random(grey.shape) < share] = 205
            kept = minimum_9x9(255 - grey) > 50
            places = np.argwhere(kept)
            assert paper(grey) == ((*places.min(0)[::-1], *(places.max(0)[::-1] + 1)) if len(places) else None)


@settings(max_examples=200, deadline=None)
@given(st.integers(33, 120), st.integers(33, 120), st.integers(0, 2**32 - 1), st.sampled_from([0.0, 1e-3, 1e-2]))
def test_searching_from_the_sides_gives_the_same_box(height: int, width: int, seed: int, bright: float) -> None:
    rng = np.random.default_rng(seed)
    grey = np.full((height, width), 255, np.uint8)
    for _ in range(rng.integers(1, 4)):
        y, x = sorted(rng.integers(0, height + 1, 2)), sorted(rng.integers(0, width + 1, 2))
        grey[y[0] : y[1], x[0] : x[1]] = rng.choice(np.array([100, 204, 205], np.uint8))
    grey[rng.random(grey.shape) < bright] = 205
    places = np.argwhere(minimum_9x9(255 - grey) > 50)
    expected = (*places.min(0)[::-1], *(places.max(0)[::-1] + 1)) if len(places) else None
    assert _paper_by_strips(grey) == paper(grey) == expected


def minimum_9x9(values: np.ndarray) -> np.ndarray:
    """The smallest value of each 9x9 window, clipped to the image: in numpy, one axis after the other."""
    for _ in range(2):
        padded = np.pad(values, ((4, 4), (0, 0)), constant_values=255)
        values = np.lib.stride_tricks.sliding_window_view(padded, 9, axis=0).min(-1).T
    return values
