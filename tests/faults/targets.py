"""The commands that the scripts disturb, their outputs, and undisturbed runs to compare with."""

from __future__ import annotations

import dataclasses
import functools
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tests.faults import common

POLL_S = 0.001
QUIET = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
MEASURED = ("_s", "_mib")  # names of metrics that no two runs share

State = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Target:
    """A command.

    Attributes:
        module: its name.
        arguments: of the command, for an output folder, in which all outputs lie, and a folder of `common.inputs`.
        state: what has to be equal in the end, read from the output folder.
        workers: whether it has ``--workers``.
    """

    module: str
    arguments: Callable[[Path, Path], list[object]]
    state: Callable[[Path], State] = common.contents
    workers: bool = True

    def command(self, out: Path, workers: int = 1, inputs: Path | None = None) -> list[object]:
        """Module and arguments."""
        arguments = self.arguments(out, inputs or common.inputs())
        return [self.module, *arguments, *(["--workers", workers] if self.workers else [])]


def _simulate(out: Path, inputs: Path) -> list[object]:
    return ["--out", out / "data", "--scans", 144, "--width", 96]


def _regions(out: Path, inputs: Path) -> list[object]:
    return ["--backgrounds", inputs / "sixray", "--out", out / "regions.parquet", "--gallery", out / "regions.png"]


def _segments(out: Path, inputs: Path) -> list[object]:
    return ["--annotations", inputs / "pidray", "--out", out / "segments.parquet"]


def _synthesis(out: Path, inputs: Path) -> list[object]:
    return common.synthesis(inputs, out / "shards", pairs=480, per_shard=24)


def _audit(out: Path, inputs: Path) -> list[object]:
    outputs = ["--report", out / "audit.json", "--tables", out / "tables", "--gallery", out / "pairs.png"]
    return ["--shards", inputs / "shards", "--segments", inputs / "segments.parquet", *outputs]


def _pretraining(out: Path, inputs: Path) -> list[object]:
    return ["--shards", inputs / "shards", "--out", out / "run", *common.PRETRAINING]


def _two_processes(out: Path, inputs: Path) -> list[object]:
    return [*_pretraining(out, inputs), "--processes", 2]


def _finetuning(out: Path, inputs: Path) -> list[object]:
    return [*common.FINETUNING, "--data", inputs / "pidray", "--out", out / "run"]


def _crops(out: Path, inputs: Path) -> list[object]:
    return [
        "--backgrounds", inputs / "sixray", "--regions", inputs / "regions.parquet", "--out", out / "crops.parquet"
    ]  # fmt: skip


def _manifest(out: Path, inputs: Path) -> list[object]:
    return ["--root", inputs / "sixray", "--out", out / "sixray.manifest", "--no-mtime"]


def _evaluate(out: Path, inputs: Path) -> list[object]:
    truth = inputs / "pidray" / "annotations" / "xray_test_easy.json"
    return ["--results", inputs / "easy.results.json", "--annotations", truth, "--out", out / "evaluation.json"]


def run_state(out: Path) -> State:
    """Names of the files of a run folder, its metrics without times, and the tensors of its checkpoints."""
    from segloc.training import checkpoint
    from segloc.training.run_folder import read_metrics

    run = out / "run"
    rows = [{name: value for name, value in row.items() if not name.endswith(MEASURED)} for row in read_metrics(run)]
    files = {path.name for path in run.iterdir()} if run.is_dir() else set()
    return {
        "files": sorted(files),
        "metrics": rows,
        **{name: _plain(_values(checkpoint.load(run / name))) for name in files if name.endswith(".pth")},
    }


def _values(content: Mapping[str, Any]) -> dict[str, Any]:
    """A checkpoint without its recipe, which names the folder of the data."""
    return {name: value for name, value in content.items() if name != "config"}


def _plain(value: Any) -> Any:
    """Replace tensors by their bytes, so that nested values can be compared."""
    if isinstance(value, Mapping):
        return {name: _plain(part) for name, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(part) for part in value]
    return (str(value.dtype), tuple(value.shape), value.numpy().tobytes()) if hasattr(value, "numpy") else value


TARGETS = {
    "simulate": Target("pipeline.simulate", _simulate),
    "regions": Target("pipeline.regions", _regions),
    "segments": Target("pipeline.segments", _segments),
    "synthesis": Target("pipeline.synthesize", _synthesis),
    "audit": Target("pipeline.audit", _audit),
    "crops": Target("pipeline.crops", _crops),
    "manifest": Target("pipeline.manifest", _manifest, workers=False),
    "evaluation": Target("segloc.evaluate", _evaluate, workers=False),
    "pretraining": Target("segloc.pretrain", _pretraining, run_state, workers=False),
    "pretraining in two processes": Target("segloc.pretrain", _two_processes, run_state, workers=False),
    "fine-tuning": Target("segloc.finetune", _finetuning, run_state, workers=False),
}


@dataclasses.dataclass(frozen=True)
class Undisturbed:
    """An undisturbed run: its state, its files, its duration, and the changes of its output folder that were seen."""

    state: State
    files: dict[str, bytes]
    seconds: float
    changes: int


@functools.cache
def undisturbed(name: str) -> Undisturbed:
    """Run a target to its end."""
    target, out = TARGETS[name], common.fresh(f"{name}-whole")
    command = target.command(out)
    began = time.monotonic()
    process = common.start(*command, **QUIET)
    changes = watch(process, out)
    seconds = time.monotonic() - began
    if process.wait():
        raise RuntimeError(f"{command} ended with {process.returncode}")
    return Undisturbed(target.state(out), common.contents(out), seconds, changes)


def watch(process: Any, out: Path, until: float = float("inf"), change: int = sys.maxsize) -> int:
    """Wait for a time, for that many changes of a folder, or for the end of the process; return the changes seen."""
    seen, before = 0, None
    while process.poll() is None and time.monotonic() < until and seen < change:
        now = _listing(out)
        seen += before is not None and now != before
        before = now
        time.sleep(POLL_S)
    return seen


def _listing(folder: Path) -> list[tuple[str, int]]:
    found: list[tuple[str, int]] = []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                found.append((entry.path, entry.stat().st_size))
                found += _listing(Path(entry.path)) if entry.is_dir() else []
    except OSError:  # removed or renamed while it was listed
        pass
    return sorted(found)


def half_written(name: str, out: Path) -> str | None:
    """A file under its final name that is not complete; None if there is none."""
    whole = undisturbed(name).files
    for path, data in common.contents(out).items():
        if path.endswith((".parquet", ".tar", "index.json", "audit.json", ".png", ".csv", ".manifest")):
            if data != whole.get(path, data):
                return f"{path} is half-written under its final name"
        elif path.endswith(".pth"):
            from segloc.training import checkpoint

            checkpoint.load(out / path)
    return None


def wrong_state(name: str, out: Path) -> str | None:
    """What differs between the outputs in a folder and those of an undisturbed run; None if nothing does."""
    found, whole = TARGETS[name].state(out), undisturbed(name).state
    different = sorted(part for part in {*whole, *found} if whole.get(part) != found.get(part))
    return f"differs: {different[:4]}" if different else None


def is_complete(name: str, out: Path) -> bool:
    """Whether a folder holds the whole result at this moment."""
    try:
        return wrong_state(name, out) is None
    except OSError:  # a file was renamed while it was read
        return False


def wrong_rerun(name: str, out: Path, inputs: Path | None = None) -> str | None:
    """What is wrong after the command ran once more, undisturbed; None if nothing is."""
    done = common.run(*TARGETS[name].command(out, inputs=inputs))
    if done.returncode:
        return f"the next run ended with {done.returncode}: {common.last_line(done.stderr)[:300]}"
    return wrong_state(name, out)
