"""The HTML page that compares runs."""

from __future__ import annotations

import base64
import re
import sys
from collections.abc import Sequence
from pathlib import Path

import cv2
import jinja2
import numpy as np

from segloc import __version__
from segloc.common import cli
from segloc.common.errors import InputError
from segloc.common.files import check_output, expanded, write_atomic
from segloc.common.images import ImageError, encode_jpeg, read_image
from segloc.common.output_kinds import lines_under, starting
from segloc.common.text import printable
from segloc.detection.validation import AP
from segloc.models.backbone import LEVELS
from segloc.reporting.charts import line_chart
from segloc.reporting.results_table import (
    CSV_COLUMNS,
    about,
    group_by_seed,
    group_names,
    notes,
    results_csv,
    results_markdown,
    results_table,
    signed,
)
from segloc.reporting.run_results import KINDS, Run, load_run
from segloc.training.batch_norm import too_few
from segloc.training.run_folder import RUN, closing

MAX_WIDTH_PX = 1600
# Up to this number of pretraining sections are unfolded.
UNFOLDED = 3
WRITERS = {".md": results_markdown, ".csv": results_csv}
# What the page and the tables may replace.
PAGE = starting("a page of segloc.report", rb'<!DOCTYPE html>.*<p class="note">segloc ')
TABLES = (
    starting("a table of segloc.report", rb"\| run +\| metric +\|"),
    lines_under("a table of segloc.report", *CSV_COLUMNS),
)


def pretraining_charts(run: Run) -> list[str]:
    """Draw loss and class accuracy with their chance levels, top-1 accuracy, and spread of the embeddings."""
    if not run.metrics:
        return []
    x = _column(run, "iteration")

    def chart(title: str, y_label: str, field: str, reference: float | None = None) -> str:
        lines = [(level.upper(), x, _column(run, f"{field}/{level}")) for level in LEVELS]
        dashed = None if reference is None else ("chance", [x[0], x[-1]], [reference] * 2)
        return line_chart(title, "step", y_label, lines, dashed)

    loss = [("all levels", x, _column(run, "loss"))]
    chance = ("chance", [x[0], x[-1]], [run.about["chance_loss"]] * 2)
    return [
        line_chart("Pretraining loss", "step", "InfoNCE, sum of levels", loss, chance),
        chart("Class of the nearest stored key", "accuracy", "class_accuracy", run.about["chance_class_accuracy"]),
        chart("Query closer to its key than to all negatives", "share", "top1"),
        chart("Spread of the embeddings (0 is collapse)", "standard deviation", "embedding_std"),
    ]


def fine_tuning_charts(runs: Sequence[Run]) -> list[str]:
    """Draw losses, and AP on held-out scans where it was measured; runs that differ only in seed share a colour."""
    groups = group_by_seed([run for run in runs if run.metrics])
    charts = {
        "loss": ("Fine-tuning loss", "sum of the losses"),
        AP.format("bbox"): ("Box AP on held-out training scans", "AP in per cent"),
    }
    drawn = []
    for field, (title, label) in charts.items():
        lines = [
            (name, [row["iteration"] for row in rows], [row[field] for row in rows])
            for name, members in zip(group_names(groups), groups, strict=True)
            for run in members
            if (rows := [row for row in run.metrics if field in row])
        ]
        if lines:
            drawn.append(line_chart(title, "step", label, lines))
    return drawn


def picture(argument: str) -> tuple[str, str]:
    """Convert ``CAPTION=FILE`` to the caption and a data URL of at most `MAX_WIDTH_PX`.

    Raises:
        InputError: the file does not exist or is not an image.
    """
    caption, given = cli.split_override(argument)
    file = expanded(given)
    if not Path(file).is_file():
        raise InputError(f"{file}: no such picture")
    try:
        image = read_image(file)
        shrink = MAX_WIDTH_PX / image.shape[1]
        if shrink < 1:
            image = np.asarray(cv2.resize(image, None, fx=shrink, fy=shrink, interpolation=cv2.INTER_AREA), np.uint8)
        jpeg = encode_jpeg(image, 88)
    except ImageError as error:
        raise InputError(f"{file}: not a picture ({error})") from error
    return caption, "data:image/jpeg;base64," + base64.b64encode(jpeg).decode()


def render(runs: list[Run], pictures: list[tuple[str, str]], title: str) -> str:
    """Render the page."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True, lstrip_blocks=True,
        # Marks of direction in a name would turn the text around it; SVG is no plain str.
        finalize=lambda value: printable(value) if type(value) is str else value,
    )  # fmt: skip
    table = results_table(runs)
    tuned = [run for run in runs if run.about["kind"] == "finetune"]
    pretrained = [run for run in runs if run.about["kind"] == "pretrain"]
    return environment.get_template("report.html.j2").render(
        title=title,
        version=__version__,
        kinds=KINDS,
        table=table,
        notes=notes(table),
        about=about,
        signed=signed,
        few=too_few,
        waiting=[run.name for run in tuned if not run.evaluation],
        pictures=pictures,
        unfolded=len(pretrained) <= UNFOLDED,
        pretrained=[(run, closing(run.metrics) if run.metrics else None,
                     [_unique(svg, f"{run.name}{i}") for i, svg in enumerate(pretraining_charts(run))])
                    for run in pretrained],
        fine_tuning=[_unique(svg, f"tuned{i}") for i, svg in enumerate(fine_tuning_charts(tuned))],
        runs=runs,
    )  # fmt: skip


def _unique(svg: str, prefix: str) -> str:
    """Make the ids of an SVG unique; with equal ids, SVGs on one page would share clip paths."""
    prefix = re.sub(r"\W", "-", prefix)
    return re.sub(r'(id="|url\(#|href="#)', rf"\g<1>{prefix}-", svg)


def _column(run: Run, name: str) -> list[float]:
    return [row.get(name, float("nan")) for row in run.metrics]


def _with_runs(paths: list[Path]) -> list[Path]:
    """Leave out and print folders without a run, for example of a failed run; keep all if none has a run."""
    left_out = [path for path in paths if path.is_dir() and not (path / RUN).is_file()]
    kept = [path for path in paths if path not in left_out]
    for path in left_out if kept else ():
        print(f"left out: {path} (no {RUN})", file=sys.stderr)
    return kept or paths


def write_report(
    runs: Sequence[str], out: str, title: str, pictures: Sequence[str] = (), tables: Sequence[str] = ()
) -> list[Path]:
    """Write a page that compares runs, and the results table.

    Args:
        runs: run folders, and JSON files of `segloc.evaluate`.
        out: the HTML page.
        title: of the page.
        pictures: ``CAPTION=FILE`` each.
        tables: files to write the table to, ``.md`` or ``.csv``.

    Returns:
        The files written, tables first.

    Raises:
        InputError: a run or picture cannot be read, or the suffix of a table is unknown.
    """
    for path in (out, *tables):
        check_output(path)
    for path in tables:
        if Path(path).suffix not in WRITERS:
            raise InputError(f"{path}: unknown suffix; --table writes {' and '.join(WRITERS)} files")
    found = [load_run(path) for path in _with_runs([Path(run) for run in runs])]
    page = render(found, [picture(argument) for argument in pictures], title)
    for path in tables:
        write_atomic(path, WRITERS[Path(path).suffix](results_table(found)).encode("utf-8", "backslashreplace"))
    write_atomic(out, page.encode("utf-8", "backslashreplace"))
    return [Path(path) for path in (*tables, out)]
