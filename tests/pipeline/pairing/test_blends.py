import numpy as np
import pytest

from pipeline.pairing.blends import BLENDS
from pipeline.pairing.geometry import Patch

RNG = np.random.default_rng(0)
SHAPE = (30, 40)
MASK = np.add.outer(np.abs(np.arange(30) - 15), np.abs(np.arange(40) - 20)) < 14
CORE = np.add.outer(np.abs(np.arange(30) - 15), np.abs(np.arange(40) - 20)) < 11  # away from the faded rim
WHITE = np.full((*SHAPE, 3), 255, np.uint8)
DONOR = np.array([210, 180, 140], np.float32)


def noise() -> np.ndarray:
    return RNG.integers(0, 256, (*SHAPE, 3), np.uint8)


def mix(mode: str, background: np.ndarray, item: np.ndarray, coefficient: float = 1.0) -> np.ndarray:
    out = background.copy()
    mixed = BLENDS[mode].mix(out, Patch(item, MASK), DONOR, coefficient)
    np.copyto(out, mixed, where=MASK[..., None])
    return out


@pytest.mark.parametrize("weight", [0.25, 0.4, 0.5, 0.61803398875, 0.65])
def test_alpha_is_the_weighted_mean_on_every_pixel(weight: float) -> None:
    background, item = noise(), noise()
    exact = weight * item.astype(float) + (1 - weight) * background.astype(float)
    mixed = BLENDS["alpha"].mix(background, Patch(item, MASK), DONOR, weight)
    assert np.abs(mixed - exact).max() <= 0.5 + 1e-4
    clear = np.abs(exact - np.floor(exact) - 0.5) > 1e-3
    assert (mixed[clear] == np.rint(exact[clear])).all()


def test_alpha_is_the_items_weight() -> None:
    background, item = WHITE, np.zeros_like(WHITE)
    assert (mix("alpha", background, item, 0.65)[CORE] < mix("alpha", background, item, 0.25)[CORE]).all()


def test_paste_hides_the_background() -> None:
    background, item = noise(), noise()
    assert (mix("paste", background, item)[MASK] == item[MASK]).all()


def test_multiply_leaves_an_item_on_white_unchanged() -> None:
    item = np.maximum(noise(), 6)  # above the floor
    assert (mix("multiply", WHITE, item)[CORE] == item[CORE]).all()


def test_ratio_leaves_an_item_on_its_donors_surroundings_unchanged() -> None:
    background = np.broadcast_to(DONOR.astype(np.uint8), (*SHAPE, 3)).copy()
    item = (RNG.uniform(0.1, 1, (*SHAPE, 3)) * DONOR).astype(np.uint8)
    assert np.abs(mix("ratio", background, item)[CORE].astype(int) - item[CORE]).max() <= 1


@pytest.mark.parametrize(
    ("mode", "clear"), [("multiply", WHITE), ("ratio", np.ones_like(WHITE) * DONOR.astype(np.uint8))]
)
@pytest.mark.parametrize("thickness", [0.6, 1.0, 1.4])
def test_a_fully_transparent_item_changes_nothing(mode: str, clear: np.ndarray, thickness: float) -> None:
    background = noise()
    assert (mix(mode, background, clear, thickness) == background).all()


@pytest.mark.parametrize("mode", BLENDS)
def test_nothing_changes_outside_the_mask(mode: str) -> None:
    background = noise()
    assert (mix(mode, background, noise(), 0.6)[~MASK] == background[~MASK]).all()


def test_multiply_does_not_depend_on_the_order() -> None:
    background, first, second = noise(), noise(), noise()
    one, other = (
        mix("multiply", mix("multiply", background, a), b).astype(int) for a, b in ((first, second), (second, first))
    )
    assert np.abs(one - other).max() <= 1


@pytest.mark.parametrize("mode", ["multiply", "ratio"])
def test_thicker_items_are_darker_and_none_is_brighter_than_the_background(mode: str) -> None:
    background, item = noise(), noise()
    thin, thick = mix(mode, background, item, 0.6), mix(mode, background, item, 1.4)
    assert (thick <= thin).all()
    assert (thin <= background).all()
    assert (thick < thin).any()


def test_the_rim_fades() -> None:
    item = np.full_like(WHITE, 100)
    on_white = mix("multiply", WHITE, item)[15, :, 0]
    start = int(np.flatnonzero(MASK[15])[0])
    assert 100 < on_white[start] < 255
    assert on_white[start - 1] == 255
    assert on_white[start + 3] == 100
