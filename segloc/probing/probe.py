"""Measure how well features predict the classes of held-out items, with k-NN and a linear layer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.nn.functional import normalize
from tqdm import tqdm

from segloc.common.errors import InputError
from segloc.common.output_kinds import starting
from segloc.data.stream import ShardFolder
from segloc.models.backbone import LEVELS
from segloc.models.initial_weights import IMAGENET, RANDOM
from segloc.probing import classifiers
from segloc.probing.held_out import HeldOutViews, split
from segloc.probing.roi_features import features, start, trained
from segloc.settings.fields import MAX_IMAGE_SIZE_PX
from segloc.settings.pretraining import load_config

# What a report may replace.
REPORT = starting("a report of segloc.probe", rb'\{\s*"weights":\s*"[^\n]*",.*"shards":')


def probe(
    weights: str,
    shards: str,
    config: str | None = None,
    overrides: Sequence[str] = (),
    train: int = 2000,
    test: int = 1000,
    seed: int = 0,
    image_size: int = 500,
) -> dict[str, Any]:
    """Measure how well features predict the classes of held-out items.

    Args:
        weights: run, checkpoint, ``random`` or ``imagenet``.
        shards: folder or URL of finished shards.
        config: pretraining recipe, for ``random`` and ``imagenet``.
        overrides: ``key=value`` overrides of the recipe.
        train: maximum number of training views.
        test: maximum number of test views.
        seed: seed of the choice of views.
        image_size: side of the square that larger images are shrunk to fit, pixels.

    Returns:
        The report: origin of the weights, counts of views, ``chance``, and ``accuracy`` by kind of features, 0 to 1.

    Raises:
        InputError: invalid weights, shards or numbers, or a recipe for a checkpoint, which has its own settings.
    """
    if min(train, test, image_size) < 1 or image_size > MAX_IMAGE_SIZE_PX or seed < 0:
        raise InputError(
            f"--train and --test must be at least 1, --image-size from 1 to {MAX_IMAGE_SIZE_PX}, and --seed at least 0"
        )
    folder = ShardFolder.open(shards)
    if weights in (RANDOM, IMAGENET):
        network = start(weights, load_config(config, list(overrides)))
    elif config or overrides:
        raise InputError(
            f"--config and key=value apply to {RANDOM} and {IMAGENET} only; {weights} has its own settings"
        )
    else:
        network = trained(weights)
    views = split(folder, train, test, seed)
    learned, labels = features(network, views.train, image_size, "training views")
    tested, truth = features(network, views.test, image_size, "test views")
    return {
        "weights": str(weights),
        **network.about,
        "shards": folder.index.digest,
        "classes": list(folder.index.classes),
        "seed": seed,
        "image_size": image_size,
        **about_views(views, folder.index.classes),
        "chance": int(truth.bincount().max()) / len(truth),
        "neighbours": classifiers.NEIGHBOURS,
        "temperature": classifiers.TEMPERATURE,
        "l2": classifiers.L2,
        "accuracy": accuracies(learned, labels, tested, truth, len(folder.index.classes)),
    }


def accuracies(
    train: Mapping[str, torch.Tensor], labels: torch.Tensor, test: Mapping[str, torch.Tensor], truth: torch.Tensor,
    num_classes: int,
) -> dict[str, dict[str, float]]:  # fmt: skip
    """Classify by each level, by all levels together, and by the embedding if there is one.

    For k-NN, each level is scaled to unit length before concatenation, so that all levels have equal weight.

    Returns:
        Per kind of features: ``size``, and the accuracies ``knn`` and ``linear``.
    """
    pairs = {name: (train["levels"][i : i + 1], test["levels"][i : i + 1]) for i, name in enumerate(LEVELS)}
    pairs["all levels"] = train["levels"], test["levels"]
    if "embedding" in train:
        pairs["embedding"] = train["embedding"], test["embedding"]
    result = {}
    for name, sides in tqdm(pairs.items(), desc="classifying", unit="features"):
        # Concatenate the levels: [L, N, D] to [N, L * D].
        plain = [side.transpose(0, 1).flatten(1) for side in sides]
        unit = [normalize(side, dim=2).transpose(0, 1).flatten(1) for side in sides]
        nearest = classifiers.nearest_neighbours(unit[0], labels, unit[1], num_classes)
        linear = classifiers.linear(plain[0], labels, plain[1], num_classes)
        result[name] = {
            "size": plain[0].shape[1],
            "knn": float((nearest == truth).double().mean()),
            "linear": float((linear == truth).double().mean()),
        }
    return result


def about_views(views: HeldOutViews, classes: Sequence[str]) -> dict[str, Any]:
    """Count views, segments and classes of both sides."""
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
    """Format the report as a text table."""
    train, test = report["train"], report["test"]
    lines = [
        f"{report['weights']}: {report['arch']}, norm {report['norm']}, {report['iteration']} steps",
        f"trained on {train['views']} views of {train['segments']} segments, tested on {test['views']} views of "
        f"{test['segments']} other segments, {len(test['classes'])} classes "
        f"({train['left_out']} and {test['left_out']} views left out to separate them)",
        f"{'features':<12}{'size':>6}{'k-NN':>8}{'linear':>8}",
    ]
    for name, row in report["accuracy"].items():
        lines.append(f"{name:<12}{row['size']:>6}{row['knn']:>8.1%}{row['linear']:>8.1%}")
    return "\n".join([*lines, f"{'chance':<12}{'':>6}{report['chance']:>8.1%}{report['chance']:>8.1%}"])
