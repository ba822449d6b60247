"""Shared code of the benchmarks: interleaved timing, machine name, result files."""

from __future__ import annotations

import argparse
import csv
import os
import platform
import random
import re
import statistics
import string
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from segloc.common.errors import InputError
from segloc.common.files import check_output_folder, write_atomic
from segloc.common.text import csv_text

RESULTS = Path(__file__).parent / "results"

Rows = list[dict[str, str]]


def arguments(options: argparse.ArgumentParser) -> argparse.Namespace:
    """Parse the command line, and check before the measurements that the result file can be written."""
    args = options.parse_intermixed_args()
    try:
        check_output_folder(getattr(args, "results", RESULTS))
    except InputError as error:
        options.error(str(error))
    return args


def machine() -> str:
    """Return processor and number of cores as a file name."""
    cpus = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*:(.+)", cpus.read_text(encoding="utf-8")) if cpus.exists() else None
    name = found[1] if found else platform.processor() or platform.machine()
    return f"{re.sub(r'[^A-Za-z0-9]+', '-', name).strip('-').lower()}-{os.cpu_count()}c"


def interleave(
    variants: Mapping[str, Callable[[Any], object]], items: Sequence[Any], rounds: int, seed: int = 0
) -> dict[str, list[float]]:
    """Time all variants on each item in turn, in random order, so that other load affects all variants alike.

    Args:
        variants: functions of an item, by name.
        items: the items.
        rounds: passes over the items.
        seed: of the order.

    Returns:
        For each variant, the mean seconds per item of each round.
    """
    order = random.Random(seed)
    names = list(variants)
    for name in names:  # the first call fills caches
        variants[name](items[0])
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(rounds):
        totals = dict.fromkeys(names, 0.0)
        for item in items:
            order.shuffle(names)
            for name in names:
                start = time.perf_counter()
                variants[name](item)
                totals[name] += time.perf_counter() - start
        for name, total in totals.items():
            seconds[name].append(total / len(items))
    return seconds


def ratio(seconds: Mapping[str, Sequence[float]], name: str, base: str) -> float:
    """Compute the median over rounds of the ratio of two variants' times."""
    return statistics.median(a / b for a, b in zip(seconds[name], seconds[base], strict=True))


def save(benchmark: str, rows: Sequence[Mapping[str, Any]], folder: Path = RESULTS) -> None:
    """Print the rows and write them to ``FOLDER/BENCHMARK-MACHINE.csv``."""
    path = folder / f"{benchmark}-{machine()}.csv"
    write_rows(path, rows)
    for row in rows:
        print("  ".join(f"{key}={value}" for key, value in row.items()))
    print(f"wrote {path}")


def write_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows with the same columns as CSV."""
    write_atomic(path, csv_text(list(rows[0]), ([row[column] for column in rows[0]] for row in rows)).encode())


def fill(template: Path, **parts: str) -> str:
    """Replace the ``$names`` of a Markdown template by parts, stripped of line breaks at both ends."""
    return string.Template(template.read_text(encoding="utf-8")).substitute(
        {name: part.strip("\n") for name, part in parts.items()}
    )


def read_rows(path: Path) -> Rows:
    """Read a file of `write_rows`."""
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))
