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
from segloc.contract import InputError, one_line
from segloc.models.backbone import SegLocBackbone

RANDOM = "random"
IMAGENET = "imagenet"
# Names by which a ResNet of torchvision is known.
_RESNET_TENSORS = {"conv1.weight", "layer1.0.conv1.weight", "layer4.0.conv1.weight"}
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
    return _with_backbone(checkpoint.load(file), file)


def _with_backbone(content: dict[str, Any], file: Path) -> dict[str, Any]:
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
) -> str:
    """Give a new backbone, and a new head if there is one for it, their start weights.

    Args:
        backbone: changed in place.
        weights: ``random`` (left as it is), ``imagenet`` (torchvision's for the ResNet, downloaded), or a path: of a
            run or checkpoint of this project, or of the state dict of a torchvision ResNet.
        settings: the recipe's settings of the backbone.
        node: what the recipe calls them, for messages.
        head: changed in place when the path's file has a head of the same tensors.

    Returns:
        What was taken over, in words.

    Raises:
        InputError: the weights cannot be had or do not fit the recipe.
    """
    if weights == RANDOM:
        return "everything starts at random"
    if weights == IMAGENET:
        source = f"torchvision's {settings['arch']}"
        _check_norm(source, settings, node)
        return _load_resnet(backbone, _download(settings["arch"]), source)
    file = checkpoint.find(weights)
    content = checkpoint.read(file)
    if isinstance(content, dict) and {*content} >= _RESNET_TENSORS:
        _check_norm(weights, settings, node)
        return _load_resnet(backbone, content, weights)
    if not checkpoint.is_ours(content):
        raise InputError(
            f"{weights}: neither a segloc checkpoint of format {checkpoint.FORMAT_VERSION} nor the state dict of a "
            "torchvision ResNet"
        )
    content = _with_backbone(content, file)
    for name in BACKBONE_SETTINGS:
        if content[name] != settings[name]:
            raise InputError(
                f"{weights}: was pretrained with {name}={content[name]}, the recipe has {settings[name]}; "
                f"set {node}.{name}={content[name]}"
            )
    load_strict(backbone, content["backbone"], weights)
    if head is None:
        return f"{weights}: backbone taken over"
    faults = misfits(head, content.get("head", {}))
    if not faults:
        head.load_state_dict(content["head"])
    return f"{weights}: backbone taken over, head {'starts anew' if faults else 'too'}"


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


def _check_norm(source: str, settings: Mapping[str, Any], node: str) -> None:
    if settings["norm"] != "bn":
        raise InputError(f"{source}: has batch norm and needs {node}.norm=bn, the recipe has {settings['norm']}")


def _load_resnet(backbone: SegLocBackbone, state: Mapping[str, torch.Tensor], source: str) -> str:
    """Load a torchvision state dict into the ResNet; FPN and attention stay as they are."""
    body = backbone.body
    # Files of old releases lack the counters of batches, which are no weights.
    counters = {name: count for name, count in body.state_dict().items() if name.endswith("num_batches_tracked")}
    load_strict(body, counters | {name: x for name, x in state.items() if not name.startswith("fc.")}, source)
    return f"{source}: ResNet taken over, FPN and attention start at random"


def _download(arch: str) -> Mapping[str, torch.Tensor]:
    try:
        return get_model_weights(arch).IMAGENET1K_V1.get_state_dict(progress=True, check_hash=True)  # type: ignore[no-any-return]
    except (URLError, OSError, RuntimeError) as error:
        raise InputError(f"the ImageNet weights cannot be downloaded ({one_line(error)})") from error
