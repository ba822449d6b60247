"""Start weights: loading what was pretrained, all of it or not at all.

Weights that quietly fail to load are the commonest mistake in transfer experiments: the run works, and its result is
that of a random start. So every tensor has to match, in both directions, unless the user says that the rest may start
anew; what did is then listed.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.error import URLError

import torch
from torch import nn
from torchvision.models import get_model_weights

from segloc.common.errors import InputError, one_line
from segloc.models.backbone import FPN_CHANNELS, SegLocBackbone
from segloc.settings.finetuning import REFUSE
from segloc.training import checkpoint

RANDOM = "random"
IMAGENET = "imagenet"
# Names by which a ResNet of torchvision is known.
_LAST_STAGE = "layer4.0.conv1.weight"
_RESNET_TENSORS = {"conv1.weight", "layer1.0.conv1.weight", _LAST_STAGE}
# What `segloc.models.norm.ResidualScale` learns, under the names of batch norm's scales and shifts.
_RESIDUAL_SCALE = re.compile(r"body\.layer\d\.\d+\.bn\d\.(weight|bias)")
BACKBONE_SETTINGS = ("arch", "norm", "sda_norm", "attention", "fpn_channels")
SHOWN = 8
COUNTER = "num_batches_tracked"


class Misfit(InputError):
    """Start weights that are not those of the recipe's model."""


@dataclasses.dataclass(frozen=True)
class Started:
    """What a backbone took over from its start weights.

    Attributes:
        summary: in words.
        loaded: names of the backbone's tensors that were.
        anew: names of those that were not and start at random, or at what new layers start at.
        unused: the start weights' tensors that have no place in the backbone, or another shape there, and why.
    """

    summary: str
    loaded: tuple[str, ...] = ()
    anew: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()


def read_backbone(path: str | Path) -> dict[str, Any]:
    """Read the backbone of a pretraining or fine-tuning result, file or run folder.

    Returns:
        The file's content, with ``backbone`` (state dict) and its settings `BACKBONE_SETTINGS`.

    Raises:
        InputError: no such file, or it holds no backbone by itself.
    """
    file = checkpoint.find(path)
    return _with_backbone(checkpoint.load(file), file)


def load_backbone(path: str | Path) -> SegLocBackbone:
    """Load the backbone of a pretraining or fine-tuning result, in evaluation mode, on the CPU.

    Args:
        path: run folder or checkpoint.

    Raises:
        InputError: no such file, or it holds no backbone, or one that does not fit its own settings.
    """
    return new_backbone(read_backbone(path), str(path))


def new_backbone(content: Mapping[str, Any], source: str) -> SegLocBackbone:
    """Build the backbone of a file's content (`read_backbone`) in evaluation mode.

    Args:
        content: settings and state dict.
        source: name for error messages.

    Raises:
        InputError: they do not fit together.
    """
    backbone = SegLocBackbone(**{name: content[name] for name in BACKBONE_SETTINGS}).eval()
    load_strict(backbone, content["backbone"], source)
    return backbone


def _with_backbone(content: dict[str, Any], file: Path) -> dict[str, Any]:
    content = {"fpn_channels": FPN_CHANNELS, **content}  # before it was a setting, all had as many
    missing = [key for key in ("backbone", *BACKBONE_SETTINGS) if key not in content]
    if missing:
        kind = content.get("kind", "unknown")
        raise InputError(f"{file}: a {kind} checkpoint without {missing[0]!r}; give a finished run's backbone.pth")
    check_tensors(content["backbone"], str(file))
    return content


def check_tensors(state: Any, source: str) -> None:
    """Check that what stands where weights should are tensors by name, and numbers all of them.

    Raises:
        InputError: they are not.
    """
    if not isinstance(state, Mapping):
        raise InputError(f"{source}: holds a {type(state).__name__} where its weights should be")
    for name, tensor in state.items():
        if not isinstance(name, str) or not isinstance(tensor, torch.Tensor):
            raise InputError(f"{source}: {name!r} of its weights is a {type(tensor).__name__}, not a tensor by name")
        if not torch.isfinite(tensor).all():
            raise InputError(f"{source}: {name} has values that are not finite; its training had diverged")


def load_start(
    backbone: SegLocBackbone,
    weights: str,
    settings: Mapping[str, Any],
    node: str = "model.backbone",
    head: nn.Module | None = None,
    unmatched: str = REFUSE,
) -> Started:
    """Give a new backbone, and a new head if there is one for it, their start weights.

    Args:
        backbone: changed in place.
        weights: ``random`` (left as it is), ``imagenet`` (torchvision's for the ResNet, downloaded), or a path: of a
            run or checkpoint of this project, or of the state dict of a torchvision ResNet.
        settings: the recipe's settings of the backbone.
        node: what the recipe calls them, for messages.
        head: changed in place when the path's file has a head of the same tensors.
        unmatched: ``refuse``: every tensor has to match; ``start_anew``: those that match by name and shape are taken
            over, the others start anew. FPN and attention, which a torchvision ResNet does not have, always may. Batch
            norm in the place of a residual scale of norm-free weights keeps it where its statistics are fixed, so that
            the function stays; where it goes by its batches it starts anew, or the branch would start all but off.

    Raises:
        Misfit: the weights do not fit the recipe; nothing has been loaded then.
        InputError: they cannot be had.
    """
    if weights == RANDOM:
        return Started("everything starts at random", anew=tuple(backbone.state_dict()))
    strict = unmatched == REFUSE
    content = _content(weights, settings, node, strict)
    if weights == IMAGENET:
        return _from_resnet(backbone, _download(settings["arch"]), _imagenet(settings), strict)
    if _is_resnet(content):
        return _from_resnet(backbone, content, weights, strict)
    started = _load_backbone(backbone, content, settings, weights, strict)
    return started if head is None else _with_head(started, head, content.get("head", {}), weights)


def check_start(weights: str, settings: Mapping[str, Any], node: str, unmatched: str) -> None:
    """Check, without a model, that start weights are there and were made with the recipe's settings.

    Args:
        weights: see `load_start`; ImageNet's are not downloaded.
        settings: see `load_start`.
        node: see `load_start`.
        unmatched: see `load_start`.

    Raises:
        InputError: they are not.
    """
    if weights != RANDOM:
        _content(weights, settings, node, unmatched == REFUSE)


def _content(weights: str, settings: Mapping[str, Any], node: str, strict: bool) -> dict[str, Any]:
    """Read a file of start weights, if they are one, and check that its settings are the recipe's if `strict`."""
    if weights == IMAGENET:
        if strict:
            _check_norm(_imagenet(settings), settings, node)
        return {}
    file = checkpoint.find(weights)
    content = checkpoint.read(file)
    if _is_resnet(content):
        check_tensors(content, weights)
        if strict:
            _check_norm(weights, settings, node)
        return content  # type: ignore[no-any-return]
    if not checkpoint.is_ours(content):
        raise InputError(
            f"{weights}: neither a segloc checkpoint of format {checkpoint.READABLE_NAMES} nor the state dict of a "
            f"torchvision ResNet{_conversion(content, file)}"
        )
    content = _with_backbone(content, file)
    if strict:
        _check_settings(content, settings, weights, node)
    return content


def _imagenet(settings: Mapping[str, Any]) -> str:
    return f"torchvision's {settings['arch']}"


def _is_resnet(content: Any) -> bool:
    return isinstance(content, dict) and {*content} >= _RESNET_TENSORS


def _conversion(content: Any, file: Path) -> str:
    """Say how to get the ResNet out of a file in which it lies deeper, under longer names; empty if there is none."""
    parts = content.items() if isinstance(content, dict) else ()
    for place, part in [("", content), *((f"[{key!r}]", part) for key, part in parts)]:
        names = part if isinstance(part, dict) else ()
        for name in names:
            if isinstance(name, str) and name.endswith(_LAST_STAGE):
                prefix = name.removesuffix(_LAST_STAGE)
                weights = f"torch.load({str(file)!r}){place}"
                renamed = f"k.removeprefix({prefix!r}): v for k, v in {weights}.items() if k.startswith({prefix!r})"
                return f"; it holds one, which `torch.save({{{renamed}}}, 'resnet.pth')` takes out"
    return ""


def _with_head(started: Started, head: nn.Module, state: Mapping[str, torch.Tensor], source: str) -> Started:
    """Load the head, too, if all of it fits."""
    check_tensors(state, source)
    faults = misfits(head, state)
    if not faults:
        head.load_state_dict(dict(state))
    return dataclasses.replace(started, summary=f"{started.summary}, head {'starts anew' if faults else 'too'}")


def load_strict(module: nn.Module, state: Mapping[str, torch.Tensor], source: str) -> None:
    """Load a state dict whose names and shapes all match.

    Raises:
        Misfit: some do not; nothing has been loaded then.
        InputError: something in it is no tensor, or has values that are not finite.
    """
    check_tensors(state, source)
    faults = misfits(module, state)
    if faults:
        more = f", and {len(faults) - SHOWN} more" if len(faults) > SHOWN else ""
        raise Misfit(f"{source}: does not fit the model: {', '.join(faults[:SHOWN])}{more}")
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


def _check_settings(content: Mapping[str, Any], settings: Mapping[str, Any], source: str, node: str) -> None:
    for name in BACKBONE_SETTINGS:
        if content[name] != settings[name]:
            raise Misfit(
                f"{source}: was pretrained with {name}={content[name]}, the recipe has {settings[name]}; "
                f"set {node}.{name}={content[name]}"
            )


def _check_norm(source: str, settings: Mapping[str, Any], node: str) -> None:
    if settings["norm"] != "bn":
        raise Misfit(f"{source}: has batch norm and needs {node}.norm=bn, the recipe has {settings['norm']}")


def _from_resnet(backbone: SegLocBackbone, state: Mapping[str, torch.Tensor], source: str, strict: bool) -> Started:
    """Load a torchvision state dict into the ResNet; FPN and attention stay as they are."""
    # Files of old releases lack the counters of batches, which are no weights.
    counters = {name: count for name, count in backbone.body.state_dict().items() if name.endswith(COUNTER)}
    body = counters | {name: tensor for name, tensor in state.items() if not name.startswith("fc.")}
    started = _load(backbone.body, body, source, strict)
    loaded = tuple(f"body.{name}" for name in started.loaded)
    anew = tuple(name for name in backbone.state_dict() if name not in loaded)
    if not started.anew and not started.unused:
        return Started(f"{source}: ResNet taken over, FPN and attention start at random", loaded, anew)
    return Started(_count(source, loaded, anew, started.unused), loaded, anew, started.unused)


def _load_backbone(
    backbone: SegLocBackbone, content: Mapping[str, Any], settings: Mapping[str, Any], source: str, strict: bool
) -> Started:
    """Load a backbone of ours, but for residual scales where batch norm is to start anew; see `load_start`."""
    dropped: tuple[str, ...] = ()
    if content["norm"] == "none" != settings["norm"]:
        scales = filter(_RESIDUAL_SCALE.fullmatch, content["backbone"])
        dropped = tuple(name for name in scales if name.rpartition(".")[0] not in backbone.evaluating)
    state = {name: tensor for name, tensor in content["backbone"].items() if name not in dropped}
    started = _load(backbone, state, source, strict)
    if not dropped:
        return started
    reason = "is a residual scale, batch norm starts anew in its place"
    unused = (*started.unused, *(f"{name} {reason}" for name in dropped))
    return Started(_count(source, started.loaded, started.anew, unused), started.loaded, started.anew, unused)


def _load(module: nn.Module, state: Mapping[str, torch.Tensor], source: str, strict: bool) -> Started:
    """Load what matches by name and shape; unless that is all, only if not `strict`."""
    wanted = module.state_dict()
    faults = misfits(module, state)
    if strict or not faults:
        load_strict(module, state, source)
        return Started(f"{source}: backbone taken over", tuple(wanted))
    fitting = {name: x for name, x in state.items() if name in wanted and wanted[name].shape == x.shape}
    if not any(tensor.dim() > 1 for tensor in fitting.values()):  # counters fit anywhere
        raise InputError(f"{source}: none of its weights fits the model by name and shape")
    module.load_state_dict(fitting, strict=False)
    anew = tuple(name for name in wanted if name not in fitting)
    unused = tuple(fault for fault in faults if fault.partition(" ")[0] in state)
    return Started(_count(source, tuple(fitting), anew, unused), tuple(fitting), anew, unused)


def _count(source: str, loaded: tuple[str, ...], anew: tuple[str, ...], unused: tuple[str, ...]) -> str:
    parts = [f"{len(loaded)} of {len(loaded) + len(anew)} tensors taken over"]
    parts += [f"{len(anew)} start anew ({_some(anew)})"] if anew else []
    parts += [f"{len(unused)} of the file not used ({_some(unused)})"] if unused else []
    return f"{source}: {'; '.join(parts)}"


def _some(names: tuple[str, ...]) -> str:
    """Name the first and the last few."""
    few = SHOWN // 2
    return ", ".join(names if len(names) <= SHOWN else (*names[:few], "...", *names[-few:]))


def _download(arch: str) -> Mapping[str, torch.Tensor]:
    try:
        return get_model_weights(arch).IMAGENET1K_V1.get_state_dict(progress=True, check_hash=True)  # type: ignore[no-any-return]
    except (URLError, OSError, RuntimeError) as error:
        raise InputError(f"the ImageNet weights cannot be downloaded ({one_line(error)})") from error
