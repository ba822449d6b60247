"""Stage ``synthesize``: pastes segments on backgrounds and writes the pairs into shards.

The folder holds ``.progress`` while it is unfinished: the plan (every parameter the pairs depend on) and a record per
finished shard. A run into a folder with the same plan goes on where the last one stopped; with another plan it refuses
or starts again, as told.
"""

from __future__ import annotations

import argparse
import functools
import json
import re
import sys
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from tqdm import tqdm

from pipeline.common.executors import run_tasks
from pipeline.pairing import geometry
from pipeline.pairing.blends import BLENDS
from pipeline.pairing.pairs import RECIPE_VERSION, Recipe, tables
from pipeline.storage.shards import (
    PROGRESS_NAME,
    Job,
    Record,
    ensure_shard,
    is_intact,
    read_record,
    remove_strays,
    write_record,
)
from segloc.common import cli
from segloc.common.contract import INDEX_NAME, Index, Shard
from segloc.common.errors import InputError
from segloc.common.files import existing_folder, sha256_of
from segloc.common.stores import Store, open_store

T = TypeVar("T")
R = TypeVar("R")

_PLAN = f"{PROGRESS_NAME}/plan.json"
# A store answers in some tens of milliseconds, so notes of shards are read and written several at a time.
_AT_A_TIME = 16
_SHARD, _INDEX_TEMPORARY = re.compile(r"pairs-\d{6,}\.tar"), re.compile(r"\.index\.json\..*\.tmp")
_OURS = re.compile(rf"{_SHARD.pattern}|\.{_SHARD.pattern}\..*\.tmp|{_INDEX_TEMPORARY.pattern}")


def parameters(job: Job) -> dict[str, Any]:
    """Every parameter the shards depend on, the seed apart; inputs by digest, never by path.

    Raises:
        InputError: an input is missing or cannot give a single pair.
    """
    _, items = tables(job.recipe.regions, job.recipe.segments)
    usable = items.usable
    if not usable:
        raise InputError(f"{job.recipe.segments}: no class has segments from two bags, so there is no pair to make")
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
        # Absent as a rule, so that folders made before there were crops still go on.
        **({"positives": "instance"} if items.instances else {}),
        "excluded_classes": [name for number, name in enumerate(items.classes) if number not in usable],
    }


def counts(job: Job) -> dict[str, int]:
    """Totals for the index."""
    hosts, items = tables(job.recipe.regions, job.recipe.segments)
    return {"pairs": job.pairs, "shards": job.num_shards, "backgrounds": len(hosts.images), "segments": len(items)}


def prepare(job: Job, plan: dict[str, Any], if_changed: str) -> None:
    """Make the folder ready for `plan`: new, taken up again, or emptied of another plan's shards.

    Raises:
        InputError: it holds shards of another plan, or of none, and `if_changed` is ``refuse``.
    """
    found, shards = _found(job.out)
    if found != plan and (found is not None or any(_SHARD.fullmatch(name) for name in job.out.names())):
        if if_changed == "refuse":
            raise InputError(
                f"{job.out}: {_difference(found, plan)}; choose another --out, or --if-changed rebuild to start again"
            )
        _clear(job.out)
        shards = ()
    _each(lambda item: _note(job.out, *item), enumerate(shards))
    for name in job.out.names():
        if _INDEX_TEMPORARY.fullmatch(name):
            job.out.delete(name)
    with job.out.create(_PLAN) as file:
        file.write(json.dumps(plan, sort_keys=True, indent=1).encode())


def _note(out: Store, number: int, shard: Shard) -> None:
    """Note a shard the index lists, so that the folder can lose its index; a note of its own says more."""
    if read_record(out, number) is None:
        write_record(out, number, Record(shard))


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
        return {"seed": index.seed, **index.parameters}, index.shards
    try:
        found = json.loads(out.read(_PLAN))
        return found if isinstance(found, dict) else {}, ()
    except InputError:
        raise
    except (OSError, ValueError):
        return None, ()


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


def synthesize(job: Job, args: argparse.Namespace) -> int:
    """Make or verify the shards in range and, once all exist, the index."""
    values = parameters(job)
    if values["excluded_classes"]:
        print(f"left out, with segments from fewer than two bags: {', '.join(values['excluded_classes'])}")
    prepare(job, {"seed": job.recipe.seed, **values}, args.if_changed)
    done = _run(job, range(*(args.shards_range or (0, job.num_shards))), args)
    others = _others(job, done)
    if len(done) + len(others) < job.num_shards:
        print(f"{job.out}: {len(done) + len(others)} of {job.num_shards} shards; the index follows with the last")
        return 0
    _check(job, others)
    shards = {number: shard for number, (shard, _) in done.items()}
    shards |= {number: record.shard for number, record in others.items()}
    classes = tables(job.recipe.regions, job.recipe.segments)[1].classes
    made = sum(is_new for _, is_new in done.values())
    if made or job.out.stat(INDEX_NAME) is None:
        in_order = tuple(shards[number] for number in range(job.num_shards))
        with job.out.create(INDEX_NAME) as file:
            file.write(Index(classes, job.recipe.seed, values, counts(job), in_order).to_json())
    job.out.delete_folder(PROGRESS_NAME)
    state = f"{made} made now" if made else "all were there and verified"
    print(f"{job.out}: {job.pairs} pairs in {job.num_shards} shards ({state})")
    return 0


def _others(job: Job, done: Iterable[int]) -> dict[int, Record]:
    """Notes of the shards that other runs have finished."""
    numbers = sorted({*range(job.num_shards)} - {*done})
    records = zip(numbers, _each(functools.partial(read_record, job.out), numbers), strict=True)
    return {number: record for number, record in records if record is not None}


def _check(job: Job, others: dict[int, Record]) -> None:
    """Check that what other runs made is still there, as the index will vouch for it.

    Raises:
        InputError: a shard is missing or damaged.
    """
    intact = _each(functools.partial(is_intact, job.out), others.values())
    for number, is_there in zip(others, intact, strict=True):
        if not is_there:
            again = f"run again with --shards-range {number}:{number + 1}"
            raise InputError(
                f"{job.out}: {others[number].shard.name}, made by another run, is gone or damaged; {again}"
            )


def _run(job: Job, numbers: range, args: argparse.Namespace) -> dict[int, tuple[Shard, bool]]:
    """Make or verify the shards `numbers`; whether each was made now comes with it."""
    done = {}
    remove_strays(job.out, numbers)
    task = functools.partial(ensure_shard, job)
    total = sum(len(job.numbers(number)) for number in numbers)
    with tqdm(total=total, unit="pair", desc="synthesize", disable=None) as bar:
        try:
            results = run_tasks(task, numbers, workers=args.workers, executor=args.executor)
            for number, result in zip(numbers, results, strict=True):
                done[number] = result
                bar.update(result[0].pairs)
        except BaseException:
            remove_strays(job.out, numbers)  # of workers stopped in the middle of a shard
            raise
    return done


def _command(args: argparse.Namespace) -> int:
    existing_folder(args.backgrounds, "backgrounds")
    # Absolute, as workers of a cluster start in a folder of their own.
    inputs = args.backgrounds.absolute(), args.regions.absolute(), args.segments.absolute()
    recipe = Recipe(
        *inputs,
        seed=args.seed,
        blend=args.blend,
        coefficients=args.coefficients,
        width=args.width,
        scales=args.scale,
        occluded=args.occluded,
    )
    least, most = BLENDS[recipe.blend].allowed
    if recipe.coefficients and not least <= recipe.coefficients[0] <= recipe.coefficients[1] <= most:
        raise InputError(f"--coefficients: --blend {recipe.blend} takes what is within {least:g} and {most:g}")
    out = open_store(args.out)
    if not out.is_shared and (args.workers != 1 or args.executor != "local"):
        raise InputError(f"{args.out}: only this process sees what is written there; use --workers 1")
    job = Job(recipe, out, args.pairs, args.per_shard, args.quality)
    if args.shards_range and args.shards_range[1] > job.num_shards:
        raise InputError(f"--shards-range ends at {args.shards_range[1]}, but there are {job.num_shards} shards")
    return synthesize(job, args)


def _at_least(least: int, most: int | None = None) -> Any:
    def number(text: str) -> int:
        value = int(text)
        if value < least or (most is not None and value > most):
            raise argparse.ArgumentTypeError(f"{value} is not {least} or more{f', {most} at most' if most else ''}")
        return value

    return number


def _share(text: str) -> float:
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not within 0 and 1")
    return value


def _span(text: str) -> tuple[float, float]:
    try:
        low, high = map(float, text.split(":"))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not LOW:HIGH") from None
    if not 0.01 <= low <= high <= 100:
        raise argparse.ArgumentTypeError(f"{text!r} is not a range within 0.01 and 100")
    return low, high


def _shards_range(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d+):(\d+)", text)
    if not match or int(match[1]) >= int(match[2]):
        raise argparse.ArgumentTypeError(f"{text!r} is not FIRST:LAST with FIRST below LAST")
    return int(match[1]), int(match[2])


def main(argv: list[str] | None = None) -> int:
    """Run the command."""
    options = cli.parser(
        "pipeline.synthesize",
        "Paste pairs of segments on pairs of backgrounds and write them into shards. Run again to resume.",
        "  python -m pipeline.synthesize --backgrounds data/raw/sixray --regions data/regions.parquet \\\n"
        "      --segments data/segments.parquet --out data/shards --pairs 200000 --seed 0\n"
        "  ... --shards-range 0:50    # one job of an array; whichever ends last writes the index\n"
        "  ... --out s3://bucket/shards    # needs s3fs: pip install s3fs",
    )
    options.add_argument("--backgrounds", type=cli.path, required=True, metavar="DIR", help="those of pipeline.regions")
    options.add_argument("--regions", type=cli.path, required=True, metavar="FILE", help="table of pipeline.regions")
    options.add_argument("--segments", type=cli.path, required=True, metavar="FILE", help="table of pipeline.segments")
    options.add_argument(
        "--out", required=True, metavar="DIR_OR_URL", help="folder of the shards; also s3:// or what else fsspec opens"
    )
    options.add_argument("--pairs", type=_at_least(1), default=200_000, metavar="N", help="default: 200000")
    options.add_argument(
        "--seed", type=_at_least(0), default=0, metavar="S", help="another seed, other pairs (default: 0)"
    )
    options.add_argument("--per-shard", type=_at_least(1), default=1000, metavar="N", help="default: 1000")
    options.add_argument("--blend", choices=tuple(BLENDS), default="alpha", help="default: alpha, the paper's")
    options.add_argument(
        "--coefficients",
        type=_span,
        metavar="LOW:HIGH",
        help="range of the composition coefficient: the item's weight in alpha (default: 0.25:0.65, the paper's), a "
        "factor of its thickness in multiply and ratio (default: 0.6:1.4)",
    )
    options.add_argument(
        "--width", type=_at_least(32, 8192), default=500, metavar="PX", help="of the images (default: 500)"
    )
    options.add_argument(
        "--quality", type=_at_least(1, 100), default=95, metavar="Q", help="JPEG quality (default: 95)"
    )
    options.add_argument(
        "--scale",
        type=_span,
        default=geometry.SCALE,
        metavar="LOW:HIGH",
        help="how large items are drawn; 1 is as large in the frame as in their own scan's (default: 0.75:1.33)",
    )
    options.add_argument(
        "--occluded",
        type=_share,
        default=0.0,
        metavar="SHARE",
        help="lay a piece of another background over this share of the items, 0 to 1 (default: 0, as in the paper)",
    )
    options.add_argument("--shards-range", type=_shards_range, metavar="A:B", help="make only shards A to B-1")
    options.add_argument(
        "--if-changed", choices=("refuse", "rebuild"), default="refuse", help="when the folder was made differently"
    )
    cli.add_executor_options(options)
    return cli.run(_command, options, argv)


if __name__ == "__main__":
    sys.exit(main())
