"""The run folder: settings, environment and metrics of a run.

``config.yaml``   all settings
``run.json``      kind of run, engine, command line, versions, git revision, data digest
``start.json``    for fine-tuning: which initial weights were loaded, and the pretraining they are from
``skipped.json``  counts of the inputs that were skipped, with the first names
``metrics.json``  one JSON object per line, in order of ``iteration``
``tensorboard/``  the same metrics as TensorBoard events
``.lock``         while a process trains; it means nothing once that process has ended
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch.utils.tensorboard import SummaryWriter

from segloc import __version__
from segloc.common import locks
from segloc.common.errors import InputError, RunError
from segloc.common.files import naming, write_atomic, write_json
from segloc.common.parse import parse_json, parse_yaml, parsing, shown
from segloc.common.run_files import (
    BACKBONE,
    CONFIG,
    LAST,
    LOCK,
    METRICS_FILE,
    MODEL,
    NOT_FINITE,
    RUN,
    SKIPPED,
    START,
    TENSORBOARD,
)
from segloc.common.skips import Skips
from segloc.common.text import printable
from segloc.settings.loader import flat, load, to_yaml
from segloc.training.loop import DETECTRON2
from segloc.training.processes import Group

LONGEST_SHOWN = 40


def write_description(folder: str | Path, kind: str, config_yaml: str, **details: Any) -> None:
    """Write ``config.yaml`` and ``run.json`` into a run folder, which is created if missing.

    `kind` is ``pretrain`` or ``finetune``; `details` are further entries of run.json (initial weights, digest, ...).
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


def write_skips(folder: str | Path, parts: Sequence[Skips]) -> None:
    """Write ``skipped.json``: the counts of each kind of input."""
    write_json(Path(folder) / SKIPPED, [part.to_json() for part in parts])


def read_skips(folder: str | Path) -> list[Skips]:
    """Read ``skipped.json``; empty if there is none, as in runs of earlier versions.

    Raises:
        InputError: the file is damaged.
    """
    path = Path(folder) / SKIPPED
    if not path.is_file():
        return []
    content = parse_json(path.read_bytes(), path)
    with parsing(path, "not counts of skipped inputs"):
        return [Skips.from_json(part) for part in content]


def git_revision() -> str:
    """Return the git revision of this code, with ``-dirty`` if files changed; ``unknown`` outside a checkout."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(Path(__file__).parents[2]), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()

    try:
        # Ignore DVC's lock files, which change with every run.
        changed = git("status", "--porcelain", "--untracked-files=no", "--", ".", ":(exclude)*dvc.lock")
        return git("rev-parse", "--short=12", "HEAD") + ("-dirty" if changed else "")
    except (OSError, subprocess.SubprocessError):
        return "unknown"


def read_run(folder: str | Path) -> dict[str, Any]:
    """Read ``run.json``.

    Raises:
        InputError: `folder` is not a run folder.
    """
    path = Path(folder) / RUN
    if not path.is_file():
        raise InputError(f"{folder}: not a run folder (no {RUN})")
    about = parse_json(path.read_bytes(), path)
    if not isinstance(about, dict):
        raise InputError(f"{path}: not a JSON object that describes a run")
    return about


def read_settings(folder: Path) -> dict[str, Any]:
    """Read ``config.yaml`` into a dict by dotted key.

    Raises:
        InputError: the file is missing or invalid.
    """
    path = folder / CONFIG
    tree = parse_yaml(path.read_bytes(), path) if path.is_file() else None
    if not isinstance(tree, dict):
        raise InputError(f"{path}: missing, or not a mapping of settings")
    return flat(tree)


def origin(weights: str) -> tuple[str, Any]:
    """Identify initial weights, apart from the seed of their pretraining.

    Returns:
        For weights in a run folder: a text of the file, shards and settings without the seed, and the seed. For other
        weights: `weights` and None.
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
    """Refuse to write into the folder of another kind of run, or over files of the same names that are of no run.

    Raises:
        InputError: `folder` contains a run of another kind, or such a file.
    """
    if (Path(folder) / RUN).is_file() and (found := read_run(folder).get("kind")) != kind:
        raise InputError(f"{folder}: contains a run of kind {found!r}; use another --out")
    # A killed run has its run.json before these others. Checkpoints are checked when they are read.
    of_run = any((Path(folder) / name).is_file() for name in (RUN, LAST, MODEL))
    for name in () if of_run else (START, SKIPPED, NOT_FINITE, BACKBONE):
        if (Path(folder) / name).exists():
            raise InputError(f"{Path(folder) / name}: exists and is not of a run; choose another --out, or remove it")


def owned(folder: str | Path) -> contextlib.AbstractContextManager[None]:
    """Keep other processes from training in a run folder.

    Raises:
        InputError: another process trains there.
    """
    return locks.owned(Path(folder) / LOCK, f"{folder}: another process trains in this folder")


def require_shared(folder: str | Path, iteration: int, group: Group) -> None:
    """Require that all processes read the checkpoint of the same iteration; a collective call.

    Raises:
        InputError: they did not.
    """
    if len(set(group.gather(torch.tensor(iteration, device=group.device())).tolist())) > 1:
        raise InputError(f"{folder}: the processes read different checkpoints; use a run folder that all share")


def refuse_other_settings(folder: str | Path, config: Any, harmless: Sequence[str] = (), **facts: str) -> None:
    """Refuse to write into the folder of a run with other settings, even if it has no checkpoint yet.

    Args:
        folder: the run folder.
        config: the settings of this run, a dataclass.
        harmless: settings by dotted key that may change when a run is resumed.
        facts: entries of run.json that must be the same.

    Raises:
        InputError: settings or facts differ; the message names them, old -> new.
    """
    path = Path(folder) / CONFIG
    if not path.is_file():
        return
    # A setting that is missing in the file was added later; its default is the earlier behaviour.
    before = load(type(config), path)
    old, new = (flat(parse_yaml(to_yaml(each), str(path))) for each in (before, config))
    if (Path(folder) / RUN).is_file():
        about = read_run(folder)
        old |= {name: about[name] for name in facts if name in about}
        new |= {name: value for name, value in facts.items() if name in about}
    keys = [key for key in {**old, **new} if key not in harmless and old.get(key) != new.get(key)]
    if keys:
        what = ", ".join(f"{key}: {_short(old.get(key))} -> {_short(new.get(key))}" for key in keys)
        raise InputError(f"{folder}: holds a run with other settings ({what}); choose another --out")


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= LONGEST_SHOWN else f"{text[:12]}..."


def read_metrics(folder: str | Path) -> list[dict[str, float]]:
    """Read ``metrics.json``; drop a last line truncated by a crash. A missing file gives an empty list.

    Raises:
        InputError: another line is damaged.
    """
    path = Path(folder) / METRICS_FILE
    if not path.is_file():
        return []
    rows: list[dict[str, float]] = []
    data = path.read_bytes()
    lines = data.splitlines()
    for number, line in enumerate(lines, start=1):
        where = f"{path}: line {number}"
        try:
            content = parse_json(line, where)
        except InputError:
            if number == len(lines) and not data.endswith(b"\n"):
                break
            raise
        with parsing(where, "not metrics that segloc wrote"):
            rows.append(_metrics(content))
    return rows


def _metrics(row: Any) -> dict[str, float]:
    if not isinstance(row, dict) or type(row.get("iteration")) is not int:
        raise ValueError(f"iteration is {shown(row.get('iteration') if isinstance(row, dict) else None)}")
    for name, value in row.items():
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise ValueError(f"{name} is {shown(value)}, not a number")
        float(value)  # raises for a whole number that is too large
    return row


def closing(metrics: list[dict[str, float]]) -> dict[str, float]:
    """Average each metric over the last quarter of the lines, because a single step is noisy."""
    last = metrics[-max(1, len(metrics) // 4) :]
    return {name: sum(row[name] for row in last) / len(last) for name in last[-1] if all(name in row for row in last)}


def _without_os_errors(failure: Any) -> None:
    """Print the traceback of a thread. TensorBoard's thread keeps an `OSError`, and its next call raises it again."""
    if not issubclass(failure.exc_type, OSError):
        threading.__excepthook__(failure)


def require_log(folder: str | Path) -> None:
    """Check, before a checkpoint is written and at the end, that the run folder is still there.

    A checkpoint would make the folder anew, and be resumed without the metrics of the steps before it.

    Raises:
        RunError: the folder was removed, or ``metrics.json`` in it.
    """
    path = Path(folder) / METRICS_FILE
    if not path.is_file():
        raise RunError(f"{path}: was removed during the training; run the same command again")


class MetricsLog:
    """Appends to ``metrics.json`` and TensorBoard.

    Args:
        folder: the run folder.
        start: first iteration of this process; later lines, from a killed run, are dropped.
    """

    def __init__(self, folder: str | Path, start: int = 0) -> None:
        self.path = Path(folder) / METRICS_FILE
        kept = [row for row in read_metrics(folder) if row["iteration"] < start]
        write_atomic(self.path, "".join(json.dumps(row) + "\n" for row in kept).encode())
        self.file = self.path.open("a", encoding="utf-8")
        self.events = _events(Path(folder) / TENSORBOARD, start)
        threading.excepthook = _without_os_errors

    def write(self, iteration: int, values: dict[str, float]) -> None:
        """Append one line: `iteration` and the values by name.

        Raises:
            RunError: the run folder was removed.
        """
        with naming(self.path):
            self.file.write(json.dumps({"iteration": iteration, **values}) + "\n")
            self.file.flush()
            self._require_file()
            for name, value in values.items():
                if self.events:
                    self.events.add_scalar(name, value, iteration)

    def _require_file(self) -> None:
        try:
            there = os.path.samestat(os.fstat(self.file.fileno()), self.path.stat())
        except FileNotFoundError:
            there = False
        if not there:
            raise RunError(f"{self.path}: was removed during the training; run the same command again")

    def close(self) -> None:
        """Flush and close both."""
        with naming(self.path):
            self.file.close()
            if self.events:
                self.events.close()
        threading.excepthook = threading.__excepthook__


def _events(folder: Path, start: int) -> SummaryWriter | None:
    """Open TensorBoard's log; None, with a note, in a folder whose name is not UTF-8, which TensorBoard cannot open."""
    try:
        return SummaryWriter(str(folder), purge_step=start)
    except UnicodeEncodeError:
        print(f"{printable(str(folder))}: the name is not UTF-8, so no TensorBoard events are written")
        return None
