"""The audit of a shard folder: reads every shard and checks it against the index and the contract."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from pipeline.checks import pair_checks
from pipeline.checks.pair_statistics import Statistics
from pipeline.common import gallery
from pipeline.common.executors import run_tasks
from pipeline.tables import sources_table
from pipeline.tables.sources_table import Source
from segloc.common.contract import Index, Pair, Shard, Sources, pair_key
from segloc.common.errors import InputError, RunError, one_line
from segloc.common.files import existing_file, sha256_of
from segloc.common.images import Image, ImageError, decode
from segloc.common.output_kinds import starting
from segloc.common.store_protocol import Store
from segloc.common.tars import read_tar

SUFFIXES = ("query.jpg", "key.jpg", "json")
MAX_OFF_MATTER = 0.02  # default of the largest share of items on less matter than the recipe asks for
REPORT = starting("a report of pipeline.audit", rb'\{\s*"format_version":\s*\d+,\s*"(lacks|violation_count)":')
_GALLERY_PAIRS, _GALLERY_COLUMNS = 24, 8
_UNREADABLE = (OSError, InputError, ImageError, IndexError)


@dataclasses.dataclass
class Findings:
    """Results of the audit of one shard.

    Attributes:
        violations: one sentence each.
        pairs: descriptions of the readable pairs.
    """

    violations: list[str] = dataclasses.field(default_factory=list)
    pairs: list[Pair] = dataclasses.field(default_factory=list)


def check_shard(task: tuple[int, Shard], *, folder: Store, index: Index, segments: Path | None) -> Findings:
    """Audit one shard.

    Args:
        task: number of the first pair, and the shard's entry in the index.
        folder: the shard folder.
        index: index of the folder.
        segments: segment table of the shards, to check boxes against their recipes; None skips this check.
    """
    first, shard = task
    findings = Findings()
    try:
        with folder.fetch(shard.name) as path:
            _check_file(path, first, shard, index, segments, findings)
    except FileNotFoundError:
        findings.violations.append(f"{shard.name}: missing")
        return findings
    if len(findings.pairs) != shard.pairs:
        findings.violations.append(f"{shard.name}: {len(findings.pairs)} good pairs, but the index lists {shard.pairs}")
    seen = Counter(pair.class_id for pair in findings.pairs)
    if tuple(seen[number] for number in range(len(index.classes))) != shard.classes:
        findings.violations.append(f"{shard.name}: class histogram differs from the index")
    return findings


def _check_file(path: Path, first: int, shard: Shard, index: Index, segments: Path | None, findings: Findings) -> None:
    if path.stat().st_size != shard.bytes:
        findings.violations.append(f"{shard.name}: {path.stat().st_size} bytes, but the index lists {shard.bytes}")
    elif sha256_of(path) != shard.sha256:
        findings.violations.append(f"{shard.name}: sha256 differs from the index")
    number = first
    try:
        for number, (names, contents) in enumerate(read_groups(path), first):
            _check_pair(number, names, contents, index, segments, findings)
    except (InputError, OSError) as error:
        findings.violations.append(f"{shard.name}: broken tar after pair {number} ({one_line(error)})")


def read_groups(path: Path) -> Iterator[tuple[list[str], list[bytes]]]:
    """Read a shard three members at a time: their names and contents."""
    members = read_tar(path, path.name)
    while group := list(itertools.islice(members, len(SUFFIXES))):
        yield [name for name, _ in group], [content for _, content in group]


def _check_pair(
    number: int, names: list[str], contents: list[bytes], index: Index, segments: Path | None, findings: Findings
) -> None:
    expected = [f"{pair_key(number)}.{suffix}" for suffix in SUFFIXES]
    if names != expected:
        findings.violations.append(f"pair {number}: members {names}, expected {expected}")
        return
    try:
        pair = Pair.from_json(contents[2], index.format_version)
    except InputError as error:
        findings.violations.append(f"pair {number}: {error}")
        return
    problems = list(pair_checks.pair_problems(pair, number, index))
    for side, view, data in (("query", pair.query, contents[0]), ("key", pair.key, contents[1])):
        found = [*pair_checks.view_problems(view, index), *pair_checks.image_problems(view, data)]
        problems += [f"{side} {problem}" for problem in found or pair_checks.mask_problems(view)]
    if segments is not None and not problems:
        problems += pair_checks.recipe_problems(pair, pair_checks.segment_table(segments))
    findings.violations += [f"pair {number}: {problem}" for problem in problems]
    findings.pairs.append(pair)


def draw_pair_gallery(path: Path, folder: Store, index: Index, damaged: bool) -> None:
    """Draw pairs from shards across the folder as a PNG: region blue, box red.

    Args:
        path: file to write.
        folder: the shard folder.
        index: index of the folder.
        damaged: whether the audit found violations; unreadable pairs are then left out.

    Raises:
        RunError: a pair that the audit has read cannot be read any more.
    """
    tiles: list[Image] = []
    shards = [index.shards[position] for position in gallery.spread(_GALLERY_PAIRS, len(index.shards))]
    each = -(-_GALLERY_PAIRS // max(len(shards), 1))
    for shard in shards:
        try:
            with folder.fetch(shard.name) as tar:
                for _, (_, contents) in zip(range(each), read_groups(tar), strict=False):
                    tiles += _tiles(Pair.from_json(contents[2], index.format_version), contents)
        except _UNREADABLE as error:
            if not damaged:
                raise RunError(f"{folder}/{shard.name}: changed while the command ran ({one_line(error)})") from error
    if tiles:
        gallery.save(path, tiles[: 2 * _GALLERY_PAIRS], _GALLERY_COLUMNS)


def _tiles(pair: Pair, contents: list[bytes]) -> list[Image]:
    tiles = []
    for side, view, data in (("query", pair.query, contents[0]), ("key", pair.key, contents[1])):
        caption = f"{pair.pair} {pair.class_name} {side} {view.blend} {view.coefficient:.2f}"
        tiles.append(gallery.tile(decode(data), [(view.region, gallery.BLUE), (view.box, gallery.RED)], caption))
    return tiles


def audit(
    folder: Store,
    index: Index,
    segments: Path | None = None,
    workers: int = 0,
    executor: str = "local",
    max_off_matter: float = MAX_OFF_MATTER,
) -> tuple[list[str], Statistics]:
    """Check every shard of a folder.

    Args:
        folder: the shard folder.
        index: its index.
        segments: segment table of the shards, to check boxes against their recipes; None skips this check.
        workers: see `run_tasks`.
        executor: see `run_tasks`.
        max_off_matter: largest allowed share of items on less matter than the recipe asks for.

    Returns:
        The violations, and statistics of the readable pairs.
    """
    statistics = Statistics()
    listed = {shard.name for shard in index.shards}
    strays = [name for name in folder.names() if name.startswith("pairs-") and name.endswith(".tar")]
    violations = [f"{name}: not in the index" for name in strays if name not in listed]
    if index.num_pairs != index.counts.get("pairs"):
        violations.append(f"index: shards hold {index.num_pairs} pairs, but counts lists {index.counts.get('pairs')}")
    firsts = np.cumsum([0, *(shard.pairs for shard in index.shards)]).tolist()
    tasks = list(zip(firsts, index.shards, strict=False))
    check = functools.partial(check_shard, folder=folder, index=index, segments=segments)
    seen: dict[int, int] = {}
    with tqdm(total=index.num_pairs, unit="pair", desc="audit", disable=None) as bar:
        results = run_tasks(check, tasks, workers=workers, executor=executor)
        for (_, shard), findings in zip(tasks, results, strict=True):
            violations += findings.violations
            for pair in findings.pairs:
                statistics.add(pair)
                first = seen.setdefault(hash((pair.query, pair.key)), pair.pair)
                if first != pair.pair:
                    violations.append(f"pair {pair.pair}: the same as pair {first}")
            bar.update(shard.pairs)
    violations += pair_checks.balance_problems(statistics.classes, index)
    violations += pair_checks.matter_problems(statistics.on_matter, index, max_off_matter)
    if segments is not None:
        violations += pair_checks.chained_bags(pair_checks.segment_table(segments))
    if index.sources is not None:
        violations += source_problems(folder, index.sources, statistics.uses)
    return violations, statistics


def source_problems(folder: Store, sources: Sources, uses: Counter[Source]) -> Iterator[str]:
    """Yield what is wrong with the table of sources.

    Args:
        folder: the shard folder.
        sources: the table's entry in the index.
        uses: how often the readable pairs use each source.
    """
    try:
        with folder.fetch(sources.name) as path:
            if sha256_of(path) != sources.sha256:
                yield f"{sources.name}: sha256 differs from the index"
            listed = sources_table.read(path)
    except FileNotFoundError:
        yield f"{sources.name}: missing"
        return
    except InputError as error:
        yield f"{sources.name}: {error}"
        return
    if len(listed) != sources.rows:
        yield f"{sources.name}: {len(listed)} rows, but the index lists {sources.rows}"
    different = sorted(one for one in {*listed, *uses} if listed[one] != uses[one])
    if different:
        kind, name = first = different[0]
        yield (
            f"{sources.name}: {len(different)} counts differ from the pairs: {kind} {name!r} has {listed[first]}, "
            f"but the pairs use it {uses[first]} times"
        )


def report(index: Index, violations: list[str], statistics: Statistics) -> dict[str, Any]:
    """Results of the audit, as JSON values."""
    content = {"format_version": index.format_version, "lacks": index.lacks, "violation_count": len(violations)}
    wanted, off = pair_checks.wanted_on_matter(index), pair_checks.off_matter(statistics.on_matter, index)
    content |= {"on_matter_wanted": wanted, "off_matter_share": round(off, 4)}
    return content | {"shards": len(index.shards), **statistics.summary(), "violations": violations}


def check_segments(path: Path, index: Index) -> Path:
    """Check that a table is the one that the shards were made from, and return its absolute path.

    Raises:
        InputError: it is another table.
    """
    if sha256_of(existing_file(path, "segments")) != index.parameters.get("segments_sha256"):
        raise InputError(f"{path}: not the segment table of these shards (sha256 differs); choose the original")
    return path.absolute()
