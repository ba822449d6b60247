"""Tables of probing results (`segloc.probe`) by start, that is by initial weights, averaged over seeds."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from segloc.common.errors import InputError, one_line
from segloc.common.output_kinds import lines_under, starting
from segloc.common.parse import WRONG, parse_json
from segloc.common.text import csv_text, markdown, markdown_table
from segloc.reporting.results_table import Figure

METHODS = {"knn": "k-NN", "linear": "linear"}
ALL_LEVELS = "all levels"
# Features in the Markdown table; not every start has an embedding.
SHOWN = (ALL_LEVELS, "embedding")
CSV_COLUMNS = ("start", "seed", "iteration", "features", *METHODS, "chance")
# What the tables may replace.
CSV = lines_under("a table of probes of segloc.experiment", *CSV_COLUMNS)
MARKDOWN = starting("a table of probes of segloc.experiment", rb"\| start \| steps \| seeds \|")


@dataclasses.dataclass(frozen=True)
class ProbeResult:
    """Probing result of one start and seed.

    Attributes:
        start: name of the start.
        seed: of its weights.
        iteration: training steps of the weights; 0 for random and ImageNet weights, None if unknown.
        shards: digest of the index of the shards used for probing.
        views: number of training and of test views.
        chance: share of the largest class among the test views, 0 to 1.
        accuracy: ``knn`` and ``linear`` accuracy by kind of features, 0 to 1.
    """

    start: str
    seed: int
    iteration: int | None
    shards: str
    views: tuple[int, int]
    chance: float
    accuracy: dict[str, dict[str, float]]


def read_probes(files: Sequence[tuple[str, int, Path]]) -> list[ProbeResult]:
    """Read files of `segloc.probe`.

    Args:
        files: start, seed and path of each file.

    Raises:
        InputError: a file is damaged, or two files are of different shards.
    """
    probes = [_read(*file) for file in files]
    for probe, (_, _, path) in zip(probes, files, strict=True):
        if probe.shards != probes[0].shards:
            raise InputError(f"{path}: has other shards than {files[0][2]}; remove the folder of the older one")
    return probes


def probes_markdown(probes: Sequence[ProbeResult]) -> str:
    """Format a row per start in the given order: per cent, mean ± sample standard deviation over seeds."""
    groups = [[p for p in probes if p.start == start] for start in dict.fromkeys(p.start for p in probes)]
    shown = [features for features in SHOWN if any(features in probe.accuracy for probe in probes)]
    columns = [(features, method) for features in shown for method in METHODS]
    header = ["start", "steps", "seeds", *(f"{METHODS[method]}, {features}" for features, method in columns), "chance"]
    rows = []
    for members in groups:
        steps = ", ".join(dict.fromkeys("–" if p.iteration is None else str(p.iteration) for p in members))
        figures = [
            str(Figure.of([100 * p.accuracy[name][method] if name in p.accuracy else None for p in members]))
            for name, method in columns
        ]
        chance = f"{100 * statistics.fmean(p.chance for p in members):.1f}"
        rows.append([markdown(members[0].start), steps, str(len(members)), *figures, chance])
    return "\n".join([markdown_table(header, rows, "lr"), *_notes(groups), ""])


def probes_csv(probes: Sequence[ProbeResult]) -> str:
    """Format a line per start, seed and kind of features; accuracies and chance from 0 to 1, with six digits."""
    rows = []
    for probe in probes:
        for features, row in probe.accuracy.items():
            shares = [f"{share:.6g}" for share in (*(row[method] for method in METHODS), probe.chance)]
            rows.append([probe.start, probe.seed, probe.iteration, features, *shares])
    return csv_text(CSV_COLUMNS, rows)


def _notes(groups: Sequence[Sequence[ProbeResult]]) -> list[str]:
    train, test = groups[0][0].views
    found = [
        f"Classification accuracy on held-out items, per cent: {train} training views and {test} test views, the same "
        "for all starts.",
        "Steps: training steps of the weights. Chance: share of the largest class among the test views.",
    ]
    if any(len(members) > 1 for members in groups):
        found.append("±: sample standard deviation over seeds.")
    return found


def _read(start: str, seed: int, path: Path) -> ProbeResult:
    try:
        found = parse_json(path.read_bytes(), path)
        accuracy = {
            str(features): {method: _share(row[method]) for method in METHODS}
            for features, row in found["accuracy"].items()
        }
        if ALL_LEVELS not in accuracy:
            raise ValueError(f"it has no accuracy of {ALL_LEVELS}")
        iteration = None if found["iteration"] is None else _whole(found["iteration"])
        views = _whole(found["train"]["views"]), _whole(found["test"]["views"])
        return ProbeResult(start, seed, iteration, str(found["shards"]), views, _share(found["chance"]), accuracy)
    except WRONG as error:
        raise InputError(f"{path}: not a file of segloc.probe ({one_line(error)}); remove {path.parent}") from error


def _share(value: Any) -> float:
    if isinstance(value, bool) or not 0 <= value <= 1:
        raise ValueError(f"{value!r} is not between 0 and 1")
    return float(value)


def _whole(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise ValueError(f"{value!r} is not an integer")
    return value
