"""Results table in the layout of the paper's table 1; runs that differ only in seed are averaged."""

from __future__ import annotations

import dataclasses
import re
import statistics
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from segloc.common.datasets.pidray import SUBSETS
from segloc.common.skips import Skips
from segloc.common.text import csv_text, markdown, markdown_table
from segloc.detection.coco_eval import MEAN, METRICS, POOLED, mean_of_all
from segloc.models.initial_weights import RANDOM
from segloc.reporting.run_results import KINDS, Run
from segloc.settings.finetuning import INCIDENTAL

PUBLISHED: dict[str, Any] = yaml.safe_load(Path(__file__).with_name("published.yaml").read_text(encoding="utf-8"))
# Settings that depend on the initial weights: runs that differ only in these have the same protocol.
LOADING = ("train.box_heads", "train.unmatched")
LOADING_AND_NORMS = ("model.backbone.norm", "model.backbone.sda_norm", *LOADING)
CSV_COLUMNS = (
    *("name", "origin", "engine", "runs", "metric", "task", "test_set"),
    *("value", "standard_deviation", "difference", "difference_to", "skipped"),
)

Column = tuple[str, str]
Value = Callable[[str, str, str], float | None]  # value of a run for a kind, test set and metric


@dataclasses.dataclass(frozen=True)
class Figure:
    """Content of a cell, per cent.

    Attributes:
        value: mean over the seeds; None if a run has no value.
        spread: sample standard deviation over the seeds; None for a single run.
        difference: to random initialisation, in points.
    """

    value: float | None
    spread: float | None = None
    difference: float | None = None

    @classmethod
    def of(cls, seeds: Sequence[float | None], base: Sequence[float | None] = ()) -> Figure:
        """Average the seeds and subtract the mean of `base`, random initialisation; None if a seed has no value."""
        value, other = mean_of_all(seeds), mean_of_all(base)
        spread = statistics.stdev(seeds) if value is not None and len(seeds) > 1 else None  # type: ignore[type-var]
        return cls(value, spread, None if value is None or other is None else value - other)

    def __str__(self) -> str:
        if self.value is None:
            return "–"
        spread = "" if self.spread is None else f" ± {self.spread:.1f}"
        difference = "" if self.difference is None else f" ({signed(self.difference)})"
        return f"{self.value:.1f}{spread}{difference}"


@dataclasses.dataclass(frozen=True)
class Block:
    """Rows for one initialisation and protocol, or for one published result.

    Attributes:
        name: common part of the runs' folder names, or name of the published result.
        engine: of the detector, marked if it is the stand-in; empty for published results.
        runs: number of runs with different seeds; 0 for published results.
        source: the publication; empty for runs.
        base: name of the random initialisation that the differences are to; empty if there is none.
        figures: by metric, one figure per column.
        skipped: run and counts for each kind of input that a run skipped.
    """

    name: str
    engine: str
    runs: int
    source: str
    base: str
    figures: dict[str, list[Figure]]
    skipped: tuple[tuple[str, Skips], ...] = ()


@dataclasses.dataclass(frozen=True)
class Table:
    """Columns (kind, test set) and blocks: first the runs, then the published results."""

    columns: list[Column]
    blocks: list[Block]


def results_table(runs: Sequence[Run]) -> Table:
    """Make the table of the evaluated runs; add published results if the test sets have the names of PIDray's."""
    groups = group_by_seed([run for run in runs if run.evaluation])
    columns = _columns([run for members in groups for run in members])
    names = group_names(groups)
    blocks = []
    for name, members in zip(names, groups, strict=True):
        at = baseline(groups, members)
        base, base_name = ([], "") if at is None else (groups[at], names[at])
        figures = _figures(columns, [run.figure for run in members], [run.figure for run in base])
        engine = members[0].evaluation["engine"]  # type: ignore[index]
        skipped = tuple((run.name, part) for run in members for part in run.skips)
        blocks.append(Block(name, engine, len(members), "", base_name, figures, skipped))
    subsets = {subset for _, subset in columns} - {MEAN, POOLED}
    return Table(columns, [*blocks, *(published(columns) if subsets == set(SUBSETS) else [])])


def group_by_seed(runs: Sequence[Run]) -> list[list[Run]]:
    """Group runs that differ only in seed, in the given order; a repeated seed goes to a new group."""
    groups: list[list[Run]] = []
    for run in runs:
        alike = (g for g in groups if (g[0].start, protocol(g[0])) == (run.start, protocol(run)))
        group = next((g for g in alike if run.seeds not in [other.seeds for other in g]), None)
        if group is None:
            groups.append([run])
        else:
            group.append(run)
    return groups


def group_names(groups: Sequence[Sequence[Run]]) -> list[str]:
    """Name groups after their folders without the seed at the end; repeated names get a number."""
    names: list[str] = []
    for members in groups:
        name = members[0].name
        if len(members) > 1:
            without_seed = {re.sub(r"[-_. ]*(seed|s)?[-_. ]*\d+$", "", run.name) for run in members}
            name = without_seed.pop() if len(without_seed) == 1 else f"{name} and {len(members) - 1} more"
        taken = sum(other == name or other.startswith(f"{name} (") for other in names)
        names.append(f"{name} ({taken + 1})" if taken else name)
    return names


def protocol(run: Run, ignored: Sequence[str] = ()) -> tuple[Any, ...]:
    """Return everything that comparable runs share, except initial weights, seed and the settings in `ignored`."""
    left_out = {*INCIDENTAL, *ignored}
    kept = {key: value for key, value in run.settings.items() if key not in left_out}
    # A run older than an optional setting does not list it.
    settings = tuple(sorted((key, repr(value)) for key, value in kept.items() if value is not None))
    found = run.evaluation or {"engine": None, "subsets": {}}
    tests = sorted((name, str(part.get("images")), str(part.get("digest"))) for name, part in found["subsets"].items())
    return settings, run.about.get("data_digest"), found["engine"], repr(found.get("changed")), tuple(tests)


def baseline(groups: Sequence[Sequence[Run]], members: Sequence[Run]) -> int | None:
    """Find the random initialisation of the same protocol; None if there is none or `members` is one itself.

    A group with the same norms is preferred to one with other norms.
    """
    if members[0].start == RANDOM:
        return None
    for ignored in (LOADING, LOADING_AND_NORMS):
        for position, others in enumerate(groups):
            if others[0].start == RANDOM and protocol(others[0], ignored) == protocol(members[0], ignored):
                return position
    return None


def published(columns: Sequence[Column]) -> list[Block]:
    """Return the blocks of published results; their mean is computed from the three test sets."""
    by_name = {entry["name"]: entry for entry in PUBLISHED["rows"]}
    blocks = []
    for entry in by_name.values():
        base = [by_name[entry["base"]]] if "base" in entry else []
        figures = _figures(columns, [partial(_published_value, entry)], [partial(_published_value, b) for b in base])
        shown = {metric: row for metric, row in figures.items() if any(figure.value is not None for figure in row)}
        blocks.append(Block(entry["name"], "", 0, entry["source"], entry.get("base", ""), shown))
    return blocks


def results_csv(table: Table) -> str:
    """Format a line per defined figure; values have six digits. ``skipped`` counts inputs of training and all tests."""
    rows = []
    for block in table.blocks:
        skipped = "" if block.source else sum(part.skipped for _, part in block.skipped)
        for metric, row in block.figures.items():
            for (kind, subset), figure in zip(table.columns, row, strict=True):
                if figure.value is not None:
                    what = [block.name, block.source or "measured", block.engine, block.runs or "", metric]
                    numbers = [None if x is None else f"{x:.6g}" for x in dataclasses.astuple(figure)]
                    base = block.base if figure.difference is not None else ""
                    rows.append([*what, kind, subset, *numbers, base, skipped])
    return csv_text(CSV_COLUMNS, rows)


def results_markdown(table: Table) -> str:
    """Format the table as Markdown: per cent, ± over seeds, difference to random initialisation in brackets."""
    header = ["run", "metric", *(f"{KINDS[kind].split()[0]} {markdown(subset)}" for kind, subset in table.columns)]
    rows = [
        [f"**{markdown(block.name)}**<br>{markdown(about(block))}" if not position else "", metric, *map(str, row)]
        for block in table.blocks
        for position, (metric, row) in enumerate(block.figures.items())
    ]
    return "\n".join([markdown_table(header, rows, "llr"), *map(markdown, notes(table)), ""])


def about(block: Block) -> str:
    """Describe the source of a block in a few words."""
    if block.source:
        return f"published: {block.source}"
    return f"{block.engine}; " + ("1 run" if block.runs == 1 else f"{block.runs} seeds")


def signed(difference: float) -> str:
    """Format a difference with sign and one decimal; zero is +0.0."""
    return f"{round(difference, 1) + 0.0:+.1f}"


def notes(table: Table) -> list[str]:
    """Return the sentences that explain the table."""
    subsets = {subset for _, subset in table.columns}
    found = ["COCO metrics, per cent.", f"{MEAN.capitalize()}: the plain mean of the test sets."]
    if POOLED in subsets:
        found.append(f"{POOLED.capitalize()}: all test images as one set.")
    if any(block.runs > 1 for block in table.blocks):
        found.append("±: sample standard deviation over runs that differ only in seed.")
    if any(block.base for block in table.blocks):
        found.append("In brackets: difference to random initialisation with the same protocol and engine, in points.")
    found += [f"{name} {part.summary()}." for block in table.blocks for name, part in block.skipped]
    if any("stand-in" in block.engine for block in table.blocks):
        found.append(
            "The stand-in replaces Detectron2's Cascade Mask R-CNN where Detectron2 is not installed. Its metrics "
            "cannot be compared with those of other engines or with published ones."
        )
    if any(block.source for block in table.blocks):
        found.append(
            "Published rows are not measured here. They are for the real scans of PIDray's first release; metrics on "
            "simulated or other scans cannot be compared with them."
        )
        found += [f"{name}: {source}." for name, source in PUBLISHED["sources"].items()]
    return found


def _columns(runs: Sequence[Run]) -> list[Column]:
    """List the columns: boxes, then masks; for each, the test sets in the order of the runs, mean, pooled."""
    columns = [
        (kind, subset)
        for run in runs
        for subset in run.parts()
        for kind in KINDS
        if any(run.figure(kind, subset, metric) is not None for metric in METRICS)
    ]
    return sorted(dict.fromkeys(columns), key=lambda c: (list(KINDS).index(c[0]), c[1] == POOLED, c[1] == MEAN))


def _figures(columns: Sequence[Column], seeds: Sequence[Value], base: Sequence[Value]) -> dict[str, list[Figure]]:
    def figure(column: Column, metric: str) -> Figure:
        return Figure.of([value(*column, metric) for value in seeds], [value(*column, metric) for value in base])

    return {metric: [figure(column, metric) for column in columns] for metric in METRICS}


def _published_value(entry: dict[str, Any], kind: str, subset: str, metric: str) -> float | None:
    values = entry[kind].get(metric)
    if values is None or subset == POOLED:
        return None
    return mean_of_all(values) if subset == MEAN else values[SUBSETS.index(subset)]
