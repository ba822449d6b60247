"""16-bit scans that use a part of their range give the regions, segments and pairs of the 8-bit scans they show."""

import shutil
import tarfile

import cv2
import numpy as np
import pyarrow.parquet as pq
import pytest

from pipeline import audit, crops, regions, segments, synthesize
from pipeline.pairing import pairs
from pipeline.tables import region_table
from pipeline.tables.segment_table import SegmentTable
from segloc.common.contract import Pair, read_index
from segloc.common.images import decode
from tests.pipeline.conftest import draw_bag

WHITES = {12: 4095, 14: 16_383, 16: 65_535}


def deepen(source, target, white, suffix=".png"):
    """Write every scan of a folder as 16 bits, of which values up to `white` are used."""
    target.mkdir(parents=True, exist_ok=True)
    for path in sorted(source.iterdir()):
        values = np.round(cv2.imread(str(path)).astype(float) * white / 255).astype(np.uint16)
        assert cv2.imwrite(str(target / f"{path.stem}{suffix}"), values)


@pytest.fixture(scope="module")
def shallow(tmp_path_factory, pidray):
    """8-bit set: backgrounds ``bg`` and PIDray's scans ``im`` with annotations ``train.json``, all PNG."""
    root = tmp_path_factory.mktemp("shallow")
    (root / "bg").mkdir()
    for number in range(6):
        scan = draw_bag(np.random.default_rng(number), 240, 180)
        cv2.imwrite(str(root / "bg" / f"{number}.png"), scan[..., ::-1])
    shutil.copytree(pidray / "train", root / "im")
    shutil.copy(pidray / "annotations" / "xray_train.json", root / "train.json")
    return root


def build(root, *options):
    """Run stage 1 with two processes; return the two tables and the shards."""
    where = ["--backgrounds", str(root / "bg"), "--regions", str(root / "r.parquet")]
    tables = ["--segments", str(root / "s.parquet"), "--out", str(root / "shards")]
    assert regions.main([*where[:2], "--out", where[3], "--workers", "2", *options]) == 0
    annotated = ["--annotations", str(root / "train.json"), "--images", str(root / "im"), "--out", tables[1]]
    assert segments.main([*annotated, "--workers", "2", *options]) == 0
    size = ["--pairs", "6", "--per-shard", "3", "--width", "160", "--workers", "2"]
    assert synthesize.main([*where, *tables, *size]) == 0
    assert audit.main(["--shards", tables[3], "--segments", tables[1], "--workers", "1"]) == 0
    return region_table.load(root / "r.parquet"), SegmentTable(root / "s.parquet"), root / "shards"


def members(shards):
    for path in sorted(shards.glob("*.tar")):
        with tarfile.open(path) as tar:
            files = {member.name: tar.extractfile(member).read() for member in tar}
        for name in sorted(files):
            yield name, (Pair.from_json(files[name]) if name.endswith("json") else decode(files[name]))


@pytest.fixture(scope="module")
def plain(shallow):
    return build(shallow)


@pytest.mark.parametrize(("bits", "suffix"), [(12, ".png"), (12, ".tif"), (14, ".png"), (16, ".png")])
def test_stage_1_makes_the_8_bit_pairs(tmp_path, capsys, shallow, plain, bits, suffix):
    white = WHITES[bits]
    for part in ("bg", "im"):
        deepen(shallow / part, tmp_path / part, white, suffix)
    names = (shallow / "train.json").read_text().replace(".png", suffix)
    (tmp_path / "train.json").write_text(names)
    deep = build(tmp_path)
    assert capsys.readouterr().out.count(f"16-bit scans: white level {white} (99.9 % of 6 scans)") == 2

    for before, now in zip(plain[:2], deep[:2], strict=True):
        assert (before.white, now.white) == (None, white)
    assert deep[0].bags.to_pylist() == plain[0].bags.to_pylist()
    assert abs(deep[0].levels.astype(int) - plain[0].levels).max() <= 1
    assert len(deep[1]) == len(plain[1])
    for row in range(len(plain[1])):
        before, now = plain[1].read_segment(row), deep[1].read_segment(row)
        assert abs(now.rgba.astype(int) - before.rgba).max() <= 1
        assert abs(now.background - before.background).max() <= 1
    for (name, before), (also, now) in zip(members(plain[2]), members(deep[2]), strict=True):
        assert name == also
        if isinstance(before, Pair):
            assert (before.query.box, before.key.box) == (now.query.box, now.key.box)
        else:
            assert before.shape == now.shape
            assert abs(now.astype(float).mean() - before.mean()) < 1
            assert np.percentile(abs(now.astype(int) - before), 99) <= 4  # JPEG differs by more than 1
    levels = {"backgrounds_white": white, "segments_white": white}
    assert read_index(deep[2]).parameters.items() >= levels.items()
    assert not levels.keys() & read_index(plain[2]).parameters.keys()


def test_the_tables_of_8_bit_scans_do_not_change(shallow, plain):
    for table in ("r.parquet", "s.parquet"):
        assert b'"white"' not in pq.read_schema(shallow / table).metadata[b"segloc.parameters"]


def test_one_level_holds_for_all_scans_with_the_belt_in_view_or_not(tmp_path, shallow):
    deepen(shallow / "bg", tmp_path / "bg", 4095)
    dark = np.full((180, 240), 2000, np.uint16)
    dark[60:120, 60:180] = 900
    cv2.imwrite(str(tmp_path / "bg" / "dark.png"), dark)
    out = tmp_path / "r.parquet"
    assert regions.main(["--backgrounds", str(tmp_path / "bg"), "--out", str(out), "--workers", "1"]) == 0
    table = pq.read_table(out).to_pydict()
    assert dict(zip(table["image"], table["background_level"], strict=True))["dark.png"] <= 125  # 255 * 2000 / 4095


def test_the_level_of_the_option_is_used_and_stored(tmp_path, capsys, shallow):
    for part in ("bg", "im"):
        deepen(shallow / part, tmp_path / part, 4095)
    shutil.copy(shallow / "train.json", tmp_path)
    backgrounds, items, _ = build(tmp_path, "--white", "6000")
    assert capsys.readouterr().out.count("16-bit scans: white level 6000 (--white)") == 2
    assert (backgrounds.white, items.white) == (6000, 6000)
    assert set(backgrounds.levels) == {174}  # 255 * 4095 / 6000


@pytest.mark.parametrize("level", ["0", "-5", "nan", "4095.5", "white", "65536", "1e3"])
@pytest.mark.parametrize("command", [regions, segments])
def test_an_impossible_level_is_refused_in_one_line(capsys, command, level):
    with pytest.raises(SystemExit, match="2"):
        command.main(["--white", level, "--out", "x"])
    assert f"argument --white: {level!r} is not a whole number from 1 to 65535" in capsys.readouterr().err


def test_an_empty_level_is_measured(tmp_path, capsys, shallow):
    deepen(shallow / "bg", tmp_path / "bg", 4095)
    out = ["--out", str(tmp_path / "r.parquet"), "--workers", "1", "--white", ""]
    assert regions.main(["--backgrounds", str(tmp_path / "bg"), *out]) == 0
    assert "white level 4095 (99.9 % of 6 scans)" in capsys.readouterr().out


def test_a_mixed_set_is_read_as_8_bit_and_what_would_be_black_is_skipped(tmp_path, capsys, shallow):
    shutil.copytree(shallow / "bg", tmp_path / "bg")
    deepen(shallow / "bg", tmp_path / "bg", 65_535, ".tif")
    cv2.imwrite(str(tmp_path / "bg" / "twelve.png"), np.full((180, 240), 4095, np.uint16))
    out = tmp_path / "r.parquet"
    assert regions.main(["--backgrounds", str(tmp_path / "bg"), "--out", str(out), "--workers", "1"]) == 1
    shown = capsys.readouterr()
    assert "mixed scans: 7 of 13 sampled have 16 bits; all are read as 8-bit RGB" in shown.out
    assert "1 of 13 backgrounds skipped: 1 16 bits without a white level (twelve.png)" in shown.err
    rows = {row["image"]: row for row in pq.read_table(out).to_pylist()}
    assert region_table.load(out).white is None
    for number in range(6):
        assert rows[f"{number}.png"]["bags"] == rows[f"{number}.tif"]["bags"]


def test_crops_take_the_level_of_the_regions(tmp_path, shallow, plain):
    deepen(shallow / "bg", tmp_path / "bg", 4095)
    found = []
    for root, options in ((shallow, []), (tmp_path, [])):
        where = ["--backgrounds", str(root / "bg"), "--regions", str(root / "r.parquet")]
        if root is tmp_path:
            assert regions.main([*where[:2], "--out", where[3], "--workers", "1", *options]) == 0
        assert crops.main([*where, "--out", str(tmp_path / "c.parquet"), "--workers", "2"]) == 0
        table = SegmentTable(tmp_path / "c.parquet")
        found.append((table.white, [table.read_segment(row).rgba.astype(int) for row in range(len(table))]))
    assert [white for white, _ in found] == [None, 4095]
    assert all(abs(now - before).max() <= 1 for before, now in zip(found[0][1], found[1][1], strict=True))


def test_steps_of_a_scan_use_the_level_of_its_folder(tmp_path, capsys, shallow):
    deepen(shallow / "bg", tmp_path / "bg", 4095)
    cv2.imwrite(str(tmp_path / "bg" / "dark.png"), np.full((180, 240), 1000, np.uint16))
    assert regions.main(["--steps", str(tmp_path / "bg" / "dark.png"), "--out", str(tmp_path / "steps.png")]) == 0
    assert "white level 4095 (99.9 % of 7 scans)" in capsys.readouterr().out
    grey = cv2.imread(str(tmp_path / "steps.png"))[40, 40]
    assert abs(grey.astype(int) - 62).max() <= 2  # 255 * 1000 / 4095


def test_shards_of_another_level_are_refused(tmp_path, capsys, shallow):
    for part in ("bg", "im"):
        deepen(shallow / part, tmp_path / part, 4095)
    shutil.copy(shallow / "train.json", tmp_path)
    build(tmp_path)
    where = ["--backgrounds", str(tmp_path / "bg"), "--regions", str(tmp_path / "r.parquet")]
    assert regions.main([*where[:2], "--out", where[3], "--white", "5000", "--workers", "1"]) == 0
    tables = ["--segments", str(tmp_path / "s.parquet"), "--out", str(tmp_path / "shards")]
    size = ["--pairs", "6", "--per-shard", "3", "--width", "160", "--workers", "1"]
    pairs.tables.cache_clear()  # another process would read the new table
    assert synthesize.main([*where, *tables, *size]) == 2
    assert "backgrounds_white is 4095, not 5000" in capsys.readouterr().err
