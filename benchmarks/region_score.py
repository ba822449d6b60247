"""Both authentic-region rules against boxes and counts by eye: ``python -m benchmarks.region_score FOLDER``.

The boxes of the regions and the numbers of bags are in the repository (tests/pipeline/bags/region_boxes.csv and
bag_counts.csv), the scans are not. FOLDER holds ``sixray/``, ``pidray/`` and ``split/`` with their file names. The
constants of the adaptive rule were tuned on the same scans. The paper's rule always gives one box.
"""

from __future__ import annotations

import argparse
import statistics
from collections import Counter, defaultdict
from pathlib import Path

from benchmarks.common import arguments, read_rows, save
from pipeline.bags import authentic_region
from pipeline.bags import regions as regions_body
from segloc.common.contract import Box
from segloc.common.images import read_image

_TESTS = Path(__file__).parent.parent / "tests" / "pipeline" / "bags"
BOXES, COUNTS = _TESTS / "region_boxes.csv", _TESTS / "bag_counts.csv"


def iou(a: Box | None, b: Box) -> float:
    """Compute the intersection over union of two half-open boxes; 0 without a box."""
    if a is None:
        return 0.0
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    shared = max(0, width) * max(0, height)
    return shared / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared)


def main() -> None:
    """Run the benchmark."""
    options = argparse.ArgumentParser(prog="python -m benchmarks.region_score", description=__doc__.splitlines()[0])
    options.add_argument("folder", type=Path, help="holds sixray/ and pidray/")
    folder = arguments(options).folder
    drawn = {row["image"]: (int(row["x0"]), int(row["y0"]), int(row["x1"]), int(row["y1"])) for row in read_rows(BOXES)}
    scores: dict[str, dict[str, list[float]]] = defaultdict(lambda: {mode: [] for mode in regions_body.MODES})
    right: dict[str, Counter[str]] = defaultdict(Counter)
    for row in read_rows(COUNTS):
        grey, group = read_image(folder / row["image"], "grey"), row["group"]
        right[group]["number"] += 1
        for mode in regions_body.MODES:
            bags, _ = regions_body.find_bags(grey, mode)
            right[group][mode] += len(bags) == int(row["bags"])
            if row["image"] in drawn:
                scores[group][mode].append(iou(authentic_region.union(bags), drawn[row["image"]]))
    rows = []
    for group, counts in right.items():
        figures = {f"{mode}_{what}": round(of(found), 3) if found else ""
                   for mode, found in ((mode, scores[group][mode]) for mode in regions_body.MODES)
                   for what, of in (("mean_iou", statistics.mean), ("least_iou", min))}  # fmt: skip
        counted = {f"{mode}_bags_right": counts[mode] for mode in regions_body.MODES}
        rows.append({"scans": group, "number": counts["number"], **figures, **counted})
    save("region_score", rows)


if __name__ == "__main__":
    main()
