"""Synthesis of a folder: prepares it, makes the shards, and writes the sources and the index once all shards exist.

An unfinished folder contains ``.progress`` (`pipeline.storage.progress`). A run with the same plan continues an
unfinished folder. With another plan, `if_changed` decides whether the run refuses or rebuilds the folder.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import re
import shutil
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from tqdm import tqdm

from pipeline.common.executors import run_tasks
from pipeline.pairing import geometry
from pipeline.pairing.blends import BLENDS
from pipeline.pairing.pairs import RECIPE_VERSION, tables
from pipeline.storage import progress
from pipeline.storage.progress import PROGRESS_NAME, Record
from pipeline.storage.shards import Job, ensure_shard, remove_strays
from pipeline.tables import sources_table
from segloc.common.contract import FORMAT_VERSION, INDEX_NAME, SOURCES_NAME, Index, Shard, Sources
from segloc.common.errors import InputError, RunError
from segloc.common.files import existing_folder, sha256_of
from segloc.common.store_protocol import Store

T = TypeVar("T")
R = TypeVar("R")

# A parameter in the index that is no part of the plan, because it follows from the digest of the regions. Indexes of
# earlier versions lack it.
_REGION_MODE = "region_mode"

# A store answers in some tens of milliseconds, so records of shards are read and written several at a time.
_AT_A_TIME = 16
_SHARD, _TEMPORARY = re.compile(r"pairs-\d{6,}\.tar"), re.compile(r"\.(?:index\.json|sources\.parquet)\..*\.tmp")
_OURS = re.compile(rf"{_SHARD.pattern}|\.{_SHARD.pattern}\..*\.tmp|{SOURCES_NAME}|{_TEMPORARY.pattern}")


class Outcome(NamedTuple):
    """Result of a run.

    Attributes:
        shards: number of shards in the folder; the index exists once it has all of them.
        made: number of shards that this run made.
    """

    shards: int
    made: int


def synthesize(
    job: Job,
    shards_range: tuple[int, int] | None = None,
    if_changed: str = "refuse",
    workers: int = 0,
    executor: str = "local",
) -> Outcome:
    """Make or verify the shards in range. Once all shards exist, write the sources and the index.

    Args:
        job: the pairs and the output folder.
        shards_range: first shard, and the one after the last; None for all.
        if_changed: ``refuse`` or ``rebuild`` a folder that was made with another plan.
        workers: see `run_tasks`.
        executor: see `run_tasks`.

    Raises:
        InputError: an input or argument is unusable, or the folder holds other shards and `if_changed` is ``refuse``.
    """
    _check_arguments(job, shards_range, workers, executor)
    values = parameters(job)
    plan = {"format_version": FORMAT_VERSION, "seed": job.recipe.seed, **values}
    job = dataclasses.replace(job, plan=progress.digest_of(plan))
    if if_changed == "rebuild" and _is_of_another(job.out, plan):
        with job.out.owned("another process makes shards in this folder"):
            _clear(job.out)
    # Processes of the same plan may share a folder.
    with job.out.owned("another process rebuilds this folder", shared=True):
        _prepare(job, plan)
        return _make(job, values, range(*(shards_range or (0, job.num_shards))), workers, executor)


def _make(job: Job, values: dict[str, Any], numbers: range, workers: int, executor: str) -> Outcome:
    done = _run(job, numbers, workers, executor)
    made = sum(is_new for _, is_new in done.values())
    if not made and _is_complete(job.out):
        job.out.delete_folder(PROGRESS_NAME)
        return Outcome(job.num_shards, made)
    others = _others(job, done)
    if len(done) + len(others) < job.num_shards:
        return Outcome(len(done) + len(others), made)
    _check_others(job, others)
    shards = {number: shard for number, (shard, _) in done.items()}
    shards |= {number: record.shard for number, record in others.items()}
    _finish(job, values, tuple(shards[number] for number in range(job.num_shards)))
    job.out.delete_folder(PROGRESS_NAME)
    return Outcome(job.num_shards, made)


def excluded_classes(job: Job) -> list[str]:
    """Names of the classes that are left out because their segments come from fewer than two bags.

    Raises:
        InputError: an input is missing or cannot give any pair.
    """
    _, items = tables(job.recipe.regions, job.recipe.segments)
    if not items.usable:
        raise InputError(f"{job.recipe.segments}: no class has segments from two bags, so no pair can be made")
    return [name for number, name in enumerate(items.classes) if number not in items.usable]


def parameters(job: Job) -> dict[str, Any]:
    """Every parameter that the shards depend on, except the seed. Inputs appear as digests, never as paths.

    Raises:
        InputError: an input is missing or cannot give any pair.
    """
    excluded = excluded_classes(job)
    regions, items = tables(job.recipe.regions, job.recipe.segments)
    levels = {"backgrounds_white": regions.white, "segments_white": items.white}
    return {
        "recipe_version": RECIPE_VERSION,
        "pairs": job.pairs,
        "per_shard": job.per_shard,
        "width": job.recipe.width,
        "quality": job.quality,
        "blend": job.recipe.blend,
        "coefficient_range": list(job.recipe.coefficients or BLENDS[job.recipe.blend].coefficients),
        "scale_range": list(job.recipe.scales),
        "occluded": job.recipe.occluded,
        "on_matter": job.recipe.on_matter,
        "fill": geometry.FILL,
        "least_side_px": geometry.least_side(job.recipe.width),
        "regions_sha256": sha256_of(job.recipe.regions),
        "segments_sha256": sha256_of(job.recipe.segments),
        # Only in folders of crops.
        **({"positives": "instance"} if items.instances else {}),
        # Only of 16-bit scans.
        **{name: level for name, level in levels.items() if level is not None},
        "excluded_classes": excluded,
    }


def _check_arguments(job: Job, shards_range: tuple[int, int] | None, workers: int, executor: str) -> None:
    recipe = job.recipe
    existing_folder(recipe.backgrounds, "backgrounds")
    least, most = BLENDS[recipe.blend].allowed
    if recipe.coefficients and not least <= recipe.coefficients[0] <= recipe.coefficients[1] <= most:
        raise InputError(f"--coefficients: --blend {recipe.blend} takes numbers from {least:g} to {most:g}")
    if not job.out.is_shared and (workers != 1 or executor != "local"):
        raise InputError(f"{job.out}: other processes cannot see files written there; use --workers 1")
    if shards_range and shards_range[1] > job.num_shards:
        raise InputError(f"--shards-range ends at {shards_range[1]}, but there are {job.num_shards} shards")


def _is_of_another(out: Store, plan: dict[str, Any]) -> bool:
    """Whether the folder holds a plan other than `plan`, or shards without a readable one."""
    found, _ = _found(out)
    if found is None:
        return out.stat(progress.PLAN) is not None or any(_SHARD.fullmatch(name) for name in out.names())
    return found != plan


def _prepare(job: Job, plan: dict[str, Any]) -> None:
    """Make the folder that of `plan`, or continue it.

    Raises:
        InputError: it is the folder of another plan, or holds shards of an unknown one.
    """
    found, shards = _found(job.out)
    if found is None and not any(_SHARD.fullmatch(name) for name in job.out.names()):
        found = plan
    if found == plan:
        # Another process may have made the folder its own since.
        found = progress.write_plan_once(job.out, plan)
    if found != plan:
        what = _difference(found, plan)
        raise InputError(f"{job.out}: {what}; choose another --out, or --if-changed rebuild to start again")
    _each(lambda item: _note(job.out, *item), enumerate(shards))
    for name in job.out.names():
        if _TEMPORARY.fullmatch(name):
            job.out.delete_temporary(name)


def _note(out: Store, number: int, shard: Shard) -> None:
    """Record a shard from the index, because the run may delete the index. An existing record has more fields."""
    if progress.read_record(out, number) is None:
        progress.write_record(out, number, Record(shard))


def _each(function: Callable[[T], R], items: Iterable[T]) -> list[R]:
    """Apply a function that waits for the store to many items, in threads."""
    with ThreadPoolExecutor(_AT_A_TIME) as threads:
        return list(threads.map(function, items))


def _found(out: Store) -> tuple[dict[str, Any] | None, tuple[Shard, ...]]:
    """The plan of a folder, if any, and the shards in its index, if it is complete."""
    if out.stat(INDEX_NAME):
        try:
            index = out.index()
        except InputError:
            return {}, ()
        plan = {"format_version": index.format_version, "seed": index.seed, **index.parameters}
        plan.pop(_REGION_MODE, None)
        return progress.with_defaults(plan), index.shards
    return progress.read_plan(out), ()


def _difference(found: dict[str, Any] | None, plan: dict[str, Any]) -> str:
    if not found:
        return "holds shards without a readable plan"
    names = sorted(name for name in {*found, *plan} if found.get(name) != plan.get(name))
    shown = ", ".join(f"{name} is {_short(found.get(name))}, not {_short(plan.get(name))}" for name in names)
    return f"was made with other parameters ({shown})"


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 40 else f'{text[:12]}..."'


def _clear(out: Store) -> None:
    """Remove only files that a synthesis wrote, the index first, because it marks the folder as complete."""
    out.delete(INDEX_NAME)
    out.delete_folder(PROGRESS_NAME)
    _each(out.delete, [name for name in out.names() if _OURS.fullmatch(name)])


def _run(job: Job, numbers: range, workers: int, executor: str) -> dict[int, tuple[Shard, bool]]:
    """Make or verify the shards `numbers`. Returns per number its entry, and whether this run made it."""
    done = {}
    remove_strays(job.out, numbers)
    task = functools.partial(ensure_shard, job)
    total = sum(len(job.numbers(number)) for number in numbers)
    with tqdm(total=total, unit="pair", desc="synthesize", disable=None) as bar:
        try:
            with contextlib.closing(run_tasks(task, numbers, workers=workers, executor=executor)) as results:
                for number, result in zip(numbers, results, strict=True):
                    done[number] = result
                    bar.update(result[0].pairs)
        except BaseException:
            remove_strays(job.out, numbers)  # of workers stopped in the middle of a shard
            raise
    return done


def _others(job: Job, done: Iterable[int]) -> dict[int, Record]:
    """Records of the shards that other runs finished."""
    numbers = sorted({*range(job.num_shards)} - {*done})
    records = zip(numbers, _each(functools.partial(progress.read_record, job.out), numbers), strict=True)
    return {number: record for number, record in records if record is not None and record.plan in (None, job.plan)}


def _check_others(job: Job, others: dict[int, Record]) -> None:
    """Check the shards of other runs, because the index will list them.

    Raises:
        InputError: a shard is missing or damaged.
    """
    intact = _each(functools.partial(progress.is_intact, job.out), others.values())
    for number, is_there in zip(others, intact, strict=True):
        if not is_there:
            what = f"{others[number].shard.name}, made by another run, is missing or damaged"
            raise InputError(f"{job.out}: {what}; run again with --shards-range {number}:{number + 1}")


def _is_complete(out: Store) -> bool:
    """Whether the folder has an index, and the sources listed in it."""
    if out.stat(INDEX_NAME) is None:
        return False
    sources = out.index().sources
    return sources is not None and progress.has_digest(out, sources.name, sources.sha256)


def _finish(job: Job, values: dict[str, Any], shards: tuple[Shard, ...]) -> None:
    """Write the sources and, last, the index.

    Raises:
        RunError: a shard was removed since it was made.
    """
    found = _each(lambda shard: job.out.stat(shard.name), shards)
    if lost := [shard.name for shard, stat in zip(shards, found, strict=True) if not stat or stat.bytes != shard.bytes]:
        raise RunError(f"{job.out}/{lost[0]}: was removed while the command ran; run the same command again")
    regions, items = tables(job.recipe.regions, job.recipe.segments)
    counts = {"pairs": job.pairs, "shards": len(shards), "backgrounds": len(regions.images), "segments": len(items)}
    values = {**values, _REGION_MODE: regions.mode}
    job.out.delete(INDEX_NAME)  # an old index would list an old table of sources
    sources = _write_sources(job.out, shards)
    with job.out.create(INDEX_NAME) as file:
        file.write(Index(items.classes, job.recipe.seed, values, counts, shards, sources).to_json())


def _write_sources(out: Store, shards: Iterable[Shard]) -> Sources:
    """Write the table of the sources of all shards."""
    total, lock = Counter[sources_table.Source](), threading.Lock()

    def add(shard: Shard) -> None:
        uses = progress.read_uses(out, shard.name)
        with lock:
            total.update(uses)

    _each(add, shards)
    with tempfile.TemporaryDirectory() as folder:
        table = Path(folder) / SOURCES_NAME
        sources_table.write_sources(table, total)
        with table.open("rb") as made, out.create(SOURCES_NAME) as file:
            shutil.copyfileobj(made, file)
        return Sources(SOURCES_NAME, sha256_of(table), len(total))
