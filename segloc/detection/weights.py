"""What a detector takes from pretraining besides its backbone, and what it is saved as and read back from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from segloc.common.errors import InputError
from segloc.detection.detector import Detector, engine_name, new_detector
from segloc.models.initial_weights import (
    BACKBONE_SETTINGS,
    IMAGENET,
    RANDOM,
    Misfit,
    Started,
    load_start,
    load_strict,
    read_backbone,
)
from segloc.settings.finetuning import FinetuneConfig
from segloc.settings.loader import parse, to_yaml
from segloc.training import checkpoint


def start_detector(detector: Detector, weights: str, config: FinetuneConfig) -> Started:
    """Give a new detector its start weights: the backbone's and, if the recipe says so, the box heads'.

    Args:
        detector: changed in place.
        weights: see `segloc.models.initial_weights.load_start`.
        config: the recipe it was built by.

    Raises:
        InputError: the weights cannot be had or do not fit, or something random would be frozen.
    """
    model, train = config.model, config.train
    if weights == RANDOM and model.fixed_statistics:
        raise InputError(
            "model.fixed_statistics=true would normalise random weights by statistics nobody measured; give start "
            "--weights, or use a recipe of the fair protocol"
        )
    try:
        started = load_start(detector.backbone, weights, vars(model.backbone), unmatched=train.unmatched)
    except Misfit as error:
        raise Misfit(f"{error}; train.unmatched=start_anew would take over what fits and list the rest") from error
    state = detector.backbone.state_dict()
    # Scales, shifts and statistics start as the identity, not at random.
    lost = [name for name in started.anew if name in detector.backbone.frozen and state[name].dim() > 1]
    if lost:
        raise InputError(
            f"model.frozen={model.frozen} would keep random weights for good ({lost[0]} and {len(lost) - 1} more); "
            "give start --weights that have them, or use a recipe of the fair protocol"
        )
    if train.box_heads == "pretrained":
        load_box_heads(detector, weights)
    return started


def load_box_heads(detector: Detector, weights: str) -> None:
    """Start every box head of a new detector from the layers pretrained with ``head.kind=box2fc``.

    Args:
        detector: changed in place.
        weights: the start weights of its backbone.

    Raises:
        InputError: they hold no such layers, or layers of another width.
    """
    head = {} if weights in (RANDOM, IMAGENET) else read_backbone(weights).head
    layers = {name.removeprefix("box."): tensor for name, tensor in head.items() if name.startswith("box.")}
    if not layers:
        raise InputError(f"{weights}: no box head in it; train.box_heads=pretrained needs one pretrained by box2fc")
    for fc1, fc2 in detector.box_layers:
        load_strict(nn.ModuleDict({"fc1": fc1, "fc2": fc2}), layers, weights)


def detector_content(
    detector: Detector, config: FinetuneConfig, classes: Sequence[str], iteration: int
) -> dict[str, Any]:
    """Put together what a fine-tuning checkpoint holds; the backbone's tensors are shared, not stored twice."""
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
    """Read a fine-tuning checkpoint, file or run folder.

    Raises:
        InputError: there is none, or it is another kind of checkpoint.
    """
    file = checkpoint.find(path)
    content = checkpoint.load(file)
    if content.get("kind") != "detector":
        raise InputError(f"{file}: a {content.get('kind', 'unknown')} checkpoint, not a fine-tuned detector")
    return content


def build_detector(content: Mapping[str, Any], config: FinetuneConfig, source: str) -> Detector:
    """Build the detector of a fine-tuning checkpoint and load its weights.

    Args:
        content: see `read_detector`.
        config: the recipe to build it by.
        source: name for error messages.

    Raises:
        InputError: the engine is not installed or the weights do not fit.
    """
    if config.model.engine not in ("auto", content["engine"]):
        raise InputError(f"{source}: was trained on {content['engine']}, the recipe asks for {config.model.engine}")
    detector = new_detector(config.resolved(content["classes"], engine_name(content["engine"])).model)
    load_strict(detector.net, content["model"], source)
    return detector


def recipe_inside(content: Mapping[str, Any], source: str, overrides: Sequence[str] = ()) -> FinetuneConfig:
    """Read the recipe inside a fine-tuning checkpoint; settings that have been added since have their defaults.

    Args:
        content: see `read_detector`.
        source: name for error messages.
        overrides: ``key=value`` settings to change.

    Raises:
        InputError: it is none, or an override has a key that does not exist.
    """
    text = content.get("config", "")
    if content.get("format_version") == 1:  # its recipes also named the classes that they configured
        text = "\n".join(line for line in text.split("\n") if not line.lstrip().startswith("_target_:"))
    return parse(FinetuneConfig, text, f"{source}: its recipe", overrides)
