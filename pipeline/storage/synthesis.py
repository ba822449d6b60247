"""The synthesis of a folder: prepares it, makes the shards, and writes the sources and the index once all shards exist.

The folder holds ``.progress`` while it is unfinished (`pipeline.storage.progress`). A run into a folder with the same
plan continues where the last one stopped; with another plan it refuses or starts again, as told.
"""

from __future__ import annotations

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
from segloc.common.errors import InputError
from segloc.common.files import existing_folder, sha256_of
from segloc.common.stores import Store

T = TypeVar("T")
R = TypeVar("R")

# A store answers in some tens of milliseconds, so notes of shards are read and written several at a time.
_AT_A_TIME = 16
_SHARD, _TEMPORARY = re.compile(r"pairs-\d{6,}\.tar"), re.compile(r"\.(?:index\.json|sources\.parquet)\..*\.tmp")
_OURS = re.compile(rf"{_SHARD.pattern}|\.{_SHARD.pattern}\..*\.tmp|{SOURCES_NAME}|{_TEMPORARY.pattern}")


class Outcome(NamedTuple):
    """What a run has done.

    Attributes:
        shards: how many shards the folder has now; the index is there once it has all.
        made: how many of them this run made.
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
    """Make or verify the shards in range and, once all exist, write the sources and the index.

    Args:
        job: the pairs, and where they go.
        shards_range: first shard, and the one after the last; None is all.
        if_changed: ``refuse`` or ``rebuild`` a folder that was made by another plan.
        workers: as `run_tasks` takes them.
        executor: as `run_tasks` takes it.

    Raises:
        InputError: an input or argument is not usable, or the folder holds other shards and `if_changed` is ``refuse``.
    """
    _check_arguments(job, shards_range, workers, executor)
    values = parameters(job)
    _prepare(job, {"format_version": FORMAT_VERSION, "seed": job.recipe.seed, **values}, if_changed)
    done = _run(job, range(*(shards_range or (0, job.num_shards))), workers, executor)
    others = _others(job, done)
    made = sum(is_new for _, is_new in done.values())
    if len(done) + len(others) < job.num_shards:
        return Outcome(len(done) + len(others), made)
    _check_others(job, others)
    shards = {number: shard for number, (shard, _) in done.items()}
    shards |= {number: record.shard for number, record in others.items()}
    if made or not _is_complete(job.out):
        _finish(job, values, tuple(shards[number] for number in range(job.num_shards)))
    job.out.delete_folder(PROGRESS_NAME)
    return Outcome(job.num_shards, made)


def excluded_classes(job: Job) -> list[str]:
    """Names of the classes left out, as their segments come from fewer than two bags.

    Raises:
        InputError: an input is missing or cannot give a single pair.
    """
    _, items = tables(job.recipe.regions, job.recipe.segments)
    if not items.usable:
        raise InputError(f"{job.recipe.segments}: no class has segments from two bags, so there is no pair to make")
    return [name for number, name in enumerate(items.classes) if number not in items.usable]


def parameters(job: Job) -> dict[str, Any]:
    """Every parameter the shards depend on, the seed apart; inputs by digest, never by path.

    Raises:
        InputError: an input is missing or cannot give a single pair.
    """
    excluded = excluded_classes(job)
    _, items = tables(job.recipe.regions, job.recipe.segments)
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
        "fill": geometry.FILL,
        "least_side_px": geometry.least_side(job.recipe.width),
        "regions_sha256": sha256_of(job.recipe.regions),
        "segments_sha256": sha256_of(job.recipe.segments),
        # Only in folders of crops.
        **({"positives": "instance"} if items.instances else {}),
        "excluded_classes": excluded,
    }


def _check_arguments(job: Job, shards_range: tuple[int, int] | None, workers: int, executor: str) -> None:
    recipe = job.recipe
    existing_folder(recipe.backgrounds, "backgrounds")
    least, most = BLENDS[recipe.blend].allowed
    if recipe.coefficients and not least <= recipe.coefficients[0] <= recipe.coefficients[1] <= most:
        raise InputError(f"--coefficients: --blend {recipe.blend} takes numbers from {least:g} to {most:g}")
    if not job.out.is_shared and (workers != 1 or executor != "local"):
        raise InputError(f"{job.out}: only this process sees what is written there; use --workers 1")
    if shards_range and shards_range[1] > job.num_shards:
        raise InputError(f"--shards-range ends at {shards_range[1]}, but there are {job.num_shards} shards")


def _prepare(job: Job, plan: dict[str, Any], if_changed: str) -> None:
    """Make the folder ready for `plan`: new, continued, or emptied of another plan's shards.

    Raises:
        InputError: it holds shards of another plan, or of none, and `if_changed` is ``refuse``.
    """
    found, shards = _found(job.out)
    if found != plan and (found is not None or any(_SHARD.fullmatch(name) for name in job.out.names())):
        if if_changed == "refuse":
            what = _difference(found, plan)
            raise InputError(f"{job.out}: {what}; choose another --out, or --if-changed rebuild to start again")
        _clear(job.out)
        shards = ()
    _each(lambda item: _note(job.out, *item), enumerate(shards))
    for name in job.out.names():
        if _TEMPORARY.fullmatch(name):
            job.out.delete(name)
    progress.write_plan(job.out, plan)


def _note(out: Store, number: int, shard: Shard) -> None:
    """Note a shard the index lists, so that the folder can lose its index; a note of its own says more."""
    if progress.read_record(out, number) is None:
        progress.write_record(out, number, Record(shard))


def _each(function: Callable[[T], R], items: Iterable[T]) -> list[R]:
    """Apply a function that waits for the store to many items."""
    with ThreadPoolExecutor(_AT_A_TIME) as threads:
        return list(threads.map(function, items))


def _found(out: Store) -> tuple[dict[str, Any] | None, tuple[Shard, ...]]:
    """The plan a folder was made by, if it has one, and the shards its index lists, if it is complete."""
    if out.stat(INDEX_NAME):
        try:
            index = out.index()
        except InputError:
            return {}, ()
        return {"format_version": index.format_version, "seed": index.seed, **index.parameters}, index.shards
    plan = progress.read_plan(out)
    return plan and {"format_version": 1, **plan}, ()  # plans of format 1 do not name it


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
    """Remove what a synthesis wrote and nothing else; the index first, as it vouches for the rest."""
    out.delete(INDEX_NAME)
    out.delete_folder(PROGRESS_NAME)
    _each(out.delete, [name for name in out.names() if _OURS.fullmatch(name)])


def _run(job: Job, numbers: range, workers: int, executor: str) -> dict[int, tuple[Shard, bool]]:
    """Make or verify the shards `numbers`; whether each was made now comes with it."""
    done = {}
    remove_strays(job.out, numbers)
    task = functools.partial(ensure_shard, job)
    total = sum(len(job.numbers(number)) for number in numbers)
    with tqdm(total=total, unit="pair", desc="synthesize", disable=None) as bar:
        try:
            results = run_tasks(task, numbers, workers=workers, executor=executor)
            for number, result in zip(numbers, results, strict=True):
                done[number] = result
                bar.update(result[0].pairs)
        except BaseException:
            remove_strays(job.out, numbers)  # of workers stopped in the middle of a shard
            raise
    return done


def _others(job: Job, done: Iterable[int]) -> dict[int, Record]:
    """Notes of the shards that other runs have finished."""
    numbers = sorted({*range(job.num_shards)} - {*done})
    records = zip(numbers, _each(functools.partial(progress.read_record, job.out), numbers), strict=True)
    return {number: record for number, record in records if record is not None}


def _check_others(job: Job, others: dict[int, Record]) -> None:
    """Check that what other runs made is still there, as the index will vouch for it.

    Raises:
        InputError: a shard is missing or damaged.
    """
    intact = _each(functools.partial(progress.is_intact, job.out), others.values())
    for number, is_there in zip(others, intact, strict=True):
        if not is_there:
            what = f"{others[number].shard.name}, made by another run, is gone or damaged"
            raise InputError(f"{job.out}: {what}; run again with --shards-range {number}:{number + 1}")


def _is_complete(out: Store) -> bool:
    """Whether the folder has an index, and the sources that it names."""
    if out.stat(INDEX_NAME) is None:
        return False
    sources = out.index().sources
    return sources is not None and progress.has_digest(out, sources.name, sources.sha256)


def _finish(job: Job, values: dict[str, Any], shards: tuple[Shard, ...]) -> None:
    """Write the sources and, last, the index."""
    hosts, items = tables(job.recipe.regions, job.recipe.segments)
    counts = {"pairs": job.pairs, "shards": len(shards), "backgrounds": len(hosts.images), "segments": len(items)}
    job.out.delete(INDEX_NAME)  # it vouches for the sources
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
        sources_table.write(table, total)
        with table.open("rb") as made, out.create(SOURCES_NAME) as file:
            shutil.copyfileobj(made, file)
        return Sources(SOURCES_NAME, sha256_of(table), len(total))
