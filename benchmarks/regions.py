"""Cost of the authentic region against decoding the scan and against a plain script: see ``--help``.

The lower bound is to read the file and decode it to grey. The peer is a simple script: decode in colour, convert to
grey, invert, erode, `np.where`. All variants run on one core in one process, interleaved scan by scan. Scaling is
measured separately, with the stage's own tasks and one or two workers in turn.
"""

from __future__ import annotations

import argparse
import functools
import multiprocessing
import resource
import statistics
import tempfile
import time
from collections import deque
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from benchmarks.common import arguments, interleave, ratio, save
from pipeline.bags import authentic_region
from pipeline.bags import regions as regions_body
from pipeline.common.executors import run_tasks, tune_process
from pipeline.simulate.__main__ import main as simulate
from pipeline.tables import region_table
from segloc.common.contract import Box
from segloc.common.datasets import backgrounds
from segloc.common.images import read_image


def floor(root: Path, name: str) -> None:
    """Read the file and decode it to grey."""
    cv2.imdecode(np.frombuffer((root / name).read_bytes(), np.uint8), cv2.IMREAD_GRAYSCALE)


def plain(grey: np.ndarray) -> Box | None:
    """Apply the paper's rule literally."""
    rows, columns = np.where(cv2.erode(255 - grey, np.ones((9, 9), np.uint8)) > 50)
    return (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1) if len(rows) else None


def naive(root: Path, name: str) -> None:
    """Decode in colour, convert to grey, apply the plain rule."""
    plain(cv2.cvtColor(cv2.imread(str(root / name)), cv2.COLOR_BGR2GRAY))


def measure(root: Path, label: str, limit: int, rounds: int, repeats: int) -> dict[str, Any]:
    """Measure the scans of one folder."""
    names = backgrounds(root)[:limit]
    variants: dict[str, Any] = {"floor": functools.partial(floor, root), "naive": functools.partial(naive, root)}
    for mode in regions_body.MODES:
        variants[mode] = functools.partial(regions_body.measure, root=root, mode=mode)
    seconds = interleave(variants, names, rounds)
    greys = [read_image(root / name, "grey") for name in names]
    differing = sum(authentic_region.paper(grey) != plain(grey) for grey in greys)
    return {
        "scans": label,
        "megapixels": round(statistics.median(grey.size for grey in greys) / 1e6, 2),
        "files": len(names),
        "rounds": rounds,
        "floor_ms": round(1e3 * statistics.median(seconds["floor"]), 3),
        **{f"{name}/floor": round(ratio(seconds, name, "floor"), 3) for name in ("paper", "adaptive", "naive")},
        "boxes_unlike_the_plain_rule": differing,
        **{f"two_workers_{mode}": round(scaling(root, names * repeats, mode), 2) for mode in regions_body.MODES},
    }


def scaling(root: Path, names: list[str], mode: str, rounds: int = 3) -> float:
    """Compute the median ratio of the time with one worker to the time with two, after the workers have started."""
    task = functools.partial(regions_body.measure, root=root, mode=mode)
    ratios = []
    for _ in range(rounds):
        times = []
        for workers in (1, 2):
            results = run_tasks(task, names, workers=workers, chunk=regions_body.CHUNK)
            for _ in range(4 * regions_body.CHUNK):  # both workers have started after these
                next(results)
            start = time.perf_counter()
            deque(results, maxlen=0)
            times.append(time.perf_counter() - start)
        ratios.append(times[0] / times[1])
    return statistics.median(ratios)


def table_peak_mib(count: int) -> float:
    """Write a table of `count` regions; return the peak memory of this process in MiB."""
    row = {"width": 1300, "height": 1000, "x0": 10, "y0": 20, "x1": 1200, "y1": 900, "background_level": 255}
    row |= {"crc32": 1, "status": "ok", "message": "", "bags": [(10, 20, 500, 900), (600, 20, 1200, 900)]}
    with tempfile.TemporaryDirectory() as folder, region_table.writer(Path(folder) / "regions.parquet") as table:
        for number in range(count):
            table.write({"image": f"JPEGImage/N{number:07d}.jpg", **row})
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    """Run the benchmark."""
    options = argparse.ArgumentParser(
        prog="python -m benchmarks.regions",
        description=__doc__.splitlines()[0],
        epilog="example: python -m benchmarks.regions data/raw/sixray --rounds 9",
    )
    options.add_argument("folders", nargs="*", type=Path, help="folders of scans (default: simulated scans)")
    options.add_argument("--scans", type=int, default=60, help="scans used per folder (default: 60)")
    options.add_argument("--rounds", type=int, default=7, help="default: 7")
    options.add_argument("--repeats", type=int, default=50, help="passes over the scans for scaling (default: 50)")
    args = arguments(options)
    tune_process()
    with tempfile.TemporaryDirectory() as temporary:
        sets = [(folder.name, folder) for folder in args.folders]
        for label, width in () if sets else (("simulated 0.4 MP", 740), ("simulated 1.3 MP", 1300)):
            folder = Path(temporary) / str(width)
            if simulate(["--out", str(folder), "--scans", str(max(150, 3 * args.scans)), "--width", str(width)]):
                raise SystemExit(1)
            sets.append((label, folder / "sixray"))
        rows = [measure(folder, label, args.scans, args.rounds, args.repeats) for label, folder in sets]
    # New processes, because the peak memory of a process never decreases.
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        small, large = pool.map(table_peak_mib, (200_000, 1_000_000), chunksize=1)
    for row in rows:
        row |= {"table_200k_rows_mib": round(small), "table_1m_rows_mib": round(large)}
    save("regions", rows)


if __name__ == "__main__":
    main()
