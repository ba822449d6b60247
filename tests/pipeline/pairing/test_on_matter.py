"""Items are put on matter: other positions are drawn where the first lies on too much empty belt."""

import dataclasses
import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

from pipeline import synthesize
from pipeline.pairing import pairs as pairs_body
from pipeline.pairing.composition import PLACE_DRAWS, Placed, move_onto_matter, share_on_matter
from pipeline.pairing.geometry import Patch, fit
from pipeline.pairing.pairs import Recipe, make_pair, read_background, tables
from segloc.common.contract import Pair
from segloc.common.images import encode_jpeg
from segloc.common.masks import decode_rle
from tests.pipeline.conftest import digests
from tests.pipeline.pairing.test_pairs import with_bags

# What the code before this rule made, and its encoder (of a picture of noise).
OLD_PAIRS = {
    0.0: "d9876e4291ebaf84",
    1.0: "3d51c9357068aa18",
}
ENCODER = "f5ab75a900249247"


@pytest.fixture(scope="module")
def recipe(sixray: Path, region_file: Path, segment_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    """Regions are whole scans, of which a bag covers about a third."""
    whole = tmp_path_factory.mktemp("regions") / "whole scans.parquet"
    with_bags(region_file, whole, lambda row: [[0, 0, row["width"], row["height"]]])
    return Recipe(sixray, whole, segment_file, seed=3, width=160, on_matter=0.5)


def stored(recipe: Recipe, number: int) -> bytes:
    """All bytes that a shard holds of a pair."""
    pair, query, key = make_pair(recipe, number)
    return pair.to_json() + encode_jpeg(query, 95) + encode_jpeg(key, 95)


def encoder() -> str:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    return hashlib.sha256(encode_jpeg(noise, 95)).hexdigest()[:16]


@pytest.mark.parametrize("occluded", OLD_PAIRS)
def test_without_the_rule_the_bytes_are_those_of_the_paper_s_rule(recipe: Recipe, occluded: float) -> None:
    if encoder() != ENCODER:
        pytest.skip("this JPEG encoder writes other bytes than the one that the golden value was made with")
    plain = dataclasses.replace(recipe, occluded=occluded, on_matter=0.0)
    made = hashlib.sha256(b"".join(stored(plain, number) for number in range(24)))
    assert made.hexdigest()[:16] == OLD_PAIRS[occluded]


def views(recipe: Recipe, count: int) -> list[Pair]:
    return [make_pair(recipe, number)[0] for number in range(count)]


def test_items_lie_on_matter_and_nothing_else_changes(recipe: Recipe) -> None:
    before, after = views(dataclasses.replace(recipe, on_matter=0.0), 60), views(recipe, 60)
    moved = 0
    for old, new in zip(before, after, strict=True):
        for first, view in ((old.query, new.query), (old.key, new.key)):
            # All draws but the position are the same; a first position that suffices stays.
            same = dataclasses.replace(view, box=first.box, mask=first.mask, on_matter=first.on_matter)
            assert same == first
            assert view.on_matter >= first.on_matter
            if first.on_matter >= 0.5:
                assert view == first
            moved += view != first
    shares = np.array(
        [[view.on_matter for pair in made for view in (pair.query, pair.key)] for made in (before, after)]
    )
    assert moved > 20
    assert (shares[0] < 0.5).mean() > 0.4
    assert (shares[1] < 0.5).mean() < 0.02


@pytest.mark.parametrize("least", [0.25, 0.5, 0.9, 1.0])
def test_the_stored_share_is_that_of_the_stored_position(recipe: Recipe, least: float) -> None:
    recipe = dataclasses.replace(recipe, on_matter=least)
    regions, _ = tables(recipe.regions, recipe.segments)
    numbers = {name: number for number, name in enumerate(regions.images.to_pylist())}
    for number in range(20):
        pair, *_ = make_pair(recipe, number)
        for view in (pair.query, pair.key):
            at = numbers[view.background]
            background = fit(read_background(recipe, regions, at), view.size)
            x0, y0, x1, y1 = view.box
            patch = Patch(background[y0:y1, x0:x1], decode_rle(view.mask, *view.size)[y0:y1, x0:x1])
            assert view.on_matter == share_on_matter(background, patch, view.box, int(regions.levels[at]))
            assert view.region[0] <= x0 < x1 <= view.region[2]
            assert view.region[1] <= y0 < y1 <= view.region[3]


def test_a_moved_pair_is_a_pure_function_of_its_number(recipe: Recipe) -> None:
    moving = [n for n in range(30) if stored(recipe, n) != stored(dataclasses.replace(recipe, on_matter=0.0), n)]
    assert len(moving) > 5
    forwards = {number: stored(recipe, number) for number in moving}
    tables.cache_clear()
    assert {number: stored(recipe, number) for number in reversed(moving)} == forwards
    assert stored(dataclasses.replace(recipe, seed=4), moving[0]) != forwards[moving[0]]


def test_occluders_lie_over_the_moved_item(recipe: Recipe) -> None:
    recipe = dataclasses.replace(recipe, occluded=1.0)
    for number in range(20):
        view = make_pair(recipe, number)[0].query
        assert view.occluder is not None
        (x, y), (x0, y0, x1, y1) = view.occluder.corner, view.occluder.box
        assert min(view.box[2], x + x1 - x0) > max(view.box[0], x)
        assert min(view.box[3], y + y1 - y0) > max(view.box[1], y)


def test_most_pairs_need_no_second_draw(recipe: Recipe, region_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    monkeypatch.setattr(pairs_body, "move_onto_matter", lambda *args: calls.append(args) or args[4])
    plain = dataclasses.replace(recipe, regions=region_file)
    for number in range(30):
        make_pair(plain, number)
    assert len(calls) <= 3
    for number in range(10):
        make_pair(dataclasses.replace(recipe, on_matter=0.0), number)
    assert len(calls) <= 3


def patch_of(height: int, width: int) -> Patch:
    return Patch(np.zeros((height, width, 3), np.uint8), np.ones((height, width), bool))


def moved(background: np.ndarray, region: tuple[int, int, int, int], least: float, seed: int = 0) -> Placed:
    patch = patch_of(10, 20)
    x, y = region[:2]
    first = Placed((x, y, x + 20, y + 10), share_on_matter(background, patch, (x, y, x + 20, y + 10), 255))
    return move_onto_matter(np.random.default_rng(seed), background, patch, first, region, 255, least)


@pytest.fixture
def belt() -> np.ndarray:
    return np.full((100, 120, 3), 255, np.uint8)


def test_without_any_matter_the_first_position_stays(belt: np.ndarray) -> None:
    assert moved(belt, (10, 20, 90, 80), 0.5) == ((10, 20, 30, 30), 0.0)


def test_a_region_as_large_as_the_item_has_one_position(belt: np.ndarray) -> None:
    belt[20:30, 10:14] = 100
    assert moved(belt, (10, 20, 30, 30), 0.5) == ((10, 20, 30, 30), 0.2)


def test_a_scan_of_matter_only_needs_no_draw(belt: np.ndarray) -> None:
    belt[:] = 30
    assert moved(belt, (0, 0, 120, 100), 1.0) == ((0, 0, 20, 10), 1.0)


def test_the_best_of_sixteen_positions_is_used(belt: np.ndarray) -> None:
    belt[60:, 70:] = 100  # a corner of the region, which few positions reach
    for seed in range(20):
        best = moved(belt, (0, 0, 120, 100), 1.0, seed)
        draws = np.random.default_rng(seed)
        shares = [0.0]
        while len(shares) < PLACE_DRAWS and max(shares) < 1:
            x, y = int(draws.integers(0, 100, endpoint=True)), int(draws.integers(0, 90, endpoint=True))
            shares.append(share_on_matter(belt, patch_of(10, 20), (x, y, x + 20, y + 10), 255))
        assert best.on_matter == max(shares)
        assert best.on_matter == share_on_matter(belt, patch_of(10, 20), best.box, 255)


def made(recipe: Recipe, out: Path, *options: object) -> tuple[int, dict[str, bytes]]:
    """Write 12 pairs, 4 per shard. Return the exit code and the files."""
    inputs = {"backgrounds": recipe.backgrounds, "regions": recipe.regions, "segments": recipe.segments, "out": out}
    flags = [str(part) for name, value in inputs.items() for part in (f"--{name}", value)]
    flags += ["--pairs", "12", "--per-shard", "4", "--width", "160", "--blend", "alpha"]
    status = synthesize.main([*flags, *map(str, options)])
    return status, digests(out) if out.exists() else {}


@pytest.mark.parametrize("executor", ["local", pytest.param("ray", marks=pytest.mark.slow)])
def test_moved_items_do_not_depend_on_workers(recipe: Recipe, tmp_path: Path, executor: str) -> None:
    if executor == "ray":
        pytest.importorskip("ray")
    status, alone = made(recipe, tmp_path / "alone", "--workers", 1)
    assert (status, len(alone)) == (0, 5)
    assert made(recipe, tmp_path / "several", "--workers", 2, "--executor", executor) == (0, alone)
    _, paper = made(recipe, tmp_path / "paper", "--workers", 1, "--on-matter", 0)
    assert {name for name in alone if alone[name] == paper[name]} == {"sources.parquet"}  # only positions differ


def test_the_share_is_a_parameter_of_the_shards(
    recipe: Recipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "s"
    assert made(recipe, out, "--workers", 1)[0] == 0
    assert json.loads((out / "index.json").read_text())["parameters"]["on_matter"] == 0.5
    assert made(recipe, out, "--workers", 1, "--on-matter", 0.25)[0] == 2
    assert "on_matter is 0.5, not 0.25" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        made(recipe, tmp_path / "t", "--on-matter", 1.5)
    assert "argument --on-matter: '1.5' is not a number from 0 to 1" in capsys.readouterr().err


def test_shards_made_before_there_was_the_rule_are_those_of_0(
    recipe: Recipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "s"
    assert made(recipe, out, "--workers", 1, "--on-matter", 0)[0] == 0
    index = json.loads((out / "index.json").read_text())
    del index["parameters"]["on_matter"], index["digest"]  # indexes of that time had neither
    (out / "index.json").write_text(json.dumps(index))
    before = digests(out)
    assert made(recipe, out, "--workers", 1, "--on-matter", 0) == (0, before)
    assert "all were there and verified" in capsys.readouterr().out
    assert made(recipe, out, "--workers", 1)[0] == 2
    assert "on_matter is 0.0, not 0.5" in capsys.readouterr().err
