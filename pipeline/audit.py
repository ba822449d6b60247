"""Stage ``audit``: reads every shard back and checks it against the index and the contract."""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import sys
import tarfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from tqdm import tqdm

from pipeline import cli, gallery
from pipeline.blends import BLENDS
from pipeline.executors import run_tasks
from pipeline.files import sha256_of
from pipeline.images import Image, ImageError, decode
from pipeline.pair_statistics import Statistics
from segloc.contract import Box, Index, InputError, Pair, Shard, View, check_output, pair_key, read_index, write_atomic

SUFFIXES = ("query.jpg", "key.jpg", "json")
_GALLERY_PAIRS, _GALLERY_COLUMNS = 24, 8
_SHOWN = 50  # violations printed; the report holds all


@dataclasses.dataclass
class Findings:
    """What the audit of one shard found.

    Attributes:
        violations: a sentence each.
        pairs: descriptions of the pairs that could be read.
    """

    violations: list[str] = dataclasses.field(default_factory=list)
    pairs: list[Pair] = dataclasses.field(default_factory=list)


def check_shard(task: tuple[int, Shard], *, folder: Path, index: Index) -> Findings:
    """Audit one shard.

    Args:
        task: number of the first pair, and the index's entry.
        folder: where the shards are.
        index: the whole index.
    """
    first, shard = task
    path, findings = folder / shard.name, Findings()
    if not path.is_file():
        findings.violations.append(f"{shard.name}: missing")
        return findings
    if path.stat().st_size != shard.bytes:
        findings.violations.append(f"{shard.name}: {path.stat().st_size} bytes, the index says {shard.bytes}")
    elif sha256_of(path) != shard.sha256:
        findings.violations.append(f"{shard.name}: sha256 differs from the index")
    number = first
    try:
        for number, (names, contents) in enumerate(read_groups(path), first):
            _check_pair(number, names, contents, index, findings)
    except (tarfile.TarError, EOFError, OSError) as error:
        findings.violations.append(f"{shard.name}: broken tar after pair {number} ({error})")
    _check_totals(shard, findings, index)
    return findings


def read_groups(path: Path) -> Iterator[tuple[list[str], list[bytes]]]:
    """Read a shard three members at a time: their names, and their contents."""
    names: list[str] = []
    contents: list[bytes] = []
    with tarfile.open(path, "r:") as tar:
        for member in tar:
            file = tar.extractfile(member)
            names.append(member.name)
            contents.append(file.read() if file else b"")
            if len(names) == len(SUFFIXES):
                yield names, contents
                names, contents = [], []
    if names:
        yield names, contents


def _check_totals(shard: Shard, findings: Findings, index: Index) -> None:
    if len(findings.pairs) != shard.pairs:
        findings.violations.append(f"{shard.name}: {len(findings.pairs)} good pairs, the index says {shard.pairs}")
    seen = Counter(pair.class_id for pair in findings.pairs)
    if tuple(seen[number] for number in range(len(index.classes))) != shard.classes:
        findings.violations.append(f"{shard.name}: class histogram differs from the index")


def _check_pair(number: int, names: list[str], contents: list[bytes], index: Index, findings: Findings) -> None:
    expected = [f"{pair_key(number)}.{suffix}" for suffix in SUFFIXES]
    if names != expected:
        findings.violations.append(f"pair {number}: members {names}, expected {expected}")
        return
    try:
        pair = Pair.from_json(contents[2])
    except InputError as error:
        findings.violations.append(f"pair {number}: {error}")
        return
    problems = list(pair_problems(pair, number, index))
    for side, view, data in (("query", pair.query, contents[0]), ("key", pair.key, contents[1])):
        problems += [f"{side} {problem}" for problem in (*view_problems(view, index), *image_problems(view, data))]
    findings.violations += [f"pair {number}: {problem}" for problem in problems]
    findings.pairs.append(pair)


def pair_problems(pair: Pair, number: int, index: Index) -> Iterator[str]:
    """Say what of a pair's description contradicts the index or the idea of a positive pair."""
    if pair.pair != number:
        yield f"calls itself {pair.pair}"
    if not 0 <= pair.class_id < len(index.classes):
        yield f"class id {pair.class_id} is not in the index"
    elif pair.class_name != index.classes[pair.class_id]:
        yield f"class {pair.class_name!r} is {index.classes[pair.class_id]!r} in the index"
    if pair.query.background == pair.key.background:
        yield f"both views have background {pair.key.background!r}"
    if pair.query.segment == pair.key.segment:
        yield f"both views have segment {pair.key.segment!r}"
    elif scan_of(pair.query.segment) == scan_of(pair.key.segment):
        yield f"both items come from scan {scan_of(pair.key.segment)!r}"


def scan_of(segment_id: str) -> str:
    """Name the scan a segment was cut from; ids are the scan's path, ``#``, the annotation's id."""
    return segment_id.rpartition("#")[0]


def view_problems(view: View, index: Index) -> Iterator[str]:
    """Say what of a view's description is impossible."""
    if not (_inside(view.region, (0, 0, *view.size)) and _inside(view.box, view.region)):
        yield f"box {view.box} is not inside region {view.region} inside image {view.size}"
    if view.blend != index.parameters.get("blend"):
        yield f"blend {view.blend!r} is not the index's {index.parameters.get('blend')!r}"
    elif view.blend not in BLENDS:
        yield f"blend {view.blend!r} is unknown"
    else:
        low, high = BLENDS[view.blend].coefficients
        if not low <= view.alpha <= high:
            yield f"alpha {view.alpha} is not in {low}..{high}"
    if not view.scale > 0:
        yield f"scale {view.scale}"


def image_problems(view: View, data: bytes) -> Iterator[str]:
    """Say what of a stored image contradicts its view."""
    try:
        image = decode(data)
    except ImageError as error:
        yield f"image: {error}"
        return
    if (image.shape[1], image.shape[0]) != view.size:
        yield f"image is {image.shape[1]}x{image.shape[0]}, the description says {view.size[0]}x{view.size[1]}"


def _inside(inner: Box, outer: Box) -> bool:
    """Whether half-open box `inner` is not empty and within `outer`."""
    x0, y0, x1, y1 = inner
    return outer[0] <= x0 < x1 <= outer[2] and outer[1] <= y0 < y1 <= outer[3]


def _draw(path: Path, folder: Path, index: Index) -> None:
    """Draw pairs spread over the shards that can be read: region blue, box red."""
    tiles: list[Image] = []
    shards = [index.shards[position] for position in gallery.spread(_GALLERY_PAIRS, len(index.shards))]
    each = -(-_GALLERY_PAIRS // max(len(shards), 1))
    for shard in shards:
        try:
            for _, (_, contents) in zip(range(each), read_groups(folder / shard.name), strict=False):
                tiles += _tiles(Pair.from_json(contents[2]), contents)
        except (tarfile.TarError, EOFError, OSError, InputError, ImageError, IndexError):
            continue
    if tiles:
        gallery.save(path, tiles[: 2 * _GALLERY_PAIRS], _GALLERY_COLUMNS)


def _tiles(pair: Pair, contents: list[bytes]) -> list[Image]:
    return [
        gallery.tile(
            decode(data),
            [(view.region, gallery.BLUE), (view.box, gallery.RED)],
            f"{pair.pair} {pair.class_name} {side} {view.blend} {view.alpha:.2f}",
        )
        for side, view, data in (("query", pair.query, contents[0]), ("key", pair.key, contents[1]))
    ]


def audit(folder: Path, index: Index, workers: int = 0, executor: str = "local") -> tuple[list[str], Statistics]:
    """Check every shard of a folder.

    Returns:
        The violations, and statistics of the pairs that could be read.
    """
    statistics = Statistics()
    violations = [f"{path.name}: not in the index" for path in sorted(folder.glob("pairs-*.tar"))]
    violations = [text for text in violations if text.partition(":")[0] not in {shard.name for shard in index.shards}]
    if index.num_pairs != index.counts.get("pairs"):
        violations.append(f"index: shards hold {index.num_pairs} pairs, counts say {index.counts.get('pairs')}")
    firsts = np.cumsum([0, *(shard.pairs for shard in index.shards)]).tolist()
    tasks = list(zip(firsts, index.shards, strict=False))
    check = functools.partial(check_shard, folder=folder.absolute(), index=index)
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
    return violations, statistics


def _command(args: argparse.Namespace) -> int:
    for path in (args.report, args.gallery):
        check_output(path)
    index = read_index(args.shards)
    violations, statistics = audit(args.shards, index, args.workers, args.executor)
    summary = statistics.summary()
    if args.report:
        content = {"violations": violations, "shards": len(index.shards), **summary}
        write_atomic(args.report, (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode())
    if args.gallery:
        _draw(args.gallery, args.shards, index)
    for violation in violations[:_SHOWN]:
        print(violation)
    if len(violations) > _SHOWN:
        print(f"... and {len(violations) - _SHOWN} more")
    print(f"{args.shards}: {statistics.pairs} pairs in {len(index.shards)} shards, {len(violations)} violations")
    return 1 if violations else 0


def main(argv: list[str] | None = None) -> int:
    """Run the command."""
    options = cli.parser(
        "pipeline.audit",
        "Verify shards against their index and contract. Exit code 1 when something is wrong.",
        "  python -m pipeline.audit --shards data/shards\n"
        "  python -m pipeline.audit --shards data/shards --report audit.json --gallery pairs.png",
    )
    options.add_argument("--shards", type=Path, required=True, metavar="DIR", help="folder of pipeline.synthesize")
    options.add_argument("--report", type=Path, metavar="FILE", help="write violations and statistics as JSON")
    options.add_argument("--gallery", type=Path, metavar="PNG", help="draw some pairs with their boxes")
    cli.add_executor_options(options)
    return cli.run(_command, options, argv)


if __name__ == "__main__":
    sys.exit(main())
