"""All faults that are skipped, planted at once: counts of every stage to the audit equal what was planted."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import pyarrow.parquet as pq

from pipeline import audit, regions, segments, synthesize
from tests.faults import common
from tests.faults.common import Count
from tests.faults.dirty.backgrounds import SPOILED
from tests.faults.dirty.world import HEIGHT, WIDTH, Ended, ended, limit, picture, square

KIND = "everything together"
_SCANS, _CLEAN_SCANS, _PAIRS = 60, 8, 800
# Fields that spoil an annotation, and the reason that is counted.
ITEMS = (
    ({"bbox": [1, 2, 3]}, "malformed bbox"),
    ({"bbox": [1, 2, 0, 5]}, "degenerate"),
    ({"area": -1}, "malformed area"),
    ({"iscrowd": 1}, "crowd"),
    ({"ignore": 1}, "marked ignore"),
    ({"image_id": 9999}, "image not in the file"),
    ({"image_id": None}, "no image_id"),
    ({"category_id": 9999}, "category not in the file"),
    ({"segmentation": None}, "no mask"),
    ({"segmentation": [[1, 1, 5, 5]]}, "polygon of fewer than three points"),
    ({"segmentation": [[1, 1, 5, 5, 9]]}, "malformed polygon"),
    ({"segmentation": [[1, 1, 1e9, 1, 5, 5]]}, "polygon far outside the image"),
    ({"segmentation": [[5, 5, 5, 5, 5, 5]]}, "empty mask"),
    ({"segmentation": {"size": [HEIGHT, WIDTH], "counts": [7]}}, "broken RLE"),
    ({"segmentation": {"size": [WIDTH, HEIGHT], "counts": [7]}}, "RLE made for another image size"),
)
# Bytes that replace a scan, and the reason; None removes it.
FILES = (
    (None, "image file missing"),
    (b"", "image unreadable: empty file"),
    (b"text", "image unreadable: not a JPEG, PNG, BMP or TIFF file"),
    (b"\x89PNG\r\n\x1a\n" + bytes(30), "image unreadable: truncated file"),
)


def _plant_items(root: Path, rng: np.random.Generator) -> tuple[Counter[str], int]:
    """Write an annotated data set; return the planted reasons and the number of usable items."""
    (root / "train").mkdir()
    images, items, planted, usable = [], [], Counter[str](), 0
    for number in range(_SCANS):
        name, spoiled = f"s{number:03d}.png", rng.random() < 0.3 and number >= _CLEAN_SCANS
        data = cv2.imencode(".png", picture(number))[1].tobytes()
        kept, reason = FILES[int(rng.integers(len(FILES)))] if spoiled else (data, "")
        if kept is not None:
            (root / "train" / name).write_bytes(kept)
        images.append({"id": number, "file_name": name, "width": WIDTH, "height": HEIGHT})
        for place, box in enumerate([(20, 20, 50, 50), (60, 30, 90, 60)]):
            x0, y0, x1, y1 = box
            item = {"id": len(items), "image_id": number, "category_id": 1 + place, "segmentation": [square(box)]}
            item |= {"bbox": [x0, y0, x1 - x0, y1 - y0], "area": 900, "iscrowd": 0}
            if not spoiled and number >= _CLEAN_SCANS and rng.random() < 0.3:
                fields, fault = ITEMS[int(rng.integers(len(ITEMS)))]
                item |= fields
                planted[fault] += 1
            elif spoiled:
                planted[reason] += 1
            else:
                usable += 1
            items.append(item)
    categories = [{"id": 1, "name": "Gun"}, {"id": 2, "name": "Knife"}]
    content = {"images": images, "annotations": items, "categories": categories}
    (root / "train.json").write_text(json.dumps(content))
    return planted, usable


def _plant_scans(root: Path, rng: np.random.Generator) -> Counter[str]:
    """Write benign scans with every fault of `backgrounds`; return the number of scans by status."""
    folder, statuses = root / "benign", Counter[str]()
    for number, spoil in enumerate(SPOILED.values()):
        scan = folder / f"{number:02d}" / "scan.png"  # each in a folder, because some add links and litter
        scan.parent.mkdir(parents=True)
        scan.write_bytes(cv2.imencode(".png", picture(number))[1].tobytes())
        statuses[spoil(scan, rng)[1]] += 1
        if (loop := scan.parent / "loop").is_symlink():
            loop.unlink()  # its target has all other scans
    for number in range(_CLEAN_SCANS):
        (folder / f"n{number}.png").write_bytes(cv2.imencode(".png", picture(100 + number))[1].tobytes())
        statuses["ok"] += 1
    return statuses


def _failed(done: Ended) -> str | None:
    return f"exit code {done.code}: {done.traceback[-300:] or done.shown[-300:]}" if done.code else None


def _stage_1(root: Path) -> str | None:
    """Run stage 1 to the audit."""
    scans, items = (
        ["--backgrounds", root / "benign"],
        ["--annotations", root / "train.json", "--images", root / "train"],
    )
    tables = ["--regions", root / "regions.parquet", "--segments", root / "segments.parquet"]
    size = ["--pairs", _PAIRS, "--per-shard", 100, "--width", WIDTH, "--out", root / "shards", "--workers", 1]
    lenient = ["--workers", 1, "--max-skipped", 1]
    return (
        _failed(ended(regions.main, *scans, "--out", root / "regions.parquet", *lenient))
        # Without groups: the few scans here show alike bags, and the audit refuses large groups.
        or _failed(ended(segments.main, *items, "--out", root / "segments.parquet", *lenient, "--same-bag-bits", 0))
        or _failed(ended(synthesize.main, *scans, *tables, *size))
        or _failed(
            ended(audit.main, "--shards", root / "shards", *tables[2:], "--report", root / "audit.json", "--workers", 1)
        )
    )


def problem(seed: tuple[int, ...]) -> str | None:
    """Plant, run, and compare the counts of both tables and of the audit."""
    root, rng = common.fresh("together-" + "-".join(map(str, seed))), np.random.default_rng(seed)
    reasons, usable = _plant_items(root, rng)
    statuses = _plant_scans(root, rng)
    if failed := _stage_1(root):
        return failed
    table, region_table = pq.read_table(root / "segments.parquet"), pq.read_table(root / "regions.parquet")
    parameters = json.loads(table.schema.metadata[b"segloc.parameters"])
    found = Counter(region_table["status"].to_pylist())
    report = json.loads((root / "audit.json").read_text())
    if parameters["skipped"] != dict(reasons) or len(table) != usable:
        return f"segments: {len(table)} of {usable}, skipped {parameters['skipped']}, planted {dict(reasons)}"
    if found != statuses:
        return f"regions: {dict(found)}, planted {dict(statuses)}"
    if report["violation_count"] or report["pairs"] != _PAIRS:
        return f"audit: {report['violation_count']} violations, {report['pairs']} pairs"
    # With so many pairs every usable item and scan is drawn, and no other.
    used = report["segments_used"], report["backgrounds_used"]
    if used != (usable, statuses["ok"]):
        return f"audit: {used} items and scans used, {usable} and {statuses['ok']} are usable"
    shutil.rmtree(root)
    return None


def count(cases: int, seed: int) -> Count:
    """Plant everything several times."""
    result = Count(KIND)
    for number in range(max(1, cases // 100)):
        with limit(300):
            result.add(f"seed {seed}, {number}", problem((seed, number)))
    result.measured["kinds of fault"] = len(ITEMS) + len(FILES) + len(SPOILED)
    return result
