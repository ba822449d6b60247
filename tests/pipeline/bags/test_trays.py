from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks.region_score import iou
from pipeline.bags.authentic_region import adaptive, bags
from tests.pipeline.bags.boxes import drawn_boxes
from tests.pipeline.bags.drawn_trays import Tray, draw

VIEWS = [
    Tray(),
    Tray(level=196),
    Tray(level=196, turn=12, ribs=True),
    Tray(level=240, turn=6),
    Tray(floor=0),
    Tray(floor=0, turn=-20),
    Tray(floor=15),
    Tray(floor=15, turn=-5, level=245),
    Tray(turn=30),
    Tray(turn=45, radius=90),
    Tray(wall=8),
    Tray(wall=55),
    Tray(thickness=14),
    Tray(thickness=75, wall=30),
    Tray(walls=2, thickness=20),
    Tray(walls=2, thickness=14, turn=8, floor=0),
    Tray(radius=4),
    Tray(radius=110),
    Tray(skew=0.15),
    Tray(skew=0.3, turn=-10),
    Tray(ribs=True),
    Tray(ribs=True, turn=15, skew=0.1),
]
CUT = [
    Tray(at=(-150, 0)),
    Tray(at=(-205, 0)),  # the bag almost reaches the frame too
    Tray(at=(150, 0), floor=0),
    Tray(at=(0, 110)),
    Tray(at=(0, -110), turn=7),
    Tray(at=(-140, 100), level=196),
]


@pytest.mark.parametrize("tray", [*VIEWS, *CUT], ids=str)
def test_the_region_is_the_bag_in_a_tray_not_the_rim(tray: Tray) -> None:
    grey, box = draw(tray)
    found, level = adaptive(grey)
    assert box is not None
    assert found is not None
    assert iou(found, box) > 0.94
    assert abs(level - tray.level) <= 2


@pytest.mark.parametrize("tray", [*VIEWS, *CUT], ids=str)
def test_an_empty_tray_is_not_a_bag(tray: Tray) -> None:
    assert adaptive(draw(replace(tray, holds=""))[0])[0] is None


@pytest.mark.parametrize("holds", ["items", "bag at wall", "bag over wall"])
@pytest.mark.parametrize("tray", VIEWS, ids=str)
def test_contents_of_a_tray_may_be_separate_or_reach_the_wall(tray: Tray, holds: str) -> None:
    grey, box = draw(replace(tray, holds=holds))
    found, _ = adaptive(grey)
    assert box is not None
    assert found is not None
    assert iou(found, box) > 0.92


@pytest.mark.parametrize("tray", VIEWS[::3], ids=str)
def test_the_box_turns_and_grows_with_the_scan(tray: Tray) -> None:
    grey, box = draw(tray)
    assert box is not None
    x0, y0, x1, y1 = box
    for seen, expected in (
        (grey.T, (y0, x0, y1, x1)),
        (grey[::-1, ::-1], (800 - x1, 600 - y1, 800 - x0, 600 - y0)),
        (grey.repeat(2, 0).repeat(2, 1), (2 * x0, 2 * y0, 2 * x1, 2 * y1)),
    ):
        found, _ = adaptive(np.ascontiguousarray(seen))
        assert found is not None
        assert iou(found, expected) > 0.94


def test_noise_of_the_scanner_does_not_matter() -> None:
    for noise in (0.0, 2.0, 4.0):
        grey, box = draw(Tray(turn=10), noise=noise, seed=3)
        found, _ = adaptive(grey)
        assert box is not None
        assert found is not None
        assert iou(found, box) > 0.93


def test_the_contents_of_two_trays_count() -> None:
    (left, box), (right, other) = draw(Tray()), draw(Tray(holds="items"))
    grey = np.hstack([left[:, :720], right[:, 80:]])
    assert box is not None
    assert other is not None
    found, _ = adaptive(grey)
    assert found is not None
    assert iou(found, (box[0], min(box[1], other[1]), other[2] + 640, max(box[3], other[3]))) > 0.95


def test_a_bag_beside_a_tray_keeps_its_outline() -> None:
    grey, box = draw(Tray(at=(-110, 0)))
    grey[100:500, 640:780] = 225
    grey[150:300, 680:740] = 100
    assert box is not None
    found, _ = bags(grey)
    assert len(found) == 2
    assert iou(found[0], box) > 0.94
    assert iou(found[1], (640, 100, 780, 500)) > 0.97


def test_a_tray_with_a_strap_over_the_rim_is_a_tray() -> None:
    grey, box = draw(Tray(turn=5))
    grey[20:110, 500:512] = np.minimum(grey[20:110, 500:512], 235)
    grey[20:30, 500:600] = 235
    assert box is not None
    found, _ = adaptive(grey)
    assert found is not None
    assert iou(found, box) > 0.94


def test_a_dark_frame_around_faint_contents_is_a_bag_not_a_tray() -> None:
    grey = np.full((400, 600), 255, np.uint8)
    grey[60:340, 80:520] = 60
    grey[66:334, 86:514] = 243
    grey[150:250, 200:300] = 90
    found, _ = adaptive(grey)
    assert found is not None
    assert iou(found, (80, 60, 520, 340)) > 0.97


def test_a_bag_of_plain_fabric_is_not_a_tray() -> None:
    grey = np.full((400, 600), 255, np.uint8)
    grey[60:340, 80:520] = 225
    grey[150:250, 200:300] = 90
    found, _ = adaptive(grey)
    assert found is not None
    assert iou(found, (80, 60, 520, 340)) > 0.97


def test_light_fabric_around_dark_contents_is_not_a_tray() -> None:
    """It has a kind of floor, but no walls."""
    grey = np.full((400, 600), 255, np.uint8)
    grey[60:340, 80:520] = 243
    grey[150:250, 200:300] = 90
    found, _ = adaptive(grey)
    assert found is not None
    assert iou(found, (80, 60, 520, 340)) > 0.97


def test_something_lighter_than_the_floor_makes_it_a_bag() -> None:
    grey, box = draw(Tray(floor=14))
    outline, _ = draw(Tray(floor=14, holds=""))
    grey[200:260, 570:640] = 252
    found, _ = adaptive(grey)
    assert box is not None
    assert found is not None
    assert iou(found, (100, 80, 700, 520)) > 0.97
    assert adaptive(outline)[0] is None  # as for the same tray without it


def test_regions_of_real_trays_agree_with_boxes_drawn_by_eye(real_scans: Path) -> None:
    scores = {}
    for name, grey, drawn in drawn_boxes("tray", real_scans):
        found, _ = adaptive(grey)
        assert found is not None
        scores[name] = iou(found, drawn)
    assert min(scores.values()) >= 0.75, scores
    assert np.mean(list(scores.values())) >= 0.85, scores


@pytest.mark.parametrize("group", ["grey belt", "white belt", "with items"])
def test_no_real_bag_is_detected_as_a_tray(group: str, real_scans: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scans = drawn_boxes(group, real_scans)
    seen = [bags(grey) for _, grey, _ in scans]
    monkeypatch.setattr("pipeline.bags.trays.contents", lambda *_: None)
    assert [bags(grey) for _, grey, _ in scans] == seen
