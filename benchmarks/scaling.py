"""Scaling of synthesis with workers, Ray and run length, and its memory: ``python -m benchmarks.scaling --help``.

Each measurement runs whole commands in new processes. The difference of two runs of different length is the cost of a
pair without start-up. The times at which a long run finishes its shards show whether the cost of a pair grows.
"""

from __future__ import annotations

import argparse
import importlib.util
import itertools
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.common import arguments, ratio, save
from benchmarks.synthesis import simulate_tables

PER_SHARD = 250


def run(folder: Path, out: Path, pairs: int, workers: int, executor: str) -> float:
    """Synthesise into `out`; return the seconds."""
    tables = [f"--{name}={folder / name}.parquet" for name in ("regions", "segments")]
    command = [sys.executable, "-m", "pipeline.synthesize", f"--backgrounds={folder / 'sixray'}", *tables]
    options = {"out": out, "pairs": pairs, "seed": 0, "per-shard": PER_SHARD, "workers": workers, "executor": executor}
    start = time.perf_counter()
    done = subprocess.run([*command, *(f"--{k}={v}" for k, v in options.items())], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr)
    return time.perf_counter() - start


def cost(folder: Path, few: int, many: int, workers: int, executor: str) -> float:
    """Return the seconds per pair without start-up."""
    with tempfile.TemporaryDirectory() as out:
        short = run(folder, Path(out) / "few", few, workers, executor)
        return (run(folder, Path(out) / "many", many, workers, executor) - short) / (many - few)


def long_run(folder: Path, pairs: int) -> dict[str, Any]:
    """Run with two workers; return growth of the cost per pair, time for 200,000 pairs, and peak memory."""
    with tempfile.TemporaryDirectory() as temporary:
        out = Path(temporary) / "shards"
        started = time.time()
        run(folder, out, pairs, 2, "local")
        ends = sorted(path.stat().st_mtime for path in out.glob("*.tar"))
    # Tenths of the run; the first contains the start-up.
    marks = [started, *(ends[len(ends) * tenth // 10 - 1] for tenth in range(1, 11))]
    tenths = [after - before for before, after in itertools.pairwise(marks)]
    minutes = [200_000 / (pairs / 10) * tenth / 60 for tenth in tenths]
    return {
        "long_run_pairs": pairs,
        "last_fifth/first_fifth": round(sum(tenths[8:]) / sum(tenths[1:3]), 3),
        "minutes_for_200k": round(statistics.mean(minutes), 2),
        "standard_error": round(statistics.stdev(minutes) / len(minutes) ** 0.5, 2),
        "peak_mib": resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss // 1024,
    }


def main() -> None:
    """Run the benchmark."""
    options = argparse.ArgumentParser(prog="python -m benchmarks.scaling", description=__doc__.splitlines()[0])
    options.add_argument("--pairs", type=int, default=1500, help="pairs of the compared runs (default: 1500)")
    options.add_argument("--rounds", type=int, default=3, help="default: 3")
    options.add_argument("--long", type=int, default=20_000, help="pairs of the long run (default: 20000)")
    options.add_argument("--keep", type=Path, help="folder that keeps the simulated scans for other runs")
    args = arguments(options)
    with tempfile.TemporaryDirectory() as temporary:
        folder = (args.keep or Path(temporary)) / "740"
        simulate_tables(folder, 150, 740)
        ways = {"one": (1, "local"), "two": (2, "local")}
        if importlib.util.find_spec("ray"):
            ways["ray"] = (2, "ray")
        costs: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(args.rounds):
            for name, way in ways.items():
                costs[name].append(cost(folder, args.pairs // 3, args.pairs, *way))
        # The short runs come first, because this peak is the maximum over all runs so far.
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss // 1024
        row: dict[str, Any] = {"pairs": args.pairs, "rounds": args.rounds}
        row["ms_per_pair"] = round(1000 * statistics.median(costs["one"]), 2)
        row["two_workers"] = round(ratio(costs, "one", "two"), 2)
        if "ray" in costs:
            row["local/ray"] = round(ratio(costs, "two", "ray"), 2)
        row |= {"peak_mib_before": peak, **long_run(folder, args.long)}
    save("scaling", [row])


if __name__ == "__main__":
    main()
