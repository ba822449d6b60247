"""Initial weights of detectors, and the fine-tuning checkpoint: its content, loading and recipe."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from segloc.common.errors import InputError
from segloc.common.parse import check_text, shown
from segloc.detection.detector import Detector, engine_name, new_detector
from segloc.models.initial_weights import (
    BACKBONE_SETTINGS,
    RANDOM,
    Misfit,
    Started,
    StoredBackbone,
    check_tensors,
    load_start,
    load_strict,
    read_start,
    refuse_misfits,
)
from segloc.settings.finetuning import FinetuneConfig
from segloc.settings.loader import parse, to_yaml
from segloc.training import checkpoint


def load_initial_weights(detector: Detector, weights: str, config: FinetuneConfig) -> Started:
    """Load the initial weights of a new detector: backbone and, with ``train.box_heads=pretrained``, box heads.

    Args:
        detector: changed in place.
        weights: see `segloc.models.initial_weights.load_start`.
        config: the recipe the detector was built with.

    Raises:
        InputError: the weights cannot be loaded or do not fit, or random weights would be frozen.
    """
    model, train = config.model, config.train
    if weights == RANDOM and model.fixed_statistics:
        raise InputError(
            "model.fixed_statistics=true needs measured batch-norm statistics, which random weights do not have; give "
            "pretrained --weights, or use a recipe of the fair protocol"
        )
    try:
        stored = read_start(weights)
        started = load_start(detector.backbone, stored, vars(model.backbone), unmatched=train.unmatched)
    except Misfit as error:
        raise Misfit(f"{error}; train.unmatched=start_anew loads the tensors that fit and lists the rest") from error
    state = detector.backbone.state_dict()
    # Scales, shifts and statistics are initialised as the identity, not at random.
    lost = [name for name in started.anew if name in detector.backbone.frozen and state[name].dim() > 1]
    if lost:
        raise InputError(
            f"model.frozen={model.frozen} would freeze random weights ({lost[0]} and {len(lost) - 1} more); "
            "give --weights that contain them, or use a recipe of the fair protocol"
        )
    if train.box_heads == "pretrained":
        load_box_heads(detector, stored)
    return started


def load_box_heads(detector: Detector, stored: StoredBackbone) -> None:
    """Load the layers pretrained with ``head.kind=box2fc`` into every box head of a new detector.

    Args:
        detector: changed in place.
        stored: the initial weights of its backbone.

    Raises:
        InputError: the weights have no such layers, or layers of another width.
    """
    layers = {name.removeprefix("box."): x for name, x in stored.head.items() if name.startswith("box.")}
    if not layers:
        raise InputError(
            f"{stored.source}: has no box head; train.box_heads=pretrained needs one pretrained with box2fc"
        )
    for fc1, fc2 in detector.box_layers:
        load_strict(nn.ModuleDict({"fc1": fc1, "fc2": fc2}), layers, stored.source)


def detector_content(
    detector: Detector, config: FinetuneConfig, classes: Sequence[str], iteration: int
) -> dict[str, Any]:
    """Return the content of a fine-tuning checkpoint; ``model`` and ``backbone`` share tensors, stored once."""
    return {
        "kind": "detector",
        "engine": detector.engine,
        "classes": list(classes),
        "config": to_yaml(config),
        "iteration": iteration,
        "model": detector.net.state_dict(),
        **{name: getattr(config.model.backbone, name) for name in BACKBONE_SETTINGS},
        "backbone": detector.backbone.state_dict(),
    }


def read_detector(path: str | Path) -> dict[str, Any]:
    """Read a fine-tuning checkpoint from a file or run folder, and check its fields.

    Raises:
        InputError: there is no checkpoint, it is of another kind, or a field is damaged.
    """
    file = checkpoint.find(path)
    return checked_detector(checkpoint.load(file), file)


def checked_detector(content: dict[str, Any], source: str | Path) -> dict[str, Any]:
    """Return the content of a fine-tuning checkpoint if its fields have the types that `detector_content` writes.

    Raises:
        InputError: it is of another kind, or a field is damaged.
    """
    if content.get("kind") != "detector":
        raise InputError(f"{source}: is a {checkpoint.kind_of(content)} checkpoint, not a fine-tuned detector")
    checkpoint.count_in(content, "iteration", source)
    if "steps" in content:
        checkpoint.count_in(content, "steps", source)
    for field in ("engine", "config"):
        checkpoint.text_in(content, field, source)
    classes = content.get("classes")
    if not isinstance(classes, list) or not classes or not all(isinstance(name, str) for name in classes):
        raise checkpoint.Damaged(f"{source}: its classes are {shown(classes)}, not a list of names")
    for name in classes:
        check_text(name, f"{source}: its classes")
    check_tensors(content.get("model"), str(source))
    return content


def build_detector(content: Mapping[str, Any], config: FinetuneConfig, source: str) -> Detector:
    """Build the detector of a fine-tuning checkpoint and load its weights.

    Args:
        content: see `read_detector`.
        config: the recipe to build it with.
        source: name for error messages.

    Raises:
        InputError: the engine is not installed or the weights do not fit.
    """
    if config.model.engine not in ("auto", content["engine"]):
        raise InputError(f"{source}: was trained with engine {content['engine']}, the recipe has {config.model.engine}")
    model = config.resolved(content["classes"], engine_name(content["engine"])).model
    # The recipe may be damaged, too: without memory first, so that a head of a billion channels takes none.
    with torch.device("meta"):
        refuse_misfits(new_detector(model).net, content["model"], source)
    detector = new_detector(model)
    load_strict(detector.net, content["model"], source)
    return detector


def recipe_inside(content: Mapping[str, Any], source: str, overrides: Sequence[str] = ()) -> FinetuneConfig:
    """Read the recipe in a fine-tuning checkpoint; settings added since then get their defaults.

    Args:
        content: see `read_detector`.
        source: name for error messages.
        overrides: ``key=value`` settings to change.

    Raises:
        InputError: the recipe is damaged, or the key of an override does not exist.
    """
    text = content["config"]
    if content.get("format_version") != checkpoint.FORMAT_VERSION:
        # Version 1 names the class of each section, version 2 has a number of parts, which was always 1.
        gone = "_target_:", "bn_splits:"
        text = "\n".join(line for line in text.split("\n") if not line.lstrip().startswith(gone))
    return parse(FinetuneConfig, text, f"{source}: its recipe", overrides)
