"""``python -m segloc.report``: one self-contained HTML page that compares runs."""

from __future__ import annotations

import argparse
import base64
import dataclasses
import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import cv2
import jinja2
import numpy as np

from segloc import __version__, cli
from segloc.charts import line_chart
from segloc.contract import InputError, check_output, write_atomic
from segloc.models.backbone import LEVELS
from segloc.runs import METRICS as METRICS_FILE
from segloc.runs import RUN, closing, read_metrics, read_run

EVALUATION = "evaluation.json"
METRICS = ("AP", "AP50", "AP75", "AR1", "AR10", "AR100")
KINDS = {"bbox": "Detection (boxes)", "segm": "Segmentation (masks)"}
MAX_WIDTH_PX = 1600
# What the page shows of run.json and of each line of metrics.json, by the kind of run.
NUMBER = (int, float)
_COMMON = dict.fromkeys(("engine", "device", "git_revision", "command"), str)
SHOWN: dict[str, dict[str, Any]] = {
    "finetune": _COMMON,
    "pretrain": {**_COMMON, "steps": int, "chance_loss": NUMBER, "chance_class_accuracy": NUMBER},
}
MEASURED: dict[str, dict[str, Any]] = {
    "finetune": dict.fromkeys(("iteration", "loss"), NUMBER),
    "pretrain": dict.fromkeys(("iteration", "loss", "class_accuracy"), NUMBER),
}
EXAMPLES = """\
  python -m segloc.report runs/pretrain runs/finetune-segloc runs/finetune-random --out report.html
  python -m segloc.report runs/* --picture "Positive pairs=data/pairs.png" --out report.html
The first fine-tuned run that started from random weights is what the others are compared with."""


@dataclasses.dataclass(frozen=True)
class Run:
    """A run folder, read.

    Attributes:
        name: of the folder.
        about: ``run.json``.
        metrics: ``metrics.json``, a dict a line.
        evaluation: ``evaluation.json``, None before the run was evaluated.
    """

    name: str
    about: dict[str, Any]
    metrics: list[dict[str, float]]
    evaluation: dict[str, Any] | None


@dataclasses.dataclass(frozen=True)
class Row:
    """A line of the results table: one metric of one run, a value a column (per cent, None where undefined)."""

    run: str
    metric: str
    values: list[float | None]
    differences: list[float | None]


def read(folder: Path) -> Run:
    """Read a run folder.

    Raises:
        InputError: it is none.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: no such run folder")
    about, metrics = read_run(folder), read_metrics(folder)
    kind = str(about.get("kind"))
    if kind not in SHOWN:
        raise InputError(f"{folder}: a run of kind {kind!r}, not one of {', '.join(SHOWN)}")
    _check_fields(about, SHOWN[kind], folder / RUN)
    for row in metrics:
        _check_fields(row, MEASURED[kind], folder / METRICS_FILE)
    path = folder / EVALUATION
    try:
        evaluation = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
    except ValueError as error:
        raise InputError(f"{path}: not JSON ({error})") from error
    if evaluation is not None:
        _check_evaluation(evaluation, path)
    return Run(folder.name, about, metrics, evaluation)


def _check_fields(found: Any, fields: dict[str, Any], path: Path) -> None:
    for name, kind in fields.items():
        value = found.get(name) if isinstance(found, dict) else None
        if not isinstance(value, kind) or isinstance(value, bool):
            raise InputError(f"{path}: {name} is {str(value)[:40]!r}, so this is no file of ours")


def _check_evaluation(found: Any, path: Path) -> None:
    _check_fields(found, {"engine": str, "subsets": dict, "mean": dict}, path)
    for name, part in {**found["subsets"], "mean": found["mean"]}.items():
        for kind in KINDS:
            figures = part.get(kind, {}) if isinstance(part, dict) else None
            values = [figures.get(metric) for metric in METRICS] if isinstance(figures, dict) else ["missing"]
            if not all(value is None or isinstance(value, (int, float)) for value in values):
                raise InputError(f"{path}: the figures of {name} are not those of segloc.evaluate")


def results_table(runs: list[Run]) -> tuple[list[tuple[str, str]], list[Row]]:
    """Lay out the evaluations as the paper's Table 1: a row per run and metric, a column per kind and subset.

    Returns:
        The columns as (kind, subset), and the rows. Differences are against the first run from random weights; they
        are None in its own rows, and everywhere if there is no such run.
    """
    evaluated = [run for run in runs if run.evaluation]
    columns: list[tuple[str, str]] = []
    for run in evaluated:
        for kind in KINDS:
            for subset in (*run.evaluation["subsets"], "mean"):  # type: ignore[index]
                if (kind, subset) not in columns and _value(run, kind, subset, "AP") is not None:
                    columns.append((kind, subset))
    columns.sort(key=lambda column: (list(KINDS).index(column[0]), column[1] == "mean"))
    base = next((run for run in evaluated if run.about.get("weights") == "random"), None)
    rows = []
    for run in evaluated:
        for metric in METRICS:
            values = [_value(run, kind, subset, metric) for kind, subset in columns]
            differences: list[float | None] = [None] * len(columns)
            if base is not None and base is not run:
                others = [_value(base, kind, subset, metric) for kind, subset in columns]
                differences = [None if v is None or o is None else v - o for v, o in zip(values, others, strict=True)]
            rows.append(Row(run.name, metric, values, differences))
    return columns, rows


def pretraining_charts(run: Run) -> list[str]:
    """Draw loss against chance, class accuracy against chance, similarity, and spread of the embeddings."""
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
        chart("Class of the nearest stored key", "share right", "class_accuracy", run.about["chance_class_accuracy"]),
        chart("Query closer to its key than to all negatives", "share", "top1"),
        chart("Spread of the embeddings (0 is collapse)", "standard deviation", "embedding_std"),
    ]


def fine_tuning_chart(runs: Iterable[Run]) -> str | None:
    """Draw the fine-tuning losses of all runs in one chart."""
    lines = [(run.name, _column(run, "iteration"), _column(run, "loss")) for run in runs if run.metrics]
    return line_chart("Fine-tuning loss", "step", "sum of the losses", lines) if lines else None


def picture(argument: str) -> tuple[str, str]:
    """Turn ``CAPTION=FILE`` into the caption and a data URL, shrunk to what a page can show.

    Raises:
        InputError: no such file, or it is no image.
    """
    caption, file = cli.split_override(argument)
    data = Path(file).read_bytes() if Path(file).is_file() else None
    if data is None:
        raise InputError(f"{file}: no such picture")
    image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR) if data else None
    if image is None:
        raise InputError(f"{file}: not a picture")
    shrink = MAX_WIDTH_PX / image.shape[1]
    if shrink < 1:
        image = cv2.resize(image, None, fx=shrink, fy=shrink, interpolation=cv2.INTER_AREA)
    jpeg = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 88])[1].tobytes()
    return caption, "data:image/jpeg;base64," + base64.b64encode(jpeg).decode()


def render(runs: list[Run], pictures: list[tuple[str, str]], title: str) -> str:
    """Render the page."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    columns, rows = results_table(runs)
    tuned = [run for run in runs if run.about.get("kind") == "finetune"]
    pretrained = [run for run in runs if run.about.get("kind") == "pretrain"]
    return environment.get_template("report.html.j2").render(
        title=title,
        version=__version__,
        kinds=KINDS,
        metrics=METRICS,
        columns=columns,
        rows=rows,
        engines=sorted({run.evaluation["engine"] for run in tuned if run.evaluation}),
        pictures=pictures,
        pretrained=[(run, closing(run.metrics) if run.metrics else None,
                     [_unique(svg, f"{run.name}{i}") for i, svg in enumerate(pretraining_charts(run))])
                    for run in pretrained],
        fine_tuning=fine_tuning_chart(tuned),
        runs=runs,
    )  # fmt: skip


def _unique(svg: str, prefix: str) -> str:
    """Make the ids of an SVG its own: several on one page would otherwise use each other's clip paths."""
    prefix = re.sub(r"\W", "-", prefix)
    return re.sub(r'(id="|url\(#|href="#)', rf"\g<1>{prefix}-", svg)


def _value(run: Run, kind: str, subset: str, metric: str) -> float | None:
    assert run.evaluation is not None
    parts = {**run.evaluation["subsets"], "mean": run.evaluation["mean"]}
    return parts.get(subset, {}).get(kind, {}).get(metric)


def _column(run: Run, name: str) -> list[float]:
    return [row.get(name, float("nan")) for row in run.metrics]


def _command(args: argparse.Namespace) -> None:
    check_output(args.out)
    runs = [read(Path(folder)) for folder in args.runs]
    page = render(runs, [picture(argument) for argument in args.picture], args.title)
    write_atomic(args.out, page.encode())
    print(Path(args.out).resolve())


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    options = cli.parser("segloc.report", "Write one self-contained HTML page that compares runs.", EXAMPLES)
    options.add_argument("runs", nargs="+", metavar="RUN", help="run folders; evaluated ones hold evaluation.json")
    options.add_argument("--out", required=True, metavar="FILE", help="the page")
    options.add_argument("--title", default="SegLoc report", help="headline (default: %(default)s)")
    options.add_argument(
        "--picture", action="append", default=[], metavar="CAPTION=FILE", help="show a picture (repeatable)"
    )
    return cli.run(_command, options, argv)


if __name__ == "__main__":
    raise SystemExit(main())
