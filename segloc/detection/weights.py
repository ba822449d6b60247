"""Loading what was pretrained, all of it or not at all, and saving what was fine-tuned.

Weights that quietly fail to load are the commonest mistake in transfer experiments: the run works, and its result is
that of a random start. So every tensor has to match, in both directions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.error import URLError

import torch
from omegaconf import DictConfig
from torch import nn
from torchvision.models import get_model_weights

from segloc import checkpoint, lazy
from segloc.contract import InputError
from segloc.detection import recipe
from segloc.detection.detector import Detector
from segloc.models.backbone import SegLocBackbone

RANDOM = "random"
IMAGENET = "imagenet"
BACKBONE_SETTINGS = ("arch", "norm", "sda_norm", "attention")
SHOWN = 8


def read_backbone(path: str | Path) -> dict[str, Any]:
    """Read the backbone of a pretraining or fine-tuning result, file or run folder.

    Returns:
        The file's content, with ``backbone`` (state dict) and its settings ``arch``, ``norm``, ``sda_norm`` and
        ``attention``.

    Raises:
        InputError: no such file, or it holds no backbone by itself.
    """
    file = checkpoint.find(path)
    content = checkpoint.load(file)
    missing = [key for key in ("backbone", *BACKBONE_SETTINGS) if key not in content]
    if missing:
        kind = content.get("kind", "unknown")
        raise InputError(f"{file}: a {kind} checkpoint without {missing[0]!r}; give a finished run's backbone.pth")
    return content


def load_start(backbone: SegLocBackbone, weights: str, settings: Mapping[str, Any]) -> None:
    """Give a new backbone its start weights.

    Args:
        backbone: changed in place.
        weights: ``random`` (left as it is), ``imagenet`` (torchvision's, for the ResNet), or a path.
        settings: the recipe's node of the backbone.

    Raises:
        InputError: the file does not fit the recipe.
    """
    if weights == RANDOM:
        return
    if weights == IMAGENET:
        _load_imagenet(backbone, settings)
        return
    content = read_backbone(weights)
    for name in BACKBONE_SETTINGS:
        if content[name] != settings[name]:
            raise InputError(
                f"{weights}: was pretrained with {name}={content[name]}, the recipe has {settings[name]}; "
                f"set model.backbone.{name}={content[name]}"
            )
    load_strict(backbone, content["backbone"], weights)


def load_strict(module: nn.Module, state: Mapping[str, torch.Tensor], source: str) -> None:
    """Load a state dict whose names and shapes all match.

    Raises:
        InputError: some do not; nothing has been loaded then.
    """
    wanted = module.state_dict()
    faults = [f"{name} is missing" for name in wanted if name not in state]
    faults += [f"{name} has no place" for name in state if name not in wanted]
    faults += [
        f"{name} is {tuple(state[name].shape)}, not {tuple(tensor.shape)}"
        for name, tensor in wanted.items()
        if name in state and state[name].shape != tensor.shape
    ]
    if faults:
        more = f", and {len(faults) - SHOWN} more" if len(faults) > SHOWN else ""
        raise InputError(f"{source}: does not fit the model: {', '.join(faults[:SHOWN])}{more}")
    module.load_state_dict(dict(state))


def detector_content(detector: Detector, config: DictConfig, classes: Sequence[str], iteration: int) -> dict[str, Any]:
    """Put together what a fine-tuning checkpoint holds; the backbone's tensors are shared, not stored twice."""
    return {
        "kind": "detector",
        "engine": detector.engine,
        "classes": list(classes),
        "config": lazy.to_yaml(config),
        "iteration": iteration,
        "model": detector.net.state_dict(),
        **{name: config.model.backbone[name] for name in BACKBONE_SETTINGS},
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


def build_detector(content: Mapping[str, Any], config: DictConfig, source: str) -> Detector:
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
    config.model.engine = content["engine"]
    recipe.settle(config, content["classes"])
    detector: Detector = lazy.instantiate(config.model, "model")
    load_strict(detector.net, content["model"], source)
    return detector


def _load_imagenet(backbone: SegLocBackbone, settings: Mapping[str, Any]) -> None:
    """Load torchvision's ImageNet weights into the ResNet; FPN and attention stay random."""
    if settings["norm"] != "bn":
        raise InputError(f"ImageNet weights need model.backbone.norm=bn, the recipe has {settings['norm']}")
    try:
        state = get_model_weights(settings["arch"]).IMAGENET1K_V1.get_state_dict(progress=True, check_hash=True)
    except (URLError, OSError, RuntimeError) as error:
        raise InputError(f"the ImageNet weights cannot be downloaded ({error})") from error
    state = {name: tensor for name, tensor in state.items() if not name.startswith("fc.")}
    load_strict(backbone.body, state, f"torchvision's {settings['arch']}")
