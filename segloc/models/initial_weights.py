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
from segloc.models.backbone import SegLocBackbone
from segloc.settings.backbone import FPN_CHANNELS
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
class StoredBackbone:
    """What a file of weights holds, read once.

    Attributes:
        source: name for error messages.
        settings: `BACKBONE_SETTINGS` by name; empty for a ResNet of torchvision, which has batch norm.
        tensors: state dict of the backbone or of that ResNet.
        head: state dict of the RoI head; empty where the file has none.
        iteration: steps it was trained for; None where the file does not say.
    """

    source: str
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    tensors: Mapping[str, torch.Tensor] = dataclasses.field(default_factory=dict)
    head: Mapping[str, torch.Tensor] = dataclasses.field(default_factory=dict)
    iteration: int | None = None

    def build(self) -> SegLocBackbone:
        """Build the backbone in evaluation mode, on the CPU.

        Raises:
            InputError: settings and tensors do not fit together.
        """
        backbone = SegLocBackbone(**self.settings).eval()
        load_strict(backbone, self.tensors, self.source)
        return backbone


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


def read_backbone(path: str | Path) -> StoredBackbone:
    """Read the backbone of a pretraining or fine-tuning result, file or run folder.

    Raises:
        InputError: no such file, or it holds no backbone by itself.
    """
    file = checkpoint.find(path)
    return _stored(checkpoint.load(file), str(path), file)


def load_backbone(path: str | Path) -> SegLocBackbone:
    """Load the backbone of a pretraining or fine-tuning result, file or run folder, in evaluation mode, on the CPU.

    Raises:
        InputError: no such file, or it holds no backbone, or one that does not fit its own settings.
    """
    return read_backbone(path).build()


def _stored(content: dict[str, Any], source: str, file: Path) -> StoredBackbone:
    content = {"fpn_channels": FPN_CHANNELS, **content}  # before it was a setting, all had as many
    missing = [key for key in ("backbone", *BACKBONE_SETTINGS) if key not in content]
    if missing:
        kind = content.get("kind", "unknown")
        raise InputError(f"{file}: a {kind} checkpoint without {missing[0]!r}; give a finished run's backbone.pth")
    settings, head = {name: content[name] for name in BACKBONE_SETTINGS}, content.get("head", {})
    for state in (content["backbone"], head):
        check_tensors(state, str(file))
    return StoredBackbone(source, settings, content["backbone"], head, content.get("iteration"))


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


def check_start(weights: str, settings: Mapping[str, Any], node: str, unmatched: str) -> StoredBackbone:
    """Read start weights, and check that they were made with the recipe's settings where every tensor has to match.

    The arguments are those of `load_start`. Random weights and ImageNet's, which are not downloaded, have no tensors.

    Raises:
        Misfit: they were made with other settings.
        InputError: they cannot be had.
    """
    if weights == RANDOM:
        return StoredBackbone(RANDOM)
    stored = StoredBackbone(f"torchvision's {settings['arch']}") if weights == IMAGENET else _read(weights)
    if unmatched == REFUSE:
        if not stored.settings and settings["norm"] != "bn":
            raise Misfit(f"{stored.source}: has batch norm and needs {node}.norm=bn, the recipe has {settings['norm']}")
        for name, value in stored.settings.items():
            if value != settings[name]:
                raise Misfit(
                    f"{weights}: was pretrained with {name}={value}, the recipe has {settings[name]}; "
                    f"set {node}.{name}={value}"
                )
    return stored


def _read(weights: str) -> StoredBackbone:
    """Read a checkpoint of this project or the state dict of a torchvision ResNet."""
    file = checkpoint.find(weights)
    content = checkpoint.read_any(file)
    if isinstance(content, dict) and {*content} >= _RESNET_TENSORS:
        check_tensors(content, weights)
        return StoredBackbone(weights, tensors=content)
    if not checkpoint.is_ours(content):
        raise InputError(
            f"{weights}: neither a segloc checkpoint of format {checkpoint.READABLE_NAMES} nor the state dict of a "
            f"torchvision ResNet{_conversion(content, file)}"
        )
    return _stored(content, weights, file)


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
    stored = check_start(weights, settings, node, unmatched)
    if not stored.settings:
        # Files of old releases lack the counters of batches, which are no weights.
        state = {name: count for name, count in backbone.body.state_dict().items() if name.endswith(COUNTER)}
        resnet = stored.tensors or _download(settings["arch"])
        state |= {name: tensor for name, tensor in resnet.items() if not name.startswith("fc.")}
        return _load(backbone, "body.", state, stored.source, strict)
    dropped: dict[str, str] = {}
    if stored.settings["norm"] == "none" != settings["norm"]:
        trained = (name for name in stored.tensors if name.rpartition(".")[0] not in backbone.evaluating)
        reason = "is a residual scale, batch norm starts anew in its place"
        dropped = {name: f"{name} {reason}" for name in filter(_RESIDUAL_SCALE.fullmatch, trained)}
    state = {name: tensor for name, tensor in stored.tensors.items() if name not in dropped}
    started = _load(backbone, "", state, weights, strict, tuple(dropped.values()))
    if head is None:
        return started
    fits = not misfits(head, stored.head)
    if fits:
        head.load_state_dict(dict(stored.head))
    return dataclasses.replace(started, summary=f"{started.summary}, head {'too' if fits else 'starts anew'}")


def _load(
    backbone: SegLocBackbone,
    prefix: str,
    state: Mapping[str, torch.Tensor],
    source: str,
    strict: bool,
    unused: tuple[str, ...] = (),
) -> Started:
    """Load what matches by name and shape; unless that is all, only if not `strict`.

    With the prefix ``body.`` the tensors are of the ResNet alone and lack it. `unused` says which tensors of the file
    are not in `state`, and why.
    """
    module = backbone.body if prefix else backbone
    wanted, faults = module.state_dict(), misfits(module, state)
    fitting = {name: x for name, x in state.items() if name in wanted and wanted[name].shape == x.shape}
    if strict or not faults:
        load_strict(module, state, source)
    elif not any(tensor.dim() > 1 for tensor in fitting.values()):  # counters fit anywhere
        raise InputError(f"{source}: none of its weights fits the model by name and shape")
    else:
        module.load_state_dict(fitting, strict=False)
    loaded = tuple(prefix + name for name in (fitting if faults else wanted))
    anew = tuple(name for name in backbone.state_dict() if name not in loaded)
    unused = (*(fault for fault in faults if fault.partition(" ")[0] in state), *unused)
    if not faults and not unused:
        done = "ResNet taken over, FPN and attention start at random" if prefix else "backbone taken over"
    else:
        done = f"{len(loaded)} of {len(loaded) + len(anew)} tensors taken over"
        done += f"; {len(anew)} start anew ({_some(anew)})" if anew else ""
        done += f"; {len(unused)} of the file not used ({_some(unused)})" if unused else ""
    return Started(f"{source}: {done}", loaded, anew, unused)


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


def _some(names: tuple[str, ...]) -> str:
    """Name the first and the last few."""
    few = SHOWN // 2
    return ", ".join(names if len(names) <= SHOWN else (*names[:few], "...", *names[-few:]))


def _download(arch: str) -> Mapping[str, torch.Tensor]:
    try:
        return get_model_weights(arch).IMAGENET1K_V1.get_state_dict(progress=True, check_hash=True)  # type: ignore[no-any-return]
    except (URLError, OSError, RuntimeError) as error:
        raise InputError(f"the ImageNet weights cannot be downloaded ({one_line(error)})") from error
