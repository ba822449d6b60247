"""The run folder: what was asked for, where it ran, and what was measured on the way.

``config.yaml``   resolved settings
``run.json``      kind of run, engine, command line, versions, git revision, data digest
``start.json``    of fine-tuning: what of the start weights was used, and what pretraining they are of
``metrics.json``  one JSON object a line, ``iteration`` ascending
``tensorboard/``  the same numbers as events
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
import torchvision
import yaml
from torch.utils.tensorboard import SummaryWriter

from segloc import __version__
from segloc.common.errors import InputError, one_line
from segloc.common.files import write_atomic, write_json
from segloc.settings.loader import flat
from segloc.training.loop import DETECTRON2

METRICS = "metrics.json"
RUN = "run.json"
CONFIG = "config.yaml"
START = "start.json"


def describe(folder: str | Path, kind: str, config_yaml: str, **details: Any) -> None:
    """Write ``config.yaml``, the resolved settings, and ``run.json`` into a run folder, which is made when missing.

    The kind is ``pretrain`` or ``finetune``; details are what else identifies the run (start weights, digest, ...).
    """
    about = {
        "kind": kind,
        "segloc": __version__,
        "engine": "segloc",
        "detectron2": DETECTRON2,
        "command": " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else f"cpu, {os.cpu_count()} cores",
        "git_revision": git_revision(),
        **details,
    }
    write_atomic(Path(folder) / CONFIG, config_yaml.encode())
    write_json(Path(folder) / RUN, about)


def git_revision() -> str:
    """Revision of the checkout this code runs from, ``unknown`` outside one; ``-dirty`` marks changed files."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(Path(__file__).parents[2]), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()

    try:
        # DVC's lock files change with every run and say nothing about the code.
        changed = git("status", "--porcelain", "--untracked-files=no", "--", ".", ":(exclude)*dvc.lock")
        return git("rev-parse", "--short=12", "HEAD") + ("-dirty" if changed else "")
    except (OSError, subprocess.SubprocessError):
        return "unknown"


def read_run(folder: str | Path) -> dict[str, Any]:
    """Read ``run.json``.

    Raises:
        InputError: `folder` is no run folder.
    """
    path = Path(folder) / RUN
    if not path.is_file():
        raise InputError(f"{folder}: not a run folder (no {RUN})")
    try:
        about = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path}: not JSON ({error})") from error
    if not isinstance(about, dict):
        raise InputError(f"{path}: not the description of a run")
    return about


def read_settings(folder: Path) -> dict[str, Any]:
    """Read ``config.yaml`` by dotted key.

    Raises:
        InputError: it is missing or not the settings of a run.
    """
    path = folder / CONFIG
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8")) if path.is_file() else None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not YAML ({one_line(error)})") from error
    if not isinstance(tree, dict):
        raise InputError(f"{path}: not the settings of a run")
    return flat(tree)


def origin(weights: str) -> tuple[str, Any]:
    """Say what start weights are, and the seed they were pretrained with if that can be told.

    Returns:
        Weights of a pretraining run: all its settings but the seed, and the seed. Others: their name or path, and None.
    """
    path = Path(weights)
    folder = path if path.is_dir() else path.parent
    if not path.exists() or not (folder / RUN).is_file():
        return weights, None
    settings = read_settings(folder)
    seed = settings.pop("seed", None)
    file = path.name if path.is_file() else ""
    return repr((file, read_run(folder).get("shards"), sorted(settings.items()))), seed


def refuse_other_kind(folder: str | Path, kind: str) -> None:
    """Refuse to write into the folder of another kind of run.

    Raises:
        InputError: `folder` holds one.
    """
    if (Path(folder) / RUN).is_file() and (found := read_run(folder).get("kind")) != kind:
        raise InputError(f"{folder}: holds a run of kind {found!r}; choose another --out")


def read_metrics(folder: str | Path) -> list[dict[str, float]]:
    """Read ``metrics.json``; a last line cut short by a crash is dropped; a missing file has no lines."""
    path = Path(folder) / METRICS
    if not path.is_file():
        return []
    rows = []
    for line in path.read_text(errors="replace").splitlines():
        try:
            rows.append(json.loads(line))
        except ValueError:
            break
    return rows


def closing(metrics: list[dict[str, float]]) -> dict[str, float]:
    """Mean of each figure over the last quarter of a run's lines: one step of a small batch says little."""
    last = metrics[-max(1, len(metrics) // 4) :]
    return {name: sum(row[name] for row in last) / len(last) for name in last[-1] if all(name in row for row in last)}


class MetricsLog:
    """Appends to ``metrics.json`` and TensorBoard.

    Args:
        folder: the run folder.
        start: first iteration of this process; lines at or after it, from a run that was killed, are dropped.
    """

    def __init__(self, folder: str | Path, start: int = 0) -> None:
        self.path = Path(folder) / METRICS
        kept = [row for row in read_metrics(folder) if row["iteration"] < start]
        write_atomic(self.path, "".join(json.dumps(row) + "\n" for row in kept).encode())
        self.file = self.path.open("a")
        self.events = SummaryWriter(str(Path(folder) / "tensorboard"), purge_step=start)

    def write(self, iteration: int, values: dict[str, float]) -> None:
        """Append one line: `iteration` and the named values."""
        self.file.write(json.dumps({"iteration": iteration, **values}) + "\n")
        self.file.flush()
        for name, value in values.items():
            self.events.add_scalar(name, value, iteration)

    def close(self) -> None:
        """Flush and close both."""
        self.file.close()
        self.events.close()
