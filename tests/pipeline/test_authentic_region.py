import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.authentic_region import adaptive, belt_level, paper
from pipeline.images import read_image
from segloc.contract import Box


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
def test_paper_threshold_to_the_level(level: int, kept: bool, shape: tuple[int, int]) -> None:
    box = (0, 0, shape[1], shape[0]) if kept else None
    assert paper(np.full(shape, level, np.uint8)) == box


def test_paper_kernel_to_the_pixel() -> None:
    grey = np.full((40, 50), 255, np.uint8)
    grey[10:30, 20:41] = 90
    assert paper(grey) == (24, 14, 37, 26)
    grey[10:30, 20:28] = 255
    grey[10:18] = 255
    assert paper(grey) == (32, 22, 37, 26)
    grey[22, 36] = 205  # one bright pixel takes all windows around it
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


def iou(a: Box, b: Box) -> float:
    overlap = max(0, min(a[2], b[2]) - max(a[0], b[0])) * max(0, min(a[3], b[3]) - max(a[1], b[1]))
    areas = sum((x1 - x0) * (y1 - y0) for x0, y0, x1, y1 in (a, b))
    return overlap / (areas - overlap)


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


def test_grey_belts_are_told_from_bags_on_real_scans(real_scans) -> None:
    for path in sorted((real_scans / "sixray" / "JPEGImage").glob("N9*.jpg")):
        grey = read_image(path, "grey")
        box, level = adaptive(grey)
        assert 190 <= level <= 200
        assert box is not None
        assert box[3] - box[1] < grey.shape[0] or "N9000231" in path.name  # whose trolley reaches the frame
        assert paper(grey) == (0, 0, grey.shape[1], grey.shape[0])  # the fault that the mode is there for
