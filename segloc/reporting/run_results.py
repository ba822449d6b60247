"""A run as the report reads it: what was asked for, what was measured on the way and in the end."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from segloc.common.errors import InputError
from segloc.detection.coco_eval import MEAN, METRICS, parts
from segloc.training.run_folder import METRICS as METRICS_FILE
from segloc.training.run_folder import RUN, START, origin, read_metrics, read_run, read_settings

EVALUATION = "evaluation.json"
KINDS = {"bbox": "Detection (boxes)", "segm": "Segmentation (masks)"}
# What the page shows of run.json and of each line of metrics.json, by the kind of run.
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
    """A run, read.

    Attributes:
        name: of its folder.
        about: ``run.json``.
        settings: ``config.yaml``, by dotted key.
        metrics: ``metrics.json``, a dict a line.
        evaluation: ``evaluation.json``, None before the finished run was evaluated.
        start: what its start weights are, the seed of their pretraining aside: a name, a path, or all settings of
            the pretraining; see `origin`.
        seeds: of the run and of the pretraining.
    """

    name: str
    about: dict[str, Any]
    settings: dict[str, Any]
    metrics: list[dict[str, float]]
    evaluation: dict[str, Any] | None
    start: str
    seeds: tuple[Any, Any]

    def parts(self) -> dict[str, Any]:
        """Measured figures by test set, then of the overalls; empty before the run was evaluated."""
        return parts(self.evaluation) if self.evaluation else {}

    def figure(self, kind: str, test_set: str, metric: str) -> float | None:
        """A measured figure, per cent; None where there is none."""
        value: float | None = self.parts().get(test_set, {}).get(kind, {}).get(metric)
        return value


def load_run(path: Path) -> Run:
    """Read a run folder, or the file that `segloc.evaluate` made of another program's results.

    Raises:
        InputError: it is neither.
    """
    return _read_results(path) if path.is_file() else _read_folder(path)


def _read_results(path: Path) -> Run:
    """Read an evaluation file alone: figures of a detector of which nothing else is known."""
    evaluation = _evaluation(path)
    if evaluation is None:
        raise InputError(f"{path}: of a training that had not finished")
    about = {"kind": "results", "engine": evaluation["engine"], "device": "", "git_revision": "", "command": ""}
    name = path.parent.resolve().name if path.name == EVALUATION else path.stem
    return Run(name, about, {}, [], evaluation, str(path.resolve()), (None, None))


def _read_folder(folder: Path) -> Run:
    if not folder.is_dir():
        raise InputError(f"{folder}: no such run folder")
    about, metrics = read_run(folder), read_metrics(folder)
    kind = str(about.get("kind"))
    if kind not in SHOWN:
        raise InputError(f"{folder}: a run of kind {kind!r}, not one of {', '.join(SHOWN)}")
    _check_fields(about, SHOWN[kind], folder / RUN)
    for row in metrics:
        _check_fields(row, MEASURED[kind], folder / METRICS_FILE)
    settings = read_settings(folder)
    start, pretraining_seed = _start(folder, about["weights"]) if kind == "finetune" else ("", None)
    seeds = (settings.get("train.seed"), pretraining_seed)
    return Run(folder.name, about, settings, metrics, _evaluation(folder / EVALUATION), start, seeds)


def _start(folder: Path, weights: str) -> tuple[str, Any]:
    """Read what the run noted of its start weights; of one that noted nothing, look at the weights."""
    try:
        noted = json.loads((folder / START).read_text(encoding="utf-8"))
        return str(noted["origin"]), noted["pretraining_seed"]
    except (OSError, ValueError, KeyError, TypeError):
        return origin(weights)


def _evaluation(path: Path) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path}: not JSON ({error})") from error
    _check_fields(found, {"engine": str, "subsets": dict, MEAN: dict}, path)
    for name, part in parts(found).items():
        for kind in KINDS:
            figures = part.get(kind, {}) if isinstance(part, dict) else None
            values = [figures.get(metric) for metric in METRICS] if isinstance(figures, dict) else ["missing"]
            if not all(value is None or isinstance(value, NUMBER) for value in values):
                raise InputError(f"{path}: the figures of {name} are not those of segloc.evaluate")
    if found.get("iteration") != found.get("steps", found.get("iteration")):
        return None  # of a checkpoint on the way
    return found  # type: ignore[no-any-return]


def _check_fields(found: Any, fields: dict[str, Any], path: Path) -> None:
    for name, kind in fields.items():
        value = found.get(name) if isinstance(found, dict) else None
        if not isinstance(value, kind) or isinstance(value, bool):
            raise InputError(f"{path}: {name} is {str(value)[:40]!r}, so this is no file of ours")
