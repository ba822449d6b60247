import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.pairing.geometry import (
    FILL,
    GEOMETRY_DRAWS,
    Geometry,
    draw_geometry,
    extent,
    fit,
    frame,
    least_side,
    place,
    render,
)
from pipeline.tables.segment_table import Segment
from segloc.common.masks import tight_box
from tests.pipeline.pairing.items import blob, segment

IDENTITY = Geometry(0, 1, False, False)


def test_identity_changes_nothing() -> None:
    item = segment(blob(40, 30))
    patch = render(item, IDENTITY)
    assert (patch.mask == blob(40, 30)).all()
    assert (patch.rgb == item.rgba[..., :3]).all()


@pytest.mark.parametrize("turns", [1, 2, 3])
@pytest.mark.parametrize(("flip_h", "flip_v"), [(False, False), (True, False), (False, True), (True, True)])
def test_right_angles_and_flips_are_exact(turns: int, flip_h: bool, flip_v: bool) -> None:
    item = segment(blob(40, 30))
    expected = item.rgba
    if flip_h:
        expected = expected[:, ::-1]
    if flip_v:
        expected = expected[::-1]
    expected = np.rot90(expected, turns)  # counter-clockwise
    patch = render(item, Geometry(90.0 * turns, 1, flip_h, flip_v))
    assert (patch.mask == (expected[..., 3] > 0)).all()
    assert np.abs(patch.rgb.astype(int) - expected[..., :3]).max() <= 1


@settings(max_examples=80, deadline=None)
@given(st.integers(3, 90), st.integers(3, 90), st.floats(0, 360), st.floats(0.1, 2.5), st.booleans(), st.booleans())
def test_extent_predicts_the_rendered_size(height, width, angle, scale, flip_h, flip_v) -> None:
    item, geometry = segment(np.ones((height, width), bool)), Geometry(angle, scale, flip_h, flip_v)
    if min(height, width) * scale < 3:
        return
    wide, high = extent(item, geometry)
    patch = render(item, geometry)
    # The half-covered rule rounds corners off, so two pixels are allowed.
    assert abs(patch.mask.shape[1] - wide) <= 2.5
    assert abs(patch.mask.shape[0] - high) <= 2.5
    assert tight_box(patch.mask) == (0, 0, patch.mask.shape[1], patch.mask.shape[0])


@pytest.mark.parametrize("scale", [0.2, 0.45, 0.5, 0.8, 1.6])
@pytest.mark.parametrize("angle", [0.0, 17.0, 45.0, 250.0])
def test_area_scales_with_the_square_and_colours_never_turn_black(scale: float, angle: float) -> None:
    mask = cv2.ellipse(np.zeros((120, 160), np.uint8), (80, 60), (79, 59), 0, 0, 360, 1, -1) > 0
    rgba = np.dstack([np.full((120, 160, 3), (200, 120, 60), np.uint8), mask.astype(np.uint8) * 255])
    patch = render(Segment("s", rgba, 500, np.full(3, 255, np.float32)), Geometry(angle, scale, False, True))
    assert patch.mask.sum() == pytest.approx(mask.sum() * scale**2, rel=0.03)
    assert np.abs(patch.rgb[patch.mask].astype(int) - (200, 120, 60)).max() <= 1


def test_strongly_shrunk_items_are_averaged_not_sampled() -> None:
    checks = np.indices((200, 200)).sum(0) % 2 * 255
    rgba = np.dstack([np.repeat(checks[..., None], 3, 2), np.full((200, 200), 255)]).astype(np.uint8)
    patch = render(Segment("s", rgba, 500, np.full(3, 255, np.float32)), Geometry(33, 0.2, False, False))
    assert patch.rgb[patch.mask].std() < 4


def test_geometry_covers_its_ranges() -> None:
    rng = np.random.default_rng(0)
    drawn = [draw_geometry(rng, segment(blob(9, 9), scan_width=1000), 500) for _ in range(4000)]
    angles, scales = np.array([g.rotation_deg for g in drawn]), np.array([g.scale for g in drawn])
    assert np.histogram(angles, 8, (0, 360))[0] == pytest.approx(500, rel=0.2)
    assert np.histogram(scales, 8, (0.375, 0.665))[0] == pytest.approx(500, rel=0.2)
    assert 0.375 <= scales.min() < scales.max() <= 0.665
    for flips in ([g.flip_h for g in drawn], [g.flip_v for g in drawn], [g.flip_h != g.flip_v for g in drawn]):
        assert np.mean(flips) == pytest.approx(0.5, abs=0.03)


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    shape=st.tuples(st.integers(1, 200), st.integers(1, 200)),
    scan_width=st.integers(200, 2000),
    width=st.sampled_from([64, 160, 500]),
    corners=st.tuples(*[st.floats(0, 1)] * 4),
)
def test_the_whole_item_lies_inside_the_region(seed, shape, scan_width, width, corners) -> None:
    xs, ys = sorted(round(c * width) for c in corners[:2]), sorted(round(c * width) for c in corners[2:])
    region = (xs[0], ys[0], xs[1], ys[1])
    item = segment(blob(*shape), scan_width)
    placed = place(np.random.default_rng(seed), item, region, width)
    room = xs[1] - xs[0], ys[1] - ys[0]
    if placed is None:
        # Only if the minimum size and the region leave little or no choice.
        assert min(room) <= 2.5 * least_side(width) * max(max(shape) / min(shape), 1)
        return
    geometry, patch, (x, y) = placed
    high, wide = patch.mask.shape
    assert region[0] <= x < x + wide <= region[2]
    assert region[1] <= y < y + high <= region[3]
    assert min(high, wide) >= least_side(width)
    assert (render(item, geometry).mask == patch.mask).all()


def test_large_items_are_shrunk_to_the_room() -> None:
    rng = np.random.default_rng(0)
    for _ in range(40):
        _, patch, _ = place(rng, segment(blob(300, 300)), (100, 100, 220, 200), 500)
        assert patch.mask.shape[1] <= FILL * 120 + 2
        assert patch.mask.shape[0] <= FILL * 100 + 2


def test_small_items_are_enlarged_in_the_last_draw() -> None:
    _, patch, _ = place(np.random.default_rng(0), segment(blob(6, 6)), (0, 0, 400, 400), 500)
    assert 16 <= min(patch.mask.shape) <= 20


def test_a_region_too_small_gives_nothing() -> None:
    for region in ((10, 10, 22, 400), (10, 10, 10, 10), (30, 10, 20, 400)):
        assert place(np.random.default_rng(0), segment(blob(60, 60)), region, 500) is None


def test_positions_cover_the_region() -> None:
    rng, item = np.random.default_rng(0), segment(blob(60, 60))
    corners = np.array([place(rng, item, (100, 50, 400, 250), 500)[2] for _ in range(300)])
    assert corners.min(0) == pytest.approx((100, 50), abs=12)
    assert corners[:, 0].max() > 300
    assert corners[:, 1].max() > 150


@given(st.integers(1, 3000), st.integers(1, 3000), st.sampled_from([64, 500, 501]))
def test_frame_keeps_aspect_and_the_region_inside(scan_width: int, scan_height: int, width: int) -> None:
    size, region = frame((scan_width, scan_height), (0, 0, scan_width, scan_height), width)
    assert size[0] == width
    assert abs(size[1] - scan_height * width / scan_width) <= 1
    assert region[:2] == (0, 0)
    assert size[0] - 1 <= region[2] <= size[0]
    assert size[1] - 1 <= region[3] <= size[1]


def test_region_is_rounded_inwards() -> None:
    assert frame((1000, 800), (101, 99, 999, 701), 500) == ((500, 400), (51, 50, 499, 350))


def test_fit_keeps_flat_colours() -> None:
    scan = np.full((90, 120, 3), (10, 200, 90), np.uint8)
    for size in ((60, 45), (240, 180), (120, 90)):
        fitted = fit(scan, size)
        assert fitted.shape == (size[1], size[0], 3)
        assert (fitted == (10, 200, 90)).all()


@pytest.mark.parametrize("factor", [1.5, 2, 3, 20])
def test_fit_averages_all_pixels(factor: float) -> None:
    stripes = np.zeros((round(60 * factor), round(80 * factor), 3), np.uint8)
    stripes[:, ::2] = 255
    fitted = fit(stripes, (80, 60)).astype(float)
    assert fitted.mean() == pytest.approx(127.5, abs=3)
    assert fitted.std() < 75


def test_least_side_follows_the_width() -> None:
    assert [least_side(width) for width in (500, 250, 128, 32)] == [16, 8, 5, 2]
    assert GEOMETRY_DRAWS == 10


def test_golden_geometry() -> None:
    # After an intended change, raise pairs.RECIPE_VERSION: a run would no longer reproduce old shards.
    geometry, _, corner = place(np.random.default_rng(0), segment(blob(80, 50)), (50, 40, 450, 350), 500)
    assert (geometry.rotation_deg, geometry.scale) == pytest.approx((229.306207, 0.906476), abs=1e-6)
    assert (geometry.flip_h, geometry.flip_v) == (True, True)
    assert corner == pytest.approx((105, 245), abs=1)
