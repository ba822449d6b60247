"""Results of commands that could not read some of their scans, told so, and ended with exit code 0."""

from __future__ import annotations

import re
import subprocess
from collections import defaultdict
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from segloc.training.run_folder import read_skips
from tests.faults.targets import undisturbed, wrong_state

TABLES = {"regions": "regions.parquet", "segments": "segments.parquet", "crops": "crops.parquet"}
_SKIPPED = re.compile(r"skipped (\d+) of \d+ (\w+)")
_OF_ALL_SCANS = ("scan_group",)  # numbers that change with the other scans of a table

Rows = dict[str, list[dict[str, Any]]]


def told(done: subprocess.CompletedProcess[str]) -> int:
    """Number of inputs that a command says it skipped, as it says last."""
    counts = {what: int(count) for count, what in _SKIPPED.findall(done.stdout + done.stderr)}
    return sum(counts.values())


def wrong_result(name: str, out: Path, skipped: int) -> str | None:
    """What is wrong with the result of a command that told of so many skipped inputs; None if nothing is.

    Without skipped inputs it has to equal the undisturbed run's. A table may lack the rows of the skipped scans, and
    only those; a table of regions marks them. Fine-tuning records them in its run folder.
    """
    if skipped and name in TABLES:
        whole, found = undisturbed(name).files[TABLES[name]], (out / TABLES[name]).read_bytes()
        return wrong_rows(rows(whole), rows(found), skipped, name == "regions", name == "crops")
    if skipped and name == "fine-tuning":
        recorded = sum(part.skipped for part in read_skips(out / "run"))
        return None if recorded == skipped else f"told of {skipped} skipped inputs, but recorded {recorded}"
    return wrong_state(name, out)


def rows(table: bytes) -> Rows:
    """Rows of a table by scan."""
    found: Rows = defaultdict(list)
    for row in pq.read_table(pa.BufferReader(table)).to_pylist():
        found[row["image"]].append({key: value for key, value in row.items() if key not in _OF_ALL_SCANS})
    return dict(found)


def wrong_rows(whole: Rows, found: Rows, skipped: int, marked: bool, scans: bool = False) -> str | None:
    """Compare two tables scan by scan.

    Args:
        whole: rows of the undisturbed run.
        found: rows of a run that could not read some scans.
        skipped: number of rows, or scans, that it has not.
        marked: whether each has a row that says why.
        scans: whether `skipped` counts scans, which may have several rows.
    """
    lost = {image for image in whole if whole[image] != found.get(image)}
    count = sum(1 if scans else len(whole[image]) for image in lost)
    if more := sorted(found.keys() - whole.keys()):
        return f"more scans: {more[:3]}"
    if count != skipped:
        return f"told of {skipped} skipped, but {count} rows differ: {sorted(lost)[:3]}"
    for image in sorted(lost):
        if not marked and image in found:
            return f"{image}: other rows"
        if marked and not all(row["status"] == "unreadable" and row["message"] for row in found.get(image, [{}])):
            return f"{image}: not marked as unreadable with a reason"
    return None
