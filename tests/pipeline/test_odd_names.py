"""Names that people really have, through all of stage 1."""

import json
import os
import shutil
import tarfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline import audit, crops, manifest, regions, segments, synthesize
from segloc.common.contract import Pair
from segloc.common.text import utf8_text

ODD = [
    "part1\\0001.jpg", "part1/0001.jpg", "C:\\data\\x.jpg", "#1 %20 {a} [b].jpg", "line\nbreak.jpg", "trailing /a.jpg",
    "Koffer ü.jpg", "Koffer u\u0308.jpg", "\U0001f512.JPG", "$x$ <b>&amp;.jpg",
]  # fmt: skip
LATIN = [os.fsdecode(b"gep\xe4ck.jpg"), os.fsdecode(b"\xff/1.jpg")]


@pytest.fixture(scope="module")
def odd(sixray: Path, pidray: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny data sets under other names, in a folder whose name is not UTF-8."""
    root = tmp_path_factory.mktemp("odd") / os.fsdecode(b"daten \xe4 #1")
    scans = sorted((sixray / "JPEGImage").glob("N*.jpg"))
    for name, scan in zip([*ODD, *LATIN], [*scans, *scans], strict=False):
        (root / "clean" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(scan, root / "clean" / name)
    content = json.loads((pidray / "annotations" / "xray_train.json").read_text())
    (root / "train").mkdir()
    for image, name in zip(content["images"], [*LATIN[:1], *ODD], strict=False):
        (root / "train" / name).parent.mkdir(exist_ok=True)
        shutil.copy(pidray / "train" / image["file_name"], root / "train" / name)
        image["file_name"] = name
    (root / "train.json").write_text(json.dumps(content))
    return root


def test_they_are_used_or_a_row_with_a_reason(odd: Path, tmp_path: Path) -> None:
    one = ["--workers", "1"]
    table, cut, out = odd / "regions.parquet", odd / "segments.parquet", odd / "shards"
    gallery = ["--gallery", str(odd / "regions.png"), "--max-skipped", "0.5"]
    assert regions.main(["--backgrounds", str(odd / "clean"), "--out", str(table), *gallery, *one]) == 0
    rows = {row["image"]: (row["status"], row["message"]) for row in read(table)}
    expected = dict.fromkeys(ODD, ("ok", ""))
    assert rows == expected | {utf8_text(name): ("unreadable", "file name is not UTF-8") for name in LATIN}
    annotated = ["--annotations", str(odd / "train.json"), "--images", str(odd / "train")]
    assert segments.main([*annotated, "--out", str(cut), *one]) == 0
    assert {row["image"] for row in read(cut)} == {"gep\\xe4ck.jpg", *ODD[:5]}
    inputs = ["--backgrounds", str(odd / "clean"), "--regions", str(table)]
    made = ["--pairs", "24", "--per-shard", "12", "--width", "160", "--blend", "alpha", "--occluded", "0.5", *one]
    assert synthesize.main([*inputs, "--segments", str(cut), "--out", str(out), *made]) == 0
    report = ["--report", str(odd / "audit.json"), "--gallery", str(odd / "pairs.png"), *one]
    assert audit.main(["--shards", str(out), "--segments", str(cut), *report]) == 0
    assert crops.main([*inputs, "--out", str(tmp_path / "crops.parquet"), *one]) == 0
    assert {row["image"] for row in read(tmp_path / "crops.parquet")} == set(ODD)
    used = used_backgrounds(out)
    assert used <= set(ODD)
    assert len(used) > 5
    names = {row["name"] for row in read(out / "sources.parquet") if row["kind"] != "segment"}
    assert names <= set(ODD)
    assert manifest.main(["--root", str(odd), "--out", str(tmp_path / "manifest")]) == 0
    for text in (tmp_path / "manifest", out / "index.json", odd / "audit.json"):
        assert text.read_bytes().decode("utf-8")


def read(table: Path) -> list[dict]:
    return pq.read_table(pa.BufferReader(table.read_bytes())).to_pylist()  # Arrow opens only paths that are UTF-8


def used_backgrounds(folder: Path) -> set[str]:
    pairs = []
    for path in folder.glob("*.tar"):
        with tarfile.open(path) as tar:
            pairs += [Pair.from_json(tar.extractfile(one).read()) for one in tar if one.name.endswith(".json")]
    assert len(pairs) == 24
    return {view.background for pair in pairs for view in (pair.query, pair.key)}
