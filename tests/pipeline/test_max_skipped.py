"""Regions, segments and crops count what they skip; above --max-skipped the table is written and the exit code is 1."""

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from pipeline import crops, regions, segments
from segloc.common.images import encode_png
from tests.pipeline.conftest import draw_bag, triangle


def parameters(table: Path) -> dict:
    return json.loads(pq.read_schema(table).metadata[b"segloc.parameters"])


def run(command, *arguments: object) -> int:
    return command.main([*map(str, arguments), "--workers", "1"])


@pytest.fixture(scope="module")
def belt_and_bags(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty scans: 3 unreadable in two ways, 1 empty, 1 too small, 35 good."""
    root = tmp_path_factory.mktemp("scans")
    good = encode_png(draw_bag(np.random.default_rng(0), 120, 90))
    for number in range(35):
        (root / f"good{number:02d}.png").write_bytes(good)
    (root / "cut0.png").write_bytes(good[:-30])
    (root / "cut1.png").write_bytes(good[:-40])
    (root / "nothing.png").write_bytes(b"")
    (root / "belt.png").write_bytes(encode_png(np.full((90, 120, 3), 255, np.uint8)))
    (root / "tiny.png").write_bytes(encode_png(np.zeros((9, 9, 3), np.uint8)))
    return root


@pytest.mark.parametrize(("share", "code"), [("0.075", 0), ("0.0749", 1), ("0", 1), ("1", 0), (None, 1)])
def test_regions_count_unreadable_scans_but_no_empty_or_small_ones(belt_and_bags, share, code, tmp_path, capsys):
    out = tmp_path / "regions.parquet"
    option = [] if share is None else ["--max-skipped", share]
    assert run(regions, "--backgrounds", belt_and_bags, "--out", out, "--gallery", tmp_path / "g.png", *option) == code
    said, complained = capsys.readouterr()
    reasons = "2 truncated file (cut0.png, cut1.png), 1 empty file (nothing.png)"
    assert f"{out}: 40 backgrounds (1 empty, 35 ok, 1 too_small, 3 unreadable)\n" in said
    assert f"skipped 3 of 40 backgrounds: {reasons}\n" in said
    assert (tmp_path / "g.png").is_file()
    statuses = pq.read_table(out)["status"].to_pylist()
    assert {status: statuses.count(status) for status in set(statuses)} == {
        "ok": 35, "unreadable": 3, "empty": 1, "too_small": 1,
    }  # fmt: skip
    assert parameters(out)["looked_at"] == 40
    assert parameters(out)["skipped"] == {"truncated file": 2, "empty file": 1}
    assert complained == (
        f"python -m pipeline.regions: more than --max-skipped {share or 0.05}: 3 of 40 backgrounds skipped: {reasons}; "
        f"{out} is written; replace these files, or remove them from --backgrounds, or raise --max-skipped\n"
        if code
        else ""
    )


def test_strict_regions_accept_empty_and_small_scans(belt_and_bags, tmp_path):
    root = shutil.copytree(belt_and_bags, tmp_path / "scans")
    for name in ("cut0.png", "cut1.png", "nothing.png"):
        (root / name).unlink()
    assert run(regions, "--backgrounds", root, "--out", tmp_path / "r.parquet", "--max-skipped", 0) == 0


def test_regions_of_nothing_but_bad_scans_fail(tmp_path, capsys):
    root = tmp_path / "scans"
    root.mkdir()
    for number in range(120):
        (root / f"{number:03d}.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    assert run(regions, "--backgrounds", root, "--out", tmp_path / "r.parquet") == 1
    first = "120 truncated file (000.png, 001.png, 002.png, ...)"
    assert f"120 of 120 backgrounds skipped: {first}" in capsys.readouterr().err
    assert len(pq.read_table(tmp_path / "r.parquet")) == 120


def coco_set(root: Path) -> Path:
    """A COCO file of 80 annotations: 2 of a missing scan, 1 of a cut one, 1 repeats its id, 2 are not used."""
    (root / "train").mkdir(parents=True)
    good = encode_png(draw_bag(np.random.default_rng(0), 120, 90))
    images = [{"id": n, "file_name": f"{n:02d}.png", "width": 120, "height": 90} for n in range(40)]
    for image in images[1:]:
        (root / "train" / image["file_name"]).write_bytes(good[:-9] if image["id"] == 1 else good)
    common = {"category_id": 1, "segmentation": [triangle(30, 30, 30)]}
    annotations = [{"id": n, "image_id": n // 2, **common} for n in range(80)]
    annotations[3] |= {"iscrowd": 1}  # of the cut scan, too: the reason is that of the annotation
    annotations[4] |= {"ignore": 1}
    annotations[7] |= {"id": 6}
    content = {"images": images, "categories": [{"id": 1, "name": "Knife"}], "annotations": annotations}
    (root / "train.json").write_text(json.dumps(content))
    return root


@pytest.mark.parametrize(("share", "code"), [("0.05", 0), ("0.0499", 1), ("0", 1)])
def test_segments_count_invalid_annotations_but_no_crowds(share, code, tmp_path, capsys):
    root, out = coco_set(tmp_path / "set"), tmp_path / "s.parquet"
    where = ("--annotations", root / "train.json", "--images", root / "train", "--out", out)
    assert run(segments, *where, "--max-skipped", share) == code
    said, complained = capsys.readouterr()
    assert (
        "skipped 4 of 80 annotations: 2 image file missing (00.png, ...), 1 annotation id repeats (annotation 6 of "
        "image 3), 1 image unreadable: truncated file (01.png); not used: 1 crowd, 1 marked ignore\n" in said
    )
    assert len(pq.read_table(out)) == 74
    assert parameters(out)["looked_at"] == 80
    assert parameters(out)["skipped"] == {
        "annotation id repeats": 1, "crowd": 1, "image file missing": 2, "image unreadable: truncated file": 1,
        "marked ignore": 1,
    }  # fmt: skip
    assert ("4 of 80 annotations skipped: 2 image file missing (00.png" in complained) == bool(code)


def test_crops_count_scans_that_went_bad(sixray, region_file, tmp_path, capsys):
    root = shutil.copytree(sixray, tmp_path / "sixray")
    (root / "JPEGImage" / "N0000003.jpg").write_bytes(b"")
    where = ("--backgrounds", root, "--regions", region_file, "--out", tmp_path / "c.parquet")
    assert run(crops, *where, "--max-skipped", 0.1) == 0
    whole = "skipped 1 of 10 scans: 1 empty file (JPEGImage/N0000003.jpg)"
    assert f"{tmp_path / 'c.parquet'}: 18 crops of 9 scans\n{whole}\n" in capsys.readouterr().out
    (tmp_path / "c.parquet").unlink()
    assert run(crops, *where) == 1
    assert "1 of 10 scans skipped: 1 empty file (JPEGImage/N0000003.jpg)" in capsys.readouterr().err
    assert len(pq.read_table(tmp_path / "c.parquet")) == 18
    assert parameters(tmp_path / "c.parquet")["skipped"] == {"empty file": 1}


def test_crops_count_a_link_that_lost_its_target(sixray, region_file, tmp_path, capsys):
    root = shutil.copytree(sixray, tmp_path / "sixray")
    (root / "JPEGImage" / "N0000003.jpg").unlink()
    (root / "JPEGImage" / "N0000003.jpg").symlink_to(tmp_path / "none")
    where = ("--backgrounds", root, "--regions", region_file, "--out", tmp_path / "c.parquet")
    assert run(crops, *where) == 1
    assert "1 of 10 scans skipped: 1 no such file (JPEGImage/N0000003.jpg)" in capsys.readouterr().err
