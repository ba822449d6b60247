"""``python -m segloc.probe``: how well the features of an item tell its class, a cheap stand-in for AP.

A detector has to be fine-tuned for hours to show what pretraining was worth. Here nothing is trained but a linear
layer: the features are RoIAlign's 7x7 cells of the item's box, averaged to one vector a level.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.nn.functional import normalize
from tqdm import tqdm

from segloc.common import cli
from segloc.common.errors import InputError
from segloc.common.files import check_output, write_atomic
from segloc.contrast.pretrainer import index_digest
from segloc.data.stream import ShardFolder
from segloc.models.backbone import LEVELS
from segloc.models.initial_weights import IMAGENET, RANDOM
from segloc.probing import classifiers
from segloc.probing.held_out import Split, split
from segloc.probing.roi_features import Network, features, start, trained
from segloc.settings.pretraining import load_config

EXAMPLES = """\
  python -m segloc.probe --weights runs/pretrain --shards data/shards --out runs/pretrain/probe.json
  python -m segloc.probe --weights imagenet --shards data/shards
  python -m segloc.probe --weights random --shards data/shards --config detectron_configs/pretrain/demo_r18.yaml
The recipe is for random (fresh weights of its network) and imagenet; a checkpoint knows its own.

The shards are split once: the last third of the shards and a third of every class's segments are held out, and the
test views are the held-out segments in the held-out shards, so no item and no picture is on both sides.
Pretraining knows nothing of this split: on the shards it ran on it has seen the test views and their classes. To see
what it is worth on items that are new to it, give shards made of other segments.
k-NN: the 20 training views of highest cosine similarity vote with the weight exp(cosine / 0.07). Linear: logistic
regression on standardised features by L-BFGS, L2 0.001. Chance is the share of the largest class among the test views.
"""


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    options = cli.parser("segloc.probe", "Measure how well features of held-out items tell their class.", EXAMPLES)
    options.add_argument("--weights", required=True, help="pretraining or fine-tuning run or checkpoint, or a start")
    options.add_argument("--shards", required=True, metavar="DIR_OR_URL", help="finished folder of shards")
    options.add_argument("--out", metavar="FILE", help="JSON file to write")
    options.add_argument("--config", metavar="YAML", help="recipe of pretraining, for --weights random and imagenet")
    options.add_argument("--train", type=int, default=2000, metavar="N", help="views to learn from (%(default)s)")
    options.add_argument("--test", type=int, default=1000, metavar="N", help="views to test on (%(default)s)")
    options.add_argument("--seed", type=int, default=0, help="of the choice of views (%(default)s)")
    options.add_argument(
        "--image-size", type=int, default=500, metavar="PX", help="images are shrunk to it (%(default)s)"
    )
    cli.add_overrides(options)
    return cli.run(run, options, argv)


def run(args: argparse.Namespace) -> None:
    """Carry out the command."""
    check_output(args.out)
    if min(args.train, args.test, args.image_size) < 1 or args.seed < 0:
        raise InputError("--train, --test and --image-size must be at least 1, and --seed at least 0")
    folder = ShardFolder.open(args.shards)
    network = open_network(args)
    views = split(folder, args.train, args.test, args.seed)
    train, labels = features(network, views.train, args.image_size, "training views")
    test, truth = features(network, views.test, args.image_size, "test views")
    report = {
        "weights": str(args.weights),
        **network.about,
        "shards": index_digest(folder),
        "classes": list(folder.index.classes),
        "seed": args.seed,
        "image_size": args.image_size,
        **about_views(views, folder.index.classes),
        "chance": int(truth.bincount().max()) / len(truth),
        "neighbours": classifiers.NEIGHBOURS,
        "temperature": classifiers.TEMPERATURE,
        "l2": classifiers.L2,
        "accuracy": accuracies(train, labels, test, truth, len(folder.index.classes)),
    }
    print(table(report))
    if args.out:
        write_atomic(args.out, (json.dumps(report, indent=1, ensure_ascii=False) + "\n").encode())
        print(f"wrote {args.out}")


def open_network(args: argparse.Namespace) -> Network:
    """Make or load what ``--weights`` names.

    Raises:
        InputError: it cannot be had, or a recipe was given that does not matter to it.
    """
    if args.weights in (RANDOM, IMAGENET):
        return start(args.weights, load_config(args.config, args.overrides))
    if args.config or args.overrides:
        raise InputError(f"--config and key=value are for {RANDOM} and {IMAGENET}; {args.weights} has its own settings")
    return trained(args.weights)


def accuracies(
    train: Mapping[str, torch.Tensor], labels: torch.Tensor, test: Mapping[str, torch.Tensor], truth: torch.Tensor,
    num_classes: int,
) -> dict[str, dict[str, float]]:  # fmt: skip
    """Classify by every level, by all of them, and by the embedding where there is one.

    Several levels count alike in k-NN: each has unit length before they are put together.

    Returns:
        Per kind of features ``size``, and the accuracies ``knn`` and ``linear``.
    """
    pairs = {name: (train["levels"][i : i + 1], test["levels"][i : i + 1]) for i, name in enumerate(LEVELS)}
    pairs["all levels"] = train["levels"], test["levels"]
    if "embedding" in train:
        pairs["embedding"] = train["embedding"], test["embedding"]
    result = {}
    for name, sides in tqdm(pairs.items(), desc="classifying", unit="features"):
        plain, unit = ([_joined(x) for x in kind] for kind in (sides, [normalize(x, dim=2) for x in sides]))
        nearest = classifiers.nearest_neighbours(unit[0], labels, unit[1], num_classes)
        linear = classifiers.linear(plain[0], labels, plain[1], num_classes)
        result[name] = {
            "size": plain[0].shape[1],
            "knn": float((nearest == truth).double().mean()),
            "linear": float((linear == truth).double().mean()),
        }
    return result


def about_views(views: Split, classes: Sequence[str]) -> dict[str, Any]:
    """Count what was learned from and tested on."""
    about: dict[str, Any] = {}
    for name, side in (("train", views.train), ("test", views.test)):
        per_class = Counter(chosen.label for chosen in side)
        about[name] = {
            "views": len(side),
            "segments": len({chosen.view.segment for chosen in side}),
            "classes": {classes[label]: per_class[label] for label in sorted(per_class)},
            "left_out": views.left_out[name],
        }
    return about


def table(report: Mapping[str, Any]) -> str:
    """Put the report into a table for the terminal."""
    train, test = report["train"], report["test"]
    lines = [
        f"{report['weights']}: {report['arch']}, norm {report['norm']}, {report['iteration']} steps",
        f"learned from {train['views']} views of {train['segments']} segments, tested on {test['views']} of "
        f"{test['segments']} others, {len(test['classes'])} classes "
        f"({train['left_out']} and {test['left_out']} left out to keep them apart)",
        f"{'features':<12}{'size':>6}{'k-NN':>8}{'linear':>8}",
    ]
    for name, row in report["accuracy"].items():
        lines.append(f"{name:<12}{row['size']:>6}{row['knn']:>8.1%}{row['linear']:>8.1%}")
    return "\n".join([*lines, f"{'chance':<12}{'':>6}{report['chance']:>8.1%}{report['chance']:>8.1%}"])


def _joined(blocks: torch.Tensor) -> torch.Tensor:
    """Put the levels [L, N, D] side by side: [N, L * D]."""
    return blocks.transpose(0, 1).flatten(1)


if __name__ == "__main__":
    sys.exit(main())
