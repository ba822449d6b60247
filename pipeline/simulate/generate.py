"""Makes the simulated data set in a folder, unless the folder already holds it. The folder never holds half of it."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shutil
from pathlib import Path
from typing import Any

from tqdm import tqdm

from pipeline.common.executors import run_tasks
from pipeline.simulate import dataset
from pipeline.simulate.dataset import SUBSETS, Parameters, coco_file, scan_writer, tasks
from segloc.common import locks
from segloc.common.errors import InputError, RunError
from segloc.common.files import check_output_folder, write_atomic
from segloc.common.parse import parse_json

MARKER = "simulation.json"


def make(
    out: Path, parameters: Parameters, workers: int = 0, executor: str = "local", if_changed: str = "refuse"
) -> bool:
    """Make the data set in `out`, unless it is already there.

    Args:
        out: folder to make; may hold an earlier simulation.
        parameters: parameters of the data set.
        workers: see `run_tasks`.
        executor: see `run_tasks`.
        if_changed: ``refuse`` or ``rebuild`` a folder that was made with other parameters.

    Returns:
        Whether this call made it.

    Raises:
        InputError: parameters out of range; `out` is a file, holds other files or a simulation of other parameters; or
            another process makes a simulation there.
    """
    parameters.check()
    description = {
        "format_version": dataset.FORMAT_VERSION,
        **({"raw_format_version": dataset.RAW_FORMAT_VERSION} if parameters.raw else {}),
        "parameters": dataclasses.asdict(parameters),
        "counts": parameters.counts(),
    }
    if _earlier(out) == description:
        return False
    check_output_folder(out)
    place = out.resolve()  # a symlink stays, and the files move within one file system
    partial = place.parent / f".{place.name}.partial"
    check_output_folder(partial)
    lock = place.parent / f".{place.name}.lock"
    with locks.owned(lock, f"{out}: another process makes a simulation here"):
        earlier = _earlier(out)
        if earlier == description:
            return False
        if earlier and if_changed == "refuse" and (what := _difference(earlier, description)):
            raise InputError(
                f"{out}: was made with other parameters ({what}); choose another --out, or --if-changed rebuild"
            )
        shutil.rmtree(partial, ignore_errors=True)  # left by a killed run
        try:
            _write(partial, parameters, workers, executor)
            _move(partial, place, earlier, description)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    return True


def _difference(earlier: dict[str, Any], description: dict[str, Any]) -> str:
    """How two simulations differ, old -> new; empty if the earlier one was replaced halfway, so that it is none."""
    if earlier["parameters"] is None:
        return ""
    old, new = ({**each, **each["parameters"], "parameters": None} for each in (earlier, description))
    keys = [key for key in {**old, **new} if key != "counts" and old.get(key) != new.get(key)]
    return ", ".join(f"{key}: {old.get(key)} -> {new.get(key)}" for key in keys)


def _earlier(out: Path) -> dict[str, Any] | None:
    """Description of the simulation in `out`; None if `out` is new or empty.

    Raises:
        InputError: `out` is a file, or a folder with other files.
    """
    if out.exists() and not out.is_dir():
        raise InputError(f"{out}: is a file; choose a folder for --out")
    if not out.exists() or not any(out.iterdir()):
        return None
    try:
        description = parse_json((out / MARKER).read_bytes(), out / MARKER)
        ours = description["counts"].keys() == SUBSETS.keys()
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        ours = False
    if not ours:
        raise InputError(f"{out}: not empty and not made by this command; choose another folder")
    return description


def _write(root: Path, parameters: Parameters, workers: int, executor: str) -> None:
    counts = parameters.counts()
    records: dict[str, list[dict[str, Any]]] = {name: [] for name in counts}
    results = run_tasks(scan_writer(root, parameters), tasks(counts), workers=workers, executor=executor, chunk=4)
    with contextlib.closing(results), tqdm(results, total=parameters.scans, desc="simulate", unit="scan") as progress:
        for task, record in zip(tasks(counts), progress, strict=True):
            records[task.subset].append(record)
    for name, subset in SUBSETS.items():
        if subset.annotations:
            write_atomic(root / subset.annotations, coco_file(records[name]))


def _files(counts: dict[str, int], raw: bool) -> set[str]:
    """Paths of every file that a simulation of these counts writes, except the marker."""
    files = {subset.annotations for subset in SUBSETS.values() if subset.annotations}
    for name, subset in SUBSETS.items():
        for index in range(counts[name]):
            files |= {subset.path(index), *(subset.raw_paths(index) if raw else ())}
    return files


def _move(partial: Path, out: Path, earlier: dict[str, Any] | None, description: dict[str, Any]) -> None:
    """Move the finished files to their places, the marker last. Other files in `out` stay."""
    counts: dict[str, int] = description["counts"]
    earlier_counts = earlier["counts"] if earlier else dict.fromkeys(counts, 0)
    # Until all files are in place, the marker lists both sets of files and matches no parameters. If this run is
    # killed, the next run repairs the folder.
    most = {name: max(count, earlier_counts[name]) for name, count in counts.items()}
    write_atomic(out / MARKER, _encode({**description, "parameters": None, "counts": most}))
    new, old = _files(counts, bool(description["parameters"]["raw"])), _files(most, raw=True)
    for path in sorted(new):
        (out / path).parent.mkdir(parents=True, exist_ok=True)
        os.replace(partial / path, out / path)
    for path in old - new:
        (out / path).unlink(missing_ok=True)
    if lost := [path for path in sorted(new) if not (out / path).is_file()]:
        raise RunError(f"{out / lost[0]}: was removed while the command ran; run the same command again")
    write_atomic(out / MARKER, _encode(description))


def _encode(description: dict[str, Any]) -> bytes:
    return (json.dumps(description, indent=1, sort_keys=True) + "\n").encode()
