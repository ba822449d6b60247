import numpy as np
import pytest

from pipeline.common.gallery import RED, sheet, spread, tile


def test_a_box_is_drawn_at_its_position() -> None:
    picture = tile(np.full((100, 200, 3), 255, np.uint8), [((40, 20, 120, 60), RED)], "caption", side_px=100)
    ys, xs = np.nonzero((picture == RED).all(2))
    assert (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1) == (20, 10, 60, 30)


def test_tiles_are_laid_out_row_by_row() -> None:
    tiles = [np.full((10, 20, 3), value, np.uint8) for value in (10, 20, 30)]
    picture = sheet(tiles, columns=2)
    assert picture[5, 10, 0] == 10
    assert picture[5, 36, 0] == 20
    assert picture[21, 10, 0] == 30
    with pytest.raises(ValueError, match="needs at least one picture"):
        sheet([], 2)


def test_captions_of_any_script_are_drawn() -> None:
    blank = np.full((50, 50, 3), 255, np.uint8)
    assert (tile(blank, [], "Ключ ü") != tile(blank, [], "")).any()


@pytest.mark.parametrize(("count", "total"), [(5, 3), (3, 10), (4, 4), (1, 9), (6, 0)])
def test_spread(count: int, total: int) -> None:
    positions = spread(count, total)
    assert len(positions) == len(set(positions)) == min(count, total)
    assert all(0 <= position < total for position in positions)
    assert positions == sorted(positions)
