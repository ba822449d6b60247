"""InsLoc's data from unlabelled scans: crops of one scan, pasted opaquely on two others."""

from pathlib import Path

import cv2
import numpy as np
import pytest

from pipeline import audit, crops, regions
from pipeline.checks.pair_checks import pair_problems, scan_of
from pipeline.pairing import crops as crops_body
from pipeline.pairing.geometry import fit, reduction
from pipeline.pairing.pairs import Recipe, make_pair
from pipeline.tables.segment_table import SegmentTable
from segloc.common.contract import read_index
from segloc.common.images import decode, dimensions, read_image
from segloc.common.masks import decode_rle, tight_box
from tests.pipeline.conftest import Synthesis


def crop(sixray: Path, region_file: Path, out: Path, *options: object) -> int:
    where = ["--backgrounds", sixray, "--regions", region_file, "--out", out, "--workers", 1]
    return crops.main([str(part) for part in [*where, *options]])


@pytest.fixture(scope="module")
def table(sixray: Path, region_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("crops") / "crops.parquet"
    assert crop(sixray, region_file, out, "--per-scan", 3) == 0
    return out


@pytest.fixture(scope="module")
def recipe(sixray: Path, region_file: Path, table: Path) -> Recipe:
    return Recipe(sixray, region_file, table, seed=3, blend="paste", width=160, scales=(0.5, 1.0))


@pytest.mark.parametrize(("width", "height"), [(300, 200), (200, 300), (900, 90), (40, 400)])
def test_crops_have_inslocs_areas_and_aspects(width: int, height: int) -> None:
    boxes = [crops_body.draw_crop(np.random.default_rng(seed), width, height) for seed in range(300)]
    areas = [(x1 - x0) * (y1 - y0) / (width * height) for x0, y0, x1, y1 in boxes]
    aspects = [(x1 - x0) / (y1 - y0) for x0, y0, x1, y1 in boxes]
    assert all(0 <= x0 < x1 <= width and 0 <= y0 < y1 <= height for x0, y0, x1, y1 in boxes)
    assert 0.48 < min(aspects) <= max(aspects) < 2.05
    if 0.5 < width / height < 2:
        assert min(areas) > 0.19
        assert max(areas) > 0.85
        assert len({(x0, y0) for x0, y0, _, _ in boxes}) > 200


def test_the_table_holds_pixels_of_the_scans(sixray: Path, table: Path) -> None:
    items = SegmentTable(table)
    assert items.classes == ("crop",)
    assert [len(bag) for bag in items.rows[0]] == [3] * 10
    columns = items._file.read(columns=["image", "x0", "y0", "x1", "y1"]).to_pylist()
    for row, where in enumerate(columns):
        scan = read_image(sixray / where["image"])
        rgba = items.segment(row).rgba
        assert (rgba[..., :3] == scan[where["y0"] : where["y1"], where["x0"] : where["x1"]]).all()
        assert (rgba[..., 3] == 255).all()


def test_both_items_of_a_pair_are_crops_of_one_scan_pasted_opaque(recipe: Recipe, sixray: Path) -> None:
    items = SegmentTable(recipe.segments)
    crops_seen = set()
    for number in range(30):
        pair, *pictures = make_pair(recipe, number)
        assert scan_of(pair.query.segment) == scan_of(pair.key.segment)
        assert pair.query.segment != pair.key.segment
        assert pair.query.background != pair.key.background
        for view, picture in zip((pair.query, pair.key), pictures, strict=True):
            crops_seen.add(view.segment)
            found = items.find(view.segment)
            assert found is not None
            rgb = items.segment(found.row).rgba[..., :3]
            x0, y0, x1, y1 = view.box
            assert (x1 - x0) / (y1 - y0) == pytest.approx(rgb.shape[1] / rgb.shape[0], rel=0.1)
            shown = picture[y0:y1, x0:x1].astype(float)
            expected = cv2.resize(rgb, (x1 - x0, y1 - y0), interpolation=cv2.INTER_AREA).astype(float)
            mask = decode_rle(view.mask, *view.size)
            assert tight_box(mask) == view.box
            assert (~mask[y0:y1, x0:x1]).sum() <= 4  # pixels at the corners, less than half covered
            assert view.on_matter == 1.0
            assert np.abs(cv2.blur(shown - expected, (5, 5))[3:-3, 3:-3]).mean() < 8  # not rotated, not blended
            data = (sixray / view.background).read_bytes()
            background = fit(decode(data, reduction=reduction(dimensions(data)[0], recipe.width)), view.size)
            outside = np.ones(background.shape[:2], bool)
            outside[y0:y1, x0:x1] = False
            assert (picture[outside] == background[outside]).all()
    assert len(crops_seen) > 20


def test_shards_of_crops_pass_the_audit_and_pairs_of_two_scans_do_not(
    synthesis: Synthesis, table: Path, tmp_path: Path
) -> None:
    out = tmp_path / "shards"
    assert synthesis(out, segments=table, blend="paste", scale="0.5:1") == 0
    assert audit.main(["--shards", str(out), "--segments", str(table), "--workers", "1"]) == 0
    index = read_index(out)
    assert index.classes == ("crop",)
    pair, *_ = make_pair(
        Recipe(*(Path(p) for p in (synthesis.inputs[1], synthesis.inputs[3], table)), seed=0, blend="paste"), 0
    )
    object.__setattr__(pair.key, "segment", "another.jpg#0")
    assert any("the crops come from two scans" in problem for problem in pair_problems(pair, 0, index))


def test_the_table_depends_on_the_seed_and_not_on_the_workers(sixray: Path, region_file: Path, tmp_path: Path) -> None:
    names = ("one", "two", "seed")
    for name, options in zip(names, (["--workers", 1], ["--workers", 2], ["--seed", 1]), strict=True):
        assert crop(sixray, region_file, tmp_path / name, "--scans", 4, *options) == 0
    one, two, seed = ((tmp_path / name).read_bytes() for name in names)
    assert one == two
    assert one != seed
    assert len(SegmentTable(tmp_path / "one").rows[0]) == 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--per-scan", 1], "--per-scan is 1, but a pair needs two crops of one scan; use 2 or more"),
        (["--scans", 0], "--scans is 0; use 1 or more"),
        (["--regions", "nowhere.parquet"], "nowhere.parquet: no such file"),
    ],
)
def test_bad_arguments_are_one_line(
    sixray: Path, region_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list, message: str
) -> None:
    assert crop(sixray, region_file, tmp_path / "out", *options) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.strip().splitlines()) == 1


def test_a_scan_that_cannot_be_read_is_counted(
    sixray: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "scans"
    root.mkdir()
    for number in range(3):
        (root / f"{number}.jpg").write_bytes((sixray / "JPEGImage" / f"N{number:07d}.jpg").read_bytes())
    assert regions.main(["--backgrounds", str(root), "--out", str(tmp_path / "r"), "--workers", "1"]) == 0
    (root / "1.jpg").write_bytes(b"")
    assert crop(root, tmp_path / "r", tmp_path / "crops") == 1
    assert "4 crops of 2 scans\nskipped 1 of 3 scans: 1 empty file (1.jpg)" in capsys.readouterr().out
