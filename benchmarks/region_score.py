"""IoU of both authentic-region rules with hand-drawn boxes: ``python -m benchmarks.region_score FOLDER``.

The boxes are in the repository (tests/pipeline/bags/region_boxes.csv), the scans are not. FOLDER holds ``sixray/`` and
``pidray/`` with the file names of the boxes. The constants of the adaptive rule were tuned on the same scans.
"""

from __future__ import annotations

import argparse
import statistics
from collections import defaultdict
from pathlib import Path

from benchmarks.common import read_rows, save
from pipeline.bags import authentic_region
from pipeline.bags import regions as regions_body
from segloc.common.contract import Box
from segloc.common.images import read_image

BOXES = Path(__file__).parent.parent / "tests" / "pipeline" / "bags" / "region_boxes.csv"


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
    folder = options.parse_args().folder
    scores: dict[str, dict[str, list[float]]] = defaultdict(lambda: {mode: [] for mode in regions_body.MODES})
    for row in read_rows(BOXES):
        grey = read_image(folder / row["image"], "grey")
        drawn = (int(row["x0"]), int(row["y0"]), int(row["x1"]), int(row["y1"]))
        for mode, found in scores[row["group"]].items():
            found.append(iou(authentic_region.union(regions_body.find_bags(grey, mode)[0]), drawn))
    rows = []
    for group, by_mode in scores.items():
        figures = {f"{mode}_{what}": round(of(found), 3) for mode, found in by_mode.items()
                   for what, of in (("mean_iou", statistics.mean), ("least_iou", min))}  # fmt: skip
        rows.append({"scans": group, "number": len(by_mode["paper"]), **figures})
    save("region_score", rows)


if __name__ == "__main__":
    main()
