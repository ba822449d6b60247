"""Writes docs/results.md from the result files of `benchmarks.study`."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import common
from segloc.common.datasets.pidray import SUBSETS
from segloc.common.text import markdown_table
from segloc.detection.coco_eval import MEAN
from segloc.models.initial_weights import RANDOM
from segloc.reporting.probe_table import METHODS
from segloc.reporting.results_table import Figure, signed

RESULTS = Path(__file__).with_name("results") / "study"
PAGE = Path(__file__).parents[2] / "docs" / "results.md"
TEST_SETS = (*SUBSETS, MEAN)
FIGURES = (("bbox", "AP"), ("bbox", "AP50"), ("bbox", "AR100"), ("segm", "AP"), ("segm", "AR100"))
TASKS = {"bbox": "boxes", "segm": "masks"}
PROBES_SHOWN = (("all levels", "linear"), ("all levels", "knn"), ("embedding", "linear"), ("embedding", "knn"))
# Pairs of starts that differ in one setting, first of the CPU studies, then of the GPU study.
PARTS = {
    "ours": "one_positive",
    "single_queue": "one_positive",
    "ours_bn_anew": "ours",
    "ours_100": "ours",
    "alpha_short": "ours_short",
    "single_queue_short": "ours_short",
    "random_dictionary_short": "ours_short",
    "ours_short": "ours",
    "ours_backbone": "ours",
    "ours_alpha": "ours",
    "ours_class_positives": "ours",
    "ours_random_dictionary": "ours",
    "paper": "paper_bn",
    "paper_single_queue": "paper_bn",
}
# Starts that differ in the number of pretraining steps; the first has none.
LENGTHS = (RANDOM, "ours_100", "ours")
# Studies with the same size, data and recipe but different seeds; the page also shows their common runs together.
TOGETHER = ("study_cpu", "study_cpu_parts")
# Two-sided 95 % quantiles of Student's t by degrees of freedom.
T_95 = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262}

HEAD, CHAPTER = (Path(__file__).with_name(f"study_{part}.md") for part in ("head", "chapter"))
LENGTHS_TEXT = """Per cent, mean ± sample standard deviation over the seeds. Each length is a training by itself, with a
schedule of that length; features are those of all levels and of the embedding, told by a linear classifier.
"""
TOGETHER_TEXT = """What is in both of {names},
over the random starts of the same seed. They have the same size, data, test scans and recipes, and other seeds. Each is
below by itself; what was tried out before the former was tried with one of its seeds. Box AP over random weights, then
what a start has over another that differs from it in one thing.
"""

Rows = common.Rows


def kept() -> list[Path]:
    """List the folders of result files, one per experiment."""
    return sorted(file.parent for file in RESULTS.glob("*/about.json"))


def render_study() -> str:
    """Return the page as Markdown."""
    all_seeds = together([RESULTS / name for name in TOGETHER])
    return "\n".join([HEAD.read_text(), *([all_seeds] if all_seeds else []), *map(chapter, kept())])


def together(studies: Sequence[Path]) -> str:
    """Return the section on the runs that all studies have; empty if a study is missing.

    Raises:
        ValueError: two studies have a seed in common, so its runs would count twice.
    """
    if not all((study / "about.json").is_file() for study in studies):
        return ""
    titles = [f"*{json.loads((study / 'about.json').read_text())['title']}*" for study in studies]
    kept = [common.read_rows(study / "runs.csv") for study in studies]
    seeds = [seed for rows in kept for seed in {row["seed"] for row in rows}]
    if len(set(seeds)) < len(seeds):
        raise ValueError("the studies shown together have a seed in common")
    names = [name for name in _names(kept[0]) if all(name in _names(rows) for rows in kept)]
    runs = [row for rows in kept for row in rows if row["run"] in names]
    starts = {name.rpartition("-")[0] for name in names}
    probes = [row for study in studies for row in common.read_rows(study / "probe.csv") if row["start"] in starts]
    text = TOGETHER_TEXT.format(names=" and ".join(titles))
    return f"## All seeds together\n\n{text}\n{verdicts(runs)}\n{gains_table(runs)}\n{parts_table(runs, probes)}"


def chapter(results: Path) -> str:
    """Return the chapter on one experiment."""
    runs, pretrainings, commands, probes = (
        common.read_rows(results / f"{name}.csv") for name in ("runs", "pretrainings", "commands", "probe")
    )
    about, known = json.loads((results / "about.json").read_text()), (results / "probe.md").read_text()
    return common.fill(
        CHAPTER,
        title=about["title"],
        ran=_ran(about),
        verdicts=verdicts(runs),
        gains=gains_table(runs),
        parts="\n".join([parts_table(runs, probes), *lengths(runs, pretrainings, probes)]),
        detection=detection(runs),
        probe=known,
        probe_gains=probe_gains_table(probes),
        pretrainings=pretraining_table(pretrainings),
        commands="\n".join(row["command"] for row in commands),
    )


def verdicts(runs: Rows) -> str:
    """Return a line per run: better or worse in box AP than its random initialisation, or inconclusive."""
    lines = []
    for name in _names(runs):
        if base := _base(runs, name):
            hidden, mean = (differences(runs, name, "bbox", "AP", test_set) for test_set in ("hidden", MEAN))
            verdict = f"{_verdict(_easy_and_hard(runs, name))} on easy and hard, {_verdict(hidden)} on hidden"
            lines.append(f"- `{name}` against `{base}`: {verdict}, {_verdict(mean)} in the mean of the three.\n")
    return "".join(lines)


def gains_table(runs: Rows) -> str:
    """Return the table of gains in box AP over random initialisation, by run and test set."""
    lines = []
    for name in _names(runs):
        if base := _base(runs, name):
            per_set = [interval(differences(runs, name, "bbox", "AP", t)) for t in TEST_SETS]
            lines.append([f"`{name}`", f"`{base}`", interval(_easy_and_hard(runs, name)), *per_set])
    return markdown_table(["run", "over", "easy and hard", *TEST_SETS], lines, "llr")


def parts_table(runs: Rows, probes: Rows) -> str:
    """Return the table of differences in box AP and probing accuracy between starts that differ in one setting."""
    lines = []
    for start, other in PARTS.items():
        accuracies = [_probe_differences(probes, start, other, *shown) for shown in PROBES_SHOWN]
        protocols = [n.removeprefix(f"{start}-") for n in _names(runs) if n.rpartition("-")[0] == start]
        protocols = [protocol for protocol in protocols if f"{other}-{protocol}" in _names(runs)]
        for protocol in protocols or [""]:
            names = [f"{start}-{protocol}", f"{other}-{protocol}"] if protocol else [start, other]
            gains = paired(*(_values(runs, name, "bbox", "AP", MEAN) for name in names))
            if gains or any(accuracies):
                lines.append([*(f"`{n}`" for n in names), *map(interval, (gains, *accuracies))])
    return markdown_table(["start", "less", "box AP", *_probe_titles()], lines, "llr")


def lengths(runs: Rows, pretrainings: Rows, probes: Rows) -> list[str]:
    """Return the section with a line per start and number of steps; empty for fewer than three starts."""
    steps = {row["pretraining"]: row["steps"] for row in pretrainings} | {RANDOM: "0"}
    linear = [shown for shown in PROBES_SHOWN if shown[1] == "linear"]
    header = ["steps", "run", *(f"box AP, {t}" for t in TEST_SETS), "box AR100, mean", *_probe_titles(linear)]
    lines = []
    for protocol in dict.fromkeys(name.rpartition("-")[2] for name in _names(runs)):
        starts = [start for start in LENGTHS if f"{start}-{protocol}" in _names(runs)]
        for start in starts if len(starts) > 2 else ():
            name = f"{start}-{protocol}"
            figures = [_values(runs, name, "bbox", "AP", t) for t in TEST_SETS]
            figures.append(_values(runs, name, "bbox", "AR100", MEAN))
            figures += [_accuracies(probes, start, *shown) for shown in linear]
            cells = [str(Figure.of(list(values.values()))) for values in figures]
            lines.append([steps[start], f"`{name}`", *cells])
    return [f"### Against pretraining steps\n\n{LENGTHS_TEXT}\n{markdown_table(header, lines, 'rlr')}"] if lines else []


def probe_gains_table(probes: Rows) -> str:
    """Return the table of gains in probing accuracy over random weights, by start and kind of features."""
    lines = []
    for start in dict.fromkeys(row["start"] for row in probes if row["start"] != RANDOM):
        gains = (interval(_probe_differences(probes, start, RANDOM, *shown)) for shown in PROBES_SHOWN)
        lines.append([f"`{start}`", *gains])
    return markdown_table(["start", *_probe_titles()], lines, "lr")


def detection(runs: Rows) -> str:
    """Return the table of detection metrics by run and test set."""
    lines = []
    for name in _names(runs):
        for task, metric in FIGURES:
            cells = []
            for test_set in TEST_SETS:
                values = list(_values(runs, name, task, metric, test_set).values())
                gains = differences(runs, name, task, metric, test_set)
                cells.append(str(Figure.of(values)) + (f" ({interval(gains)})" if gains else ""))
            first = (task, metric) == FIGURES[0]
            titles = [f"**{name}**", str(len(values))] if first else ["", ""]
            lines.append([*titles, f"{metric}, {TASKS[task]}", *cells])
    images = {row["test_set"]: row["images"] for row in runs if row["test_set"] in TEST_SETS and row["images"]}
    scans = ", ".join(f"{name} {n}" for name, n in images.items())
    return f"{markdown_table(['run', 'seeds', 'figure', *TEST_SETS], lines, 'lrlr')}\nTest scans: {scans}.\n"


def pretraining_table(rows: Rows) -> str:
    """Return the table of training metrics by pretraining."""
    header = ["pretraining", "steps", "seeds", "loss", "chance", "top-1", "accuracy", "chance"]
    lines = []
    for name in dict.fromkeys(row["pretraining"] for row in rows):
        members = [row for row in rows if row["pretraining"] == name]
        metrics = {"loss": 2, "chance_loss": 2, "top1": 3, "accuracy": 3, "chance_accuracy": 3}  # with their digits
        mean = {key: statistics.fmean(float(row[key]) for row in members) for key in metrics}
        cells = {key: f"{mean[key]:.{digits}f}" for key, digits in metrics.items()}
        if mean["chance_accuracy"] == 1:
            cells |= {"accuracy": "–", "chance_accuracy": "–"}
        lines.append([name, members[0]["steps"], str(len(members)), *cells.values()])
    return markdown_table(header, lines, "lr")


def differences(runs: Rows, name: str, task: str, metric: str, test_set: str) -> list[float]:
    """Subtract the random initialisation of the same seed; empty for random initialisation itself."""
    return paired(*(_values(runs, run, task, metric, test_set) for run in (name, _base(runs, name))))


def paired(ours: Mapping[str, float], theirs: Mapping[str, float]) -> list[float]:
    """Subtract seed by seed, for the seeds that both have."""
    return [ours[seed] - theirs[seed] for seed in ours if seed in theirs]


def interval(gains: Sequence[float]) -> str:
    """Format a mean difference and, for several seeds, its 95 % confidence interval."""
    if not gains:
        return "–"
    mean = signed(statistics.fmean(gains))
    if len(gains) < 2:
        return mean
    low, high = _bounds(gains)
    return f"{mean} [{signed(low)}, {signed(high)}]"


def _bounds(gains: Sequence[float]) -> tuple[float, float]:
    """Compute the 95 % confidence interval of the mean of two or more differences."""
    mean, half = statistics.fmean(gains), T_95[len(gains) - 1] * statistics.stdev(gains) / math.sqrt(len(gains))
    return mean - half, mean + half


def _verdict(gains: Sequence[float]) -> str:
    if len(gains) < 2:
        return "too few seeds to tell"
    low, high = _bounds(gains)
    word = "better" if low > 0 else "worse" if high < 0 else "no difference shown"
    return f"{word} ({interval(gains)})"


def _easy_and_hard(runs: Rows, name: str) -> list[float]:
    """Average the gains in box AP on easy and hard, seed by seed."""
    both = (differences(runs, name, "bbox", "AP", test_set) for test_set in ("easy", "hard"))
    return [statistics.fmean(pair) for pair in zip(*both, strict=True)]


def _probe_titles(shown: Sequence[tuple[str, str]] = PROBES_SHOWN) -> list[str]:
    return [f"{METHODS[method]}, {features}" for features, method in shown]


def _probe_differences(probes: Rows, start: str, other: str, features: str, method: str) -> list[float]:
    """Subtract accuracies seed by seed, in points."""
    return paired(*(_accuracies(probes, name, features, method) for name in (start, other)))


def _accuracies(probes: Rows, start: str, features: str, method: str) -> dict[str, float]:
    """Return a start's accuracies by seed, per cent."""
    found = _by_seed(probes, method, start=start, features=features)
    return {seed: 100 * accuracy for seed, accuracy in found.items()}


def _ran(about: Mapping[str, Any]) -> str:
    """Describe the environment and the failures."""
    ran_on = ", ".join("/".join(about[key]) for key in ("device", "engine"))
    versions = f"torch {'/'.join(about['torch'])}, revision {'/'.join(about['git_revision'])}"
    failed = "".join(f"- {row['job']}: {row['failure']}\n" for row in about["failed"])
    text = (
        f"Run on: {ran_on}; {versions}. Figures kept on: {about['kept_on']}.\nAll jobs together took about "
        f"{about['minutes']} minutes, not counting that some may have run at the same time.\n"
    )
    return text + (f"\nThese failed, and are missing below:\n\n{failed}" if failed else "\nNo run failed.\n")


def _base(runs: Rows, name: str) -> str:
    return next(row["base"] for row in runs if row["run"] == name)


def _values(runs: Rows, name: str, task: str, metric: str, test_set: str) -> dict[str, float]:
    return _by_seed(runs, metric, run=name, task=task, test_set=test_set)


def _by_seed(rows: Rows, column: str, **wanted: str) -> dict[str, float]:
    """Return a column by seed, for the rows with these values."""
    return {row["seed"]: float(row[column]) for row in rows if wanted.items() <= row.items()}


def _names(rows: Rows) -> list[str]:
    return list(dict.fromkeys(row["run"] for row in rows))
