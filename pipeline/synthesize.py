"""Stage ``synthesize``: pastes segments on backgrounds and writes the pairs into shards."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from pipeline.pairing import geometry
from pipeline.pairing.blends import BLENDS
from pipeline.pairing.pairs import Recipe
from pipeline.storage.shards import Job
from pipeline.storage.synthesis import excluded_classes, synthesize
from segloc.common import cli
from segloc.common.stores import open_store
from segloc.common.text import shortened


def _command(args: argparse.Namespace) -> None:
    # Absolute, because workers of a cluster start in a different folder.
    inputs = args.backgrounds.absolute(), args.regions.absolute(), args.segments.absolute()
    recipe = Recipe(
        *inputs, seed=args.seed, blend=args.blend, width=args.width, scales=args.scale, occluded=args.occluded,
        coefficients=args.coefficients, on_matter=args.on_matter,
    )  # fmt: skip
    job = Job(recipe, open_store(args.out), args.pairs, args.per_shard, args.quality)
    if excluded := excluded_classes(job):
        print(f"classes left out (segments from fewer than two bags): {', '.join(map(shortened, excluded))}")
    shards, made = synthesize(job, args.shards_range, args.if_changed, args.workers, args.executor)
    if shards < job.num_shards:
        print(f"{job.out}: {shards} of {job.num_shards} shards; the index is written with the last shard")
    else:
        state = f"{made} made now" if made else "all were there and verified"
        print(f"{job.out}: {job.pairs} pairs in {shards} shards ({state})")


def _at_least(least: int, most: int | None = None) -> Any:
    def number(text: str) -> int:
        value = cli.whole(text)
        if value < least or (most is not None and value > most):
            raise argparse.ArgumentTypeError(f"{value} is not {least} or more{f' and at most {most}' if most else ''}")
        return value

    return number


def _span(text: str) -> tuple[float, float]:
    try:
        low, high = map(cli.number, text.split(":"))
    except (ValueError, argparse.ArgumentTypeError):
        raise argparse.ArgumentTypeError(f"{text!r} is not LOW:HIGH") from None
    if not 0.01 <= low <= high <= 100:
        raise argparse.ArgumentTypeError(f"{text!r} is not a range between 0.01 and 100")
    return low, high


def _shards_range(text: str) -> tuple[int, int]:
    try:
        first, last = map(cli.whole, text.split(":"))
    except (ValueError, argparse.ArgumentTypeError):
        first = last = 0
    if not 0 <= first < last:
        raise argparse.ArgumentTypeError(f"{text!r} is not FIRST:LAST with FIRST below LAST")
    return first, last


def main(argv: list[str] | None = None) -> int:
    """Run the command."""
    options = cli.parser(
        "pipeline.synthesize",
        "Paste pairs of segments on pairs of backgrounds and write them into shards. Run again to resume.",
        "  python -m pipeline.synthesize --backgrounds data/raw/sixray --regions data/regions.parquet \\\n"
        "      --segments data/segments.parquet --out data/shards --pairs 200000 --seed 0\n"
        "  ... --shards-range 0:50    # one job of an array; the last job to end writes the index\n"
        "  ... --out s3://bucket/shards    # needs s3fs: pip install s3fs",
        cli.CONTINUES,
    )
    add = options.add_argument
    add("--backgrounds", type=cli.path, required=True, metavar="DIR", help="folder of scans, as for pipeline.regions")
    add("--regions", type=cli.path, required=True, metavar="FILE", help="table that pipeline.regions wrote")
    add("--segments", type=cli.path, required=True, metavar="FILE", help="table that pipeline.segments wrote")
    add(
        "--out",
        type=cli.output_store,
        required=True,
        metavar="DIR_OR_URL",
        help="folder of the shards, s3:// or another URL of fsspec",
    )
    add("--pairs", type=_at_least(1), default=200_000, metavar="N", help="default: 200000")
    add("--seed", type=_at_least(0), default=0, metavar="S", help="random seed (default: 0)")
    add("--per-shard", type=_at_least(1), default=1000, metavar="N", help="pairs per shard (default: 1000)")
    add(
        "--blend",
        choices=tuple(BLENDS),
        default="ratio",
        help="composition mode (default: ratio; the paper's is alpha)",
    )
    usual = ", ".join(f"{name} {low:g}:{high:g}" for name, (_, (low, high), _) in BLENDS.items())
    weights = (
        "range of the composition coefficient: the item's weight in alpha, a factor on its thickness in multiply and "
        f"ratio (default: {usual})"
    )
    add("--coefficients", type=_span, metavar="LOW:HIGH", help=weights)
    add("--width", type=_at_least(32, 8192), default=500, metavar="PX", help="width of the images (default: 500)")
    add("--quality", type=_at_least(1, 100), default=95, metavar="Q", help="JPEG quality (default: 95)")
    sizes = "range of item scales; 1 keeps an item's width relative to its scan (default: 0.75:1.33)"
    add("--scale", type=_span, default=geometry.SCALE, metavar="LOW:HIGH", help=sizes)
    share = "lay a crop of another background over this share of the items, 0 to 1 (default: 0, as in the paper)"
    add("--occluded", type=cli.share, default=0.0, metavar="SHARE", help=share)
    matter = "share of an item to lie on a bag rather than empty belt (default: 0.5; 0, as in the paper: anywhere)"
    add("--on-matter", type=cli.share, default=0.5, metavar="SHARE", help=matter)
    add("--shards-range", type=_shards_range, metavar="A:B", help="make only shards A to B-1")
    cli.add_if_changed(options)
    cli.add_executor_options(options)
    return cli.run(_command, options, argv)


if __name__ == "__main__":
    sys.exit(main())
