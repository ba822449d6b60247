"""Reading of runs for the report: settings, training metrics, evaluation."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from segloc.common.datasets.coco_fields import is_number
from segloc.common.errors import InputError
from segloc.common.parse import parse_json, parsing, shown
from segloc.common.run_files import METRICS_FILE, RUN, START
from segloc.common.skips import Skips
from segloc.detection import eval_tables
from segloc.detection.coco_eval import MEAN, METRICS, parts
from segloc.training.run_folder import origin, read_metrics, read_run, read_settings, read_skips

EVALUATION = "evaluation.json"
KINDS = {"bbox": "Detection (boxes)", "segm": "Segmentation (masks)"}
# Fields of run.json and of each line of metrics.json that the page shows, by kind of run.
NUMBER = (int, float)
_COMMON = dict.fromkeys(("engine", "device", "git_revision", "command"), str)
SHOWN: dict[str, dict[str, Any]] = {
    "finetune": {**_COMMON, "weights": str},
    "pretrain": {**_COMMON, "steps": int, "chance_loss": NUMBER, "chance_class_accuracy": NUMBER},
}
MEASURED: dict[str, dict[str, Any]] = {
    "finetune": dict.fromkeys(("iteration", "loss"), NUMBER),
    "pretrain": dict.fromkeys(("iteration", "loss", "class_accuracy"), NUMBER),
}


@dataclasses.dataclass(frozen=True)
class Run:
    """A run.

    Attributes:
        name: of the run folder.
        about: ``run.json``.
        settings: ``config.yaml``, by dotted key.
        metrics: ``metrics.json``, a dict per line.
        evaluation: ``evaluation.json``; None until the finished run is evaluated.
        start: identity of the initial weights without the pretraining's seed: a name, a path, or all settings of the
            pretraining; see `origin`.
        seeds: of the run and of the pretraining.
        skips: inputs that training and evaluation skipped.
    """

    name: str
    about: dict[str, Any]
    settings: dict[str, Any]
    metrics: list[dict[str, float]]
    evaluation: dict[str, Any] | None
    start: str
    seeds: tuple[Any, Any]
    skips: tuple[Skips, ...] = ()

    def parts(self) -> dict[str, Any]:
        """Metrics of each test set, then of mean and pooled; empty until the run is evaluated."""
        return parts(self.evaluation) if self.evaluation else {}

    def figure(self, kind: str, test_set: str, metric: str) -> float | None:
        """Value of a metric, per cent; None if undefined."""
        value: float | None = self.parts().get(test_set, {}).get(kind, {}).get(metric)
        return value


def load_run(path: Path) -> Run:
    """Read a run folder, or a JSON file of ``segloc.evaluate --results``.

    Raises:
        InputError: the path is neither.
    """
    return _read_results(path) if path.is_file() else _read_folder(path)


def _read_results(path: Path) -> Run:
    """Read an evaluation file without a run folder."""
    evaluation = _evaluation(path)
    if evaluation is None:
        raise InputError(f"{path}: evaluates an unfinished training; finish it and evaluate again")
    about = {"kind": "results", "engine": evaluation["engine"], "device": "", "git_revision": "", "command": ""}
    name = path.parent.resolve().name if path.name == EVALUATION else path.stem
    skips = _skips(path, [], evaluation)
    return Run(name, about, {}, [], evaluation, str(path.resolve()), (None, None), skips)


def _read_folder(folder: Path) -> Run:
    if not folder.is_dir():
        raise InputError(f"{folder}: no such run folder")
    about, metrics = read_run(folder), read_metrics(folder)
    kind = str(about.get("kind"))
    if kind not in SHOWN:
        raise InputError(f"{folder}: has a run of kind {kind!r}; give runs of kind {' or '.join(SHOWN)}")
    # Runs of earlier versions do not say how many images their batch norm saw.
    _check_fields(about, {**SHOWN[kind], "batch_norm_images": (int, type(None))}, folder / RUN)
    for row in metrics:
        _check_fields(row, MEASURED[kind], folder / METRICS_FILE)
    settings = read_settings(folder)
    start, pretraining_seed = _start(folder, about["weights"]) if kind == "finetune" else ("", None)
    seeds = (settings.get("train.seed"), pretraining_seed)
    evaluation = _evaluation(folder / EVALUATION)
    skips = _skips(folder / EVALUATION, read_skips(folder), evaluation)
    return Run(folder.name, about, settings, metrics, evaluation, start, seeds, skips)


def _skips(path: Path, of_training: list[Skips], evaluation: dict[str, Any] | None) -> tuple[Skips, ...]:
    """Return what training and evaluation skipped, but only kinds of input with skipped ones."""
    with parsing(path, "the counts of skipped inputs are malformed; run segloc.evaluate again"):
        of_evaluation = eval_tables.skips_of(evaluation or {})
    return tuple(part for part in (*of_training, *of_evaluation) if part.skipped)


def _start(folder: Path, weights: str) -> tuple[str, Any]:
    """Read the origin of the initial weights from the run folder, or from the weights if the folder has none."""
    if not (folder / START).is_file():
        return origin(weights)
    found = parse_json((folder / START).read_bytes(), folder / START)
    _check_fields(found, {"origin": str, "pretraining_seed": (int, type(None))}, folder / START)
    return found["origin"], found.get("pretraining_seed")


def _evaluation(path: Path) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    found = parse_json(path.read_bytes(), path)
    _check_fields(found, {"engine": str, "subsets": dict, MEAN: dict}, path)
    for name, part in parts(found).items():
        for kind in KINDS:
            figures = part.get(kind, {}) if isinstance(part, dict) else None
            values = [figures.get(metric) for metric in METRICS] if isinstance(figures, dict) else ["missing"]
            if not all(value is None or is_number(value) for value in values):
                raise InputError(f"{path}: the metrics of {name} are malformed; run segloc.evaluate again")
    if found.get("iteration") != found.get("steps", found.get("iteration")):
        return None  # of a checkpoint before the last step
    return found  # type: ignore[no-any-return]


def _check_fields(found: Any, fields: dict[str, Any], path: Path) -> None:
    for name, kind in fields.items():
        value = found.get(name) if isinstance(found, dict) else None
        if not isinstance(value, kind) or isinstance(value, bool) or (kind is NUMBER and not is_number(value)):
            raise InputError(f"{path}: {name} is {shown(value)}; give a file that segloc wrote")
