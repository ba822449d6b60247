"""Lays out docs/results.md from the files of `benchmarks.study`."""

from __future__ import annotations

import csv
import json
import math
import statistics
from collections.abc import Sequence
from pathlib import Path

from benchmarks import common

RESULTS = common.RESULTS / "study"
PAGE = Path(__file__).parent.parent / "docs" / "results.md"
TEST_SETS = ("easy", "hard", "hidden", "mean")
FIGURES = (("bbox", "AP"), ("bbox", "AP50"), ("bbox", "AR100"), ("segm", "AP"), ("segm", "AR100"))
TASKS = {"bbox": "boxes", "segm": "masks"}
# What the table of probes shows: kind of features and method.
PROBED = (("all levels", "knn"), ("all levels", "linear"), ("embedding", "knn"), ("embedding", "linear"))
METHODS = {"knn": "k-NN", "linear": "linear"}
PAPER_GAIN = "3 to 6"
# Two-sided 95 % quantiles of Student's t by degrees of freedom.
T_95 = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262}

HEAD = """# Results of the study

Made by `python -m benchmarks.study` from the files in `benchmarks/results/study/`. What is compared, and how, was
written down before the runs: [study.md](study.md). Everything here is of simulated scans ([simulator.md](simulator.md))
and of a size that a laptop trains: it says how the variants compare there, not what PIDray's figures would be.
"""

Rows = list[dict[str, str]]


def render(results: Path = RESULTS) -> str:
    """Write the page, in Markdown."""
    about = json.loads((results / "about.json").read_text())
    runs, probes, pretrainings, commands = (_read(results / f"{n}.csv") for n in _FILES)
    parts = [
        HEAD,
        f"Machine: {about['machine']}; {about['engine']}, torch {about['torch']}, revision {about['git_revision']}.\n",
        "## Answers\n\n" + "\n".join(f"- {answer}" for answer in answers(runs, probes)) + "\n",
        "## Detection\n\n" + DETECTION + "\n" + detection(runs),
        "## What the features know\n\n" + PROBES + "\n" + probe_table(probes),
        "## The pretrainings\n\n" + PRETRAININGS + "\n" + pretraining_table(pretrainings),
        "## The commands\n\n" + COMMANDS + "\n```\n" + "\n".join(row["command"] for row in commands) + "\n```\n",
    ]
    return "\n".join(parts)


_FILES = ("runs", "probe", "pretrainings", "commands")

DETECTION = """Per cent, mean ± sample standard deviation over the seeds; in brackets the mean difference to the random
start of the same network (`random`, or `random_bn` for the detectors with batch norm) and its 95 % interval, from the
differences seed by seed (Student's t). An interval that holds 0 shows no difference. *mean* is that of the three test
sets.
"""
PROBES = """Accuracy of the classes of items that no pretraining has seen, of other brands and in other bags, by the
features in their boxes (`python -m segloc.probe`); per cent, mean ± sample standard deviation over the seeds.
"""
PRETRAININGS = """Means over the last quarter of the steps, then over the seeds. Accuracy: how often the stored key
nearest to a query is of the query's class. Spread: standard deviation of the embeddings at P4 times the root of their
size, 1 is as even as can be and 0 is collapse. Losses with one queue and with class queues have different chances.
"""
COMMANDS = """Of the first seed; the others differ in it alone. `python -m segloc.experiment` runs them all:
[study.md](study.md) has the two commands that make everything on this page.
"""


def answers(runs: Rows, probes: Rows) -> list[str]:
    """Answer the study's questions in a sentence each, from the figures alone."""
    found = []
    for start in ("ours", "paper", "ours_bn", "ours_bn_anew"):
        base = _base(start)
        sentences = []
        for test_set in TEST_SETS[:-1]:
            gains = _differences(runs, start, base, "bbox", "AP", test_set)
            if gains:
                sentences.append(f"{test_set} {_interval(gains)}")
        if sentences:
            found.append(f"`{start}` against `{base}`, box AP in points: {', '.join(sentences)}.")
    gains = [_differences(runs, "ours", "random", "bbox", "AP", test_set) for test_set in ("easy", "hard")]
    if all(gains):
        mean = statistics.fmean(statistics.fmean(per_seed) for per_seed in gains)
        verdict = "at least" if mean >= 3 else "less than"
        found.append(f"On easy and hard together that is {mean:+.1f} points, {verdict} the paper's {PAPER_GAIN}.")
    linear = {start: _probe_values(probes, start, "all levels", "linear") for start in _names(probes)}
    if "random" in linear and "ours" in linear:
        order = sorted(linear, key=lambda start: -statistics.fmean(linear[start]))
        listed = ", ".join(f"`{start}` {100 * statistics.fmean(linear[start]):.1f}" for start in order)
        found.append(f"Linear probe of all levels, best first (per cent): {listed}.")
    return found


def detection(runs: Rows) -> str:
    """Table of starts by test set, a line per figure."""
    lines = [_line(["start", "figure", *TEST_SETS]), _line(["---", "---", *["---:"] * len(TEST_SETS)])]
    for start in _names(runs):
        for task, metric in FIGURES:
            cells = [_detection_cell(runs, start, task, metric, test_set) for test_set in TEST_SETS]
            title = f"**{start}**" if (task, metric) == FIGURES[0] else ""
            lines.append(_line([title, f"{metric}, {TASKS[task]}", *cells]))
    images = {row["test_set"]: row["images"] for row in runs if row["images"]}
    sizes = ", ".join(f"{name} {count}" for name, count in images.items())
    seeds = len({row["seed"] for row in runs})
    return "\n".join([*lines, "", f"Test scans: {sizes}. Seeds: {seeds}.", ""])


def probe_table(probes: Rows) -> str:
    """Table of starts by features and method."""
    header = ["start", "steps", "seeds", *(f"{METHODS[method]}, {features}" for features, method in PROBED), "chance"]
    lines = [_line(header), _line(["---", *["---:"] * (len(header) - 1)])]
    for start in _names(probes):
        rows = [row for row in probes if row["start"] == start]
        values = [_probe_values(probes, start, *what) for what in PROBED]
        cells = [_spread([100 * value for value in column]) if column else "–" for column in values]
        seeds = len({row["seed"] for row in rows})
        chance = f"{100 * float(rows[0]['chance']):.1f}"
        lines.append(_line([start, rows[0]["iteration"], str(seeds), *cells, chance]))
    return "\n".join([*lines, ""])


def pretraining_table(rows: Rows) -> str:
    """Table of pretrainings by gauge."""
    header = ["pretraining", "steps", "loss", "chance", "accuracy", "chance", "spread"]
    lines = [_line(header), _line(["---", *["---:"] * (len(header) - 1)])]
    for name in dict.fromkeys(row["pretraining"] for row in rows):
        members = [row for row in rows if row["pretraining"] == name]
        mean = {key: statistics.fmean(float(row[key]) for row in members) for key in members[0] if key not in _NAMES}
        cells = [f"{mean[key]:.{digits}f}" for key, digits in _GAUGES.items()]
        lines.append(_line([name, members[0]["steps"], *cells]))
    return "\n".join([*lines, ""])


_NAMES = ("pretraining", "seed", "steps")
_GAUGES = {"loss": 2, "chance_loss": 2, "accuracy": 3, "chance_accuracy": 3, "spread": 2}


def _detection_cell(runs: Rows, start: str, task: str, metric: str, test_set: str) -> str:
    values = list(_values(runs, start, task, metric, test_set).values())
    gains = _differences(runs, start, _base(start), task, metric, test_set)
    return _spread(values) + (f" ({_interval(gains)})" if gains else "")


def _base(start: str) -> str:
    """Name the random start of the same network."""
    return "random_bn" if "_bn" in start else "random"


def _values(runs: Rows, start: str, task: str, metric: str, test_set: str) -> dict[str, float]:
    wanted = {"start": start, "task": task, "test_set": test_set}
    return {r["seed"]: float(r[metric]) for r in runs if all(r[key] == value for key, value in wanted.items())}


def _differences(runs: Rows, start: str, base: str, task: str, metric: str, test_set: str) -> list[float]:
    """Subtract the random start of the same seed; empty for a random start."""
    if start == base:
        return []
    ours, theirs = (_values(runs, name, task, metric, test_set) for name in (start, base))
    return [ours[seed] - theirs[seed] for seed in ours if seed in theirs]


def _probe_values(probes: Rows, start: str, features: str, method: str) -> list[float]:
    return [float(row[method]) for row in probes if (row["start"], row["features"]) == (start, features)]


def _interval(gains: Sequence[float]) -> str:
    """Write a mean difference and its 95 % interval."""
    mean = statistics.fmean(gains)
    if len(gains) < 2:
        return f"{mean:+.1f}"
    half = T_95[len(gains) - 1] * statistics.stdev(gains) / math.sqrt(len(gains))
    return f"{mean:+.1f} [{mean - half:+.1f}, {mean + half:+.1f}]"


def _spread(values: Sequence[float]) -> str:
    return f"{statistics.fmean(values):.1f}" + (f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else "")


def _names(rows: Rows) -> list[str]:
    return list(dict.fromkeys(row["start"] for row in rows))


def _read(path: Path) -> Rows:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"
