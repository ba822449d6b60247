"""Padding in pretraining's steps, in random order and in the stream's: ``python -m benchmarks.padding --help``.

All images of a step, queries and keys apart, are padded to one size. `padding` is the share of a step's pixels that are
of no image; `pixels` is the number of a step's pixels, divided by that in random order. Sizes are read from the
descriptions of the pairs; nothing is decoded.
"""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np

from benchmarks.common import arguments, save
from segloc.data.shapes import shrunk_to_fit
from segloc.data.stream import PairStream, ShardFolder
from segloc.models.backbone import padded_size
from segloc.settings.pretraining import load_config


def sizes(stream: PairStream) -> np.ndarray:
    """Return the (width, height) of query and key of an epoch's whole steps: [steps, pairs, 2, 2]."""
    classes, read, found = stream.folder.index.classes, {}, []
    for _, _, shard, place, _ in stream._epoch(0):
        if shard not in read:
            read[shard] = [sample.describe(classes) for sample in stream._load(0, shard)]
        pair = read[shard][place]
        found.append([shrunk_to_fit(view.size, stream.image_size) for view in (pair.query, pair.key)])
    whole = len(found) // stream.step * stream.step
    return np.array(found[:whole]).reshape(-1, stream.step, 2, 2)


def padded_pixels(of_steps: np.ndarray) -> int:
    """Count the pixels of `sizes` after padding."""
    total = 0
    for step in of_steps:
        for side in (0, 1):
            width, height = padded_size(*map(tuple, step[:, side].tolist()))
            total += width * height * len(step)
    return total


class Shuffled(PairStream):
    """The stream without regard to shapes."""

    group = 1  # type: ignore[assignment]


def row(folder: ShardFolder, name: str, batch: int, image_size: int, lanes: int) -> dict[str, Any]:
    """Measure one epoch in both orders."""
    found = {kind: sizes(kind(folder, batch, image_size, 0, lanes, 1)) for kind in (Shuffled, PairStream)}
    pixels = {kind: padded_pixels(of_steps) for kind, of_steps in found.items()}
    share = {kind: 1 - of_steps.prod(3).sum() / pixels[kind] for kind, of_steps in found.items()}
    return {
        "shards": name,
        "pairs": folder.index.num_pairs,
        "image_size": image_size,
        "pairs_per_step": batch,
        "padding_in_random_order": round(float(share[Shuffled]), 3),
        "padding": round(float(share[PairStream]), 3),
        "pixels": round(pixels[PairStream] / pixels[Shuffled], 3),
    }


def main() -> None:
    """Run the benchmark."""
    options = argparse.ArgumentParser(
        prog="python -m benchmarks.padding",
        description=__doc__.splitlines()[0],
        epilog="example: python -m benchmarks.padding --shards data/shards --name PIDray",
    )
    options.add_argument("--shards", required=True, metavar="DIR")
    options.add_argument("--name", required=True, help="of the shards, for the table")
    args = arguments(options)
    config, folder = load_config(None), ShardFolder.open(args.shards)
    mix = config.data.mix_shards
    widths = (config.data.image_size, config.optim.batch)
    save("padding", [row(folder, args.name, batch, widths[0], mix) for batch in (widths[1], 4 * widths[1])])


if __name__ == "__main__":
    main()
