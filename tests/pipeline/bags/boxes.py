"""Reference boxes, drawn by eye on real scans."""

import csv
from pathlib import Path

import numpy as np
import pytest

from segloc.common.contract import Box
from segloc.common.images import read_image


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
