"""Names of classes and runs that would break lines, tables, pages, pictures or terminals, from one end to the other."""

import csv
import json
import re

import cv2
import numpy as np
import pytest

from pipeline import audit, regions, segments, synthesize
from segloc import evaluate, pictures, report
from tests.segloc.common.test_text import HOSTILE
from tests.segloc.toy_coco import write_split

# A surrogate cannot be in a valid JSON file in UTF-8; blanks alone do not make another class.
NAMES = [name.strip() for kind, name in HOSTILE.items() if kind not in ("surrogate", "blanks")]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Scans with one item each, two of every class, and results equal to the truth."""
    folder = tmp_path_factory.mktemp("names")
    write_split(folder / "truth.json", folder / "images", 2 * len(NAMES), seed=0, width=160, height=120)
    content = json.loads((folder / "truth.json").read_text())
    content["categories"] = [{"id": number, "name": f" {name}\n"} for number, name in enumerate(NAMES, start=1)]
    for item in content["annotations"]:
        item["category_id"] = 1 + item["image_id"] % len(NAMES)
    (folder / "truth.json").write_text(json.dumps(content))
    rng = np.random.default_rng(1)
    for path in (folder / "images").iterdir():  # so that no two scans look like the same bag
        shade = cv2.resize(rng.uniform(0.3, 1, (6, 8, 1)), (160, 120))[..., None]
        cv2.imwrite(str(path), (cv2.imread(str(path)) * shade).astype(np.uint8))
    kept = ("image_id", "category_id", "bbox", "segmentation")
    results = [{key: item[key] for key in kept} | {"score": 0.9} for item in content["annotations"]]
    (folder / "results.json").write_text(json.dumps(results))
    return folder


def harmless(text):
    return not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]", text)


def test_evaluation_and_report(data, tmp_path, capsys):
    out = tmp_path / "<b>x" / "o.json"
    files = ["--results", str(data / "results.json"), "--annotations", str(data / "truth.json")]
    assert evaluate.main([*files, "--out", str(out)]) == 0
    shown = capsys.readouterr().out
    assert harmless(shown)
    assert max(map(len, shown.splitlines())) < 400
    assert json.loads(out.read_text())["classes"] == NAMES  # the results keep the names
    table = out.with_suffix(".md").read_text()
    assert harmless(table)
    assert "<script>" not in table
    rows = [line for line in table.splitlines() if line.startswith("|")]
    assert len(rows) == 2 + 3 + 3 * (2 + len(NAMES))  # the test set, its mean and the pool; each by class
    with out.with_suffix(".csv").open(newline="") as file:
        lines = file.read().splitlines()
    cells = list(csv.reader(lines))
    assert {len(row) for row in cells} == {6}
    assert len({row[3] for row in cells[1:]}) == len(NAMES) + 1
    page, wide = tmp_path / "r.html", tmp_path / "t.csv"
    assert report.main([str(out), "--out", str(page), "--table", str(wide), "--title", "<i>\u202et"]) == 0
    text = page.read_text()
    assert "<b>x" not in text
    assert "<i>" not in text
    assert "\u202e" not in text


def test_a_picture_has_a_legend_for_every_name(data, tmp_path, recwarn):
    files = ["--results", str(data / "results.json"), "--annotations", str(data / "truth.json")]
    out = tmp_path / "p.png"
    assert pictures.main([*files, "--images", str(data / "images"), "--out", str(out), "--each", "9"]) == 0
    assert out.stat().st_size > 10_000
    assert not [str(warning.message) for warning in recwarn if "Glyph" in str(warning.message)]


def test_items_are_cut_pasted_and_audited(data, tmp_path, capsys):
    rng = np.random.default_rng(0)
    (tmp_path / "clean").mkdir()
    for number in range(6):  # a bag on a white belt
        scan = np.full((150, 220, 3), 250, np.uint8)
        scan[30:120, 40:180] = cv2.resize(rng.integers(60, 200, (6, 8, 3), dtype=np.uint8), (140, 90))
        cv2.imwrite(str(tmp_path / "clean" / f"{number}.png"), scan)
    table, items, shards = tmp_path / "r.parquet", tmp_path / "s.parquet", tmp_path / "shards"
    backgrounds = ["--backgrounds", str(tmp_path / "clean")]
    assert regions.main([*backgrounds, "--out", str(table), "--workers", "1"]) == 0
    labelled = ["--annotations", str(data / "truth.json"), "--images", str(data / "images")]
    assert segments.main([*labelled, "--out", str(items), "--workers", "1"]) == 0
    sizes = ["--pairs", "60", "--per-shard", "30", "--width", "120", "--workers", "1"]
    inputs = [*backgrounds, "--regions", str(table), "--segments", str(items)]
    assert synthesize.main([*inputs, "--out", str(shards), *sizes]) == 0
    out = ["--tables", str(tmp_path / "t"), "--gallery", str(tmp_path / "g.png"), "--report", str(tmp_path / "a.json")]
    audit.main(["--shards", str(shards), "--segments", str(items), *out, "--workers", "1"])
    assert harmless(capsys.readouterr().out)
    found = json.loads((tmp_path / "a.json").read_text())["classes"]
    assert len(found) > len(NAMES) / 2
    assert found.keys() <= set(NAMES)
    with (tmp_path / "t" / "classes.csv").open(newline="") as file:
        assert len(list(csv.reader(file.read().splitlines()))) == 1 + len(found)
