"""Start weights: loading what was pretrained, all of it or not at all.

Weights that quietly fail to load are the commonest mistake in transfer experiments: the run works, and its result is
that of a random start. So every tensor has to match, in both directions.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.error import URLError

import torch
from torch import nn
from torchvision.models import get_model_weights

from segloc import checkpoint
from segloc.contract import InputError
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


def load_start(
    backbone: SegLocBackbone,
    weights: str,
    settings: Mapping[str, Any],
    node: str = "model.backbone",
    head: nn.Module | None = None,
) -> None:
    """Give a new backbone, and a new head if there is one for it, their start weights.

    Args:
        backbone: changed in place.
        weights: ``random`` (left as it is), ``imagenet`` (torchvision's, for the ResNet), or a path.
        settings: the recipe's settings of the backbone.
        node: what the recipe calls them, for messages.
        head: changed in place when the path's file has a head of the same tensors; which of the two it was is printed.

    Raises:
        InputError: the weights cannot be had or do not fit the recipe.
    """
    if weights == RANDOM:
        return
    if weights == IMAGENET:
        _load_imagenet(backbone, settings, node)
        return
    content = read_backbone(weights)
    for name in BACKBONE_SETTINGS:
        if content[name] != settings[name]:
            raise InputError(
                f"{weights}: was pretrained with {name}={content[name]}, the recipe has {settings[name]}; "
                f"set {node}.{name}={content[name]}"
            )
    load_strict(backbone, content["backbone"], weights)
    if head is None:
        return
    faults = misfits(head, content.get("head", {}))
    if not faults:
        head.load_state_dict(content["head"])
    print(f"{weights}: backbone taken over, head {'starts anew' if faults else 'too'}")


def load_strict(module: nn.Module, state: Mapping[str, torch.Tensor], source: str) -> None:
    """Load a state dict whose names and shapes all match.

    Raises:
        InputError: some do not; nothing has been loaded then.
    """
    faults = misfits(module, state)
    if faults:
        more = f", and {len(faults) - SHOWN} more" if len(faults) > SHOWN else ""
        raise InputError(f"{source}: does not fit the model: {', '.join(faults[:SHOWN])}{more}")
    module.load_state_dict(dict(state))


def misfits(module: nn.Module, state: Mapping[str, torch.Tensor]) -> list[str]:
    """List what keeps a state dict from being the module's: tensors missing, without a place, or of another shape."""
    wanted = module.state_dict()
    faults = [f"{name} is missing" for name in wanted if name not in state]
    faults += [f"{name} has no place" for name in state if name not in wanted]
    faults += [
        f"{name} is {tuple(state[name].shape)}, not {tuple(tensor.shape)}"
        for name, tensor in wanted.items()
        if name in state and state[name].shape != tensor.shape
    ]
    return faults


def _load_imagenet(backbone: SegLocBackbone, settings: Mapping[str, Any], node: str) -> None:
    """Load torchvision's ImageNet weights into the ResNet; FPN and attention stay random."""
    if settings["norm"] != "bn":
        raise InputError(f"ImageNet weights need {node}.norm=bn, the recipe has {settings['norm']}")
    try:
        state = get_model_weights(settings["arch"]).IMAGENET1K_V1.get_state_dict(progress=True, check_hash=True)
    except (URLError, OSError, RuntimeError) as error:
        raise InputError(f"the ImageNet weights cannot be downloaded ({error})") from error
    state = {name: tensor for name, tensor in state.items() if not name.startswith("fc.")}
    load_strict(backbone.body, state, f"torchvision's {settings['arch']}")
