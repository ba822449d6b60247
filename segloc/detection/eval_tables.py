"""Evaluation results as text for the terminal, as Markdown and as CSV."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

from segloc.common.output_kinds import lines_under, starting
from segloc.common.skips import Skips
from segloc.common.text import csv_text, markdown, markdown_table, printable, shortened
from segloc.detection.coco_eval import IOU_TYPES, MEAN, METRICS, POOLED, parts

ALL = "all"
COLUMNS = ("engine", "test_set", "kind", "class", "metric", "value_percent")
BOUNDS = ("low_percent", "high_percent")
SKIPPED = "skipped_inputs"
# What the tables may replace.
CSV = lines_under("a table of segloc.evaluate", *COLUMNS)
MARKDOWN = starting("a table of segloc.evaluate", rb"# Evaluation\n\nengine: ")


def skips_of(report: dict[str, Any]) -> list[Skips]:
    """Return the counts of skipped inputs of each test set; `what` names the set. Earlier reports have none."""
    return [
        dataclasses.replace(Skips.from_json(part), what=f"{part['what']} of {name}")
        for name, parts_of_set in report.get("skipped", {}).items()
        for part in parts_of_set
    ]


def _skipped_lines(report: dict[str, Any]) -> list[str]:
    return [skips.summary() for skips in skips_of(report) if skips.skipped]


def evaluation_text(report: dict[str, Any]) -> str:
    """Format all metrics over all classes, and the AP of each class."""
    width = max(len(printable(name)) for name in parts(report))

    def line(title: str, cells: Iterable[str]) -> str:
        return " ".join([f"{title:<{width + 5}}", *(f"{cell:>6}" for cell in cells)])

    lines = [_title(report), line("", METRICS)]
    for kind in IOU_TYPES:
        for name, part in parts(report).items():
            if kind in part:
                lines.append(line(f"{printable(name):<{width}} {kind}", (_cell(part[kind][m]) for m in METRICS)))
                bounds = part[kind].get("interval", {})
                for end, label in enumerate(("  from", "  to") if bounds else ()):
                    lines.append(line(label, (_cell(bounds[m] and bounds[m][end]) for m in METRICS)))
    width = max(len(shortened(name, 60)) for name in (*report["classes"], "AP by class"))
    for kind in IOU_TYPES:
        measured = {printable(name): part[kind] for name, part in parts(report).items() if kind in part}
        if measured:
            lines.append("\n" + "  ".join([f"AP by class, {kind}".ljust(width + 6), *measured]))
        for label in report["classes"] if measured else ():
            cells = (f"{_cell(m['per_class'][label]['AP']):>{len(name)}}" for name, m in measured.items())
            lines.append("  ".join([shortened(label, 60).ljust(width + 6), *cells]))
    return "\n".join([*lines, *_skipped_lines(report)])


def evaluation_markdown(report: dict[str, Any]) -> str:
    """Format all metrics over all classes, then a table of all metrics per class for each test set."""
    kinds = [kind for kind in IOU_TYPES if any(kind in part for part in parts(report).values())]
    head = [f"{kind} {metric}" for kind in kinds for metric in METRICS]
    overall = [[markdown(name), str(p.get("images", "")), *_row(p, kinds)] for name, p in parts(report).items()]
    blocks = [f"# Evaluation\n\n{_title(report)}\n", markdown_table(["test set", "images", *head], overall, "lr")]
    blocks.append(f"`{MEAN}`: plain mean of the test sets. `{POOLED}`: all test images as one set.\n")
    blocks += [f"Skipped: {markdown(line.removeprefix('skipped '))}.\n" for line in _skipped_lines(report)]
    for name, part in parts(report).items():
        rows = [[markdown(label), *_row(part, kinds, label)] for label in report["classes"]]
        blocks.append(f"## {markdown(name)}\n\n{markdown_table(['class', *head], rows, 'lr')}")
    return "\n".join(blocks)


def evaluation_csv(report: dict[str, Any]) -> str:
    """Format a CSV row per test set, kind, class (`ALL` for all) and metric, with all digits; empty where undefined.

    Reports with confidence intervals have two more columns, `BOUNDS`. If inputs were skipped, the last column,
    `SKIPPED`, has their number in the test set.
    """
    with_bounds = "bootstrap" in report
    skipped = {name: sum(part["skipped"] for part in found) for name, found in report.get("skipped", {}).items()}
    with_skipped = any(skipped.values())
    rows = []
    for name, part in parts(report).items():
        count = [skipped.get(name, sum(skipped.values()))] if with_skipped else []
        for kind in (kind for kind in IOU_TYPES if kind in part):
            for label, figures in {ALL: part[kind], **part[kind]["per_class"]}.items():
                for metric in METRICS:
                    bounds = (figures.get("interval", {}).get(metric) or (None, None)) if with_bounds else ()
                    rows.append([report["engine"], name, kind, label, metric, figures[metric], *bounds, *count])
    return csv_text([*COLUMNS, *(BOUNDS if with_bounds else ()), *([SKIPPED] if with_skipped else [])], rows)


def _title(report: dict[str, Any]) -> str:
    title = f"engine: {report['engine']}; per cent"
    if "bootstrap" not in report:
        return title
    about = report["bootstrap"]
    level = f"{about['level_percent']} % confidence intervals"
    return f"{title}; {level} over test images ({about['resamples']} bootstrap draws)"


def _row(part: dict[str, Any], kinds: Sequence[str], label: str | None = None) -> list[str]:
    cells = []
    for kind in kinds:
        figures = part.get(kind, {})
        figures = figures if label is None else figures.get("per_class", {}).get(label, {})
        for metric in METRICS:
            bounds = figures.get("interval", {}).get(metric)
            between = f" ({_cell(bounds[0])} to {_cell(bounds[1])})" if bounds else ""
            cells.append(_cell(figures.get(metric)) + between)
    return cells


def _cell(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"
