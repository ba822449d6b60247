"""The figures of an evaluation laid out for people and other programs: terminal, Markdown, CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from typing import Any

from segloc.detection.coco_eval import IOU_TYPES, METRICS

ALL = "all"
COLUMNS = ("engine", "test_set", "kind", "class", "metric", "value_percent")
BOUNDS = ("low_percent", "high_percent")


def parts(report: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Figures by test set, then of both overalls, in the order they are shown."""
    return {**report["subsets"], "mean": report["mean"], "pooled": report["pooled"]}


def terminal(report: dict[str, Any]) -> str:
    """Lay out all metrics over all classes, and AP of every class."""
    width = max(len(name) for name in parts(report))
    lines = [_title(report), " ".join([" " * (width + 5), *(f"{metric:>6}" for metric in METRICS)])]
    for kind in IOU_TYPES:
        for name, part in parts(report).items():
            if kind in part:
                lines.append(" ".join([f"{name:<{width}} {kind}", *(f"{_cell(part[kind][m]):>6}" for m in METRICS)]))
                bounds = part[kind].get("interval", {})
                for end, label in enumerate(("  from", "  to") if bounds else ()):
                    cells = (_cell(bounds[m] and bounds[m][end]) for m in METRICS)
                    lines.append(" ".join([f"{label:<{width + 5}}", *(f"{cell:>6}" for cell in cells)]))
    width = max(len(name) for name in (*report["classes"], "AP by class"))
    for kind in IOU_TYPES:
        measured = {name: part[kind] for name, part in parts(report).items() if kind in part}
        if measured:
            lines.append("\n" + "  ".join([f"AP by class, {kind}".ljust(width + 6), *measured]))
        for label in report["classes"] if measured else ():
            cells = (f"{_cell(m['per_class'][label]['AP']):>{len(name)}}" for name, m in measured.items())
            lines.append("  ".join([label.ljust(width + 6), *cells]))
    return "\n".join(lines)


def markdown(report: dict[str, Any]) -> str:
    """Lay out all metrics over all classes, then those of every class, a table for each test set."""
    kinds = [kind for kind in IOU_TYPES if any(kind in part for part in parts(report).values())]
    head = [f"{kind} {metric}" for kind in kinds for metric in METRICS]
    overall = [[name, str(part.get("images", "")), *_row(part, kinds)] for name, part in parts(report).items()]
    blocks = [f"# Evaluation\n\n{_title(report)}", _table(["test set", "images", *head], overall)]
    blocks.append("`mean`: plain mean of the test sets. `pooled`: the images of all test sets as one set.")
    for name, part in parts(report).items():
        rows = [[label, *_row(part, kinds, label)] for label in report["classes"]]
        blocks += [f"## {name}", _table(["class", *head], rows)]
    return "\n\n".join(blocks) + "\n"


def tidy(report: dict[str, Any]) -> str:
    """Write a CSV row per test set, kind, class (`ALL` for all) and metric, with all digits; empty where undefined.

    The bounds of intervals are columns of their own, there only where they were asked for.
    """
    asked = "bootstrap" in report
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow([*COLUMNS, *(BOUNDS if asked else ())])
    for name, part in parts(report).items():
        for kind in (kind for kind in IOU_TYPES if kind in part):
            for label, figures in {ALL: part[kind], **part[kind]["per_class"]}.items():
                for metric in METRICS:
                    bounds = (figures.get("interval", {}).get(metric) or [None, None]) if asked else []
                    writer.writerow([report["engine"], name, kind, label, metric, figures[metric], *bounds])
    return file.getvalue()


def _title(report: dict[str, Any]) -> str:
    title = f"engine: {report['engine']}; per cent"
    if "bootstrap" not in report:
        return title
    about = report["bootstrap"]
    return f"{title}; {about['level_percent']} % intervals over test images ({about['resamples']} bootstrap draws)"


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


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines)


def _cell(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"
