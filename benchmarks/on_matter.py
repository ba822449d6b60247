"""Items on empty belt with and without ``--on-matter``, and its cost: ``python -m benchmarks.on_matter [FOLDER ...]``.

Every pair is made twice in a row, with `on_matter` 0 (the paper's rule) and 0.5, in one process and in random order. A
FOLDER holds ``sixray/`` and ``pidray/``, as `pipeline.simulate` writes them; by default a simulation is made. Regions
are those of the adaptive rule. Time is that of making a pair with JPEG encoding, as in a shard.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import statistics
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import interleave, ratio, save
from pipeline.bags.regions import write_regions
from pipeline.common.executors import tune_process
from pipeline.pairing.pairs import Recipe, make_pair
from pipeline.pairing.segments import write_segments
from pipeline.simulate.__main__ import main as simulate
from segloc.common.datasets import backgrounds
from segloc.common.images import encode_jpeg

RULES = {"0": 0.0, "0.5": 0.5}


def make(recipe: Recipe, shares: dict[int, list[float]], number: int) -> None:
    """Make and encode pair `number`, and note the shares of its items on matter."""
    pair, query, key = make_pair(recipe, number)
    encode_jpeg(query, 95)
    encode_jpeg(key, 95)
    shares[number] = [pair.query.on_matter or 0.0, pair.key.on_matter or 0.0]


def measure(folder: Path, label: str, pairs: int, width: int, work: Path) -> dict[str, Any]:
    """Measure the pairs of one folder."""
    regions, segments = work / "regions.parquet", work / "segments.parquet"
    root = folder / "sixray"
    write_regions(root, backgrounds(root), regions, "adaptive", 1, "local")
    write_segments(folder / "pidray", None, segments, 1, "local")
    recipe = Recipe(root, regions, segments, seed=0, width=width)
    found: dict[str, dict[int, list[float]]] = {name: {} for name in RULES}
    variants = {
        name: functools.partial(make, dataclasses.replace(recipe, on_matter=least), found[name])
        for name, least in RULES.items()
    }
    # One round of ten parts of the pairs gives ten ratios.
    seconds: dict[str, list[float]] = {name: [] for name in RULES}
    for part in np.array_split(np.arange(pairs), 10):
        for name, values in interleave(variants, part.tolist(), 1).items():
            seconds[name] += values
    shares = {name: np.array([found[name][number] for number in range(pairs)]) for name in RULES}
    below = {
        f"below_{least}_with_{name}": f"{(values < least).mean():.2%}"
        for least in (0.5, 0.1)
        for name, values in shares.items()
    }
    return {
        "scans": label,
        "pairs": pairs,
        "width": width,
        "ms_with_0": round(1e3 * statistics.median(seconds["0"]), 2),
        "0.5/0": round(ratio(seconds, "0.5", "0"), 3),
        **below,
    }


def main() -> None:
    """Run the benchmark."""
    options = argparse.ArgumentParser(prog="python -m benchmarks.on_matter", description=__doc__.splitlines()[0])
    options.add_argument("folders", nargs="*", type=Path, help="folders with sixray/ and pidray/ (default: simulated)")
    options.add_argument("--pairs", type=int, default=2000, help="pairs per folder (default: 2000)")
    options.add_argument("--width", type=int, default=500, help="width of the stored images (default: 500)")
    args = options.parse_args()
    tune_process()
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        folders = [(folder, folder.name) for folder in args.folders]
        if not folders:
            folders = [(Path(temporary) / "simulation", "simulated")]
            if simulate(["--out", str(folders[0][0]), "--scans", "300", "--width", "740"]):
                raise SystemExit(1)
        for folder, label in folders:
            # A folder each, because opened tables are remembered by path.
            work = Path(tempfile.mkdtemp(dir=temporary))
            rows.append(measure(folder, label, args.pairs, args.width, work))
    save("on_matter", rows)


if __name__ == "__main__":
    main()
