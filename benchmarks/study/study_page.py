"""Lays out docs/results.md from the files of `benchmarks.study`."""

from __future__ import annotations

import itertools
import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from scipy import stats

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
PROBES_SHOWN = (("all levels", "linear"), ("all levels", "knn"), ("embedding", "linear"), ("embedding", "knn"))
LEVEL = 0.95  # of the intervals

HEAD, CHAPTER, TOGETHER, APPENDIX = (
    Path(__file__).with_name(f"study_{part}.md") for part in ("head", "chapter", "together", "appendix")
)

Rows = common.Rows


def kept() -> list[Path]:
    """List the folders of result files, one an experiment."""
    return sorted(file.parent for file in RESULTS.glob("*/about.json"))


def render_study() -> str:
    """Write the page, in Markdown."""
    compared = {folder: _about(folder)["compare"] for folder in kept()}
    pooled = [folder for folder in compared if compared[folder]["pool"]]
    pools = itertools.groupby(sorted(pooled, key=lambda f: compared[f]["pool"]), lambda f: compared[f]["pool"])
    current = [folder for folder in compared if not compared[folder]["superseded"]]
    blocks = [
        HEAD.read_text(encoding="utf-8"),
        *(together(list(studies)) for _, studies in pools),
        *map(chapter, current),
    ]
    if earlier := [folder for folder in compared if compared[folder]["superseded"]]:
        blocks += [APPENDIX.read_text(encoding="utf-8"), *map(chapter, earlier)]
    return "\n".join(filter(None, blocks))


def together(studies: Sequence[Path]) -> str:
    """Write what all of the studies measured, over the seeds of all; nothing for a single study.

    Raises:
        ValueError: two of them have a seed in common, whose runs would count twice.
    """
    if len(studies) < 2:
        return ""
    kept = [common.read_rows(study / "runs.csv") for study in studies]
    seeds = [seed for rows in kept for seed in {row["seed"] for row in rows}]
    if len(set(seeds)) < len(seeds):
        raise ValueError("the studies shown together have a seed in common")
    names = [name for name in _names(kept[0]) if all(name in _names(rows) for rows in kept)]
    runs = [row for rows in kept for row in rows if row["run"] in names]
    starts = {name.rpartition("-")[0] for name in names}
    probes = [row for study in studies for row in common.read_rows(study / "probe.csv") if row["start"] in starts]
    return common.fill(
        TOGETHER,
        titles=" and ".join(f"*{_about(study)['title']}*" for study in studies),
        seeds=str(len(seeds)),
        gains=gains_table(runs),
        parts=parts_table(runs, probes, _about(studies[0])["compare"]["pairs"]),
    )


def chapter(results: Path) -> str:
    """Write what one experiment measured."""
    runs, pretrainings, probes = (common.read_rows(results / f"{n}.csv") for n in ("runs", "pretrainings", "probe"))
    about, where = _about(results), f"../benchmarks/study/results/study/{results.name}"
    compare = about["compare"]
    parts = parts_table(runs, probes, compare["pairs"])
    return common.fill(
        CHAPTER,
        title=about["title"],
        ran=_ran(about),
        gains=gains_table(runs),
        parts="\n".join([parts, *lengths(runs, pretrainings, probes, [RANDOM, *compare["lengths"]])]),
        where=where,
    )


def gains_table(runs: Rows) -> str:
    """Table of runs by test set: box AP over random initialisation, and what that shows."""
    lines = []
    for name in _names(runs):
        if base := _base(runs, name):
            gains = [_easy_and_hard(runs, name), *(differences(runs, name, "bbox", "AP", t) for t in TEST_SETS)]
            lines.append([f"`{name}`", f"`{base}`", str(len(gains[0])), verdict(gains[0]), *map(interval, gains)])
    header = ["run", "compared with", "seeds", "easy and hard", "easy and hard, points", *TEST_SETS]
    return markdown_table(header, lines, "llrlr")


def parts_table(runs: Rows, probes: Rows, pairs: Mapping[str, str]) -> str:
    """Table of initialisations that differ in one setting: box AP and probe, by protocol where there are several."""
    lines = []
    for start, other in pairs.items():
        accuracies = [_probe_differences(probes, start, other, *shown) for shown in PROBES_SHOWN]
        protocols = [n.removeprefix(f"{start}-") for n in _names(runs) if n.rpartition("-")[0] == start]
        protocols = [protocol for protocol in protocols if f"{other}-{protocol}" in _names(runs)]
        for protocol in protocols or [""]:
            names = [f"{start}-{protocol}", f"{other}-{protocol}"] if protocol else [start, other]
            gains = paired(*(_values(runs, name, "bbox", "AP", MEAN) for name in names))
            if gains or any(accuracies):
                lines.append([*(f"`{n}`" for n in names), *map(interval, (gains, *accuracies))])
    return markdown_table(["run", "compared with", "box AP, mean", *_probe_titles()], lines, "llr")


def lengths(runs: Rows, pretrainings: Rows, probes: Rows, starts: Sequence[str]) -> list[str]:
    """Write the table of `starts` by number of pretraining steps; none where there are fewer than three."""
    steps = {row["pretraining"]: row["steps"] for row in pretrainings} | {RANDOM: "0"}
    linear = [shown for shown in PROBES_SHOWN if shown[1] == "linear"]
    header = ["steps", "run", *(f"box AP, {t}" for t in TEST_SETS), "box AR100, mean", *_probe_titles(linear)]
    lines = []
    for protocol in dict.fromkeys(name.rpartition("-")[2] for name in _names(runs)):
        present = [start for start in starts if f"{start}-{protocol}" in _names(runs)]
        for start in present if len(present) > 2 else ():
            name = f"{start}-{protocol}"
            figures = [_values(runs, name, "bbox", "AP", t) for t in TEST_SETS]
            figures.append(_values(runs, name, "bbox", "AR100", MEAN))
            figures += [_accuracies(probes, start, *shown) for shown in linear]
            cells = [str(Figure.of(list(values.values()))) for values in figures]
            lines.append([steps[start], f"`{name}`", *cells])
    title = "Against the number of pretraining steps, per cent, mean ± sample standard deviation over the seeds:"
    return [f"{title}\n\n{markdown_table(header, lines, 'rlr')}"] if lines else []


def differences(runs: Rows, name: str, task: str, metric: str, test_set: str) -> list[float]:
    """Subtract the random start of the same seed; empty for a random start."""
    return paired(*(_values(runs, run, task, metric, test_set) for run in (name, _base(runs, name))))


def paired(ours: Mapping[str, float], theirs: Mapping[str, float]) -> list[float]:
    """Subtract seed by seed, of the seeds that both have."""
    return [ours[seed] - theirs[seed] for seed in ours if seed in theirs]


def interval(gains: Sequence[float]) -> str:
    """Write a mean difference and, of several seeds, its 95 % interval."""
    if not gains:
        return "–"
    mean = signed(statistics.fmean(gains))
    if len(gains) < 2:
        return mean
    low, high = _bounds(gains)
    return f"{mean} [{signed(low)}, {signed(high)}]"


def _bounds(gains: Sequence[float]) -> tuple[float, float]:
    """Compute the 95 % confidence interval of the mean of two or more differences (Student's t)."""
    mean, half = statistics.fmean(gains), float(stats.t.ppf((1 + LEVEL) / 2, len(gains) - 1) * stats.sem(gains))
    return mean - half, mean + half


def verdict(gains: Sequence[float]) -> str:
    """Say what an interval shows; one that contains 0 is inconclusive."""
    if len(gains) < 2:
        return "one seed"
    low, high = _bounds(gains)
    return "better" if low > 0 else "worse" if high < 0 else "inconclusive"


def _easy_and_hard(runs: Rows, name: str) -> list[float]:
    """Average the gains of box AP on easy and on hard, seed by seed."""
    both = (differences(runs, name, "bbox", "AP", test_set) for test_set in ("easy", "hard"))
    return [statistics.fmean(pair) for pair in zip(*both, strict=True)]


def _probe_titles(shown: Sequence[tuple[str, str]] = PROBES_SHOWN) -> list[str]:
    return [f"{METHODS[method]}, {features}" for features, method in shown]


def _probe_differences(probes: Rows, start: str, other: str, features: str, method: str) -> list[float]:
    """Subtract accuracies seed by seed, in points."""
    return paired(*(_accuracies(probes, name, features, method) for name in (start, other)))


def _accuracies(probes: Rows, start: str, features: str, method: str) -> dict[str, float]:
    """List a start's accuracies by seed, per cent."""
    found = _by_seed(probes, method, start=start, features=features)
    return {seed: 100 * accuracy for seed, accuracy in found.items()}


def _about(results: Path) -> dict[str, Any]:
    about: dict[str, Any] = json.loads((results / "about.json").read_text(encoding="utf-8"))
    return about


def _ran(about: Mapping[str, Any]) -> str:
    """Say where it ran and what failed."""
    ran_on = ", ".join("/".join(about[key]) for key in ("device", "engine"))
    versions = f"torch {'/'.join(about['torch'])}, revision {'/'.join(about['git_revision'])}"
    failed = "".join(f"- {row['job']}: {row['failure']}\n" for row in about["failed"])
    text = (
        f"Run on: {ran_on}; {versions}. Figures kept on: {about['kept_on']}. All jobs together took "
        f"{about['minutes']} minutes."
    )
    return f"{text} These jobs failed:\n\n{failed}" if failed else f"{text} No run failed.\n"


def _base(runs: Rows, name: str) -> str:
    return next(row["base"] for row in runs if row["run"] == name)


def _values(runs: Rows, name: str, task: str, metric: str, test_set: str) -> dict[str, float]:
    return _by_seed(runs, metric, run=name, task=task, test_set=test_set)


def _by_seed(rows: Rows, column: str, **wanted: str) -> dict[str, float]:
    """List a column by seed, of the rows with these values."""
    return {row["seed"]: float(row[column]) for row in rows if wanted.items() <= row.items()}


def _names(rows: Rows) -> list[str]:
    return list(dict.fromkeys(row["run"] for row in rows))
