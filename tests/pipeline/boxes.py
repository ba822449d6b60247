"""Boxes to compare with: how well two agree, and those drawn by eye on real scans."""

import csv
from pathlib import Path

import numpy as np
import pytest

from pipeline.images import read_image
from segloc.contract import Box


def iou(a: Box, b: Box) -> float:
    overlap = max(0, min(a[2], b[2]) - max(a[0], b[0])) * max(0, min(a[3], b[3]) - max(a[1], b[1]))
    areas = sum((x1 - x0) * (y1 - y0) for x0, y0, x1, y1 in (a, b))
    return overlap / (areas - overlap)


def drawn_boxes(group: str, real_scans: Path) -> list[tuple[str, np.ndarray, Box]]:
    """Name, grey scan and box drawn by eye of each scan of a group (a column of region_boxes.csv)."""
    cases = []
    for row in csv.DictReader((Path(__file__).parent / "region_boxes.csv").open(newline="")):
        if row["group"] != group:
            continue
        if not (real_scans / row["image"]).is_file():
            pytest.skip(f"no {row['image']} among the real scans here")
        box = (int(row["x0"]), int(row["y0"]), int(row["x1"]), int(row["y1"]))
        cases.append((row["image"], read_image(real_scans / row["image"], "grey"), box))
    return cases
