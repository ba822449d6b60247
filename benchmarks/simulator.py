"""Simulated scans per second on one core, beside encoding the same pictures (``python -m benchmarks.simulator``).

The lower bound is to encode the finished pictures. Both run in one process and one thread, interleaved scan by scan.
The scans are the first of each subset, in the data set's proportions. A scan is 500 pixels wide and its height depends
on the bags, so the rate is also scaled to 500 x 400 pixels.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from pathlib import Path

import cv2

from benchmarks.common import arguments, interleave, ratio, save
from pipeline.common.executors import tune_process
from pipeline.simulate.dataset import JPEG_OPTIONS, PNG_OPTIONS, SUBSETS, Parameters, Task, scan_writer

WIDTH, HEIGHT = 500, 400


def main() -> None:
    """Measure one core."""
    options = argparse.ArgumentParser(prog="python -m benchmarks.simulator", description=__doc__)
    options.add_argument("--scans", type=int, default=150, help="scans per round, at least 144 (default: %(default)s)")
    options.add_argument("--rounds", type=int, default=5, help="default: %(default)s")
    args = arguments(options)
    tune_process()
    parameters = Parameters(args.scans, 0, WIDTH, 0.15)
    parameters.check()
    tasks = [Task(name, index) for name, count in parameters.counts().items() for index in range(count)]
    with tempfile.TemporaryDirectory() as folder:
        make = scan_writer(Path(folder), parameters)
        pictures, pixels = {}, 0
        for task in tasks:
            record = make(task)
            pixels += record["width"] * record["height"]
            path = Path(folder) / SUBSETS[task.subset].path(task.index)
            options_of = PNG_OPTIONS if path.suffix == ".png" else JPEG_OPTIONS
            pictures[task] = (path.suffix, cv2.imread(str(path)), options_of)
        variants = {"ours": make, "floor": lambda task: cv2.imencode(*pictures[task])}
        seconds = interleave(variants, tasks, args.rounds)
    rate = 1 / statistics.median(seconds["ours"])
    row = {
        "scans": len(tasks),
        "megapixels": round(pixels / len(tasks) / 1e6, 3),
        "rounds": args.rounds,
        "scans_per_s_a_core": round(rate, 1),
        "at_500x400": round(rate * pixels / len(tasks) / (WIDTH * HEIGHT), 1),
        "ours/floor": round(ratio(seconds, "ours", "floor"), 1),
    }
    save("simulator", [row])


if __name__ == "__main__":
    main()
